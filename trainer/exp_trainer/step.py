"""One optimizer step from a whole batch, and scoring without a step."""

import math
import resource
import time
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from .data import (
    Floats,
    MicroBatch,
    TrainingSequence,
    build_micro_batch,
    computed_length,
    plan_micro_batches,
)
from .errors import TrainerError
from .logprobs import token_logprobs
from .loss import (
    LossSpec,
    clipped,
    cross_entropy,
    importance_weights,
    kl_penalty,
    surrogate,
    token_coefficients,
)
from .policy import Policy
from .progress import Progress

# Padded tokens up to which a micro-batch keeps its activations when nobody says otherwise: 3 MB a token for 135M
# parameters in fp32, while computing them again costs a third more time.
KEPT_TOKENS = 2048

Sums = dict[str, float]


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
    """Accumulate the gradient over micro-batches, update once, and say what happened.

    The weights change only in the last line but one: whatever fails before leaves them as they were.
    """
    started = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    sums = accumulate_gradient(
        policy,
        sequences,
        spec,
        micro_batch_tokens=micro_batch_tokens,
        checkpoint_activations=checkpoint_activations,
        progress=progress,
    )
    grad_norm = _clip_gradient(list(policy.parameters.values()), max_grad_norm)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    return _metrics(sums, grad_norm=grad_norm, learning_rate=learning_rate, seconds=time.perf_counter() - started)


def accumulate_gradient(
    policy: Policy,
    sequences: Sequence[TrainingSequence],
    spec: LossSpec,
    *,
    micro_batch_tokens: int,
    checkpoint_activations: bool | None,
    progress: Progress,
) -> Sums:
    """Add the gradient of the whole batch's loss to the parameters; sums of the metrics over action tokens."""
    _check_vocabulary(sequences, policy.head_VH.shape[0])
    coefficients = token_coefficients(
        spec.aggregation, [len(item.action_position_N) for item in sequences], [item.weight for item in sequences]
    )
    # A sequence that counts nothing in the loss need not be computed.
    active = [index for index, coefficient in enumerate(coefficients) if coefficient > 0]
    sums: Sums = defaultdict(float)
    groups = plan_micro_batches([computed_length(sequences[index]) for index in active], micro_batch_tokens)
    for group in groups:
        picked = [active[index] for index in group]
        micro_batch = build_micro_batch([sequences[i] for i in picked], [coefficients[i] for i in picked])
        size = micro_batch.token_ids_BT.numel()
        again = size > KEPT_TOKENS if checkpoint_activations is None else checkpoint_activations
        with policy.training(checkpointed=again):
            _micro_batch_loss(policy, micro_batch, spec, sums).backward()
        progress.tick()
    return sums


@torch.no_grad()
def score(
    policy: Policy,
    sequences: Sequence[TrainingSequence],
    *,
    micro_batch_tokens: int,
    progress: Progress,
) -> list[Floats]:
    """Logprobs in nats of every token but the first, sequence by sequence, at each sequence's temperature."""
    _check_vocabulary(sequences, policy.head_VH.shape[0])
    scores: list[Floats] = [item.advantage_N for item in sequences]  # empty arrays, for sequences of one token
    scored = [index for index, item in enumerate(sequences) if len(item.action_position_N)]
    for group in plan_micro_batches([computed_length(sequences[i]) for i in scored], micro_batch_tokens):
        picked = [scored[index] for index in group]
        micro_batch = build_micro_batch([sequences[i] for i in picked], [0.0] * len(picked))
        logp_N, _ = _action_logprobs(policy, micro_batch)
        for row, index in enumerate(picked):
            scores[index] = logp_N[micro_batch.row_N == row].numpy()
        progress.tick()
    return scores


def _micro_batch_loss(policy: Policy, micro_batch: MicroBatch, spec: LossSpec, sums: Sums) -> Tensor:
    """This micro-batch's share of the step's loss; adds its metrics to `sums`."""
    logp_N, entropy_N = _action_logprobs(policy, micro_batch)
    if spec.kind == "cross_entropy":
        loss_N = cross_entropy(logp_N)
    else:
        loss_N = _policy_gradient(logp_N, micro_batch, spec, sums)
    if spec.kl is not None:
        with torch.no_grad(), policy.reference():
            reference_logp_N, _ = _action_logprobs(policy, micro_batch)
        penalty_N = kl_penalty(logp_N, reference_logp_N, spec.kl.estimator)
        loss_N = loss_N + spec.kl.coefficient * penalty_N
        _add(sums, "kl_reference", penalty_N)
    if spec.entropy:
        loss_N = loss_N - spec.entropy * entropy_N
    loss = (loss_N * micro_batch.coefficient_N).sum()
    _add(sums, "entropy", entropy_N)
    sums["loss"] += loss.item()
    sums["tokens"] += micro_batch.num_tokens
    sums["padded_tokens"] += micro_batch.token_ids_BT.numel()
    sums["action_tokens"] += len(logp_N)
    sums["sequences"] += micro_batch.num_sequences
    sums["micro_batches"] += 1
    return loss


def _policy_gradient(logp_N: Tensor, micro_batch: MicroBatch, spec: LossSpec, sums: Sums) -> Tensor:
    """Surrogate loss of each action token.

    Without importance correction the ratio is taken to the engine's logprobs. With it, the ratio is taken to
    the trainer's own logprobs at the start of the rollout's first update (`proximal_logprobs`, or the present
    ones when this is that update), and the engine's share becomes a truncated weight (arXiv:2505.24034 calls
    the former pi_prox).
    """
    behavior_logp_N, advantage_N = micro_batch.behavior_logp_N, micro_batch.advantage_N
    old_logp_N = behavior_logp_N
    weight_N = None
    if spec.importance is not None:
        given = len(micro_batch.proximal_logp_N) == len(logp_N)
        old_logp_N = micro_batch.proximal_logp_N if given else logp_N.detach()
        weight_N = importance_weights(
            old_logp_N - behavior_logp_N, micro_batch.row_N, micro_batch.num_sequences, spec.importance
        )
        _add(sums, "importance_mean", weight_N)
        _add(sums, "importance_veto_share", weight_N == 0)
        if spec.importance.truncate is not None:
            _add(sums, "importance_truncated_share", weight_N >= spec.importance.truncate)
    log_ratio_N = logp_N - old_logp_N
    loss_N = surrogate(log_ratio_N, advantage_N, spec.clip)
    mismatch_N = behavior_logp_N - logp_N.detach()
    _add(sums, "ratio_mean", log_ratio_N.detach().exp())
    _add(sums, "clip_share", clipped(log_ratio_N.detach(), advantage_N, spec.clip))
    _add(sums, "kl_behavior", mismatch_N)
    _add(sums, "mismatch_abs", mismatch_N.abs())
    sums["mismatch_max"] = max(sums["mismatch_max"], mismatch_N.abs().max().item())
    _add(sums, "advantage_mean", advantage_N)
    return loss_N if weight_N is None else loss_N * weight_N


def _action_logprobs(policy: Policy, micro_batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy at each action token, on the CPU."""
    hidden_BTH = policy.hidden_states(micro_batch.token_ids_BT)
    device = hidden_BTH.device
    hidden_NH = hidden_BTH[micro_batch.row_N.to(device), micro_batch.source_N.to(device)]
    logp_N, entropy_N = token_logprobs(
        hidden_NH, policy.head_VH, micro_batch.target_N.to(device), micro_batch.temperature_N.to(device)
    )
    return logp_N.cpu(), entropy_N.cpu()


def _clip_gradient(parameters: list[torch.nn.Parameter], max_norm: float) -> float:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    total = torch.nn.utils.get_total_norm(gradients)
    grad_norm = total.item()
    if not math.isfinite(grad_norm):
        raise TrainerError("NON_FINITE", f"the gradient norm is {grad_norm}; the weights were left as they were")
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, total)
    return grad_norm


def _metrics(sums: Sums, *, grad_norm: float, learning_rate: float, seconds: float) -> dict[str, float]:
    totals = {"loss", "tokens", "padded_tokens", "action_tokens", "sequences", "micro_batches", "mismatch_max"}
    means = {name: value / sums["action_tokens"] for name, value in sums.items() if name not in totals}
    return {
        **{name: value for name, value in sums.items() if name in totals},
        **means,
        "grad_norm": grad_norm,
        "learning_rate": learning_rate,
        "seconds": seconds,
        "tokens_per_second": sums["tokens"] / seconds,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0,
    }


def _check_vocabulary(sequences: Sequence[TrainingSequence], vocabulary: int) -> None:
    for item in sequences:
        if len(item.token_ids_T) and not 0 <= item.token_ids_T.min() <= item.token_ids_T.max() < vocabulary:
            raise TrainerError(
                "BATCH_INVALID", f"{item.sequence_id}: a token id is outside the vocabulary of {vocabulary}"
            )


def _add(sums: Sums, name: str, value_N: Tensor) -> None:
    sums[name] += value_N.detach().double().sum().item()
