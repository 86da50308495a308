"""Probabilities: from each fold's logits to comparable probabilities, and back; `links` combines them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lora_cls.evaluation.arrays import FloatArray, as_scores


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

    p = as_probabilities(proba, "proba", ndim=None)
    return np.asarray(unclipped_logit(np.clip(p, eps, 1 - eps)))


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


def as_probabilities(values: npt.ArrayLike, name: str, ndim: int | None) -> FloatArray:
    """`as_scores`; ValueError for values outside [0, 1] too."""
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
