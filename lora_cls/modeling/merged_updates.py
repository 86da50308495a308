"""Adapters added to copies of their base's weights while texts are answered: one product per layer in place of three.

`W x + s B (A x)` is `(W + s B A) x`. In fp32 the answers are the same but for their last digits; in a 16-bit base the
sum is rounded once more, which moves logits about as much as another kind of attention does. The base's own weights,
and the adapters, stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import nn

from lora_cls.modeling.frozen_linear import FrozenLinear
from lora_cls.modeling.low_rank import fused_modules


class MergedUpdates:
    """Room for the merged weights of one fold after another; a model's layers take them within `merged`.

    Parameters
    ----------
    backbone : with adapters, which `lora_cls.modeling.low_rank.speed_up` has seen
    """

    def __init__(self, backbone: nn.Module) -> None:
        self._modules = fused_modules(backbone)
        self._weights: list[torch.Tensor] = []

    @property
    def fits(self) -> bool:
        """Whether there is anything to merge, and room for it: the sums, the same again as they are packed, and once
        more for the batches."""
        if not self._modules:
            return False
        if self._weights:
            return True
        weights = [module.base_layer.weight for module in self._modules]
        device = weights[0].device
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
        return 3 * sum(weight.nbytes for weight in weights) <= free

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Within it, the layers answer with the adapters that the model holds now."""
        if not self._weights:
            self._weights = [torch.empty_like(module.base_layer.weight) for module in self._modules]
        before = [module.forward for module in self._modules]
        try:
            for module, weight in zip(self._modules, self._weights, strict=True):
                _merge(module, weight)
                module.forward = FrozenLinear(weight, module.base_layer.bias)
            yield
        finally:
            for module, forward in zip(self._modules, before, strict=True):
                module.forward = forward


def _merge(module: Any, into: torch.Tensor) -> None:
    """The sum, computed in fp32 and rounded once."""
    a, b = (factors["default"].weight.detach() for factors in (module.lora_A, module.lora_B))
    weight = module.base_layer.weight.detach().float()
    into.copy_(torch.addmm(weight, b.float(), a.float(), alpha=module.scaling["default"]))
