"""A dataset: ids, texts, labels and groups, checked and ready to be split into folds."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lora_cls.data.columns import Columns, fill_template, find_columns, find_test_columns, template_fields
from lora_cls.data.labels import BAD, EXPECTED, MISSING, parse_labels
from lora_cls.data.names import name_matrix, split_names
from lora_cls.data.table import Source, as_id, is_missing, problem_report, read_table, row_name
from lora_cls.errors import DataError, shorten
from lora_cls.recipe import Data, Task


@dataclass(frozen=True, eq=False)
class Dataset:
    """Rows of a table.

    Attributes
    ----------
    ids, texts : list of str, length n_samples
    labels : ndarray of shape (n_samples, n_labels), int8, or None
        0 or 1. A row without any label is normal data, but for `single_label`, where each has exactly one. None for a
        test table.
    label_names : list of str, length n_labels
    groups : ndarray of shape (n_samples,), int64
        Rows of one group belong into one fold: same value of the group column, or the same text.
    notes : list of str
        What the user should know, but need not mend.
    source : str
        The file, or what stands for it.
    columns : Columns or None
        The roles of the table's columns.
    """

    ids: list[str]
    texts: list[str]
    labels: np.ndarray | None
    label_names: list[str]
    groups: np.ndarray
    notes: list[str] = field(default_factory=list)
    source: str = ""
    columns: Columns | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, rows: Sequence[int] | np.ndarray) -> Dataset:
        """The given rows, in that order.

        Parameters
        ----------
        rows : positions, or a boolean mask of shape (n_samples,)
        """
        rows = np.asarray(rows)
        if rows.dtype != bool:
            rows = rows.astype(np.int64)  # an empty list arrives as float
        positions = np.arange(len(self))[rows]
        return replace(
            self,
            ids=[self.ids[i] for i in positions],
            texts=[self.texts[i] for i in positions],
            labels=None if self.labels is None else self.labels[positions],
            groups=self.groups[positions],
        )

    def fingerprint(self) -> str:
        """SHA-256 over ids, texts, labels and label names, in their order; 64 hexadecimal digits."""
        labels = None if self.labels is None else self.labels.shape
        digest = hashlib.sha256(json.dumps([self.ids, self.texts, self.label_names, labels]).encode("ascii"))
        if self.labels is not None:
            digest.update(np.ascontiguousarray(self.labels, dtype=np.int8).tobytes())
        return digest.hexdigest()


def load_train(
    config: Data,
    train: Source | None = None,
    test: Source | None = None,
    sample_submission: Source | None = None,
    task: Task | None = None,
) -> Dataset:
    """Read and check a training table.

    Parameters
    ----------
    config : Data
        Paths and columns.
    train, test, sample_submission : path or DataFrame
        Stand in for the recipe's own. The latter two only serve to tell which columns are labels.
    task : the recipe's; None takes what the label columns say, see `columns.task`

    Raises
    ------
    DataError
        With all problems of the table, one line each: missing columns, label values, missing labels, empty texts,
        missing and repeated ids.
    """
    source = train if train is not None else config.train
    if source is None:
        raise DataError("There is no training table: set data.train, or pass one.")
    frame = read_table(source, name="the training DataFrame")
    columns, problems = find_columns(
        config,
        frame,
        _read_optional(test, config.test, "the test DataFrame"),
        _read_optional(sample_submission, config.sample_submission, "the sample submission"),
        task,
    )
    where = str(frame.attrs["source"])
    ids, id_problems = _ids(frame, columns)
    texts, empty, text_problems = _texts(config, frame, columns)
    labels, label_problems = _labels(config, frame, columns, ids)
    unlabelled = (labels == MISSING).any(axis=1)
    problems += id_problems + text_problems + label_problems
    if config.on_missing == "error":
        problems += _missing_problems(frame, columns, ids, empty, labels)
    if problems:
        raise problem_report(where, problems)
    keep = ~(empty | unlabelled)
    notes = _drop_notes(empty, unlabelled)
    if not keep.any():
        raise DataError(f"{where}: every row lacks a label or a text, so none is left after data.on_missing: drop.")
    dataset = Dataset(
        ids=ids,
        texts=texts,
        labels=labels,
        label_names=list(columns.label_names),
        groups=_groups(texts, frame[columns.group] if columns.group else None),
        notes=notes,
        source=where,
        columns=columns,
    )
    if not keep.all():
        # Groups are found anew: a dropped row may have been the only link between two others.
        kept = dataset.subset(keep)
        values = frame[columns.group][keep] if columns.group else None
        dataset = replace(kept, groups=_groups(kept.texts, values))
    task_notes = [*columns.notes, *(_exclusive_notes(dataset) if task is None else [])]
    return replace(dataset, notes=notes + task_notes + _constant_notes(dataset))


def load_test(config: Data, test: Source | None = None, *, train_columns: Columns | None = None) -> Dataset:
    """Read and check a table to be predicted.

    Parameters
    ----------
    config : Data
    test : path or DataFrame
        Stands in for the recipe's own.
    train_columns : Columns
        `columns` of the training dataset, so that the same columns make the text.

    Returns
    -------
    Dataset
        `labels` is None even where the table has label columns. Empty texts stay, with a note.

    Raises
    ------
    DataError
        With all problems of the table, one line each.
    """
    source = test if test is not None else config.test
    if source is None:
        raise DataError("There is no test table: set data.test, or pass one.")
    frame = read_table(source, name="the test DataFrame")
    columns, problems = find_test_columns(config, frame, train_columns)
    ids, id_problems = _ids(frame, columns)
    texts, empty, text_problems = _texts(config, frame, columns)
    problems += id_problems + text_problems
    if problems:
        raise problem_report(str(frame.attrs["source"]), problems)
    notes = []
    if empty.any():
        rows = _rows(frame, columns, ids, empty)
        notes.append(f"{_count(empty, 'empty test text')}, predicted all the same: {rows}.")
    if columns.id is None and train_columns is not None and train_columns.id is not None:
        notes.append(f"the test table lacks the id column '{train_columns.id}': rows are named row-0, row-1, ...")
    return Dataset(
        ids=ids,
        texts=["" if blank else text for text, blank in zip(texts, empty, strict=True)],
        labels=None,
        label_names=list(columns.label_names),
        groups=_groups(texts, frame[columns.group] if columns.group else None),
        notes=notes,
        source=str(frame.attrs["source"]),
        columns=columns,
    )


def text_key(text: str) -> str:
    """Texts with the same key are the same text: outer white space and Unicode composition do not count."""
    return unicodedata.normalize("NFC", text).strip()


def _read_optional(given: Source | None, configured: str | None, name: str) -> pd.DataFrame | None:
    source = given if given is not None else configured
    return None if source is None else read_table(source, name=name)


def _row(frame: pd.DataFrame, columns: Columns, ids: list[str], i: int) -> str:
    """`'abc' (line 7)`, or `line 7` where the table has no ids."""
    return row_name(frame, i) if columns.id is None else f"'{ids[i]}' ({row_name(frame, i)})"


def _rows(frame: pd.DataFrame, columns: Columns, ids: list[str], mask: np.ndarray) -> str:
    return shorten(_row(frame, columns, ids, i) for i in np.flatnonzero(mask).tolist())


def _count(mask: np.ndarray, noun: str) -> str:
    """`1 text` or `3 texts`."""
    count = int(mask.sum())
    return f"{count} {noun}{'s' * (count != 1)}"


def _ids(frame: pd.DataFrame, columns: Columns) -> tuple[list[str], list[str]]:
    if columns.id is None:
        return [f"row-{i}" for i in range(len(frame))], []
    cells = frame[columns.id].tolist()
    ids = ["" if is_missing(value) else as_id(value) for value in cells]
    problems = []
    missing = [row_name(frame, i) for i, value in enumerate(ids) if not value]
    if missing:
        problems.append(f"column '{columns.id}': no id at {shorten(missing)}. Every row needs one.")
    places: dict[str, list[int]] = defaultdict(list)
    for i, value in enumerate(ids):
        if value:
            places[value].append(i)
    twice = [
        f"'{value}' ({', '.join(row_name(frame, i) for i in rows)})" for value, rows in places.items() if len(rows) > 1
    ]
    if twice:
        problems.append(
            f"column '{columns.id}': ids that stand more than once: {shorten(twice)}. Remove the repeated rows, or set "
            "data.id_column to a column of unique values."
        )
    return ids, problems


def _texts(config: Data, frame: pd.DataFrame, columns: Columns) -> tuple[list[str], np.ndarray, list[str]]:
    """Texts, which rows have none, and the problems."""
    problems: list[str] = []
    parts = {name: _column_texts(frame, name, problems) for name in columns.text}
    # A template adds words of its own; a row is empty if all its columns are.
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
    return texts, empty, problems


def _column_texts(frame: pd.DataFrame, name: str, problems: list[str]) -> list[str]:
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
        texts.append(text)
    if wrong:
        problems.append(f"column '{name}': not a text: {shorten(wrong)}. Expected text.")
    return texts


def _labels(config: Data, frame: pd.DataFrame, columns: Columns, ids: list[str]) -> tuple[np.ndarray, list[str]]:
    """Labels of shape (n_samples, n_labels) with `MISSING` and `BAD` in them, and the problems of bad values."""
    if columns.classes is not None:
        return _names(config, frame, columns, ids)
    labels = np.zeros((len(frame), len(columns.labels)), dtype=np.int8)
    problems = []
    for column, name in enumerate(columns.labels):
        labels[:, column] = parse_labels(frame[name])
        bad = np.flatnonzero(labels[:, column] == BAD).tolist()
        if bad:
            cells = frame[name].tolist()
            examples = shorten(f"{_row(frame, columns, ids, i)} has {cells[i]!r}" for i in bad)
            problems.append(
                f"label column '{name}': expected {EXPECTED}, but row {examples}. Mend the values, or set "
                "data.label_columns if this is no label"
                f"{', or task: single_label if its values are classes' if len(columns.labels) == 1 else ''}."
            )
    if columns.task == "single_label" and not problems:
        ones, known = (labels == 1).sum(axis=1), (labels >= 0).all(axis=1)
        for wrong, what in ((known & (ones == 0), "no 1"), (known & (ones > 1), "several 1s")):
            if wrong.any():
                problems.append(
                    f"task: single_label needs exactly one 1 per row, but {_count(wrong, 'row')} "
                    f"with {what} in the label columns: {_rows(frame, columns, ids, wrong)}. "
                    "Mend the rows, or set task: multi_label."
                )
    return labels, problems


def _names(config: Data, frame: pd.DataFrame, columns: Columns, ids: list[str]) -> tuple[np.ndarray, list[str]]:
    """`_labels` for one column that holds names."""
    (name,), classes = columns.labels, columns.classes or []
    labels = name_matrix(split_names(frame[name], config.label_delimiter), classes)
    if config.label_delimiter is not None:
        labels[labels == MISSING] = 0  # an empty list of labels
    bad = np.flatnonzero((labels == BAD).any(axis=1)).tolist()
    if not bad:
        return labels, []
    cells = frame[name].tolist()
    examples = shorten(f"{_row(frame, columns, ids, i)} has {cells[i]!r}" for i in bad)
    return labels, [f"label column '{name}': expected names ({shorten(classes)}), but row {examples}."]


def _missing_problems(
    frame: pd.DataFrame, columns: Columns, ids: list[str], empty: np.ndarray, labels: np.ndarray
) -> list[str]:
    problems = []
    if empty.any():
        rows = _rows(frame, columns, ids, empty)
        problems.append(f"{_count(empty, 'empty text')}: {rows}. Fill or remove them, or set data.on_missing: drop.")
    unlabelled = (labels == MISSING).any(axis=1)
    if unlabelled.any():
        rows = _rows(frame, columns, ids, unlabelled)
        names = columns.labels
        if columns.classes is None:
            names = [name for name, column in zip(names, labels.T, strict=True) if (column == MISSING).any()]
        problems.append(
            f"{_count(unlabelled, 'row')} with a missing label (of {shorten(names)}): {rows}. "
            f"Write {'0 or 1' if columns.classes is None else 'a name'}, or set data.on_missing: drop."
        )
    return problems


def _drop_notes(empty: np.ndarray, unlabelled: np.ndarray) -> list[str]:
    if not (empty | unlabelled).any():
        return []
    count = f"{int((empty | unlabelled).sum())} of {len(empty)} training rows"
    why = f"{int(unlabelled.sum())} with a missing label, {int(empty.sum())} with an empty text"
    return [f"dropped {count} (data.on_missing: drop): {why}."]


def _exclusive_notes(dataset: Dataset) -> list[str]:
    assert dataset.labels is not None and dataset.columns is not None
    exclusive = dataset.columns.task == "multi_label" and (dataset.labels.sum(axis=1, dtype=np.int64) == 1).all()
    if not exclusive:
        return []
    return [
        f"every training row has exactly one of the {len(dataset.label_names)} labels. If every text must have "
        "exactly one: --set task=single_label."
    ]


def _constant_notes(dataset: Dataset) -> list[str]:
    assert dataset.labels is not None
    return [
        f"label '{name}' is {int(column[0])} in all {len(dataset)} training rows: there is nothing to learn for it."
        for name, column in zip(dataset.label_names, dataset.labels.T, strict=True)
        if (column == column[0]).all()
    ]


def _groups(texts: Sequence[str], values: pd.Series | None) -> np.ndarray:
    """Groups of shape (n_samples,), numbered in order of appearance: what shares a text or a value is connected."""
    n = len(texts)
    keys: list[Sequence[object]] = [[text_key(text) for text in texts]]
    if values is not None:
        # A missing value groups nothing: such rows must not all be thrown together.
        keys.append([(i,) if is_missing(value) else as_id(value) for i, value in enumerate(values.tolist())])
    rows, nodes, size = [], [], n
    for column in keys:
        numbers: dict[object, int] = {}
        nodes += [size + numbers.setdefault(key, len(numbers)) for key in column]
        rows += list(range(n))
        size += len(numbers)
    graph = coo_array((np.ones(len(rows), dtype=np.int8), (rows, nodes)), shape=(size, size))
    _, component = connected_components(graph, directed=False)
    _, first, inverse = np.unique(component[:n], return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))  # rank of each component by the row that it first appears in
    return order[inverse.reshape(-1)].astype(np.int64)
