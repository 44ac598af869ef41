"""Write trainer/tests/data/trl_losses.json: TRL's losses and gradients on one batch, for each loss that both have.

`.exp/venv-trl/bin/python bench/trainer/trl_losses.py`

The file holds the weights and the batch too, so whoever checks against it draws nothing at random.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
import trl

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT / "trainer" / "tests"), str(Path(__file__).parent)]

from tiny_policy import tiny_model  # noqa: E402
from trl_peer import Attempt, inputs_of, logprobs, make_trainer  # noqa: E402

OUT = ROOT / "trainer" / "tests" / "data" / "trl_losses.json"
SHAPE = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
VOCABULARY = 32
MAX_COMPLETION_LENGTH = 20
PPO = {"clip": {"low": 0.2, "high": 0.28}}
# Name → TRL's settings, what the same is called on the trainer's wire, and what TRL's value is multiplied by.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], float]] = {
    "grpo": (
        {"loss_type": "grpo", "epsilon_high": 0.28, "beta": 0.04, "use_bias_correction_kl": False},
        {**PPO, "aggregation": "seq_mean_token_mean", "kl": {"coefficient": 0.04, "estimator": "k3"}},
        1,
    ),
    # TRL divides by a constant length; ours is the sum, and the constant belongs to the learning rate.
    "dr_grpo": (
        {"loss_type": "dr_grpo", "epsilon_high": 0.28, "beta": 0.0, "max_completion_length": MAX_COMPLETION_LENGTH},
        {**PPO, "aggregation": "seq_mean_token_sum"},
        MAX_COMPLETION_LENGTH,
    ),
    "dapo": (
        {"loss_type": "dapo", "epsilon_high": 0.28, "beta": 0.0},
        {**PPO, "aggregation": "token_mean"},
        1,
    ),
    "bnpo": (
        {"loss_type": "bnpo", "epsilon_high": 0.28, "beta": 0.1, "use_bias_correction_kl": False},
        {**PPO, "aggregation": "token_mean", "kl": {"coefficient": 0.1, "estimator": "k3"}},
        1,
    ),
    "gspo": (
        {
            "loss_type": "grpo",
            "importance_sampling_level": "sequence",
            "epsilon": 0.03,
            "epsilon_high": 0.04,
            "beta": 0.0,
        },
        {"ratio": "sequence", "clip": {"low": 0.03, "high": 0.04}, "aggregation": "seq_mean_token_mean"},
        1,
    ),
    # TRL's upper bound is the weight itself, and it has no lower one.
    "cispo": (
        {"loss_type": "cispo", "epsilon_high": 1.2, "beta": 0.0},
        {"clip": {"low": 1.0, "high": 0.2, "on": "weight"}, "aggregation": "token_mean"},
        1,
    ),
    "dual_clip": (
        {"loss_type": "dapo", "epsilon_high": 0.28, "delta": 1.3, "beta": 0.0},
        {"clip": {"low": 0.2, "high": 0.28, "dual": 1.3}, "aggregation": "token_mean"},
        1,
    ),
    "entropy": (
        {"loss_type": "dapo", "epsilon_high": 0.28, "entropy_coef": 0.05, "beta": 0.0},
        {**PPO, "aggregation": "token_mean", "entropy": 0.05},
        1,
    ),
    "temperature": (
        {"loss_type": "dapo", "epsilon_high": 0.28, "temperature": 0.7, "beta": 0.0},
        {**PPO, "aggregation": "token_mean", "temperature": 0.7},
        1,
    ),
}


def main() -> None:
    """Compute every case and write the file."""
    torch.set_num_threads(1)
    model, reference = (tiny_model("qwen3", VOCABULARY, seed, **SHAPE) for seed in (0, 1))
    with torch.no_grad():  # a reference near the policy, as references are
        for own, other in zip(model.parameters(), reference.parameters(), strict=True):
            other.copy_(own + 0.1 * other)
    attempts = make_attempts(model)
    cases = {name: measure(model, reference, attempts, *case) for name, case in CASES.items()}
    OUT.write_text(
        json.dumps(
            {
                "made_with": {
                    "trl": trl.__version__,
                    "torch": torch.__version__,
                    "transformers": transformers.__version__,
                },
                "shape": SHAPE,
                "vocabulary": VOCABULARY,
                "weights": weights_of(model),
                "reference_weights": weights_of(reference),
                "attempts": [vars(attempt) for attempt in attempts],
                "cases": cases,
            },
            separators=(",", ":"),
        )
        + "\n"
    )
    for name, case in cases.items():
        print(f"{name:12} loss {case['loss']:.6f}")


def make_attempts(model: Any) -> list[Attempt]:
    """Six of different lengths, observations in the middle, old logprobs off by enough for every clip to act."""
    generator = torch.Generator().manual_seed(7)

    def draw(count: int) -> list[int]:
        return torch.randint(2, VOCABULARY, (count,), generator=generator).tolist()

    attempts = []
    for length in (5, 8, 11, 14, 17, 20):
        prompt, completion = draw(4), draw(length)
        sampled = [0 if 3 <= position < 5 and length > 5 else 1 for position in range(length)]
        with torch.no_grad():
            logits_TV = model(torch.tensor([prompt + completion])).logits[0, 3:-1]
        logp_T = torch.log_softmax(logits_TV, -1).gather(-1, torch.tensor(completion)[:, None]).squeeze(-1)
        old_T = logp_T + 0.3 * torch.randn(length, generator=generator)
        advantages = torch.randn(length, generator=generator).tolist()
        attempts.append(Attempt(prompt, completion, sampled, old_T.tolist(), advantages))
    return attempts


def measure(
    model: Any, reference: Any, attempts: list[Attempt], settings: dict, loss: dict, factor: float
) -> dict[str, Any]:
    """Loss and gradient as TRL computes them."""
    loss = dict(loss)
    temperature = loss.pop("temperature", 1.0)
    with TemporaryDirectory() as folder:
        inputs = inputs_of(attempts)
        if settings["beta"]:
            inputs["ref_per_token_logps"] = logprobs(make_trainer(reference, folder, beta=0.0), inputs)
        # With beta TRL would load its own reference by the model's name; ours are given with the batch.
        trainer = make_trainer(model, folder, **{**settings, "beta": 0.0})
        trainer.beta = settings["beta"]
        model.zero_grad()
        value = trainer.compute_loss(trainer.model, inputs)
        value.backward()
    gradients = {name: (factor * parameter.grad).flatten().tolist() for name, parameter in model.named_parameters()}
    return {
        "trl": settings,
        "loss_spec": {"kind": "policy_gradient", **loss},
        "temperature": temperature,
        "loss": factor * value.item(),
        "gradients": {name: [float(f"{item:.9g}") for item in values] for name, values in gradients.items()},
    }


def weights_of(model: Any) -> dict[str, list[float]]:
    """Every parameter, flat, with the nine digits that name a float32."""
    return {
        name: [float(f"{item:.9g}") for item in parameter.detach().flatten().tolist()]
        for name, parameter in model.named_parameters()
    }


if __name__ == "__main__":
    main()
