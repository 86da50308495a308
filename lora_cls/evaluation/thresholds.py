"""Thresholds: from scores to decisions.

A cut is a line between two different scores: rows with equal scores are never separated. F1 only changes at cuts, so
looking at every cut finds the best threshold exactly (Lipton, Elkan and Naryanaswamy 2014, "Optimal Thresholding of
Classifiers to Maximize F1 Measure", ECML PKDD); one descending sort and cumulative sums look at all of them.

A threshold tuned on the rows it is scored on flatters. `cross_fit_thresholds` decides every row by thresholds that
other folds chose; `tune_thresholds` on all rows gives the thresholds to ship.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from lora_cls.choices import LabelStrategy
from lora_cls.evaluation.arrays import BoolArray, FloatArray, as_binary, as_row_keys, as_scores, same_shape
from lora_cls.evaluation.expected_f1 import SHRINKAGE, expected_f1_cuts
from lora_cls.evaluation.metric import MACRO_F1, Metric
from lora_cls.evaluation.objectives import highest_best_cut
from lora_cls.evaluation.probabilities import as_probabilities


@dataclass(frozen=True, eq=False)
class CrossFit:
    """Decisions by thresholds that never saw the rows they decide."""

    thresholds: dict[int, FloatArray]
    """Fold to the thresholds, of shape (n_labels,), tuned on the rows of all other folds."""
    y_pred: npt.NDArray[np.int8]
    """Decisions of shape (n_samples, n_labels), in the order of the rows given."""


def best_f1_threshold(
    y_true: npt.ArrayLike, y_score: npt.ArrayLike, *, min_positives: int = 5, default: float = 0.5
) -> float:
    """The threshold with the greatest F1 for one label, exactly, in O(n log n).

    Parameters
    ----------
    y_true : array of 0/1 of shape (n_samples,)
    y_score : array of float of shape (n_samples,)
    min_positives : int
        A label with fewer positives keeps `default`: its best cut would be chance.
    default : float
        Returned for too few positives, no positives at all (whatever `min_positives`) and empty input.

    Returns
    -------
    float
        The midpoint of the two scores that the best cut separates (the upper one if the midpoint rounds to the lower).
        The cut below all scores, where every row is positive, is given as the lowest score; a label without negatives
        always ends there. Of cuts with equal F1 the highest wins, the one with the fewest positive decisions.

    Raises
    ------
    ValueError
        For shapes that differ, labels other than 0 and 1, and NaN or infinite scores.

    Examples
    --------
    The two rows that score 0.5 stay together: no threshold takes the positive one alone.

    >>> best_f1_threshold([0, 1, 0, 1], [0.25, 0.5, 0.5, 0.75], min_positives=1)
    0.375
    >>> best_f1_threshold([0, 1, 0, 1], [0.25, 0.5, 0.5, 0.75])  # two positives, of five that it takes
    0.5
    """
    truth, scores = as_binary(y_true, "y_true", ndim=1), as_scores(y_score, "y_score", ndim=1)
    same_shape(truth, "y_true", scores, "y_score")
    return highest_best_cut(truth[:, None], scores[:, None], min_positives, default)


def tune_thresholds(
    y_true: npt.ArrayLike,
    y_score: npt.ArrayLike,
    *,
    metric: Metric = MACRO_F1,
    strategy: LabelStrategy = "per_label",
    min_positives: int = 5,
    default: float = 0.5,
) -> FloatArray:
    """Thresholds that maximise a metric on the rows given.

    Parameters
    ----------
    y_true : array of 0/1 of shape (n_samples, n_labels)
    y_score : array of float of shape (n_samples, n_labels)
    metric : what they are tuned for; of ranks and probabilities, macro-F1
    strategy : {"per_label", "global", "prevalence", "fixed", "expected_f1", "auto"}
        "per_label" finds one for every label; for macro-F1 that of `best_f1_threshold`, as its terms are independent
        (see `Metric.cut_each` for what is exact). "global" finds the one threshold that is best over all labels,
        exactly: it visits every distinct score of every label after one sort. "prevalence" gives each label its share
        of positives (`default` where all rows are alike), and no row chooses a cut: where positives were weighed by
        negatives / positives, that is where logits change their sign. "fixed" gives every label `default`.
        "expected_f1" gives each the cut of the greatest expected F1 by calibrated probabilities, "auto" one between it
        and "per_label": the nearer to the latter the more positives the label has; see
        `lora_cls.evaluation.expected_f1`. Both leave `default` to labels without any positive.
    min_positives : int
        "per_label": a label with fewer positives keeps `default`. "global": `default` if all labels together have
        fewer.
    default : float

    Returns
    -------
    ndarray of float64 of shape (n_labels,)

    Raises
    ------
    ValueError
        For an unknown strategy, shapes that differ, labels other than 0 and 1, NaN or infinite scores, and
        for "expected_f1" and "auto" scores outside [0, 1].

    Examples
    --------
    The second label has one positive row, too few to tune on: it keeps the default.

    >>> y_true = [[1, 0], [1, 0], [0, 1], [0, 0]]
    >>> y_score = [[0.5, 0.1], [0.375, 0.2], [0.125, 0.3], [0.25, 0.1]]
    >>> tune_thresholds(y_true, y_score, min_positives=2)
    array([0.3125, 0.5   ])
    """
    truth, scores = as_binary(y_true, "y_true"), as_scores(y_score, "y_score")
    same_shape(truth, "y_true", scores, "y_score")
    n_labels = truth.shape[1]
    if strategy == "per_label":
        return metric.cut_each(truth, scores, min_positives, default)
    if strategy == "global":
        return np.full(n_labels, metric.cut_all(truth, scores, min_positives, default))
    if strategy == "expected_f1":
        return expected_f1_cuts(truth, as_probabilities(scores, "y_score", ndim=2), default)
    if strategy == "auto":
        return expected_f1_cuts(truth, as_probabilities(scores, "y_score", ndim=2), default, SHRINKAGE)
    if strategy == "prevalence":
        share = truth.mean(axis=0)
        return np.where((share > 0) & (share < 1), share, float(default))
    if strategy == "fixed":
        return np.full(n_labels, float(default))
    raise ValueError(
        f"The 'strategy' parameter must be one of {', '.join(get_args(LabelStrategy))}. Got {strategy!r} instead."
    )


def tune_on_others(
    truth: BoolArray,
    scores: FloatArray,
    part: npt.NDArray[np.intp],
    *,
    metric: Metric = MACRO_F1,
    strategy: LabelStrategy = "per_label",
    min_positives: int = 5,
    default: float = 0.5,
) -> FloatArray:
    """`tune_thresholds` on the rows outside of each part.

    Parameters
    ----------
    truth, scores : arrays of shape (n_samples, n_labels)
    part : array of int of shape (n_samples,), from 0 to n_parts - 1
    metric, strategy, min_positives, default
        As in `tune_thresholds`, with the same errors.

    Returns
    -------
    ndarray of float64 of shape (n_parts, n_labels)
    """
    if strategy == "per_label":
        return metric.cut_others(truth, scores, part, min_positives, default)
    others = (part != k for k in range(int(part.max()) + 1))
    settings: dict[str, Any] = {
        "metric": metric, "strategy": strategy, "min_positives": min_positives, "default": default,
    }  # fmt: skip
    return np.stack([tune_thresholds(truth[rows], scores[rows], **settings) for rows in others])


def apply_thresholds(
    y_score: npt.ArrayLike, thresholds: npt.ArrayLike, *, at_least_one: bool = False
) -> npt.NDArray[np.int8]:
    """Decisions: 1 where `y_score >= threshold`.

    Parameters
    ----------
    y_score : array of float of shape (n_samples, n_labels)
    thresholds : float, or array of float of shape (n_labels,)
    at_least_one : bool
        Give a row without any positive label the one with the greatest margin `y_score - threshold` (the first of
        equals). For tasks in which every row has a label.

    Returns
    -------
    ndarray of int8 of shape (n_samples, n_labels)

    Raises
    ------
    ValueError
        For shapes that do not fit, and NaN or infinite scores or thresholds.

    Examples
    --------
    >>> y_score = [[0.5, 0.375], [0.25, 0.125]]
    >>> apply_thresholds(y_score, [0.5, 0.25]).tolist()  # 0.5 reaches 0.5
    [[1, 1], [0, 0]]
    >>> apply_thresholds(y_score, [0.5, 0.25], at_least_one=True).tolist()  # 0.125 is nearer to 0.25 than 0.25 to 0.5
    [[1, 1], [0, 1]]
    """
    # Both sides in float64: a threshold rounded to float32 may fall on the score just below it.
    scores = as_scores(y_score, "y_score")
    n_labels = scores.shape[1]
    limits = as_scores(thresholds, "thresholds", ndim=None)
    if limits.shape not in ((), (n_labels,)):
        raise ValueError(
            f"The 'thresholds' parameter must be one number or one per label ({n_labels}). "
            f"Got shape {limits.shape} instead."
        )
    y_pred = (scores >= limits).astype(np.int8)
    if at_least_one and n_labels:
        bare = np.flatnonzero(~y_pred.any(axis=1))
        y_pred[bare, np.argmax(scores[bare] - limits, axis=1)] = 1
    return y_pred


def cross_fit_thresholds(
    y_true: npt.ArrayLike,
    y_score: npt.ArrayLike,
    fold: npt.ArrayLike,
    *,
    strategy: LabelStrategy = "per_label",
    min_positives: int = 5,
    default: float = 0.5,
    at_least_one: bool = False,
) -> CrossFit:
    """Decide the rows of each fold by thresholds tuned on the rows of all other folds.

    Parameters
    ----------
    y_true : array of 0/1 of shape (n_samples, n_labels)
    y_score : array of float of shape (n_samples, n_labels)
        Out-of-fold scores: each row's by a model that did not train on it.
    fold : array of int of shape (n_samples,)
    strategy, min_positives, default
        As in `tune_thresholds`.
    at_least_one : bool
        As in `apply_thresholds`.

    Returns
    -------
    CrossFit

    Raises
    ------
    ValueError
        For fewer than two folds, and for whatever `tune_thresholds` refuses.

    Examples
    --------
    The best threshold of each fold's own rows would make no mistake there; that of the other fold's rows makes one.

    >>> y_true, y_score, fold = [[0], [1], [0], [1]], [[0.125], [0.375], [0.5], [0.75]], [0, 0, 1, 1]
    >>> fitted = cross_fit_thresholds(y_true, y_score, fold, min_positives=1)
    >>> fitted.thresholds
    {0: array([0.625]), 1: array([0.25])}
    >>> fitted.y_pred.ravel().tolist()
    [0, 0, 1, 1]
    """
    return cross_fit(
        y_true,
        y_score,
        fold,
        partial(tune_on_others, strategy=strategy, min_positives=min_positives, default=default),
        partial(apply_thresholds, at_least_one=at_least_one),
    )


def cross_fit(
    y_true: npt.ArrayLike,
    y_score: npt.ArrayLike,
    fold: npt.ArrayLike,
    tune_others: Callable[[BoolArray, FloatArray, npt.NDArray[np.intp]], FloatArray],
    apply: Callable[[FloatArray, FloatArray], npt.NDArray[np.int8]],
) -> CrossFit:
    """Decide the rows of each fold by what `tune_others` finds on the rows of all others; see `cross_fit_thresholds`.

    Parameters
    ----------
    tune_others : as `tune_on_others`: thresholds of shape (n_folds, n_labels) from truth, scores and each row's fold,
        counted from 0
    """
    truth, scores = as_binary(y_true, "y_true"), as_scores(y_score, "y_score")
    same_shape(truth, "y_true", scores, "y_score")
    fold_of_row = as_row_keys(fold, "fold", len(truth))
    folds, number_of_row = np.unique(fold_of_row, return_inverse=True)
    if len(folds) < 2:
        raise ValueError(
            "The 'fold' parameter must hold at least two folds: the thresholds of a fold are tuned on the others. "
            f"Got {folds.tolist()} instead; with one fold, use a fixed threshold."
        )
    thresholds: dict[int, FloatArray] = {}
    y_pred = np.empty(truth.shape, dtype=np.int8)
    for number, tuned in enumerate(tune_others(truth, scores, number_of_row)):
        inside = number_of_row == number
        thresholds[int(folds[number])] = tuned
        y_pred[inside] = apply(scores[inside], tuned)
    return CrossFit(thresholds=thresholds, y_pred=y_pred)
