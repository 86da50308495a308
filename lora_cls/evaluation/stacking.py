"""Regressions on several runs' logits (Wolpert 1992, "Stacked generalization", Neural Networks 5(2))."""

from __future__ import annotations

import numpy as np

from lora_cls.evaluation.arrays import BoolArray, FloatArray
from lora_cls.evaluation.probabilities import logit

STACKING_C = 1.0
"""Inverse strength of stacking's ridge penalty, on features of unit variance (scikit-learn's default)."""


def stack_labels(truth: BoolArray, values: FloatArray) -> tuple[FloatArray, FloatArray]:
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


def stack_classes(truth: BoolArray, values: FloatArray) -> tuple[FloatArray, FloatArray]:
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
