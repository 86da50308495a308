"""Several runs' probabilities for the same rows as one, and what of it is fitted to labels.

A way is fitted on some rows and applied to others: whoever scores a blend fits it on the other folds' rows, as with
thresholds. `mean_proba`, `mean_logit` and `rank_mean` fit nothing.

Papers: pooling of probabilities, linear and logarithmic: Genest and Zidek 1986, "Combining probability distributions",
Statistical Science 1(1); stacking: see `lora_cls.evaluation.stacking`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from lora_cls.choices import BlendHow
from lora_cls.evaluation.arrays import BoolArray, FloatArray, as_binary, as_scores
from lora_cls.evaluation.tasks import Task

MAX_WEIGHT_ROWS = 20_000
"""Rows that `weights` are tuned on: a number per run needs no more, and each try sorts all of them, label by label."""


UNDEFINED = 1e9
"""Loss of weights that have none: worse than any."""


def fit_blend(how: BlendHow, task: Task, y_true: npt.ArrayLike, y_score: npt.ArrayLike) -> dict[str, Any]:
    """What a way learns from labels.

    Parameters
    ----------
    how : the way
    task : the task, and the settings of the thresholds that `weights` are tuned together with
    y_true : array of 0/1 of shape (n_samples, n_labels)
    y_score : array of float of shape (n_runs, n_samples, n_labels), corrected probabilities

    Returns
    -------
    dict
        Plain values, ready for `json.dump`: `weights` (one per run, adding up to 1), or `coef` and `intercept` of
        stacking (per label on the runs' log-odds of that label; for classes on all runs' log-probabilities); empty for
        ways that learn nothing.

    Raises
    ------
    ValueError
        For shapes that do not fit, values other than 0 and 1, and NaN or infinite scores.
    """
    truth, scores = _checked(y_true, y_score)
    if how == "weights":
        some = np.random.default_rng(0).permutation(len(truth))[:MAX_WEIGHT_ROWS]
        return {"weights": _weights(task, truth[some], task.link.logits(scores[:, some])).tolist()}
    if how == "stacking":
        coef, intercept = task.fit_stacking(truth, task.link.logits(scores))
        return {"coef": coef.tolist(), "intercept": intercept.tolist()}
    return {}


def apply_blend(
    how: BlendHow,
    task: Task,
    fitted: Mapping[str, Any],
    y_score: npt.ArrayLike,
    reference: npt.ArrayLike | None = None,
) -> FloatArray:
    """The runs' probabilities as one.

    Parameters
    ----------
    fitted : what `fit_blend` returned
    y_score : array of float of shape (n_runs, n_samples, n_labels)
    reference : array of float of shape (n_runs, n_reference, n_labels); for `rank_mean`, and only read by it
        The runs' out-of-fold probabilities, among which those of any row are ranked: so a row is ranked in the same way
        alone and among others. No label enters.

    Returns
    -------
    ndarray of float64 of shape (n_samples, n_labels), within [0, 1]
        For `rank_mean` ranks, which are no probabilities. For single_label each row sums to 1.

    Raises
    ------
    ValueError
        For shapes that do not fit, and for `rank_mean` without reference or for classes.
    """
    scores = as_scores(y_score, "y_score", ndim=3)
    if how == "mean_proba":
        return np.asarray(scores.mean(axis=0))
    if how == "rank_mean":
        if reference is None or how not in task.blend_ways:
            raise ValueError("The 'how' parameter rank_mean needs 'reference', and labels that are decided one by one.")
        return _ranks(scores, as_scores(reference, "reference", ndim=3)).mean(axis=0)
    values = task.link.logits(scores)
    if how == "stacking":
        coef, intercept = np.asarray(fitted["coef"]), np.asarray(fitted["intercept"])
        return task.link.probabilities(task.apply_stacking(values, coef, intercept))
    weights = fitted["weights"] if how == "weights" else np.full(len(values), 1 / len(values))
    return task.link.probabilities(np.tensordot(weights, values, axes=1))


def _checked(y_true: npt.ArrayLike, y_score: npt.ArrayLike) -> tuple[BoolArray, FloatArray]:
    truth, scores = as_binary(y_true, "y_true"), as_scores(y_score, "y_score", ndim=3)
    if scores.shape[1:] != truth.shape or not len(scores):
        raise ValueError(
            f"The 'y_score' parameter must have the shape (n_runs, {truth.shape[0]}, {truth.shape[1]}). "
            f"Got {scores.shape} instead."
        )
    return truth, scores


def _ranks(scores: FloatArray, reference: FloatArray) -> FloatArray:
    """Where each score stands among the reference scores of its run and label, strictly between 0 and 1; equal scores
    share the middle of their places."""
    ranks = np.empty(scores.shape)
    n = reference.shape[1]
    for run, label in np.ndindex(scores.shape[0], scores.shape[2]):
        known, values = np.sort(reference[run, :, label]), scores[run, :, label]
        below, up_to = np.searchsorted(known, values, "left"), np.searchsorted(known, values, "right")
        ranks[run, :, label] = ((below + up_to) / 2 + 0.5) / (n + 1)
    return ranks


def _weights(task: Task, truth: BoolArray, values: FloatArray) -> FloatArray:
    """Weights of the best metric at thresholds tuned on the same rows.

    Macro-F1 moves in steps and has no gradient: Nelder and Mead's simplex, started from equal weights and from every
    run alone, so that it never ends below the best of these.
    """
    from scipy.optimize import minimize

    n_runs, of_scores = len(values), task.metric.of_scores

    def loss(x: FloatArray) -> float:
        kept = np.maximum(x, 0)
        if not kept.sum() > 0:
            return UNDEFINED
        scores = task.link.probabilities(np.tensordot(kept / kept.sum(), values, axes=1))
        y_pred = None if of_scores else task.apply(scores, task.tune(truth, scores))
        return min(-task.metric.gain(truth, y_pred, scores), UNDEFINED)

    # Only the ratios of x count; equal weights lie off the plane of the others, or the simplex would be flat.
    start = np.vstack([np.full(n_runs, 0.5 / n_runs), np.eye(n_runs)])
    options = {"initial_simplex": start, "maxfev": 20 * n_runs, "xatol": 0.01, "fatol": 1e-5}
    found = np.maximum(minimize(loss, start[0], method="Nelder-Mead", options=options).x, 0)
    return np.asarray(found / found.sum())
