"""Tensors into one safetensors file, one at a time.

`safetensors.torch.save_file` wants all of them in memory at once: for fp32 weights and their moments, spread over
many GPUs, a host would hold the model three times. The bytes are those it writes.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .sharding import whole_tensor

# In the order in which they lie in a file: wide types first, so that every tensor is aligned.
NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def write_tensors(path: Path | None, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write the tensors whole, gathered from all ranks; with no path, this rank lends its shards and writes nothing.

    Every rank calls this with the same names. Tensors are fp32, bf16 or fp16.
    """
    order = list(NAMES)
    ordered = sorted(tensors.items(), key=lambda item: (order.index(item[1].dtype), item[0]))
    if path is None:
        for _, tensor in ordered:
            whole_tensor(tensor)
        return
    with path.open("wb") as file:
        header = _header(ordered, metadata)
        file.write(len(header).to_bytes(8, "little") + header)
        for _, tensor in ordered:
            whole = whole_tensor(tensor).detach().cpu().contiguous()
            whole.flatten().view(torch.uint8).numpy().tofile(file)


def _header(ordered: list[tuple[str, Tensor]], metadata: Mapping[str, str] | None) -> bytes:
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return text.ljust(-(-len(text) // 8) * 8)
