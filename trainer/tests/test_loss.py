"""Losses by numbers worked out by hand."""

import math

import pytest
import torch

from exp_trainer.errors import TrainerError
from exp_trainer.loss import (
    Clip,
    Importance,
    clipped,
    clipped_weight,
    importance_weights,
    kl_penalty,
    parse_loss_spec,
    sequence_log_ratio,
    surrogate,
    token_coefficients,
)


def log(*ratios: float) -> torch.Tensor:
    return torch.tensor(ratios).log()


def test_clip_bounds_the_gain_and_never_the_harm() -> None:
    # ratio 1.5 above 1+0.4 with A=2: −1.4·2; with A=−2 unclipped: 1.5·2. Ratio 0.5 below 1−0.2, mirrored.
    loss_N = surrogate(log(1.5, 1.5, 0.5, 0.5), torch.tensor([2.0, -2.0, 2.0, -2.0]), Clip(0.2, 0.4))
    torch.testing.assert_close(loss_N, torch.tensor([-2.8, 3.0, -1.0, 1.6]))


def test_dual_clip_bounds_the_loss_of_a_negative_advantage_only() -> None:
    # ratio 5, A=−2: 10 becomes 3·2; ratio 5, A=+2 stays at the upper clip; ratio 2, A=−2 is below the bound.
    loss_N = surrogate(log(5.0, 5.0, 2.0), torch.tensor([-2.0, 2.0, -2.0]), Clip(0.2, 0.2, dual=3.0))
    torch.testing.assert_close(loss_N, torch.tensor([6.0, -2.4, 4.0]))


def test_clipped_says_exactly_where_the_surrogate_is_flat() -> None:
    clip = Clip(0.2, 0.4, dual=3.0)
    log_ratio_N = log(1.5, 1.5, 0.5, 0.5, 1.0, 5.0).requires_grad_()
    advantage_N = torch.tensor([2.0, -2.0, 2.0, -2.0, 1.0, -1.0])
    surrogate(log_ratio_N, advantage_N, clip).sum().backward()
    assert clipped(log_ratio_N.detach(), advantage_N, clip).tolist() == (log_ratio_N.grad == 0).tolist()
    assert clipped(log_ratio_N.detach(), advantage_N, clip).tolist() == [True, False, False, True, False, True]


def test_the_sequence_ratio_is_the_geometric_mean_of_its_tokens() -> None:
    # √(4 × 1/4) = 1 and √(2 × 8) = 4: the mean of the logs, so it does not grow with length.
    sequence_N = torch.tensor([0, 0, 1, 1])
    log_ratio_N = sequence_log_ratio(log(4.0, 0.25, 2.0, 8.0), sequence_N, 2)
    torch.testing.assert_close(log_ratio_N.exp(), torch.tensor([1.0, 1.0, 4.0, 4.0]))


def test_the_gradient_of_the_sequence_ratio_reaches_all_its_tokens_alike() -> None:
    # d(s·A)/d(log π) of one token is s·A / 2 for either token of the sequence, s = √(2 × 8) = 4, both terms summed.
    logp_N = log(2.0, 8.0).requires_grad_()
    surrogate(sequence_log_ratio(logp_N, torch.tensor([0, 0]), 1), torch.tensor([3.0, 3.0]), None).sum().backward()
    torch.testing.assert_close(logp_N.grad, torch.tensor([-12.0, -12.0]))


def test_a_clipped_weight_keeps_every_tokens_gradient() -> None:
    # ratio 3 is cut to 1.4 and 0.5 raised to 0.8: the gradient by log π is −weight·A, whatever the sign of A.
    logp_N = torch.tensor([-1.0, -2.0, -1.0]).requires_grad_()
    advantage_N, clip = torch.tensor([2.0, 2.0, -2.0]), Clip(0.2, 0.4, on="weight")
    log_ratio_N = log(3.0, 0.5, 3.0)
    loss_N = clipped_weight(log_ratio_N, logp_N, advantage_N, clip)
    torch.testing.assert_close(loss_N, torch.tensor([2.8, 3.2, -2.8]))
    loss_N.sum().backward()
    torch.testing.assert_close(logp_N.grad, torch.tensor([-2.8, -1.6, 2.8]))
    assert clipped(log(3.0, 0.5, 1.0), advantage_N, clip).tolist() == [True, True, False]


def test_token_importance_is_truncated_above_only() -> None:
    weight_N = importance_weights(log(4.0, 1.5, 0.1), torch.tensor([0, 0, 1]), 2, Importance("token", truncate=2.0))
    torch.testing.assert_close(weight_N, torch.tensor([2.0, 1.5, 0.1]))


def test_sequence_importance_is_the_product_over_its_tokens() -> None:
    # 4 × 0.4 = 1.6 for the first sequence, 5 × 1 truncated to 2 for the second.
    weight_N = importance_weights(
        log(4.0, 0.4, 5.0, 1.0), torch.tensor([0, 0, 1, 1]), 2, Importance("sequence", truncate=2.0)
    )
    torch.testing.assert_close(weight_N, torch.tensor([1.6, 1.6, 2.0, 2.0]))


def test_one_impossible_token_vetoes_its_whole_sequence() -> None:
    importance = Importance("token", truncate=2.0, veto=1e-4)
    weight_N = importance_weights(log(1.0, 5e-5, 2e-4, 1.0), torch.tensor([0, 0, 1, 1]), 2, importance)
    torch.testing.assert_close(weight_N, torch.tensor([0.0, 0.0, 2e-4, 1.0]))


def test_kl_estimators() -> None:
    # log π/ref = ln 2: k1 = ln 2, k2 = (ln 2)²/2, k3 = 1/2 − 1 + ln 2.
    logp_N, reference_N = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])
    expected = {"k1": math.log(2), "k2": math.log(2) ** 2 / 2, "k3": math.log(2) - 0.5}
    for estimator, value in expected.items():
        assert kl_penalty(logp_N, reference_N, estimator).item() == pytest.approx(value, rel=1e-6)


def test_aggregations_by_hand() -> None:
    # Sequences of 2 and 6 action tokens and one of none, weights 1, 3, 5.
    tokens, weights = [2, 6, 0], [1.0, 3.0, 5.0]
    assert token_coefficients("token_mean", tokens, weights) == pytest.approx([1 / 20, 3 / 20, 0])
    assert token_coefficients("seq_mean_token_mean", tokens, weights) == pytest.approx([1 / 8, 3 / 24, 0])
    assert token_coefficients("seq_mean_token_sum", tokens, weights) == pytest.approx([1 / 4, 3 / 4, 0])


@pytest.mark.parametrize(
    "spec",
    [
        {"kind": "grpo"},
        {"kind": "cross_entropy", "aggregation": "mean"},
        {"kind": "policy_gradient", "clip": {"low": 0.2}},
        {"kind": "policy_gradient", "cliprange": 0.2},
        {"kind": "policy_gradient", "kl": {"coefficient": 1, "estimator": "k4"}},
        {"kind": "policy_gradient", "importance": {"level": "turn"}},
        {"kind": "policy_gradient", "ratio": "turn"},
        {"kind": "policy_gradient", "clip": {"low": 0.2, "high": 0.2, "on": "token"}},
        {"kind": "policy_gradient", "clip": {"low": 0.2, "high": 0.2, "on": "weight", "dual": 3.0}},
        {},
    ],
)
def test_a_misspelt_loss_is_refused(spec: dict) -> None:
    with pytest.raises(TrainerError) as caught:
        parse_loss_spec(spec)
    assert caught.value.code == "LOSS_INVALID"
