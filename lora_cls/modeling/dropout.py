"""Dropout that draws 16 random bits for every value, many values at a time, in place of PyTorch's one by one.

A value is left out with the nearest probability of 1/65536; for the way back a byte of it is kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def draw(like: torch.Tensor, p: float) -> torch.Tensor:
    """What stays of a tensor's values, int8 of its shape: 0 with probability p, and else 1; p below 1."""
    bits = torch.empty(-(-like.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    first_kept = round(p * 2**16) - 2**15
    kept = bits[: like.numel()].clamp_(first_kept - 1, first_kept).sub_(first_kept - 1)
    return kept.to(torch.int8).view(like.shape)


def keep(x: torch.Tensor, kept: torch.Tensor, p: float) -> torch.Tensor:
    """x where it is kept, 1 / (1 - p) times as great, and 0 elsewhere."""
    return kept.to(x.dtype).mul_(1 / (1 - p)).mul_(x)


class Dropped(torch.autograd.Function):
    """`torch.nn.functional.dropout` in training."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, p: float) -> torch.Tensor:
        """x of any shape; p below 1."""
        kept = draw(x, p)
        ctx.save_for_backward(kept)
        ctx.p = p
        return keep(x, kept, p)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        """Gradient for x."""
        (kept,) = ctx.saved_tensors
        return keep(grad, kept, ctx.p), None


class Dropout:
    """The forward of a dropout, in place of PyTorch's."""

    def __init__(self, module: nn.Dropout) -> None:
        self.module = module

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        p = self.module.p
        if not self.module.training or p == 0:
            return x
        if p == 1:
            return x * 0
        found: torch.Tensor = Dropped.apply(x, p)
        return found
