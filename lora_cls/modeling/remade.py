"""Values that an adapted layer computes again on the way back, in place of keeping them: those of GELU and of norms.

The way back of both needs what they read; what they gave, only an adapter needs there. A matrix product by these values
takes far longer than to compute them again (Chen et al. 2016, "Training deep nets with sublinear memory cost", for
single operations).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Origin = tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor]
"""A function, and a tensor that it makes another of."""


class Remade:
    """The forward of a GELU or a norm, in place of the module's: what it gives in training says how it was made."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.own = module, module.forward

    def __call__(self, x: torch.Tensor) -> Any:
        y = self.own(x)
        if self.module.training and y is not x:
            y.origin = self.own, x, x._version, y._version
        return y


def origin_of(y: torch.Tensor) -> Origin | None:
    """What gives y again; None where nothing is known that does, or where either was written into since."""
    found = getattr(y, "origin", None)
    if found is None:
        return None
    own, x, *versions = found
    return (own, x.detach()) if versions == [x._version, y._version] else None


def can_be_remade(module: nn.Module) -> bool:
    """Whether a module is a layer norm, or a form of GELU; ReLU and others keep what they gave in any case."""
    known = type(module).__module__ in ("transformers.activations", "torch.nn.modules.activation")
    return type(module) is nn.LayerNorm or (known and "GELU" in type(module).__name__)
