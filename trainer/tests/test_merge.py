"""Merging: the same function as the adapter, the same bytes from every way to it."""

import json
from pathlib import Path

import pytest
import torch
from conftest import make_policy, make_rows, write_batch
from safetensors.torch import load_file, save_file

from exp_trainer.checkpoint import save_weights
from exp_trainer.errors import TrainerError
from exp_trainer.merge import main, merge
from exp_trainer.model import load_model
from exp_trainer.progress import Progress
from exp_trainer.stage import Stage


def stage(base_dir: Path, **params: object) -> Stage:
    return Stage(
        {
            "stage_key": "k",
            "base_dir": str(base_dir),
            "adapter": {"lora_rank": 4},
            "optimizer": {"learning_rate": 0.05},
            "dtype": "float32",
            "threads": 1,
            "deterministic": True,
            "seed": 1,
            **params,
        },
        Progress(),
    )


def step(opened: Stage, batch: Path, number: int = 1) -> None:
    opened.train({"step_id": f"{number}", "step": number, "batch": str(batch), "loss": {"kind": "cross_entropy"}})


def test_merged_weights_give_the_adapters_logits(base_dir: Path, tmp_path: Path) -> None:
    policy = make_policy(base_dir)
    save_weights(tmp_path / "a.safetensors", policy)
    merge(base_dir, [tmp_path / "a.safetensors"], tmp_path / "merged", "float32")
    token_ids_BT = torch.arange(40)[None]
    with torch.no_grad():
        expected = policy.model(token_ids_BT).logits
        with policy.reference():
            base = policy.model(token_ids_BT).logits
        merged = load_model(tmp_path / "merged", torch.float32)(token_ids_BT).logits
    torch.testing.assert_close(merged, expected, rtol=1e-3, atol=1e-4)
    assert (expected - base).abs().max() > 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_command_line_gives_the_bytes_of_export_over_a_chain(
    base_dir: Path, tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = write_batch(tmp_path / "b.parquet", make_rows(3))
    first = stage(base_dir)
    step(first, batch)
    first.save({"dir": str(tmp_path / "one")})
    parent = str(tmp_path / "one" / "adapter.safetensors")
    second = stage(base_dir, parents=[parent], seed=2)
    step(second, batch)
    second.save({"dir": str(tmp_path / "two")})
    second.export({"dir": str(tmp_path / "exported"), "export_dtype": dtype})
    command = [
        "merge",
        "--base",
        str(base_dir),
        "--adapter",
        parent,
        "--adapter",
        str(tmp_path / "two" / "adapter.safetensors"),
    ]
    monkeypatch.setattr("sys.argv", [*command, "--out", str(tmp_path / "merged"), "--dtype", dtype])
    main()
    names = sorted(file.name for file in (tmp_path / "exported").iterdir())
    assert names == sorted(file.name for file in (tmp_path / "merged").iterdir())
    assert {"model.safetensors", "probe.json", "tokenizer.json", "chat_template.jinja"} <= set(names)
    for name in names:
        if name != "probe.json":
            assert (tmp_path / "exported" / name).read_bytes() == (tmp_path / "merged" / name).read_bytes(), name
    assert json.loads((tmp_path / "exported" / "config.json").read_text())["dtype"] == dtype


def test_a_stage_on_a_merged_parent_starts_exactly_there(base_dir: Path, tmp_path: Path) -> None:
    """Its first logits are the parent's, and its KL reference is the parent."""
    batch = write_batch(tmp_path / "b.parquet", make_rows(3))
    parent = stage(base_dir)
    step(parent, batch)
    parent.save({"dir": str(tmp_path / "one")})
    child = stage(base_dir, parents=[str(tmp_path / "one" / "adapter.safetensors")], seed=9)
    token_ids_BT = torch.arange(30)[None]
    with torch.no_grad():
        expected = parent._policy.model(token_ids_BT).logits
        torch.testing.assert_close(child._policy.model(token_ids_BT).logits, expected, rtol=1e-3, atol=1e-4)
        with child._policy.reference():
            torch.testing.assert_close(child._policy.model(token_ids_BT).logits, expected, rtol=1e-3, atol=1e-4)


def test_the_probe_holds_the_logprobs_of_the_served_weights(base_dir: Path, tmp_path: Path) -> None:
    merge(base_dir, [], tmp_path / "served", "bfloat16")
    probe = json.loads((tmp_path / "served" / "probe.json").read_text())
    model = load_model(tmp_path / "served", torch.float32)
    assert probe["token_ids"] == [(i * 7919 + 13) % model.config.vocab_size for i in range(48)]
    token_ids_T = torch.tensor(probe["token_ids"])
    with torch.no_grad():
        logits = model(token_ids_T[None]).logits[0, :-1]
    expected = torch.log_softmax(logits, -1).gather(-1, token_ids_T[1:, None]).squeeze(-1)
    assert probe["logprobs"][0] is None
    torch.testing.assert_close(torch.tensor(probe["logprobs"][1:]), expected, rtol=1e-4, atol=1e-5)


def test_with_no_adapter_and_the_bases_dtype_weights_are_linked(base_dir: Path, tmp_path: Path) -> None:
    merge(base_dir, [], tmp_path / "served", "float32")
    assert (tmp_path / "served" / "model.safetensors").stat().st_ino == (base_dir / "model.safetensors").stat().st_ino


def test_equal_adapters_are_equal_bytes(base_dir: Path, tmp_path: Path) -> None:
    for name in "ab":
        save_weights(tmp_path / name, make_policy(base_dir))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_full_weights_are_a_link_of_a_chain_too(base_dir: Path, tmp_path: Path) -> None:
    batch = write_batch(tmp_path / "b.parquet", make_rows(3))
    full = stage(base_dir, adapter=None, optimizer={"learning_rate": 1e-3})
    step(full, batch)
    full.save({"dir": str(tmp_path / "full")})
    full.export({"dir": str(tmp_path / "exported"), "export_dtype": "float32"})
    child = stage(base_dir, parents=[str(tmp_path / "full" / "model.safetensors")])
    weights = load_file(tmp_path / "exported" / "model.safetensors")
    assert torch.equal(
        weights["model.layers.0.mlp.up_proj.weight"], full._policy.parameters["model.layers.0.mlp.up_proj.weight"]
    )
    with torch.no_grad():
        logits = [opened._policy.model(torch.arange(20)[None]).logits for opened in (full, child)]
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-5)


def test_an_adapter_of_another_base_is_refused(base_dir: Path, tmp_path: Path) -> None:
    tensors = {f"base_model.model.model.layers.7.mlp.up_proj.lora_{half}.weight": torch.zeros(1, 1) for half in "AB"}
    save_file(tensors, tmp_path / "a", metadata={"lora": json.dumps({"lora_rank": 1, "lora_alpha": 2})})
    with pytest.raises(TrainerError) as caught:
        merge(base_dir, [tmp_path / "a"], tmp_path / "out", "float32")
    assert caught.value.code == "ADAPTER_MISMATCH"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
