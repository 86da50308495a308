"""Probabilities: from each fold's logits to comparable probabilities, and from several folds to one score."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from lora_cls.evaluation.arrays import FloatArray, as_scores

PieceCombination = Literal["mean_logit", "mean_proba", "max"]
Combination = Literal["mean_proba", "mean_logit", "vote"]


def corrected_probabilities(logits: npt.ArrayLike, pos_weight: npt.ArrayLike) -> FloatArray:
    """`sigmoid(logits - log(pos_weight))`: the probabilities that a loss with positive weights hides.

    Binary cross-entropy that counts positives `w` times, -w p log s - (1 - p) log(1 - s), is least at s / (1 - s) =
    w p / (1 - p). The ideal logit is therefore the log-odds plus log w; taking log w away gives p back. Each fold has
    its own w, so only corrected probabilities of different folds can be pooled or averaged.

    Parameters
    ----------
    logits : array of float of shape (..., n_labels)
        For instance (n_samples, n_labels), or (n_folds, n_samples, n_labels).
    pos_weight : array of float of shape (n_labels,), or any that broadcasts to the shape of `logits`
        For instance (n_folds, 1, n_labels). 1 for no weight.

    Returns
    -------
    ndarray of float64, the shape of `logits`

    Raises
    ------
    ValueError
        For NaN or infinite logits, weights that are not positive and finite, and shapes that do not fit.

    Examples
    --------
    Of a label whose positives counted three times, log-odds of log 3 mean an even chance.

    >>> corrected_probabilities(np.log([[3.0, 3.0]]), [3, 1]).round(6).tolist()
    [[0.5, 0.75]]
    """
    from scipy.special import expit

    return np.asarray(expit(_unshifted(logits, pos_weight, "pos_weight")))


def corrected_class_probabilities(logits: npt.ArrayLike, class_weight: npt.ArrayLike) -> FloatArray:
    """`softmax(logits - log(class_weight))`: the probabilities of classes that a weighted cross-entropy hides.

    Cross-entropy that counts rows of class c `w_c` times, -sum_c w_c p_c log s_c, is least at s_c proportional to
    w_c p_c: every ideal logit is log p_c plus log w_c, and a constant that softmax ignores.

    Parameters
    ----------
    logits : array of float of shape (..., n_classes)
    class_weight : array of float of shape (n_classes,), or any that broadcasts to the shape of `logits`

    Returns
    -------
    ndarray of float64, the shape of `logits`
        Sums to 1 over the classes.

    Raises
    ------
    ValueError
        As `corrected_probabilities`.
    """
    from scipy.special import softmax

    return np.asarray(softmax(_unshifted(logits, class_weight, "class_weight"), axis=-1))


def logit(proba: npt.ArrayLike, *, eps: float = 1e-12) -> FloatArray:
    """`log(p / (1 - p))` with p kept within [eps, 1 - eps], so that 0 and 1 stay finite (about -27.6 and 27.6).

    Parameters
    ----------
    proba : array of float of any shape, within [0, 1]
    eps : float

    Returns
    -------
    ndarray of float64, the shape of `proba`

    Raises
    ------
    ValueError
        For NaN and values outside [0, 1].

    Examples
    --------
    >>> logit([0, 0.5, 1]).round(1).tolist()
    [-27.6, 0.0, 27.6]
    """
    from scipy.special import logit as unclipped_logit

    p = _as_proba(proba, "proba", ndim=None)
    return np.asarray(unclipped_logit(np.clip(p, eps, 1 - eps)))


def combine_folds(
    y_score_per_fold: npt.ArrayLike, how: Combination = "mean_proba", thresholds: npt.ArrayLike | None = None
) -> FloatArray:
    """One score per row and label from the models of several folds.

    Parameters
    ----------
    y_score_per_fold : array of float of shape (n_folds, n_samples, n_labels)
        Corrected probabilities, see `corrected_probabilities`.
    how : {"mean_proba", "mean_logit", "vote"}
        "mean_proba": the mean. "mean_logit": the sigmoid of the mean of the logits. "vote": the share of folds whose
        score reaches its threshold; decide at >= 0.5, not at `thresholds`. Half of the folds, possible with an even
        number, is then enough.
    thresholds : float, or array of shape (n_labels,) or (n_folds, n_labels)
        For "vote", and only for it.

    Returns
    -------
    ndarray of float64 of shape (n_samples, n_labels)

    Raises
    ------
    ValueError
        For an unknown `how`, no folds, NaN and scores outside [0, 1], and thresholds that are missing, unused, or of
        a shape that does not fit.
    """
    scores = _as_proba(y_score_per_fold, "y_score_per_fold", ndim=3)
    _check_combination(scores, how, thresholds)
    if thresholds is not None:
        return _votes(scores, as_scores(thresholds, "thresholds", ndim=None))
    if how == "mean_logit":
        from scipy.special import expit

        return np.asarray(expit(logit(scores).mean(axis=0)))
    return np.asarray(scores.mean(axis=0))


def combine_class_folds(
    y_score_per_fold: npt.ArrayLike, how: Combination = "mean_proba", thresholds: npt.ArrayLike | None = None
) -> FloatArray:
    """`combine_folds` for classes of which every row has exactly one.

    Parameters
    ----------
    y_score_per_fold : array of float of shape (n_folds, n_samples, n_classes)
        Corrected probabilities, see `corrected_class_probabilities`.
    how : {"mean_proba", "mean_logit", "vote"}
        "mean_proba": the mean. "mean_logit": the softmax of the mean log-probabilities. "vote": the share of folds
        that decide for the class.
    thresholds : array of shape (n_classes,) or None
        For "vote", and only for it: each fold decides for its greatest `y_score / threshold`.

    Returns
    -------
    ndarray of float64 of shape (n_samples, n_classes)
        Sums to 1 over the classes.

    Raises
    ------
    ValueError
        As `combine_folds`.
    """
    scores = _as_proba(y_score_per_fold, "y_score_per_fold", ndim=3)
    _check_combination(scores, how, thresholds)
    if thresholds is not None:
        chosen = np.argmax(scores / as_scores(thresholds, "thresholds", ndim=1), axis=-1)
        return np.asarray((chosen[..., None] == np.arange(scores.shape[2])).sum(axis=0) / len(scores))
    if how == "mean_logit":
        from scipy.special import softmax

        return np.asarray(softmax(_log(scores).mean(axis=0), axis=-1))
    return np.asarray(scores.mean(axis=0))


def combine_pieces(
    logits: npt.ArrayLike,
    text: npt.ArrayLike,
    pos_weight: npt.ArrayLike,
    how: PieceCombination = "mean_logit",
    *,
    classes: bool = False,
) -> npt.NDArray[np.float32]:
    """One logit per text and label from the logits of its pieces (chunks of a long document).

    Parameters
    ----------
    logits : array of float of shape (n_pieces, n_labels)
    text : array of int of shape (n_pieces,)
        The text that each piece belongs to: 0, 0, 1, 2, 2, ... ascending, every text once or more.
    pos_weight : array of float of shape (n_labels,), see `corrected_probabilities`
    how : {"mean_logit", "mean_proba", "max"}
        The mean log-odds; the log-odds of the mean probability; the greatest.
    classes : bool
        Every text has exactly one of the labels: the same with log-probabilities of the softmax in place of log-odds
        ("max" then compares probabilities, as logits of different pieces differ by a constant each).

    Returns
    -------
    ndarray of float32 of shape (n_texts, n_labels)
        Shifted by `log(pos_weight)` as the pieces' logits are.
    """
    values, owner = np.asarray(logits, dtype=np.float32), np.asarray(text)
    counts = np.bincount(owner)
    if not len(owner) or counts.max() == 1:
        return values
    starts = np.append(0, np.cumsum(counts)[:-1])
    if classes and how != "mean_logit":
        proba = corrected_class_probabilities(values, pos_weight)
        together = (
            np.maximum.reduceat(proba, starts, axis=0)
            if how == "max"
            else (np.add.reduceat(proba, starts, axis=0) / counts[:, None])
        )
        shifted = _log(together) + np.log(np.asarray(pos_weight, dtype=np.float64))
        return np.where(counts[:, None] == 1, values[starts], shifted.astype(np.float32))
    if how == "max":
        return np.asarray(np.maximum.reduceat(values, starts, axis=0))
    scores = corrected_probabilities(values, pos_weight) if how == "mean_proba" else values.astype(np.float64)
    means = np.add.reduceat(scores, starts, axis=0) / counts[:, None]
    if how == "mean_proba":
        means = logit(means) + np.log(np.asarray(pos_weight, dtype=np.float64))
    # A text in one piece keeps its logit to the last digit, whatever stands beside it.
    return np.where(counts[:, None] == 1, values[starts], means.astype(np.float32))


def _unshifted(logits: npt.ArrayLike, weight: npt.ArrayLike, name: str) -> FloatArray:
    """`logits - log(weight)`, both checked."""
    values = as_scores(logits, "logits", ndim=None)
    weights = as_scores(weight, name, ndim=None)
    if not np.all(weights > 0):
        raise ValueError(
            f"The '{name}' parameter must be greater than 0. Got {weights.min()} among its values instead."
        )
    _must_broadcast(weights, name, values, "logits")
    return np.asarray(values - np.log(weights))


def _log(proba: FloatArray) -> FloatArray:
    """Logarithms; of a probability that underflowed to 0 about -708, so that it stays finite."""
    return np.asarray(np.log(np.maximum(proba, np.finfo(np.float64).tiny)))


def _check_combination(scores: FloatArray, how: Combination, thresholds: npt.ArrayLike | None) -> None:
    if len(scores) == 0:
        raise ValueError("The 'y_score_per_fold' parameter must hold at least one fold. Got none instead.")
    if how not in ("mean_proba", "mean_logit", "vote"):
        raise ValueError(f"The 'how' parameter must be 'mean_proba', 'mean_logit' or 'vote'. Got {how!r} instead.")
    if (thresholds is None) == (how == "vote"):
        raise ValueError(
            f"The 'thresholds' parameter must be given for how='vote' and only then. "
            f"Got {thresholds!r} for {how!r} instead."
        )


def _votes(scores: FloatArray, thresholds: FloatArray) -> FloatArray:
    n_folds, _, n_labels = scores.shape
    if thresholds.shape not in ((), (n_labels,), (n_folds, n_labels)):
        raise ValueError(
            f"The 'thresholds' parameter must be one number, or have shape {(n_labels,)} or {(n_folds, n_labels)}. "
            f"Got shape {thresholds.shape} instead."
        )
    limits = thresholds[:, None, :] if thresholds.ndim == 2 else thresholds
    # Counted, then divided once: half of the folds is exactly 0.5.
    return np.asarray((scores >= limits).sum(axis=0) / n_folds)


def _as_proba(values: npt.ArrayLike, name: str, ndim: int | None) -> FloatArray:
    proba = as_scores(values, name, ndim)
    outside = (proba < 0) | (proba > 1)
    if outside.any():
        raise ValueError(f"The '{name}' parameter must hold probabilities in [0, 1]. Got {proba[outside][0]} instead.")
    return proba


def _must_broadcast(array: FloatArray, name: str, target: FloatArray, target_name: str) -> None:
    """ValueError unless `array` broadcasts to the shape of `target` without enlarging it."""
    try:
        np.broadcast_to(array, target.shape)
    except ValueError:
        raise ValueError(
            f"The '{name}' parameter must broadcast to the shape of '{target_name}', {target.shape}. "
            f"Got shape {array.shape} instead."
        ) from None
