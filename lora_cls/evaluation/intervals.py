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

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lora_cls.evaluation.arrays import BoolArray, FloatArray, as_binary, as_row_keys, as_scores, same_shape
from lora_cls.evaluation.metric import Metric

_CHUNK_BYTES = 64 * 2**20

OfDraws = Callable[[FloatArray], FloatArray]
"""A figure of resamples: from how often each group is drawn, of shape (n, n_groups), see `_draws`; (n,)."""


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
    counts, n_groups = _counts_of(y_true, y_pred, groups)
    resampled = _resampled([counts.macro_f1], n_groups, n_resamples, np.random.SeedSequence(random_state))[0]
    return _interval(counts.estimate(), resampled, confidence, n_groups)


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
    a, n_groups = _counts_of(y_true, y_pred_a, groups, "y_pred_a")
    b, _ = _counts_of(y_true, y_pred_b, groups, "y_pred_b")
    f1_a, f1_b = _resampled([a.macro_f1, b.macro_f1], n_groups, n_resamples, np.random.SeedSequence(random_state))
    return _interval(a.estimate() - b.estimate(), f1_a - f1_b, confidence, n_groups)


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
    a, n_groups_a = _counts_of(y_true_a, y_pred_a, groups_a, "y_pred_a", "y_true_a", "groups_a")
    b, n_groups_b = _counts_of(y_true_b, y_pred_b, groups_b, "y_pred_b", "y_true_b", "groups_b")
    if len(a) != len(b):
        raise ValueError(
            f"The 'y_true_b' parameter must have as many labels as 'y_true_a', {len(a) // 2}. "
            f"Got {len(b) // 2} instead."
        )
    seed_a, seed_b = np.random.SeedSequence(random_state).spawn(2)
    f1_a = _resampled([a.macro_f1], n_groups_a, n_resamples, seed_a)[0]
    f1_b = _resampled([b.macro_f1], n_groups_b, n_resamples, seed_b)[0]
    return _interval(a.estimate() - b.estimate(), f1_a - f1_b, confidence, n_groups_a + n_groups_b)


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
    figures = Resamples.draw([metric], y_true, [answers], groups, n_resamples=n_resamples, random_state=random_state)
    return figures.interval(metric, 0, confidence)


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
    figures = Resamples.draw([metric], y_true, [a, b], groups, n_resamples=n_resamples, random_state=random_state)
    return figures.difference(metric, 0, 1, confidence)


@dataclass(frozen=True, eq=False)
class Resamples:
    """Metrics of several models' answers to the same rows, in resamples that are drawn once for all of them.

    Intervals are those that `bootstrap_metric` and `bootstrap_metric_difference` give, to the last bit.

    Attributes
    ----------
    n_groups : int
    figures : a metric, and the number of the answers, to the estimate and that of each resample, (n_resamples,)

    Examples
    --------
    >>> y_true, y_score = np.array([[1], [0]] * 20), np.zeros((40, 1))
    >>> a, b = Answers(y_true, y_score), Answers(y_true * 0, y_score)
    >>> drawn = Resamples.draw([Metric()], y_true, [a, b], np.arange(40))
    >>> drawn.difference(Metric(), 0, 1) == bootstrap_metric_difference(Metric(), y_true, a, b, np.arange(40))
    True
    """

    n_groups: int
    figures: Mapping[tuple[Metric, int], tuple[float, FloatArray]]

    @classmethod
    def draw(
        cls,
        metrics: Sequence[Metric],
        y_true: npt.ArrayLike,
        answers: Sequence[Answers],
        groups: npt.ArrayLike,
        *,
        n_resamples: int = 1000,
        random_state: int = 0,
    ) -> Resamples:
        """Raises ValueError as `bootstrap_metric` does."""
        _check_settings(n_resamples, 0.5)
        truth = as_binary(y_true, "y_true")
        n_groups, group_of_row = _numbered(groups, "groups", len(truth))
        wanted = {(metric, i): one for i, one in enumerate(answers) for metric in metrics}
        estimates = {key: key[0].score(truth, one.y_pred, one.y_score) for key, one in wanted.items()}
        of_draws = [_of_draws(metric, truth, one, group_of_row, n_groups) for (metric, _), one in wanted.items()]
        resampled = _resampled(of_draws, n_groups, n_resamples, np.random.SeedSequence(random_state))
        return cls(n_groups, {key: (estimates[key], found) for key, found in zip(wanted, resampled, strict=True)})

    def interval(self, metric: Metric, i: int, confidence: float = 0.95) -> Interval | None:
        """Of the metric of one model's answers; None where it is undefined."""
        _check_settings(1, confidence)
        estimate, resampled = self.figures[metric, i]
        return None if np.isnan(estimate) else _interval(np.float64(estimate), resampled, confidence, self.n_groups)

    def difference(self, metric: Metric, a: int, b: int, confidence: float = 0.95) -> Interval:
        """Of the metric of a's answers minus that of b's, see `bootstrap_metric_difference`."""
        _check_settings(1, confidence)
        (estimate_a, of_a), (estimate_b, of_b) = self.figures[metric, a], self.figures[metric, b]
        sign = -1.0 if metric.less_is_better else 1.0
        estimate, resampled = np.nan_to_num(sign * (estimate_a - estimate_b)), np.nan_to_num(sign * (of_a - of_b))
        return _interval(np.float64(estimate), resampled, confidence, self.n_groups)


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
        truth = as_binary(y_true, "y_true")
        n_drawn, group_of_row = _numbered(groups, "groups", len(truth))
        of_draws = _of_draws(metric, truth, answers, group_of_row, n_drawn)
        resampled += _resampled([of_draws], n_drawn, n_resamples, seed)
        estimates.append(metric.score(y_true, answers.y_pred, answers.y_score))
        n_groups += n_drawn
    estimate = np.float64(sign * (estimates[0] - estimates[1]))
    if np.isnan(estimate):
        return None
    return _interval(estimate, np.nan_to_num(sign * (resampled[0] - resampled[1])), confidence, n_groups)


def _of_draws(
    metric: Metric, truth: BoolArray, answers: Answers, group_of_row: npt.NDArray[np.intp], n_groups: int
) -> OfDraws:
    """The metric of resamples."""
    if metric.name == "macro_f1":
        decided = as_binary(np.asarray(answers.y_pred), "y_pred")
        same_shape(truth, "y_true", decided, "y_pred")
        return _Counted.decisions(truth, decided, group_of_row, n_groups).macro_f1
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

        return of_ranks
    summands = metric.summands(truth, answers.y_pred, answers.y_score)
    if summands.dtype == np.bool_:
        counted = _Counted.of([summands.astype(np.bool_, copy=False)], group_of_row, n_groups)
        return lambda drawn: metric.of_sums(counted.sums(drawn))
    sums = np.zeros((n_groups, summands.shape[1]))
    np.add.at(sums, group_of_row, summands)
    return lambda drawn: metric.of_sums(drawn @ sums)


@dataclass(frozen=True, eq=False)
class _Counted:
    """How often something is true in the rows of each group; sums of whole numbers, exact in any order.

    Most labels are rare: of 28 labels, a row of GoEmotions has one. Where more than a sixteenth is not 0, multiplying
    all is as fast.
    """

    table: Any
    """Of shape (n_counts, n_groups): a sparse array of SciPy, or an ndarray."""

    @classmethod
    def of(cls, hits: Sequence[BoolArray], group_of_row: npt.NDArray[np.intp], n_groups: int) -> _Counted:
        """Of arrays of shape (n_samples, some), side by side."""
        from scipy.sparse import coo_array  # here, as it takes a part of a second to import

        found, n_counts = [np.nonzero(part) for part in hits], [part.shape[1] for part in hits]
        columns = [column + sum(n_counts[:i]) for i, (_, column) in enumerate(found)]
        place = (np.concatenate(columns), group_of_row[np.concatenate([rows for rows, _ in found])])
        table = coo_array((np.ones(len(place[0])), place), shape=(sum(n_counts), n_groups)).tocsr()
        return cls(table.toarray() if table.nnz * 16 > sum(n_counts) * n_groups else table)

    @classmethod
    def decisions(
        cls,
        truth: BoolArray,
        decided: BoolArray,
        group_of_row: npt.NDArray[np.intp],
        n_groups: int,
        true_name: str = "y_true",
    ) -> _Counted:
        """True positives of each label, and then errors (fp + fn): 2 n_labels counts."""
        if truth.shape[1] == 0:
            raise ValueError(
                f"The '{true_name}' parameter must have labels. Got an array of shape {truth.shape} instead."
            )
        return cls.of([truth & decided, truth ^ decided], group_of_row, n_groups)

    def sums(self, drawn: FloatArray) -> FloatArray:
        """The counts of resamples, of shape (n, n_counts)."""
        if isinstance(self.table, np.ndarray):
            return np.asarray(drawn @ self.table.T)
        return np.stack([self.table @ times for times in drawn])

    def __len__(self) -> int:
        return int(self.table.shape[0])

    def macro_f1(self, drawn: FloatArray) -> FloatArray:
        """Macro-F1 of resamples, of shape (n,), where the counts are those of `decisions`.

        Equal decisions give equal F1 to the last bit; F1 is 0 for a label without true positives and errors.
        """
        tp, errors = np.split(self.sums(drawn), 2, axis=1)
        return np.asarray((2 * tp / np.maximum(2 * tp + errors, 1)).mean(axis=1))

    def estimate(self) -> np.float64:
        """`macro_f1` of the rows as they are."""
        return np.float64(self.macro_f1(np.ones((1, self.table.shape[1])))[0])


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


def _counts_of(
    y_true: npt.ArrayLike,
    y_pred: npt.ArrayLike,
    groups: npt.ArrayLike,
    pred_name: str = "y_pred",
    true_name: str = "y_true",
    groups_name: str = "groups",
) -> tuple[_Counted, int]:
    """See `_Counted.decisions`; and the number of groups."""
    truth, decided = as_binary(y_true, true_name), as_binary(y_pred, pred_name)
    same_shape(truth, true_name, decided, pred_name)
    n_groups, group_of_row = _numbered(groups, groups_name, len(truth))
    return _Counted.decisions(truth, decided, group_of_row, n_groups, true_name), n_groups


def _numbered(groups: npt.ArrayLike, name: str, n_samples: int) -> tuple[int, npt.NDArray[np.intp]]:
    """How many groups there are, and the number of each row's, from 0."""
    names, group_of_row = np.unique(as_row_keys(groups, name, n_samples), return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"The '{name}' parameter must hold at least two groups. Got {len(names)} instead.")
    return len(names), group_of_row


def _resampled(
    of_draws: Sequence[OfDraws], n_groups: int, n_resamples: int, seed: np.random.SeedSequence
) -> list[FloatArray]:
    """Figures of each resample, of shape (n_resamples,); all see the same draws."""
    values: list[list[FloatArray]] = [[] for _ in of_draws]
    for drawn in _draws(n_groups, n_resamples, np.random.default_rng(seed)):
        for found, figure in zip(values, of_draws, strict=True):
            found.append(figure(drawn))
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


def _interval(estimate: np.float64, resampled: FloatArray, confidence: float, n_groups: int) -> Interval:
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(estimate), float(low), float(high), confidence, len(resampled), n_groups)
