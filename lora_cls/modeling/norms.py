"""RMSNorm in one step that keeps its input and nothing else for the way back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class ScaledNorm(torch.autograd.Function):
    """RMSNorm with frozen weights (Zhang & Sennrich 2019, "Root mean square layer normalization").

    PyTorch has no kernel of it for a CPU. Two that it has compute it without tensors in between: batch normalization of
    a trained model divides each channel by a given deviation, and every row is a channel here; the way back is layer
    normalization's with a mean of zero, less what that mean contributes.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: torch.Tensor, eps: float) -> torch.Tensor:
        """x of shape (..., n); scale of shape (n,): fp32 to multiply by before values are rounded to x's dtype, or in
        that dtype, after it."""
        n = x.shape[-1]
        rows = x.reshape(-1, n)
        squares = torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float32).square_().div_(n)
        ctx.rms = (squares + eps).rsqrt_().unsqueeze(-1)  # of shape (n_rows, 1)
        ctx.save_for_backward(rows, scale)
        if scale.dtype != x.dtype:
            return (rows.float() * ctx.rms).mul_(scale).to(x.dtype).view(x.shape)
        zero = torch.zeros_like(squares)
        unit = torch.batch_norm(rows.unsqueeze(0), None, None, zero, squares, False, 0.0, eps, False)
        return unit.mul_(scale).view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        """Gradient for x."""
        rows, scale = ctx.saved_tensors
        shape, (n_rows, n) = grad.shape, rows.shape
        grad = grad.reshape(n_rows, n)
        weights = scale.float() if scale.dtype != torch.float32 else scale
        found: torch.Tensor = torch.ops.aten.native_layer_norm_backward(
            grad, rows, [n], torch.zeros_like(ctx.rms), ctx.rms, weights, None, [True, False, False]
        )[0]
        mean = torch.mv(grad, weights.to(grad.dtype)).float().div_(n).unsqueeze(-1)
        return found.add_(mean.mul_(ctx.rms).to(grad.dtype)).view(shape), None, None


class Norm:
    """The forward of a norm, in place of the model's."""

    def __init__(self, module: nn.Module, eps: float, scale: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.module, self.own, self.eps, self.scale = module, module.forward, eps, scale

    def __call__(self, x: torch.Tensor) -> Any:
        weight: Any = self.module.weight
        if weight.requires_grad or x.dtype != weight.dtype:
            return self.own(x)
        return ScaledNorm.apply(x, self.scale(weight), self.eps)


def late(weight: torch.Tensor) -> torch.Tensor:
    """Llama: values are rounded, and then multiplied."""
    return weight


def early(weight: torch.Tensor) -> torch.Tensor:
    """OLMo 2: values are multiplied, and then rounded."""
    return weight.float()


def early_above_one(weight: torch.Tensor) -> torch.Tensor:
    """Gemma: as `early`, and weights are kept less one."""
    return weight.float() + 1
