"""Properties of one optimizer step on a real, tiny model."""

import math
import re
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
from exp_trainer.optimizer import OptimizerSpec, build_optimizer
from exp_trainer.policy import Policy
from exp_trainer.progress import Progress
from exp_trainer.step import accumulate_gradient, score, train_step

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


def test_the_sequence_ratio_has_the_gradient_of_its_formula(policy: Policy, sequences_of: Callable) -> None:
    """GSPO written out for each sequence alone, off-policy, with plain autograd."""
    rows = make_rows(5, weight=1.0)
    total = torch.zeros(())
    for row in rows:
        logits = policy.model(torch.tensor([row["token_ids"]])).logits[0] / row["temperature"]
        logp_T = torch.log_softmax(logits[:-1], -1).gather(-1, torch.tensor(row["token_ids"])[1:, None]).squeeze(-1)
        sampled_T = torch.tensor(row["mask"][1:], dtype=torch.bool)
        row["advantages"] = [row["advantages"][4]] * len(row["mask"])
        old_T = logp_T.detach() + torch.linspace(-0.3, 0.5, len(logp_T))
        row["behavior_logprobs"] = [0.0, *old_T.tolist()]
        ratio = (logp_T - old_T)[sampled_T].mean().exp()
        advantage = row["advantages"][0]
        total = total - torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.4) * advantage) / len(rows)
    expected = torch.cat([item.flatten() for item in torch.autograd.grad(total, list(policy.parameters.values()))])
    spec = parse_loss_spec({**GSPO, "aggregation": "seq_mean_token_mean"})
    actual = gradient(policy, sequences_of(rows), spec, SPLIT)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item())


def test_the_entropy_bonus_has_the_gradient_of_the_mean_entropy(policy: Policy, sequences_of: Callable) -> None:
    rows = make_rows(3, temperature=1.0, weight=1.0)
    for row in rows:
        row["advantages"] = [0.0] * len(row["mask"])
    entropies = []
    for row in rows:
        log_probability_TV = torch.log_softmax(policy.model(torch.tensor([row["token_ids"]])).logits[0, :-1], -1)
        entropy_T = -(log_probability_TV.exp() * log_probability_TV).sum(-1)
        entropies.append(entropy_T[torch.tensor(row["mask"][1:], dtype=torch.bool)])
    loss = -0.5 * torch.cat(entropies).mean()
    expected = torch.cat([item.flatten() for item in torch.autograd.grad(loss, list(policy.parameters.values()))])
    actual = gradient(policy, sequences_of(rows), parse_loss_spec({"kind": "policy_gradient", "entropy": 0.5}), SPLIT)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item())


def take_step(policy: Policy, sequences: list, spec: dict, learning_rate: float = 0.01) -> dict[str, float]:
    optimizer = build_optimizer(policy.parameters, OptimizerSpec(learning_rate))
    return train_step(
        policy,
        optimizer,
        sequences,
        parse_loss_spec(spec),
        learning_rate=learning_rate,
        max_grad_norm=1.0,
        micro_batch_tokens=SPLIT,
        checkpoint_activations=None,
        progress=Progress(),
    )


def test_every_curve_of_training_that_may_be_limited_or_shown_is_one_that_a_step_measures(
    policy: Policy, sequences_of: Callable
) -> None:
    names = Path(__file__).parents[2] / "schemas" / "health-metrics.ts"
    asked = set(re.findall(r"'train/(\w+)'", names.read_text()))
    assert "kl_reference" in asked
    assert asked - set(take_step(policy, sequences_of(make_rows(4)), PPO)) == set()


def test_later_updates_take_their_ratios_to_the_policy_before_the_first(base_dir: Path, sequences_of: Callable) -> None:
    """Two updates of one step are two single steps whose second is told what the policy was before the first."""
    spec = {**PPO, "kl": None, "clip": {"low": 0.02, "high": 0.02}}
    rows = [{**row, "update": index // 3} for index, row in enumerate(make_rows(6))]
    together, apart = make_policy(base_dir), make_policy(base_dir)
    sequences = sequences_of(rows)
    metrics = take_step(together, sequences, spec)

    before = score(apart, sequences, micro_batch_tokens=SPLIT, progress=Progress())
    sequences = [replace(item, update=0, proximal_logp_N=logp) for item, logp in zip(sequences, before, strict=True)]
    optimizer = build_optimizer(apart.parameters, OptimizerSpec(0.01))
    for part in (sequences[:3], sequences[3:]):
        optimizer.zero_grad()
        accumulate_gradient(
            apart,
            part,
            parse_loss_spec(spec),
            micro_batch_tokens=SPLIT,
            checkpoint_activations=None,
            progress=Progress(),
        )
        torch.nn.utils.clip_grad_norm_(list(apart.parameters.values()), 1.0)
        optimizer.step()
    for name, parameter in together.parameters.items():
        assert torch.equal(parameter, apart.parameters[name]), name
    assert metrics["updates"] == 2
    # The first update is at the proximal policy; the second has moved from it, which is what the clip is for.
    assert metrics["clip_share_last"] > metrics["clip_share"] > 0


def test_the_mismatch_is_measured_before_the_first_update(base_dir: Path, sequences_of: Callable) -> None:
    """Engine and trainer differ by 0.001 to 0.2 here; how far the updates move the policy is no part of it."""
    policy = make_policy(base_dir)
    rows = [{**row, "update": index % 2, "mask": [0] + [1] * 10} for index, row in enumerate(make_rows(20))]
    for index, row in enumerate(rows):
        row["token_ids"], row["advantages"] = row["token_ids"][:11], row["advantages"][:11]
        gaps = 0.001 * (10 * index + np.arange(11))  # 0.001 × 1 to 200 over the tokens of all rows
        row["behavior_logprobs"] = (np.array(_whole_logprobs(policy, row)) + gaps).tolist()
    metrics = take_step(policy, sequences_of(rows), {"kind": "policy_gradient"}, learning_rate=0.5)
    assert metrics["mismatch_abs"] == pytest.approx(0.1005, abs=1e-4)
    assert metrics["mismatch_p99"] == pytest.approx(0.198, abs=1e-4)
    assert metrics["mismatch_max"] == pytest.approx(0.2, abs=1e-4)


def test_a_step_says_what_veto_and_truncation_did(policy: Policy, sequences_of: Callable) -> None:
    rows = make_rows(4, weight=1.0)
    for row, gap in zip(rows, (0.0, math.log(8), 0.0, -12.0), strict=True):
        row["behavior_logprobs"] = (np.array(_whole_logprobs(policy, row)) - gap).tolist()
    tokens = [sum(row["mask"]) for row in rows]
    importance = {"level": "token", "truncate": 2.0, "veto": 1e-4}
    metrics = take_step(policy, sequences_of(rows), {"kind": "policy_gradient", "importance": importance})
    assert metrics["sequences_vetoed"] == 1
    assert metrics["importance_veto_share"] == pytest.approx(tokens[3] / sum(tokens))
    assert metrics["importance_truncated_share"] == pytest.approx(tokens[1] / sum(tokens))
    assert metrics["importance_mean"] == pytest.approx((tokens[0] + 2 * tokens[1] + tokens[2]) / sum(tokens), rel=1e-4)


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
        ({"update": 1}, "not numbered 0"),
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
