"""Links: what turns logits into probabilities, and how several of them become one.

`Sigmoid` answers for each label by itself, `Softmax` for classes of which every row has exactly one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from lora_cls.choices import Combination, PieceCombination
from lora_cls.evaluation.arrays import BoolArray, FloatArray, as_scores
from lora_cls.evaluation.probabilities import (
    as_probabilities,
    corrected_class_probabilities,
    corrected_probabilities,
    logit,
)

_LOG_T = 4.0  # temperatures from 1/55 to 55: beyond, every probability is 0 or 1, or a half


class Link(ABC):
    """Between logits and probabilities, arrays whose last axis holds the labels."""

    @abstractmethod
    def probabilities(self, logits: npt.ArrayLike, weight: npt.ArrayLike = 1.0) -> FloatArray:
        """Probabilities, float64 of the shape of `logits`, which training shifted by the logarithm of `weight`."""

    @abstractmethod
    def logits(self, proba: npt.ArrayLike) -> FloatArray:
        """Logits that `probabilities` turns into these with weights of 1; 0 and 1 stay finite."""

    @abstractmethod
    def temperature(self, y_true: BoolArray, logits: FloatArray) -> list[float]:
        """What to divide logits of shape (n_samples, n_labels) by, so that they make `y_true` most likely."""

    @abstractmethod
    def _votes(self, scores: FloatArray, thresholds: npt.ArrayLike) -> BoolArray:
        """What each fold says yes to, of the shape of `scores`, (n_folds, n_samples, n_labels)."""

    @abstractmethod
    def _greatest(
        self, logits: npt.NDArray[np.float32], starts: npt.NDArray[np.int64], weight: npt.ArrayLike
    ) -> npt.NDArray[np.floating]:
        """The logits of the greatest probability among the pieces from each start to the next."""

    def combine_folds(
        self,
        y_score_per_fold: npt.ArrayLike,
        how: Combination = "mean_proba",
        thresholds: npt.ArrayLike | None = None,
    ) -> FloatArray:
        """One score per row and label from the models of several folds.

        Parameters
        ----------
        y_score_per_fold : array of float of shape (n_folds, n_samples, n_labels)
            Corrected probabilities.
        how : {"mean_proba", "mean_logit", "vote"}
            "mean_proba": the mean. "mean_logit": the probability of the mean log-odds, of classes of the mean
            log-probabilities. "vote": the share of folds that say yes. Of labels these are the folds whose score
            reaches its threshold: decide at >= 0.5, not at `thresholds`; half of the folds, possible with an even
            number, is then enough. Of classes those for whose model it has the greatest `y_score / threshold`.
        thresholds : float, or array of shape (n_labels,) or, for labels, (n_folds, n_labels)
            For "vote", and only for it.

        Returns
        -------
        ndarray of float64 of shape (n_samples, n_labels)
            Sums to 1 over classes.

        Raises
        ------
        ValueError
            For an unknown `how`, no folds, NaN and scores outside [0, 1], and thresholds that are missing, unused, or
            of a shape that does not fit.
        """
        scores = as_probabilities(y_score_per_fold, "y_score_per_fold", ndim=3)
        if len(scores) == 0:
            raise ValueError("The 'y_score_per_fold' parameter must hold at least one fold. Got none instead.")
        if how not in ("mean_proba", "mean_logit", "vote"):
            raise ValueError(f"The 'how' parameter must be 'mean_proba', 'mean_logit' or 'vote'. Got {how!r} instead.")
        if (thresholds is None) == (how == "vote"):
            raise ValueError(
                f"The 'thresholds' parameter must be given for how='vote' and only then. "
                f"Got {thresholds!r} for {how!r} instead."
            )
        if thresholds is not None:
            # Counted, then divided once: half of the folds is exactly 0.5.
            return np.asarray(self._votes(scores, thresholds).sum(axis=0) / len(scores))
        if how == "mean_logit":
            return self.probabilities(self.logits(scores).mean(axis=0))
        return np.asarray(scores.mean(axis=0))

    def combine_pieces(
        self, logits: npt.ArrayLike, text: npt.ArrayLike, weight: npt.ArrayLike, how: PieceCombination = "mean_logit"
    ) -> npt.NDArray[np.float32]:
        """One logit per text and label from the logits of its pieces (chunks of a long document).

        Parameters
        ----------
        logits : array of float of shape (n_pieces, n_labels)
        text : array of int of shape (n_pieces,)
            The text that each piece belongs to: 0, 0, 1, 2, 2, ... ascending, every text once or more.
        weight : array of float of shape (n_labels,), as in `probabilities`
        how : {"mean_logit", "mean_proba", "max"}
            The mean logit; the logit of the mean probability; that of the greatest.

        Returns
        -------
        ndarray of float32 of shape (n_texts, n_labels)
            Shifted by `log(weight)` as the pieces' logits are.
        """
        values, owner = np.asarray(logits, dtype=np.float32), np.asarray(text)
        counts = np.bincount(owner)
        if not len(owner) or counts.max() == 1:
            return values
        starts = np.append(0, np.cumsum(counts)[:-1])
        together: npt.NDArray[np.floating]
        if how == "max":
            together = self._greatest(values, starts, weight)
        elif how == "mean_proba":
            means = np.add.reduceat(self.probabilities(values, weight), starts, axis=0) / counts[:, None]
            together = self.logits(means) + _log(weight)
        else:
            together = np.add.reduceat(values.astype(np.float64), starts, axis=0) / counts[:, None]
        # A text in one piece keeps its logit to the last digit, whatever stands beside it.
        return np.where(counts[:, None] == 1, values[starts], together.astype(np.float32))


class Sigmoid(Link):
    """Each label for itself: logits are log-odds."""

    def probabilities(self, logits: npt.ArrayLike, weight: npt.ArrayLike = 1.0) -> FloatArray:
        """See `corrected_probabilities`."""
        return corrected_probabilities(logits, weight)

    def logits(self, proba: npt.ArrayLike) -> FloatArray:
        """See `probabilities.logit`."""
        return logit(proba)

    def temperature(self, y_true: BoolArray, logits: FloatArray) -> list[float]:
        """One per label; 1 for a label with one class only, whose temperature would be at its bound."""
        return [
            1.0 if truth.all() or not truth.any() else _most_likely(_label_loss(truth, values))
            for truth, values in zip(y_true.T, logits.T, strict=True)
        ]

    def _votes(self, scores: FloatArray, thresholds: npt.ArrayLike) -> BoolArray:
        n_folds, _, n_labels = scores.shape
        limits = as_scores(thresholds, "thresholds", ndim=None)
        if limits.shape not in ((), (n_labels,), (n_folds, n_labels)):
            raise ValueError(
                f"The 'thresholds' parameter must be one number, or have shape {(n_labels,)} or {(n_folds, n_labels)}. "
                f"Got shape {limits.shape} instead."
            )
        return np.asarray(scores >= (limits[:, None, :] if limits.ndim == 2 else limits))

    def _greatest(
        self, logits: npt.NDArray[np.float32], starts: npt.NDArray[np.int64], weight: npt.ArrayLike
    ) -> npt.NDArray[np.floating]:
        return np.asarray(np.maximum.reduceat(logits, starts, axis=0))


class Softmax(Link):
    """Exactly one class per row: logits are log-probabilities, and a constant that the softmax ignores."""

    def probabilities(self, logits: npt.ArrayLike, weight: npt.ArrayLike = 1.0) -> FloatArray:
        """See `corrected_class_probabilities`."""
        return corrected_class_probabilities(logits, weight)

    def logits(self, proba: npt.ArrayLike) -> FloatArray:
        """Logarithms; of a probability that underflowed to 0 about -708, so that it stays finite.

        The floor is the smallest normal number, and no greater one: whatever float64 can tell apart stays apart, and
        `probabilities` gives it back.
        """
        return _log(np.maximum(as_scores(proba, "proba", ndim=None), np.finfo(np.float64).tiny))

    def temperature(self, y_true: BoolArray, logits: FloatArray) -> list[float]:
        """One for all classes."""
        from scipy.special import log_softmax

        rows, chosen = np.arange(len(y_true)), y_true.argmax(axis=1)
        return [_most_likely(lambda t: float(-log_softmax(logits / t, axis=1)[rows, chosen].mean()))]

    def _votes(self, scores: FloatArray, thresholds: npt.ArrayLike) -> BoolArray:
        chosen = np.argmax(scores / as_scores(thresholds, "thresholds", ndim=1), axis=-1)
        return np.asarray(chosen[..., None] == np.arange(scores.shape[2]))

    def _greatest(
        self, logits: npt.NDArray[np.float32], starts: npt.NDArray[np.int64], weight: npt.ArrayLike
    ) -> npt.NDArray[np.floating]:
        # of probabilities, as logits of different pieces differ by a constant each
        return self.logits(np.maximum.reduceat(self.probabilities(logits, weight), starts, axis=0)) + _log(weight)


def _log(values: npt.ArrayLike) -> FloatArray:
    return np.asarray(np.log(np.asarray(values, dtype=np.float64)))


def _label_loss(truth: BoolArray, logits: FloatArray) -> Callable[[float], float]:
    signed = np.where(truth, logits, -logits)
    return lambda t: float(np.logaddexp(0, -signed / t).mean())


def _most_likely(loss: Callable[[float], float]) -> float:
    """The temperature of the least loss."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(lambda log_t: loss(float(np.exp(log_t))), bounds=(-_LOG_T, _LOG_T), method="bounded")
    return float(np.exp(found.x))
