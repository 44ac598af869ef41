"""Properties of one optimizer step on a real, tiny model."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import gradient, make_policy, make_rows, write_batch

from exp_trainer.data import plan_micro_batches, read_batch
from exp_trainer.errors import TrainerError
from exp_trainer.loss import AGGREGATIONS, parse_loss_spec
from exp_trainer.policy import Policy
from exp_trainer.progress import Progress
from exp_trainer.step import score

WHOLE, SPLIT = 10_000, 40
PPO = {
    "kind": "policy_gradient",
    "clip": {"low": 0.2, "high": 0.4, "dual": 3.0},
    "kl": {"coefficient": 0.1, "estimator": "k3"},
    "importance": {"level": "sequence", "truncate": 2.0, "veto": 1e-4},
    "entropy": 0.01,
}
GSPO = {"kind": "policy_gradient", "ratio": "sequence", "clip": {"low": 0.2, "high": 0.4}}
CISPO = {"kind": "policy_gradient", "clip": {"low": 0.2, "high": 0.4, "on": "weight"}}
LOSSES = {"ce": {"kind": "cross_entropy"}, "pg": {"kind": "policy_gradient"}, "ppo": PPO, "gspo": GSPO, "cispo": CISPO}


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_splitting_a_batch_keeps_the_gradient(
    policy: Policy, sequences_of: Callable, aggregation: str, loss: dict
) -> None:
    sequences = sequences_of(make_rows(7))
    spec = parse_loss_spec({**loss, "aggregation": aggregation})
    whole, split = gradient(policy, sequences, spec, WHOLE), gradient(policy, sequences, spec, SPLIT)
    assert whole.norm() > 1e-3
    torch.testing.assert_close(split, whole, rtol=1e-3, atol=1e-5 * whole.abs().max().item())


def test_activation_checkpointing_keeps_the_gradient(policy: Policy, sequences_of: Callable) -> None:
    sequences, spec = sequences_of(make_rows(4)), parse_loss_spec(PPO)
    kept = gradient(policy, sequences, spec, WHOLE, checkpoint_activations=False)
    computed_again = gradient(policy, sequences, spec, WHOLE, checkpoint_activations=True)
    torch.testing.assert_close(computed_again, kept, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("loss", [PPO, GSPO, CISPO], ids=["ppo", "gspo", "cispo"])
def test_observation_tokens_get_no_gradient_even_when_nan(policy: Policy, sequences_of: Callable, loss: dict) -> None:
    rows = make_rows(3)
    spec = parse_loss_spec(loss)
    clean = gradient(policy, sequences_of(rows), spec, WHOLE)
    for row in rows:
        for name in ("behavior_logprobs", "advantages"):
            row[name] = [value if sampled else math.nan for value, sampled in zip(row[name], row["mask"], strict=True)]
    assert torch.equal(gradient(policy, sequences_of(rows), spec, WHOLE), clean)


def test_only_the_mask_decides_which_tokens_train(policy: Policy, sequences_of: Callable) -> None:
    """An observation in the middle changes the loss as context, never as a target."""
    row = make_rows(1)[0]
    logits = policy.model(torch.tensor([row["token_ids"]])).logits[0] / row["temperature"]
    logp_T = torch.log_softmax(logits[:-1], -1).gather(-1, torch.tensor(row["token_ids"])[1:, None]).squeeze(-1)
    sampled_T = torch.tensor(row["mask"][1:], dtype=torch.bool)
    expected = torch.autograd.grad(-logp_T[sampled_T].mean(), list(policy.parameters.values()))
    actual = gradient(policy, sequences_of([row]), parse_loss_spec({"kind": "cross_entropy"}), WHOLE)
    torch.testing.assert_close(actual, torch.cat([item.flatten() for item in expected]), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        {"kind": "policy_gradient"},
        {"kind": "policy_gradient", "clip": {"low": 0.2, "high": 0.2, "dual": 3.0}},
        {"kind": "policy_gradient", "importance": {"level": "token", "truncate": 2.0}},
        CISPO,
    ],
)
def test_on_policy_it_is_reinforce(policy: Policy, sequences_of: Callable, loss: dict) -> None:
    """With behaviour = policy the gradient is that of −A·log π, averaged over action tokens."""
    rows = make_rows(4, temperature=0.7, weight=1.0)
    for row in rows:
        row["behavior_logprobs"] = _whole_logprobs(policy, row)
    actual = gradient(policy, sequences_of(rows), parse_loss_spec(loss), WHOLE)
    tokens = sum(sum(row["mask"]) for row in rows)
    total = torch.zeros(())
    for row in rows:
        logits = policy.model(torch.tensor([row["token_ids"]])).logits[0] / row["temperature"]
        logp_T = torch.log_softmax(logits[:-1], -1).gather(-1, torch.tensor(row["token_ids"])[1:, None]).squeeze(-1)
        sampled_T = torch.tensor(row["mask"][1:], dtype=torch.bool)
        total = total - (logp_T * torch.tensor(row["advantages"], dtype=torch.float32)[1:])[sampled_T].sum() / tokens
    expected = torch.cat([item.flatten() for item in torch.autograd.grad(total, list(policy.parameters.values()))])
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item())


def _whole_logprobs(policy: Policy, row: dict) -> list[float]:
    with torch.no_grad():
        logits = policy.model(torch.tensor([row["token_ids"]])).logits[0] / row["temperature"]
    logp_T = torch.log_softmax(logits[:-1], -1).gather(-1, torch.tensor(row["token_ids"])[1:, None]).squeeze(-1)
    return [0.0, *logp_T.tolist()]


def test_given_proximal_logprobs_importance_is_taken_to_them(policy: Policy, sequences_of: Callable) -> None:
    """In a later update of one rollout batch the ratio runs from the proximal policy, the weight from the engine."""
    row = make_rows(1, weight=1.0)[0]
    current = np.array(_whole_logprobs(policy, row))
    row |= {"behavior_logprobs": (current - math.log(5.0)).tolist(), "advantages": [1.0] * len(current)}
    [later] = sequences_of([row])
    later = replace(later, proximal_logp_N=(current - math.log(1.25))[later.action_position_N].astype(np.float32))
    spec = parse_loss_spec({"kind": "policy_gradient", "importance": {"level": "token", "truncate": 2.0}})
    plain = parse_loss_spec({"kind": "policy_gradient"})
    actual = gradient(policy, [later], spec, WHOLE)
    # ratio 1.25, weight min(4, 2) = 2, against ratio 1 and no weight.
    on_policy = gradient(policy, sequences_of([{**row, "behavior_logprobs": current.tolist()}]), plain, WHOLE)
    torch.testing.assert_close(actual, 2.5 * on_policy, rtol=1e-3, atol=1e-5)


def test_at_the_reference_the_kl_has_no_gradient_under_k3(base_dir: Path, sequences_of: Callable) -> None:
    policy = make_policy(base_dir, moved=False)
    rows = make_rows(2, advantages=None)
    for row in rows:
        row["advantages"] = [0.0] * len(row["mask"])
    spec = parse_loss_spec({"kind": "policy_gradient", "kl": {"coefficient": 1.0, "estimator": "k3"}})
    assert gradient(policy, sequences_of(rows), spec, WHOLE).norm() < 1e-6


def test_score_gives_each_token_its_logprob_at_the_temperature(policy: Policy, sequences_of: Callable) -> None:
    rows = make_rows(5, temperature=0.7)
    for row in rows:
        row["mask"] = [0] + [1] * (len(row["mask"]) - 1)
    scores = score(policy, sequences_of(rows), micro_batch_tokens=SPLIT, progress=Progress())
    for row, found in zip(rows, scores, strict=True):
        np.testing.assert_allclose(found, _whole_logprobs(policy, row)[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("adapter", [True, False], ids=["lora", "full"])
def test_bf16_compute_gives_nearly_the_fp32_gradient_in_fp32(
    base_dir: Path, sequences_of: Callable, adapter: bool
) -> None:
    sequences, spec = sequences_of(make_rows(4)), parse_loss_spec({"kind": "cross_entropy"})
    exact = gradient(make_policy(base_dir, adapter=adapter), sequences, spec, WHOLE)
    policy = make_policy(base_dir, adapter=adapter, dtype="bfloat16")
    assert {parameter.dtype for parameter in policy.parameters.values()} == {torch.float32}
    rounded = gradient(policy, sequences, spec, WHOLE)
    assert torch.nn.functional.cosine_similarity(exact, rounded, dim=0) > 0.99


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": [1] * 20}, "first token"),
        ({"mask": [0, 2] * 10}, "neither 0 nor 1"),
        ({"mask": [0] * 3}, "3 mask values"),
        ({"temperature": 0.0}, "temperature"),
        ({"weight": -1.0}, "weight"),
        ({"advantages": [1.0]}, "advantages has 1"),
        ({"behavior_logprobs": [math.nan] * 20}, "not finite"),
        ({"advantages": []}, "empty"),
    ],
)
def test_a_malformed_batch_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    row = {
        "sequence_id": "s",
        "token_ids": list(range(20)),
        "mask": [0] * 10 + [1] * 10,
        "behavior_logprobs": [-1.0] * 20,
        "advantages": [1.0] * 20,
        "temperature": 1.0,
        "weight": 1.0,
    } | change
    with pytest.raises(TrainerError, match=message):
        read_batch(write_batch(tmp_path / "b.parquet", [row]), policy_gradient=True)


def test_micro_batches_hold_every_sequence_once_within_the_limit() -> None:
    lengths = [5, 90, 30, 31, 7, 200, 30]
    groups = plan_micro_batches(lengths, 100)
    assert sorted(index for group in groups for index in group) == list(range(7))
    assert all(len(group) == 1 or sum(lengths[i] for i in group) <= 100 for group in groups)
