"""The cuts that are best for a metric, on the rows given; `lora_cls.evaluation.metric` says which metric takes which.

What every function here takes: `truth` and `scores` of shape (n_samples, n_labels), `min_positives` and `default`, see
`lora_cls.evaluation.thresholds.tune_thresholds`. A cut is a line between two different scores, below all of them, or
above all of them where no decision at all is best.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from lora_cls.evaluation.arrays import BoolArray, FloatArray

Counts = npt.NDArray[np.int64]
Rate = Callable[[Any, Any, Any, Any], FloatArray]
"""What a column is worth: of its true positives, positive decisions, positives and rows; arrays that broadcast, or
numbers."""
RowValue = Callable[[Counts, Counts], FloatArray]
"""What a row is worth: of the labels that are both true and decided, and of those that are either."""


def f1_rate(true_positives: Any, decided: Any, positives: Any, n: Any) -> FloatArray:
    """F1; 0 for 0 / 0."""
    return np.asarray(2 * true_positives / np.maximum(decided + positives, 1))


def f_beta_rate(beta: float) -> Rate:
    """F-beta: recall counts `beta` times as much as precision (van Rijsbergen 1979); 0 for 0 / 0."""

    def rate(true_positives: Any, decided: Any, positives: Any, n: Any) -> FloatArray:
        below = decided + beta**2 * positives
        return np.asarray((1 + beta**2) * true_positives / np.where(below > 0, below, 1))

    return rate


def mcc_rate(true_positives: Any, decided: Any, positives: Any, n: Any) -> FloatArray:
    """The correlation of decisions and truth (Matthews 1975); 0 where either is the same for all rows."""
    spread = (1.0 * decided) * (n - decided) * positives * (n - positives)
    return np.asarray((true_positives * n - decided * positives) / np.sqrt(np.maximum(spread, 1)))


def right_rate(true_positives: Any, decided: Any, positives: Any, n: Any) -> FloatArray:
    """By how much the share of right decisions exceeds that of no positive decision at all."""
    return np.asarray((2 * true_positives - decided) / n)


def best_cuts(truth: BoolArray, scores: FloatArray, min_positives: int, default: float, rate: Rate) -> FloatArray:
    """The best cut of every label by itself: the best for a mean over labels, as its terms are independent.

    Exact, by one descending sort. A label without negatives is always positive: whatever is decided, its correlation
    is 0.
    """
    cuts = np.full(truth.shape[1], float(default))
    for j in range(truth.shape[1]):
        positive, falling, _ = _from_the_greatest(truth[:, j], scores[:, j])
        cuts[j] = _best_cut(positive, falling, min_positives, default, rate)
    return cuts


def best_cuts_of_others(
    truth: BoolArray, scores: FloatArray, part: Counts, min_positives: int, default: float, rate: Rate
) -> FloatArray:
    """`best_cuts` of the rows outside of each part, from one sort per label: the others' order is that of all rows.

    Parameters
    ----------
    part : array of int of shape (n_samples,), from 0

    Returns
    -------
    ndarray of float64 of shape (n_parts, n_labels)
    """
    n_parts = int(part.max()) + 1
    cuts = np.empty((n_parts, truth.shape[1]))
    small = part.astype(np.min_scalar_type(n_parts))
    for j in range(truth.shape[1]):
        positive, falling, order = _from_the_greatest(truth[:, j], scores[:, j])
        part_of_row = small[order]
        for k in range(n_parts):
            others = part_of_row != k
            cuts[k, j] = _best_cut(positive[others], falling[others], min_positives, default, rate)
    return cuts


def _from_the_greatest(truth: BoolArray, scores: FloatArray) -> tuple[BoolArray, FloatArray, npt.NDArray[np.intp]]:
    """One label's truth and scores by falling score, and that order.

    Of copies that lie together: in a large table, a column's values lie far apart, and a cache holds few of them.
    """
    truth, scores = np.ascontiguousarray(truth), np.ascontiguousarray(scores)
    order = np.argsort(-scores)
    return truth[order], scores[order], order


def _best_cut(positive: BoolArray, falling: FloatArray, min_positives: int, default: float, rate: Rate) -> float:
    """The best cut of one label, whose rows stand from the greatest score to the least."""
    if len(positive) >= max(min_positives, 1) and positive.all():
        return float(falling[-1])
    return _cut_of_falling(positive, falling, min_positives, default, rate)


def _cut_of_falling(positive: BoolArray, falling: FloatArray, min_positives: int, default: float, rate: Rate) -> float:
    """`highest_best_cut` of one column, whose rows stand from the greatest score to the least.

    By every rate here no decision at all is worth 0, and a cut above 0 is worth less than the one before it if it takes
    no positive more: such cuts are not looked at.
    """
    at = np.flatnonzero(positive)
    n_positives = len(at)
    if n_positives < max(min_positives, 1):
        return float(default)
    n = len(falling)
    found, rows = np.arange(1, n_positives + 1), at
    ends = np.flatnonzero(falling[:-1] != falling[1:])  # but for the last row, of every run of equal scores
    if len(ends) < n - 1:
        run = np.searchsorted(ends, at)
        last = np.flatnonzero(np.append(run[:-1] != run[1:], True))  # positive of a run
        found, rows = found[last], np.append(ends, n - 1)[run[last]]
    values = np.rint(rate(found, rows + 1, n_positives, n) * (1 << 52))  # without the last bit's noise
    best = int(np.argmax(values))  # argmax: the first of equals
    return _above(float(falling[0])) if values[best] <= 0 else _cut_after(falling, int(rows[best]))


def highest_best_cut(
    truth: BoolArray, scores: FloatArray, min_positives: int, default: float, rate: Rate = f1_rate
) -> float:
    """The one threshold for all columns with the greatest sum of their rates; of equals the highest."""
    n, n_columns = truth.shape
    if n_columns == 1:
        positive, falling, _ = _from_the_greatest(truth[:, 0], scores[:, 0])
        return _cut_of_falling(positive, falling, min_positives, default, rate)
    if truth.sum() < max(min_positives, 1):
        return float(default)
    order = np.argsort(-scores, axis=0)
    positives = truth.sum(axis=0, dtype=np.int64)
    found = np.zeros((n + 1, n_columns), dtype=np.int64)
    np.cumsum(np.take_along_axis(truth, order, axis=0), axis=0, dtype=np.int64, out=found[1:])
    # Before any row, and after each row, of each column's own descending order.
    values = rate(found, np.arange(n + 1)[:, None], positives, n)

    # What each row adds to the sum when the threshold falls to its score. In whole numbers these steps add up to each
    # column's rate without drift, however many there are; equal sums can then differ by n_columns at most.
    unit = 1 << min(52, 62 - n_columns.bit_length())
    steps = np.diff(np.rint(values * unit).astype(np.int64), axis=0).ravel()
    falling = np.take_along_axis(scores, order, axis=0).ravel()
    order = np.argsort(-falling)
    steps, falling = steps[order], falling[order]

    cuts = np.flatnonzero(np.append(falling[:-1] != falling[1:], True))  # the last row of every run of equal scores
    total = np.cumsum(steps)[cuts]
    if total.max() <= n_columns:
        return _above(float(falling[0]))
    best = int(cuts[np.argmax(total >= total.max() - n_columns)])
    return _cut_after(falling, best)


def micro_f1_cuts(truth: BoolArray, scores: FloatArray, min_positives: int, default: float) -> FloatArray:
    """The cuts that are together the best for micro-F1, exactly, by Dinkelbach's method (1967, "On Nonlinear Fractional
    Programming", Management Science 13(7)).

    Micro-F1 is 2 tp / (decided + positive), both sums over the labels. It reaches `f` where the sum of each label's
    greatest 2 tp - f decided is at least f times the positives: labels are independent once `f` is given, and the `f`
    that these cuts have is the next one, until it is its own. Whole numbers throughout.
    """
    n_labels = truth.shape[1]
    tunable = truth.sum(axis=0) >= max(min_positives, 1)
    cuts, fixed = np.full(n_labels, float(default)), scores >= default
    order, found, ends = [], [], []
    for j in range(n_labels):
        order.append(np.argsort(-scores[:, j], kind="stable"))
        found.append(np.concatenate([[0], np.cumsum(truth[order[j], j], dtype=np.int64)]))
        falling = scores[order[j], j]
        ends.append(_ends(falling))
    positives = int(truth.sum())
    above, below = 0, 1
    while tunable.any():
        tp, decided = int((fixed & truth)[:, ~tunable].sum()), int(fixed[:, ~tunable].sum())
        at = {}
        for j in np.flatnonzero(tunable).tolist():
            worth = 2 * below * found[j][ends[j]] - above * ends[j]
            at[j] = int(ends[j][np.argmax(worth)])  # argmax: the first of equals, the highest cut
            tp, decided = tp + int(found[j][at[j]]), decided + at[j]
        if 2 * tp * below <= above * (decided + positives):
            break
        for j, k in at.items():
            falling = scores[order[j], j]
            cuts[j] = _above(float(falling[0])) if k == 0 else _cut_after(falling, k - 1)
        above, below = 2 * tp, decided + positives
    return cuts


def ascend(truth: BoolArray, scores: FloatArray, min_positives: int, start: FloatArray, value: RowValue) -> FloatArray:
    """Cuts for a mean over rows, to which a row's labels are worth something together: a local optimum.

    Coordinate ascent: label after label takes the cut that is best given the other labels' decisions (exact, by one
    sort), over and over, until no label gains. No single cut can then be moved for the better; several together might.

    Parameters
    ----------
    start : array of shape (n_labels,), the cuts to begin with
    value : what a row is worth
    """
    cuts = np.array(start, dtype=np.float64)
    decided = scores >= cuts
    order = np.argsort(-scores, axis=0, kind="stable")
    tunable = np.flatnonzero(truth.sum(axis=0) >= max(min_positives, 1)).tolist()
    both = (truth & decided).sum(axis=1, dtype=np.int64)
    either = (truth | decided).sum(axis=1, dtype=np.int64)
    moved = True
    while moved:
        moved = False
        for j in tunable:
            own = truth[:, j]
            both, either = both - (own & decided[:, j]), either - (own | decided[:, j])
            yes, no = value(both + own, either + 1), value(both, either + own)
            falling = scores[order[:, j], j]
            reached = np.concatenate([[0.0], np.cumsum((yes - no)[order[:, j]])])
            ends = _ends(falling)
            k = int(ends[np.argmax(reached[ends] >= reached[ends].max() - 1e-9)])
            if reached[k] > reached[int(decided[:, j].sum())] + 1e-9:
                cuts[j] = _above(float(falling[0])) if k == 0 else _cut_after(falling, k - 1)
                decided[:, j] = scores[:, j] >= cuts[j]
                moved = True
            both, either = both + (own & decided[:, j]), either + (own | decided[:, j])
    return cuts


def _ends(falling: FloatArray) -> Counts:
    """How many of the descending scores each cut takes, none first; equal scores are taken together."""
    return np.concatenate([[0], np.flatnonzero(np.append(falling[:-1] != falling[1:], True)) + 1])


def _cut_after(falling: FloatArray, row: int) -> float:
    """The cut that takes all descending scores up to that of `row`."""
    if row == len(falling) - 1:
        return float(falling[-1])
    return between(lower=float(falling[row + 1]), upper=float(falling[row]))


def between(lower: float, upper: float) -> float:
    """The midpoint, or `upper` where it would round to `lower`: either way `>=` separates the two."""
    middle = lower / 2 + upper / 2  # halves first: the sum of two large scores may overflow
    return middle if lower < middle <= upper else upper


def _above(highest: float) -> float:
    """A cut above all scores: between the highest and 1 where they are probabilities."""
    return between(highest, 1.0) if highest < 1 else float(np.nextafter(highest, np.inf))
