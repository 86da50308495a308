"""Probabilities that mean what they say: maps fitted to labels, and how far off probabilities are.

Temperature: Guo et al. 2017, "On Calibration of Modern Neural Networks", ICML; isotonic: Zadrozny and Elkan 2002,
"Transforming Classifier Scores into Accurate Multiclass Probability Estimates", KDD.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from lora_cls.choices import Calibration
from lora_cls.evaluation.arrays import BoolArray, FloatArray, as_binary, as_scores, same_shape
from lora_cls.evaluation.tasks import Task

N_BINS = 15
"""Bins of the expected calibration error, of equal width."""


def fit_calibration(how: Calibration, task: Task, y_true: npt.ArrayLike, y_score: npt.ArrayLike) -> dict[str, Any]:
    """The map that makes `y_score` most likely.

    Parameters
    ----------
    how : "temperature" divides log-odds by one number per label, or the log-probabilities of classes by one number;
        "isotonic" is a rising step function per label, smoothed by nothing (needs some hundred positives)
    task : the task
    y_true, y_score : arrays of shape (n_samples, n_labels), 0/1 and corrected probabilities

    Returns
    -------
    dict
        Plain values, ready for `json.dump`: `temperature` (one per label; one for classes), 1 for a label with one
        class only; or `x` and `y`, lists of one list per label, corners of the map.

    Raises
    ------
    ValueError
        For shapes that do not fit, values other than 0 and 1, NaN or infinite scores, and "isotonic" for classes,
        which it would calibrate one by one, so that they no longer sum to 1.
    """
    truth, scores = _checked(y_true, y_score)
    if how == "temperature":
        return {"temperature": task.link.temperature(truth, task.link.logits(scores))}
    if how not in task.calibrations:
        raise ValueError(
            f"The 'how' parameter must be 'temperature', or 'isotonic' where labels are decided one by one. "
            f"Got {how!r} instead."
        )
    from sklearn.isotonic import IsotonicRegression

    corners: dict[str, Any] = {"x": [], "y": []}
    for j in range(truth.shape[1]):
        found = IsotonicRegression(y_min=0.0, y_max=1.0).fit(scores[:, j], truth[:, j])
        corners["x"].append(found.X_thresholds_.tolist())
        corners["y"].append(found.y_thresholds_.tolist())
    return corners


def apply_calibration(how: Calibration, task: Task, fitted: Mapping[str, Any], y_score: npt.ArrayLike) -> FloatArray:
    """Calibrated probabilities, ndarray of float64 of the shape of `y_score`, (..., n_labels)."""
    scores = as_scores(y_score, "y_score", ndim=None)
    if how == "temperature":
        return task.link.probabilities(task.link.logits(scores) / np.asarray(fitted["temperature"]))
    result = np.empty(scores.shape)
    for j, (x, y) in enumerate(zip(fitted["x"], fitted["y"], strict=True)):
        result[..., j] = np.interp(scores[..., j], x, y)
    return result


def calibrated_thresholds(
    how: Calibration,
    task: Task,
    fitted: Mapping[str, Any],
    thresholds: npt.ArrayLike,
    y_true: npt.ArrayLike,
    y_score: npt.ArrayLike,
) -> FloatArray:
    """Thresholds for calibrated probabilities, ndarray of shape (n_labels,).

    A temperature keeps the order of scores, and the thresholds are mapped along: every decision stays. An isotonic map
    joins scores, so that a threshold may fall within a step: thresholds are tuned again, on calibrated `y_score`.
    """
    limits = as_scores(thresholds, "thresholds", ndim=1)
    if how == "isotonic":
        return task.tune(y_true, apply_calibration(how, task, fitted, y_score))
    return task.tempered(limits, np.asarray(fitted["temperature"]))


def calibration_scores(y_true: npt.ArrayLike, y_score: npt.ArrayLike) -> dict[str, list[float]]:
    """How far probabilities are from what happened, per label (or class); less is better.

    Returns
    -------
    dict
        `brier`: the mean of (probability - label)^2. `expected_calibration_error`: over `N_BINS` bins of equal width,
        the mean distance of a bin's mean probability from its share of positives, weighted by its rows.
    """
    truth, scores = _checked(y_true, y_score)
    return {
        "brier": ((scores - truth) ** 2).mean(axis=0).tolist(),
        "expected_calibration_error": [_calibration_error(truth[:, j], scores[:, j]) for j in range(truth.shape[1])],
    }


def _checked(y_true: npt.ArrayLike, y_score: npt.ArrayLike) -> tuple[BoolArray, FloatArray]:
    truth, scores = as_binary(y_true, "y_true"), as_scores(y_score, "y_score")
    same_shape(truth, "y_true", scores, "y_score")
    return truth, scores


def _calibration_error(truth: BoolArray, scores: FloatArray) -> float:
    bins = np.minimum((scores * N_BINS).astype(np.int64), N_BINS - 1)
    gap = np.bincount(bins, weights=scores, minlength=N_BINS) - np.bincount(bins, weights=truth, minlength=N_BINS)
    return float(np.abs(gap).sum() / max(len(truth), 1))
