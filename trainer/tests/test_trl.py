"""Losses and gradients against TRL's on the same weights and batch; bench/trainer/trl_losses.py wrote the file."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import gradient
from tiny_policy import tiny_model

from exp_trainer.attention import PACKED_ATTENTION
from exp_trainer.loss import parse_loss_spec
from exp_trainer.policy import Policy
from exp_trainer.progress import Progress
from exp_trainer.step import accumulate_gradient

TRL = json.loads((Path(__file__).parent / "data" / "trl_losses.json").read_text())


def golden_model(weights: dict[str, list[float]]) -> torch.nn.Module:
    model = tiny_model("qwen3", TRL["vocabulary"], **TRL["shape"], attn_implementation=PACKED_ATTENTION)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.tensor(weights[name]).view_as(parameter))
    return model


@pytest.fixture(scope="module")
def golden_policy() -> Policy:
    policy = Policy(golden_model(TRL["weights"]), None, dtype=torch.float32, seed=0)  # type: ignore[arg-type]
    policy.refer_to(golden_model(TRL["reference_weights"]))  # type: ignore[arg-type]
    return policy


def rows_of(temperature: float) -> list[dict]:
    """TRL's batch as ours: lists run over the whole sequence, and its tool mask is our mask."""
    rows = []
    for index, attempt in enumerate(TRL["attempts"]):
        before = [0] * len(attempt["prompt"])
        rows.append(
            {
                "sequence_id": f"s{index}",
                "token_ids": attempt["prompt"] + attempt["completion"],
                "mask": before + attempt["sampled"],
                "behavior_logprobs": before + attempt["old_logprobs"],
                "advantages": before + attempt["advantages"],
                "temperature": temperature,
                "weight": 1.0,
            }
        )
    return rows


@pytest.mark.parametrize("micro_batch_tokens", [10_000, 40], ids=["whole", "split"])
@pytest.mark.parametrize("name", TRL["cases"])
def test_loss_and_gradient_are_those_of_trl(
    golden_policy: Policy, sequences_of: Callable, name: str, micro_batch_tokens: int
) -> None:
    case = TRL["cases"][name]
    sequences, spec = sequences_of(rows_of(case["temperature"])), parse_loss_spec(case["loss_spec"])
    actual = gradient(golden_policy, sequences, spec, micro_batch_tokens)
    expected = torch.cat([torch.tensor(case["gradients"][parameter]) for parameter in golden_policy.parameters])
    assert expected.norm() > 1e-2
    assert (actual - expected).norm() < 1e-5 * expected.norm()
    tally = accumulate_gradient(
        golden_policy,
        sequences,
        spec,
        micro_batch_tokens=micro_batch_tokens,
        checkpoint_activations=None,
        progress=Progress(),
    )
    assert tally.sums["loss"] == pytest.approx(case["loss"], rel=1e-5)


def test_in_the_golden_batch_every_clip_acts(golden_policy: Policy, sequences_of: Callable) -> None:
    for name, case in TRL["cases"].items():
        tally = accumulate_gradient(
            golden_policy,
            sequences_of(rows_of(case["temperature"])),
            parse_loss_spec(case["loss_spec"]),
            micro_batch_tokens=10_000,
            checkpoint_activations=None,
            progress=Progress(),
        )
        assert 0.05 < tally.mean("clip_share") < 0.95, name
