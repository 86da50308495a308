"""Metrics of multi-label decisions and scores.

F1 of a label is 2 tp / (2 tp + fp + fn), and 0 where that is 0 / 0 (scikit-learn's `zero_division=0`): a label that
neither occurs nor is predicted counts as 0 in the macro mean. Figures are of all rows pooled, never means over folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lora_cls.evaluation.arrays import BoolArray, FloatArray, as_binary, as_scores, same_shape


def f1_scores(y_true: npt.ArrayLike, y_pred: npt.ArrayLike) -> FloatArray:
    """F1 of every label; 0 for a label that neither occurs nor is predicted.

    Parameters
    ----------
    y_true, y_pred : array of 0/1 of shape (n_samples, n_labels)

    Returns
    -------
    ndarray of float64 of shape (n_labels,)

    Raises
    ------
    ValueError
        For shapes that differ, no rows or no labels, and values other than 0 and 1 (so do all metrics here).

    Examples
    --------
    The last label neither occurs nor is predicted.

    >>> f1_scores([[1, 0, 0], [1, 1, 0], [0, 1, 0]], [[1, 0, 0], [0, 1, 0], [0, 1, 0]]).round(3).tolist()
    [0.667, 1.0, 0.0]
    """
    tp, n_true, n_pred = _counts(*_checked(y_true, y_pred))
    return _ratio(2 * tp, n_true + n_pred)


def macro_f1(y_true: npt.ArrayLike, y_pred: npt.ArrayLike) -> float:
    """Mean of `f1_scores` over the labels; `y_true`, `y_pred` of shape (n_samples, n_labels).

    Examples
    --------
    A rare label counts as much as a frequent one.

    >>> macro_f1([[1, 0], [1, 0], [1, 1]], [[1, 0], [1, 0], [1, 0]])  # F1 is 1 and 0
    0.5
    """
    return float(f1_scores(y_true, y_pred).mean())


def micro_f1(y_true: npt.ArrayLike, y_pred: npt.ArrayLike) -> float:
    """F1 of all decisions pooled over the labels; `y_true`, `y_pred` of shape (n_samples, n_labels).

    Examples
    --------
    >>> micro_f1([[1, 0], [1, 0], [1, 1]], [[1, 0], [1, 0], [1, 0]])  # 6 / 7: three hits, one miss
    0.8571428571428571
    """
    tp, n_true, n_pred = _counts(*_checked(y_true, y_pred))
    return float(_ratio(2 * tp.sum(keepdims=True), (n_true + n_pred).sum(keepdims=True))[0])


def exact_match(y_true: npt.ArrayLike, y_pred: npt.ArrayLike) -> float:
    """Share of rows with every label right; `y_true`, `y_pred` of shape (n_samples, n_labels).

    Examples
    --------
    >>> exact_match([[1, 0], [0, 1]], [[1, 0], [1, 1]])  # one label too many makes the second row wrong
    0.5
    """
    truth, decided = _checked(y_true, y_pred)
    return float((truth == decided).all(axis=1).mean())


def label_table(
    y_true: npt.ArrayLike,
    y_pred: npt.ArrayLike,
    y_score: npt.ArrayLike,
    label_names: Sequence[str],
    thresholds: npt.ArrayLike | None = None,
    ranks: Sequence[tuple[float | None, float | None]] | None = None,
) -> list[dict[str, Any]]:
    """One row of figures per label, in plain Python values.

    Parameters
    ----------
    y_true, y_pred : array of 0/1 of shape (n_samples, n_labels)
    y_score : array of float of shape (n_samples, n_labels)
    label_names : sequence of str of length n_labels
    thresholds : float, array of shape (n_labels,), or None
        Copied into the table; None where there is no single threshold, as with cross-fitted decisions.
    ranks : what `label_ranks` says of `y_true` and `y_score`, where it is at hand

    Returns
    -------
    list of dict
        label, support (positives), prevalence, threshold, precision and recall (0 where undefined), f1, and from the
        scores roc_auc and average_precision (None where only one class is present).

    Raises
    ------
    ValueError
        For shapes or lengths that do not fit, values other than 0 and 1, and NaN or infinite scores.
    """
    truth, decided = _checked(y_true, y_pred)
    scores = as_scores(y_score, "y_score")
    same_shape(truth, "y_true", scores, "y_score")
    n_samples, n_labels = truth.shape
    if len(label_names) != n_labels:
        raise ValueError(f"The 'label_names' parameter must name {n_labels} label(s). Got {len(label_names)} instead.")
    limits = _thresholds_column(thresholds, n_labels)

    ranks = label_ranks(truth, scores) if ranks is None else ranks
    tp, n_true, n_pred = _counts(truth, decided)
    precision, recall, f1 = _ratio(tp, n_pred), _ratio(tp, n_true), _ratio(2 * tp, n_true + n_pred)
    table = []
    for j, name in enumerate(label_names):
        roc_auc, average_precision = ranks[j]
        table.append(
            {
                "label": str(name),
                "support": int(n_true[j]),
                "prevalence": float(n_true[j] / n_samples),
                "threshold": limits[j],
                "precision": float(precision[j]),
                "recall": float(recall[j]),
                "f1": float(f1[j]),
                "roc_auc": roc_auc,
                "average_precision": average_precision,
            }
        )
    return table


def summary(
    y_true: npt.ArrayLike,
    y_pred: npt.ArrayLike,
    y_score: npt.ArrayLike,
    label_names: Sequence[str],
    thresholds: npt.ArrayLike | None = None,
    ranks: Sequence[tuple[float | None, float | None]] | None = None,
) -> dict[str, Any]:
    """All figures of one set of decisions, ready for `json.dump`. Parameters and errors as in `label_table`.

    Returns
    -------
    dict
        macro_f1, micro_f1, exact_match; macro_roc_auc and macro_average_precision, means over the labels with both
        classes (None without any); per_label, the rows of `label_table`.
    """
    table = label_table(y_true, y_pred, y_score, label_names, thresholds, ranks)
    return {
        "macro_f1": macro_f1(y_true, y_pred),
        "micro_f1": micro_f1(y_true, y_pred),
        "exact_match": exact_match(y_true, y_pred),
        "macro_roc_auc": mean_where_defined([row["roc_auc"] for row in table]),
        "macro_average_precision": mean_where_defined([row["average_precision"] for row in table]),
        "per_label": table,
    }


def _checked(y_true: npt.ArrayLike, y_pred: npt.ArrayLike) -> tuple[BoolArray, BoolArray]:
    truth, decided = as_binary(y_true, "y_true"), as_binary(y_pred, "y_pred")
    same_shape(truth, "y_true", decided, "y_pred")
    if truth.size == 0:
        raise ValueError(
            f"The 'y_true' parameter must have rows and labels. Got an array of shape {truth.shape} instead."
        )
    return truth, decided


def _counts(
    truth: BoolArray, decided: BoolArray
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Per label: true positives, positives, positive decisions."""
    return (
        (truth & decided).sum(axis=0, dtype=np.int64),
        truth.sum(axis=0, dtype=np.int64),
        decided.sum(axis=0, dtype=np.int64),
    )


def _ratio(above: npt.NDArray[np.int64], below: npt.NDArray[np.int64]) -> FloatArray:
    """`above / below`, and 0 for 0 / 0."""
    result: FloatArray = above / np.maximum(below, 1)
    return result


def ranking_metrics(truth: BoolArray, scores: FloatArray) -> tuple[float | None, float | None]:
    """ROC-AUC and average precision of one label, arrays of shape (n_samples,); None where one class is absent."""
    if truth.all() or not truth.any():
        return None, None
    from sklearn.metrics import average_precision_score, roc_auc_score  # here, as it takes a second to import

    return float(roc_auc_score(truth, scores)), float(average_precision_score(truth, scores))


def label_ranks(y_true: npt.ArrayLike, y_score: npt.ArrayLike) -> list[tuple[float | None, float | None]]:
    """`ranking_metrics` of every label; no decision enters, so that one call serves several of the same scores.

    Parameters
    ----------
    y_true : array of 0/1 of shape (n_samples, n_labels)
    y_score : array of float of the same shape
    """
    truth, scores = as_binary(y_true, "y_true"), as_scores(y_score, "y_score")
    same_shape(truth, "y_true", scores, "y_score")
    return [ranking_metrics(truth[:, j], scores[:, j]) for j in range(truth.shape[1])]


def _thresholds_column(thresholds: npt.ArrayLike | None, n_labels: int) -> list[float | None]:
    if thresholds is None:
        return [None] * n_labels
    limits = as_scores(thresholds, "thresholds", ndim=None)
    if limits.shape not in ((), (n_labels,)):
        raise ValueError(
            f"The 'thresholds' parameter must be one number or one per label ({n_labels}). "
            f"Got an array of shape {limits.shape} instead."
        )
    return [float(t) for t in np.broadcast_to(limits, (n_labels,))]


def mean_where_defined(values: Sequence[float | None]) -> float | None:
    """The mean of those that are not None; None without any."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
