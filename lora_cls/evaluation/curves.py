"""What one label's scores look like: counts at every threshold, histograms, and how well probabilities come true."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lora_cls.evaluation.arrays import FloatArray, as_binary, as_scores, same_shape

DIGITS = 6
"""Significant digits of a threshold that is offered: enough to tell apart nearly all scores, and short to write."""


@dataclass(frozen=True, eq=False)
class ThresholdCounts:
    """Decisions of one label at a series of thresholds, in counts from which every figure follows exactly."""

    thresholds: FloatArray
    """Ascending, of shape (n_thresholds,)."""
    true_positives: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    """Rows with `y_score >= threshold`."""
    n_cuts: int
    """Different scores of the label: as many thresholds could decide differently."""

    @property
    def complete(self) -> bool:
        """Whether there is a threshold for every different decision."""
        return len(np.unique(self.predicted[self.predicted > 0])) == self.n_cuts


def threshold_counts(
    y_true: npt.ArrayLike, y_score: npt.ArrayLike, n_thresholds: int = 1000, keep: Sequence[float] = ()
) -> ThresholdCounts:
    """Counts of one label at every cut between its scores, or at a choice of them.

    Parameters
    ----------
    y_true : array of 0/1 of shape (n_samples,)
    y_score : array of float of shape (n_samples,), probabilities
    n_thresholds : about how many thresholds to offer. With no more different scores than that, one for each; else
        hundredths, and scores spread evenly over the ranks, half of them over as many top ranks as are four times the
        positives: that is where the best thresholds lie.
    keep : thresholds that must be among them, as they are

    Raises
    ------
    ValueError
        For shapes that differ, labels other than 0 and 1, and NaN or infinite scores.

    Examples
    --------
    >>> counts = threshold_counts([0, 1, 0, 1], [0.2, 0.6, 0.6, 0.9])
    >>> counts.thresholds.tolist(), counts.complete
    ([0.2, 0.6, 0.9], True)
    >>> (counts.true_positives / counts.predicted).round(2).tolist()  # precision at each
    [0.5, 0.67, 1.0]
    """
    truth, scores = as_binary(y_true, "y_true", ndim=1), as_scores(y_score, "y_score", ndim=1)
    same_shape(truth, "y_true", scores, "y_score")
    rising, positives = np.sort(scores), np.sort(scores[truth])
    distinct = rising[np.append(True, rising[1:] != rising[:-1])[: len(rising)]]
    chosen = distinct
    if len(distinct) > n_thresholds:
        n = len(rising)
        top = min(n, max(4 * len(positives), 200))
        half = max(2, (n_thresholds - 101) // 2)
        ranks = np.concatenate([np.linspace(n - top, n - 1, half), np.linspace(0, n - 1, half)])
        chosen = np.concatenate([rising[np.unique(ranks.round().astype(np.int64))], np.arange(101) / 100])
    # Rounded down, so that a score still reaches the threshold made of it.
    thresholds = np.unique(np.concatenate([_rounded_down(chosen), np.asarray(keep, dtype=np.float64)]))
    return ThresholdCounts(
        thresholds=thresholds,
        true_positives=len(positives) - np.searchsorted(positives, thresholds, side="left"),
        predicted=len(rising) - np.searchsorted(rising, thresholds, side="left"),
        n_cuts=len(distinct),
    )


def _rounded_down(values: FloatArray) -> FloatArray:
    """`DIGITS` significant digits, never above the value; values too small for that stay as they are."""
    usual = np.abs(values) > 1e-290  # below, the scale would overflow
    scale = 10.0 ** (DIGITS - 1 - np.floor(np.log10(np.where(usual, values, 1.0))))
    down = np.array([float(f"{value:.{DIGITS}g}") for value in np.floor(values * scale) / scale])
    return np.where(usual & (down <= values), down, values)


@dataclass(frozen=True, eq=False)
class Reliability:
    """Probabilities of one label against what came true, in bins of equally many rows."""

    mean_score: FloatArray
    share_positive: FloatArray
    rows: npt.NDArray[np.int64]


def reliability(y_true: npt.ArrayLike, y_score: npt.ArrayLike, n_bins: int = 10) -> Reliability:
    """Mean probability and share of positives in bins of equally many rows, by ascending probability.

    Equal counts rather than equal widths: most labels are rare, and nearly all their rows would fall into one bin.

    Parameters
    ----------
    y_true : array of 0/1 of shape (n_samples,)
    y_score : array of float of shape (n_samples,), probabilities
    n_bins : fewer where there are fewer rows; rows with equal scores may fall into two bins
    """
    truth, scores = as_binary(y_true, "y_true", ndim=1), as_scores(y_score, "y_score", ndim=1)
    same_shape(truth, "y_true", scores, "y_score")
    order = np.argsort(scores, kind="stable")
    bins = [part for part in np.array_split(order, n_bins) if len(part)]
    return Reliability(
        mean_score=np.array([scores[part].mean() for part in bins]),
        share_positive=np.array([truth[part].mean() for part in bins]),
        rows=np.array([len(part) for part in bins], dtype=np.int64),
    )


def score_histogram(
    y_true: npt.ArrayLike, y_score: npt.ArrayLike, n_bins: int = 40
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Counts of negatives and of positives in equally wide bins of [0, 1]; two arrays of shape (n_bins,)."""
    truth, scores = as_binary(y_true, "y_true", ndim=1), as_scores(y_score, "y_score", ndim=1)
    same_shape(truth, "y_true", scores, "y_score")
    where = np.minimum((scores * n_bins).astype(np.int64), n_bins - 1)
    return np.bincount(where[~truth], minlength=n_bins), np.bincount(where[truth], minlength=n_bins)
