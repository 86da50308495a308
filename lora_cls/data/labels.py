"""Label values: what counts as 0, as 1, as missing, and as a mistake."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pandas as pd

from lora_cls.data.table import is_missing

MISSING, BAD = -1, -2
EXPECTED = "0 or 1 (or true/false)"
EXPECTED_SOFT = "a number from 0 to 1"

# In a label column these words can only mean an empty cell; in a text they are words.
_MISSING_WORDS = frozenset({"nan", "na", "<na>", "null", "none"})


def parse_labels(values: pd.Series) -> np.ndarray:
    """Read a column of labels.

    Parameters
    ----------
    values : Series of shape (n_samples,)
        0/1, 0.0/1.0, booleans, or the same as text in any case (`"TRUE"`, `"1.0"`).

    Returns
    -------
    ndarray of shape (n_samples,), int8
        0 or 1, `MISSING` for an empty cell, `BAD` for anything else.
    """
    cells = values.tolist()
    known = {cell: _code_of_text(cell) for cell in {cell for cell in cells if isinstance(cell, str)}}
    if set(map(type, cells)) == {str}:  # as files are read
        return np.fromiter(map(known.__getitem__, cells), dtype=np.int8, count=len(cells))
    codes = (known[cell] if isinstance(cell, str) else _code(cell) for cell in cells)
    return np.fromiter(codes, dtype=np.int8, count=len(cells))


def parse_soft_labels(values: pd.Series) -> np.ndarray:
    """Read a column of labels that may lie between 0 and 1, as shares of annotators.

    Returns
    -------
    ndarray of shape (n_samples,), float32
        From 0 to 1, `MISSING` for an empty cell, `BAD` for anything else.
    """
    found = parse_labels(values).astype(np.float32)
    cells = values.tolist()
    for i in np.flatnonzero(found == BAD).tolist():
        try:
            number = float(cells[i])
        except (TypeError, ValueError, OverflowError):
            continue
        if 0 <= number <= 1:
            found[i] = number
    return found


def looks_like_labels(values: pd.Series, soft: bool = False) -> bool:
    """Whether at least half of a column's filled cells are 0/1; or, of soft labels, numbers from 0 to 1.

    Not all of them: a label column with one mistake must be found, so that the mistake is reported.
    """
    codes = parse_soft_labels(values) if soft else parse_labels(values)
    good = int((codes >= 0).sum())
    return good > 0 and good >= int((codes == BAD).sum())


def _code(value: object) -> int:
    if is_missing(value):
        return MISSING
    if isinstance(value, (bool, int, float, Decimal, np.number, np.bool_)) and value in (0, 1):
        return int(value)
    return BAD


def _code_of_text(value: str) -> int:
    word = value.strip().lower()
    if not word or word in _MISSING_WORDS:
        return MISSING
    if word in ("true", "false"):
        return int(word == "true")
    try:
        return _code(float(word))
    except ValueError:
        return BAD
