"""TRL's GRPOTrainer around a model and a batch that it did not sample itself: its own loss, nothing of ours.

Runs in .exp/venv-trl (bench/trainer/peer-environment.sh).
"""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

logging.disable(logging.WARNING)
warnings.filterwarnings("ignore")


@dataclass(frozen=True)
class Attempt:
    """One trajectory: a prompt, then sampled tokens and observations. Lists run over what follows the prompt."""

    prompt: list[int]
    completion: list[int]
    sampled: list[int]
    old_logprobs: list[float]
    # One a token; TRL takes such of subclasses.
    advantages: list[float]


def make_trainer(model: Any, output_dir: str, **settings: Any) -> GRPOTrainer:
    """A trainer in evaluation mode, in which TRL takes a batch as a whole step."""
    tokens = {f"t{index}": index for index in range(model.config.vocab_size)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(tokens, unk_token="t0")), pad_token="t0", eos_token="t1"
    )
    trainer = GRPOTrainer(
        model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(
            output_dir=output_dir,
            per_device_train_batch_size=2,
            num_generations=2,
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            **settings,
        ),
        train_dataset=Dataset.from_list([{"prompt": "t2"}] * 2),
        processing_class=tokenizer,
    )
    trainer.model.eval()
    return trainer


def inputs_of(sequences: Sequence[Attempt], reference_logprobs: Tensor | None = None) -> dict[str, Tensor]:
    """As `_generate_and_score_completions` hands them to the loss: prompts padded left, completions right."""

    def right(rows: Sequence[Sequence[float]], dtype: torch.dtype) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence([torch.tensor(row, dtype=dtype) for row in rows], batch_first=True)

    longest = max(len(item.prompt) for item in sequences)
    sampled = right([item.sampled for item in sequences], torch.int64)
    return {
        "prompt_ids": torch.tensor([[0] * (longest - len(item.prompt)) + item.prompt for item in sequences]),
        "prompt_mask": torch.tensor(
            [[0] * (longest - len(item.prompt)) + [1] * len(item.prompt) for item in sequences]
        ),
        "completion_ids": right([item.completion for item in sequences], torch.int64),
        "completion_mask": right([[1] * len(item.completion) for item in sequences], torch.int64),
        "tool_mask": sampled,
        "advantages": right([item.advantages for item in sequences], torch.float32),
        "old_per_token_logps": right([item.old_logprobs for item in sequences], torch.float32),
        "num_items_in_batch": sampled.sum(),
        **({} if reference_logprobs is None else {"ref_per_token_logps": reference_logprobs}),
    }


def logprobs(trainer: GRPOTrainer, inputs: dict[str, Tensor]) -> Tensor:
    """TRL's log-probability of each completion token."""
    token_ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    keep = inputs["completion_ids"].shape[1]
    with torch.no_grad():
        return trainer._get_per_token_logps_and_entropies(trainer.model, token_ids, mask, keep)[0]
