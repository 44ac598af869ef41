"""The processes that train one policy together, as torchrun started them; one process without it.

Rank 0 talks to the outside and the others do what it does. Control messages are Python objects over gloo,
tensors go over NCCL where there are GPUs. torchrun ends all processes when one of them ends.

Leaves out: growing or shrinking while training. Another number of processes is another start from a checkpoint.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import ParallelismConfig
from torch.distributed.device_mesh import DeviceMesh

from .errors import TrainerError
from .ulysses import RowPart

# One collective that takes longer waits for a rank that will not come.
COLLECTIVE_TIMEOUT = timedelta(minutes=10)
# Followers wait this long for the next request, and for rank 0 to write files; a death is noticed at once.
CONTROL_TIMEOUT = timedelta(days=7)

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among all of them."""

    rank: int
    size: int
    device: torch.device
    # None when the process is alone.
    control: dist.ProcessGroup | None = None

    @classmethod
    def join(cls) -> "Ranks":
        """Meet the other processes that torchrun started; a process without torchrun is alone."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        local = int(os.environ.get("LOCAL_RANK", "0"))
        device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
        if size == 1:
            return cls(0, 1, device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=COLLECTIVE_TIMEOUT)
        control = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)
        assert isinstance(control, dist.ProcessGroup)
        return cls(dist.get_rank(), size, device, control)

    def from_first(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        if self.control is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.control)
        return values[0]

    def of_all(self, value: T) -> list[T]:
        """Every rank's value, by rank, on every rank."""
        if self.control is None:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def mesh(self, context_parallel: int = 1) -> "Mesh":
        """The ranks as data parallel × context parallel; neighbours share a sequence, so a machine's fast links do."""
        if self.size % context_parallel:
            raise TrainerError(
                "RANKS", f"{self.size} processes cannot be cut into groups of {context_parallel} that share a sequence"
            )
        if self.size == 1:
            return Mesh(self)
        layout = ParallelismConfig(dp_shard_size=self.size // context_parallel, cp_size=context_parallel)
        device_mesh = layout.build_device_mesh(self.device.type)
        assert device_mesh is not None
        if context_parallel == 1:
            return Mesh(self, 1, device_mesh)
        rank = self.rank % context_parallel
        part = RowPart(device_mesh["cp"].get_group(), rank, context_parallel)
        return Mesh(self, context_parallel, device_mesh, part)


@dataclass(frozen=True)
class Mesh:
    """What each rank works on: ranks of one context-parallel group share sequences, the groups share out the batch."""

    ranks: Ranks
    context_parallel: int = 1
    device_mesh: DeviceMesh | None = None
    # Which tokens of its group's rows this rank holds; None where it holds them all.
    row_part: RowPart | None = None

    @property
    def data_rank(self) -> int:
        """Which context-parallel group this process belongs to."""
        return self.ranks.rank // self.context_parallel

    def row_tokens(self, lengths: Sequence[int], limit: int) -> int:
        """Tokens of a micro-batch, at most `limit` and so few that there is one for everybody."""
        groups = self.ranks.size // self.context_parallel
        return limit if groups == 1 else min(limit, -(-sum(lengths) // groups))

    def share(self, micro_batches: Sequence[T], tokens: Callable[[T], int]) -> list[tuple[T, bool]]:
        """This rank's micro-batches, and whether each counts.

        Sharded weights are gathered by all ranks together, layer by layer, so everyone must compute equally many:
        who has one less computes a small one for nothing. Of each round, micro-batches are alike in size, since
        a round lasts as long as its longest.
        """
        groups = self.ranks.size // self.context_parallel
        if groups == 1 or not micro_batches:
            return [(micro_batch, True) for micro_batch in micro_batches]
        ordered = sorted(micro_batches, key=lambda micro_batch: -tokens(micro_batch))
        rounds = -(-len(ordered) // groups)
        mine = [(micro_batch, True) for micro_batch in ordered[self.data_rank :: groups]]
        return mine + [(ordered[-1], False)] * (rounds - len(mine))

    def of_groups(self, value: T) -> list[T]:
        """One value for each group that shares sequences, on every rank: what was computed once, counted once."""
        return self.ranks.of_all(value)[:: self.context_parallel]

    def union(self, found: Mapping[int, T]) -> dict[int, T]:
        """What all ranks found, by index."""
        return {index: value for part in self.ranks.of_all(dict(found)) for index, value in part.items()}
