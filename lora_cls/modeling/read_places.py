"""The last layer of a model that is read at one token of each row: its feed-forward half is computed for that alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

# what a layer calls first, with its whole input, after attention and the sum behind it
STARTS = ("pre_feedforward_layernorm", "mlp_norm", "post_attention_layernorm", "intermediate", "ln_2")


class ReadPlaces:
    """In place of the forward of what begins the feed-forward half of a layer.

    Within `only`, the tokens that are read are taken out of what comes in, and the half has one token of each row to
    compute. The layer's own code adds the result to all tokens of the row: the sum is right where it is read, and is
    read nowhere else.
    """

    def __init__(self, start: nn.Module) -> None:
        self.start, self.own = start, start.forward
        self.places: torch.Tensor | None = None
        start.forward = self

    @classmethod
    def of(cls, layer: nn.Module) -> ReadPlaces | None:
        """Of a layer; None where it has no such half."""
        for name in STARTS:
            if isinstance(start := getattr(layer, name, None), nn.Module):
                return cls(start)
        return None

    def remove(self) -> None:
        """Give the layer its own forward again."""
        self.start.forward = self.own

    def __call__(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.places is not None:
            hidden = hidden[torch.arange(len(hidden), device=hidden.device), self.places].unsqueeze(1)
        return self.own(hidden, *args, **kwargs)

    @contextmanager
    def only(self, places: torch.Tensor) -> Iterator[None]:
        """Within it, each row is read at its place alone; places of shape (n_rows,), int64."""
        self.places = places
        try:
            yield
        finally:
            self.places = None
