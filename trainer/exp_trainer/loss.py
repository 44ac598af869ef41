"""Losses over the sampled tokens of a micro-batch, as pure functions.

N = action tokens of the micro-batch, all sequences one after another; S = its sequences. Prompts,
observations and padding are no part of N, so nothing in them can reach a gradient. Each function gives
one value a token; `token_coefficients` turns their weighted sum into the aggregation asked for, with
normalisers of the whole optimizer step, so that splitting a batch leaves the gradient unchanged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from .errors import TrainerError

# exp(20) is 4.9e8: far outside any ratio that trains, and finite in fp32.
MAX_LOG_RATIO = 20.0

AGGREGATIONS = ("token_mean", "seq_mean_token_mean", "seq_mean_token_sum")


@dataclass(frozen=True)
class Clip:
    """Bounds 1 − low and 1 + high of the ratio; `dual` bounds the loss of a negative advantage.

    `on` says what is clipped: the surrogate, which then is flat, or the ratio as a detached weight of log π.
    """

    low: float
    high: float
    dual: float | None = None
    on: str = "surrogate"


@dataclass(frozen=True)
class Kl:
    """Penalty towards the reference: where the stage started, or the weights it was opened with for that."""

    coefficient: float
    estimator: str = "k3"


@dataclass(frozen=True)
class Importance:
    """Correction from the engine that sampled to the policy as the trainer computes it."""

    level: str = "token"
    truncate: float | None = None
    veto: float | None = None


@dataclass(frozen=True)
class LossSpec:
    """All the trainer knows of an algorithm."""

    kind: str
    aggregation: str = "token_mean"
    ratio: str = "token"
    clip: Clip | None = None
    kl: Kl | None = None
    importance: Importance | None = None
    entropy: float = 0.0


T = TypeVar("T")


def parse_loss_spec(value: Mapping[str, Any]) -> LossSpec:
    """Read a loss specification from the wire; unknown keys and values are LOSS_INVALID."""
    parts: dict[str, Any] = {key: item for key, item in value.items() if item is not None}
    for name, part in (("clip", Clip), ("kl", Kl), ("importance", Importance)):
        if name in parts:
            parts[name] = _build(part, parts[name], f"loss.{name}")
    spec = _build(LossSpec, parts, "loss")
    _require(spec.kind in ("cross_entropy", "policy_gradient"), f"loss.kind {spec.kind!r}")
    _require(spec.aggregation in AGGREGATIONS, f"loss.aggregation {spec.aggregation!r}")
    _require(spec.ratio in ("token", "sequence"), f"loss.ratio {spec.ratio!r}")
    _require(spec.clip is None or spec.clip.on in ("surrogate", "weight"), "loss.clip.on")
    _require(
        spec.clip is None or spec.clip.on == "surrogate" or spec.clip.dual is None, "loss.clip.dual needs a surrogate"
    )
    _require(spec.kl is None or spec.kl.estimator in ("k1", "k2", "k3"), "loss.kl.estimator")
    _require(spec.importance is None or spec.importance.level in ("token", "sequence"), "loss.importance.level")
    return spec


def token_coefficients(aggregation: str, action_tokens_S: Sequence[int], weight_S: Sequence[float]) -> list[float]:
    """What one token's loss counts in the whole step, for each sequence of the step.

    Σ over tokens of coefficient·loss is: for `token_mean` the weighted mean over all action tokens
    (DAPO, arXiv:2503.14476, eq. 12); for `seq_mean_token_mean` the mean over sequences of their own token
    mean (GRPO, arXiv:2402.03300, eq. 3); for `seq_mean_token_sum` the mean over sequences of their sum.
    A sequence without action tokens counts in no normaliser.
    """
    weight_S = [weight if tokens > 0 else 0.0 for tokens, weight in zip(action_tokens_S, weight_S, strict=True)]
    if aggregation == "token_mean":
        total = sum(tokens * weight for tokens, weight in zip(action_tokens_S, weight_S, strict=True))
    else:
        total = sum(weight_S)
    if total <= 0:
        raise TrainerError("BATCH_INVALID", "no action token with a positive weight")
    if aggregation == "seq_mean_token_mean":
        return [weight / (max(tokens, 1) * total) for tokens, weight in zip(action_tokens_S, weight_S, strict=True)]
    return [weight / total for weight in weight_S]


def cross_entropy(logp_N: Tensor) -> Tensor:
    """Next-token loss in nats, one a token."""
    return -logp_N


def policy_gradient(log_ratio_N: Tensor, logp_N: Tensor, advantage_N: Tensor, clip: Clip | None) -> Tensor:
    """Loss of each token as `clip` says, from log π(token) − log π_old(token) in nats, which carries the gradient.

    Args:
        advantage_N: one a token, computed outside (GRPO: equal over a trajectory; IGPO: by turn).
    """
    if clip is not None and clip.on == "weight":
        return clipped_weight(log_ratio_N, logp_N, advantage_N, clip)
    return surrogate(log_ratio_N, advantage_N, clip)


def surrogate(log_ratio_N: Tensor, advantage_N: Tensor, clip: Clip | None) -> Tensor:
    """Negative PPO surrogate, one a token.

    Without `clip`: −ρA, whose gradient on-policy is that of REINFORCE. With it: −min(ρA, clip(ρ)A)
    (arXiv:1707.06347, eq. 7) with separate bounds (DAPO, arXiv:2503.14476, section 3.1). `dual` = c > 1
    bounds the loss at −cA where A < 0 (arXiv:1912.09729, eq. 5).
    """
    ratio_N = _ratio(log_ratio_N)
    loss_N = -ratio_N * advantage_N
    if clip is None:
        return loss_N
    loss_N = torch.maximum(loss_N, -ratio_N.clamp(1 - clip.low, 1 + clip.high) * advantage_N)
    if clip.dual is None:
        return loss_N
    return torch.where(advantage_N < 0, torch.minimum(loss_N, -clip.dual * advantage_N), loss_N)


def clipped_weight(log_ratio_N: Tensor, logp_N: Tensor, advantage_N: Tensor, clip: Clip) -> Tensor:
    """−sg(clip(ρ))·A·log π, one a token: every token keeps a gradient (CISPO, arXiv:2506.13585, eq. 4 and 5)."""
    weight_N = _ratio(log_ratio_N.detach()).clamp(1 - clip.low, 1 + clip.high)
    return -weight_N * advantage_N * logp_N


def sequence_log_ratio(log_ratio_N: Tensor, sequence_N: Tensor, num_sequences: int) -> Tensor:
    """The mean log-ratio of a token's sequence, at each of its tokens: GSPO's length-normalised ratio.

    arXiv:2507.18071, eq. 7. Its gradient reaches every action token of the sequence, so all of them must be here.
    """
    tokens_S = sum_by_sequence(torch.ones_like(log_ratio_N), sequence_N, num_sequences).clamp(min=1)
    return (sum_by_sequence(log_ratio_N, sequence_N, num_sequences) / tokens_S)[sequence_N]


def clipped(log_ratio_N: Tensor, advantage_N: Tensor, clip: Clip | None) -> Tensor:
    """True where the clip acts: the surrogate is flat and the token gives no gradient, or its weight was cut."""
    if clip is None:
        return torch.zeros_like(advantage_N, dtype=torch.bool)
    ratio_N = log_ratio_N.exp()
    above_N, below_N = ratio_N > 1 + clip.high, ratio_N < 1 - clip.low
    if clip.on == "weight":
        return above_N | below_N
    flat_N = (above_N & (advantage_N > 0)) | (below_N & (advantage_N < 0))
    if clip.dual is not None:
        flat_N |= (ratio_N > clip.dual) & (advantage_N < 0)
    return flat_N


def importance_weights(log_ratio_N: Tensor, sequence_N: Tensor, num_sequences: int, importance: Importance) -> Tensor:
    """Truncated importance weight of each token, no gradient.

    ρ = π_trainer/π_engine of the token, or the product over its sequence's action tokens; the weight is
    min(ρ, truncate). A sequence holding any single token with ρ < veto gets weight 0 throughout, while the
    step's normalisers stay as they are.

    Args:
        log_ratio_N: log π_trainer − log π_engine at the time of sampling, in nats.
        sequence_N: which of the micro-batch's sequences a token belongs to.
    """
    log_ratio_N = log_ratio_N.detach()
    log_weight_N = log_ratio_N
    if importance.level == "sequence":
        log_weight_N = sum_by_sequence(log_ratio_N, sequence_N, num_sequences)[sequence_N]
    weight_N = log_weight_N.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    if importance.truncate is not None:
        weight_N = weight_N.clamp(max=importance.truncate)
    if importance.veto is not None:
        vetoes_N = (log_ratio_N.exp() < importance.veto).float()
        vetoed_N = sum_by_sequence(vetoes_N, sequence_N, num_sequences)[sequence_N] > 0
        weight_N = torch.where(vetoed_N, 0.0, weight_N)
    return weight_N


def kl_penalty(logp_N: Tensor, reference_logp_N: Tensor, estimator: str) -> Tensor:
    """Estimate of KL(π‖reference) at each sampled token, in nats; k1, k2, k3 of Schulman, "Approximating KL"."""
    log_ratio_N = (reference_logp_N - logp_N).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if estimator == "k1":
        return -log_ratio_N
    if estimator == "k2":
        return log_ratio_N.square() / 2
    return log_ratio_N.exp() - log_ratio_N - 1


def sum_by_sequence(value_N: Tensor, sequence_N: Tensor, num_sequences: int) -> Tensor:
    """Sums over the action tokens of each sequence, [S]."""
    return value_N.new_zeros(num_sequences).index_add(0, sequence_N, value_N)


def _ratio(log_ratio_N: Tensor) -> Tensor:
    return log_ratio_N.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def _build(part: type[T], value: Mapping[str, Any], at: str) -> T:
    known = {field.name for field in fields(part)}  # type: ignore[arg-type]
    unknown = set(value) - known
    _require(not unknown, f"{at} has unknown keys {sorted(unknown)}")
    try:
        return part(**value)
    except TypeError as error:
        raise TrainerError("LOSS_INVALID", f"{at}: {error}") from error


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise TrainerError("LOSS_INVALID", message)
