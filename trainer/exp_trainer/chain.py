"""A chain of trained deltas: each link says what it makes of a base weight, in fp32."""

import json
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from .errors import TrainerError

LORA_METADATA = "lora"
PEFT_PREFIX = "base_model.model."


class Link:
    """One trained delta of a chain, read lazily."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = safe_open(path, framework="pt")
        self._names = set(self._file.keys())
        lora = (self._file.metadata() or {}).get(LORA_METADATA)
        self._scaling = None if lora is None else _scaling(json.loads(lora))
        if self._scaling is None and any(".lora_A." in name for name in self._names):
            raise TrainerError("ADAPTER_INVALID", f"{path}: its metadata does not say lora_rank and lora_alpha")

    def weight_names(self) -> set[str]:
        """Names of the base weights this link changes."""
        if self._scaling is None:
            return self._names
        lora_A = ".lora_A.weight"
        return {
            name.removeprefix(PEFT_PREFIX).removesuffix(lora_A) + ".weight"
            for name in self._names
            if name.endswith(lora_A)
        }

    def apply(self, name: str, weight: Tensor) -> Tensor:
        """The weight after this link, in fp32."""
        if self._scaling is None:
            return self._file.get_tensor(name).float() if name in self._names else weight
        module = PEFT_PREFIX + name.removesuffix(".weight")
        if f"{module}.lora_A.weight" not in self._names:
            return weight
        down_RI = self._file.get_tensor(f"{module}.lora_A.weight").float()
        up_OR = self._file.get_tensor(f"{module}.lora_B.weight").float()
        return weight.float() + (up_OR @ down_RI) * self._scaling


def open_chain(paths: Sequence[Path]) -> list[Link]:
    """The links of a chain, oldest first."""
    return [Link(path) for path in paths]


def refuse_unmatched(chain: Sequence[Link], names: Set[str]) -> None:
    """Every weight a link changes must exist in the base; otherwise it was trained on another."""
    for link in chain:
        missing = sorted(link.weight_names() - names)
        if missing:
            raise TrainerError("ADAPTER_MISMATCH", f"{link.path}: the base has no {missing[0]}")


def merge_chain(name: str, weight: Tensor, chain: Sequence[Link]) -> Tensor:
    """One weight of the base after every link, in order; fp32 once any link touched it."""
    for link in chain:
        weight = link.apply(name, weight)
    return weight


def _scaling(lora: Mapping[str, float]) -> float:
    return lora["lora_alpha"] / lora["lora_rank"]
