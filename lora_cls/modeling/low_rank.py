"""LoRA's update in few steps: what PEFT's modules compute, without their casts and copies.

In fp32 the numbers are PEFT's but for the last digits; over a 16-bit base adapters compute in 16 bits here, as under
autocast, and their gradients are summed in 16 bits before they become fp32.

PEFT casts a layer's input to the adapter's precision, and makes three copies of a layer's output on the way forward
(product, scaled product, sum). Here the update is added into the layer's own product, and the scale is applied to the
r numbers per token in between. Adapters stay PEFT's own modules and parameters: only `forward` is another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lora_cls.modeling.frozen_linear import FrozenLinear
from lora_cls.modeling.remade import Origin, origin_of

PACKED_AT_MOST = 2**30  # bytes of packed weights: two copies of each, in place of one


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


class AdaptedLinears(torch.autograd.Function):
    """`x @ W.T + bias + scaling * x @ A.T @ B.T` for each of some frozen W that are multiplied by the same x.

    All A are one product with x, and so are their ways back; a layer that is alone is a case of it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        origin: Origin | None,
        bases: list[FrozenLinear],
        scalings: list[float],
        *factors: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """x of shape (..., n_in), and what gives it again; factors: every layer's A of shape (r, n_in), then every B of
        shape (n_out, r)."""
        rows = x.reshape(-1, x.shape[-1])
        a = torch.cat(factors[: len(bases)]).to(x.dtype)
        bs = [b.to(x.dtype) for b in factors[len(bases) :]]
        low = rows @ a.T
        ctx.again, kept = origin if origin is not None else (None, rows)
        ctx.save_for_backward(kept, low, a, *bs)
        ctx.bases, ctx.scalings = bases, scalings
        found = []
        for base, scaling, b, part in zip(bases, scalings, bs, _parts(low, bs), strict=True):
            y = base(x)
            y.view(-1, len(b)).addmm_(part, b.T, alpha=scaling)
            found.append(y)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        """Gradients for x and all factors."""
        kept, low, a, *bs = ctx.saved_tensors
        rows = kept if ctx.again is None else ctx.again(kept).reshape(-1, a.shape[1])
        flat = [grad.reshape(-1, grad.shape[-1]) for grad in grads]
        grads_low = [(g @ b).mul_(scaling) for g, b, scaling in zip(flat, bs, ctx.scalings, strict=True)]
        grad_low = torch.cat(grads_low, dim=1)
        grad_x = None
        if ctx.needs_input_grad[0]:  # what the lowest adapter reads needs none
            grad_x = ctx.bases[0].back(grads[0])
            for base, grad in zip(ctx.bases[1:], grads[1:], strict=True):
                grad_x.add_(base.back(grad))
            grad_x.view(rows.shape).addmm_(grad_low, a)
        grad_a = (grad_low.T @ rows).float().split([b.shape[1] for b in bs])
        grad_b = [
            (g.T @ part).float().mul_(scaling)
            for g, part, scaling in zip(flat, _parts(low, bs), ctx.scalings, strict=True)
        ]
        return grad_x, None, None, None, *grad_a, *grad_b


def _parts(low: torch.Tensor, bs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The columns of every layer."""
    return low.split([b.shape[1] for b in bs], dim=1)


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


def packed_bytes(backbone: nn.Module) -> int:
    """Bytes of the packed weights that training takes; 0 where they would be too large, or there are none."""
    weights = [module.base_layer.weight for module in fused_modules(backbone)]
    size = 2 * sum(weight.numel() * weight.element_size() for weight in weights if weight.dtype == torch.bfloat16)
    return size if size <= PACKED_AT_MOST else 0


def share_inputs(backbone: nn.Module, read: Callable[[], Any]) -> list[SharedInput]:
    """Let layers that read the same input be computed together in training, with packed weights where these are small.

    Parameters
    ----------
    backbone : with adapters, which `speed_up` has seen
    read : lets the model read some text: what comes to the layers is watched

    Returns
    -------
    list of SharedInput
        Whose weights are put away in training; `restore` is for whoever reads them.
    """
    modules = fused_modules(backbone)
    calls: list[tuple[_Forward, torch.Tensor]] = []  # it keeps the inputs, so that none takes another's place
    hooks = [m.register_forward_pre_hook(lambda m, given: calls.append((m.forward, given[0]))) for m in modules]
    try:
        read()
    finally:
        for hook in hooks:
            hook.remove()
    counts = Counter(forward for forward, _ in calls)
    holders = Counter(id(p) for module in backbone.modules() for p in module._parameters.values())
    packs = packed_bytes(backbone) > 0
    found: list[SharedInput] = []
    last: tuple[SharedInput, torch.Tensor] | None = None
    for forward, x in calls:
        if counts[forward] > 1 or holders[id(forward.module.base_layer.weight)] > 1:
            last = None  # layers whose weights are one another's (ALBERT) keep their way
        elif last is not None and last[1] is x:
            last[0].forwards.append(forward)
        else:
            last = SharedInput([forward], packs), x
            found.append(last[0])
    for shared in found:
        for forward in shared.forwards:
            forward.shared = shared
    return found


def _is_plain(module: Any) -> bool:
    a, b = (dict(factors.items()).get("default") for factors in (module.lora_A, module.lora_B))
    return (
        not module.lora_variant
        and isinstance(module.get_base_layer(), nn.Linear)  # bitsandbytes' layers are, too
        and isinstance(a, nn.Linear)
        and isinstance(b, nn.Linear)
        and b.bias is None
    )


class SharedInput:
    """Layers that are called one after the other with the same input, as a query's, a key's and a value's: the first of
    them computes for all."""

    def __init__(self, forwards: list[_Forward], packs: bool) -> None:
        self.forwards, self.packs = forwards, packs
        self._bases: list[FrozenLinear] = []
        self._x: torch.Tensor | None = None
        self._found: dict[_Forward, torch.Tensor] = {}

    def output(self, forward: _Forward, x: torch.Tensor) -> torch.Tensor:
        """What a layer makes of x."""
        if not self._bases:
            self._bases = [_base(each, self.packs) for each in self.forwards]
        if self._x is not x or forward not in self._found:
            self._x, self._found = x, dict(zip(self.forwards, _adapted(x, self.forwards, self._bases), strict=True))
        found = self._found.pop(forward)
        if not self._found:
            self._x = None
        return found

    def restore(self) -> None:
        """Give the layers' weights back what training took away, and forget a pass that was broken off."""
        self._x, self._found = None, {}
        for base in self._bases:
            base.restore()


class _Forward:
    """The forward of one adapted layer, in place of PEFT's."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.peft_forward = module.forward
        base = module.get_base_layer()
        # Trained biases (`lora.bias`) and quantized weights go through the layer itself.
        self.fused = type(base) is nn.Linear and not any(p.requires_grad for p in base.parameters())
        self.shared: SharedInput | None = None

    def __call__(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        module = self.module
        if args or kwargs or module.merged or module.disable_adapters or module.active_adapters != ["default"]:
            return self.peft_forward(x, *args, **kwargs)
        base, dropout = module.base_layer, module.lora_dropout["default"]
        drops = module.training and not isinstance(dropout, nn.Identity)
        if self.fused and not drops and x.dtype == base.weight.dtype:
            if module.training and self.shared is not None:
                return self.shared.output(self, x)
            return _adapted(x, [self], [_base(self, False)])[0]
        a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
        return LowRankUpdate.apply(base(x), dropout(x) if drops else x, a, b, module.scaling["default"])


def _base(forward: _Forward, packs: bool) -> FrozenLinear:
    return FrozenLinear(forward.module.base_layer.weight, forward.module.base_layer.bias, packs)


def _adapted(x: torch.Tensor, forwards: list[_Forward], bases: list[FrozenLinear]) -> tuple[torch.Tensor, ...]:
    modules = [forward.module for forward in forwards]
    found: tuple[torch.Tensor, ...] = AdaptedLinears.apply(
        x,
        origin_of(x),
        bases,
        [module.scaling["default"] for module in modules],
        *(module.lora_A["default"].weight for module in modules),
        *(module.lora_B["default"].weight for module in modules),
    )
    return found
