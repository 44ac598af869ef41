"""The policy being trained: a base with its merged parents, and a fresh adapter or its own full weights."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from .data import MicroBatch
from .errors import TrainerError
from .logprobs import token_logprobs
from .lora import fuse_lora
from .model import final_hidden, refuse_unsupported
from .progress import Progress
from .ranks import Mesh, Ranks
from .sharding import Whole, shard
from .ulysses import sum_over_parts

Result = TypeVar("Result")


@dataclass(frozen=True)
class AdapterSpec:
    """LoRA on the named linear layers; by default on all but the output head."""

    lora_rank: int
    lora_alpha: float
    lora_dropout: float = 0.0
    target: str | list[str] = "all-linear"

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> "AdapterSpec":
        """Read the adapter from the wire; alpha defaults to twice the rank."""
        unknown = set(value) - {"lora_rank", "lora_alpha", "lora_dropout", "target"}
        if unknown or "lora_rank" not in value:
            raise TrainerError("ADAPTER_INVALID", f"unknown {sorted(unknown)}" if unknown else "no lora_rank")
        rank = int(value["lora_rank"])
        return cls(
            rank,
            float(value.get("lora_alpha") or 2 * rank),
            float(value.get("lora_dropout") or 0.0),
            value.get("target") or "all-linear",
        )


class Policy:
    """Hidden states, output head and trainable parameters of one model; adapters and their gradients are fp32."""

    def __init__(
        self,
        model: PreTrainedModel,
        adapter: AdapterSpec | None,
        *,
        dtype: torch.dtype,
        seed: int,
        mesh: Mesh | None = None,
    ) -> None:
        """Take over a model on the CPU; on several ranks, each keeps its part of the weights on its own device."""
        refuse_unsupported(model)
        self.mesh = mesh or Mesh(Ranks(0, 1, next(model.parameters()).device))
        self.adapter = adapter
        self.dtype = dtype
        if adapter is None:
            self._peft: PeftModel | None = None
            self.model: Any = model
        else:
            self._peft = _add_adapter(model, adapter, seed)
            self.model = self._peft.get_base_model()
        self._reference: tuple[Any, Whole | None] | None = None
        self._dropouts = [] if adapter is None else [item for item in model.modules() if isinstance(item, nn.Dropout)]
        self.device = self.mesh.ranks.device
        self._whole = self._shared_out(model)
        self.parameters: dict[str, nn.Parameter] = {
            name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
        }

    @property
    def head_VH(self) -> Tensor:
        """The output head; logits are hidden states times its transpose."""
        return self.model.get_output_embeddings().weight

    def hidden_states(self, token_ids_T: Tensor, length_S: Sequence[int]) -> Tensor:
        """Last hidden states [T, H] of sequences that lie one behind the other; none sees another."""
        return final_hidden(self.model, token_ids_T.to(self.device), length_S, self._autocast())

    def cached_hidden_states(self, token_ids_T: Tensor, cache: Any) -> Tensor:
        """Hidden states [T, H] after the last norm of tokens behind those in the cache, which grows by them."""
        decoder = self.model.get_decoder()
        with self._autocast():
            output = decoder(input_ids=token_ids_T[None].to(self.device), past_key_values=cache, use_cache=True)
        return output.last_hidden_state[0]

    def action_logprobs(self, micro_batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy at each action token, on the CPU."""
        compute = self._own_logprobs if self.mesh.row_part is None else self._shared_logprobs
        logp_N, entropy_N = self.gathered(lambda: compute(micro_batch))
        return logp_N.cpu(), entropy_N.cpu()

    def gathered(self, block: Callable[[], Result]) -> Result:
        """Run a block that uses the model or its head: on several ranks, whole weights are there only within one.

        Every rank must run as many, with as many forwards, in the same order. What it returns are tensors.
        """
        return block() if self._whole is None else self._whole(block)

    def _own_logprobs(self, micro_batch: MicroBatch) -> tuple[Tensor, Tensor]:
        hidden_TH = self.hidden_states(micro_batch.token_ids_T, micro_batch.length_S)
        return token_logprobs(
            hidden_TH[micro_batch.source_N.to(self.device)],
            self.head_VH,
            micro_batch.target_N.to(self.device),
            micro_batch.temperature_N.to(self.device),
        )

    def _shared_logprobs(self, micro_batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """The same where each rank has a part of the row: each computes its own action tokens, all get all."""
        part = self.mesh.row_part
        assert part is not None
        token_ids_T, length_S = micro_batch.token_ids_T, micro_batch.length_S
        if missing := part.missing(len(token_ids_T)):
            token_ids_T = nn.functional.pad(token_ids_T, (0, missing))
            length_S = (*length_S, missing)
        hidden_tH = final_hidden(self.model, token_ids_T.to(self.device), length_S, self._autocast(), part)
        own_N = part.own(micro_batch.source_N, len(token_ids_T))
        source_n = (micro_batch.source_N[own_N] - part.rank * len(hidden_tH)).to(self.device)
        target_n, temperature_n = (
            item[own_N].to(self.device) for item in (micro_batch.target_N, micro_batch.temperature_N)
        )
        own = token_logprobs(hidden_tH[source_n], self.head_VH, target_n, temperature_n)
        place_n = own_N.nonzero().squeeze(1).to(self.device)
        logp_N, entropy_N = (
            sum_over_parts(item_n.new_zeros(len(own_N)).index_put((place_n,), item_n), part) for item_n in own
        )
        return logp_N, entropy_N

    @contextmanager
    def reference(self) -> Iterator[None]:
        """A block in which the policy is the KL reference: its own start, or the model that `refer_to` was given."""
        if self._reference is not None:
            own, (self.model, self._whole) = (self.model, self._whole), self._reference
            try:
                yield
            finally:
                self.model, self._whole = own
        elif self._peft is not None:
            with self._peft.disable_adapter():
                yield
        else:
            raise TrainerError("KL_REFERENCE", "full training has no reference in itself; one must be loaded")

    @property
    def has_reference(self) -> bool:
        """Whether `refer_to` was called."""
        return self._reference is not None

    def refer_to(self, model: PreTrainedModel) -> None:
        """Measure the KL term to this frozen model."""
        model.requires_grad_(False)
        self._reference = model, self._shared_out(model)

    def tick_layers(self, progress: Progress) -> None:
        """Count every layer's forward and backward as work done, so long micro-batches still show progress."""

        def on_forward(_module: nn.Module, _inputs: Any, output: Any) -> None:
            progress.tick()
            hidden = output[0] if isinstance(output, tuple) else output
            if hidden.requires_grad:
                hidden.register_hook(lambda _gradient: progress.tick())

        for layer in self.model.get_decoder().layers:
            layer.register_forward_hook(on_forward)

    @contextmanager
    def training(self, *, checkpointed: bool) -> Iterator[None]:
        """A block for forward and backward of a step: the adapter's dropout is on, the base's own stays off.

        With `checkpointed`, layers keep only their inputs for backward and compute the rest again.
        """
        for dropout in self._dropouts:
            dropout.train()
        if checkpointed:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            self._set_layers_training(True)  # transformers checkpoints no layer in evaluation mode
        try:
            yield
        finally:
            for dropout in self._dropouts:
                dropout.eval()
            if checkpointed:
                self.model.gradient_checkpointing_disable()
                self._set_layers_training(False)

    def _shared_out(self, model: Any) -> Whole | None:
        mesh = self.mesh.device_mesh
        return None if mesh is None else shard(model, model.get_decoder().layers, mesh)

    def _set_layers_training(self, training: bool) -> None:
        """The layers themselves, not what is inside them."""
        for layer in self.model.get_decoder().layers:
            layer.training = training

    def _autocast(self) -> Any:
        """Full training keeps fp32 master weights and computes in bf16 where asked."""
        if self.adapter is None and self.dtype != torch.float32:
            return torch.autocast(self.device.type, self.dtype)
        return nullcontext()


def _add_adapter(model: PreTrainedModel, adapter: AdapterSpec, seed: int) -> PeftModel:
    model.requires_grad_(False)
    config = LoraConfig(
        r=adapter.lora_rank,
        lora_alpha=adapter.lora_alpha,  # pyright: ignore[reportArgumentType] (peft divides it; any number does)
        target_modules=adapter.target,
        lora_dropout=adapter.lora_dropout,
        bias="none",
        task_type="CAUSAL_LM",
    )
    peft = get_peft_model(model, config, autocast_adapter_dtype=True)
    peft.eval()  # peft's new layers begin in training mode
    _initialize(peft, seed)
    fuse_lora(peft)
    return peft


@torch.no_grad()
def _initialize(peft: PeftModel, seed: int) -> None:
    """A uniform as in arXiv:2106.09685's code, B zero; drawn in fp32 in name order, so the base's dtype has no say."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(peft.named_parameters()):
        if ".lora_A." in name:
            bound = 1 / math.sqrt(parameter.shape[1])
            parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
        elif ".lora_B." in name:
            parameter.zero_()
