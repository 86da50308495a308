"""What stands between a layer's matrix products, in fewer steps: dropout, norms, and the last layer's second half.

For a CPU, where these take as long as half of the products. Dropout draws its random bits together; a norm is one step
that keeps its input and nothing else for the way back; the last layer computes its feed-forward half only for the
tokens that are pooled. The numbers are those of the model's own code but for their last digits, and dropout draws other
masks of the same probability. Modules stay the model's own: only `forward` is another, and only where a trial shows
that it computes what the module computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from lora_cls.errors import BackboneError
from lora_cls.modeling.classifier import SequenceClassifier
from lora_cls.modeling.layers import find_layers
from lora_cls.modeling.prefix import TOLERANCE
from lora_cls.modeling.read_places import ReadPlaces


class ScaledNorm(torch.autograd.Function):
    """RMSNorm with frozen weights (Zhang & Sennrich 2019, "Root mean square layer normalization")."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: torch.Tensor, eps: float) -> torch.Tensor:
        """x of shape (..., n); scale of shape (n,): fp32 to multiply by before values are rounded to x's dtype, or in
        that dtype, after it."""
        ctx.rms = _reciprocal_rms(x, eps)
        ctx.save_for_backward(x, scale)
        return _scaled(x.float() * ctx.rms, scale, x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        """Gradient for x."""
        x, scale = ctx.saved_tensors
        grad = (grad * scale).float()
        unit = x.float() * ctx.rms
        along = (grad * unit).mean(-1, keepdim=True)
        return torch.addcmul(grad, unit, along, value=-1).mul_(ctx.rms).to(x.dtype), None, None


def _reciprocal_rms(x: torch.Tensor, eps: float) -> torch.Tensor:
    norm = torch.linalg.vector_norm(x.float(), dim=-1, keepdim=True)
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def _scaled(unit: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return unit.to(dtype).mul_(scale) if scale.dtype == dtype else unit.mul_(scale).to(dtype)


class _Norm:
    """The forward of a norm, in place of the model's."""

    def __init__(self, module: nn.Module, eps: float, scale: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.module, self.own, self.eps, self.scale = module, module.forward, eps, scale

    def __call__(self, x: torch.Tensor) -> Any:
        weight: Any = self.module.weight
        if weight.requires_grad or x.dtype != weight.dtype:
            return self.own(x)
        return ScaledNorm.apply(x, self.scale(weight), self.eps)


class _Dropout:
    """The forward of a dropout: 16 random bits for every value, in place of PyTorch's one by one.

    A value is left out with the nearest probability of 1/65536.
    """

    def __init__(self, module: nn.Dropout) -> None:
        self.module = module

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        p = self.module.p
        if not self.module.training or p == 0:
            return x
        if p == 1:
            return x * 0
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        first_kept = round(p * 2**16) - 2**15
        kept = bits[: x.numel()].clamp_(first_kept - 1, first_kept).sub_(first_kept - 1)
        return x * kept.to(x.dtype).mul_(1 / (1 - p)).view(x.shape)


def shorten_steps(model: Any) -> int:
    """Give a model on a CPU the short ways, wherever they compute what its modules compute; returns how many took one.

    Trained norms, and kinds of norm that are not known here, keep their own.

    Parameters
    ----------
    model : a `SequenceClassifier`, or another model with a `base`
    """
    count = 0
    for module in model.base.modules():
        forward = _short(module)
        if forward is not None:
            module.forward = forward
            count += 1
    if type(model) is SequenceClassifier and model.pooling != "mean":
        model.last_layer = _last_layer(model)
        count += model.last_layer is not None
    return count


def _last_layer(model: SequenceClassifier) -> ReadPlaces | None:
    """The last layer, to be read at the pooled tokens alone; None where what is pooled would change."""
    try:
        layers = find_layers(model.base)[1]
    except BackboneError:
        return None
    if any(getattr(module, "gradient_checkpointing", False) for module in model.base.modules()):
        return None  # layers are computed again when the places are gone
    found = ReadPlaces.of(layers[-1])
    if found is None:
        return None
    ids, mask = torch.arange(1, 11).view(2, 5), torch.ones(2, 5, dtype=torch.int64)
    mask[1, 3:] = 0
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            expected = model.pooled(ids, mask)
            model.last_layer = found
            off = (model.pooled(ids, mask) - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
        dtype = next(model.base.parameters()).dtype if model.dtype is None else model.dtype
        same = bool(off <= TOLERANCE.get(dtype, 1e-4))
    except (TypeError, ValueError, IndexError, AttributeError, RuntimeError):
        same = False  # whatever a model of foreign code does with one token
    finally:
        model.last_layer = None
        model.train(was_training)
    if not same:
        found.remove()
    return found if same else None


def _short(module: nn.Module) -> Any:
    """The short forward of a module; None where there is none."""
    if type(module) is nn.Dropout:
        return None if module.inplace else _Dropout(module)
    if type(module).__name__.endswith("RMSNorm"):
        return _norm(module)
    return None


def _norm(module: Any) -> _Norm | None:
    """The way that gives a norm's own values for random ones, the nearest of those that do."""
    weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, torch.Tensor) or weight.ndim != 1 or not isinstance(eps, float) or weight.is_meta:
        return None
    x = _random(8, len(weight), weight.dtype)
    ways: Iterable[Callable[[torch.Tensor], torch.Tensor]] = (_late, _early, _early_above_one)
    norms = [_Norm(module, eps, way) for way in ways]
    with torch.no_grad():
        own = module(x)
        off = [int((ScaledNorm.apply(x, norm.scale(weight), eps) != own).sum()) for norm in norms]
        best = min(range(len(norms)), key=off.__getitem__)
        same = _near(ScaledNorm.apply(x, norms[best].scale(weight), eps), own)
    return norms[best] if same else None


def _late(weight: torch.Tensor) -> torch.Tensor:
    """Llama: values are rounded, and then multiplied."""
    return weight


def _early(weight: torch.Tensor) -> torch.Tensor:
    """OLMo 2: values are multiplied, and then rounded."""
    return weight.float()


def _early_above_one(weight: torch.Tensor) -> torch.Tensor:
    """Gemma: as `_early`, and weights are kept less one."""
    return weight.float() + 1


def _random(n_rows: int, n_columns: int, dtype: torch.dtype) -> torch.Tensor:
    """Normal values, the same every time, drawn from no generator that training uses."""
    return (2 * torch.randn(n_rows, n_columns, generator=torch.Generator().manual_seed(0))).to(dtype)


def _near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether all values are the same but for the last digit of their precision."""
    relative = max(1e-5, 2 * torch.finfo(expected.dtype).eps)
    return found.dtype == expected.dtype and torch.allclose(found.float(), expected.float(), rtol=relative, atol=1e-6)
