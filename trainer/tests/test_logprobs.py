"""Chunked log-probabilities against plain autograd."""

import pytest
import torch

from exp_trainer import logprobs
from exp_trainer.logprobs import token_logprobs


def plain(hidden_NH: torch.Tensor, head_VH: torch.Tensor, target_N: torch.Tensor, temperature_N: torch.Tensor) -> tuple:
    log_probability_NV = torch.log_softmax(hidden_NH @ head_VH.T / temperature_N[:, None], dim=-1)
    logp_N = log_probability_NV.gather(-1, target_N[:, None]).squeeze(-1)
    return logp_N, -(log_probability_NV.exp() * log_probability_NV).sum(-1)


@pytest.mark.parametrize("outputs", ["logp", "entropy", "both"])
def test_values_and_gradients_equal_the_whole_softmax(monkeypatch: pytest.MonkeyPatch, outputs: str) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_BYTES", 4 * 50 * 16)  # 16 tokens a chunk: 37 tokens take three
    torch.manual_seed(0)
    hidden_NH, head_VH = torch.randn(37, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
    target_N, temperature_N = torch.randint(50, (37,)), torch.rand(37) + 0.5
    weight_N = torch.randn(37)
    found = []
    for function in (plain, token_logprobs):
        logp_N, entropy_N = function(hidden_NH, head_VH, target_N, temperature_N)
        total = {"logp": logp_N, "entropy": entropy_N, "both": logp_N + 0.3 * entropy_N.square()}[outputs]
        found.append([logp_N, entropy_N, *torch.autograd.grad((total * weight_N).sum(), (hidden_NH, head_VH))])
    for expected, actual in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
