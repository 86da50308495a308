"""What goes into a head and comes out of it: training rows, and answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lora_cls.data import Dataset
from lora_cls.text.tokens import Tokens


@dataclass(frozen=True)
class TrainingRows:
    """Labelled texts, as a model reads them.

    Attributes
    ----------
    tokens : of every text
    labels : ndarray of shape (n_texts, n_labels), 0 or 1
    targets : ndarray of shape (n_texts, n_labels), what is taught: the labels, or their shares
    row_weight : ndarray of shape (n_texts,), 0 or more; None counts every text alike
    taught : ndarray of shape (n_texts, n_labels), log-odds (of classes log-probabilities) by teachers; None without
    n_labelled : with `taught`: so many texts have labels, and those behind them have none
    """

    tokens: Tokens
    labels: np.ndarray
    targets: np.ndarray
    row_weight: np.ndarray | None
    taught: np.ndarray | None = None
    n_labelled: int | None = None

    @classmethod
    def of(cls, data: Dataset, tokens: Tokens) -> TrainingRows:
        """The rows of a labelled table."""
        assert data.labels is not None
        return cls(tokens, data.labels, data.labels if data.targets is None else data.targets, data.row_weight)

    @property
    def labelled(self) -> TrainingRows:
        """Those with labels."""
        return self if self.n_labelled is None else self.take(np.arange(self.n_labelled))

    def take(self, rows: np.ndarray) -> TrainingRows:
        """The given rows, in the given order, as rows with labels."""
        weight = None if self.row_weight is None else self.row_weight[rows]
        return TrainingRows(self.tokens.take(rows), self.labels[rows], self.targets[rows], weight)


@dataclass(frozen=True)
class Answered:
    """What a model says of texts, or of their pieces.

    Attributes
    ----------
    logits : ndarray of shape (n_texts, n_labels) or (n_pieces, n_labels), float32
    written : of every piece the position of its text, the answer, and whether labels could be read in it; empty where
        nothing is written
    """

    logits: np.ndarray
    written: list[tuple[int, str, bool]]
