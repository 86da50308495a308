"""Bootstrap intervals for macro-F1 and other metrics: how much a figure would move with another sample of texts.

They leave out training variance: the trained models, and the thresholds, are held fixed, and only the rows they are
scored on are drawn anew. Training again with another seed, other folds or other training texts moves the figure
further than these intervals say; only repeated runs show how far.

Whole groups are drawn, with replacement (percentile interval: Efron and Tibshirani 1993, "An Introduction to the
Bootstrap", chapter 13; drawing clusters: Field and Welsh 2007, "Bootstrapping Clustered Data", JRSS B 69(3)). Rows of
one group, such as copies of one text or chunks of one document, are not independent, and drawing them singly would
give intervals too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lora_cls.evaluation.arrays import BoolArray, FloatArray, as_binary, as_row_keys, as_scores, same_shape
from lora_cls.evaluation.metric import Metric

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


@dataclass(frozen=True, eq=False)
class Answers:
    """What one model said of rows.

    Attributes
    ----------
    y_pred : array of 0/1 of shape (n_samples, n_labels)
    y_score : array of float of the same shape, probabilities
    """

    y_pred: npt.ArrayLike
    y_score: npt.ArrayLike


def bootstrap_metric(
    metric: Metric,
    y_true: npt.ArrayLike,
    answers: Answers,
    groups: npt.ArrayLike,
    *,
    n_resamples: int = 1000,
    confidence: float = 0.95,
    random_state: int = 0,
) -> Interval | None:
    """Interval for any metric; `bootstrap_macro_f1` is the same for macro-F1.

    Returns
    -------
    Interval or None
        None where the metric is undefined: `roc_auc` and `average_precision` without any label that has positives and
        negatives. Labels that a resample leaves without either are left out of its mean.

    Raises
    ------
    ValueError
        As `bootstrap_macro_f1`; for probabilities that are NaN or infinite.
    """
    if metric.name == "macro_f1":
        return bootstrap_macro_f1(
            y_true, answers.y_pred, groups, n_resamples=n_resamples, confidence=confidence, random_state=random_state
        )
    _check_settings(n_resamples, confidence)
    n_groups, of_draws = _resampler(metric, y_true, answers, groups)
    draws = _draws(n_groups, n_resamples, np.random.default_rng(np.random.SeedSequence(random_state)))
    resampled = np.concatenate([of_draws(drawn) for drawn in draws])
    estimate = metric.score(y_true, answers.y_pred, answers.y_score)
    return None if np.isnan(estimate) else _interval(np.float64(estimate), resampled, confidence, n_groups)


def bootstrap_metric_difference(
    metric: Metric,
    y_true: npt.ArrayLike,
    a: Answers,
    b: Answers,
    groups: npt.ArrayLike,
    *,
    n_resamples: int = 1000,
    confidence: float = 0.95,
    random_state: int = 0,
) -> Interval:
    """Interval for the metric of a minus that of b on the same rows, paired: each resample scores both.

    For `log_loss`, of which less is better, it is b minus a: above 0 always means that a is better. 0 where the metric
    is undefined.

    Raises
    ------
    ValueError
        As `bootstrap_metric`.
    """
    if metric.name == "macro_f1":
        return bootstrap_difference(
            y_true, a.y_pred, b.y_pred, groups, n_resamples=n_resamples, confidence=confidence,
            random_state=random_state,
        )  # fmt: skip
    _check_settings(n_resamples, confidence)
    n_groups, of_a = _resampler(metric, y_true, a, groups)
    _, of_b = _resampler(metric, y_true, b, groups)
    draws = _draws(n_groups, n_resamples, np.random.default_rng(np.random.SeedSequence(random_state)))
    sign = -1.0 if metric.less_is_better else 1.0
    resampled = np.concatenate([sign * (of_a(drawn) - of_b(drawn)) for drawn in draws])
    estimate = sign * (metric.score(y_true, a.y_pred, a.y_score) - metric.score(y_true, b.y_pred, b.y_score))
    estimate, resampled = np.nan_to_num(estimate), np.nan_to_num(resampled)
    return _interval(np.float64(estimate), resampled, confidence, n_groups)


def bootstrap_metric_unpaired_difference(
    metric: Metric,
    y_true_a: npt.ArrayLike,
    a: Answers,
    groups_a: npt.ArrayLike,
    y_true_b: npt.ArrayLike,
    b: Answers,
    groups_b: npt.ArrayLike,
    *,
    n_resamples: int = 1000,
    confidence: float = 0.95,
    random_state: int = 0,
) -> Interval | None:
    """Interval for the metric of a minus that of b on two independent row sets, each drawn for itself.

    For `log_loss`, of which less is better, it is b minus a: above 0 always means that a is better.

    Returns
    -------
    Interval or None
        None where the metric is undefined for either. A resample in which it is counts as no difference.

    Raises
    ------
    ValueError
        As `bootstrap_metric`; if the two sets have different numbers of labels.
    """
    if metric.name == "macro_f1":
        return bootstrap_unpaired_difference(
            y_true_a, a.y_pred, groups_a, y_true_b, b.y_pred, groups_b, n_resamples=n_resamples,
            confidence=confidence, random_state=random_state,
        )  # fmt: skip
    _check_settings(n_resamples, confidence)
    sign, estimates, resampled, n_groups = -1.0 if metric.less_is_better else 1.0, [], [], 0
    seeds = np.random.SeedSequence(random_state).spawn(2)
    for y_true, answers, groups, seed in ((y_true_a, a, groups_a, seeds[0]), (y_true_b, b, groups_b, seeds[1])):
        n_drawn, of_draws = _resampler(metric, y_true, answers, groups)
        draws = _draws(n_drawn, n_resamples, np.random.default_rng(seed))
        resampled.append(np.concatenate([of_draws(drawn) for drawn in draws]))
        estimates.append(metric.score(y_true, answers.y_pred, answers.y_score))
        n_groups += n_drawn
    estimate = np.float64(sign * (estimates[0] - estimates[1]))
    if np.isnan(estimate):
        return None
    return _interval(estimate, np.nan_to_num(sign * (resampled[0] - resampled[1])), confidence, n_groups)


def _resampler(
    metric: Metric, y_true: npt.ArrayLike, answers: Answers, groups: npt.ArrayLike
) -> tuple[int, Callable[[FloatArray], FloatArray]]:
    """How many groups there are, and the metric of resamples: of draws of shape (n, n_groups), see `_draws`; (n,)."""
    truth = as_binary(y_true, "y_true")
    names, group_of_row = np.unique(as_row_keys(groups, "groups", len(truth)), return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"The 'groups' parameter must hold at least two groups. Got {len(names)} instead.")
    if metric.name in ("roc_auc", "average_precision"):
        scores = as_scores(answers.y_score, "y_score")
        same_shape(truth, "y_true", scores, "y_score")
        ranked = [_Ranked.of(truth[:, j], scores[:, j], group_of_row) for j in range(truth.shape[1])]

        def of_ranks(drawn: FloatArray) -> FloatArray:
            of_label = np.array([label.score(metric.name, drawn) for label in ranked])
            known = ~np.isnan(of_label)
            return np.asarray(
                np.where(known, of_label, 0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)
            )

        return len(names), of_ranks
    summands = metric.summands(truth, answers.y_pred, answers.y_score)
    sums = np.zeros((len(names), summands.shape[1]))
    np.add.at(sums, group_of_row, summands)
    return len(names), lambda drawn: metric.of_sums(drawn @ sums)


@dataclass(frozen=True, eq=False)
class _Ranked:
    """One label's rows from the greatest score to the least: their groups, whether they are positive, and where runs of
    equal scores end."""

    groups: npt.NDArray[np.intp]
    positive: FloatArray
    ends: npt.NDArray[np.intp]

    @classmethod
    def of(cls, truth: BoolArray, scores: FloatArray, group_of_row: npt.NDArray[np.intp]) -> _Ranked:
        order = np.argsort(-scores, kind="stable")
        falling = scores[order]
        ends = np.flatnonzero(np.append(falling[:-1] != falling[1:], True))
        return cls(group_of_row[order], truth[order].astype(np.float64), ends)

    def score(self, name: str, drawn: FloatArray) -> FloatArray:
        """ROC-AUC or average precision of each draw, (n,); NaN where it holds no positives or no negatives."""
        times = drawn[:, self.groups]
        positives = np.cumsum(times * self.positive, axis=1)[:, self.ends]
        decided = np.cumsum(times, axis=1)[:, self.ends]
        all_positives, n = positives[:, -1], decided[:, -1]
        known = (all_positives > 0) & (all_positives < n)
        more = np.diff(positives, axis=1, prepend=0)
        if name == "average_precision":
            area = (more * positives / np.maximum(decided, 1)).sum(axis=1) / np.maximum(all_positives, 1)
        else:  # each positive is above the negatives that come later, and above half of those at its own score
            negatives = decided - positives
            ties = np.diff(negatives, axis=1, prepend=0)
            above = negatives[:, -1:] - negatives + ties / 2
            area = (more * above).sum(axis=1) / np.maximum(all_positives * (n - all_positives), 1)
        return np.where(known, area, np.nan)


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
