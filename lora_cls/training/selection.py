"""Which epoch is kept: what epochs are compared by, and on which rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lora_cls.data import Dataset, stratified_folds
from lora_cls.data.folds import most_folds
from lora_cls.errors import DataError, RecipeError
from lora_cls.recipe import Recipe, Train


class Score(NamedTuple):
    """An epoch on the rows that epochs are compared on."""

    macro_f1: float
    """At logit > 0."""
    loss: float
    """Mean over rows, see `lora_cls.training.losses.validation_loss`."""
    metric: float | None = None
    """The recipe's `metric`, turned so that more is better; only where `select_by` asks for it."""


def best_epoch(scores: Sequence[Score], train: Train) -> int:
    """The epoch that `train.select_by` keeps, counted from 1.

    Parameters
    ----------
    scores : of the epochs so far, in their order; at least one
    train : its `select_by` and `select_margin`
    """
    return _ranked(scores, train)[0] + 1


def may_win(scores: Sequence[Score], train: Train) -> set[int]:
    """Epochs, counted from 1, that can still be the best when all are done: those whose weights must be kept.

    With a margin, later epochs may move it upward: an epoch is out once it lies below, or once another has no smaller
    macro-F1 and ranks before it by loss.
    """
    ranked = _ranked(scores, train)
    if train.select_by != "loss_within_margin":
        return {ranked[0] + 1}
    kept: set[int] = set()
    greatest = -np.inf
    for i in ranked:
        if scores[i].macro_f1 > greatest:
            kept.add(i + 1)
            greatest = scores[i].macro_f1
    return kept


def _ranked(scores: Sequence[Score], train: Train) -> list[int]:
    """Positions that have not lost for good, the best first; of equals the earlier epoch."""
    everyone = range(len(scores))
    if train.select_by == "macro_f1":
        return sorted(everyone, key=lambda i: -scores[i].macro_f1)
    if train.select_by == "metric":
        return sorted(everyone, key=lambda i: -(scores[i].metric or 0.0))
    if train.select_by == "loss":
        return sorted(everyone, key=lambda i: scores[i].loss)
    limit = max(score.macro_f1 for score in scores) - train.select_margin
    return sorted(
        (i for i in everyone if scores[i].macro_f1 >= limit), key=lambda i: (scores[i].loss, -scores[i].macro_f1)
    )


def hold_back(recipe: Recipe, data: Dataset, train_rows: np.ndarray, fold: int) -> tuple[np.ndarray, np.ndarray]:
    """`select: inner`: part of a fold's training rows is held back to compare epochs on.

    Returns
    -------
    train_rows, selection_rows : ndarray of int64
        The second are never extra rows.
    """
    assert data.labels is not None
    own = train_rows[~data.extra[train_rows]]
    slices = stratified_folds(
        data.labels[own], data.groups[own], _n_slices(recipe), (recipe.train.seed + fold) % 2**32, task=recipe.task
    )
    selection_rows = own[slices == 0]
    return np.setdiff1d(train_rows, selection_rows), selection_rows


def check_selection(recipe: Recipe, data: Dataset, fold: np.ndarray) -> None:
    """Refuse, before anything is trained, a way to choose epochs that these folds do not allow.

    Raises
    ------
    RecipeError
        For `cross_fitted` with a single fold.
    DataError
        For `inner` with too few rows to hold some back.
    """
    if recipe.backbone is None:
        return  # the classical baseline has no epochs
    numbers = np.unique(fold[fold >= 0])
    if recipe.train.select == "cross_fitted" and len(numbers) < 2:
        raise RecipeError("train.select: cross_fitted needs other folds, and this run has one. Take inner or last.")
    if recipe.train.select == "inner":
        assert data.labels is not None
        for number in numbers.tolist():
            own = (fold != number) & ~data.extra
            most, what = most_folds(data.labels[own], data.groups[own], recipe.task)
            if most < _n_slices(recipe):
                raise DataError(
                    f"train.select: inner holds back one of {_n_slices(recipe)} parts (train.inner_fraction "
                    f"{recipe.train.inner_fraction:g}), but fold {number} is trained on only {most} {what}. "
                    "Raise train.inner_fraction, set train.select: last, or add rows."
                )


def _n_slices(recipe: Recipe) -> int:
    return max(2, round(1 / recipe.train.inner_fraction))
