"""Several runs' probabilities for the same rows as one, and what of it is fitted to labels.

A way is fitted on some rows and applied to others: whoever scores a blend fits it on the other folds' rows, as with
thresholds. `mean_proba`, `mean_logit` and `rank_mean` fit nothing.

Papers: pooling of probabilities, linear and logarithmic: Genest and Zidek 1986, "Combining probability distributions",
Statistical Science 1(1); stacking: Wolpert 1992, "Stacked generalization", Neural Networks 5(2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from lora_cls.evaluation.arrays import BoolArray, FloatArray, as_binary, as_scores
from lora_cls.evaluation.decisions import ClassDecisions, Decisions
from lora_cls.evaluation.metrics import macro_f1
from lora_cls.evaluation.probabilities import logit
from lora_cls.recipe import BlendHow

STACKING_C = 1.0
"""Inverse strength of stacking's ridge penalty, on features of unit variance (scikit-learn's default)."""
MAX_WEIGHT_ROWS = 20_000
"""Rows that `weights` are tuned on: a number per run needs no more, and each try sorts all of them, label by label."""


def fit_blend(how: BlendHow, decisions: Decisions, y_true: npt.ArrayLike, y_score: npt.ArrayLike) -> dict[str, Any]:
    """What a way learns from labels.

    Parameters
    ----------
    how : the way
    decisions : the task, and the settings of the thresholds that `weights` are tuned together with
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
        return {"weights": _weights(decisions, truth[some], decisions.link.logits(scores[:, some])).tolist()}
    if how == "stacking":
        stack = _stack_classes if isinstance(decisions, ClassDecisions) else _stack_labels
        coef, intercept = stack(truth, decisions.link.logits(scores))
        return {"coef": coef.tolist(), "intercept": intercept.tolist()}
    return {}


def apply_blend(
    how: BlendHow,
    decisions: Decisions,
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
    classes = isinstance(decisions, ClassDecisions)
    if how == "mean_proba":
        return np.asarray(scores.mean(axis=0))
    if how == "rank_mean":
        if reference is None or classes:
            raise ValueError("The 'how' parameter rank_mean needs 'reference', and labels that are decided one by one.")
        return _ranks(scores, as_scores(reference, "reference", ndim=3)).mean(axis=0)
    values = decisions.link.logits(scores)
    if how == "stacking":
        coef, intercept = np.asarray(fitted["coef"]), np.asarray(fitted["intercept"])
        if classes:
            return decisions.link.probabilities(np.concatenate(list(values), axis=1) @ coef.T + intercept)
        return decisions.link.probabilities(np.einsum("rnl,lr->nl", values, coef) + intercept)
    weights = fitted["weights"] if how == "weights" else np.full(len(values), 1 / len(values))
    return decisions.link.probabilities(np.tensordot(weights, values, axes=1))


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


def _weights(decisions: Decisions, truth: BoolArray, values: FloatArray) -> FloatArray:
    """Weights of the greatest macro-F1 at thresholds tuned on the same rows.

    Macro-F1 moves in steps and has no gradient: Nelder and Mead's simplex, started from equal weights and from every
    run alone, so that it never ends below the best of these.
    """
    from scipy.optimize import minimize

    n_runs = len(values)

    def loss(x: FloatArray) -> float:
        kept = np.maximum(x, 0)
        if not kept.sum() > 0:
            return 1.0
        scores = decisions.link.probabilities(np.tensordot(kept / kept.sum(), values, axes=1))
        return -macro_f1(truth, decisions.apply(scores, decisions.tune(truth, scores)))

    # Only the ratios of x count; equal weights lie off the plane of the others, or the simplex would be flat.
    start = np.vstack([np.full(n_runs, 0.5 / n_runs), np.eye(n_runs)])
    options = {"initial_simplex": start, "maxfev": 20 * n_runs, "xatol": 0.01, "fatol": 1e-5}
    found = np.maximum(minimize(loss, start[0], method="Nelder-Mead", options=options).x, 0)
    return np.asarray(found / found.sum())


def _stack_labels(truth: BoolArray, values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Coefficients of shape (n_labels, n_runs) and intercepts: for each label of the runs' log-odds of that label."""
    from sklearn.linear_model import LogisticRegression

    n_runs, _, n_labels = values.shape
    coef, intercept = np.zeros((n_labels, n_runs)), np.zeros(n_labels)
    for j in range(n_labels):
        if truth[:, j].all() or not truth[:, j].any():
            intercept[j] = logit(truth[:, j].mean(), eps=0.5 / len(truth))
            continue
        features, mean, scale = _standardised(values[:, :, j].T)
        model = LogisticRegression(C=STACKING_C, max_iter=1000).fit(features, truth[:, j])
        coef[j] = model.coef_[0] / scale
        intercept[j] = model.intercept_[0] - coef[j] @ mean
    return coef, intercept


def _stack_classes(truth: BoolArray, values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Coefficients of shape (n_classes, n_runs * n_classes) and intercepts of one multinomial regression."""
    from sklearn.linear_model import LogisticRegression

    features, mean, scale = _standardised(np.concatenate(list(values), axis=1))
    n_classes = truth.shape[1]
    coef, intercept = np.zeros((n_classes, features.shape[1])), np.full(n_classes, np.log(0.5 / len(truth)))
    present = np.flatnonzero(truth.any(axis=0))
    if len(present) == 1:
        intercept[present] = 0.0
        return coef, intercept
    model = LogisticRegression(C=STACKING_C, max_iter=1000).fit(features, truth.argmax(axis=1))
    # of two classes scikit-learn keeps one row, the log-odds of the second
    two = len(present) == 2
    coef[present] = (np.vstack([np.zeros_like(model.coef_), model.coef_]) if two else model.coef_) / scale
    intercept[present] = np.array([0.0, model.intercept_[0]] if two else model.intercept_) - coef[present] @ mean
    return coef, intercept


def _standardised(features: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Features of mean 0 and variance 1, with the means and scales; a constant one becomes 0."""
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    return (features - mean) / scale, mean, scale
