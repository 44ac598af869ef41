"""P7: one GRPO optimizer step, ours against TRL's, on the same weights and the same 64 trajectories.

`npm run bench -- p7 [--rounds 5] [--hidden 256] [--layers 6] [--threads 1]`

Each side runs in a process of its own, so that peak memory is its own; the two take turns, one step each a round.
TRL's step is its `compute_loss` over micro-batches, backward, clipping and AdamW, at the micro-batch size that was
fastest for it in a trial of several, with trajectories sorted by length; ours is `train_step` with its defaults. Before
a time counts, loss and gradient of the two are compared.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT / "trainer"), str(ROOT / "trainer" / "tests"), str(Path(__file__).parent)]

VOCABULARY = 8192
PROMPT = 32
TRAJECTORIES = 64
CLIP = {"low": 0.2, "high": 0.28}
LEARNING_RATE = 1e-6
# TRL's documentation leaves the micro-batch to the user; the fastest of these is used.
PEER_MICRO_BATCHES = (2, 4, 8, 16)
TOLERANCE = 1e-5

Step = Callable[[], dict[str, float]]


def model_shape(hidden: int, layers: int) -> dict[str, Any]:
    """Qwen3 in small: grouped queries, tied embeddings, three-fold MLP."""
    return {
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 32,
        "num_key_value_heads": hidden // 64,
        "head_dim": 32,
        "initializer_range": 0.02,
    }


def make_attempts() -> list[dict[str, Any]]:
    """Lognormal lengths, a third of what follows the prompt observations, advantages equal over a trajectory."""
    rng = np.random.default_rng(0)
    attempts = []
    for length in np.clip(np.exp(rng.normal(5.0, 0.8, TRAJECTORIES)), 24, 2000).astype(int):
        sampled = np.ones(length, int)
        sampled[length // 3 : 2 * length // 3] = 0
        attempts.append(
            {
                "prompt": rng.integers(2, VOCABULARY, PROMPT).tolist(),
                "completion": rng.integers(2, VOCABULARY, length).tolist(),
                "sampled": sampled.tolist(),
                "old_logprobs": (-np.log(VOCABULARY) + rng.normal(0, 0.2, length)).tolist(),
                "advantages": [float(rng.normal())] * length,
            }
        )
    return attempts


def our_side(hidden: int, layers: int, folder: str) -> tuple[Step, Callable[[], tuple[float, torch.Tensor]]]:
    """`train_step` as a stage calls it, and loss and gradient alone."""
    from exp_trainer.attention import PACKED_ATTENTION
    from exp_trainer.data import TrainingSequence
    from exp_trainer.loss import parse_loss_spec
    from exp_trainer.optimizer import OptimizerSpec, build_optimizer
    from exp_trainer.policy import Policy
    from exp_trainer.progress import Progress
    from exp_trainer.stage import DEFAULT_MICRO_BATCH_TOKENS
    from exp_trainer.step import accumulate_gradient, train_step
    from tiny_policy import tiny_model

    shape = model_shape(hidden, layers)
    model = tiny_model("qwen3", VOCABULARY, **shape, attn_implementation=PACKED_ATTENTION)
    policy = Policy(model, None, dtype=torch.float32, seed=0)
    sequences = []
    for attempt in make_attempts():
        position_N = PROMPT + np.flatnonzero(attempt["sampled"])
        tokens = np.array(attempt["prompt"] + attempt["completion"])
        behavior, advantages = (
            np.array([0.0] * PROMPT + attempt[name], np.float32)[position_N] for name in ("old_logprobs", "advantages")
        )
        none = np.empty(0, np.float32)
        sequences.append(TrainingSequence("", tokens, position_N, behavior, none, advantages, 1.0, 1.0))
    optimizer = build_optimizer(policy.parameters, OptimizerSpec(LEARNING_RATE))
    spec = parse_loss_spec({"kind": "policy_gradient", "clip": CLIP, "aggregation": "token_mean"})
    shared: dict[str, Any] = {
        "micro_batch_tokens": DEFAULT_MICRO_BATCH_TOKENS,
        "checkpoint_activations": None,
        "progress": Progress(),
    }

    def step() -> dict[str, float]:
        return train_step(policy, optimizer, sequences, spec, learning_rate=LEARNING_RATE, max_grad_norm=1.0, **shared)

    def gradient() -> tuple[float, torch.Tensor]:
        tally = accumulate_gradient(policy, sequences, spec, **shared)
        return tally.sums["loss"], flat_gradient(model)

    return step, gradient


def trl_side(
    hidden: int, layers: int, folder: str, micro_batch: int
) -> tuple[Step, Callable[[], tuple[float, torch.Tensor]]]:
    """The same from TRL: what its `training_step` does to a batch that is already there."""
    from tiny_policy import tiny_model
    from trl_peer import Attempt, inputs_of, make_trainer

    model = tiny_model("qwen3", VOCABULARY, **model_shape(hidden, layers))
    # Sorted by length: TRL pads to the longest of a batch, and this is the best that it can be given.
    attempts = sorted((Attempt(**item) for item in make_attempts()), key=lambda item: len(item.completion))
    trainer = make_trainer(model, folder, loss_type="dapo", epsilon=CLIP["low"], epsilon_high=CLIP["high"], beta=0.0)
    total = torch.tensor(sum(sum(item.sampled) for item in attempts))
    batches = [
        {**inputs_of(attempts[start : start + micro_batch]), "num_items_in_batch": total}
        for start in range(0, len(attempts), micro_batch)
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)

    def accumulate() -> float:
        loss = 0.0
        for batch in batches:
            value = trainer.compute_loss(trainer.model, batch)
            value.backward()
            loss += value.item()
        return loss

    def step() -> dict[str, float]:
        optimizer.zero_grad(set_to_none=True)
        loss = accumulate()
        torch.nn.utils.clip_grad_norm_(list(model.parameters()), 1.0)
        optimizer.step()
        return {"loss": loss}

    def gradient() -> tuple[float, torch.Tensor]:
        return accumulate(), flat_gradient(model)

    return step, gradient


def flat_gradient(model: Any) -> torch.Tensor:
    """Every parameter's gradient in one vector, which then is forgotten."""
    vector = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    model.zero_grad(set_to_none=True)
    return vector


def serve(side: str, hidden: int, layers: int, threads: int) -> None:
    """A side in its own process: one command a line on stdin, one JSON object a line on stdout."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is not an answer
    torch.set_num_threads(threads)
    with TemporaryDirectory() as folder:
        build = our_side if side == "ours" else lambda *given: trl_side(*given, int(side.removeprefix("trl-")))
        step, gradient = build(hidden, layers, folder)
        for line in sys.stdin:
            command, _, path = line.strip().partition(" ")
            answer: dict[str, Any] = {}
            if command == "gradient":
                answer["loss"], vector = gradient()
                torch.save(vector, path)
            if command == "step":
                wall, cpu = time.perf_counter(), time.process_time()
                step()
                answer = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
            answer["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            out.write(json.dumps(answer) + "\n")


class Side:
    """The other end of `serve`."""

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--side", name, *shape_arguments(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, command: str) -> dict[str, Any]:
        """One command, its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with {self._process.wait()}")
        return json.loads(line)

    def end(self) -> None:
        """Stop the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def shape_arguments(arguments: argparse.Namespace) -> list[str]:
    """What both ends must agree on."""
    names = ("hidden", "layers", "threads")
    return [item for name in names for item in (f"--{name}", str(getattr(arguments, name)))]


def fastest_peer(arguments: argparse.Namespace) -> str:
    """TRL at the micro-batch that suits it best here: one warm step, one that counts."""
    seconds = {}
    for size in PEER_MICRO_BATCHES:
        side = Side(f"trl-{size}", arguments)
        side.ask("step")
        seconds[side.name] = side.ask("step")["seconds"]
        side.end()
    print("TRL by micro-batch:", {name: round(value, 2) for name, value in seconds.items()}, file=sys.stderr)
    return min(seconds, key=lambda name: seconds[name])


def compare_outputs(ours: Side, peer: Side, folder: str) -> dict[str, float]:
    """Loss and gradient of the two; a time without equal outputs would be worth nothing."""
    losses, vectors = [], []
    for index, side in enumerate((ours, peer)):
        path = f"{folder}/{index}.pt"
        losses.append(side.ask(f"gradient {path}")["loss"])
        vectors.append(torch.load(path))
    relative = ((vectors[0] - vectors[1]).norm() / vectors[1].norm()).item()
    difference = abs(losses[0] - losses[1])
    if not relative <= TOLERANCE or not difference <= TOLERANCE:
        raise SystemExit(f"outputs differ: gradient by {relative:.2e}, loss {losses[0]} against {losses[1]}")
    return {"relative_gradient_error": relative, "loss_difference": difference}


def physical_limit(tokens: int, parameters: int) -> float:
    """Seconds of a step if all of it were matrix products at this machine's rate: 6 FLOP a parameter and token."""
    size = 1024
    left, right = torch.randn(size, size), torch.randn(size, size)
    best = min(_timed(lambda: left @ right) for _ in range(20))
    return 6 * tokens * parameters / (2 * size**3 / best)


def _timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Both sides, turn by turn."""
    torch.set_num_threads(arguments.threads)
    peer_name = fastest_peer(arguments)
    ours, peer = Side("ours", arguments), Side(peer_name, arguments)
    with TemporaryDirectory() as folder:
        outputs = compare_outputs(ours, peer, folder)
    taken: dict[str, list[dict[str, float]]] = {ours.name: [], peer.name: []}
    for number in range(arguments.rounds + 1):
        for side in (ours, peer) if number % 2 else (peer, ours):
            answer = side.ask("step")
            if number:  # the first round warms up
                taken[side.name].append(answer)
    for side in (ours, peer):
        side.end()
    return summarize(taken, outputs, arguments, ours.name, peer.name)


def summarize(
    taken: dict[str, list[dict[str, float]]],
    outputs: dict[str, float],
    arguments: argparse.Namespace,
    own: str,
    peer: str,
) -> list[dict[str, Any]]:
    """Rows of a table: medians, ratios of the two sides round by round, how far outputs differ, and what was done."""
    from tiny_policy import tiny_model

    tokens = sum(PROMPT + len(item["completion"]) for item in make_attempts())
    model = tiny_model("qwen3", VOCABULARY, **model_shape(arguments.hidden, arguments.layers))
    parameters = sum(item.numel() for item in model.parameters())
    pairs = list(zip(taken[own], taken[peer], strict=True))
    peak_bytes = {name: max(item["peak_bytes"] for item in items) for name, items in taken.items()}
    import transformers
    import trl

    def side(name: str) -> dict[str, Any]:
        seconds = statistics.median(item["seconds"] for item in taken[name])
        return {
            "side": name,
            "seconds_a_step": round(seconds, 3),
            "cpu_seconds": round(statistics.median(item["cpu_seconds"] for item in taken[name]), 3),
            "useful_tokens_per_second": round(tokens / seconds),
            "peak_mib": round(peak_bytes[name] / 2**20),
        }

    ratios = {
        "ours_to_trl": "times",
        "useful_tokens_per_second": statistics.median(theirs["seconds"] / mine["seconds"] for mine, theirs in pairs),
        "less_cpu": statistics.median(theirs["cpu_seconds"] / mine["cpu_seconds"] for mine, theirs in pairs),
        "less_peak_memory": peak_bytes[peer] / peak_bytes[own],
        "matrix_products_alone_seconds": physical_limit(tokens, parameters),
    }
    work = {"trajectories": TRAJECTORIES, "tokens": tokens, "parameters": parameters, "rounds": arguments.rounds}
    versions = {package.__name__: package.__version__ for package in (trl, torch, transformers)}
    return [
        side(own),
        side(peer),
        {name: value if isinstance(value, str) else round(value, 2) for name, value in ratios.items()},
        {name: float(f"{value:.1e}") for name, value in outputs.items()},
        {**work, "threads": arguments.threads, **versions},
    ]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side is not None:
        serve(arguments.side, arguments.hidden, arguments.layers, arguments.threads)
        return
    for row in run(arguments):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
