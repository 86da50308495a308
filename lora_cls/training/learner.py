"""Who answers, who trains, and what a trained fold hands back: the same for transformers, TF-IDF and blends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from lora_cls.data import Dataset
from lora_cls.runs import FoldFolder
from lora_cls.training.teachers import Teachers


@dataclass(frozen=True)
class FoldResult:
    """What a trained fold answers.

    Attributes
    ----------
    oof_logits : ndarray of shape (n_oof_rows, n_labels), float32
    test_logits : ndarray of shape (n_test_rows, n_labels), float32, or None without a test file
    pos_weight : ndarray of shape (n_labels,), the shift in the logits that probabilities undo
    info : seconds, counts, chosen epoch; JSON values
    """

    oof_logits: np.ndarray
    test_logits: np.ndarray | None
    pos_weight: np.ndarray
    info: dict[str, Any] = field(default_factory=dict)


class Predictor(Protocol):
    """Answers for new texts."""

    notes: list[str]
    """What the user should know of the last `predict`."""
    predict_seconds: float
    """Spent in the last `predict`, loading the base left out."""

    def predict(self, folder: FoldFolder, texts: Sequence[str]) -> np.ndarray:
        """Logits of the model saved in `folder`, ndarray of shape (n_texts, n_labels), float32."""
        ...


class FoldTrainer(Protocol):
    """Trains folds of one table."""

    def adapt(self, extra_texts: Sequence[str]) -> None:
        """Train the base on the texts of all tables and these, where the recipe says so (`adapt`), before anything
        else is asked; their labels play no part."""
        ...

    def measure(self) -> None:
        """Load and measure all that does not depend on the fold, so that what cannot work fails before a run folder
        exists; completes `Learner.choices`."""
        ...

    def fit_fold(
        self,
        fold: int,
        train_rows: np.ndarray,
        oof_rows: np.ndarray,
        folder: FoldFolder,
        n_epochs: int | None = None,
    ) -> FoldResult:
        """Train on `train_rows` and save the model in `folder`; answer for `oof_rows` and the test rows.

        `fold` is -1 for a model of all rows, which stops after `n_epochs` of the recipe's schedule.
        """
        ...


class Learner(Predictor, Protocol):
    """Trains folds, too. What it holds does not depend on any rows: those enter at `prepare`."""

    choices: dict[str, Any]
    """What was measured at the start; `run.json` keeps it."""
    backbone_path: str | None
    """Where the base model was loaded from: a folder or a hub id; None without one."""
    seconds: dict[str, float]
    """Spent so far on what belongs to no fold: `load` (the base model), `tokenize`, `prefix` (layers below the lowest
    adapter)."""

    @property
    def reused(self) -> dict[str, int]:
        """What was found in caches on disk instead of being computed, by name and number."""
        ...

    def prepare(self, train: Dataset, test: Dataset | None = None, teachers: Teachers | None = None) -> FoldTrainer:
        """Take in the rows to train on, those to answer for, and whom to learn from; no model is loaded for that."""
        ...
