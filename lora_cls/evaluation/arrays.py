"""Checks of the arrays that enter this package: an error names the parameter, the rule and what was received."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]


def as_binary(values: npt.ArrayLike, name: str, ndim: int = 2) -> BoolArray:
    """`values` as booleans; ValueError unless it has `ndim` dimensions and holds nothing but 0 and 1."""
    array = _with_ndim(np.asarray(values), name, ndim)
    if array.dtype != np.bool_ and not np.all((array == 0) | (array == 1)):
        strange = np.unique(array[(array != 0) & (array != 1)])[:3].tolist()
        raise ValueError(f"The '{name}' parameter must hold only 0 and 1. Got {strange} among its values instead.")
    return array.astype(np.bool_)


def as_scores(values: npt.ArrayLike, name: str, ndim: int | None = 2) -> FloatArray:
    """`values` as float64; ValueError unless it has `ndim` dimensions (None: any) and every value is finite."""
    array = _with_ndim(np.asarray(values, dtype=np.float64), name, ndim)
    bad = ~np.isfinite(array)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"The '{name}' parameter must hold finite numbers. Got {int(bad.sum())} NaN or infinite value(s) instead, "
            f"the first ({array[first]}) at index {first}."
        )
    return array


def as_row_keys(values: npt.ArrayLike, name: str, n_samples: int) -> npt.NDArray[Any]:
    """`values` as a 1-D array with one entry per row; ValueError otherwise."""
    array = _with_ndim(np.asarray(values), name, 1)
    if len(array) != n_samples:
        raise ValueError(f"The '{name}' parameter must have one entry per row ({n_samples}). Got {len(array)} instead.")
    return array


def same_shape(a: npt.NDArray[Any], a_name: str, b: npt.NDArray[Any], b_name: str) -> None:
    """ValueError unless both arrays have the same shape."""
    if a.shape != b.shape:
        raise ValueError(
            f"The '{b_name}' parameter must have the shape of '{a_name}', {a.shape}. Got {b.shape} instead."
        )


def _with_ndim(array: npt.NDArray[Any], name: str, ndim: int | None) -> npt.NDArray[Any]:
    if ndim is not None and array.ndim != ndim:
        raise ValueError(
            f"The '{name}' parameter must have {ndim} dimension(s). Got an array of shape {array.shape} instead."
        )
    return array
