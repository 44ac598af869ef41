"""Two real processes under torchrun, on gloo, against one."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import VOCABULARY, make_rows, write_batch
from safetensors.torch import load_file
from test_server import TRAINER, Client, open_params, step_params
from tiny_policy import tiny_model

from exp_trainer.data import plan_micro_batches
from exp_trainer.errors import TrainerError
from exp_trainer.ranks import Mesh, Ranks

ADAPTER = {"lora_rank": 4}
STEPS = 3


def start_group(path: Path, processes: int = 2, *arguments: str, gpus: str = "") -> subprocess.Popen:
    """torchrun with the server's rank 0 on the socket; on the CPU also where there are GPUs."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*torchrun, "-m", "exp_trainer.server", "--socket", str(path), *arguments]
    process = subprocess.Popen(
        command, cwd=TRAINER, env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": gpus}
    )
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def ranks_of(path: Path) -> list[int]:
    """Processes whose command line names the socket, without torchrun."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            continue
        if os.fsencode(path) in arguments and b"torch.distributed.run" not in arguments:
            found.append(int(entry.name))
    return sorted(found)


def wait_until(holds: Any, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.1)
    return holds()


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    path = tmp_path_factory.mktemp("one") / "t.sock"
    process = start_group(path, 1)
    yield Client(path)
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    path = tmp_path_factory.mktemp("two") / "t.sock"
    process = start_group(path)
    yield Client(path)
    process.kill()
    process.wait()
    assert wait_until(lambda: not ranks_of(path), 10), "ranks outlive torchrun"


def call(client: Client, method: str, params: dict[str, Any]) -> dict[str, Any]:
    reply = client.call(method, params)
    assert "result" in reply, reply
    return reply["result"]


def train(client: Client, folder: Path, base: Path, steps: range, **more: Any) -> list[dict[str, float]]:
    """Open, take the steps, and save in `folder`."""
    loss = more.pop("loss", {"kind": "policy_gradient", "clip": {"low": 0.2, "high": 0.3}})
    call(client, "open", open_params(base, optimizer={"learning_rate": 1e-4}, **more))
    metrics = []
    for step in steps:
        batch = folder.parent / f"batch-{step}.parquet"
        if not batch.exists():
            write_batch(batch, make_rows(7, seed=step))
        metrics.append(call(client, "step", {**step_params(batch, step), "loss": loss})["metrics"])
    call(client, "save", {"dir": str(folder)})
    return metrics


def far_apart(one: Path, other: Path, name: str) -> float:
    """Largest difference of any weight."""
    tensors, others = load_file(one / name), load_file(other / name)
    assert tensors.keys() == others.keys()
    return max((tensors[key] - others[key]).abs().max().item() for key in tensors)


KL = {
    "kind": "policy_gradient",
    "aggregation": "seq_mean_token_mean",
    "kl": {"coefficient": 0.1, "estimator": "k3"},
    "importance": {"level": "sequence", "truncate": 2.0},
    "entropy": 0.01,
}
CASES = {
    "lora": {"adapter": ADAPTER},
    "full": {"adapter": None},
    "lora_bf16": {"adapter": ADAPTER, "dtype": "bfloat16"},  # fp32 adapters in layers of a bf16 base
    "full_bf16": {"adapter": None, "dtype": "bfloat16"},
    "full_recomputed": {"adapter": None, "activation_checkpointing": True},
    "kl_to_the_start": {"adapter": ADAPTER, "loss": KL},
    "kl_to_another_model": {"adapter": None, "loss": KL, "reference_parents": []},
    "lora_across": {"adapter": ADAPTER, "context_parallel": 2},
    "full_across_recomputed": {"adapter": None, "context_parallel": 2, "activation_checkpointing": True},
    "kl_across": {"adapter": ADAPTER, "loss": KL, "context_parallel": 2},
}


@pytest.mark.parametrize(
    ("case", "tied"),
    [(case, True) for case in CASES.values()] + [(CASES["full"], False)],
    ids=[*CASES, "full_untied"],
)
def test_two_processes_train_what_one_trains(
    one: Client, two: Client, tmp_path: Path, case: dict[str, Any], tied: bool
) -> None:
    base = tmp_path / "base"
    tiny_model("qwen3", VOCABULARY, tie_word_embeddings=tied).save_pretrained(base)
    steps = range(1, STEPS + 1)
    alone = train(one, tmp_path / "alone", base, steps, **{**case, "context_parallel": 1})
    shared = train(two, tmp_path / "shared", base, steps, **case)
    name = "adapter.safetensors" if case["adapter"] else "model.safetensors"
    # In fp32, sums in another order; Adam magnifies what that does to the smallest gradients.
    assert far_apart(tmp_path / "alone", tmp_path / "shared", name) < 1e-6
    # Adam does not see a gradient that is too large by a factor; its moments do.
    ours, theirs = (load_file(tmp_path / folder / "optimizer.safetensors") for folder in ("alone", "shared"))
    for key in [key for key in ours if key.startswith("exp_avg/")]:
        torch.testing.assert_close(theirs[key], ours[key], rtol=0, atol=1e-4 * ours[key].abs().max().item())
    for ours, theirs in zip(alone, shared, strict=True):
        for metric in ours.keys() - {"seconds", "tokens_per_second", "peak_memory_bytes"}:
            assert theirs[metric] == pytest.approx(ours[metric], rel=1e-4, abs=1e-6), metric


def test_a_rank_recomputes_its_long_row_while_the_other_keeps_its_short_one(
    one: Client, two: Client, tmp_path: Path, base_dir: Path
) -> None:
    long = {"sequence_id": "long", "token_ids": [7, 9] * 1100, "mask": [0] + [1] * 2199, "temperature": 1.0}
    long |= {"weight": 1.0, "behavior_logprobs": [-4.0] * 2200, "advantages": [0.5] * 2200}
    write_batch(tmp_path / "batch-1.parquet", [*make_rows(2), long])
    for client, name in ((one, "one"), (two, "two")):
        train(client, tmp_path / name, base_dir, range(1, 2), adapter=None)
    assert far_apart(tmp_path / "one", tmp_path / "two", "model.safetensors") < 1e-6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_all_gpus_train_what_one_cpu_trains(one: Client, tmp_path: Path, base_dir: Path, case: dict[str, Any]) -> None:
    gpus = torch.cuda.device_count()
    process = start_group(tmp_path / "t.sock", gpus, gpus=",".join(map(str, range(gpus))))
    across = min(gpus, case.get("context_parallel", 1))
    steps = range(1, STEPS + 1)
    train(one, tmp_path / "cpu", base_dir, steps, **{**case, "context_parallel": 1})
    train(Client(tmp_path / "t.sock"), tmp_path / "gpus", base_dir, steps, **{**case, "context_parallel": across})
    process.kill()
    process.wait()
    name = "adapter.safetensors" if case["adapter"] else "model.safetensors"
    assert far_apart(tmp_path / "cpu", tmp_path / "gpus", name) < 1e-5


@pytest.mark.parametrize("adapter", [ADAPTER, None], ids=["lora", "full"])
@pytest.mark.parametrize("first", ["one", "two"])
def test_a_checkpoint_of_some_processes_resumes_on_another_number(
    one: Client, two: Client, tmp_path: Path, base_dir: Path, adapter: dict[str, Any] | None, first: str
) -> None:
    saver, resumer = (one, two) if first == "one" else (two, one)
    train(one, tmp_path / "undisturbed", base_dir, range(1, 5), adapter=adapter)
    train(saver, tmp_path / "saved", base_dir, range(1, 3), adapter=adapter)
    resume = {"adapter": adapter, "resume_dir": str(tmp_path / "saved")}
    train(resumer, tmp_path / "reopened", base_dir, range(0), **resume)
    train(resumer, tmp_path / "resumed", base_dir, range(3, 5), **resume)
    name = "adapter.safetensors" if adapter else "model.safetensors"
    for file in (name, "optimizer.safetensors"):
        assert (tmp_path / "reopened" / file).read_bytes() == (tmp_path / "saved" / file).read_bytes()
    assert far_apart(tmp_path / "resumed", tmp_path / "undisturbed", name) < 1e-6


def test_two_processes_score_and_export_as_one_does(one: Client, two: Client, tmp_path: Path, base_dir: Path) -> None:
    rows = [*make_rows(7), {**make_rows(1)[0], "sequence_id": "short", "token_ids": [3]}]
    batch = write_batch(tmp_path / "b.parquet", rows)
    scores = []
    for client, name in ((one, "one"), (two, "two")):
        train(client, tmp_path / name, base_dir, range(0), adapter=ADAPTER)
        out = tmp_path / f"{name}.parquet"
        params = {"batch": str(batch), "out": str(out), "temperature": 0.7, "micro_batch_tokens": 64}
        call(client, "score", params)
        call(client, "export", {"dir": str(tmp_path / f"{name}-served"), "export_dtype": "bfloat16"})
        scores.append(pq.read_table(out).to_pylist())
    for ours, theirs in zip(*scores, strict=True):
        assert ours["sequence_id"] == theirs["sequence_id"]
        assert theirs["logprobs"][1:] == pytest.approx(ours["logprobs"][1:], abs=1e-5)
    served = [tmp_path / f"{name}-served" / "model.safetensors" for name in ("one", "two")]
    assert served[0].read_bytes() == served[1].read_bytes()


def test_two_processes_believe_what_one_believes(one: Client, two: Client, tmp_path: Path, base_dir: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        {
            "sequence_id": f"s{index}",
            "token_ids": rng.integers(0, VOCABULARY, 40).tolist(),
            "boundaries": list(range(10, 10 + 3 * boundaries, 3)),
            "suffix_ids": rng.integers(0, VOCABULARY, 5).tolist(),
            "suffix_mask": [0, 0, 1, 1, 0],
        }
        for index, boundaries in enumerate((5, 1, 2, 0, 4))
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "queries.parquet")
    beliefs = []
    for client, name in ((one, "one"), (two, "two")):
        train(client, tmp_path / name, base_dir, range(0), adapter=ADAPTER)
        out = tmp_path / f"{name}.parquet"
        params = {"batch": str(tmp_path / "queries.parquet"), "out": str(out), "temperature": 0.7}
        assert call(client, "beliefs", params) == {"sequences": 5, "beliefs": 12}
        beliefs.append(pq.read_table(out).to_pylist())
    for ours, theirs in zip(*beliefs, strict=True):
        assert theirs["beliefs"] == pytest.approx(ours["beliefs"], abs=1e-5)


def test_a_failure_of_all_ranks_is_answered_and_the_group_goes_on(two: Client, tmp_path: Path, base_dir: Path) -> None:
    call(two, "open", open_params(base_dir))
    rows = make_rows(2)
    rows[1]["token_ids"][3] = 5000
    bad = write_batch(tmp_path / "bad.parquet", rows)
    assert two.call("step", step_params(bad, 1))["error"]["code"] == "BATCH_INVALID"
    good = write_batch(tmp_path / "good.parquet", make_rows(2))
    assert call(two, "step", step_params(good, 1))["step"] == 1


def test_a_failure_of_one_rank_reaches_the_answer_and_ends_the_group(tmp_path: Path, base_dir: Path) -> None:
    process = start_group(tmp_path / "t.sock")
    client = Client(tmp_path / "t.sock")
    call(client, "open", open_params(base_dir))
    (tmp_path / "file").write_text("")
    # Only rank 0 writes; the other waits for it to gather the first weight.
    error = client.call("save", {"dir": str(tmp_path / "file" / "checkpoint")})["error"]
    assert error["code"] == "IO"
    assert error["message"].startswith("rank 0 of 2: ")
    assert process.wait(60) != 0
    assert ranks_of(tmp_path / "t.sock") == []


@pytest.mark.parametrize("killed", ["a rank", "torchrun"])
def test_a_killed_process_ends_the_group_in_mid_step(tmp_path: Path, base_dir: Path, killed: str) -> None:
    process = start_group(tmp_path / "t.sock")
    client = Client(tmp_path / "t.sock")
    call(client, "open", open_params(base_dir))
    ranks = ranks_of(tmp_path / "t.sock")
    assert len(ranks) == 2
    client.send("step", step_params(write_batch(tmp_path / "b.parquet", make_rows(2000)), 1))
    time.sleep(1)
    assert ranks_of(tmp_path / "t.sock") == ranks
    pid = client_pid(tmp_path / "t.sock")
    started = time.monotonic()
    os.kill(process.pid if killed == "torchrun" else next(rank for rank in ranks if rank != pid), signal.SIGKILL)
    assert client._file.readline() == b""  # no answer: the connection ends
    assert wait_until(lambda: ranks_of(tmp_path / "t.sock") == [], 10)
    assert process.wait(10) != 0
    assert time.monotonic() - started < 10


def client_pid(path: Path) -> int:
    """Of rank 0, who serves."""
    return call(Client(path), "ping", {})["pid"]


def test_a_group_to_which_nobody_speaks_ends(tmp_path: Path) -> None:
    process = start_group(tmp_path / "t.sock", 2, "--idle-exit-seconds", "0.2")
    assert process.wait(60) != 0
    assert ranks_of(tmp_path / "t.sock") == []


def test_a_batch_of_one_row_is_cut_so_that_every_rank_has_work() -> None:
    mesh = Mesh(Ranks(0, 4, torch.device("cpu")), context_parallel=2)  # two groups
    lengths = [30, 20, 20, 10]
    rows = plan_micro_batches(lengths, mesh.row_tokens(lengths, 1000))
    assert sorted(sum(lengths[index] for index in row) for row in rows) == [40, 40]


def test_every_group_computes_equally_many_and_everything_counts_once() -> None:
    rows = [[index] for index in range(7)]
    shares = [Mesh(Ranks(rank, 3, torch.device("cpu"))).share(rows, lambda row: 10 - row[0]) for rank in range(3)]
    assert [len(share) for share in shares] == [3, 3, 3]
    assert sorted(row[0] for share in shares for row, counts in share if counts) == list(range(7))
    # Rounds hold neighbours in size.
    assert [[share[0][0][0] for share in shares], [share[1][0][0] for share in shares]] == [[0, 1, 2], [3, 4, 5]]


def test_processes_that_cannot_be_cut_into_groups_are_refused() -> None:
    with pytest.raises(TrainerError, match="3 processes cannot be cut into groups of 2"):
        Ranks(0, 3, torch.device("cpu")).mesh(2)
