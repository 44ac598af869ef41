"""The file format, against the library that defines it."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from exp_trainer.tensor_file import write_tensors


def test_streamed_bytes_are_those_of_safetensors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = {
        "step/b": torch.tensor(3.0),
        "model.z": torch.randn(3, 5),
        "model.a": torch.randn(7).to(torch.bfloat16),
        "model.layers.10.ä": torch.randn(2, 2).to(torch.bfloat16),
        "model.layers.9.b": torch.randn(4, 2).T,
        "half": torch.randn(3).half(),
    }
    for metadata in (None, {"format": "pt"}, {"lora": '{"lora_alpha": 8.0}'}):
        write_tensors(tmp_path / "ours", tensors, metadata)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "theirs", metadata)
        assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert torch.equal(load_file(tmp_path / "ours")["model.layers.9.b"], tensors["model.layers.9.b"])
