"""Log-probabilities of chosen tokens without ever holding [tokens, vocabulary] logits whole."""

from typing import Any

import torch
from torch import Tensor

# One chunk of fp32 logits. Small enough to stay near the cache of a CPU, large enough for a full matmul.
CHUNK_BYTES = 64 * 2**20


def token_logprobs(
    hidden_NH: Tensor, head_VH: Tensor, target_N: Tensor, temperature_N: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of its distribution, in nats, both [N].

    Logits are divided by the temperature the token was sampled at, so they compare with an engine's
    logprobs taken after temperature. Differentiable in both outputs, by the hidden states and the head.
    """
    return _TokenLogprobs.apply(hidden_NH, head_VH, target_N, temperature_N)


def chunk_size(vocabulary: int) -> int:
    """Tokens whose fp32 logits fit in one chunk."""
    return max(16, CHUNK_BYTES // (4 * vocabulary))


class _TokenLogprobs(torch.autograd.Function):
    """Forward keeps only one log-normaliser a token; backward makes the logits of each chunk again."""

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, head_VH: Tensor, target_N: Tensor, temperature_N: Tensor
    ) -> tuple[Tensor, Tensor]:
        num_tokens = hidden_NH.shape[0]
        logp_N = hidden_NH.new_empty(num_tokens, dtype=torch.float32)
        normalizer_N = torch.empty_like(logp_N)
        entropy_N = torch.empty_like(logp_N)
        for rows in _chunks(num_tokens, head_VH.shape[0]):
            logits_CV = _logits(hidden_NH[rows], head_VH, temperature_N[rows])
            normalizer_C = torch.logsumexp(logits_CV, dim=-1)
            normalizer_N[rows] = normalizer_C
            logp_N[rows] = logits_CV.gather(-1, target_N[rows, None]).squeeze(-1) - normalizer_C
            probability_CV = torch.exp(logits_CV - normalizer_C[:, None])
            entropy_N[rows] = normalizer_C - torch.linalg.vecdot(probability_CV, logits_CV)
        ctx.save_for_backward(hidden_NH, head_VH, target_N, temperature_N, normalizer_N, entropy_N)
        ctx.set_materialize_grads(False)
        return logp_N, entropy_N

    @staticmethod
    def backward(ctx: Any, grad_logp_N: Tensor | None, grad_entropy_N: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_NH, head_VH, target_N, temperature_N, normalizer_N, entropy_N = ctx.saved_tensors
        grad_hidden_NH = torch.empty_like(hidden_NH) if ctx.needs_input_grad[0] else None
        grad_head_VH = torch.zeros_like(head_VH, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for rows in _chunks(hidden_NH.shape[0], head_VH.shape[0]):
            grad_CV = _logit_gradient(
                _logits(hidden_NH[rows], head_VH, temperature_N[rows]),
                target_N[rows],
                normalizer_N[rows],
                entropy_N[rows],
                None if grad_logp_N is None else grad_logp_N[rows],
                None if grad_entropy_N is None else grad_entropy_N[rows],
            )
            grad_CV = grad_CV.div_(temperature_N[rows, None]).to(head_VH.dtype)
            if grad_hidden_NH is not None:
                grad_hidden_NH[rows] = grad_CV @ head_VH
            if grad_head_VH is not None:
                grad_head_VH.addmm_(grad_CV.T.float(), hidden_NH[rows].float())
        return grad_hidden_NH, None if grad_head_VH is None else grad_head_VH.to(head_VH.dtype), None, None


def _logit_gradient(
    logits_CV: Tensor,
    target_C: Tensor,
    normalizer_C: Tensor,
    entropy_C: Tensor,
    grad_logp_C: Tensor | None,
    grad_entropy_C: Tensor | None,
) -> Tensor:
    """d(outputs)/d(logits): onehot − p for the log-probability, −p·(log p + H) for the entropy. Reuses logits_CV."""
    log_probability_CV = logits_CV.sub_(normalizer_C[:, None])
    grad_CV = torch.exp(log_probability_CV)
    if grad_entropy_C is None:
        scale_C = torch.zeros_like(normalizer_C) if grad_logp_C is None else grad_logp_C
        grad_CV.mul_(-scale_C[:, None])
    else:
        factor_CV = log_probability_CV.add_(entropy_C[:, None]).mul_(grad_entropy_C[:, None])
        if grad_logp_C is not None:
            factor_CV.add_(grad_logp_C[:, None])
        grad_CV.mul_(factor_CV).neg_()
    if grad_logp_C is not None:
        grad_CV.scatter_add_(-1, target_C[:, None], grad_logp_C[:, None])
    return grad_CV


def _logits(hidden_CH: Tensor, head_VH: Tensor, temperature_C: Tensor) -> Tensor:
    logits_CV = torch.nn.functional.linear(hidden_CH.to(head_VH.dtype), head_VH).float()
    return logits_CV.div_(temperature_C[:, None])


def _chunks(num_tokens: int, vocabulary: int) -> list[slice]:
    size = chunk_size(vocabulary)
    return [slice(start, min(start + size, num_tokens)) for start in range(0, num_tokens, size)]
