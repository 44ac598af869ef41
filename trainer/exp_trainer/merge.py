"""A base model and a chain of trained deltas, as one Hugging Face directory that an engine can serve.

`python -m exp_trainer.merge --base DIR [--adapter FILE ...] --out DIR --dtype bfloat16`

A link of the chain is a LoRA adapter (added to the weights in fp32) or full weights (which replace them).
The trainer's `export` calls the same function on the same files, so both give the same bytes.
"""

import argparse
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .chain import Link, merge_chain, open_chain, refuse_unmatched
from .errors import TrainerError
from .files import replace_directory
from .model import load_model, prompt_logprobs

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PROBE_LENGTH = 48
# What an engine reads beside the weights; anything else in a base directory is about that base.
SERVED_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.jinja",
    "LICENSE*",
)


def merge(
    base: Path,
    links: Sequence[Path],
    out: Path,
    dtype: str,
    on_tensor: Callable[[], None] = lambda: None,
) -> None:
    """Write base + links to `out`, whole or not at all, with tokenizer, chat template and a probe.

    With no links and the base's own dtype, weight files are hard-linked.
    """
    if dtype not in DTYPES:
        raise TrainerError("DTYPE", f"{dtype!r} is none of {', '.join(DTYPES)}")
    with replace_directory(out) as part:
        weights = _weight_files(base)
        for entry in base.iterdir():
            if any(entry.match(pattern) for pattern in SERVED_FILES):
                shutil.copyfile(entry, part / entry.name)
        if not links and _dtype_of(base, weights) == DTYPES[dtype]:
            for file in weights:
                _link_or_copy(file, part / file.name)
        else:
            _merge_files(weights, open_chain(links), part, DTYPES[dtype], on_tensor)
            _write_dtype(part / "config.json", dtype)
        write_probe(part)


def write_probe(directory: Path) -> None:
    """Logprobs of a fixed prompt under the weights in `directory`, computed in fp32, as `probe.json`.

    Position i is log p(token i | tokens before it); the first is null. An engine that serves these weights
    must give the same up to its own rounding.
    """
    model = load_model(directory, torch.float32)
    token_ids = [(i * 7919 + 13) % model.config.vocab_size for i in range(PROBE_LENGTH)]
    logprobs = prompt_logprobs(model, token_ids)
    probe = {"token_ids": token_ids, "logprobs": [None, *logprobs]}
    (directory / "probe.json").write_text(json.dumps(probe))


def _merge_files(
    files: Sequence[Path],
    chain: Sequence[Link],
    out: Path,
    dtype: torch.dtype,
    on_tensor: Callable[[], None],
) -> None:
    """File by file, so no more than one shard is in memory."""
    seen: set[str] = set()
    for file in files:
        merged: dict[str, Tensor] = {}
        with safe_open(file, framework="pt") as source:
            for name in source.keys():  # noqa: SIM118 (not a dict)
                weight = merge_chain(name, source.get_tensor(name), chain)
                merged[name] = weight.to(dtype).contiguous() if weight.is_floating_point() else weight
                on_tensor()
        seen |= merged.keys()
        save_file(merged, out / file.name, metadata={"format": "pt"})
    refuse_unmatched(chain, seen)


def _weight_files(base: Path) -> list[Path]:
    index = base / "model.safetensors.index.json"
    if index.exists():
        return [base / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    single = base / "model.safetensors"
    if not single.exists():
        raise TrainerError("BASE_MISSING", f"{base} has no model.safetensors")
    return [single]


def _dtype_of(base: Path, files: Sequence[Path]) -> torch.dtype | None:
    """The dtype of all floating weights, or None when they differ."""
    found = set()
    for file in files:
        with safe_open(file, framework="pt") as source:
            found |= {source.get_slice(name).get_dtype() for name in source.keys()}  # noqa: SIM118
    names = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    return names.get(found.pop()) if len(found) == 1 else None


def _write_dtype(path: Path, dtype: str) -> None:
    config = json.loads(path.read_text())
    config.pop("torch_dtype", None)
    config["dtype"] = dtype
    path.write_text(json.dumps(config, indent=2))


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m exp_trainer.merge", description="Merge adapters into a base.")
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, action="append", default=[], help="oldest first; may repeat")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16")
    arguments = parser.parse_args()
    try:
        merge(arguments.base, arguments.adapter, arguments.out, arguments.dtype)
    except TrainerError as error:
        parser.exit(1, f"{error.code}: {error.message}\n")


if __name__ == "__main__":
    main()
