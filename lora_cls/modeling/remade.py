"""Values that an adapted layer computes again on the way back, in place of keeping them: activations and norms.

The way back of an activation or a norm needs what it read; what it gave is read by an adapter alone. A matrix product
by these values takes far longer than to compute them again (Chen et al. 2016, "Training deep nets with sublinear memory
cost", for single operations).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Source = tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor]
"""A function, and a tensor that it makes another of."""


class Remade:
    """The forward of an activation or a norm, in place of the module's: what it gives in training says how it was
    made."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.own = module, module.forward

    def __call__(self, x: torch.Tensor) -> Any:
        y = self.own(x)
        if self.module.training and y is not x:
            y.source = self.own, x, x._version, y._version
        return y


def source_of(y: torch.Tensor) -> Source | None:
    """What gives y again; None where nothing is known that does, or where either was written into since."""
    found = getattr(y, "source", None)
    if found is None:
        return None
    own, x, *versions = found
    return (own, x.detach()) if versions == [x._version, y._version] else None


def can_be_remade(module: nn.Module) -> bool:
    """Whether a module is an activation or a norm of PyTorch or transformers that gives the same for the same input."""
    if type(module) is nn.LayerNorm:
        return True
    known = type(module).__module__ in ("transformers.activations", "torch.nn.modules.activation")
    other = isinstance(module, (nn.MultiheadAttention, nn.RReLU)) or getattr(module, "inplace", False)
    return known and not other and not any(True for _ in module.parameters())
