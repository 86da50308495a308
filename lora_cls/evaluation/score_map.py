"""Maps between the scores of two models of the same texts, made without labels: quantile by quantile.

One model's scores may rank texts as another's do and still be shifted, so that thresholds tuned on the one do not fit
the other. Where both answered for the same texts, each label's log-odds can be mapped so that they are distributed as
the other's: the rising map that takes each quantile of the one to that quantile of the other (as in Bolstad et al.
2003, "A comparison of normalization methods for high density oligonucleotide array data", Bioinformatics 19(2)).
At any threshold a label is then given to as many of these texts as before. A regression of the one on the other would
not do: it draws scores to their mean, and with them the shares.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lora_cls.evaluation.arrays import FloatArray, as_scores, same_shape

N_STEPS = 64  # between the knots in the middle; towards both ends they stand closer, as rare labels are decided there
DIGITS = 5  # of the knots, behind the point


def fit_score_map(scores: npt.ArrayLike, wanted: npt.ArrayLike) -> tuple[list[list[float]], list[list[float]]]:
    """The maps from `scores` to what is distributed as `wanted`, one per label.

    Parameters
    ----------
    scores, wanted : arrays of float of shape (n_samples, n_labels), one row or more
        Log-odds of two models of the same texts.

    Returns
    -------
    x, y : list of one list per label
        Knots: x rises, y does not fall. `apply_score_map` takes them.

    Raises
    ------
    ValueError
        For shapes that differ, no rows, and values that are not finite.

    Examples
    --------
    >>> x, y = fit_score_map([[0.0], [1.0], [2.0]], [[1.5], [2.5], [3.5]])
    >>> apply_score_map(x, y, [[-1.0], [0.5]]).tolist()
    [[0.5], [2.0]]
    """
    source, target = as_scores(scores, "scores"), as_scores(wanted, "wanted")
    same_shape(source, "scores", target, "wanted")
    if not len(source):
        raise ValueError("The 'scores' parameter must hold at least one row. Got none instead.")
    last = len(source) - 1
    ends = 2 ** np.arange(last.bit_length()) - 1
    places = np.unique(np.concatenate([np.linspace(0, last, N_STEPS + 1).round().astype(int), ends, last - ends]))
    quantiles = (np.sort(values, axis=0)[places].T for values in (source, target))
    maps = [_knots(a, b) for a, b in zip(*quantiles, strict=True)]
    return [x for x, _ in maps], [y for _, y in maps]


def _knots(source: FloatArray, target: FloatArray) -> tuple[list[float], list[float]]:
    """Of a label: where several quantiles of the source are one number, the mean of their targets."""
    x, of = np.unique(source.round(DIGITS), return_inverse=True)
    y = np.bincount(of, weights=target) / np.bincount(of)
    return x.tolist(), y.round(DIGITS).tolist()


def apply_score_map(x: Sequence[Sequence[float]], y: Sequence[Sequence[float]], scores: npt.ArrayLike) -> FloatArray:
    """Mapped log-odds: between knots in straight lines, beyond them shifted as the outermost ones.

    Parameters
    ----------
    x, y : knots of every label, see `fit_score_map`
    scores : array of float of shape (..., n_labels), log-odds

    Returns
    -------
    ndarray of float64, the shape of `scores`
    """
    values = as_scores(scores, "scores", ndim=None)
    mapped = np.empty(values.shape)
    for j, (at, to) in enumerate(zip(x, y, strict=True)):
        inside = np.clip(values[..., j], at[0], at[-1])
        mapped[..., j] = np.interp(inside, at, to) + (values[..., j] - inside)
    return mapped
