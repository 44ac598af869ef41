"""Write a tiny random-weight policy that the trainer can train and vLLM can serve.

`python tests/tiny_policy.py --tokenizer DIR --out DIR [--shape qwen3|llama] [--seed 0]`
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

# Head size 32 is the smallest that vLLM's CPU attention takes.
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "initializer_range": 0.2,
}


def tiny_model(shape: str, vocab_size: int, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A random model of one of the two shapes, fp32."""
    torch.manual_seed(seed)
    settings = {**SHAPE, "vocab_size": vocab_size, **overrides}
    model = Qwen3ForCausalLM(Qwen3Config(**settings)) if shape == "qwen3" else LlamaForCausalLM(LlamaConfig(**settings))
    return model.float().eval()


def write_policy(tokenizer: Path, out: Path, shape: str, seed: int) -> None:
    """Weights, config, and the tokenizer's files with its special tokens named in the config."""
    out.mkdir(parents=True, exist_ok=True)
    vocabulary = json.loads((tokenizer / "tokenizer.json").read_text())
    size = 1 + max([*vocabulary["model"]["vocab"].values(), *(token["id"] for token in vocabulary["added_tokens"])])
    special = _special_tokens(tokenizer)
    model = tiny_model(shape, -(-size // 64) * 64, seed, **special)
    model.generation_config.update(**special)
    model.save_pretrained(out)
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "vocab.json",
        "merges.txt",
        "added_tokens.json",
    ):
        if (tokenizer / name).exists():
            shutil.copyfile(tokenizer / name, out / name)


def _special_tokens(tokenizer: Path) -> dict[str, Any]:
    config = tokenizer / "config.json"
    found = json.loads(config.read_text()) if config.exists() else {}
    return {
        name: found[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id") if found.get(name) is not None
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shape", choices=["qwen3", "llama"], default="qwen3")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_policy(arguments.tokenizer, arguments.out, arguments.shape, arguments.seed)
