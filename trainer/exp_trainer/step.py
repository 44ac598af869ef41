"""One step from a whole batch: its updates in their order; and scoring without a step."""

import math
import resource
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .data import (
    NO_FLOATS,
    Floats,
    MicroBatch,
    TrainingSequence,
    build_micro_batch,
    computed_length,
    plan_micro_batches,
)
from .errors import TrainerError, classify
from .loss import (
    LossSpec,
    clipped,
    cross_entropy,
    importance_weights,
    kl_penalty,
    policy_gradient,
    sequence_log_ratio,
    sum_by_sequence,
    token_coefficients,
)
from .policy import Policy
from .progress import Progress
from .sharding import whole_tensor

# Tokens up to which a micro-batch keeps its activations when nobody says otherwise: 3 MB a token for 135M
# parameters in fp32, while computing them again costs a third more time.
KEPT_TOKENS = 2048

# What a step counts; everything else it sums over action tokens is told as a mean.
COUNTS = frozenset({"loss", "tokens", "action_tokens", "sequences", "sequences_vetoed", "micro_batches"})


@dataclass
class Tally:
    """Sums of what one update did, and the mismatch of each of its action tokens, for exact quantiles."""

    sums: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    mismatch: list[Tensor] = field(default_factory=list)

    def add(self, name: str, value_N: Tensor) -> None:
        """Sum a value over action tokens."""
        self.sums[name] += value_N.detach().double().sum().item()

    @classmethod
    def of_all(cls, parts: Iterable[tuple[Mapping[str, float], Sequence[Tensor]]]) -> "Tally":
        """One tally of several: of ranks, or of the updates of a step."""
        whole = cls()
        for sums, mismatch in parts:
            for name, value in sums.items():
                whole.sums[name] += value
            whole.mismatch += mismatch
        return whole

    def mean(self, name: str) -> float:
        """Over action tokens."""
        return self.sums[name] / self.sums["action_tokens"]


def train_step(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    sequences: Sequence[TrainingSequence],
    spec: LossSpec,
    *,
    learning_rate: float,
    max_grad_norm: float,
    micro_batch_tokens: int,
    checkpoint_activations: bool | None,
    progress: Progress,
) -> dict[str, float]:
    """Take the updates of a step in their order, and say what happened.

    With more than one, the logprobs that ratios are taken to are computed for all of them before the first.
    An update changes the weights in its last line: what fails before the first has changed them leaves them as they
    were; what fails later raises HALF_STEP.
    """
    started = time.perf_counter()
    _check_vocabulary(sequences, policy.head_VH.shape[0])
    updates = _updates(sequences)
    for update in updates:
        _coefficients(update, spec)  # raises for a batch that could not be finished
    if len(updates) > 1 and spec.kind == "policy_gradient":
        updates = _updates(_with_proximal(policy, sequences, micro_batch_tokens=micro_batch_tokens, progress=progress))
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    tallies: list[Tally] = []
    grad_norms: list[float] = []
    for number, update in enumerate(updates):
        try:
            optimizer.zero_grad(set_to_none=True)
            tallies.append(
                accumulate_gradient(
                    policy,
                    update,
                    spec,
                    micro_batch_tokens=micro_batch_tokens,
                    checkpoint_activations=checkpoint_activations,
                    progress=progress,
                )
            )
            grad_norms.append(_clip_gradient(list(policy.parameters.values()), max_grad_norm))
            optimizer.step()
        except Exception as error:
            if number == 0:
                raise
            raise _half_step(error, number, len(updates)) from error
    seconds = time.perf_counter() - started
    return {
        **_metrics(tallies, grad_norms),
        "learning_rate": learning_rate,
        "seconds": seconds,
        "tokens_per_second": sum(tally.sums["tokens"] for tally in tallies) / seconds,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0,
    }


def accumulate_gradient(
    policy: Policy,
    sequences: Sequence[TrainingSequence],
    spec: LossSpec,
    *,
    micro_batch_tokens: int,
    checkpoint_activations: bool | None,
    progress: Progress,
) -> Tally:
    """Add the gradient of one update's loss to the parameters."""
    coefficients = _coefficients(sequences, spec)
    # A sequence that counts nothing in the loss need not be computed.
    active = [index for index, coefficient in enumerate(coefficients) if coefficient > 0]
    tally = Tally()
    lengths = [computed_length(sequences[index]) for index in active]
    groups = plan_micro_batches(lengths, policy.mesh.row_tokens(lengths, micro_batch_tokens))
    for group, counts in policy.mesh.share(groups, lambda group: sum(lengths[index] for index in group)):
        picked = [active[index] for index in group]
        micro_batch = build_micro_batch([sequences[i] for i in picked], [coefficients[i] * counts for i in picked])
        size = len(micro_batch.token_ids_T)
        again = size > KEPT_TOKENS if checkpoint_activations is None else checkpoint_activations
        with policy.training(checkpointed=again):
            _micro_batch_loss(policy, micro_batch, spec, tally if counts else Tally()).backward()
        progress.tick()
    return Tally.of_all(policy.mesh.of_groups((dict(tally.sums), tally.mismatch)))


@torch.no_grad()
def score(
    policy: Policy,
    sequences: Sequence[TrainingSequence],
    *,
    micro_batch_tokens: int,
    progress: Progress,
) -> list[Floats]:
    """Logprobs in nats of each sequence's action tokens, at its temperature."""
    _check_vocabulary(sequences, policy.head_VH.shape[0])
    scored = [index for index, item in enumerate(sequences) if len(item.action_position_N)]
    lengths = [computed_length(sequences[index]) for index in scored]
    scores: dict[int, Floats] = {}
    groups = plan_micro_batches(lengths, policy.mesh.row_tokens(lengths, micro_batch_tokens))
    for group, _counts in policy.mesh.share(groups, lambda group: sum(lengths[index] for index in group)):
        picked = [scored[index] for index in group]
        micro_batch = build_micro_batch([sequences[i] for i in picked], [0.0] * len(picked))
        logp_N, _ = policy.action_logprobs(micro_batch)
        for place, index in enumerate(picked):
            scores[index] = logp_N[micro_batch.sequence_N == place].numpy()
        progress.tick()
    scores = policy.mesh.union(scores)
    # A sequence of one token has nothing to score.
    return [scores.get(index, NO_FLOATS) for index in range(len(sequences))]


def _updates(sequences: Sequence[TrainingSequence]) -> list[list[TrainingSequence]]:
    count = 1 + max((item.update for item in sequences), default=0)
    return [[item for item in sequences if item.update == number] for number in range(count)]


def _coefficients(sequences: Sequence[TrainingSequence], spec: LossSpec) -> list[float]:
    tokens_S = [len(item.action_position_N) for item in sequences]
    return token_coefficients(spec.aggregation, tokens_S, [item.weight for item in sequences])


def _with_proximal(
    policy: Policy, sequences: Sequence[TrainingSequence], *, micro_batch_tokens: int, progress: Progress
) -> list[TrainingSequence]:
    scores = score(policy, sequences, micro_batch_tokens=micro_batch_tokens, progress=progress)
    return [replace(item, proximal_logp_N=logp_N) for item, logp_N in zip(sequences, scores, strict=True)]


def _half_step(error: Exception, taken: int, updates: int) -> TrainerError:
    return TrainerError(
        "HALF_STEP",
        f"update {taken + 1} of {updates} failed after {taken} had changed the weights; "
        f"the stage must be opened again from its last checkpoint: {classify(error).message}",
    )


def _micro_batch_loss(policy: Policy, micro_batch: MicroBatch, spec: LossSpec, tally: Tally) -> Tensor:
    """This micro-batch's share of the update's loss; adds its metrics to the tally."""
    logp_N, entropy_N = policy.action_logprobs(micro_batch)
    if spec.kind == "cross_entropy":
        loss_N = cross_entropy(logp_N)
    else:
        loss_N = _policy_gradient(logp_N, micro_batch, spec, tally)
    if spec.kl is not None:
        with torch.no_grad(), policy.reference():
            reference_logp_N, _ = policy.action_logprobs(micro_batch)
        penalty_N = kl_penalty(logp_N, reference_logp_N, spec.kl.estimator)
        loss_N = loss_N + spec.kl.coefficient * penalty_N
        tally.add("kl_reference", penalty_N)
    if spec.entropy:
        loss_N = loss_N - spec.entropy * entropy_N
    loss = (loss_N * micro_batch.coefficient_N).sum()
    tally.add("entropy", entropy_N)
    tally.sums["loss"] += loss.item()
    tally.sums["tokens"] += len(micro_batch.token_ids_T)
    tally.sums["action_tokens"] += len(logp_N)
    tally.sums["sequences"] += micro_batch.num_sequences
    tally.sums["micro_batches"] += 1
    return loss


def _policy_gradient(logp_N: Tensor, micro_batch: MicroBatch, spec: LossSpec, tally: Tally) -> Tensor:
    """Loss of each action token.

    Without importance correction the ratio is taken to the engine's logprobs. With it, the ratio is taken to
    the trainer's own logprobs before the step's first update (`proximal_logp_N`, or the present ones when this is
    the only update), and the engine's share becomes a truncated weight (arXiv:2505.24034 calls the former pi_prox).
    """
    behavior_logp_N, advantage_N = micro_batch.behavior_logp_N, micro_batch.advantage_N
    given = len(micro_batch.proximal_logp_N) == len(logp_N)
    # What the engine's logprobs would be if it computed as the trainer does.
    own_logp_N = micro_batch.proximal_logp_N if given else logp_N.detach()
    tally.mismatch.append((behavior_logp_N - own_logp_N).abs())
    log_ratio_N = logp_N - (behavior_logp_N if spec.importance is None else own_logp_N)
    if spec.ratio == "sequence":
        log_ratio_N = sequence_log_ratio(log_ratio_N, micro_batch.sequence_N, micro_batch.num_sequences)
    loss_N = policy_gradient(log_ratio_N, logp_N, advantage_N, spec.clip)
    tally.add("ratio_mean", log_ratio_N.detach().exp())
    tally.add("clip_share", clipped(log_ratio_N.detach(), advantage_N, spec.clip))
    tally.add("kl_behavior", behavior_logp_N - logp_N.detach())
    if spec.importance is None:
        return loss_N
    weight_N = importance_weights(
        own_logp_N - behavior_logp_N, micro_batch.sequence_N, micro_batch.num_sequences, spec.importance
    )
    vetoed_S = sum_by_sequence((weight_N == 0).float(), micro_batch.sequence_N, micro_batch.num_sequences) > 0
    tally.add("importance_mean", weight_N)
    tally.add("importance_veto_share", weight_N == 0)
    tally.sums["sequences_vetoed"] += int(vetoed_S.sum())
    if spec.importance.truncate is not None:
        tally.add("importance_truncated_share", weight_N >= spec.importance.truncate)
    return loss_N * weight_N


def _clip_gradient(parameters: list[torch.nn.Parameter], max_norm: float) -> float:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    # Of the whole gradient, and known to nobody before every rank has its part: all ranks update, or none.
    total = whole_tensor(torch.nn.utils.get_total_norm(gradients))
    grad_norm = total.item()
    if not math.isfinite(grad_norm):
        raise TrainerError("NON_FINITE", f"the gradient norm is {grad_norm}; this update was not taken")
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, total)
    return grad_norm


def _metrics(tallies: Sequence[Tally], grad_norms: Sequence[float]) -> dict[str, float]:
    """Over a whole step: counts are sums, the loss and its gradient's norm means over updates, the rest over tokens."""
    whole = Tally.of_all((tally.sums, tally.mismatch) for tally in tallies)
    count = len(tallies)
    metrics = {name: value if name in COUNTS else whole.mean(name) for name, value in whole.sums.items()}
    metrics |= {"updates": float(count), "loss": whole.sums["loss"] / count, "grad_norm": sum(grad_norms) / count}
    if count > 1:
        # The first update is on-policy; how far the last one strayed says whether there were too many.
        last = tallies[-1]
        metrics |= {"grad_norm_max": max(grad_norms)}
        metrics |= {f"{name}_last": last.mean(name) for name in ("clip_share", "kl_behavior") if name in last.sums}
    return metrics | _mismatch_metrics(whole.mismatch)


def _mismatch_metrics(mismatch: Sequence[Tensor]) -> dict[str, float]:
    """|log π_engine − log π_trainer| over the step's action tokens, in nats, before its first update.

    The 99th percentile is the smallest value that at least 99 % of the tokens do not exceed.
    """
    if not mismatch:
        return {}
    value_N = torch.cat(list(mismatch))
    rank = math.ceil(0.99 * len(value_N))
    return {
        "mismatch_abs": value_N.double().mean().item(),
        "mismatch_p99": value_N.kthvalue(rank).values.item(),
        "mismatch_max": value_N.max().item(),
    }


def _check_vocabulary(sequences: Sequence[TrainingSequence], vocabulary: int) -> None:
    for item in sequences:
        if len(item.token_ids_T) and not 0 <= item.token_ids_T.min() <= item.token_ids_T.max() < vocabulary:
            raise TrainerError(
                "BATCH_INVALID", f"{item.sequence_id}: a token id is outside the vocabulary of {vocabulary}"
            )
