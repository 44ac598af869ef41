"""One row of sequences over several ranks: each holds a part of its tokens, and within attention a part of the heads.

DeepSpeed-Ulysses (arXiv:2309.14509). Two exchanges an attention layer; between them every rank sees the whole row, so
packing, causality and kernels are those of one rank, and no rank has more to do than another. accelerate's own
context parallelism is a ring over CUDA kernels that knows no packed rows; its Ulysses is DeepSpeed's engine
(docs/decisions/0013).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import TrainerError


@dataclass(frozen=True)
class RowPart:
    """The tokens of a row that this rank holds: the rank's share of `size` equal ones."""

    group: dist.ProcessGroup
    rank: int
    size: int

    def missing(self, tokens: int) -> int:
        """Tokens to append, so that the row can be cut evenly. Nothing before them sees them."""
        return -tokens % self.size

    def cut(self, value_T: Tensor) -> Tensor:
        """This rank's tokens of the last dimension."""
        return value_T.chunk(self.size, dim=-1)[self.rank]

    def own(self, source_N: Tensor, tokens: int) -> Tensor:
        """Which positions of a row are this rank's."""
        return source_N // (tokens // self.size) == self.rank


def attend_across(
    attend: Callable[..., tuple[Tensor, None]], part: RowPart, module: Any, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, None]:
    """Attention [1, t, H, D] of this rank's tokens to the whole row; `query` is [1, H, t, D], keys of fewer heads."""
    heads, key_heads = query.shape[1], key.shape[1]
    copies = part.size // math.gcd(key_heads, part.size)
    if heads % part.size or heads % (key_heads * copies):
        raise TrainerError(
            "MODEL_UNSUPPORTED",
            f"{heads} heads of attention over {key_heads} keys cannot be cut into {part.size}; lower context_parallel",
        )
    if copies > 1:  # each rank needs a key of its own
        key, value = (item.repeat_interleave(copies, dim=1) for item in (key, value))
    query, key, value = (_heads_apart(item, part) for item in (query, key, value))
    here = SimpleNamespace(
        num_key_value_groups=query.shape[1] // key.shape[1], is_causal=True, training=module.training
    )
    output_1ThD, _ = attend(here, query, key, value)
    return _tokens_apart(output_1ThD, part), None


def sum_over_parts(value_N: Tensor, part: RowPart) -> Tensor:
    """The sum over ranks, on each of them. Every rank goes on to the same loss, so each takes its own gradient back."""
    return _SumOverParts.apply(value_N, part)


def _heads_apart(item_1HtD: Tensor, part: RowPart) -> Tensor:
    """[1, H, t, D] of my tokens → [1, H/size, T, D] of all tokens."""
    _, heads, tokens, width = item_1HtD.shape
    apart = _Exchange.apply(item_1HtD.reshape(part.size, heads // part.size, tokens, width), part)
    return apart.transpose(0, 1).reshape(1, heads // part.size, part.size * tokens, width)


def _tokens_apart(item_1ThD: Tensor, part: RowPart) -> Tensor:
    """[1, T, H/size, D] of all tokens → [1, t, H, D] of my tokens."""
    _, tokens, heads, width = item_1ThD.shape
    apart = _Exchange.apply(item_1ThD.reshape(part.size, tokens // part.size, heads, width), part)
    return apart.transpose(0, 1).reshape(1, tokens // part.size, part.size * heads, width)


class _Exchange(torch.autograd.Function):
    """Slice i goes to rank i; slice i of the result came from there. Its own transpose."""

    @staticmethod
    def forward(ctx: Any, slices: Tensor, part: RowPart) -> Tensor:
        ctx.part = part
        return _exchanged(slices, part)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _exchanged(grad, ctx.part), None


def _exchanged(slices: Tensor, part: RowPart) -> Tensor:
    slices = slices.contiguous()
    received = torch.empty_like(slices)
    dist.all_to_all_single(received, slices, group=part.group)
    return received


class _SumOverParts(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, value_N: Tensor, part: RowPart) -> Tensor:
        total_N = value_N.contiguous().clone()
        dist.all_reduce(total_N, group=part.group)
        return total_N

    @staticmethod
    def backward(_ctx: Any, grad_N: Tensor) -> tuple[Tensor, None]:
        return grad_N, None
