"""Where no answer is better than a likely wrong one: a band of scores around each label's threshold.

Outside of the band a label's answers keep a chosen precision: of those that say yes, and of those that say no, at least
so many are right. (Selective classification: Chow 1970, "On Optimum Recognition Error and Reject Tradeoff", IEEE
Transactions on Information Theory 16(1); El-Yaniv and Wiener 2010, JMLR 11.) Calibration by any rising map of a label's
scores leaves every row on its side of the band, so none is fitted. The edges are chosen on labelled rows, and what they
keep there flatters: `Abstention.fit` on some rows, `abstention_scores` on others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lora_cls.evaluation.arrays import BoolArray, FloatArray, as_binary, as_scores, same_shape


@dataclass(frozen=True, eq=False)
class Abstention:
    """What is left unanswered.

    Attributes
    ----------
    precision : the share of answers that is to be right, of each label's yes and no
    yes : ndarray of shape (n_labels,), float64
        The least score at which a positive decision is an answer; infinite where none is.
    no : ndarray of shape (n_labels,), float64, or None
        The greatest score at which a negative decision is an answer; minus infinity where none is. None of classes,
        of which a row has exactly one: its answer is the class that was decided.
    """

    precision: float
    yes: FloatArray
    no: FloatArray | None

    @classmethod
    def fit(
        cls, y_true: npt.ArrayLike, y_score: npt.ArrayLike, y_pred: npt.ArrayLike, precision: float, exclusive: bool
    ) -> Abstention:
        """The widest edges that keep the precision on the rows given.

        Parameters
        ----------
        y_true, y_pred : array of 0/1 of shape (n_samples, n_labels)
        y_score : array of float of the same shape
        precision : between 0 and 1; one wrong answer is added to those counted, so that few rows promise little (0.9
            takes nine right answers at least)
        exclusive : whether every row has exactly one of the labels

        Raises
        ------
        ValueError
            For shapes that differ, values other than 0 and 1, NaN, and a precision that is none.

        Examples
        --------
        >>> y_true, y_score = [[0], [1], [0], [1], [1], [1]], [[0.1], [0.3], [0.6], [0.7], [0.8], [0.9]]
        >>> y_pred = (np.array(y_score) >= 0.5).astype(int)
        >>> kept = Abstention.fit(y_true, y_score, y_pred, 0.75, exclusive=False)
        >>> kept.yes.tolist(), kept.no.tolist()  # three of three are right above 0.7; no "no" is sure enough
        ([0.7], [-inf])
        >>> kept.answered([[0.75], [0.65], [0.05]], [[1], [1], [0]]).tolist()
        [[True], [False], [False]]
        """
        if not 0 < precision < 1:
            raise ValueError(f"The 'precision' parameter must lie between 0 and 1. Got {precision} instead.")
        truth, scores, decided = _checked(y_true, y_score, y_pred)
        labels = range(truth.shape[1])
        yes = np.array([_edge(truth[rows, j], scores[rows, j], precision) for j in labels for rows in [decided[:, j]]])
        if exclusive:
            return cls(precision, yes, None)
        no = [-_edge(~truth[rows, j], -scores[rows, j], precision) for j in labels for rows in [~decided[:, j]]]
        return cls(precision, yes, np.array(no))

    def answered(self, y_score: npt.ArrayLike, y_pred: npt.ArrayLike) -> BoolArray:
        """Which decisions are answers, ndarray of bool of shape (n_samples, n_labels); of classes all of a row, or
        none."""
        scores, decided = as_scores(y_score, "y_score"), as_binary(y_pred, "y_pred")
        same_shape(decided, "y_pred", scores, "y_score")
        sure = np.asarray(decided & (scores >= self.yes))
        if self.no is None:
            return np.repeat(sure.any(axis=1, keepdims=True), scores.shape[1], axis=1)
        return np.asarray(sure | (~decided & (scores <= self.no)))


def abstention_scores(
    y_true: npt.ArrayLike,
    y_pred: npt.ArrayLike,
    answered: npt.ArrayLike,
    label_names: Sequence[str],
    exclusive: bool,
) -> dict[str, Any]:
    """How much is answered, and how much of that is right; of rows that chose no edge, what is to be expected.

    Parameters
    ----------
    y_true, y_pred, answered : arrays of 0/1 of shape (n_samples, n_labels)

    Returns
    -------
    dict
        `coverage`, the share of decisions that are answers (of classes: of rows), `right`, the share of answers that
        are right, and `right_without`, that of all decisions; `rows_answered`, the share of rows with every label
        answered; and `per_label` (label, coverage, precision_yes, precision_no, and both `_without` abstaining; None
        where there is no such answer; of classes, coverage and precision of the rows decided so).
    """
    truth, decided, known = (as_binary(values, "y") for values in (y_true, y_pred, answered))
    right, rows = np.asarray(truth == decided), []
    for j, name in enumerate(label_names):
        of = decided[:, j] if exclusive else np.ones(len(truth), dtype=bool)
        row = {"label": name, "coverage": _share(known[of, j])}
        for word, side in (("yes", decided[:, j]), ("no", ~decided[:, j])):
            row[f"precision_{word}"] = _share(right[side & known[:, j], j])
            row[f"precision_{word}_without"] = _share(right[side, j])
        rows.append(row)
    if exclusive:
        right, known = np.asarray(right.all(axis=1, keepdims=True)), known[:, :1]
    return {
        "coverage": _share(known),
        "right": _share(right[known]),
        "right_without": _share(right),
        "rows_answered": _share(np.asarray(known.all(axis=1))),
        "per_label": rows,
    }


def _edge(right: BoolArray, scores: FloatArray, precision: float) -> float:
    """The least score from which on upwards so many are right, one wrong one added; infinite without any. Equal scores
    stay together."""
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    share = np.cumsum(right[order]) / (np.arange(len(order)) + 2)
    ends = np.append(falling[1:] != falling[:-1], True)[: len(falling)]
    found = np.flatnonzero(ends & (share >= precision))
    return float(falling[found[-1]]) if len(found) else float("inf")


def _share(values: npt.NDArray[np.bool_]) -> float | None:
    return float(values.mean()) if values.size else None


def _checked(
    y_true: npt.ArrayLike, y_score: npt.ArrayLike, y_pred: npt.ArrayLike
) -> tuple[BoolArray, FloatArray, BoolArray]:
    truth, scores, decided = as_binary(y_true, "y_true"), as_scores(y_score, "y_score"), as_binary(y_pred, "y_pred")
    same_shape(truth, "y_true", scores, "y_score")
    same_shape(truth, "y_true", decided, "y_pred")
    return truth, scores, decided
