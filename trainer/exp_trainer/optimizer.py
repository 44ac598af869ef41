"""AdamW, its schedule, and its state as plain tensors."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from .errors import TrainerError
from .sharding import cut_like

# How data was cut into steps: decided before a batch gets here, and part of the same section of a spec.
BATCHING_KEYS = frozenset({"batch", "epochs", "minibatch"})


@dataclass(frozen=True)
class OptimizerSpec:
    """`warmup` up to 1 is a share of total_steps, above 1 a number of steps."""

    learning_rate: float
    schedule: str = "constant"
    warmup: float = 0.0
    total_steps: int | None = None
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = 1.0

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> "OptimizerSpec":
        """Read the optimizer from the wire."""
        given = {key: item for key, item in value.items() if item is not None and key not in BATCHING_KEYS}
        unknown = set(given) - {field.name for field in fields(cls)}
        if unknown or "learning_rate" not in given:
            raise TrainerError("OPTIMIZER_INVALID", f"unknown {sorted(unknown)}" if unknown else "no learning_rate")
        spec = cls(**{**given, "betas": tuple(given.get("betas", (0.9, 0.999)))})
        if spec.schedule not in ("constant", "cosine", "linear"):
            raise TrainerError("OPTIMIZER_INVALID", f"schedule {spec.schedule!r}")
        if spec.total_steps is None and (spec.schedule != "constant" or 0 < spec.warmup <= 1):
            raise TrainerError("OPTIMIZER_INVALID", "this schedule needs total_steps")
        return spec


def learning_rate_at(step: int, spec: OptimizerSpec) -> float:
    """Rate of the step'th optimizer step, counted from 1. It has no state, so a resume cannot lose it.

    Warm-up rises to the full rate at its last step; the decay starts from the full rate and would reach zero
    one step after total_steps, so no step is wasted at rate zero.
    """
    total = spec.total_steps or 0
    warmup = math.ceil(spec.warmup * total) if spec.warmup <= 1 else int(spec.warmup)
    if step <= warmup:
        return spec.learning_rate * step / warmup
    if spec.schedule == "constant":
        return spec.learning_rate
    done = min(1.0, (step - 1 - warmup) / max(1, total - warmup))
    share = 0.5 * (1 + math.cos(math.pi * done)) if spec.schedule == "cosine" else 1 - done
    return spec.learning_rate * share


def build_optimizer(parameters: Mapping[str, Tensor], spec: OptimizerSpec) -> torch.optim.AdamW:
    """AdamW over all trainable parameters; moments are fp32, as the parameters are."""
    return torch.optim.AdamW(
        list(parameters.values()),
        lr=spec.learning_rate,
        betas=spec.betas,
        weight_decay=spec.weight_decay,
        fused=True,
    )


def optimizer_tensors(optimizer: torch.optim.AdamW, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Moments and step count under the parameters' names; empty before the first step."""
    tensors = {}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}/{name}"] = value
    return tensors


def load_optimizer_tensors(
    optimizer: torch.optim.AdamW,
    parameters: Mapping[str, Tensor],
    read: Mapping[str, Callable[[str], Tensor]],
) -> None:
    """Put back what `optimizer_tensors` gave, one tensor at a time; each rank keeps its part."""
    for full_name, read_tensor in read.items():
        key, _, name = full_name.partition("/")
        if name not in parameters:
            raise TrainerError("CHECKPOINT_MISMATCH", f"optimizer state for {name}, which this policy does not train")
        value = read_tensor(full_name)
        optimizer.state[parameters[name]][key] = value if key == "step" else cut_like(value, parameters[name])
