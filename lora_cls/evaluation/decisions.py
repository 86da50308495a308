"""From logits to decisions, by task: the one place that knows how `multi_label`, `binary` and `single_label` differ.

`multi_label` and `binary` decide each label for itself: sigmoid, and positive at `y_score >= threshold`. `single_label`
decides for exactly one class per row: softmax, and the greatest `y_score / threshold`. Arrays are the same for both:
the one class of a row is a 1 among zeros.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from lora_cls.evaluation.arrays import FloatArray, as_binary, as_scores, same_shape
from lora_cls.evaluation.links import Link, Sigmoid, Softmax
from lora_cls.evaluation.metrics import macro_f1
from lora_cls.evaluation.thresholds import CrossFit, apply_thresholds, cross_fit, tune_thresholds
from lora_cls.recipe import Prediction, Task, Thresholds

EXPONENTS = tuple(step / 10 for step in range(16))
"""Powers of the classes' shares that `prior_adjusted` tries: 0 is argmax, 1 undoes the shares."""


@dataclass(frozen=True)
class Decisions(ABC):
    """How a task's logits become decisions; `decisions_for` chooses one."""

    settings: Thresholds
    link: ClassVar[Link]

    @property
    @abstractmethod
    def strategy(self) -> str:
        """`settings.strategy`, or what null means for the task."""

    @abstractmethod
    def untuned(self, logits: npt.ArrayLike) -> npt.NDArray[np.int8]:
        """Decisions of shape (n_samples, n_labels) as notebooks report them: without weights and without tuning."""

    @abstractmethod
    def tune(self, y_true: npt.ArrayLike, y_score: npt.ArrayLike) -> FloatArray:
        """Thresholds of shape (n_labels,) for the greatest macro-F1 on rows with `y_true`, `y_score` (n, n_labels)."""

    @abstractmethod
    def apply(
        self, y_score: npt.ArrayLike, thresholds: npt.ArrayLike, at_least_one: bool = False
    ) -> npt.NDArray[np.int8]:
        """Decisions of shape (n_samples, n_labels)."""

    def cross_fit(
        self, y_true: npt.ArrayLike, y_score: npt.ArrayLike, fold: npt.ArrayLike, at_least_one: bool = False
    ) -> CrossFit:
        """Decide the rows of each fold by thresholds tuned on all other folds; see `cross_fit_thresholds`."""
        return cross_fit(y_true, y_score, fold, self.tune, partial(self.apply, at_least_one=at_least_one))

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
class LabelDecisions(Decisions):
    """Each label for itself (`multi_label`, `binary`): functions of `thresholds` and `probabilities` do the work."""

    link = Sigmoid()

    @property
    def strategy(self) -> str:
        """See `Decisions.strategy`."""
        return self.settings.strategy or "per_label"

    def untuned(self, logits: npt.ArrayLike) -> npt.NDArray[np.int8]:
        """Positive at logit > 0."""
        return (np.asarray(logits) > 0).astype(np.int8)

    def tune(self, y_true: npt.ArrayLike, y_score: npt.ArrayLike) -> FloatArray:
        """See `tune_thresholds`."""
        settings = self.settings
        return tune_thresholds(
            y_true,
            y_score,
            strategy=self.strategy,  # type: ignore[arg-type]  # tune_thresholds refuses those of single_label
            min_positives=settings.min_positives,
            default=settings.default,
        )

    def apply(
        self, y_score: npt.ArrayLike, thresholds: npt.ArrayLike, at_least_one: bool = False
    ) -> npt.NDArray[np.int8]:
        """See `apply_thresholds`."""
        return apply_thresholds(y_score, thresholds, at_least_one=at_least_one)

    def together(
        self, per_fold: npt.ArrayLike, thresholds: npt.ArrayLike, prediction: Prediction
    ) -> tuple[FloatArray, npt.NDArray[np.int8]]:
        """See `Decisions.together`; votes are decided at half of the folds."""
        vote = prediction.combine == "vote"
        y_score = self.link.combine_folds(per_fold, prediction.combine, thresholds if vote else None)
        return y_score, self.apply(y_score, 0.5 if vote else thresholds, prediction.at_least_one)


@dataclass(frozen=True)
class ClassDecisions(Decisions):
    """Exactly one class per row (`single_label`).

    `prior_adjusted` divides a class's probability by its share to a power: p_c / (K share_c)^tau. At tau = 0 that is
    argmax, which macro-F1 punishes where classes are rare; at tau = 1 it is best for the mean recall of the classes
    (Menon et al. 2021, "Long-tail learning via logit adjustment", ICLR). tau is tuned for macro-F1.
    """

    link = Softmax()

    @property
    def strategy(self) -> str:
        """See `Decisions.strategy`."""
        return self.settings.strategy or "prior_adjusted"

    def untuned(self, logits: npt.ArrayLike) -> npt.NDArray[np.int8]:
        """The class of the greatest logit."""
        return _one_hot(as_scores(logits, "logits"))

    def tune(self, y_true: npt.ArrayLike, y_score: npt.ArrayLike) -> FloatArray:
        """Thresholds `(K share)^tau`, of all in `EXPONENTS` with the greatest macro-F1; of equals the smallest tau.

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
        f1 = [macro_f1(truth, self.apply(scores, shares**tau)) for tau in EXPONENTS]
        return np.asarray(shares ** EXPONENTS[int(np.argmax(f1))])  # argmax: the first of equals

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

    def together(
        self, per_fold: npt.ArrayLike, thresholds: npt.ArrayLike, prediction: Prediction
    ) -> tuple[FloatArray, npt.NDArray[np.int8]]:
        """See `Decisions.together`; of classes with equally many votes the more probable one is taken."""
        vote = prediction.combine == "vote"
        y_score = self.link.combine_folds(per_fold, prediction.combine, thresholds if vote else None)
        if not vote:
            return y_score, self.apply(y_score, thresholds)
        mean = np.asarray(per_fold, dtype=np.float64).mean(axis=0) / np.asarray(thresholds, dtype=np.float64)
        most = y_score == y_score.max(axis=1, keepdims=True)
        return y_score, _one_hot(np.where(most, mean, -1.0))


def decisions_for(task: Task | None, settings: Thresholds | None = None) -> Decisions:
    """How a task decides.

    Parameters
    ----------
    task : a recipe's; None, where no table has been looked at, decides each label for itself
    settings : the recipe's `thresholds`
    """
    return (ClassDecisions if task == "single_label" else LabelDecisions)(settings or Thresholds())


def _one_hot(values: FloatArray) -> npt.NDArray[np.int8]:
    """1 at the greatest value of each row, the first of equals."""
    y_pred = np.zeros(values.shape, dtype=np.int8)
    if len(y_pred):
        y_pred[np.arange(len(values)), np.argmax(values, axis=1)] = 1
    return y_pred
