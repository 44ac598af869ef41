"""Steps, their order and repetition, learning, resume."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from conftest import make_rows, write_batch

from exp_trainer.errors import TrainerError
from exp_trainer.optimizer import OptimizerSpec, learning_rate_at
from exp_trainer.progress import Progress
from exp_trainer.stage import Stage


def open_stage(base_dir: Path, **params: object) -> Stage:
    return Stage(
        {
            "stage_key": "k",
            "base_dir": str(base_dir),
            "adapter": {"lora_rank": 4},
            "optimizer": {"learning_rate": 0.01},
            "dtype": "float32",
            "threads": 1,
            "deterministic": True,
            "seed": 1,
            **params,
        },
        Progress(),
    )


def take(opened: Stage, batch: Path, step: int, kind: str = "cross_entropy") -> dict:
    return opened.train({"step_id": f"id-{step}", "step": step, "batch": str(batch), "loss": {"kind": kind}})


@pytest.fixture
def batch(tmp_path: Path) -> Path:
    return write_batch(tmp_path / "batch.parquet", make_rows(4))


def weights(opened: Stage) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in opened._policy.parameters.values()])


@pytest.mark.parametrize("adapter", [{"lora_rank": 4}, None], ids=["lora", "full"])
def test_the_loss_of_a_repeated_batch_falls(base_dir: Path, batch: Path, adapter: dict | None) -> None:
    opened = open_stage(base_dir, adapter=adapter)
    losses = [take(opened, batch, step)["metrics"]["loss"] for step in range(1, 13)]
    assert losses[-1] < 0.7 * losses[0]


def test_policy_gradient_raises_what_has_a_positive_advantage(base_dir: Path, tmp_path: Path) -> None:
    rows = make_rows(4, temperature=1.0, weight=1.0)
    for row in rows:
        row["advantages"] = [1.0 if row["sequence_id"] in ("s0", "s1") else -1.0] * len(row["mask"])
    batch = write_batch(tmp_path / "pg.parquet", rows)
    good, bad = (
        write_batch(tmp_path / f"{name}.parquet", part) for name, part in (("good", rows[:2]), ("bad", rows[2:]))
    )
    opened = open_stage(base_dir)
    still = {"optimizer": {"learning_rate": 0.0}}
    losses = [take(open_stage(base_dir, **still), part, 1)["metrics"]["loss"] for part in (good, bad)]
    for step in range(1, 5):
        take(opened, batch, step, kind="policy_gradient")
    opened._spec = OptimizerSpec(learning_rate=0.0)
    after = [take(opened, good, 5)["metrics"]["loss"], take(opened, bad, 6)["metrics"]["loss"]]
    assert after[0] < losses[0]
    assert after[1] > losses[1]


def test_a_repeated_step_id_is_answered_and_changes_nothing(base_dir: Path, batch: Path) -> None:
    opened = open_stage(base_dir)
    first = take(opened, batch, 1)
    before = weights(opened).clone()
    again = take(opened, batch, 1)
    assert again == {**first, "repeated": True}
    assert torch.equal(weights(opened), before)
    assert opened.step == 1


@pytest.mark.parametrize("step", [0, 2, 5])
def test_a_step_out_of_order_is_refused(base_dir: Path, batch: Path, step: int) -> None:
    with pytest.raises(TrainerError) as caught:
        take(open_stage(base_dir), batch, step)
    assert caught.value.code == "STEP_ORDER"


def test_a_failed_step_leaves_the_weights_and_can_be_taken_again(base_dir: Path, batch: Path, tmp_path: Path) -> None:
    opened, untouched = open_stage(base_dir), open_stage(base_dir)
    rows = make_rows(2)
    rows[1]["token_ids"][3] = 5000
    with pytest.raises(TrainerError, match="outside the vocabulary"):
        take(opened, write_batch(tmp_path / "bad.parquet", rows), 1)
    assert torch.equal(weights(opened), weights(untouched))
    for stage in (opened, untouched):
        take(stage, batch, 1)
    assert torch.equal(weights(opened), weights(untouched))


@pytest.mark.parametrize(
    "adapter", [{"lora_rank": 4}, {"lora_rank": 4, "lora_dropout": 0.2}, None], ids=["lora", "dropout", "full"]
)
def test_resuming_and_replaying_gives_the_same_bits(base_dir: Path, tmp_path: Path, adapter: dict | None) -> None:
    batches = [write_batch(tmp_path / f"{i}.parquet", make_rows(3, seed=i)) for i in range(6)]
    schedule = {"learning_rate": 0.01, "schedule": "cosine", "warmup": 0.3, "total_steps": 6, "weight_decay": 0.01}
    # A spec's whole section arrives, with what was decided about batches.
    schedule |= {"batch": 3, "epochs": 2}
    settings = {"adapter": adapter, "optimizer": schedule}
    undisturbed = open_stage(base_dir, **settings)
    killed = open_stage(base_dir, **settings)
    for step in range(1, 7):
        take(undisturbed, batches[step - 1], step, "policy_gradient")
    for step in range(1, 5):
        take(killed, batches[step - 1], step, "policy_gradient")
        if step == 3:
            killed.save({"dir": str(tmp_path / "checkpoint")})
    del killed  # step 4 was taken after the checkpoint and is lost with the process
    resumed = open_stage(base_dir, **settings, resume_dir=str(tmp_path / "checkpoint"))
    assert resumed.describe()["step"] == 3
    assert take(resumed, batches[0], 1)["repeated"]
    for step in range(4, 7):
        take(resumed, batches[step - 1], step, "policy_gradient")
    assert torch.equal(weights(resumed), weights(undisturbed))


def test_a_partial_checkpoint_is_never_seen(
    base_dir: Path, batch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_stage(base_dir)
    take(opened, batch, 1)
    opened.save({"dir": str(tmp_path / "checkpoint")})
    take(opened, batch, 2)
    monkeypatch.setattr("exp_trainer.checkpoint.json.dumps", lambda *_a, **_k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        opened.save({"dir": str(tmp_path / "checkpoint")})
    monkeypatch.undo()
    assert open_stage(base_dir, resume_dir=str(tmp_path / "checkpoint")).step == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["batch.parquet", "checkpoint"]


def test_resuming_another_stages_checkpoint_is_refused(base_dir: Path, batch: Path, tmp_path: Path) -> None:
    opened = open_stage(base_dir)
    take(opened, batch, 1)
    opened.save({"dir": str(tmp_path / "c")})
    for change in ({"stage_key": "other"}, {"adapter": {"lora_rank": 8}}):
        with pytest.raises(TrainerError) as caught:
            open_stage(base_dir, **change, resume_dir=str(tmp_path / "c"))
        assert caught.value.code == "CHECKPOINT_MISMATCH"


def test_the_fresh_adapter_depends_on_the_seed_alone(base_dir: Path) -> None:
    one, same, other = (
        open_stage(base_dir, seed=seed, dtype=dtype)
        for seed, dtype in ((1, "float32"), (1, "bfloat16"), (2, "float32"))
    )
    assert torch.equal(weights(one), weights(same))
    assert not torch.equal(weights(one), weights(other))


def test_the_schedule_by_hand() -> None:
    cosine = OptimizerSpec(1.0, schedule="cosine", warmup=0.2, total_steps=10)
    assert [round(learning_rate_at(step, cosine), 4) for step in (1, 2, 3, 7, 10)] == [0.5, 1.0, 1.0, 0.5, 0.0381]
    linear = OptimizerSpec(1.0, schedule="linear", warmup=2, total_steps=4)
    assert [learning_rate_at(step, linear) for step in (1, 2, 3, 4)] == [0.5, 1.0, 1.0, 0.5]
    assert learning_rate_at(1000, OptimizerSpec(1e-6)) == 1e-6


def test_dropout_acts_in_training_and_not_in_scoring(base_dir: Path, batch: Path, tmp_path: Path) -> None:
    dropping = open_stage(base_dir, adapter={"lora_rank": 4, "lora_dropout": 0.5})
    plain = open_stage(base_dir, adapter={"lora_rank": 4})
    for opened in (dropping, plain):
        with torch.no_grad():
            for name, parameter in opened._policy.parameters.items():
                parameter.fill_(0.02 if ".lora_B." in name else 0.01)
        opened.score({"batch": str(batch), "out": str(tmp_path / f"{opened is plain}"), "temperature": 1.0})
    scores = [pq.read_table(tmp_path / name)["logprobs"].to_pylist()[0][1:] for name in ("True", "False")]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)
    losses = [take(opened, batch, 1)["metrics"]["loss"] for opened in (dropping, plain)]
    assert losses[0] != losses[1]


PG = {"kind": "policy_gradient", "clip": {"low": 0.2, "high": 0.2}, "importance": {"level": "token", "truncate": 2.0}}


def take_updates(opened: Stage, batch: Path, step: int, **loss: object) -> dict:
    return opened.train({"step_id": f"id-{step}", "step": step, "batch": str(batch), "loss": {**PG, **loss}})


def updates_of(rows: list[dict], per_update: int = 2) -> list[dict]:
    return [{**row, "update": index // per_update} for index, row in enumerate(rows)]


def test_a_batch_whose_last_update_cannot_be_taken_changes_nothing(base_dir: Path, tmp_path: Path) -> None:
    rows = updates_of(make_rows(4))
    for row in rows[2:]:
        row["weight"] = 0.0
    opened, untouched = open_stage(base_dir), open_stage(base_dir)
    with pytest.raises(TrainerError, match="no action token"):
        take_updates(opened, write_batch(tmp_path / "bad.parquet", rows), 1)
    assert torch.equal(weights(opened), weights(untouched))
    assert not opened.half_changed


def test_a_failure_between_updates_is_told_apart(base_dir: Path, tmp_path: Path) -> None:
    """An advantage that overflows the gradient of the second update: the first has changed the weights by then."""
    rows = updates_of(make_rows(4))
    rows[3]["advantages"] = [-3e38] * len(rows[3]["mask"])
    rows[3]["behavior_logprobs"] = [-20.0] * len(rows[3]["mask"])
    opened, untouched = open_stage(base_dir), open_stage(base_dir)
    batch = write_batch(tmp_path / "bad.parquet", rows)
    with pytest.raises(TrainerError, match="update 2 of 2 failed after 1") as caught:
        take_updates(opened, batch, 1, importance=None)
    assert caught.value.code == "HALF_STEP"
    assert opened.half_changed
    assert not torch.equal(weights(opened), weights(untouched))


@pytest.mark.parametrize("adapter", [{"lora_rank": 4}, None], ids=["lora", "full"])
def test_the_kl_term_is_measured_to_the_weights_asked_for(base_dir: Path, tmp_path: Path, adapter: dict | None) -> None:
    """To its own start a fresh stage has a KL of zero; to other weights it has the KL that those weights give."""
    batch = write_batch(tmp_path / "b.parquet", make_rows(3))
    other = open_stage(base_dir, adapter=adapter, optimizer={"learning_rate": 1e-3})
    take(other, batch, 1)
    other.save({"dir": str(tmp_path / "other")})
    link = str(tmp_path / "other" / ("model.safetensors" if adapter is None else "adapter.safetensors"))
    kl = {"coefficient": 0.1, "estimator": "k1"}

    def measured(**params: object) -> float:
        return take_updates(open_stage(base_dir, adapter=adapter, **params), batch, 1, kl=kl)["metrics"]["kl_reference"]

    assert measured() == 0
    assert measured(parents=[link]) == pytest.approx(0, abs=1e-7)
    assert measured(parents=[link], reference_parents=[link]) == pytest.approx(0, abs=1e-7)
    away, back = measured(reference_parents=[link]), measured(parents=[link], reference_parents=[])
    assert abs(away) > 1e-3
    assert back == pytest.approx(-away, rel=1e-3)  # k1 is a difference of log-probabilities


@pytest.mark.parametrize("adapter", [{"lora_rank": 4}, None], ids=["lora", "full"])
def test_a_stage_of_several_updates_a_step_resumes_bit_for_bit(
    base_dir: Path, tmp_path: Path, adapter: dict | None
) -> None:
    kl = {"coefficient": 0.1, "estimator": "k3"}
    batches = [write_batch(tmp_path / f"{step}.parquet", updates_of(make_rows(4, seed=step))) for step in (1, 2, 3)]
    through = open_stage(base_dir, adapter=adapter)
    for step, batch in enumerate(batches, 1):
        take_updates(through, batch, step, kl=kl)
        if step == 1:
            through.save({"dir": str(tmp_path / "saved")})
    resumed = open_stage(base_dir, adapter=adapter, resume_dir=str(tmp_path / "saved"))
    assert resumed.step == 1
    for step in (2, 3):
        take_updates(resumed, batches[step - 1], step, kl=kl)
    assert torch.equal(weights(resumed), weights(through))
