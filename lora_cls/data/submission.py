"""Submissions: a table of id and 0/1 columns, or of id and one column of label names, as the sample submission is."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lora_cls.data.columns import id_header, sample_id_column
from lora_cls.data.table import TableLike, as_id, is_missing, problem_report, read_table, row_name
from lora_cls.errors import DataError, did_you_mean, shorten
from lora_cls.evaluation import task_of
from lora_cls.files import make_folder, whole_file
from lora_cls.recipe import TaskName


def read_sample_submission(
    source: TableLike,
    test_ids: Sequence[str],
    label_names: Sequence[str],
    id_column: str | None = None,
    *,
    task: TaskName | None = None,
    delimiter: str | None = None,
) -> tuple[list[str], list[str]]:
    """Read a sample submission and check it against the test table and the labels.

    Beside its id it has one 0/1 column per label; or a single column, under any name, for the names of a row's labels
    (`single_label`: its class; else all of them, with `delimiter` between), or for the 0/1 of the only label.

    Parameters
    ----------
    source : path or DataFrame
    test_ids : ids of the test table, in any order
    label_names : the labels that are predicted, in any order
    id_column : str or None
        Null, or a name that the sample lacks, takes its column named id, or else its first.
    task, delimiter : the recipe's `task` and `data.label_delimiter`

    Returns
    -------
    columns : list of str
        All columns in the sample's order, its id column included.
    ids : list of str
        In the sample's order.

    Raises
    ------
    DataError
        With all problems, one line each: ids missing, extra or repeated; columns missing or unknown.
    """
    frame = read_table(source, name="the sample submission")
    id_name = sample_id_column(frame, id_column)
    cells = frame[id_name].tolist()
    ids = ["" if is_missing(value) else as_id(value) for value in cells]
    problems = []
    columns = [str(name) for name in frame.columns]
    others = [name for name in columns if name != id_name]
    if len(others) != 1 or others[0] in label_names:
        for name in others:
            if name not in label_names:
                unused = [label for label in label_names if label not in columns]
                problems.append(
                    f"column '{name}' is none of the labels ({shorten(label_names)}).{did_you_mean(name, unused)}"
                )
        problems += [
            f"there is no column for the label '{name}'.{did_you_mean(name, columns)}"
            for name in label_names
            if name not in columns or name == id_name
        ]
    elif len(label_names) > 1 and not task_of(task).exclusive and delimiter is None:
        problems.append(
            f"its one column '{others[0]}' must hold all labels of a row (of {shorten(label_names)}), and nothing says "
            "what stands between them: set data.label_delimiter."
        )
    blank = [row_name(frame, i) for i, value in enumerate(ids) if not value]
    if blank:
        problems.append(f"column '{id_name}': no id at {shorten(blank)}.")
    problems += _id_problems([value for value in ids if value], test_ids, "the test table")
    if problems:
        raise problem_report(str(frame.attrs["source"]), problems)
    return columns, ids


def write_submission(
    path: str | os.PathLike[str],
    ids: Sequence[str],
    y_pred: np.ndarray,
    label_names: Sequence[str],
    *,
    id_name: str | None = "id",
    sample: tuple[Sequence[str], Sequence[str]] | None = None,
    label_column: str | None = None,
    delimiter: str | None = None,
) -> Path:
    """Write predictions as CSV; the file appears whole or not at all.

    Parameters
    ----------
    path : path
    ids : length n_samples
    y_pred : ndarray of shape (n_samples, n_labels)
        0 or 1.
    label_names : length n_labels
    id_name : str or None
        Header of the id column where there is no sample; None is `id`.
    sample : (columns, ids), as `read_sample_submission` returns them
        The order of columns and rows to follow.
    label_column : str or None
        Header of the one column of names where there is no sample; None writes a 0/1 column per label.
    delimiter : str or None
        What stands between the names of a row in one column; None needs exactly one name per row.

    Raises
    ------
    DataError
        If shapes do not agree, if a value is neither 0 nor 1, if the sample does not fit, or if a row has no or several
        names and no delimiter.

    Examples
    --------
    Columns and rows in the order of a sample submission.

    >>> sample = (["id", "joy", "anger"], ["t2", "t1"])
    >>> y_pred = np.array([[1, 0], [0, 1]])
    >>> path = write_submission("submission.csv", ["t1", "t2"], y_pred, ["anger", "joy"], sample=sample)
    >>> print(path.read_text(), end="")
    id,joy,anger
    t2,1,0
    t1,0,1
    """
    y_pred = np.asarray(y_pred)
    expected = (len(ids), len(label_names))
    if y_pred.shape != expected:
        raise DataError(
            f"y_pred must be of shape {expected}: one row per id, one column per label. Got {y_pred.shape}."
        )
    if not np.isin(y_pred, (0, 1)).all():
        wrong = y_pred[~np.isin(y_pred, (0, 1))][0].item()
        raise DataError(f"A submission holds 0 and 1: apply the thresholds before. Got {wrong!r} instead.")
    given = list(label_names) if label_column is None else [label_column]
    columns, order = sample or ([id_name or "id", *given], ids)
    surplus = [name for name in columns if name not in label_names]
    # as `read_sample_submission` has it: beside the id the labels, or a single column of another name
    one_column = len(columns) == 2 and len(surplus) == 2
    problems = _id_problems(order, ids, "the predictions")
    if not one_column and (len(surplus) != 1 or len(columns) != len(label_names) + 1):
        problems.append(
            f"the sample must have one id column and the labels {shorten(label_names)}. Got {shorten(columns)} instead."
        )
    names_wanted = one_column and (len(label_names) > 1 or label_column is not None)
    several = np.flatnonzero(y_pred.sum(axis=1, dtype=np.int64) != 1).tolist()
    if names_wanted and delimiter is None and several:
        problems.append(
            f"one column of names takes exactly one label per row: {shorten(ids[i] for i in several)} have another "
            "number. Give a delimiter, or 0/1 columns."
        )
    if problems:
        raise problem_report("the submission", problems)
    row_of = {value: i for i, value in enumerate(ids)}
    if one_column:
        id_first = id_header(list(columns), id_name) == columns[0]
        cells = (
            [(delimiter or "").join(name for name, on in zip(label_names, row, strict=True) if on) for row in y_pred]
            if names_wanted
            else y_pred.astype(np.int8)[:, 0].tolist()
        )
        rows = ([value, cells[row_of[value]]] for value in order)
        return _write_csv(Path(path), [list(columns), *(row if id_first else row[::-1] for row in rows)])
    column_of = {name: i for i, name in enumerate(label_names)}
    values = y_pred.astype(np.int8).tolist()
    lines = (
        [values[row_of[value]][column_of[name]] if name in column_of else value for name in columns] for value in order
    )
    return _write_csv(Path(path), [list(columns), *lines])


def _write_csv(path: Path, rows: Sequence[Sequence[object]]) -> Path:
    make_folder(path.parent)
    with whole_file(path) as scratch, open(scratch, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    return path


def _id_problems(ids: Sequence[str], expected: Sequence[str], whose: str) -> list[str]:
    """What keeps two lists of ids from being the same set, each id once."""
    problems = []
    given, wanted = set(ids), set(expected)
    twice = [value for value, count in Counter(ids).items() if count > 1]
    missing = [value for value in expected if value not in given]
    extra = [value for value in dict.fromkeys(ids) if value not in wanted]
    if twice:
        problems.append(f"{len(twice)} ids stand more than once: {shorten(twice)}.")
    if missing:
        problems.append(f"{len(missing)} ids of {whose} are missing: {shorten(missing)}.")
    if extra:
        problems.append(f"{len(extra)} ids are not in {whose}: {shorten(extra)}.")
    return problems
