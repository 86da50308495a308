"""A classifier that reads each label where its own name stands, before the text.

SpanEmo (Alhuzali and Ananiadou 2021, "SpanEmo: casting multi-label emotion classification as span-prediction"): the
names and the text are one sequence, so that attention relates labels to words, and labels to each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from lora_cls.modeling.classifier import SequenceClassifier


class LabelRows(nn.Linear):
    """A linear layer whose every row reads the vector of its own label; saved as the plain linear layer it is."""

    def __init__(self, hidden_size: int, n_labels: int) -> None:
        super().__init__(hidden_size, n_labels, dtype=torch.float32)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Logits, Tensor of shape (n_rows, n_labels), of vectors of shape (n_rows, n_labels, hidden_size)."""
        return (pooled * self.weight).sum(-1) + self.bias


class LabelNamesClassifier(SequenceClassifier):
    """See `SequenceClassifier`; what the head reads is one vector per label.

    Until `read_at` says where the names stand, every label is read at the first token.
    """

    def __init__(self, *args: Any, n_labels: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.share: torch.Tensor
        self.register_buffer("share", torch.ones(n_labels, 1), persistent=False)

    def read_at(self, spans: Sequence[tuple[int, int]]) -> None:
        """Read each label as the mean over its name's tokens.

        Parameters
        ----------
        spans : begin and end of each name, counted from a text's first real token; the same in all texts
        """
        share = torch.zeros(len(spans), max(end for _, end in spans))
        for label, (begin, end) in enumerate(spans):
            share[label, begin:end] = 1 / (end - begin)
        self.share = share.to(next(self.parameters()).device)

    def pooled(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """What the head reads, Tensor of shape (n_rows, n_labels, hidden_size), float32, on the model's device."""
        hidden, mask = self.hidden_states(input_ids, attention_mask)
        rows = torch.arange(len(hidden), device=hidden.device).unsqueeze(1)
        places = mask.argmax(1, keepdim=True) + torch.arange(self.share.shape[1], device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):  # means in fp32, as `pool` takes them
            return self.share @ hidden[rows, places].float()
