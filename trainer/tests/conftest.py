"""A tiny Qwen3-shaped policy and batches for it."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny_policy import tiny_model

from exp_trainer.data import TrainingSequence, read_batch
from exp_trainer.merge import DTYPES
from exp_trainer.model import load_model
from exp_trainer.policy import AdapterSpec, Policy
from exp_trainer.progress import Progress
from exp_trainer.step import accumulate_gradient

VOCABULARY = 96


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


@pytest.fixture(scope="session")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saved fp32 weights of a tiny random Qwen3."""
    directory = tmp_path_factory.mktemp("base")
    tiny_model("qwen3", VOCABULARY).save_pretrained(directory)
    (directory / "tokenizer.json").write_text("{}")
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    return directory


@pytest.fixture
def policy(base_dir: Path) -> Policy:
    """The tiny policy with an adapter that already changes it."""
    return make_policy(base_dir)


def make_policy(base_dir: Path, *, dtype: str = "float32", adapter: bool = True, moved: bool = True) -> Policy:
    """A policy on the tiny base; `moved` gives its adapter a nonzero B."""
    spec = AdapterSpec(lora_rank=4, lora_alpha=8) if adapter else None
    held = DTYPES[dtype] if adapter else torch.float32
    policy = Policy(load_model(base_dir, held), spec, dtype=DTYPES[dtype], seed=3)
    if moved:
        torch.manual_seed(5)
        with torch.no_grad():
            for name, parameter in policy.parameters.items():
                if ".lora_B." in name:
                    parameter.normal_(std=0.05)
    return policy


def make_rows(count: int, seed: int = 0, **overrides: Any) -> list[dict[str, Any]]:
    """Rows of a batch: random ids, two actions among observations each, plausible behaviour logprobs."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        length = int(rng.integers(14, 40))
        mask = np.zeros(length, np.int8)
        mask[4:8] = mask[10 : length - int(rng.integers(0, 3))] = 1
        rows.append(
            {
                "sequence_id": f"s{index}",
                "token_ids": rng.integers(0, VOCABULARY, length).tolist(),
                "mask": mask.tolist(),
                "behavior_logprobs": np.where(mask, -4 - rng.random(length), 0).tolist(),
                "advantages": np.where(mask, rng.normal(size=length), 0).tolist(),
                "temperature": float(rng.choice([0.7, 1.0])),
                "weight": float(rng.choice([1.0, 2.0])),
                **overrides,
            }
        )
    return rows


BATCH_SCHEMA = pa.schema(
    {
        "sequence_id": pa.string(),
        "token_ids": pa.list_(pa.int32()),
        "mask": pa.list_(pa.int8()),
        "behavior_logprobs": pa.list_(pa.float32()),
        "advantages": pa.list_(pa.float32()),
        "temperature": pa.float64(),
        "weight": pa.float64(),
    }
)


def write_batch(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """The rows as a batch file."""
    schema = BATCH_SCHEMA
    if rows and "update" in rows[0]:
        schema = schema.append(pa.field("update", pa.int32()))
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path)
    return path


@pytest.fixture
def sequences_of(tmp_path: Path) -> Callable[[Sequence[dict[str, Any]]], list[TrainingSequence]]:
    """Rows as the trainer reads them from a file."""
    return lambda rows: read_batch(write_batch(tmp_path / "batch.parquet", rows), policy_gradient=True)


def gradient(
    policy: Policy, sequences: Sequence[TrainingSequence], spec: Any, micro_batch_tokens: int, **settings: Any
) -> torch.Tensor:
    """The whole gradient of a batch as one vector."""
    for parameter in policy.parameters.values():
        parameter.grad = None
    accumulate_gradient(
        policy,
        sequences,
        spec,
        micro_batch_tokens=micro_batch_tokens,
        progress=Progress(),
        checkpoint_activations=settings.get("checkpoint_activations"),
    )
    return torch.cat(
        [
            (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).flatten()
            for parameter in policy.parameters.values()
        ]
    )
