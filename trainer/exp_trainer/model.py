"""A causal language model on disk and its forward: what both training and merging need."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from .attention import PACKED_ATTENTION, sequence_arguments
from .chain import Link, merge_chain, refuse_unmatched
from .errors import TrainerError
from .logprobs import token_logprobs
from .ulysses import RowPart


def load_model(directory: Path, dtype: torch.dtype, parents: Sequence[Link] = ()) -> PreTrainedModel:
    """A causal language model from local safetensors, with parents merged in fp32 before it takes its dtype."""
    if not (directory / "config.json").is_file():
        raise TrainerError("BASE_MISSING", f"{directory} has no config.json")
    model: Any = AutoModelForCausalLM.from_pretrained(  # Any: transformers types it as a mixin
        directory,
        dtype=torch.float32 if parents else dtype,
        attn_implementation=PACKED_ATTENTION,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
    )
    if parents:
        parameters = dict(model.named_parameters())
        refuse_unmatched(parents, parameters.keys())
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(merge_chain(name, parameter, parents))
        model.to(dtype)
    model.eval()  # no dropout: the engine had none either
    return model


def refuse_unsupported(model: PreTrainedModel) -> None:
    """Logits must be exactly hidden states times the head, since they are computed in chunks outside the model."""
    config = model.config
    for name in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
        if getattr(config, name, None) not in (None, 1.0):
            raise TrainerError("MODEL_UNSUPPORTED", f"{config.model_type} changes its logits ({name})")
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise TrainerError("MODEL_UNSUPPORTED", f"{config.model_type} has no plain linear output head")


def final_hidden(
    model: Any, token_ids_T: Tensor, length_S: Sequence[int], autocast: Any, part: RowPart | None = None
) -> Tensor:
    """Hidden states [T, H] after the last norm, of sequences of these lengths one behind the other.

    With `part`, those of its tokens only; the row must be as long as it can be cut.
    """
    arguments = sequence_arguments(length_S, token_ids_T.device)
    if part is not None:
        token_ids_T = part.cut(token_ids_T)
        arguments |= {"position_ids": part.cut(arguments["position_ids"]), "row_part": part}
    with autocast:
        return model.get_decoder()(input_ids=token_ids_T[None], use_cache=False, **arguments).last_hidden_state[0]


@torch.no_grad()
def prompt_logprobs(model: Any, token_ids: Sequence[int]) -> list[float]:
    """Logprobs of all tokens but the first at temperature 1, one forward."""
    token_ids_T = torch.tensor(token_ids)
    hidden_TH = final_hidden(model, token_ids_T, [len(token_ids)], nullcontext())
    logp_N, _ = token_logprobs(
        hidden_TH[:-1], model.get_output_embeddings().weight, token_ids_T[1:], torch.ones(len(token_ids) - 1)
    )
    return logp_N.tolist()
