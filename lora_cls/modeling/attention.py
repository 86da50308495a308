"""Eager attention and rotary positions in fewer steps, for a CPU: what models' own code computes, without its copies.

Heads that share a key are one product, where models copy each key for every head; probabilities are kept once, in the
model's precision; positions are turned in three passes. Numbers are the same but for their last digits.

A model's attention module keeps its own code: the two functions that it calls by name are others, and only where they
give what its own give for random values.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from lora_cls.modeling.dropout import draw, keep


class GroupedAttention(torch.autograd.Function):
    """`softmax(scaling * q @ k.T + mask) @ v` (Vaswani et al. 2017), heads in groups that share keys and values
    (Ainslie et al. 2023, "GQA")."""

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float,
        dropout: float,
    ) -> torch.Tensor:
        """q of shape (n_rows, n_heads, n_tokens, d), k and v of shape (n_rows, n_groups, n_keys, d), a mask to be added
        of shape (n_rows or 1, 1, n_tokens, n_keys); returns shape (n_rows, n_tokens, n_heads, d)."""
        (n_rows, n_heads, n_tokens, d), (n_groups, n_keys) = q.shape, k.shape[1:3]
        n = n_rows * n_groups
        q, k, v = q.reshape(n, -1, d), k.reshape(n, n_keys, d), v.reshape(n, n_keys, d)
        scores = torch.bmm(q, k.transpose(1, 2)).mul_(scaling).view(n_rows, n_heads, n_tokens, n_keys)
        if mask is not None:
            scores.add_(mask)
        p = torch.softmax(scores, -1).view(n, -1, n_keys)
        kept = draw(p, dropout) if dropout else None
        ctx.save_for_backward(q, k, v, p, kept)
        ctx.scaling, ctx.dropout, ctx.shape = scaling, dropout, (n_rows, n_groups, n_heads // n_groups, n_tokens, d)
        found = torch.bmm(_dropped(p, kept, dropout), v).view(ctx.shape)
        return found.permute(0, 3, 1, 2, 4).reshape(n_rows, n_tokens, n_heads, d)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        """Gradients for q, k, v."""
        q, k, v, p, kept = ctx.saved_tensors
        n_rows, n_groups, in_group, n_tokens, d = ctx.shape
        grad = grad.reshape(n_rows, n_tokens, n_groups, in_group, d).permute(0, 2, 3, 1, 4).reshape(q.shape)
        grad_v = torch.bmm(_dropped(p, kept, ctx.dropout).transpose(1, 2), grad)
        grad_p = _dropped(torch.bmm(grad, v.transpose(1, 2)), kept, ctx.dropout)
        grad_scores = torch.ops.aten._softmax_backward_data(grad_p, p, -1, p.dtype).mul_(ctx.scaling)
        grad_q, grad_k = torch.bmm(grad_scores, k), torch.bmm(grad_scores.transpose(1, 2), q)
        n_keys = k.shape[1]
        return (
            grad_q.view(n_rows, -1, n_tokens, d),
            grad_k.view(n_rows, n_groups, n_keys, d),
            grad_v.view(n_rows, n_groups, n_keys, d),
            None,
            None,
            None,
        )


def _dropped(p: torch.Tensor, kept: torch.Tensor | None, dropout: float) -> torch.Tensor:
    return p if kept is None else keep(p, kept, dropout)


class Rotated(torch.autograd.Function):
    """`x * cos + rotate_half(x) * sin` (Su et al. 2021, "RoFormer")."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """x of shape (n_rows, n_heads, n_tokens, d), cos and sin of shape (n_rows or 1, 1, n_tokens, d)."""
        ctx.save_for_backward(cos, sin)
        half = x.shape[-1] // 2
        return _turned(x, cos, sin[..., :half], sin[..., half:], torch.empty(x.shape, dtype=x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        """Gradient for x: turned back, and laid out as the product that x came from."""
        cos, sin = ctx.saved_tensors
        (n_rows, n_heads, n_tokens, d), half = grad.shape, grad.shape[-1] // 2
        into = torch.empty(n_rows, n_tokens, n_heads, d, dtype=grad.dtype).transpose(1, 2)
        return _turned(grad, cos, -sin[..., half:], -sin[..., :half], into), None, None


def _turned(
    x: torch.Tensor, cos: torch.Tensor, sin_lower: torch.Tensor, sin_upper: torch.Tensor, into: torch.Tensor
) -> torch.Tensor:
    half = x.shape[-1] // 2
    torch.mul(x, cos, out=into)
    into[..., :half].addcmul_(x[..., half:], sin_lower, value=-1)
    into[..., half:].addcmul_(x[..., :half], sin_upper)
    return into


class Rotate:
    """In place of a model's `apply_rotary_pos_emb`, which is called where only a part of each head is turned."""

    def __init__(self, own: Callable[..., Any]) -> None:
        self.own = own

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        whole = cos.ndim == 3 and cos.shape == sin.shape and cos.dtype == sin.dtype == q.dtype == k.dtype
        more = args or kwargs not in ({}, {"unsqueeze_dim": 1})
        if more or not whole or not cos.shape[-1] == q.shape[-1] == k.shape[-1]:
            return self.own(q, k, cos, sin, *args, **kwargs)
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        return Rotated.apply(q, cos, sin), Rotated.apply(k, cos, sin)


class Attend:
    """In place of a module's `eager_attention_forward`, which is called where there is more to compute."""

    def __init__(self, own: Callable[..., Any]) -> None:
        self.own = own

    def __call__(
        self,
        module: nn.Module,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> Any:
        dropout = float(kwargs.get("dropout") or 0.0)
        more = kwargs.get("scaling") is None or dropout >= 1 or not q.dtype == k.dtype == v.dtype
        more = more or not q.shape[-1] == k.shape[-1] == v.shape[-1]  # DeepSeek's values are narrower
        more = more or any(kwargs.get(name) is not None for name in ("softcap", "s_aux", "position_bias", "head_mask"))
        adds = mask is None or (
            mask.ndim == 4 and mask.shape[1] == 1 and mask.is_floating_point() and not mask.requires_grad
        )
        if more or not adds:
            return self.own(module, q, k, v, mask, **kwargs)
        if mask is not None and mask.dtype != q.dtype:  # under autocast
            mask = mask.clamp(min=torch.finfo(q.dtype).min).to(q.dtype)
        dropout = dropout if module.training else 0.0
        with torch.autocast(q.device.type, enabled=False):  # each step in the precision of q, both ways
            return GroupedAttention.apply(q, k, v, mask, float(kwargs["scaling"]), dropout), None


def with_functions(module: nn.Module, functions: dict[str, Any]) -> Any:
    """The forward of a module, its own code, with other functions under some names."""
    own: Any = type(module).forward
    forward = FunctionType(own.__code__, own.__globals__ | functions, own.__name__, own.__defaults__, own.__closure__)
    forward.__kwdefaults__ = own.__kwdefaults__
    return MethodType(forward, module)
