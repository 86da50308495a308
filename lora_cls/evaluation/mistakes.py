"""Where decisions go wrong: rows that were decided confidently and wrongly, labels taken for one another, and labels
that may be wrong themselves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lora_cls.evaluation.arrays import BoolArray, FloatArray, as_binary, as_scores, same_shape

IntArray = npt.NDArray[np.int64]

_BLOCK = 2**23  # values that are looked at together: several times as much memory as their 64 MiB


def confident_mistakes(
    y_true: npt.ArrayLike, y_pred: npt.ArrayLike, y_score: npt.ArrayLike, n: int
) -> tuple[IntArray, IntArray]:
    """Rows of one label, most confident first: at most `n` false positives and `n` false negatives.

    Parameters
    ----------
    y_true, y_pred : array of 0/1 of shape (n_samples,)
    y_score : array of float of shape (n_samples,)
    """
    truth, decided = as_binary(y_true, "y_true", ndim=1), as_binary(y_pred, "y_pred", ndim=1)
    scores = as_scores(y_score, "y_score", ndim=1)
    wrongly, missed = np.flatnonzero(decided & ~truth), np.flatnonzero(truth & ~decided)
    wrongly = wrongly[np.argsort(-scores[wrongly], kind="stable")]
    missed = missed[np.argsort(scores[missed], kind="stable")]
    return wrongly[:n], missed[:n]


def co_occurrence(y: npt.ArrayLike) -> IntArray:
    """Rows that carry both labels, ndarray of shape (n_labels, n_labels); each label's own count on the diagonal.

    Parameters
    ----------
    y : array of 0/1 of shape (n_samples, n_labels), true or decided
    """
    labels = as_binary(y, "y").astype(np.float64)  # of whole numbers exact, and much faster than int64
    return (labels.T @ labels).round().astype(np.int64)


def taken_for(y_true: npt.ArrayLike, y_pred: npt.ArrayLike) -> IntArray:
    """How often a label was missed in a row (rows of the table) while another was wrongly given (columns).

    For one class per row these are the entries of the confusion matrix off its diagonal.

    Parameters
    ----------
    y_true, y_pred : array of 0/1 of shape (n_samples, n_labels)

    Returns
    -------
    ndarray of int64 of shape (n_labels, n_labels)

    Examples
    --------
    Anger (the first) was taken for fear (the second) twice, joy (the third) for fear once.

    >>> y_true = [[1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 0, 1]]
    >>> taken_for(y_true, [[0, 1, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]]).tolist()
    [[0, 2, 0], [0, 0, 0], [0, 1, 0]]
    """
    truth, decided = as_binary(y_true, "y_true"), as_binary(y_pred, "y_pred")
    same_shape(truth, "y_true", decided, "y_pred")
    from scipy.sparse import csr_array  # here, as it takes a part of a second to import

    # sparse, as most decisions are right
    missed, given = (csr_array(where, dtype=np.int64) for where in (truth & ~decided, decided & ~truth))
    return np.asarray((missed.T @ given).toarray())


def confusion(y_true: npt.ArrayLike, y_pred: npt.ArrayLike) -> IntArray:
    """The confusion matrix of one class per row: true classes in rows, decided ones in columns."""
    truth, decided = as_binary(y_true, "y_true"), as_binary(y_pred, "y_pred")
    same_shape(truth, "y_true", decided, "y_pred")
    return (truth.astype(np.float64).T @ decided).round().astype(np.int64)


@dataclass(frozen=True, eq=False)
class Doubts:
    """Labels that the data gives and the model doubts, the most doubtful first; arrays of the same length."""

    rows: IntArray
    labels: IntArray
    """The label in doubt; for one class per row, the class that the model would give instead."""


def label_doubts(y_true: npt.ArrayLike, y_score: npt.ArrayLike) -> Doubts:
    """Labels that are likely wrong: rows that look more like those with another answer than like those with theirs.

    Every answer's probability is compared with its usual one, the mean over the rows that the data gives it to, so that
    rare labels, whose probabilities are low everywhere, are judged alike. A row is in doubt if another answer exceeds
    its usual probability by more than the given one does its own; sorted by that difference, ties in the order of rows.
    Each label is two answers, yes and no. (The adjusted normalized margin of Kuan and Mueller 2022, "Model-agnostic
    label quality scoring to detect real-world label errors"; after Northcutt, Jiang and Chuang 2021, "Confident
    Learning", JAIR.)

    Parameters
    ----------
    y_true : array of 0/1 of shape (n_samples, n_labels)
    y_score : array of float of shape (n_samples, n_labels)
        Probabilities by models that did not train on the row.

    Examples
    --------
    Row 1 is labelled, but scores as the rows without the label do.

    >>> doubts = label_doubts([[1], [1], [0], [0]], [[0.9], [0.1], [0.2], [0.1]])
    >>> doubts.rows.tolist(), doubts.labels.tolist()
    ([1], [0])
    """
    truth, scores = as_binary(y_true, "y_true"), as_scores(y_score, "y_score")
    same_shape(truth, "y_true", scores, "y_score")
    n_labels = truth.shape[1]
    n_blocks = int(np.clip(truth.size // _BLOCK, 1, max(1, n_labels // 2)))  # of 2 labels or more: sums stay the same
    found = []
    for columns in np.array_split(np.arange(n_labels), n_blocks):
        own, of = truth[:, columns], scores[:, columns]
        above_yes, above_no = _above_usual(own, of), _above_usual(~own, 1 - of)
        excess = np.where(own, above_no - above_yes, above_yes - above_no)
        rows, labels = np.nonzero(excess > 0)
        found.append((rows, columns[labels], excess[rows, labels]))
    rows, labels, excess = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(rows * n_labels + labels)
    order = order[np.argsort(-excess[order], kind="stable")]
    return Doubts(rows[order], labels[order])


def class_doubts(y_true: npt.ArrayLike, y_score: npt.ArrayLike) -> Doubts:
    """`label_doubts` where a row has exactly one of the labels: its answers are all of them.

    Examples
    --------
    Row 1 is given to the first class, but scores as those of the second do.

    >>> doubts = class_doubts([[1, 0], [1, 0], [0, 1]], [[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])
    >>> doubts.rows.tolist(), doubts.labels.tolist()
    ([1], [1])
    """
    truth, scores = as_binary(y_true, "y_true"), as_scores(y_score, "y_score")
    same_shape(truth, "y_true", scores, "y_score")
    every, given = np.arange(len(truth)), np.argmax(truth, axis=1)
    above = _above_usual(truth, scores)
    other = np.argmax(np.where(truth, -np.inf, above), axis=1)
    excess = above[every, other] - above[every, given]
    rows = np.flatnonzero((excess > 0) & (other != given))
    order = np.argsort(-excess[rows], kind="stable")
    return Doubts(rows[order], other[rows][order])


def _above_usual(given: BoolArray, scores: FloatArray) -> FloatArray:
    """How far each answer's probability lies above its mean over the rows that it is given to."""
    count = given.sum(axis=0)
    usual = np.where(count > 0, (scores * given).sum(axis=0) / np.maximum(count, 1), np.inf)
    return np.asarray(scores - usual)
