"""What a table says about a row beside its text and labels: how much it counts, and whether it is held out."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pandas as pd

from lora_cls.data.table import is_missing, row_name
from lora_cls.errors import shorten, shown

HELD_OUT = ("validation", "valid", "val", "dev", "test")
TRAIN = ("train", "training")


def parse_weights(frame: pd.DataFrame, column: str) -> tuple[np.ndarray, list[str]]:
    """Read `data.weight_column`.

    Returns
    -------
    weights : ndarray of shape (n_samples,), float64
    problems : list of str
        For cells that are empty, no numbers, negative or infinite, and for weights that are all 0.
    """
    cells = frame[column].tolist()
    weights = np.zeros(len(cells))
    bad = []
    for i, value in enumerate(cells):
        try:
            weights[i] = float("nan" if is_missing(value) else value)
        except (TypeError, ValueError, OverflowError):
            weights[i] = math.nan
        if not 0 <= weights[i] < math.inf:
            bad.append(f"{row_name(frame, i)} has {shown(value)}")
    if bad:
        return weights, [f"weight column '{column}': expected a number of 0 or more, but {shorten(bad)}."]
    if not weights.any():
        return weights, [f"weight column '{column}': every row weighs 0, so nothing can be learnt."]
    return weights, []


def parse_split(frame: pd.DataFrame, column: str) -> tuple[np.ndarray, list[str]]:
    """Read `data.split_column`: which rows are held out.

    Only words are understood: a 1 may mean either part.

    Returns
    -------
    held_out : ndarray of shape (n_samples,), bool
    problems : list of str
        For cells that are empty or hold another word.
    """
    cells = frame[column].tolist()
    words = ["" if is_missing(value) else str(value).strip().lower() for value in cells]
    odd = [i for i, word in enumerate(words) if word not in (*HELD_OUT, *TRAIN)]
    held_out = np.array([word in HELD_OUT for word in words], dtype=bool)
    if not odd:
        return held_out, []
    kinds = Counter(shown(cells[i]) if words[i] else "an empty cell" for i in odd)
    found = shorten(f"{kind} ({count} row{'s' * (count > 1)})" for kind, count in kinds.most_common())
    return held_out, [
        f"split column '{column}': expected {', '.join(HELD_OUT)} (held out) or {' or '.join(TRAIN)}, but it holds "
        f"{found}; the first at {row_name(frame, odd[0])}."
    ]
