"""What thresholds are tuned for: `thresholds.objective` of a recipe, by name.

Another objective is an entry of `OBJECTIVES` here, and a name in `lora_cls.recipe.Thresholds`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lora_cls.evaluation.arrays import BoolArray, FloatArray
from lora_cls.evaluation.metrics import macro_f1


@dataclass(frozen=True)
class Objective:
    """A score of decisions, and the cuts that are best for it.

    Attributes
    ----------
    score : of 0/1 arrays `y_true` and `y_pred` of shape (n_samples, n_labels); more is better
    cut_each : thresholds of shape (n_labels,), one for each label, that are together the best on the rows given; a
        function of `y_true`, `y_score`, `min_positives` and `default`, see `tune_thresholds`
    cut_all : the best one threshold for all labels, a function of the same
    """

    score: Callable[[npt.ArrayLike, npt.ArrayLike], float]
    cut_each: Callable[[BoolArray, FloatArray, int, float], FloatArray]
    cut_all: Callable[[BoolArray, FloatArray, int, float], float]


def objective_named(name: str) -> Objective:
    """The objective of that name; ValueError for another one."""
    if name not in OBJECTIVES:
        raise ValueError(f"The 'objective' parameter must be one of {', '.join(OBJECTIVES)}. Got {name!r} instead.")
    return OBJECTIVES[name]


def best_cuts(truth: BoolArray, scores: FloatArray, min_positives: int, default: float) -> FloatArray:
    """The cut of the greatest F1 for every label: the best for macro-F1, as its terms are independent."""
    columns = (slice(j, j + 1) for j in range(truth.shape[1]))
    return np.array([highest_best_cut(truth[:, c], scores[:, c], min_positives, default) for c in columns], float)


def highest_best_cut(truth: BoolArray, scores: FloatArray, min_positives: int, default: float) -> float:
    """The one threshold for all columns with the greatest sum of F1; of equals the highest."""
    if truth.sum() < max(min_positives, 1):
        return float(default)
    n, n_labels = truth.shape
    order = np.argsort(-scores, axis=0)
    positives = np.cumsum(np.take_along_axis(truth, order, axis=0), axis=0, dtype=np.int64)
    # F1 = 2 tp / (decided positive + truly positive), after each row of each label's own descending order.
    f1 = 2 * positives / (np.arange(1, n + 1)[:, None] + positives[-1])

    # What each row adds to the sum of F1 when the threshold falls to its score. In whole numbers these steps add up to
    # each label's F1 without drift, however many there are; equal sums can then differ by n_labels at most.
    unit = 1 << min(52, 62 - n_labels.bit_length())
    steps = np.diff(np.rint(f1 * unit).astype(np.int64), axis=0, prepend=0).ravel()
    falling = np.take_along_axis(scores, order, axis=0).ravel()
    if n_labels > 1:  # one label is in order already
        order = np.argsort(-falling)
        steps, falling = steps[order], falling[order]

    cuts = np.flatnonzero(np.append(falling[:-1] != falling[1:], True))  # the last row of every run of equal scores
    total = np.cumsum(steps)[cuts]
    slack = n_labels if n_labels > 1 else 0
    best = int(cuts[np.argmax(total >= total.max() - slack)])
    if best == len(falling) - 1:
        return float(falling[-1])
    return between(lower=float(falling[best + 1]), upper=float(falling[best]))


def between(lower: float, upper: float) -> float:
    """The midpoint, or `upper` where it would round to `lower`: either way `>=` separates the two."""
    middle = lower / 2 + upper / 2  # halves first: the sum of two large scores may overflow
    return middle if lower < middle <= upper else upper


OBJECTIVES = {"macro_f1": Objective(macro_f1, best_cuts, highest_best_cut)}
