"""From a row to its text: the one way, for files, DataFrames and texts given in Python."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from lora_cls.data.columns import fill_template, template_fields
from lora_cls.data.encoding import LINE_END
from lora_cls.data.table import is_missing, problem_report, read_table, read_text_file, row_name, table_path
from lora_cls.errors import DataError, did_you_mean, shorten
from lora_cls.recipe import Data

Texts: TypeAlias = "str | Sequence[str] | pd.Series[Any] | pd.Index[Any] | np.ndarray | pd.DataFrame"
"""What is asked of models in Python: one text, several, or a table with the run's text columns."""

_ESCAPED = {r"\n": "\n", r"\r": "\r", r"\t": "\t"}
_LISTS = (list, tuple, pd.Series, pd.Index, np.ndarray, pd.api.extensions.ExtensionArray)


def table_texts(config: Data, frame: pd.DataFrame, names: Sequence[str]) -> tuple[list[str], np.ndarray, list[str]]:
    """The texts of a table's rows.

    Parameters
    ----------
    config : `text_template` and `unescape` of the recipe
    names : the text columns, each one of the table's

    Returns
    -------
    texts : list of str, length n_samples; "" for a row that has none
    empty : ndarray of shape (n_samples,), bool
        Rows whose text columns are all blank. (A template adds words of its own.)
    problems : list of str
        Of cells that hold no text.
    """
    problems: list[str] = []
    parts = {name: _column_texts(frame, name, problems, config.unescape) for name in names}
    filled = [any(part.strip() for part in row) for row in zip(*parts.values(), strict=True)]
    empty = ~np.array(filled, dtype=bool) if parts else np.zeros(len(frame), dtype=bool)
    rows = (dict(zip(parts, row, strict=True)) for row in zip(*parts.values(), strict=False))
    if config.text_template is None:
        texts = ["\n".join(row.values()) for row in rows]
    else:
        pieces, wrong = template_fields(config.text_template)
        incomplete = wrong or any(name not in parts for _, name in pieces if name is not None)
        # A template that cannot be filled has been reported with the columns.
        texts = [] if incomplete else [fill_template(pieces, row) for row in rows]
    return ["" if blank else text for text, blank in zip(texts, empty, strict=False)], empty, problems


def read_texts(config: Data, source: str, names: Sequence[str]) -> list[str]:
    """Texts without labels, blank ones left out.

    Parameters
    ----------
    config : `text_template` and `unescape` of the recipe
    source : a `.txt` file with a text per line, or a table
    names : the run's text columns, which a table must have

    Raises
    ------
    DataError
        If the file cannot be read, lacks a column, or holds no text.
    """
    path = table_path(source)
    if path.name.lower().endswith((".txt", ".txt.gz")):
        found = LINE_END.split(read_text_file(path))
    else:
        frame = read_table(source)
        if missing := [name for name in names if name not in frame.columns]:
            raise DataError(
                f"{source} has no column '{missing[0]}', which this run's texts are made of."
                f"{did_you_mean(missing[0], frame.columns)} Columns: {shorten(frame.columns)}. Texts alone may also "
                "stand in a .txt file, one per line."
            )
        found, _, problems = table_texts(config, frame, names)
        if problems:
            raise problem_report(source, problems)
    texts = [text for text in found if text.strip()]
    if not texts:
        raise DataError(f"{source} holds no text: every one of its {len(found)} is blank.")
    return texts


def given_texts(config: Data, texts: Texts, names: Sequence[str]) -> list[str]:
    """Texts given in Python, read as a file with the same cells is.

    Parameters
    ----------
    config : `text_template` and `unescape` of the recipe
    texts : a DataFrame with the run's text columns; or, where the run has one text column, what stands in it: str, or
        a list, tuple, Series, Index or array of str
    names : the run's text columns

    Raises
    ------
    DataError
        For a missing column, and for anything but str: names the position and the type.
    """
    if isinstance(texts, pd.DataFrame):
        frame = texts.rename(columns=str)
        for name in names:
            if name not in frame.columns:
                raise DataError(
                    f"the DataFrame has no column '{name}', which this run's texts are made of."
                    f"{did_you_mean(name, frame.columns)} Columns: {shorten(frame.columns)}."
                )
            if list(frame.columns).count(name) > 1:
                raise DataError(f"the DataFrame has several columns '{name}': rename or remove all but one.")
    elif len(names) > 1:
        raise DataError(
            f"This run's texts are made of {len(names)} columns ({shorten(names)}): give a DataFrame with these "
            f"columns. Got {type(texts).__name__} instead."
        )
    else:
        cells = _checked([texts] if isinstance(texts, str) else texts)
        frame = pd.DataFrame({names[0]: pd.Series(cells, dtype=object)})
    found, _, problems = table_texts(config, frame.reset_index(drop=True), names)
    if problems:
        raise problem_report("the given texts", problems)
    return found


def _checked(texts: Any) -> list[str]:
    """The texts in a list. Raises DataError for what is no list, array or Series of str."""
    expected = "Expected one text (str), a list, array or Series of texts, or a DataFrame with the run's text columns"
    if not isinstance(texts, _LISTS):
        raise DataError(f"{expected}. Got {type(texts).__name__} instead.")
    if isinstance(texts, np.ndarray) and texts.ndim != 1:
        raise DataError(f"{expected}. Got an array of {texts.ndim} dimensions instead of one.")
    cells = list(texts)
    wrong = [f"{type(cell).__name__} at position {i}" for i, cell in enumerate(cells) if not isinstance(cell, str)]
    if wrong:
        raise DataError(f"{expected}. Got {shorten(wrong, 5)}.")
    return cells


def _column_texts(frame: pd.DataFrame, name: str, problems: list[str], unescape: bool) -> list[str]:
    texts: list[str] = []
    wrong: list[str] = []
    for i, value in enumerate(frame[name].tolist()):
        text = "" if value is None or (not isinstance(value, str) and is_missing(value)) else value
        if not isinstance(text, (str, int, float)):
            wrong.append(f"{row_name(frame, i)} holds {type(value).__name__}")
            text = ""
        text = str(text)
        if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
            wrong.append(f"{row_name(frame, i)} holds half of a character (a lone surrogate)")
        if unescape and "\\" in text:
            text = re.sub(r"\\[nrt]", lambda found: _ESCAPED[found[0]], text)
        texts.append(text)
    if wrong:
        problems.append(f"column '{name}': not a text: {shorten(wrong)}. Expected text.")
    return texts
