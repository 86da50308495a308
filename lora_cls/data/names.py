"""A label column that holds names: one class per row, or several labels between delimiters."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from decimal import Decimal

import numpy as np
import pandas as pd

from lora_cls.data.header import is_number
from lora_cls.data.labels import BAD, MISSING, parse_labels, parse_soft_labels
from lora_cls.data.table import as_id, half_character, is_missing
from lora_cls.recipe import Data

MOST_NAMES = 1000
"""A column of more different names is no label column, if nobody said so."""
FEW_NAMES = 20
"""So many names are believed whatever the number of rows."""
LIKELY_DELIMITERS = ("|", ";", ",")

Names = list[list[str] | None]
"""The names in each cell, none in an empty one; None for a cell that holds no name but, say, a mapping."""

_QUOTED = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_QUOTED_LIST = re.compile(rf"\[\s*(?:{_QUOTED})(?:(?:\s*,\s*|\s+)(?:{_QUOTED}))*\s*,?\s*\]")

_SURELY_A_LIST = re.compile(r"^\s*\[.*[,'\"]|^\s*\[\s*[-.\d]", re.DOTALL)
_LISTS = (list, tuple, set, frozenset, np.ndarray)


def split_names(values: pd.Series, delimiter: str | None) -> Names:
    """The names in each cell of a column, stripped; the whole cell is one name where there is no delimiter.

    In a column of lists (see `holds_lists`) each cell's items are its names, whatever the delimiter. Names of integers
    keep their spelling; 7.0, which pandas makes of 7 beside a missing cell, is "7".
    """
    lists = holds_lists(values)
    return [_cell_names(value, lists, delimiter) for value in values.tolist()]


def _cell_names(value: object, lists: bool, delimiter: str | None) -> list[str] | None:
    """`split_names` of one cell, in a column of lists or of names."""
    if is_missing(value):
        return []
    parts: Sequence[object] | None = list_items(value) if lists else [value]
    if isinstance(value, str) and not lists and delimiter is not None:
        parts = value.split(delimiter)
    found = [None] if parts is None else [_scalar_name(part) for part in parts]
    return None if None in found else [name for name in found if name and look(name)]


def holds_lists(values: pd.Series) -> bool:
    """Whether most filled cells of a column hold lists: as values, or as text (`['a', 'b']`, `["a"]`, `[1 0]`).

    Not all of them: a column of lists with one mistake must be found, so that the mistake is reported.
    """
    cells = [value for value in values.tolist() if not is_missing(value)]
    lists = [value for value in cells if list_items(value) is not None]
    # brackets alone may belong to a name, as in `[deleted]`
    sure = any(not isinstance(value, str) or _SURELY_A_LIST.search(value) for value in lists)
    return sure and len(lists) * 2 > len(cells)


def list_items(value: object) -> list[object] | None:
    """The items of a list, or of a text that Python, JSON or NumPy wrote of one; None for anything else."""
    if isinstance(value, np.ndarray):
        return np.atleast_1d(value).tolist()
    if isinstance(value, _LISTS):
        return list(value)
    if not isinstance(value, str):
        return None
    text = value.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        found = json.loads(text, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        pass
    else:
        return found if isinstance(found, list) else None
    if _QUOTED_LIST.fullmatch(text):
        return [re.sub(r"\\(['\"\\])", r"\1", item[0][1:-1]) for item in re.finditer(_QUOTED, text)]
    inner = text[1:-1].strip()
    if re.search(r"[\[\]{}'\"]", inner):
        return None
    items = [item.strip() for item in inner.split(",")] if "," in inner else inner.split()
    # words between blanks are one name: only NumPy's numbers are written so
    return list(items) if "," in inner or all(map(is_number, items)) else [inner]


def vectors(names: Names) -> bool:
    """Whether lists are no names but one number per label: all as long, from 0 to 1, and with repeats among them."""
    filled = [cell for cell in names if cell]
    if not filled or len({len(cell) for cell in filled}) > 1 or len(filled[0]) < 2:
        return False
    numbers = all(is_number(name) and 0 <= float(name) <= 1 for cell in filled for name in cell)
    return numbers and any(len(set(cell)) < len(cell) or any("." in name for name in cell) for cell in filled)


def _scalar_name(value: object) -> str | None:
    """The name that a value is, stripped; None for one that is none."""
    if isinstance(value, str):
        return None if half_character(value) else value.strip()
    if isinstance(value, (bool, int, float, Decimal, np.number, np.bool_)) and not is_missing(value):
        return as_id(value)
    return None


def look(name: str) -> str:
    """What names that nobody can tell apart have in common: without characters of no width, any white space as one
    blank, composed; and 5.0 is 5."""
    if not name.isascii():
        name = unicodedata.normalize("NFC", _NO_WIDTH.sub("", name))
    name = " ".join(name.split())
    return name.removesuffix(".0") if _WHOLE_FLOAT.fullmatch(name) else name


_NO_WIDTH = re.compile("[\u00ad\u200b\u200e\u200f\u2060\ufeff]")
_WHOLE_FLOAT = re.compile(r"-?(?:0|[1-9][0-9]*)\.0")


def spellings(names: Names) -> dict[str, list[str]]:
    """The spellings of every look, the commonest first."""
    counts = Counter(name for cell in names for name in cell or ())
    found: dict[str, list[str]] = {}
    for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        found.setdefault(look(name), []).append(name)
    return found


def distinct_names(names: Names) -> list[str]:
    """Every name once, in the commonest spelling of those that look alike; sorted, by value if all are integers."""
    found = [alike[0] for alike in spellings(names).values()]
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
    lists, filled = holds_lists(values), 0
    if delimiter is not None and not lists and not occurs(values, delimiter):
        return False
    looks: set[str] = set()
    for value in values.tolist():
        cell = _cell_names(value, lists, delimiter)
        if cell is None:
            return False
        filled += bool(cell)
        looks.update(map(look, cell))
        if len(looks) > MOST_NAMES:  # as in a column of texts, after a thousand rows of a million
            return False
    return 2 <= len(looks) <= filled / 2


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
    position = {look(name): j for j, name in enumerate(classes)}
    position |= {name: j for j, name in enumerate(classes)}
    for name in {name for cell in names for name in cell or ()} - set(position):
        if (alike := look(name)) in position:
            position[name] = position[alike]
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
        values = frame[columns[0]]
        labels = name_matrix(split_names(values, data.label_delimiter), classes)
        if holds_lists(values):  # `[]` says that there is no label; an empty cell says nothing
            empty = np.array([not is_missing(value) for value in values.tolist()]) & (labels == MISSING).any(axis=1)
            labels[empty] = 0
        elif data.label_delimiter is not None:
            labels[labels == MISSING] = 0
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
