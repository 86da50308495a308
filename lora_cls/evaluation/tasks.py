"""Tasks: the one place that knows how `multi_label`, `binary` and `single_label` differ, in what they do and in words.

`multi_label` and `binary` decide each label for itself: sigmoid, and positive at `y_score >= threshold`. `single_label`
decides for exactly one class per row: softmax, and the greatest `y_score / threshold`. Arrays are the same for both:
the one class of a row is a 1 among zeros.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, get_args

import numpy as np
import numpy.typing as npt

from lora_cls.choices import BlendHow, MetricName
from lora_cls.evaluation.arrays import BoolArray, FloatArray, as_binary, as_scores, same_shape
from lora_cls.evaluation.links import Link, Sigmoid, Softmax
from lora_cls.evaluation.metric import Metric
from lora_cls.evaluation.mistakes import Doubts, class_doubts, label_doubts
from lora_cls.evaluation.stacking import stack_classes, stack_labels
from lora_cls.evaluation.thresholds import CrossFit, apply_thresholds, cross_fit, tune_on_others, tune_thresholds
from lora_cls.recipe import Prediction, TaskName, Thresholds

EXPONENTS = tuple(step / 10 for step in range(16))
"""Powers of the classes' shares that `prior_adjusted` tries: 0 is argmax, 1 undoes the shares."""


@dataclass(frozen=True)
class Task(ABC):
    """What a run decides, and how; `task_of` chooses one.

    Attributes
    ----------
    name : the recipe's
    settings : the recipe's `thresholds`
    metric : what it is judged by
    link : what turns logits into probabilities
    exclusive : whether every row has exactly one of the labels
    blend_ways, calibrations : what means something for the task, see `blending` and `calibration`
    several : whether a row may have any number of them
    title, headline : what the task, and its macro-F1, are called
    noun, nouns, count : what a row is given, and what those who have one are
    thresholds_word, tuned, weights_word : what is tuned to decide by probabilities; how it is said of the other folds
    aims : what is added to that, for strategies that tune for something of their own
    roc_auc : what the mean ROC-AUC is called
    in_sentence, beside : fields and names of the scores told in one sentence with the headline, and after it
    meaning : how probabilities and decisions come of logits
    """

    name: TaskName
    settings: Thresholds
    metric: Metric
    link: ClassVar[Link]
    exclusive: ClassVar[bool]
    several: ClassVar[bool] = False
    blend_ways: ClassVar[tuple[BlendHow, ...]]
    calibrations: ClassVar[tuple[str, ...]]
    title: ClassVar[str]
    headline: ClassVar[str] = "Macro-F1"
    noun: ClassVar[str]
    nouns: ClassVar[str]
    count: ClassVar[str]
    thresholds_word: ClassVar[str]
    tuned: ClassVar[str]
    aims: ClassVar[Mapping[str, str]] = {}
    weights_word: ClassVar[str]
    roc_auc: ClassVar[str] = "Mean ROC-AUC of the labels"
    in_sentence: ClassVar[Mapping[str, str]] = {}
    beside: ClassVar[Mapping[str, str]] = {}
    meaning: ClassVar[str]

    @property
    def metric_name(self) -> str:
        """What the metric is called at the start of a sentence."""
        title = self.metric.title
        if self.metric.name == "accuracy" and self.several:
            title += " (exact match)"
        return self.headline if self.metric.name == "macro_f1" else title[:1].upper() + title[1:]

    @property
    @abstractmethod
    def strategy(self) -> str:
        """`settings.strategy`, or what null means for the task."""

    @abstractmethod
    def untuned(self, logits: npt.ArrayLike) -> npt.NDArray[np.int8]:
        """Decisions of shape (n_samples, n_labels) as notebooks report them: without weights and without tuning."""

    @abstractmethod
    def tune(self, y_true: npt.ArrayLike, y_score: npt.ArrayLike) -> FloatArray:
        """Thresholds of shape (n_labels,) for the best metric on rows with `y_true`, `y_score` (n, n_labels)."""

    @abstractmethod
    def apply(
        self, y_score: npt.ArrayLike, thresholds: npt.ArrayLike, at_least_one: bool = False
    ) -> npt.NDArray[np.int8]:
        """Decisions of shape (n_samples, n_labels)."""

    @abstractmethod
    def tempered(self, thresholds: FloatArray, temperature: FloatArray) -> FloatArray:
        """Thresholds that decide alike once all logits are divided by `temperature`; shapes (n_labels,)."""

    @abstractmethod
    def fit_stacking(self, truth: BoolArray, logits: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Coefficients and intercepts of logits of shape (n_runs, n_samples, n_labels); see `stacking`."""

    @abstractmethod
    def apply_stacking(self, logits: FloatArray, coef: FloatArray, intercept: FloatArray) -> FloatArray:
        """The runs' logits as one, of shape (n_samples, n_labels)."""

    @abstractmethod
    def named(self, y_pred: npt.NDArray[np.int8], label_names: Sequence[str]) -> list[Any]:
        """Decisions by name, one entry per row."""

    @abstractmethod
    def doubts(self, y_true: npt.ArrayLike, y_score: npt.ArrayLike) -> Doubts:
        """Labels that are likely wrong; see `label_doubts`."""

    def more_scores(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """Figures beyond those of `metrics.summary`."""
        return {}

    def cross_fit(
        self, y_true: npt.ArrayLike, y_score: npt.ArrayLike, fold: npt.ArrayLike, at_least_one: bool = False
    ) -> CrossFit:
        """Decide the rows of each fold by thresholds tuned on all other folds; see `cross_fit_thresholds`."""
        return cross_fit(y_true, y_score, fold, self.tune_others, partial(self.apply, at_least_one=at_least_one))

    def tune_others(self, truth: BoolArray, scores: FloatArray, part: npt.NDArray[np.intp]) -> FloatArray:
        """`tune` on the rows outside of each part, numbered from 0; of shape (n_parts, n_labels)."""
        others = (part != k for k in range(int(part.max()) + 1))
        return np.stack([self.tune(truth[rows], scores[rows]) for rows in others])

    @abstractmethod
    def together(
        self, per_fold: npt.ArrayLike, thresholds: npt.ArrayLike, prediction: Prediction
    ) -> tuple[FloatArray, npt.NDArray[np.int8]]:
        """What the folds' models say together.

        Parameters
        ----------
        per_fold : array of float of shape (n_folds, n_samples, n_labels), probabilities
        thresholds : array of float of shape (n_labels,)
        prediction : how folds are combined

        Returns
        -------
        y_score : ndarray of float64 of shape (n_samples, n_labels); with `vote` the share of folds that say yes
        y_pred : ndarray of int8 of shape (n_samples, n_labels)
        """


@dataclass(frozen=True)
class LabelTask(Task):
    """Each label for itself (`multi_label`, `binary`): functions of `thresholds` and `probabilities` do the work."""

    link = Sigmoid()
    exclusive = False
    blend_ways = get_args(BlendHow)
    calibrations = ("temperature", "isotonic")
    several = True
    title = "Multi-label"
    noun, nouns, count = "label", "labels", "positives"
    thresholds_word, tuned, weights_word = "thresholds", "thresholds tuned", "thresholds"
    aims: ClassVar[Mapping[str, str]] = {
        "expected_f1": " for expected F1",
        "auto": " for expected F1 where positives are few",
    }
    beside: ClassVar[Mapping[str, str]] = {"micro_f1": "Micro-F1", "exact_match": "exact match"}
    meaning = "a probability is `sigmoid(logit - log(pos_weight))`, and a label is positive at its threshold"

    @property
    def strategy(self) -> str:
        """See `Task.strategy`."""
        return self.settings.strategy or "per_label"

    def untuned(self, logits: npt.ArrayLike) -> npt.NDArray[np.int8]:
        """Positive at logit > 0."""
        return (np.asarray(logits) > 0).astype(np.int8)

    def tune(self, y_true: npt.ArrayLike, y_score: npt.ArrayLike) -> FloatArray:
        """See `tune_thresholds`."""
        return tune_thresholds(y_true, y_score, **self._tuning)

    def tune_others(self, truth: BoolArray, scores: FloatArray, part: npt.NDArray[np.intp]) -> FloatArray:
        """See `tune_on_others`."""
        return tune_on_others(truth, scores, part, **self._tuning)

    @property
    def _tuning(self) -> dict[str, Any]:
        """What both are told; they refuse the strategies of single_label."""
        settings = self.settings
        return {
            "metric": self.metric,
            "strategy": self.strategy,
            "min_positives": settings.min_positives,
            "default": settings.default,
        }

    def apply(
        self, y_score: npt.ArrayLike, thresholds: npt.ArrayLike, at_least_one: bool = False
    ) -> npt.NDArray[np.int8]:
        """See `apply_thresholds`."""
        return apply_thresholds(y_score, thresholds, at_least_one=at_least_one)

    def tempered(self, thresholds: FloatArray, temperature: FloatArray) -> FloatArray:
        """Scaled as the scores are."""
        return self.link.probabilities(self.link.logits(thresholds) / temperature)

    def named(self, y_pred: npt.NDArray[np.int8], label_names: Sequence[str]) -> list[list[str]]:
        """The labels of each row."""
        return [[label_names[j] for j in np.flatnonzero(row).tolist()] for row in y_pred]

    def doubts(self, y_true: npt.ArrayLike, y_score: npt.ArrayLike) -> Doubts:
        """See `label_doubts`."""
        return label_doubts(y_true, y_score)

    def fit_stacking(self, truth: BoolArray, logits: FloatArray) -> tuple[FloatArray, FloatArray]:
        """See `stack_labels`."""
        return stack_labels(truth, logits)

    def apply_stacking(self, logits: FloatArray, coef: FloatArray, intercept: FloatArray) -> FloatArray:
        """Each label's log-odds are of the runs' log-odds of that label."""
        return np.asarray(np.einsum("rnl,lr->nl", logits, coef) + intercept)

    def together(
        self, per_fold: npt.ArrayLike, thresholds: npt.ArrayLike, prediction: Prediction
    ) -> tuple[FloatArray, npt.NDArray[np.int8]]:
        """See `Task.together`; votes are decided at half of the folds."""
        vote = prediction.combine == "vote"
        y_score = self.link.combine_folds(per_fold, prediction.combine, thresholds if vote else None)
        return y_score, self.apply(y_score, 0.5 if vote else thresholds, prediction.at_least_one)


@dataclass(frozen=True)
class ClassTask(Task):
    """Exactly one class per row (`single_label`).

    `prior_adjusted` divides a class's probability by its share to a power: p_c / (K share_c)^tau. At tau = 0 that is
    argmax, which macro-F1 punishes where classes are rare; at tau = 1 it is best for the mean recall of the classes
    (Menon et al. 2021, "Long-tail learning via logit adjustment", ICLR). tau is tuned for the metric
    (macro-F1, where that takes no decisions).
    """

    link = Softmax()
    exclusive = True
    blend_ways = tuple(way for way in get_args(BlendHow) if way != "rank_mean")  # ranks know no greatest class of a row
    calibrations = ("temperature",)  # steps would calibrate class by class, so that a row no longer sums to 1
    title = "Single-label (one class per text)"
    noun, nouns, count = "class", "classes", "rows"
    thresholds_word, tuned = "class weights", "classes weighted as tuned"
    weights_word = "weights of the classes"
    in_sentence: ClassVar[Mapping[str, str]] = {"accuracy": "Accuracy"}
    meaning = (
        "probabilities are `softmax(logits - log(pos_weight))` over the classes, and a text's class is the one "
        "with the greatest probability / threshold"
    )

    @property
    def strategy(self) -> str:
        """See `Task.strategy`."""
        return self.settings.strategy or "prior_adjusted"

    def untuned(self, logits: npt.ArrayLike) -> npt.NDArray[np.int8]:
        """The class of the greatest logit."""
        return _one_hot(as_scores(logits, "logits"))

    def tune(self, y_true: npt.ArrayLike, y_score: npt.ArrayLike) -> FloatArray:
        """Thresholds `(K share)^tau`, of all in `EXPONENTS` with the best metric; of equals the smallest tau.

        A class with fewer rows than `min_positives` is treated as if it had so many: a share of so few is chance.
        """
        truth, scores = as_binary(y_true, "y_true"), as_scores(y_score, "y_score")
        same_shape(truth, "y_true", scores, "y_score")
        n_samples, n_classes = truth.shape
        if self.strategy == "argmax":
            return np.ones(n_classes)
        if self.strategy != "prior_adjusted":
            raise ValueError(
                f"The 'strategy' parameter must be 'argmax' or 'prior_adjusted'. Got {self.strategy!r} instead."
            )
        if n_samples == 0:
            return np.ones(n_classes)
        counts = np.maximum(truth.sum(axis=0), max(self.settings.min_positives, 1))
        shares = counts * (n_classes / n_samples)
        gain = self.metric.for_thresholds.gain
        reached = [gain(truth, self.apply(scores, shares**tau), scores) for tau in EXPONENTS]
        return np.asarray(shares ** EXPONENTS[int(np.argmax(reached))])  # argmax: the first of equals

    def apply(
        self, y_score: npt.ArrayLike, thresholds: npt.ArrayLike, at_least_one: bool = False
    ) -> npt.NDArray[np.int8]:
        """The class with the greatest `y_score / threshold`, the first of equals; `at_least_one` holds by itself."""
        scores, limits = as_scores(y_score, "y_score"), as_scores(thresholds, "thresholds", ndim=None)
        if limits.shape not in ((), scores.shape[1:]) or not (limits > 0).all():
            raise ValueError(
                f"The 'thresholds' parameter must hold one number above 0, or one per class ({scores.shape[1]}). "
                f"Got {limits.tolist()} instead."
            )
        return _one_hot(scores / limits)

    def tempered(self, thresholds: FloatArray, temperature: FloatArray) -> FloatArray:
        """The greatest p / t is the greatest (p / t)^(1 / T)."""
        return np.asarray(thresholds ** (1 / temperature))

    def named(self, y_pred: npt.NDArray[np.int8], label_names: Sequence[str]) -> list[str]:
        """The class of each row."""
        return [label_names[j] for j in np.argmax(y_pred, axis=1).tolist()]

    def doubts(self, y_true: npt.ArrayLike, y_score: npt.ArrayLike) -> Doubts:
        """See `class_doubts`."""
        return class_doubts(y_true, y_score)

    def fit_stacking(self, truth: BoolArray, logits: FloatArray) -> tuple[FloatArray, FloatArray]:
        """See `stack_classes`."""
        return stack_classes(truth, logits)

    def apply_stacking(self, logits: FloatArray, coef: FloatArray, intercept: FloatArray) -> FloatArray:
        """Each class's log-probability is of all the runs' log-probabilities."""
        return np.asarray(np.concatenate(list(logits), axis=1) @ coef.T + intercept)

    def more_scores(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """The accuracy: with one class per row, the share of rows that are right as a whole."""
        return {"accuracy": summary["exact_match"]}

    def together(
        self, per_fold: npt.ArrayLike, thresholds: npt.ArrayLike, prediction: Prediction
    ) -> tuple[FloatArray, npt.NDArray[np.int8]]:
        """See `Task.together`; of classes with equally many votes the more probable one is taken."""
        vote = prediction.combine == "vote"
        y_score = self.link.combine_folds(per_fold, prediction.combine, thresholds if vote else None)
        if not vote:
            return y_score, self.apply(y_score, thresholds)
        mean = np.asarray(per_fold, dtype=np.float64).mean(axis=0) / np.asarray(thresholds, dtype=np.float64)
        most = y_score == y_score.max(axis=1, keepdims=True)
        return y_score, _one_hot(np.where(most, mean, -1.0))


class BinaryTask(LabelTask):
    """`multi_label` with one label, and words for it."""

    several = False
    title, headline, roc_auc = "Binary", "F1 of the positive class", "ROC-AUC"
    beside: ClassVar[Mapping[str, str]] = {"exact_match": "Accuracy"}


TASKS: dict[TaskName, type[Task]] = {"multi_label": LabelTask, "single_label": ClassTask, "binary": BinaryTask}


def task_of(
    name: TaskName | None,
    settings: Thresholds | None = None,
    metric: MetricName = "macro_f1",
    metric_beta: float | None = None,
) -> Task:
    """The task of that name.

    Parameters
    ----------
    name : a recipe's; None, where no table has been looked at, decides each label for itself
    settings : the recipe's `thresholds`
    metric, metric_beta : the recipe's
    """
    name = name or "multi_label"
    of = TASKS[name]
    return of(name, settings or Thresholds(), Metric(metric, metric_beta, of.exclusive))


def _one_hot(values: FloatArray) -> npt.NDArray[np.int8]:
    """1 at the greatest value of each row, the first of equals."""
    y_pred = np.zeros(values.shape, dtype=np.int8)
    if len(y_pred):
        y_pred[np.arange(len(values)), np.argmax(values, axis=1)] = 1
    return y_pred
