"""Batches: Parquet in, micro-batches of tensors out.

Sequences of a micro-batch lie one behind the other in one row, without padding; attention.py keeps them apart.
A sequence is never split, so what belongs to it as a whole can be computed where it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from .errors import TrainerError

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
NO_FLOATS: Floats = np.empty(0, np.float32)


@dataclass(frozen=True)
class TrainingSequence:
    """One row of a batch, reduced to what can reach the loss: values at observation tokens are dropped here."""

    sequence_id: str
    token_ids_T: Integers
    # Positions of the sampled tokens, ascending, all ≥ 1: the first token of a sequence has no prediction.
    action_position_N: Integers
    # Empty when the loss needs none of them.
    behavior_logp_N: Floats
    proximal_logp_N: Floats
    advantage_N: Floats
    temperature: float
    weight: float
    # Which of the step's updates it is for.
    update: int = 0


@dataclass(frozen=True)
class MicroBatch:
    """Sequences computed together. T = all their tokens, N = their action tokens, one sequence after another."""

    token_ids_T: Tensor
    length_S: tuple[int, ...]
    # Which sequence an action token belongs to, and where the hidden state that predicts it sits in the row.
    sequence_N: Tensor
    source_N: Tensor
    target_N: Tensor
    temperature_N: Tensor
    coefficient_N: Tensor
    advantage_N: Tensor
    behavior_logp_N: Tensor
    # Logprobs of the trainer's policy before the step's first update; empty when there is only one.
    proximal_logp_N: Tensor

    @property
    def num_sequences(self) -> int:
        return len(self.length_S)


def read_batch(path: Path, *, policy_gradient: bool) -> list[TrainingSequence]:
    """Read and check the sequences of one optimizer step."""
    table = _read(path, required=["sequence_id", "token_ids", "mask", "temperature", "weight"])
    count = table.num_rows
    columns = {name: _lists(table, name, np.float32) for name in ("behavior_logprobs", "advantages")}
    token_ids, masks = _lists(table, "token_ids", np.int64), _lists(table, "mask", np.int64)
    ids = table.column("sequence_id").to_pylist()
    temperatures, weights = (table.column(name).to_pylist() for name in ("temperature", "weight"))
    # A writer that knows of no updates leaves the column out, or empty.
    numbered = "update" in table.column_names
    updates = [number or 0 for number in table.column("update").to_pylist()] if numbered else [0] * count
    numbers = set(updates)
    _require(numbers == set(range(len(numbers))), f"{path.name}: its updates are not numbered 0, 1, 2 and so on")
    sequences = []
    for row in range(count):
        at = f"{path.name}: {ids[row]}"
        length = len(token_ids[row])
        _require(len(masks[row]) == length, f"{at}: {len(masks[row])} mask values for {length} tokens")
        _require(bool(np.isin(masks[row], (0, 1)).all()), f"{at}: a mask value is neither 0 nor 1")
        position_N = np.flatnonzero(masks[row])
        _require(not len(position_N) or position_N[0] > 0, f"{at}: the first token has no prediction to train")
        _require(temperatures[row] > 0 and np.isfinite(temperatures[row]), f"{at}: temperature must be above 0")
        _require(weights[row] >= 0 and np.isfinite(weights[row]), f"{at}: weight must be 0 or more")
        picked = {name: _pick(lists[row], position_N, length, f"{at}: {name}") for name, lists in columns.items()}
        if policy_gradient:
            for name in ("behavior_logprobs", "advantages"):
                _require(len(picked[name]) == len(position_N), f"{at}: {name} is empty")
        sequences.append(
            TrainingSequence(
                sequence_id=ids[row],
                token_ids_T=token_ids[row],
                action_position_N=position_N,
                behavior_logp_N=picked["behavior_logprobs"],
                proximal_logp_N=NO_FLOATS,
                advantage_N=picked["advantages"],
                temperature=float(temperatures[row]),
                weight=float(weights[row]),
                update=updates[row],
            )
        )
    return sequences


def read_for_scoring(path: Path, temperature: float) -> tuple[str, list[TrainingSequence]]:
    """Sequences whose every token but the first is scored; also the name of their id column.

    Takes a training batch or a trajectory shard: only ids and token_ids are read.
    """
    names = pq.read_schema(path).names
    id_column = "trajectory_id" if "trajectory_id" in names else "sequence_id"
    table = _read(path, required=[id_column, "token_ids"])
    return id_column, [
        TrainingSequence(
            sequence_id, tokens, np.arange(1, len(tokens)), NO_FLOATS, NO_FLOATS, NO_FLOATS, temperature, 1.0
        )
        for sequence_id, tokens in zip(
            table.column(id_column).to_pylist(), _lists(table, "token_ids", np.int64), strict=True
        )
    ]


def write_scores(path: Path, id_column: str, ids: Sequence[str], logprobs: Sequence[Floats]) -> None:
    """One row a sequence; the first token's logprob is null, for nothing predicts it."""
    lists = [[None, *scores.tolist()] for scores in logprobs]
    table = pa.table({id_column: pa.array(ids, pa.string()), "logprobs": pa.array(lists, pa.list_(pa.float32()))})
    part = path.with_name(f".{path.name}.part")
    pq.write_table(table, part, compression="zstd")
    part.replace(path)


def plan_micro_batches(length_S: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Groups of at most max_tokens; a longer sequence is a group of its own. First fit, longest first."""
    groups: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(length_S)), key=lambda i: (-length_S[i], i)):
        fits = next((group for group, left in enumerate(room) if length_S[index] <= left), None)
        if fits is None:
            groups.append([index])
            room.append(max_tokens - length_S[index])
        else:
            groups[fits].append(index)
            room[fits] -= length_S[index]
    return groups


def computed_length(sequence: TrainingSequence) -> int:
    """Tokens that must be computed: up to the one that predicts the last action token."""
    return int(sequence.action_position_N[-1])


def build_micro_batch(sequences: Sequence[TrainingSequence], coefficients: Sequence[float]) -> MicroBatch:
    """Lay the sequences one behind the other and gather their action tokens."""
    lengths = [computed_length(sequence) for sequence in sequences]
    starts = np.cumsum([0, *lengths[:-1]])
    counts = [len(sequence.action_position_N) for sequence in sequences]
    return MicroBatch(
        token_ids_T=_join([item.token_ids_T[:length] for item, length in zip(sequences, lengths, strict=True)]),
        length_S=tuple(lengths),
        sequence_N=torch.from_numpy(np.repeat(np.arange(len(sequences)), counts)),
        source_N=_join([start + item.action_position_N - 1 for start, item in zip(starts, sequences, strict=True)]),
        target_N=_join([sequence.token_ids_T[sequence.action_position_N] for sequence in sequences]),
        temperature_N=_spread([sequence.temperature for sequence in sequences], counts),
        coefficient_N=_spread(coefficients, counts),
        advantage_N=_join([sequence.advantage_N for sequence in sequences]),
        behavior_logp_N=_join([sequence.behavior_logp_N for sequence in sequences]),
        proximal_logp_N=_join([sequence.proximal_logp_N for sequence in sequences]),
    )


def _read(path: Path, *, required: Sequence[str]) -> pa.Table:
    optional = ["behavior_logprobs", "advantages", "update"]
    names = pq.read_schema(path).names
    missing = [name for name in required if name not in names]
    _require(not missing, f"{path.name}: no column {', '.join(missing)}")
    return pq.read_table(path, columns=[*required, *(name for name in optional if name in names)])


def _lists(table: pa.Table, name: str, dtype: type) -> list[npt.NDArray]:
    """One array a row; an absent column or a null list is empty, a null element NaN."""
    if name not in table.column_names:
        return [np.empty(0, dtype)] * table.num_rows
    rows = []
    for chunk in table.column(name).chunks:
        values = chunk.flatten().to_numpy(zero_copy_only=False).astype(dtype)
        length_S = chunk.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        rows.extend(np.split(values, np.cumsum(length_S)[:-1].astype(np.int64)) if len(chunk) else [])
    return rows


def _pick(values: Floats, position_N: Integers, length: int, at: str) -> Floats:
    if not len(values):
        return values
    _require(len(values) == length, f"{at} has {len(values)} values for {length} tokens")
    picked = values[position_N]
    _require(bool(np.isfinite(picked).all()), f"{at} is not finite at an action token")
    return picked


def _join(parts: Sequence[npt.NDArray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts))


def _spread(values: Sequence[float], counts: Sequence[int]) -> Tensor:
    return torch.from_numpy(np.repeat(np.asarray(values, np.float32), counts))


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise TrainerError("BATCH_INVALID", message)
