"""Beliefs: a KV cache cut back at each boundary gives what full forwards give."""

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import VOCABULARY

from exp_trainer import beliefs
from exp_trainer.beliefs import BeliefQuery, measure_batch, measure_beliefs, read_queries
from exp_trainer.errors import TrainerError
from exp_trainer.model import prompt_logprobs
from exp_trainer.policy import Policy
from exp_trainer.progress import Progress
from exp_trainer.server import Trainer

rng = np.random.default_rng(11)
TRAJECTORY = rng.integers(0, VOCABULARY, 50)
SUFFIX = rng.integers(0, VOCABULARY, 9)
MASK = np.array([0, 0, 0, 1, 1, 1, 0, 0, 0], np.bool_)
BOUNDARIES = [1, 7, 8, 31, 50]


def query(**changes: Any) -> BeliefQuery:
    return BeliefQuery(
        **{
            "sequence_id": "t#0",
            "token_ids_T": TRAJECTORY,
            "boundary_K": BOUNDARIES,
            "suffix_ids_R": SUFFIX,
            "suffix_mask_R": MASK,
            **changes,
        }
    )


def by_full_forward(policy: Policy, context: Sequence[int], temperature: float) -> float:
    """Log-softmax of whole logits at every token, as an engine's prompt logprobs are."""
    token_ids_T = torch.tensor([*context, *SUFFIX])
    with torch.no_grad():
        logits_TV = policy.model(input_ids=token_ids_T[None]).logits[0].float() / temperature
    logp_T = logits_TV.log_softmax(-1)[:-1].gather(-1, token_ids_T[1:, None])[:, 0]
    return logp_T[len(context) - 1 :][torch.from_numpy(MASK)].mean().item()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [8192, 16, 1])
def test_beliefs_by_slices_of_the_cache_equal_those_by_full_forwards(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, temperature: float, chunk: int
) -> None:
    monkeypatch.setattr(beliefs, "CHUNK_TOKENS", chunk)
    found = measure_beliefs(policy, query(), temperature, Progress())
    expected = [by_full_forward(policy, TRAJECTORY[:boundary].tolist(), temperature) for boundary in BOUNDARIES]
    assert found == pytest.approx(expected, abs=1e-5)
    assert len(set(np.round(found, 4))) == len(BOUNDARIES)  # they differ, so an equal answer everywhere would not do


def test_they_equal_prompt_logprobs_of_context_and_suffix_at_temperature_1(policy: Policy) -> None:
    found = measure_beliefs(policy, query(), 1.0, Progress())
    for boundary, belief in zip(BOUNDARIES, found, strict=True):
        logprobs = prompt_logprobs(policy.model, [*TRAJECTORY[:boundary].tolist(), *SUFFIX.tolist()])
        marked = np.asarray(logprobs[boundary - 1 :])[MASK]
        assert belief == pytest.approx(marked.mean(), abs=1e-5)


def test_a_belief_by_hand() -> None:
    """A policy that says token i+1 after token i with probability 3/4 of four tokens, and the others alike."""

    class Successor:
        # Logits are these hidden states: the head is the identity.
        head_VH = torch.eye(4)

        def cached_hidden_states(self, token_ids_T: torch.Tensor, _cache: object) -> torch.Tensor:
            hidden_TH = torch.full((len(token_ids_T), 4), math.log(1 / 12))
            hidden_TH[torch.arange(len(token_ids_T)), (token_ids_T + 1) % 4] = math.log(3 / 4)
            return hidden_TH

    stand_in = SimpleNamespace(
        cached_hidden_states=Successor().cached_hidden_states,
        head_VH=torch.eye(4),
        device=torch.device("cpu"),
        gathered=lambda block: block(),
    )
    policy = cast(Policy, stand_in)
    asked = query(
        token_ids_T=np.array([0, 1, 2]),
        boundary_K=[2, 3],
        suffix_ids_R=np.array([2, 3, 1]),
        suffix_mask_R=np.array([True, True, False]),
    )
    # After 1 come 2 and 3: 3/4 each. After 2 comes 2 (1/12), then 3 (3/4).
    expected = [math.log(3 / 4), (math.log(1 / 12) + math.log(3 / 4)) / 2]
    assert measure_beliefs(policy, asked, 1.0, Progress()) == pytest.approx(expected, abs=1e-6)
    # At temperature 1/2 probabilities are squared: 9/16 against three times 1/144, so 27/28.
    assert measure_beliefs(policy, asked, 0.5, Progress())[0] == pytest.approx(math.log(27 / 28), abs=1e-6)


def write(path: Path, **changes: Any) -> Path:
    row = {
        "sequence_id": "t#0",
        "token_ids": TRAJECTORY.tolist(),
        "boundaries": BOUNDARIES,
        "suffix_ids": SUFFIX.tolist(),
        "suffix_mask": MASK.astype(int).tolist(),
        **changes,
    }
    pq.write_table(pa.Table.from_pylist([row]), path)
    return path


def test_the_method_of_the_wire_answers_with_one_value_a_boundary(policy: Policy, tmp_path: Path) -> None:
    out = tmp_path / "beliefs.parquet"
    batch = write(tmp_path / "batch.parquet")
    answer = measure_batch(policy, {"batch": str(batch), "out": str(out), "temperature": 0.7}, Progress())
    assert answer == {"sequences": 1, "beliefs": len(BOUNDARIES)}
    [row] = pq.read_table(out).to_pylist()
    assert row == {"sequence_id": "t#0", "beliefs": measure_beliefs(policy, query(), 0.7, Progress())}


def test_the_trainer_offers_it_once_a_stage_is_open(base_dir: Path, tmp_path: Path) -> None:
    trainer = Trainer(Progress())
    params = {"batch": str(write(tmp_path / "batch.parquet")), "out": str(tmp_path / "out.parquet"), "temperature": 1.0}
    with pytest.raises(TrainerError, match="no stage is open"):
        trainer.call("beliefs", params)
    optimizer = {"learning_rate": 1e-3}
    adapter = {"lora_rank": 2}
    stage = {"stage_key": "k", "base_dir": str(base_dir), "adapter": adapter, "optimizer": optimizer, "seed": 0}
    trainer.call("open", {**stage, "dtype": "float32"})
    assert trainer.call("beliefs", params) == {"sequences": 1, "beliefs": len(BOUNDARIES)}
    with pytest.raises(TrainerError, match="temperature must be above 0"):
        trainer.call("beliefs", {**params, "temperature": 0.0})


def test_no_gradient_and_no_parameter_is_touched(policy: Policy) -> None:
    before = {name: parameter.detach().clone() for name, parameter in policy.parameters.items()}
    measure_beliefs(policy, query(), 1.0, Progress())
    assert all(parameter.grad is None for parameter in policy.parameters.values())
    assert all(torch.equal(before[name], parameter) for name, parameter in policy.parameters.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boundaries": [0, 4]}, "boundaries rise, from 1 to 50"),
        ({"boundaries": [4, 51]}, "boundaries rise, from 1 to 50"),
        ({"boundaries": [8, 7]}, "boundaries rise, from 1 to 50"),
        ({"suffix_mask": [0] * 9}, "no token of the suffix belongs"),
        ({"suffix_mask": [1]}, "1 mask values for a suffix of 9"),
        ({"suffix_ids": [VOCABULARY] * 9}, "outside the vocabulary"),
    ],
)
def test_a_bad_batch_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        read_queries(write(tmp_path / "batch.parquet", **changes), VOCABULARY)
