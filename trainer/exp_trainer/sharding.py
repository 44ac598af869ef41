"""A policy's weights spread over ranks (FSDP2), and the way between shards and whole tensors."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


class Whole(nn.Module):
    """Runs a block in which the weights outside the layers are whole, forward and backward.

    The output head is used outside the language model's own forward, in chunks. As the root of FSDP, this module
    gathers embedding, last norm and head (tied or not) for as long as the block and its gradient need them.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, block: Callable[[], Any]) -> Any:
        """Run the block. What it returns must be tensors, through which the gradient comes back."""
        return block()


def shard(model: Any, layers: nn.ModuleList, device_mesh: DeviceMesh) -> Whole:
    """Cut every layer, and what is left of the model, into one part a rank.

    Gradients are summed over ranks, not averaged: coefficients of a loss are those of the whole step.
    """
    everybody = device_mesh["dp_shard_cp"]
    whole = Whole(model)
    parts: list[Any] = [*layers, whole]
    for part in parts:
        fully_shard(part, mesh=everybody)
        assert isinstance(part, FSDPModule)
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum
    return whole


def whole_tensor(tensor: Tensor) -> Tensor:
    """All of a sharded tensor; a collective, so every rank asks for the same tensors in the same order."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def cut_like(whole: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a whole tensor that every rank has, on the device and in the cut of `like`."""
    whole = whole.to(like.device)
    if not isinstance(like, DTensor):
        return whole
    # No source rank: nothing is sent.
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
