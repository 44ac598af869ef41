"""Beliefs of the policy in a reference answer, before chosen turns of a trajectory.

The belief before a turn is the mean log-probability, in nats, of the reference answer's tokens when a fixed
pseudo-answer follows the context at that point (IGPO, arXiv:2510.14967). The trajectory is computed once,
in chunks, into a KV cache; at each boundary the cache stands exactly at the context, the pseudo-answer is tried on
it, and the cache is cut back. So a trajectory costs one forward and a few tokens a boundary, however many there are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import DynamicCache

from .errors import TrainerError
from .logprobs import token_logprobs
from .policy import Policy
from .progress import Progress

# Tokens computed at once: bounds the activations of a long trajectory, not the cache it leaves.
CHUNK_TOKENS = 8192


@dataclass(frozen=True)
class BeliefQuery:
    """One sequence: where its turns begin, and what is tried before each."""

    sequence_id: str
    token_ids_T: npt.NDArray[np.int64]
    # Ascending, from 1 to the number of tokens: how many tokens stand before the turn.
    boundary_K: list[int]
    suffix_ids_R: npt.NDArray[np.int64]
    # True on tokens of the reference answer; never on none.
    suffix_mask_R: npt.NDArray[np.bool_]


def measure_batch(policy: Policy, params: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """The wire's `beliefs`: {batch, out, temperature}, both Parquet files."""
    queries = read_queries(Path(params["batch"]), policy.head_VH.shape[0])
    temperature = float(params["temperature"])
    _require(temperature > 0, "temperature must be above 0")
    beliefs = _share_out(policy, queries, temperature, progress)
    if policy.mesh.ranks.rank == 0:
        write_beliefs(Path(params["out"]), queries, beliefs)
    return {"sequences": len(queries), "beliefs": sum(map(len, beliefs))}


def read_queries(path: Path, vocabulary: int) -> list[BeliefQuery]:
    """Read and check a batch of sequence_id, token_ids, boundaries, suffix_ids, suffix_mask."""
    names = ["sequence_id", "token_ids", "boundaries", "suffix_ids", "suffix_mask"]
    missing = set(names) - set(pq.read_schema(path).names)
    _require(not missing, f"{path.name}: no column {', '.join(sorted(missing))}")
    queries = []
    for row in pq.read_table(path, columns=names).to_pylist():
        at = f"{path.name}: {row['sequence_id']}"
        ids, suffix = (np.asarray(row[name], np.int64) for name in ("token_ids", "suffix_ids"))
        mask = np.asarray(row["suffix_mask"], np.bool_)
        boundaries = list(row["boundaries"])
        _require(len(mask) == len(suffix), f"{at}: {len(mask)} mask values for a suffix of {len(suffix)}")
        _require(bool(mask.any()), f"{at}: no token of the suffix belongs to the reference answer")
        _require(
            all(0 < b <= len(ids) for b in boundaries) and boundaries == sorted(set(boundaries)),
            f"{at}: boundaries rise, from 1 to {len(ids)}",
        )
        every = np.concatenate([ids, suffix])
        _require(
            0 <= every.min() <= every.max() < vocabulary, f"{at}: a token id is outside the vocabulary of {vocabulary}"
        )
        queries.append(BeliefQuery(row["sequence_id"], ids, boundaries, suffix, mask))
    return queries


def write_beliefs(path: Path, queries: Sequence[BeliefQuery], beliefs: Sequence[Sequence[float]]) -> None:
    """One row a sequence, one value a boundary."""
    table = pa.table(
        {
            "sequence_id": pa.array([query.sequence_id for query in queries], pa.string()),
            "beliefs": pa.array([list(values) for values in beliefs], pa.list_(pa.float64())),
        }
    )
    part = path.with_name(f".{path.name}.part")
    pq.write_table(table, part, compression="zstd")
    part.replace(path)


@torch.no_grad()
def _share_out(
    policy: Policy, queries: Sequence[BeliefQuery], temperature: float, progress: Progress
) -> list[list[float]]:
    """The beliefs of all queries; of several ranks, each measures some.

    They gather the weights together, so who is done goes on computing one token until the last is.
    """
    ranks = policy.mesh.ranks
    order = sorted(range(len(queries)), key=lambda index: -_forwards(queries[index]))
    shares = [order[rank :: ranks.size] for rank in range(ranks.size)]
    forwards = [sum(_forwards(queries[index]) for index in share) for share in shares]
    mine = shares[ranks.rank]
    found = {index: measure_beliefs(policy, queries[index], temperature, progress) for index in mine}
    for _ in range(max(forwards) - forwards[ranks.rank]):
        _extend(policy, torch.zeros(1, dtype=torch.int64), DynamicCache())
    found = policy.mesh.union(found)
    return [found[index] for index in range(len(queries))]


def _forwards(query: BeliefQuery) -> int:
    """How often the model is called for a query."""
    ends = [0, *(boundary - 1 for boundary in query.boundary_K)]
    chunks = (-(-(end - start) // CHUNK_TOKENS) for start, end in pairwise(ends))
    return sum(chunks) + len(query.boundary_K)


def _extend(policy: Policy, token_ids_T: torch.Tensor, cache: DynamicCache) -> None:
    policy.gathered(lambda: policy.cached_hidden_states(token_ids_T, cache))


@torch.no_grad()
def measure_beliefs(policy: Policy, query: BeliefQuery, temperature: float, progress: Progress) -> list[float]:
    """Mean log-probability of the reference answer at each boundary, logits divided by the temperature."""
    token_ids_T = torch.from_numpy(query.token_ids_T)
    cache = DynamicCache()
    computed = 0
    beliefs = []
    for boundary in query.boundary_K:
        # The last token of the context is left to the forward of the suffix: its hidden state predicts the first.
        while computed < boundary - 1:
            end = min(computed + CHUNK_TOKENS, boundary - 1)
            _extend(policy, token_ids_T[computed:end], cache)
            computed = end
            progress.tick()
        beliefs.append(_belief(policy, int(query.token_ids_T[boundary - 1]), query, cache, temperature))
        cache.crop(computed - cache.get_seq_length())  # negative: so many tokens are taken off the end
        progress.tick()
    return beliefs


def _belief(policy: Policy, last_id: int, query: BeliefQuery, cache: DynamicCache, temperature: float) -> float:
    """Forward [last context token, suffix] on the cached context; nothing after the answer's last token is computed."""
    length = int(np.flatnonzero(query.suffix_mask_R)[-1]) + 1
    suffix_ids_R = torch.from_numpy(query.suffix_ids_R[:length])
    marked_R = torch.from_numpy(query.suffix_mask_R[:length]).to(policy.device)
    target_N = suffix_ids_R.to(policy.device)[marked_R]
    temperature_N = torch.full((len(target_N),), temperature, device=policy.device)

    def answer_logprobs() -> torch.Tensor:
        hidden_RH = policy.cached_hidden_states(torch.cat([torch.tensor([last_id]), suffix_ids_R[:-1]]), cache)
        return token_logprobs(hidden_RH[marked_R], policy.head_VH, target_N, temperature_N)[0]

    return policy.gathered(answer_logprobs).double().mean().item()


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise TrainerError("BATCH_INVALID", message)
