"""Bootstrap intervals for macro-F1: how much a figure would move with another sample of texts.

They leave out training variance: the trained models, and the thresholds, are held fixed, and only the rows they are
scored on are drawn anew. Training again with another seed, other folds or other training texts moves the figure
further than these intervals say; only repeated runs show how far.

Whole groups are drawn, with replacement (percentile interval: Efron and Tibshirani 1993, "An Introduction to the
Bootstrap", chapter 13; drawing clusters: Field and Welsh 2007, "Bootstrapping Clustered Data", JRSS B 69(3)). Rows of
one group, such as copies of one text or chunks of one document, are not independent, and drawing them singly would
give intervals too narrow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lora_cls.evaluation.arrays import BoolArray, FloatArray, as_binary, as_row_keys, same_shape

_CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Interval:
    """An estimate with its percentile bootstrap interval."""

    estimate: float
    """The figure on the rows as they are."""
    low: float
    high: float
    confidence: float
    n_resamples: int
    n_groups: int
    """Groups drawn in each resample; of both row sets together for an unpaired difference."""


def bootstrap_macro_f1(
    y_true: npt.ArrayLike,
    y_pred: npt.ArrayLike,
    groups: npt.ArrayLike,
    *,
    n_resamples: int = 1000,
    confidence: float = 0.95,
    random_state: int = 0,
) -> Interval:
    """Interval for macro-F1.

    Parameters
    ----------
    y_true, y_pred : array of 0/1 of shape (n_samples, n_labels)
    groups : array of int of shape (n_samples,)
        Rows with the same value are drawn together; `np.arange(n_samples)` draws rows singly.
    n_resamples : int
    confidence : float between 0 and 1
    random_state : int
        The same value gives the same interval.

    Returns
    -------
    Interval
        In a resample without positives and positive decisions of a label, its F1 is 0, as in `metrics`. With very
        rare labels the interval therefore leans downwards.

    Raises
    ------
    ValueError
        For shapes that do not fit, values other than 0 and 1, fewer than two groups, fewer than one resample, and a
        `confidence` outside (0, 1).

    Examples
    --------
    Twenty texts that stand four times each. Drawn singly, the copies pass for 80 texts, and the interval is too narrow.

    >>> y_true, y_pred = np.repeat([[1], [0], [1], [0]] * 5, 4, axis=0), np.repeat([[1], [0], [0], [0]] * 5, 4, axis=0)
    >>> for groups in (np.arange(80), np.arange(80) // 4):
    ...     found = bootstrap_macro_f1(y_true, y_pred, groups)
    ...     print(f"{found.estimate:.2f}, from {found.low:.2f} to {found.high:.2f}, {found.n_groups} groups")
    0.67, from 0.51 to 0.79, 80 groups
    0.67, from 0.33 to 0.91, 20 groups
    """
    _check_settings(n_resamples, confidence)
    counts = _group_counts(y_true, y_pred, groups)
    resampled = _resampled_macro_f1([counts], n_resamples, np.random.SeedSequence(random_state))[0]
    return _interval(_macro_f1(counts.sum(axis=0)), resampled, confidence, len(counts))


def bootstrap_difference(
    y_true: npt.ArrayLike,
    y_pred_a: npt.ArrayLike,
    y_pred_b: npt.ArrayLike,
    groups: npt.ArrayLike,
    *,
    n_resamples: int = 1000,
    confidence: float = 0.95,
    random_state: int = 0,
) -> Interval:
    """Interval for macro-F1 of a minus macro-F1 of b on the same rows, paired: each resample scores both.

    Parameters
    ----------
    y_true, y_pred_a, y_pred_b : array of 0/1 of shape (n_samples, n_labels)
    groups : array of int of shape (n_samples,)
    n_resamples, confidence, random_state
        As in `bootstrap_macro_f1`, with the same errors.

    Returns
    -------
    Interval

    Examples
    --------
    Each resample scores both, so what both get right or wrong cancels out.

    >>> y_true = np.array([[1], [0]] * 20)
    >>> a, b = y_true.copy(), y_true.copy()
    >>> a[:8], b[:16] = 0, 0  # a misses four positives, b the same four and four more
    >>> found = bootstrap_difference(y_true, a, b, np.arange(40))
    >>> print(f"{found.estimate:.2f}, from {found.low:.2f} to {found.high:.2f}")
    0.14, from 0.03 to 0.29
    """
    _check_settings(n_resamples, confidence)
    a, b = _group_counts(y_true, y_pred_a, groups, "y_pred_a"), _group_counts(y_true, y_pred_b, groups, "y_pred_b")
    f1_a, f1_b = _resampled_macro_f1([a, b], n_resamples, np.random.SeedSequence(random_state))
    return _interval(_macro_f1(a.sum(axis=0)) - _macro_f1(b.sum(axis=0)), f1_a - f1_b, confidence, len(a))


def bootstrap_unpaired_difference(
    y_true_a: npt.ArrayLike,
    y_pred_a: npt.ArrayLike,
    groups_a: npt.ArrayLike,
    y_true_b: npt.ArrayLike,
    y_pred_b: npt.ArrayLike,
    groups_b: npt.ArrayLike,
    *,
    n_resamples: int = 1000,
    confidence: float = 0.95,
    random_state: int = 0,
) -> Interval:
    """Interval for macro-F1 of a minus macro-F1 of b on two independent row sets, each drawn for itself.

    Parameters
    ----------
    y_true_a, y_pred_a : array of 0/1 of shape (n_samples_a, n_labels)
    groups_a : array of int of shape (n_samples_a,)
    y_true_b, y_pred_b : array of 0/1 of shape (n_samples_b, n_labels)
    groups_b : array of int of shape (n_samples_b,)
    n_resamples, confidence, random_state
        As in `bootstrap_macro_f1`, with the same errors.

    Returns
    -------
    Interval

    Raises
    ------
    ValueError
        Also if the two sets have different numbers of labels.
    """
    _check_settings(n_resamples, confidence)
    a = _group_counts(y_true_a, y_pred_a, groups_a, "y_pred_a", "y_true_a", "groups_a")
    b = _group_counts(y_true_b, y_pred_b, groups_b, "y_pred_b", "y_true_b", "groups_b")
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"The 'y_true_b' parameter must have as many labels as 'y_true_a', {a.shape[1]}. Got {b.shape[1]} instead."
        )
    seed_a, seed_b = np.random.SeedSequence(random_state).spawn(2)
    f1_a = _resampled_macro_f1([a], n_resamples, seed_a)[0]
    f1_b = _resampled_macro_f1([b], n_resamples, seed_b)[0]
    return _interval(_macro_f1(a.sum(axis=0)) - _macro_f1(b.sum(axis=0)), f1_a - f1_b, confidence, len(a) + len(b))


def _check_settings(n_resamples: int, confidence: float) -> None:
    if n_resamples < 1:
        raise ValueError(f"The 'n_resamples' parameter must be at least 1. Got {n_resamples} instead.")
    if not 0 < confidence < 1:
        raise ValueError(f"The 'confidence' parameter must lie between 0 and 1. Got {confidence} instead.")


def _group_counts(
    y_true: npt.ArrayLike,
    y_pred: npt.ArrayLike,
    groups: npt.ArrayLike,
    pred_name: str = "y_pred",
    true_name: str = "y_true",
    groups_name: str = "groups",
) -> FloatArray:
    """True positives and errors (fp + fn) of each group and label, of shape (n_groups, n_labels, 2)."""
    truth, decided = as_binary(y_true, true_name), as_binary(y_pred, pred_name)
    same_shape(truth, true_name, decided, pred_name)
    names, group_of_row = np.unique(as_row_keys(groups, groups_name, len(truth)), return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"The '{groups_name}' parameter must hold at least two groups. Got {len(names)} instead.")
    if truth.shape[1] == 0:
        raise ValueError(f"The '{true_name}' parameter must have labels. Got an array of shape {truth.shape} instead.")
    counts = np.empty((len(names), truth.shape[1], 2))
    counts[..., 0] = _sums(truth & decided, group_of_row, len(names))
    counts[..., 1] = _sums(truth ^ decided, group_of_row, len(names))
    return counts


def _sums(hits: BoolArray, group_of_row: npt.NDArray[np.intp], n_groups: int) -> npt.NDArray[np.int64]:
    """Sums of the rows of each group, of shape (n_groups, n_labels)."""
    row, label = np.nonzero(hits)
    n_labels = hits.shape[1]
    flat = np.bincount(group_of_row[row] * n_labels + label, minlength=n_groups * n_labels)
    return flat.reshape(n_groups, n_labels)


def _resampled_macro_f1(counts: list[FloatArray], n_resamples: int, seed: np.random.SeedSequence) -> list[FloatArray]:
    """Macro-F1 in each resample, of shape (n_resamples,), for each array of counts; all see the same draws."""
    flat = [c.reshape(len(c), -1) for c in counts]
    values: list[list[FloatArray]] = [[] for _ in counts]
    for drawn in _draws(len(counts[0]), n_resamples, np.random.default_rng(seed)):
        for found, columns, original in zip(values, flat, counts, strict=True):
            # Sums of whole numbers, exact in float64: equal decisions give equal F1 to the last bit.
            found.append(_macro_f1((drawn @ columns).reshape(-1, *original.shape[1:])))
    return [np.concatenate(found) for found in values]


def _draws(n_groups: int, n_resamples: int, rng: np.random.Generator) -> Iterator[FloatArray]:
    """How often each group is drawn, in chunks of shape (some resamples, n_groups).

    One draw after the other from one generator, so the size of the chunks, which bounds the memory, changes no figure.
    Counting `n_groups` drawn indices is a multinomial draw, several times faster than `rng.multinomial`.
    """
    at_once = max(1, _CHUNK_BYTES // (8 * n_groups))
    for start in range(0, n_resamples, at_once):
        chunk = np.empty((min(at_once, n_resamples - start), n_groups))
        for row in chunk:
            row[:] = np.bincount(rng.integers(n_groups, size=n_groups), minlength=n_groups)
        yield chunk


def _macro_f1(counts: FloatArray) -> FloatArray:
    """Macro-F1 from counts of shape (..., n_labels, 2); F1 is 0 for a label without true positives and errors."""
    tp, errors = counts[..., 0], counts[..., 1]
    f1: FloatArray = 2 * tp / np.maximum(2 * tp + errors, 1)
    return np.asarray(f1.mean(axis=-1))


def _interval(estimate: FloatArray, resampled: FloatArray, confidence: float, n_groups: int) -> Interval:
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(estimate), float(low), float(high), confidence, len(resampled), n_groups)
