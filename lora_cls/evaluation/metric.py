"""What a run is judged by: `metric` of a recipe, in scikit-learn's names, as a value.

Each metric of decisions is a function of sums over rows, so that it can be computed of rows drawn anew without
looking at them again; tests hold them against scikit-learn's functions. Another metric is a name in `lora_cls.choices`,
a title, its sums and its cuts here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from lora_cls.choices import MetricName, ScoreMetric
from lora_cls.evaluation.arrays import BoolArray, FloatArray, as_binary, as_scores, same_shape
from lora_cls.evaluation.metrics import label_ranks, mean_where_defined
from lora_cls.evaluation.objectives import (
    Counts,
    Rate,
    ascend,
    best_cuts,
    best_cuts_of_others,
    f1_rate,
    f_beta_rate,
    highest_best_cut,
    mcc_rate,
    micro_f1_cuts,
    right_rate,
)

TITLES: Mapping[MetricName, str] = {
    "macro_f1": "macro-F1",
    "micro_f1": "micro-F1",
    "samples_jaccard": "Jaccard index of the samples",
    "f_beta": "macro-F{beta:g}",
    "accuracy": "accuracy",
    "mcc": "macro-MCC",
    "roc_auc": "macro ROC-AUC",
    "average_precision": "macro average precision",
    "log_loss": "log loss",
}


@dataclass(frozen=True)
class Metric:
    """A score of rows; `score` says which.

    Attributes
    ----------
    name : the recipe's
    beta : of `f_beta`, how much more recall counts than precision; None for others
    exclusive : whether every row has exactly one of the labels
    """

    name: MetricName = "macro_f1"
    beta: float | None = None
    exclusive: bool = False

    def __post_init__(self) -> None:
        if self.name not in TITLES:
            raise ValueError(f"The 'metric' must be one of {', '.join(TITLES)}. Got {self.name!r} instead.")

    @property
    def title(self) -> str:
        """What it is called within a sentence."""
        if self.exclusive and self.name == "mcc":
            return "MCC"
        return TITLES[self.name].format(beta=self.beta)

    @property
    def of_scores(self) -> bool:
        """Whether it is of ranks or probabilities: no decision enters."""
        return self.name in get_args(ScoreMetric)

    @property
    def less_is_better(self) -> bool:
        return self.name == "log_loss"

    @property
    def for_thresholds(self) -> Metric:
        """What thresholds are tuned for: itself; macro-F1 where it takes no decisions, for the tables of labels."""
        return Metric("macro_f1", None, self.exclusive) if self.of_scores else self

    def score(self, y_true: npt.ArrayLike, y_pred: npt.ArrayLike | None, y_score: npt.ArrayLike | None) -> float:
        """The metric of all rows together.

        Parameters
        ----------
        y_true, y_pred : array of 0/1 of shape (n_samples, n_labels)
        y_score : array of float of the same shape, probabilities; only read by metrics of scores (`y_pred` only by
            the others)

        Returns
        -------
        float
            `macro_f1`, `f_beta`, `mcc`: means over the labels, 0 / 0 is 0 (`mcc` of classes: scikit-learn's for several
            classes); `micro_f1`: F1 of all decisions pooled; `samples_jaccard`: mean over rows of the share of true and
            decided labels that are both, 0 for a row without either; `accuracy`: share of rows with every label right;
            `roc_auc`, `average_precision`: means over the labels with positives and negatives, NaN without any;
            `log_loss`: mean over labels of each one's (of classes: of the row's own class).

        Raises
        ------
        ValueError
            For shapes that differ, no rows, values other than 0 and 1, and NaN or infinite scores.

        Examples
        --------
        >>> y_true, y_pred = [[1, 0], [1, 1], [0, 1]], [[1, 0], [1, 0], [0, 1]]
        >>> y_score = [[0.9, 0.1], [0.8, 0.4], [0.1, 0.7]]
        >>> [round(Metric(name).score(y_true, y_pred, y_score), 3) for name in ("micro_f1", "accuracy", "roc_auc")]
        [0.857, 0.667, 1.0]
        """
        if self.name in ("roc_auc", "average_precision"):
            of_label = label_ranks(y_true, np.asarray(y_score))
            found = mean_where_defined([values[self.name == "average_precision"] for values in of_label])
            return float("nan") if found is None else found
        return float(self.of_sums(self.summands(y_true, y_pred, y_score).sum(axis=0, dtype=np.float64)))

    def gain(self, y_true: npt.ArrayLike, y_pred: npt.ArrayLike | None, y_score: npt.ArrayLike | None) -> float:
        """`score`, turned so that more is better; an undefined one is worse than any."""
        found = self.score(y_true, y_pred, y_score)
        return float("-inf") if np.isnan(found) else -found if self.less_is_better else found

    def summands(
        self, y_true: npt.ArrayLike, y_pred: npt.ArrayLike | None, y_score: npt.ArrayLike | None
    ) -> FloatArray | BoolArray:
        """What each row adds to the sums that the metric is computed of, of shape (n_samples, n_sums), booleans where
        they are counts; for `roc_auc` and `average_precision` there are none. Errors as in `score`."""
        truth = as_binary(y_true, "y_true")
        if truth.size == 0:
            raise ValueError(
                f"The 'y_true' parameter must have rows and labels. Got an array of shape {truth.shape} instead."
            )
        if self.name == "log_loss":
            scores = as_scores(np.asarray(y_score), "y_score")
            same_shape(truth, "y_true", scores, "y_score")
            return _means(self._log_losses(truth, scores))
        decided = as_binary(np.asarray(y_pred), "y_pred")
        same_shape(truth, "y_true", decided, "y_pred")
        if self.name in ("accuracy", "samples_jaccard"):
            value = exact_rows if self.name == "accuracy" else jaccard_rows
            both, either = (found.sum(axis=1, dtype=np.int64) for found in (truth & decided, truth | decided))
            return _means(value(both, either))
        return np.concatenate([truth & decided, truth, decided, np.ones((len(truth), 1), dtype=np.bool_)], axis=1)

    def of_sums(self, sums: FloatArray) -> FloatArray:
        """The metric of sums of `summands`, of shape (..., n_sums); of shape (...)."""
        if sums.shape[-1] == 2 and self.name in ("accuracy", "samples_jaccard", "log_loss"):
            return np.asarray(sums[..., 0] / sums[..., 1])
        n_labels = sums.shape[-1] // 3
        tp, true, decided = (sums[..., k * n_labels : (k + 1) * n_labels] for k in range(3))
        n = sums[..., -1:]
        if self.name == "micro_f1":
            return np.asarray(2 * tp.sum(axis=-1) / np.maximum((true + decided).sum(axis=-1), 1))
        if self.name == "mcc" and self.exclusive:  # of several classes (Gorodkin 2004)
            rows = n[..., 0]
            spreads = [rows**2 - (part**2).sum(axis=-1) for part in (true, decided)]
            together = rows * tp.sum(axis=-1) - (true * decided).sum(axis=-1)
            return np.asarray(together / np.sqrt(np.maximum(spreads[0] * spreads[1], 1)))
        return np.asarray(self._rate(tp, decided, true, n).mean(axis=-1))

    def cut_each(self, truth: BoolArray, scores: FloatArray, min_positives: int, default: float) -> FloatArray:
        """Thresholds of shape (n_labels,), together the best on the rows given; see `tune_thresholds`.

        Exact, but for `samples_jaccard` and `accuracy`, see `objectives.ascend`: a local optimum, reached from the cuts
        of the greatest macro-F1, for accuracy also from those with most decisions right, label by label.
        """
        if self.of_scores:
            return self.for_thresholds.cut_each(truth, scores, min_positives, default)
        if self.name == "micro_f1":
            return micro_f1_cuts(truth, scores, min_positives, default)
        own = partial(best_cuts, truth, scores, min_positives, default)
        if self.name == "samples_jaccard":
            return ascend(truth, scores, min_positives, own(f1_rate), jaccard_rows)
        if self.name == "accuracy":
            reached = [ascend(truth, scores, min_positives, own(rate), exact_rows) for rate in (right_rate, f1_rate)]
            return max(reached, key=lambda cuts: self.gain(truth, scores >= cuts, scores))
        return own(self._rate)

    def cut_others(
        self, truth: BoolArray, scores: FloatArray, part: Counts, min_positives: int, default: float
    ) -> FloatArray:
        """`cut_each` of the rows outside of each part, of shape (n_parts, n_labels).

        Parameters
        ----------
        part : array of int of shape (n_samples,), from 0 to n_parts - 1
        """
        if self.of_scores:
            return self.for_thresholds.cut_others(truth, scores, part, min_positives, default)
        if self.name in ("micro_f1", "samples_jaccard", "accuracy"):  # of which labels are worth something together
            others = [part != k for k in range(int(part.max()) + 1)]
            return np.stack([self.cut_each(truth[rows], scores[rows], min_positives, default) for rows in others])
        return best_cuts_of_others(truth, scores, part, min_positives, default, self._rate)

    def cut_all(self, truth: BoolArray, scores: FloatArray, min_positives: int, default: float) -> float:
        """The best one threshold for all labels, exactly; see `tune_thresholds`."""
        if self.of_scores:
            return self.for_thresholds.cut_all(truth, scores, min_positives, default)
        if self.name == "micro_f1":
            return highest_best_cut(truth.reshape(-1, 1), scores.reshape(-1, 1), min_positives, default)
        if self.name in ("samples_jaccard", "accuracy"):
            value = exact_rows if self.name == "accuracy" else jaccard_rows

            def rate(true_positives: Any, decided: Any, positives: Any, n: Any) -> FloatArray:
                return value(true_positives, decided + positives - true_positives)

            return highest_best_cut(truth.T, scores.T, min_positives, default, rate)
        return highest_best_cut(truth, scores, min_positives, default, self._rate)

    @property
    def _rate(self) -> Rate:
        if self.name == "f_beta":
            return f_beta_rate(1.0 if self.beta is None else self.beta)
        return mcc_rate if self.name == "mcc" else f1_rate

    def _log_losses(self, truth: BoolArray, scores: FloatArray) -> FloatArray:
        """Of each row; probabilities are kept from 0 and 1 by float64's epsilon, as in scikit-learn."""
        tiny = np.finfo(np.float64).eps
        scores = np.clip(scores, tiny, 1 - tiny)
        if self.exclusive:
            right = (scores * truth).sum(axis=1) / scores.sum(axis=1)
            return np.asarray(-np.log(right))
        return np.asarray(-np.log(np.where(truth, scores, 1 - scores)).mean(axis=1))


MACRO_F1 = Metric()


def exact_rows(both: Counts, either: Counts) -> FloatArray:
    """1 for a row whose decided labels are its true ones."""
    return (both == either).astype(np.float64)


def jaccard_rows(both: Counts, either: Counts) -> FloatArray:
    """The share of a row's true and decided labels that are both; 0 without any, as in scikit-learn."""
    return np.asarray(both / np.maximum(either, 1))


def _means(values: FloatArray) -> FloatArray:
    return np.stack([values, np.ones(len(values))], axis=1)
