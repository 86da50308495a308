"""Whether the first line of a table names its columns: a row in its place would be lost, and its cells become names."""

from __future__ import annotations

import re
from collections import Counter

import pandas as pd

from lora_cls.errors import DataError, shown

_USUAL = frozenset({
    "id", "text", "texts", "tweet", "comment", "sentence", "content", "message", "body", "review", "document",
    "utterance", "title", "subject", "label", "labels", "class", "classes", "category", "target", "tags", "fold",
    "split", "lang", "language", "date", "name",
})  # fmt: skip
_FEW_WORDS = 4
_LOOKED_AT = 2000


def check_header(frame: pd.DataFrame, where: str) -> str | None:
    """Compare the names of the columns with their cells.

    Returns
    -------
    str or None
        A note, where some names look like values.

    Raises
    ------
    DataError
        If a row repeats the names, as in files put one behind another; or if all of several names are like their
        columns' cells, so that the table has no header.
    """
    names = [str(name) for name in frame.columns]
    check_repeated_header(frame, where)
    if any(name.strip().lower() in _USUAL for name in names):
        return None
    alike = [name for i, name in enumerate(names) if _like_its_cells(name, frame.iloc[:_LOOKED_AT, i])]
    if len(alike) == len(names) > 1 and not all(map(is_number, names)):
        raise DataError(
            f"{where} seems to have no header: its columns would be called {_list(names)}, which look like the cells "
            "below them. Put a line with the columns' names before the first row."
        )
    if alike and len(alike) * 2 >= len(names):
        return (
            f"the first line was taken for the header: the names {_list(alike)} look like cells. If it is a row, put a "
            "line with the columns' names before it."
        )
    return None


def lacks_header(names: list[str]) -> str:
    """What to add where two columns share a name: repeated numbers are cells."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if any(map(is_number, twice)):
        return " If the file has no header, put a line with the columns' names before its first row."
    return ""


def check_repeated_header(frame: pd.DataFrame, where: str) -> None:
    """Raise DataError if a row repeats the names of the columns."""
    names = [str(name) for name in frame.columns]
    if len(names) < 2:
        return
    first = frame.iloc[:, 0].tolist()
    for i, value in enumerate(first):
        if not isinstance(value, str) or _bare(value) != names[0]:
            continue
        if [_bare(str(cell)) for cell in frame.iloc[i].tolist()] == names:
            line = f"{'line' if frame.index.name else 'row'} {frame.index[i]}"
            raise DataError(f"{where}: {line} repeats the header. Remove that line: a header stands once.")


def _bare(text: str) -> str:
    return text.strip().strip("\ufeff").strip()


def _like_its_cells(name: str, values: pd.Series) -> bool:
    """Whether a name could be a cell of its column: it is one, a number among numbers, has the form of an id, or is a
    sentence among sentences."""
    cells = [str(value).strip() for value in values.tolist()]
    cells = [cell for cell in cells if cell]
    if not cells:
        return False
    if name in cells:
        return True
    if is_number(name):
        return _most([is_number(cell) for cell in cells])
    if any(map(str.isdigit, name)):
        form = _form(name)
        return _most([_form(cell) == form for cell in cells])
    return len(name.split()) >= _FEW_WORDS and _most([len(cell.split()) >= _FEW_WORDS - 1 for cell in cells])


def _form(text: str) -> str:
    return re.sub(r"[0-9a-f]*[0-9][0-9a-f]*", "0", text)


def _most(found: list[bool]) -> bool:
    return sum(found) * 10 >= len(found) * 9


def is_number(text: str) -> bool:
    """Whether Python reads a text as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _list(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(shown(name, 40) for name in names[:5]) + more
