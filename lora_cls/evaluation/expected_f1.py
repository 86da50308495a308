"""Thresholds from probabilities: the cut of the greatest expected F1, for labels with few positives to tune on.

A tuned threshold is chosen by the positives of its own label; of a few of them the best cut is chance. Expected F1 asks
for probabilities instead, and these can be calibrated by all labels together (Ye, Chai, Lee and Chieu 2012, "Optimizing
F-measure: A Tale of Two Approaches", ICML).

The cut is looked for on the rows that calibrate, as thresholds are, and is one number per label: so a row is decided in
the same way alone and among others. Cuts for the very rows to be decided were no better (`benchmarks/results/`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lora_cls.evaluation.arrays import BoolArray, FloatArray
from lora_cls.evaluation.objectives import between
from lora_cls.evaluation.probabilities import logit

SLOPE_SPREAD, LEVEL_SPREAD = 0.5, 1.0
"""Standard deviations of labels' own maps around the pooled one: a label departs from it as far as its rows say."""
SHRINKAGE = 20
"""Positives at which "auto" believes a label's own rows as much as the calibrated probabilities."""
STEP = 1 / 32
"""Log-odds are counted in bins of this width when maps are fitted: far below what positives could tell apart."""


def calibration_maps(truth: BoolArray, scores: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Slopes and levels, each of shape (n_labels,): `expit(slope * logit(score) + level)` is a label's probability.

    One slope and one level are fitted to all labels together (Platt 1999, "Probabilistic Outputs for Support Vector
    Machines"). Each label has its own around them, by the greatest posterior under a normal prior: a label of few
    positives keeps the pooled map, one of many has the map of its own rows.

    Parameters
    ----------
    truth, scores : arrays of shape (n_samples, n_labels), scores within [0, 1]
    """
    n_labels = truth.shape[1]
    bins = np.rint(logit(scores) / STEP).astype(np.int64)
    lowest = int(bins.min())
    width = int(bins.max()) - lowest + 1
    place = (bins - lowest + np.arange(n_labels) * width).ravel()
    rows = np.bincount(place, minlength=n_labels * width).reshape(n_labels, width)
    positives = np.bincount(place, weights=truth.ravel(), minlength=n_labels * width).reshape(n_labels, width)
    values = (lowest + np.arange(width)) * STEP

    slope, level = _most_likely(values, rows.sum(axis=0), positives.sum(axis=0), spread=(10.0, 10.0))
    pooled = slope * values + level
    own = np.array(
        [_most_likely(pooled, n, p, spread=(SLOPE_SPREAD, LEVEL_SPREAD)) for n, p in zip(rows, positives, strict=True)]
    )
    return slope * own[:, 0], level * own[:, 0] + own[:, 1]


def calibrated(scores: FloatArray, maps: tuple[FloatArray, FloatArray]) -> FloatArray:
    """Probabilities of the shape of `scores`, (..., n_labels), by what `calibration_maps` found."""
    from scipy.special import expit

    slope, level = maps
    return np.asarray(expit(slope * logit(scores) + level))


def expected_f1_cut(proba: npt.NDArray[np.float64], scores: FloatArray) -> float:
    """The threshold on `scores`, shape (n,), at which expected F1 under `proba`, shape (n,), is greatest.

    Expected F1 is taken as the ratio of expectations, 2 * (sum of the k decided rows' probabilities) / (k + sum of all
    rows' probabilities): it nears the expected ratio as rows grow, in O(n log n) where that takes O(n^2). Rows of equal
    score are decided alike; of equal cuts the highest wins.
    """
    order = np.argsort(-scores, kind="stable")
    falling, gained = scores[order], np.cumsum(proba[order])
    expected = 2 * gained / (np.arange(1, len(scores) + 1) + gained[-1])
    cuts = np.flatnonzero(np.append(falling[:-1] != falling[1:], True))  # the last row of every run of equal scores
    best = int(cuts[np.argmax(expected[cuts])])
    if best == len(falling) - 1:
        return float(falling[-1])
    return between(lower=float(falling[best + 1]), upper=float(falling[best]))


def expected_f1_cuts(truth: BoolArray, scores: FloatArray, default: float, shrinkage: float = np.inf) -> FloatArray:
    """Thresholds of shape (n_labels,) of the greatest expected F1; `default` for a label without any positive.

    With a finite `shrinkage` a row counts as positive by n / (n + shrinkage) of its label and the rest of its
    probability, n being the label's positives: few of them leave expected F1, many the F1 that `per_label` tunes for.
    """
    if not truth.any():
        return np.full(truth.shape[1], float(default))
    positives = truth.sum(axis=0)
    trust = positives / (positives + shrinkage)
    counted = trust * truth + (1 - trust) * calibrated(scores, calibration_maps(truth, scores))
    cuts = [
        expected_f1_cut(column, values) if any_ else default
        for column, values, any_ in zip(counted.T, scores.T, positives, strict=True)
    ]
    return np.array(cuts, dtype=np.float64)


def _most_likely(
    values: npt.NDArray[Any], rows: npt.NDArray[Any], positives: npt.NDArray[Any], spread: tuple[float, float]
) -> FloatArray:
    """Slope and level on `values` of the greatest posterior; the prior is normal around 1 and 0 with these spreads.

    `rows` and `positives` count what stands at each of the values, all of shape (n_values,).
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    there = rows > 0
    x, n, n_positive = values[there], rows[there], positives[there]
    centre, precision = np.array([1.0, 0.0]), 1 / np.square(spread)

    def loss(map_: FloatArray) -> tuple[float, FloatArray]:
        z, off = map_[0] * x + map_[1], map_ - centre
        surplus = n * expit(z) - n_positive
        value = n @ np.logaddexp(0, z) - n_positive @ z + precision @ off**2 / 2
        return float(value), np.array([surplus @ x, surplus.sum()]) + precision * off

    return np.asarray(minimize(loss, centre, jac=True, method="BFGS").x)
