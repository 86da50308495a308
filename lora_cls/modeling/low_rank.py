"""LoRA's update in few steps: what PEFT's modules compute, without their casts and copies.

In fp32 the numbers are PEFT's but for the last digits; over a 16-bit base adapters compute in 16 bits here, as under
autocast, and their gradients are summed in 16 bits before they become fp32.

PEFT casts a layer's input to the adapter's precision, and makes three copies of a layer's output on the way forward
(product, scaled product, sum). Here the update is added into the layer's own product, and the scale is applied to the
r numbers per token in between. Adapters stay PEFT's own modules and parameters: only `forward` is another.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class LowRankUpdate(torch.autograd.Function):
    """`y + scaling * x @ A.T @ B.T`, computed in the precision of x; A and B get gradients in their own."""

    @staticmethod
    def forward(
        ctx: Any, y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """y of shape (..., n_out), x of shape (..., n_in), a of shape (r, n_in), b of shape (n_out, r)."""
        rows, a, b = x.reshape(-1, x.shape[-1]), a.to(x.dtype), b.to(x.dtype)
        low = rows @ a.T
        ctx.save_for_backward(rows, low, a, b)
        ctx.scaling, ctx.shape = scaling, x.shape
        flat, found = y.reshape(-1, y.shape[-1]), torch.empty(y.shape, dtype=y.dtype, device=y.device)
        torch.addmm(flat, low.to(y.dtype), b.T.to(y.dtype), alpha=scaling, out=found.view(flat.shape))
        return found  # no view: a model may write into it (Longformer)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        """Gradients for y, x, a, b."""
        rows, low, a, b = ctx.saved_tensors
        flat = grad.reshape(-1, grad.shape[-1]).to(rows.dtype)
        grad_low = (flat @ b) * ctx.scaling
        grad_x = (grad_low @ a).view(ctx.shape) if ctx.needs_input_grad[1] else None
        return grad, grad_x, (grad_low.T @ rows).float(), (flat.T @ low).float() * ctx.scaling, None


class AdaptedLinear(torch.autograd.Function):
    """`x @ W.T + bias + scaling * x @ A.T @ B.T` of a frozen W: one product and one update, forward and backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """x of shape (..., n_in), weight of shape (n_out, n_in), a of shape (r, n_in), b of shape (n_out, r)."""
        rows, a, b = x.reshape(-1, x.shape[-1]), a.to(x.dtype), b.to(x.dtype)
        low = rows @ a.T
        ctx.save_for_backward(rows, low, a, b, weight)
        ctx.scaling, ctx.shape = scaling, x.shape
        y = torch.empty(*x.shape[:-1], len(weight), dtype=x.dtype, device=x.device)
        flat = y.view(-1, len(weight))
        if bias is None:
            torch.mm(rows, weight.T, out=flat)
        else:
            torch.addmm(bias, rows, weight.T, out=flat)
        flat.addmm_(low, b.T, alpha=scaling)
        return y  # no view: a model may write into it (Longformer)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        """Gradients for x, a, b."""
        rows, low, a, b, weight = ctx.saved_tensors
        flat = grad.reshape(-1, grad.shape[-1])
        grad_low = (flat @ b) * ctx.scaling
        grad_x = None
        if ctx.needs_input_grad[0]:  # not below the lowest adapter
            grad_x = (flat @ weight).addmm_(grad_low, a).view(ctx.shape)
        return grad_x, None, None, (grad_low.T @ rows).float(), (flat.T @ low).float() * ctx.scaling, None


def speed_up(backbone: nn.Module) -> int:
    """Give PEFT's plain LoRA modules the short way; returns how many took it.

    Others (DoRA and other variants, biases in the adapter, convolutions) keep PEFT's own forward.
    """
    from peft.tuners.lora import LoraLayer

    count = 0
    for module in backbone.modules():
        if isinstance(module, LoraLayer) and _is_plain(module):
            module.forward = _Forward(module)
            count += 1
    return count


def fused_modules(backbone: nn.Module) -> list[Any]:
    """Modules that took the short way over a frozen, plain matrix: the update could be added to a copy of it."""
    return [m for m in backbone.modules() if isinstance(m.forward, _Forward) and m.forward.fused]


def _is_plain(module: Any) -> bool:
    a, b = (dict(factors.items()).get("default") for factors in (module.lora_A, module.lora_B))
    return (
        not module.lora_variant
        and isinstance(module.get_base_layer(), nn.Linear)  # bitsandbytes' layers are, too
        and isinstance(a, nn.Linear)
        and isinstance(b, nn.Linear)
        and b.bias is None
    )


class _Forward:
    """The forward of one adapted layer, in place of PEFT's."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.peft_forward = module.forward
        base = module.get_base_layer()
        # Trained biases (`lora.bias`) and quantized weights go through the layer itself.
        self.fused = type(base) is nn.Linear and not any(p.requires_grad for p in base.parameters())

    def __call__(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        module = self.module
        if args or kwargs or module.merged or module.disable_adapters or module.active_adapters != ["default"]:
            return self.peft_forward(x, *args, **kwargs)
        base, scaling = module.base_layer, module.scaling["default"]
        a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
        dropout = module.lora_dropout["default"]
        drops = module.training and not isinstance(dropout, nn.Identity)
        if self.fused and not drops and x.dtype == base.weight.dtype:
            return AdaptedLinear.apply(x, base.weight, base.bias, a, b, scaling)
        return LowRankUpdate.apply(base(x), dropout(x) if drops else x, a, b, scaling)
