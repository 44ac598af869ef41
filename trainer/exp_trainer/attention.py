"""Attention within each of several sequences that lie one behind the other in a single row.

No mask is ever made: on a CPU every sequence is a causal call of its own on views of the row, on a GPU in half
precision one flash kernel takes the boundaries. Linear layers see one row without padding. Measured on two CPU cores
(64 sequences, lognormal lengths, forward and backward) against right-padding after sorting by length: 1.0 to 1.3 times
as fast for a 64-wide model, 1.1 to 1.8 times for a 256-wide one. So there is no second way, padded, to choose
(docs/decisions/0012).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .errors import TrainerError
from .ulysses import RowPart, attend_across

PACKED_ATTENTION = "packed_sdpa"


def sequence_arguments(length_S: Sequence[int], device: torch.device) -> dict[str, Any]:
    """What a decoder is called with for a row of sequences of these lengths; names are transformers' own."""
    length_on_device_S = torch.tensor(length_S, dtype=torch.int32, device=device)
    boundary_S1 = nn.functional.pad(length_on_device_S.cumsum(0, dtype=torch.int32), (1, 0))
    position_T = torch.cat([torch.arange(length, device=device) for length in length_S])
    return {
        "position_ids": position_T[None],
        "cu_seq_lens_q": boundary_S1,
        "cu_seq_lens_k": boundary_S1,
        "max_length_q": max(length_S),
        "max_length_k": max(length_S),
        "length_S": tuple(length_S),
        # transformers makes no mask where a 4-D one is given; this one is never looked at.
        "attention_mask": torch.empty(1, 1, 0, 0, device=device),
    }


def _packed_attention(
    module: nn.Module,
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    attention_mask: Tensor | None,
    *,
    length_S: tuple[int, ...] | None = None,
    sliding_window: int | None = None,
    row_part: RowPart | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sequence, [B, T, H, D]; without `length_S` it is transformers' own SDPA.

    With `row_part`, queries, keys and values are those of a part of the row's tokens.
    """
    if row_part is not None:
        given = {"attention_mask": None, "length_S": length_S, "sliding_window": sliding_window, **kwargs}
        whole_row = partial(_packed_attention, **given)
        return attend_across(whole_row, row_part, module, query_BHTD, key_BHTD, value_BHTD)
    if length_S is None:
        return sdpa_attention_forward(module, query_BHTD, key_BHTD, value_BHTD, attention_mask, **kwargs)
    if sliding_window is not None and max(length_S) > sliding_window:
        raise TrainerError(
            "MODEL_UNSUPPORTED", f"a sequence of {max(length_S)} tokens is longer than the window of {sliding_window}"
        )
    if len(length_S) == 1:
        return sdpa_attention_forward(module, query_BHTD, key_BHTD, value_BHTD, None, **kwargs)
    if value_BHTD.is_cuda and value_BHTD.dtype in (torch.bfloat16, torch.float16):
        return _flash(query_BHTD, key_BHTD, value_BHTD, **kwargs), None
    # One split each: a slice a sequence would give backward a zeroed gradient of the whole row a sequence.
    parts = zip(*(item.split(length_S, dim=2) for item in (query_BHTD, key_BHTD, value_BHTD)), strict=True)
    outputs = [sdpa_attention_forward(module, query, key, value, None, **kwargs)[0] for query, key, value in parts]
    return torch.cat(outputs, dim=1), None


def _flash(
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    *,
    cu_seq_lens_q: Tensor,
    cu_seq_lens_k: Tensor,
    max_length_q: int,
    max_length_k: int,
    scaling: float | None = None,
    **_kwargs: Any,
) -> Tensor:
    # Under autocast norms leave queries and keys in fp32; values come straight from a matrix product.
    query_THD, key_THD, value_THD = (
        item[0].transpose(0, 1).to(value_BHTD.dtype).contiguous() for item in (query_BHTD, key_BHTD, value_BHTD)
    )
    output_THD: Any = varlen_attn(  # Any: with auxiliary outputs it would be a pair
        query_THD,
        key_THD,
        value_THD,
        cu_seq_lens_q,
        cu_seq_lens_k,
        max_length_q,
        max_length_k,
        scale=scaling,
        window_size=(-1, 0),
        enable_gqa=query_THD.shape[1] != key_THD.shape[1],
    )
    return output_THD[None]


@torch.no_grad()
def refuse_contamination(decoder: Any) -> None:
    """Raise MODEL_UNSUPPORTED when a sequence's hidden states depend on what lies before it in its row.

    Asked of the model itself: state-space layers and convolutions know nothing of boundaries and would, without any
    error, train on the end of another trajectory.
    """
    device = next(decoder.parameters()).device
    behind_T, alone_T = torch.tensor([1, 2, 3, 4, 5], device=device), torch.tensor([4, 5], device=device)
    found_TH, expected_TH = (
        decoder(input_ids=ids_T[None], use_cache=False, **sequence_arguments(lengths, device)).last_hidden_state[0]
        for ids_T, lengths in ((behind_T, [3, 2]), (alone_T, [2]))
    )
    difference = (found_TH[3:] - expected_TH).float().norm() / expected_TH.float().norm()
    rounding = 2e-5 if expected_TH.dtype == torch.float32 else 0.05
    if not difference < rounding:
        raise TrainerError("MODEL_UNSUPPORTED", f"{decoder.config.model_type} mixes sequences that share a row")


AttentionInterface.register(PACKED_ATTENTION, _packed_attention)
AttentionMaskInterface.register(PACKED_ATTENTION, sdpa_mask)
