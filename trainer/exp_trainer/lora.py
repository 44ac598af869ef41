"""A LoRA linear layer as one autograd node.

peft's own forward computes base and adapter apart and adds them: four passes over [tokens, features] more than
needed, a sixth of a CPU step. Here the adapter is accumulated into the base's result by the matrix multiplication
itself. peft still makes, names, enables and disables the layers.
"""

from types import MethodType
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn


def fuse_lora(peft: PeftModel) -> None:
    """Give every plain LoRA linear layer of a model the fused forward."""
    for module in peft.modules():
        # With dropout the adapter sees another input than the base does, and peft's own forward is right.
        drops = isinstance(module, PeftLinear) and isinstance(module.lora_dropout["default"], nn.Dropout)
        if isinstance(module, PeftLinear) and type(module.base_layer) is nn.Linear and not drops:
            module.forward = MethodType(_forward, module)


def _forward(self: PeftLinear, x: Tensor) -> Tensor:
    base = self.base_layer
    if self.disable_adapters:
        return base(x)
    down_RI, up_OR = self.lora_A["default"].weight, self.lora_B["default"].weight
    return _LoraLinear.apply(x, base.weight, base.bias, down_RI, up_OR, self.scaling["default"])


class _LoraLinear(torch.autograd.Function):
    """y = x Wᵀ + b + s·(x Aᵀ) Bᵀ, with W and b frozen. A and B are fp32; products are taken in the dtype of x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        down_RI: Tensor,
        up_OR: Tensor,
        scaling: float,
    ) -> Tensor:
        x_NI = x.reshape(-1, x.shape[-1])
        low_NR = x_NI @ down_RI.to(x.dtype).T
        y_NO = nn.functional.linear(x_NI, weight_OI, bias_O)
        y_NO.addmm_(low_NR, (up_OR * scaling).to(x.dtype).T)
        ctx.save_for_backward(x_NI, weight_OI, low_NR, down_RI, up_OR)
        ctx.scaling = scaling
        return y_NO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, weight_OI, low_NR, down_RI, up_OR = ctx.saved_tensors
        grad_NO = grad_y.reshape(-1, grad_y.shape[-1])
        grad_low_NR = grad_NO @ (up_OR * ctx.scaling).to(grad_NO.dtype)
        grad_up_OR = (grad_NO.T @ low_NR).float().mul_(ctx.scaling)
        grad_down_RI = (grad_low_NR.T @ x_NI).float()
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x_NI = grad_NO @ weight_OI
            grad_x = grad_x_NI.addmm_(grad_low_NR, down_RI.to(grad_NO.dtype)).view(*grad_y.shape[:-1], -1)
        return grad_x, None, None, grad_down_RI, grad_up_OR, None
