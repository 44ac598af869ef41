"""The trainer's state for one stage: what the server's methods act on."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from .attention import refuse_contamination
from .beliefs import measure_batch
from .chain import open_chain
from .checkpoint import load_checkpoint, save_checkpoint, save_weights
from .data import read_batch, read_for_scoring, write_scores
from .errors import TrainerError
from .loss import parse_loss_spec
from .merge import DTYPES, merge
from .model import load_model
from .optimizer import OptimizerSpec, build_optimizer, learning_rate_at
from .policy import AdapterSpec, Policy
from .progress import Progress
from .ranks import Ranks
from .step import score, train_step

# Tokens of a micro-batch when the caller does not say: on a CPU, more cost memory and win little.
DEFAULT_MICRO_BATCH_TOKENS = 1024


class Stage:
    """One stage's policy and optimizer between `open` and `close`."""

    def __init__(self, params: Mapping[str, Any], progress: Progress, ranks: Ranks | None = None) -> None:
        self.stage_key: str = params["stage_key"]
        self._progress = progress
        self._ranks = ranks or Ranks.join()
        if params.get("device") == "cuda" and self._ranks.device.type != "cuda":
            raise TrainerError("DEVICE", "the stage asks for GPUs and PyTorch finds none on this machine")
        self._mesh = self._ranks.mesh(int(params.get("context_parallel") or 1))
        self._base = Path(params["base_dir"])
        self._parents = [Path(path) for path in params.get("parents") or []]
        reference_parents = params.get("reference_parents")
        self._reference_parents = None if reference_parents is None else [Path(path) for path in reference_parents]
        # A step failed after some of its updates: these are the weights of no checkpoint.
        self.half_changed = False
        self._checkpoint_activations: bool | None = params.get("activation_checkpointing")
        _set_threads(params)
        adapter = None if params.get("adapter") is None else AdapterSpec.parse(params["adapter"])
        self._dtype = resolve_dtype(params.get("dtype") or "auto")
        self._spec = OptimizerSpec.parse(params["optimizer"])
        self._seed = int(params["seed"])
        self._policy = self._load_policy(adapter)
        self._optimizer = build_optimizer(self._policy.parameters, self._spec)
        self.step = 0
        # Every finished step by its id, so that a repeated request gets the same answer.
        self._results: dict[str, dict[str, Any]] = {}
        if params.get("resume_dir") is not None:
            self._resume(Path(params["resume_dir"]))

    def describe(self) -> dict[str, Any]:
        """What `open` answers: where the stage stands and what computes it."""
        return {
            "step": self.step,
            "trainable_parameters": sum(p.numel() for p in self._policy.parameters.values()),
            "parameters": sum(p.numel() for p in self._policy.model.parameters()),
            "made_with": self._made_with(),
        }

    def train(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """One optimizer step; the recorded answer when this step was already taken."""
        step_id, step = str(params["step_id"]), int(params["step"])
        if step_id in self._results:
            return {**self._results[step_id], "repeated": True}
        if step != self.step + 1:
            raise TrainerError("STEP_ORDER", f"step {step} was asked for after step {self.step}")
        loss = parse_loss_spec(params["loss"])
        if loss.kl is not None:
            self._load_reference()
        sequences = read_batch(Path(params["batch"]), policy_gradient=loss.kind == "policy_gradient")
        # Random numbers follow from seed and step: a replay draws the same ones whatever ran before it.
        torch.manual_seed(((self._seed & 0x7FFFFFFF) << 32) + (self._ranks.rank << 24) + step)
        with self._progress.phase("step"), self._noticing_half_steps():
            metrics = train_step(
                self._policy,
                self._optimizer,
                sequences,
                loss,
                learning_rate=learning_rate_at(step, self._spec),
                max_grad_norm=self._spec.max_grad_norm,
                micro_batch_tokens=int(params.get("micro_batch_tokens") or DEFAULT_MICRO_BATCH_TOKENS),
                checkpoint_activations=self._checkpoint_activations,
                progress=self._progress,
            )
        self.step = step
        self._results[step_id] = {"step": step, "repeated": False, "metrics": metrics}
        return self._results[step_id]

    def score(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Logprobs of each token of a batch or trajectory shard, into a Parquet file."""
        id_column, sequences = read_for_scoring(Path(params["batch"]), float(params["temperature"]))
        with self._progress.phase("scoring"):
            scores = score(
                self._policy,
                sequences,
                progress=self._progress,
                micro_batch_tokens=int(params.get("micro_batch_tokens") or DEFAULT_MICRO_BATCH_TOKENS),
            )
        if self._ranks.rank == 0:
            write_scores(Path(params["out"]), id_column, [item.sequence_id for item in sequences], scores)
        return {"sequences": len(sequences), "tokens": sum(len(item.token_ids_T) for item in sequences)}

    def beliefs(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The policy's beliefs in the reference answers of a batch, into a Parquet file."""
        with self._progress.phase("believing"):
            return measure_batch(self._policy, params, self._progress)

    def save(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """A checkpoint that `open` can resume from."""
        state = {
            "stage_key": self.stage_key,
            "step": self.step,
            "seed": self._seed,
            "results": self._results,
            "made_with": self._made_with(),
        }
        with self._progress.phase("saving"):
            files = save_checkpoint(Path(params["dir"]), self._policy, self._optimizer, state)
        return {"step": self.step, "files": files}

    def export(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The merged weights as a directory to serve."""
        with self._progress.phase("exporting"), TemporaryDirectory(prefix="exp-export-") as folder:
            own = Path(folder) / "own.safetensors"
            if self._ranks.rank > 0:
                save_weights(None, self._policy)
                return {}
            save_weights(own, self._policy)
            merge(self._base, [*self._parents, own], Path(params["dir"]), params["export_dtype"], self._progress.tick)
        return {"step": self.step, "bytes": sum(file.stat().st_size for file in Path(params["dir"]).iterdir())}

    def _made_with(self) -> dict[str, str]:
        return {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "dtype": self._dtype,
            "device": str(self._policy.device),
            "threads": str(torch.get_num_threads()),
            **({} if self._ranks.size == 1 else {"processes": str(self._ranks.size)}),
        }

    @contextmanager
    def _noticing_half_steps(self) -> Iterator[None]:
        try:
            yield
        except TrainerError as error:
            self.half_changed = error.code == "HALF_STEP"
            raise

    def _load_policy(self, adapter: AdapterSpec | None) -> Policy:
        with self._progress.phase("loading"):
            model = self._load_model(self._parents, adapter)
            refuse_contamination(model.get_decoder())
            policy = Policy(model, adapter, dtype=DTYPES[self._dtype], seed=self._seed, mesh=self._mesh)
        policy.tick_layers(self._progress)
        return policy

    def _load_model(self, parents: Sequence[Path], adapter: AdapterSpec | None) -> Any:
        # Full training keeps fp32 master weights whatever it computes in.
        held = torch.float32 if adapter is None else DTYPES[self._dtype]
        model: Any = load_model(self._base, held, open_chain(parents))
        # Of several ranks, none ever holds it whole on its device.
        return model if self._ranks.size > 1 else model.to(self._ranks.device)

    def _load_reference(self) -> None:
        """The first loss with a KL term needs it: a second, frozen model, unless the policy holds its own start.

        It is held as the policy is, so that at the start the two agree to the last bit.
        """
        if self._policy.has_reference or (self._policy.adapter is not None and self._reference_parents is None):
            return
        parents = self._parents if self._reference_parents is None else self._reference_parents
        with self._progress.phase("loading"):
            self._policy.refer_to(self._load_model(parents, self._policy.adapter))

    def _resume(self, directory: Path) -> None:
        with self._progress.phase("loading"):
            state = load_checkpoint(directory, self._policy, self._optimizer)
        if state["stage_key"] != self.stage_key:
            raise TrainerError("CHECKPOINT_MISMATCH", f"{directory} belongs to stage {state['stage_key']}")
        self.step, self._results = state["step"], state["results"]


def resolve_dtype(dtype: str) -> str:
    """`auto` is bfloat16 where the hardware multiplies it, else float32: emulated bf16 is slower than fp32."""
    if dtype not in ("auto", "float32", "bfloat16"):
        raise TrainerError("DTYPE", f"{dtype!r} is none of auto, float32, bfloat16")
    if dtype != "auto":
        return dtype
    fast = torch.cuda.is_available() or torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if fast else "float32"


def _set_threads(params: Mapping[str, Any]) -> None:
    """Per thread in OpenMP, so this must run on the thread that computes."""
    if params.get("threads"):
        torch.set_num_threads(int(params["threads"]))
    torch.use_deterministic_algorithms(bool(params.get("deterministic", False)))
