"""Weights, optimizer and step of a stage on disk. Safetensors and JSON only: nothing here can run code.

Leaves out: the state of the schedule and of random numbers. Both follow from the step's number.
"""

import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from .chain import LORA_METADATA, PEFT_PREFIX
from .errors import TrainerError
from .files import replace_directory
from .optimizer import load_optimizer_tensors, optimizer_tensors
from .policy import AdapterSpec, Policy
from .sharding import cut_like
from .tensor_file import write_tensors

WEIGHTS = {True: "adapter.safetensors", False: "model.safetensors"}
OPTIMIZER = "optimizer.safetensors"
STATE = "trainer_state.json"


def save_checkpoint(
    directory: Path, policy: Policy, optimizer: torch.optim.AdamW, state: Mapping[str, Any]
) -> dict[str, str]:
    """Write a checkpoint, whole or not at all; the names of its files.

    Called by all ranks: each lends its shards and rank 0 writes, so a checkpoint does not know how many made it.
    """
    weights = WEIGHTS[policy.adapter is not None]
    writes = policy.mesh.ranks.rank == 0
    with replace_directory(directory) if writes else nullcontext() as part:
        save_weights(part and part / weights, policy)
        write_tensors(part and part / OPTIMIZER, optimizer_tensors(optimizer, policy.parameters))
        if part:
            (part / STATE).write_text(json.dumps(state, indent=1, sort_keys=True))
    return {"weights": weights, "optimizer": OPTIMIZER, "state": STATE}


def save_weights(path: Path | None, policy: Policy) -> None:
    """The trained weights alone, as a link of a merge chain; no path where this rank only lends its shards.

    Exactly one metadata key: with several, safetensors writes them in random order, and equal weights would
    no longer be equal bytes.
    """
    tensors = {_file_name(name): tensor.detach() for name, tensor in policy.parameters.items()}
    metadata = {"format": "pt"} if policy.adapter is None else {LORA_METADATA: _lora_metadata(policy.adapter)}
    write_tensors(path, tensors, metadata)


def load_checkpoint(directory: Path, policy: Policy, optimizer: torch.optim.AdamW) -> dict[str, Any]:
    """Put a checkpoint's weights, and moments in place; its state."""
    weights = directory / WEIGHTS[policy.adapter is not None]
    for path in (weights, directory / OPTIMIZER, directory / STATE):
        if not path.is_file():
            raise TrainerError("CHECKPOINT_MISSING", f"{path} does not exist")
    expected = {_file_name(name): parameter for name, parameter in policy.parameters.items()}
    with safe_open(weights, framework="pt") as file, torch.no_grad():
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a dict)
        if shapes != {name: tuple(parameter.shape) for name, parameter in expected.items()}:
            raise TrainerError("CHECKPOINT_MISMATCH", f"{weights} was made for another base or adapter")
        for name, parameter in expected.items():
            parameter.copy_(cut_like(file.get_tensor(name), parameter))
    with safe_open(directory / OPTIMIZER, framework="pt") as file:
        load_optimizer_tensors(optimizer, policy.parameters, {name: file.get_tensor for name in file.keys()})  # noqa: SIM118
    state: dict[str, Any] = json.loads((directory / STATE).read_text())
    return state


def _file_name(parameter_name: str) -> str:
    """peft's file format: prefixed, and without the adapter's name inside the model."""
    if ".lora_" not in parameter_name:
        return parameter_name
    return PEFT_PREFIX + parameter_name.replace(".default.weight", ".weight")


def _lora_metadata(adapter: AdapterSpec) -> str:
    return json.dumps(asdict(adapter), sort_keys=True)
