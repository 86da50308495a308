"""A dataset: ids, texts, labels and groups, checked and ready to be split into folds."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from lora_cls.data.columns import Columns, find_columns, find_test_columns, is_unique, set_list
from lora_cls.data.labels import BAD, EXPECTED, EXPECTED_SOFT, MISSING, parse_soft_labels
from lora_cls.data.names import as_binary_labels, label_matrix
from lora_cls.data.rows import parse_split, parse_weights
from lora_cls.data.table import TableLike, as_id, half_character, is_missing, problem_report, read_table, row_name
from lora_cls.data.texts import table_texts
from lora_cls.errors import DataError, did_you_mean, shorten, shown
from lora_cls.evaluation import task_of
from lora_cls.recipe import Data, TaskName

_LINE_END = re.compile(r"\r\n|\r")
HASH_BYTES = 16  # among a billion texts two have the same by chance in one case of 10^20


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
    targets : ndarray of shape (n_samples, n_labels), float32, or None
        Soft labels, 0 to 1; `labels` is then 1 where they are 0.5 or more. None without soft labels.
    row_weight : ndarray of shape (n_samples,), float64, or None
        How much each row counts in the loss. None where all count alike.
    held_out : ndarray of shape (n_samples,), bool, or None
        Rows that a split column holds out. None without one.
    extra : ndarray of shape (n_samples,), bool
        Rows that are only ever trained on: never held out, never scored.
    """

    ids: list[str]
    texts: list[str]
    labels: np.ndarray | None
    label_names: list[str]
    groups: np.ndarray
    notes: list[str] = field(default_factory=list)
    source: str = ""
    columns: Columns | None = None
    targets: np.ndarray | None = None
    row_weight: np.ndarray | None = None
    held_out: np.ndarray | None = None
    extra: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))

    def __post_init__(self) -> None:
        if not len(self.extra):
            object.__setattr__(self, "extra", np.zeros(len(self.ids), dtype=bool))

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
            targets=None if self.targets is None else self.targets[positions],
            row_weight=None if self.row_weight is None else self.row_weight[positions],
            held_out=None if self.held_out is None else self.held_out[positions],
            extra=self.extra[positions],
        )

    def fingerprint(self) -> str:
        """SHA-256 over ids, texts, labels and label names, in their order; 64 hexadecimal digits.

        Soft labels, row weights, the split and extra rows count where there are any.
        """
        labels = None if self.labels is None else self.labels.shape
        digest = hashlib.sha256(json.dumps([self.ids, self.texts, self.label_names, labels]).encode("ascii"))
        if self.labels is not None:
            digest.update(np.ascontiguousarray(self.labels, dtype=np.int8).tobytes())
        used = {"targets": self.targets, "row_weight": self.row_weight, "held_out": self.held_out}
        for name, values in (used | {"extra": self.extra if self.extra.any() else None}).items():
            if values is not None:
                digest.update(name.encode() + np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()


def load_train(
    config: Data,
    train: TableLike | None = None,
    test: TableLike | None = None,
    sample_submission: TableLike | None = None,
    task: TaskName | None = None,
    extra_train: TableLike | None = None,
) -> Dataset:
    """Read and check a training table, and the rows that are only trained on.

    Parameters
    ----------
    config : Data
        Paths and columns.
    train, test, sample_submission, extra_train : path or DataFrame
        Stand in for the recipe's own. The middle two only serve to tell which columns are labels.
    task : the recipe's; None takes what the label columns say, see `columns.task`

    Returns
    -------
    Dataset
        Rows of `extra_train` stand behind those of `train`, their ids with `extra-` before them. Labels are those of
        `train`; for a column of names, these must be all that `extra_train` holds.

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
    ids, id_problems = _ids(frame, columns, config)
    texts, empty, text_problems = table_texts(config, frame, columns.text)
    values, label_problems = _labels(config, frame, columns, ids)
    unlabelled = (values == MISSING).any(axis=1)
    weight, weight_problems = parse_weights(frame, columns.weight) if columns.weight else (None, [])
    held_out, split_problems = parse_split(frame, columns.split) if columns.split else (None, [])
    problems += id_problems + text_problems + label_problems + weight_problems + split_problems
    if config.on_missing == "error":
        problems += _missing_problems(frame, columns, ids, empty, values)
    if problems:
        raise problem_report(where, problems, frame.attrs["header"])
    keep = ~(empty | unlabelled)
    notes = _header_notes(frame) + _drop_notes(empty, unlabelled)
    if not keep.any():
        raise DataError(f"{where}: every row lacks a label or a text, so none is left after data.on_missing: drop.")
    dataset = Dataset(
        ids=ids,
        texts=texts,
        labels=as_binary_labels(values),
        label_names=list(columns.label_names),
        groups=_groups(texts, frame[columns.group] if columns.group else None),
        notes=notes,
        source=where,
        columns=columns,
        targets=values if config.soft_labels else None,
        row_weight=weight,
        held_out=held_out,
    )
    if not keep.all():
        # Groups are found anew: a dropped row may have been the only link between two others.
        kept = dataset.subset(keep)
        of_group = frame[columns.group][keep] if columns.group else None
        dataset = replace(kept, groups=_groups(kept.texts, of_group))
    notes += columns.notes
    if task is None:
        notes += _exclusive_notes(dataset)
    if held_out is not None:
        notes += _split_notes(dataset, frame[columns.split][keep])
    notes += _escape_notes(config, dataset.texts, "training")
    dataset = replace(dataset, notes=notes + _constant_notes(dataset))
    extra_train = extra_train if extra_train is not None else config.extra_train
    if extra_train is None:
        return dataset
    keys = frame[columns.group][keep] if columns.group else None
    return _with_extra_rows(config, dataset, keys, extra_train)


def load_test(config: Data, test: TableLike | None = None, *, train_columns: Columns | None = None) -> Dataset:
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
    ids, id_problems = _ids(frame, columns, config)
    texts, empty, text_problems = table_texts(config, frame, columns.text)
    problems += id_problems + text_problems
    if problems:
        raise problem_report(str(frame.attrs["source"]), problems, frame.attrs["header"])
    notes = _header_notes(frame) + _escape_notes(config, texts, "test")
    if empty.any():
        rows = _rows(frame, columns, ids, empty)
        notes.append(f"{_count(empty, 'empty test text')}, predicted all the same: {rows}.")
    if columns.id is None and train_columns is not None and train_columns.id is not None:
        notes.append(f"the test table lacks the id column '{train_columns.id}': rows are named row-0, row-1, ...")
    return Dataset(
        ids=ids,
        texts=texts,
        labels=None,
        label_names=list(columns.label_names),
        groups=_groups(texts, frame[columns.group] if columns.group else None),
        notes=notes,
        source=str(frame.attrs["source"]),
        columns=columns,
    )


def further_labels(
    config: Data, frame: pd.DataFrame, columns: Columns, ids: list[str]
) -> tuple[np.ndarray | None, list[str]]:
    """The labels of a table that was read by `load_test`: of a test table, or of one that a run is scored on.

    Parameters
    ----------
    frame : as `read_table` returns it
    columns : the training table's, with `classes` where one column holds names; of this table the id
    ids : of its rows

    Returns
    -------
    labels : ndarray of shape (n_samples, n_labels), int8; None where there are problems
    problems : list of str
        Label columns that are missing, cells that are empty or say no label that is known, and for `single_label` rows
        of no class or of several.
    """
    missing = [name for name in columns.labels if name not in frame.columns]
    if missing:
        guess = did_you_mean(missing[0], frame.columns)
        return None, [
            f"no label column{'s' * (len(missing) > 1)} {shorten(repr(name) for name in missing)}.{guess} "
            f"Columns: {shorten(frame.columns, 40)}."
        ]
    labels, problems = label_matrix(frame, columns.labels, columns.classes, config), []
    expected = EXPECTED_SOFT if config.soft_labels else EXPECTED
    if columns.classes is not None:
        expected = f"names that the training table has ({shorten(columns.classes)})"
    for j, name in enumerate(columns.labels):
        cells = frame[name].tolist()
        codes = labels if columns.classes is not None else labels[:, [j]]
        bad, empty = (np.flatnonzero((codes == code).any(axis=1)).tolist() for code in (BAD, MISSING))
        if bad:
            examples = shorten(f"{_row(frame, columns, ids, i)} has {shown(cells[i])}" for i in bad)
            problems.append(f"label column '{name}': expected {expected}, but row {examples}.")
        if empty:
            rows = shorten(_row(frame, columns, ids, i) for i in empty)
            problems.append(f"label column '{name}': nothing stands in row {rows}. Fill or remove them.")
    several = (labels >= 0).all(axis=1) & (labels.sum(axis=1) != 1)
    if columns.task == "single_label" and several.any():
        rows = _rows(frame, columns, ids, several)
        problems.append(f"task: single_label needs exactly one class per row, which these have not: {rows}.")
    return (None if problems else as_binary_labels(labels)), problems


def text_key(text: str) -> str:
    """Texts with the same key are the same text: outer white space, the kind of line ends and Unicode composition do
    not count."""
    return unicodedata.normalize("NFC", _LINE_END.sub("\n", text)).strip()


def text_hashes(texts: Sequence[str]) -> np.ndarray:
    """The start of each text key's SHA-256, ndarray of shape (n_texts, `HASH_BYTES`), uint8."""
    digests = b"".join(hashlib.sha256(text_key(text).encode()).digest()[:HASH_BYTES] for text in texts)
    return np.frombuffer(digests, dtype=np.uint8).reshape(-1, HASH_BYTES)


def _read_optional(given: TableLike | None, configured: str | None, name: str) -> pd.DataFrame | None:
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


def _ids(frame: pd.DataFrame, columns: Columns, config: Data) -> tuple[list[str], list[str]]:
    ids, problems = row_ids(frame, columns)
    if columns.id is None:
        return ids, []
    places: dict[str, list[int]] = defaultdict(list)
    for i, value in enumerate(ids):
        if value:
            places[value].append(i)
    twice = {value: [row_name(frame, i) for i in rows] for value, rows in places.items() if len(rows) > 1}
    if twice:
        problems.append(repeated_ids(config, columns, frame.columns, twice, lambda name: is_unique(frame[name])))
    return ids, problems


def row_ids(frame: pd.DataFrame, columns: Columns, first: int = 0) -> tuple[list[str], list[str]]:
    """The ids of a table, or of a piece whose first row is that one of its table; "" where there is none. And the
    problems of each by itself: none, or no text."""
    if columns.id is None:
        return [f"row-{i}" for i in range(first, first + len(frame))], []
    cells = frame[columns.id].tolist()
    ids = ["" if is_missing(value) else as_id(value) for value in cells]
    problems = []
    missing = [row_name(frame, i) for i, value in enumerate(ids) if not value]
    if missing:
        problems.append(f"column '{columns.id}': no id at {shorten(missing)}. Every row needs one.")
    broken = [row_name(frame, i) for i, value in enumerate(ids) if half_character(value)]
    if broken:
        problems.append(
            f"column '{columns.id}': half of a character (a lone surrogate) in the id at {shorten(broken)}."
        )
    return ids, problems


def repeated_ids(
    config: Data,
    columns: Columns,
    names: Iterable[str],
    places: Mapping[str, Sequence[str]],
    unique: Callable[[str], bool],
    more: int = 0,
) -> str:
    """What is wrong where ids stand more than once, and what may name the rows instead: another column, or their
    numbers.

    Parameters
    ----------
    names : of all columns
    places : the names of the rows of each such id
    unique : whether a column's values are
    more : such ids that `places` lacks
    """
    twice = [f"'{value}' ({', '.join(rows)})" for value, rows in places.items()]
    used = {*columns.text, *columns.labels, columns.group, columns.weight, columns.split}
    others = [str(name) for name in names if name not in used and unique(name)]
    if others:
        other = f"set data.id_column to a column of unique values ({shorten(others)})"
    else:
        ignored = set_list("data.ignore_columns", [*config.ignore_columns, str(columns.id)])
        other = f"number the rows instead: {'--set data.id_column=null ' if config.id_column else ''}{ignored}"
    return (
        f"column '{columns.id}': ids that stand more than once: {shorten([*twice, *[''] * more])}. Remove the repeated "
        f"rows, or {other}."
    )


def _labels(config: Data, frame: pd.DataFrame, columns: Columns, ids: list[str]) -> tuple[np.ndarray, list[str]]:
    """Labels of shape (n_samples, n_labels), int8 or (soft) float32, with `MISSING` and `BAD` in them, and the problems
    of bad values."""
    if columns.classes is not None:
        return _names(config, frame, columns, ids)
    labels = label_matrix(frame, columns.labels, None, config)
    expected = EXPECTED_SOFT if config.soft_labels else EXPECTED
    problems = []
    for column, name in enumerate(columns.labels):
        bad = np.flatnonzero(labels[:, column] == BAD).tolist()
        if bad:
            cells = frame[name].tolist()
            examples = shorten(f"{_row(frame, columns, ids, i)} has {shown(cells[i])}" for i in bad)
            hint = ""
            if columns.task != "single_label" and (parse_soft_labels(frame[name].iloc[bad]) >= 0).all():
                hint = ", or data.soft_labels: true if these are shares"
            elif len(columns.labels) == 1 and not config.soft_labels:
                hint = ", or task: single_label if its values are classes"
            problems.append(
                f"label column '{name}': expected {expected}, but row {examples}. Mend the values, or set "
                f"data.label_columns if this is no label{hint}."
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
    labels = label_matrix(frame, columns.labels, classes, config)
    several = ((labels >= 0).all(axis=1) & (labels.sum(axis=1) != 1)).tolist()
    if columns.task == "single_label" and any(several):
        rows = _rows(frame, columns, ids, np.array(several))
        return labels, [
            f"task: single_label needs exactly one name per row, but '{name}' has lists of another number: {rows}. "
            "Mend the rows, or set task: multi_label."
        ]
    bad = np.flatnonzero((labels == BAD).any(axis=1)).tolist()
    if not bad:
        return labels, []
    cells = frame[name].tolist()
    examples = shorten(f"{_row(frame, columns, ids, i)} has {shown(cells[i])}" for i in bad)
    return labels, [
        f"label column '{name}': expected names that the training table has ({shorten(classes)}), but row {examples}."
    ]


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


def _header_notes(frame: pd.DataFrame) -> list[str]:
    return [f"{frame.attrs['source']}: {frame.attrs['header']}"] if frame.attrs["header"] else []


def _drop_notes(empty: np.ndarray, unlabelled: np.ndarray, rows: str = "training rows") -> list[str]:
    if not (empty | unlabelled).any():
        return []
    count = f"{int((empty | unlabelled).sum())} of {len(empty)} {rows}"
    why = f"{int(unlabelled.sum())} with a missing label, {int(empty.sum())} with an empty text"
    return [f"dropped {count} (data.on_missing: drop): {why}."]


def _exclusive_notes(dataset: Dataset) -> list[str]:
    assert dataset.labels is not None and dataset.columns is not None
    if dataset.targets is not None:
        return []  # single_label takes no shares
    exclusive = task_of(dataset.columns.task).several and (dataset.labels.sum(axis=1, dtype=np.int64) == 1).all()
    if not exclusive:
        return []
    return [
        f"every training row has exactly one of the {len(dataset.label_names)} labels. If every text must have "
        "exactly one: --set task=single_label."
    ]


def _split_notes(dataset: Dataset, words: pd.Series) -> list[str]:
    """How the split column divides the rows; a part without rows is an error."""
    assert dataset.held_out is not None
    assert dataset.columns is not None
    held_out = int(dataset.held_out.sum())
    counts = Counter(str(word).strip().lower() for word in words)
    found = ", ".join(f"{count} {word}" for word, count in counts.most_common())
    where = f"data.split_column '{dataset.columns.split}'"
    if held_out in (0, len(dataset)):
        lacking = "held out" if held_out == 0 else "left to train on"
        raise DataError(f"{dataset.source}: by {where} no row is {lacking} ({found}).")
    return [
        f"{held_out} rows are held out by {where}, as one fold ({found}); cv.n_splits is not used, and one model is "
        "trained."
    ]


def _escape_notes(config: Data, texts: Sequence[str], kind: str) -> list[str]:
    escaped = np.array(["\\n" in text for text in texts], dtype=bool)
    if config.unescape or not escaped.any():
        return []
    return [
        f"a backslash followed by n stands in {_count(escaped, f'{kind} text')}: if the file was exported with line "
        "ends written so, set data.unescape: true."
    ]


def _with_extra_rows(config: Data, train: Dataset, train_keys: pd.Series | None, source: TableLike) -> Dataset:
    """The training rows, and behind them the rows of a table that are only trained on.

    A row whose text stands in the training table is left out: its copy may be held out.

    Parameters
    ----------
    train_keys : the training rows' values of the group column, where there is one
    """
    assert train.columns is not None
    assert train.labels is not None
    frame = read_table(source, name="the DataFrame of extra rows")
    where, given = str(frame.attrs["source"]), train.columns
    names = [(given.text, "the training table's text"), (given.labels, "the training table's labels")]
    problems = [
        f"no column '{name}' ({field}).{did_you_mean(name, frame.columns)} Columns: {shorten(frame.columns, 40)}."
        for found, field in names
        for name in found
        if name not in frame.columns
    ]
    if problems:
        raise problem_report(where, problems)
    columns = replace(
        given,
        id=given.id if given.id in frame.columns else None,
        group=given.group if given.group in frame.columns else None,
        weight=given.weight if given.weight in frame.columns else None,
        split=None,
    )
    ids, id_problems = _ids(frame, columns, config)
    texts, empty, text_problems = table_texts(config, frame, columns.text)
    values, label_problems = _labels(config, frame, columns, ids)
    weight, weight_problems = parse_weights(frame, columns.weight) if columns.weight else (np.ones(len(ids)), [])
    problems = id_problems + text_problems + label_problems + weight_problems
    ids = [f"extra-{name}" for name in ids]
    clash = sorted(set(ids) & set(train.ids))
    if clash:
        problems.append(f"with `extra-` before them these ids stand in the training table too: {shorten(clash)}.")
    unlabelled = (values == MISSING).any(axis=1)
    if config.on_missing == "error":
        problems += _missing_problems(frame, columns, ids, empty, values)
    if problems:
        raise problem_report(where, problems)
    known = {text_key(text) for text in train.texts}
    seen = np.array([text_key(text) in known for text in texts], dtype=bool)
    keep = ~(empty | unlabelled | seen)
    notes = _drop_notes(empty, unlabelled, "extra rows")
    if seen.any():
        notes.append(f"left out {_count(seen, 'extra row')} whose text stands in the training table.")
    if given.weight and not columns.weight:
        notes.append(f"the extra rows have no column '{given.weight}': each weighs 1.")
    notes.append(f"{int(keep.sum())} extra rows of {where} are trained on with every fold, and never scored.")
    if not keep.any():
        return replace(train, notes=train.notes + notes)
    rows = Dataset(
        ids=ids,
        texts=texts,
        labels=as_binary_labels(values),
        label_names=train.label_names,
        groups=np.arange(len(ids)),
        targets=values if config.soft_labels else None,
        row_weight=None if given.weight is None else weight,
        held_out=None if train.held_out is None else np.zeros(len(ids), dtype=bool),
        extra=np.ones(len(ids), dtype=bool),
    ).subset(keep)
    notes += _escape_notes(config, rows.texts, "extra")
    keys = None if columns.group is None else frame[columns.group][keep]
    groups = _groups_behind(train.groups, train_keys, _groups(rows.texts, keys), keys)
    joined: dict[str, Any] = {
        name: np.concatenate([getattr(train, name), getattr(rows, name)])
        for name in ("labels", "targets", "row_weight", "held_out", "extra")
        if getattr(train, name) is not None
    }
    return replace(
        train,
        ids=train.ids + rows.ids,
        texts=train.texts + rows.texts,
        groups=np.concatenate([train.groups, groups]),
        notes=train.notes + notes,
        **joined,
    )


def _groups_behind(
    train: np.ndarray, train_keys: pd.Series | None, extra: np.ndarray, extra_keys: pd.Series | None
) -> np.ndarray:
    """Groups of extra rows: those of the training rows with the same value, else new ones behind them.

    Groups of training rows stay what they are without extra rows, and so do the folds.
    """
    groups = extra + (int(train.max()) + 1)
    if train_keys is not None and extra_keys is not None:
        known = {
            as_id(value): group
            for value, group in zip(train_keys, train.tolist(), strict=True)
            if not is_missing(value)
        }
        for i, value in enumerate(extra_keys.tolist()):
            if not is_missing(value) and as_id(value) in known:
                groups[extra == extra[i]] = known[as_id(value)]
    return groups


def _constant_notes(dataset: Dataset) -> list[str]:
    assert dataset.labels is not None
    return [
        f"label '{name}' is {int(column[0])} in all {len(dataset)} training rows: there is nothing to learn for it."
        for name, column in zip(dataset.label_names, dataset.labels.T, strict=True)
        if (column == column[0]).all()
    ]


def _groups(texts: Sequence[str], values: pd.Series | None) -> np.ndarray:
    """Groups of shape (n_samples,), numbered in order of appearance: what shares a text or a value is connected."""
    of_text = _numbered(text_key(text) for text in texts)
    if values is None:
        return of_text
    # A missing value groups nothing: such rows must not all be thrown together.
    of_value = _numbered((i,) if is_missing(value) else as_id(value) for i, value in enumerate(values.tolist()))
    return _numbered(_connected(of_text, of_value).tolist())


def _numbered(keys: Iterable[Hashable]) -> np.ndarray:
    """The number of each key, from 0 in order of appearance; int64."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def _connected(*of_rows: np.ndarray) -> np.ndarray:
    """The component of each row in a graph that connects rows with the same number in any of the columns."""
    from scipy.sparse import coo_array  # here, as they take a part of a second to import, and most tables have no group
    from scipy.sparse.csgraph import connected_components

    n = len(of_rows[0])
    nodes, size = [], n
    for numbers in of_rows:
        nodes.append(size + numbers)
        size += int(numbers.max(initial=-1)) + 1
    rows = np.tile(np.arange(n), len(of_rows))
    graph = coo_array((np.ones(len(rows), dtype=np.int8), (rows, np.concatenate(nodes))), shape=(size, size))
    _, component = connected_components(graph, directed=False)
    return np.asarray(component[:n])
