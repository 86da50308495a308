"""A label column that holds names: one class per row, or several labels between delimiters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from decimal import Decimal

import numpy as np
import pandas as pd

from lora_cls.data.labels import BAD, MISSING, parse_labels, parse_soft_labels
from lora_cls.data.table import as_id, is_missing
from lora_cls.recipe import Data

MOST_NAMES = 1000
"""A column of more different names is no label column, if nobody said so."""
FEW_NAMES = 20
"""So many names are believed whatever the number of rows."""
LIKELY_DELIMITERS = ("|", ";", ",")

Names = list[list[str] | None]
"""The names in each cell, none in an empty one; None for a cell that holds no name but, say, a list."""


def split_names(values: pd.Series, delimiter: str | None) -> Names:
    """The names in each cell of a column, stripped; the whole cell is one name where there is no delimiter.

    Names of integers keep their spelling; 7.0, which pandas makes of 7 beside a missing cell, is "7".
    """
    names: Names = []
    for value in values.tolist():
        if isinstance(value, str):
            parts = [value] if delimiter is None else value.split(delimiter)
            names.append([part for part in map(str.strip, parts) if part])
        elif is_missing(value):
            names.append([])
        elif isinstance(value, (bool, int, float, Decimal, np.number, np.bool_)):
            names.append([as_id(value)])
        else:
            names.append(None)
    return names


def distinct_names(names: Names) -> list[str]:
    """Every name once, sorted; by value if all are integers."""
    found = {name for cell in names for name in cell or ()}
    if all(_is_integer(name) for name in found):
        return sorted(found, key=lambda name: (int(name), name))
    return sorted(found)


def free_name(name: str, taken: Collection[str]) -> str:
    """A name of ours for a column beside users' names: with `_` behind it until it is none of theirs.

    Examples
    --------
    >>> free_name("id", ["joy", "anger"]), free_name("id", ["id", "en"])
    ('id', 'id_')
    """
    while name in taken:
        name += "_"
    return name


def too_many(n_names: int, n_cells: int) -> bool:
    """Whether so many names in so many filled cells cannot be labels."""
    return n_names > MOST_NAMES or (n_names > FEW_NAMES and n_names > n_cells / 2)


def looks_like_names(values: pd.Series, delimiter: str | None) -> bool:
    """Whether a column that nobody named can be a column of names: each name stands in two cells or more on average."""
    names = split_names(values, delimiter)
    found, filled = distinct_names(names), sum(bool(cell) for cell in names)
    if delimiter is not None and not occurs(values, delimiter):
        return False
    return None not in names and 2 <= len(found) <= min(MOST_NAMES, filled / 2)


def occurs(values: pd.Series, delimiter: str) -> bool:
    """Whether any cell holds the delimiter."""
    return any(isinstance(value, str) and delimiter in value.strip() for value in values.tolist())


def likely_delimiter(values: pd.Series) -> str | None:
    """What seems to stand between several names of a cell: a mark in over a fifth of the cells, with a name on one
    side of it that other cells hold too. (`Sales, Marketing` as one department does not look so.)"""
    cells = [value.strip() for value in values.tolist() if isinstance(value, str) and value.strip()]
    for mark in LIKELY_DELIMITERS:
        marked = [cell for cell in cells if mark in cell]
        if len(marked) * 5 <= len(cells):
            continue
        in_cells = Counter(part.strip() for cell in set(cells) for part in set(cell.split(mark)) if part.strip())
        if any(count > 1 for count in in_cells.values()):
            return mark
    return None


def name_matrix(names: Names, classes: Sequence[str]) -> np.ndarray:
    """Labels of shape (n_samples, n_classes), int8: 1 for each name of a row.

    `MISSING` in all of a row without names, and `BAD` in all of one whose cell holds no name or one that is no class.
    """
    position = {name: j for j, name in enumerate(classes)}
    labels = np.zeros((len(names), len(classes)), dtype=np.int8)
    for i, cell in enumerate(names):
        if cell is None or any(name not in position for name in cell):
            labels[i] = BAD
        elif not cell:
            labels[i] = MISSING
        else:
            labels[i, [position[name] for name in cell]] = 1
    return labels


def label_matrix(frame: pd.DataFrame, columns: Sequence[str], classes: Sequence[str] | None, data: Data) -> np.ndarray:
    """The labels of any table, as its columns say them: the one place that turns cells into a matrix.

    Parameters
    ----------
    columns : the label columns: 0/1 each, or one that holds names
    classes : the names that the one column may hold; None where every label has a column
    data : `soft_labels` and `label_delimiter` of the recipe

    Returns
    -------
    ndarray of shape (n_samples, n_labels), int8, or float32 of soft labels
        With `MISSING` and `BAD` where a cell is empty or says no label.
    """
    if classes is not None:
        labels = name_matrix(split_names(frame[columns[0]], data.label_delimiter), classes)
        if data.label_delimiter is not None:
            labels[labels == MISSING] = 0  # an empty list of labels
        return labels
    parse = parse_soft_labels if data.soft_labels else parse_labels
    labels = np.zeros((len(frame), len(columns)), dtype=np.float32 if data.soft_labels else np.int8)
    for j, name in enumerate(columns):
        labels[:, j] = parse(frame[name])
    return labels


def as_binary_labels(labels: np.ndarray) -> np.ndarray:
    """0/1 labels, int8, of labels that may be soft; `MISSING` and `BAD` stay."""
    return labels if labels.dtype == np.int8 else np.where(labels < 0, labels, labels >= 0.5).astype(np.int8)


def _is_integer(name: str) -> bool:
    return name.removeprefix("-").isdecimal()
