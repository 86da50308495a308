"""The one interface that transformers and the classical baseline share, and how a fold's files are completed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from lora_cls.data import Dataset
from lora_cls.recipe import Recipe
from lora_cls.runs import FoldFolder
from lora_cls.training.progress import Progress


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


class Learner(Protocol):
    """Trains folds and answers for new texts."""

    choices: dict[str, Any]
    """What was measured at the start; `run.json` keeps it."""
    backbone_path: str | None
    """Where the base model was loaded from: a folder or a hub id; None without one."""
    notes: list[str]
    """What the user should know of the last `predict`."""
    seconds: dict[str, float]
    """Spent so far on what belongs to no fold: `load` (the base model), `tokenize`, `prefix` (layers below the lowest
    adapter)."""
    predict_seconds: float
    """Spent in the last `predict`, loading the base left out."""

    @property
    def reused(self) -> dict[str, int]:
        """What was found in caches on disk instead of being computed, by name and number."""
        ...

    def prepare(self) -> None:
        """Load and measure all that does not depend on the fold, so that what cannot work fails before a run folder
        exists; completes `choices`."""
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

    def predict(self, folder: FoldFolder, texts: Sequence[str]) -> np.ndarray:
        """Logits of the model saved in `folder`, ndarray of shape (n_texts, n_labels), float32."""
        ...


def make_learner(
    recipe: Recipe,
    label_names: Sequence[str],
    train: Dataset | None = None,
    test: Dataset | None = None,
    choices: dict[str, Any] | None = None,
    backbone: str | None = None,
    progress: Progress | None = None,
) -> Learner:
    """The learner that a recipe asks for; see `TransformerLearner` for the parameters."""
    if recipe.tfidf is not None:
        from lora_cls.training.tfidf import TfidfLearner  # needs no torch

        return TfidfLearner(recipe, label_names, train, test, progress)
    if recipe.blend is not None:
        from lora_cls.training.blend import BlendLearner

        return BlendLearner(recipe, label_names, backbone, progress)
    if recipe.head.kind == "generate":
        from lora_cls.training.generative import GenerativeLearner

        return GenerativeLearner(recipe, label_names, train, test, choices, backbone, progress)
    from lora_cls.training.transformer import TransformerLearner

    return TransformerLearner(recipe, label_names, train, test, choices, backbone, progress)
