"""Tokens a second, MFU and peak memory of one optimizer step at packed 32k and 64k contexts, on one CUDA GPU.

`.exp/venv/bin/python bench/trainer/packed_gpu.py [--lengths 32768 65536] [--sequences 1 8] [--full] [--out FILE]`

A random policy of Qwen3-4B's shape, LoRA of rank 32 unless `--full`, bf16, activation checkpointing. `--sequences`
cuts the context into as many equal trajectories of one row. Refused without a GPU: a CPU's figures would be read as a
GPU's. Not run yet anywhere: it was written where there is no GPU, and what it says of limits is arithmetic.

MFU counts 6 FLOP a parameter and token for a full step and 4 for LoRA (no gradient of frozen weights) plus
attention's 12·L·heads·head_dim·T²/2 for each sequence, and nothing for what checkpointing computes twice.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "trainer"))

# Qwen/Qwen3-4B's config.json.
SHAPE: dict[str, Any] = {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
    "max_position_embeddings": 131_072,
    "rope_theta": 1_000_000,
}
# Dense bf16, as the vendor states them: FLOP a second.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12}
WARM_UP, MEASURED = 1, 3


def make_policy(full: bool) -> Any:
    """Random weights made on the GPU itself."""
    from exp_trainer.attention import PACKED_ATTENTION
    from exp_trainer.policy import AdapterSpec, Policy
    from transformers import Qwen3Config, Qwen3ForCausalLM

    dtype = torch.float32 if full else torch.bfloat16  # full training keeps fp32 masters
    torch.manual_seed(0)
    with torch.device("cuda"):
        config = Qwen3Config(**SHAPE, dtype=dtype, attn_implementation=PACKED_ATTENTION)
        model = Qwen3ForCausalLM(config).to(dtype).eval()
    adapter = None if full else AdapterSpec(lora_rank=32, lora_alpha=64)
    return Policy(model, adapter, dtype=torch.bfloat16, seed=0)


def make_sequences(length: int, count: int) -> list[Any]:
    """Trajectories of equal length, a third of each observations."""
    from exp_trainer.data import NO_FLOATS, TrainingSequence

    rng = np.random.default_rng(0)
    sequences = []
    for number in range(count):
        tokens = rng.integers(0, SHAPE["vocab_size"], length // count)
        position_N = np.flatnonzero(np.arange(len(tokens)) % 3 > 0)
        behavior_N = np.full(len(position_N), -np.log(SHAPE["vocab_size"]), np.float32)
        advantage_N = rng.normal(size=len(position_N)).astype(np.float32)
        sequences.append(
            TrainingSequence(f"{number}", tokens, position_N, behavior_N, NO_FLOATS, advantage_N, 1.0, 1.0)
        )
    return sequences


def flops(length: int, count: int, parameters: int, full: bool) -> float:
    """Of one step, by the rule in the docstring of this file."""
    attention = 12 * SHAPE["num_hidden_layers"] * SHAPE["num_attention_heads"] * SHAPE["head_dim"]
    return (6 if full else 4) * parameters * length + attention * count * (length / count) ** 2 / 2


def measure(policy: Any, length: int, count: int, full: bool, peak: float | None) -> dict[str, Any]:
    """Seconds of a step, the best of a few, and what follows from them."""
    from exp_trainer.loss import parse_loss_spec
    from exp_trainer.optimizer import OptimizerSpec, build_optimizer
    from exp_trainer.progress import Progress
    from exp_trainer.step import train_step

    spec = parse_loss_spec({"kind": "policy_gradient", "clip": {"low": 0.2, "high": 0.28}})
    optimizer = build_optimizer(policy.parameters, OptimizerSpec(1e-6))
    sequences = make_sequences(length, count)
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(WARM_UP + MEASURED):
        torch.cuda.synchronize()
        started = time.perf_counter()
        train_step(
            policy,
            optimizer,
            sequences,
            spec,
            learning_rate=1e-6,
            max_grad_norm=1.0,
            micro_batch_tokens=length,
            checkpoint_activations=True,
            progress=Progress(),
        )
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    best = min(seconds[WARM_UP:])
    parameters = sum(item.numel() for name, item in policy.model.named_parameters() if ".lora_" not in name)
    return {
        "length": length,
        "sequences": count,
        "seconds": best,
        "tokens_per_second": length / best,
        "mfu": None if peak is None else flops(length, count, parameters, full) / best / peak,
        "peak_bytes": torch.cuda.max_memory_allocated(),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[32_768, 65_536])
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--full", action="store_true", help="train all weights: 16 bytes a parameter")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "packed_gpu.py: no CUDA GPU is visible here; its figures can only come from one\n")
    device = torch.cuda.get_device_name()
    peak = next((value for name, value in PEAK_FLOPS.items() if name in device), None)
    policy = make_policy(arguments.full)
    rows = [
        measure(policy, length, count, arguments.full, peak)
        for length in arguments.lengths
        for count in arguments.sequences
    ]
    result = {
        "benchmark": "packed_gpu",
        "device": device,
        "torch": torch.__version__,
        "full": arguments.full,
        "rows": rows,
    }
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print("| context | sequences | s a step | tokens/s | MFU | peak GiB |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in rows:
        mfu = "unknown" if row["mfu"] is None else f"{row['mfu']:.0%}"
        print(
            f"| {row['length']} | {row['sequences']} | {row['seconds']:.2f} | {row['tokens_per_second']:.0f} | "
            f"{mfu} | {row['peak_bytes'] / 2**30:.1f} |"
        )


if __name__ == "__main__":
    main()
