"""Submissions: a table of id and 0/1 columns, or of id and one column of label names, as the sample submission is."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from lora_cls.choices import TableFormat
from lora_cls.data.columns import id_header, is_index_name
from lora_cls.data.labels import MISSING, parse_soft_labels
from lora_cls.data.names import free_name, split_names
from lora_cls.data.new_rows import NewRows, id_hashes
from lora_cls.data.pieces import TablePieces
from lora_cls.data.table import TableLike, as_id, is_missing, problem_report, read_table, row_name
from lora_cls.data.table_file import Cells, table_file
from lora_cls.errors import DataError, did_you_mean, shorten
from lora_cls.evaluation import task_of
from lora_cls.recipe import TaskName

Words = tuple[str, str]
"""How a column writes 0 and 1."""
ZERO_ONE: Words = ("0", "1")
_YES = {"true": "false", "yes": "no", "y": "n", "t": "f"}
_NO = {no: yes for yes, no in _YES.items()}


@dataclass(frozen=True, eq=False)
class Sample:
    """The rows and columns of a submission, and how its cells are written. Columns are known by their place, never by
    their name: a label may be called like any of them.

    Attributes
    ----------
    columns : list of str
        The header, spelled as in the sample.
    ids : list of str
        In the order of the rows.
    id_at : place of the ids
    labels_at : places of the labels' columns, in the order of the labels; None where one column holds names
    names_at : place of that column
    words : of each label, how its column writes 0 and 1
    spelling : names that the column of names writes in another way than the training table
    kept : cells of further columns, by place: the unnamed index that pandas writes
    probabilities : whether the labels' cells are numbers between 0 and 1
    decisions : whether they are names or words, or both 0 and 1; cells that are all alike say nothing
    """

    columns: list[str]
    ids: list[str]
    id_at: int
    labels_at: list[int] | None
    names_at: int | None = None
    words: list[Words] = field(default_factory=list)
    spelling: dict[str, str] = field(default_factory=dict)
    kept: dict[int, list[str]] = field(default_factory=dict)
    probabilities: bool = False
    decisions: bool = False

    @property
    def notes(self) -> list[str]:
        """What the user should know about what is written."""
        if not self.probabilities:
            return []
        return ["the sample submission holds numbers between 0 and 1: the submission holds probabilities, no decisions"]


def read_sample_submission(
    source: TableLike,
    test_ids: Sequence[str],
    label_names: Sequence[str],
    id_column: str | None = None,
    *,
    task: TaskName | None = None,
    delimiter: str | None = None,
    label_column: str | None = None,
) -> Sample:
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
    label_column : the training table's column of names; None where each label has a 0/1 column

    Raises
    ------
    DataError
        With all problems, one line each: ids missing, extra or repeated; columns missing or unknown.
    """
    frame = read_table(source, name="the sample submission")
    columns = [str(name) for name in frame.columns]
    form, problems = _roles(columns, label_names, id_column, task, delimiter, label_column)
    ids = _sample_ids(frame, form)
    blank = [row_name(frame, i) for i, value in enumerate(ids) if not value]
    if blank:
        problems.append(f"column '{columns[form.id_at]}': no id at {shorten(blank)}.")
    problems += _id_problems([value for value in ids if value], test_ids, "the test table")
    if problems:
        raise problem_report(str(frame.attrs["source"]), problems, frame.attrs["header"])
    cells = _LabelCells(form)
    cells.add(frame)
    form = cells.completed(form, label_names, delimiter)
    return replace(form, columns=spelled_header(frame), ids=ids, kept=kept_cells(frame, form))


def match_sample(
    pieces: TablePieces,
    rows: NewRows,
    label_names: Sequence[str],
    id_column: str | None = None,
    *,
    task: TaskName | None = None,
    delimiter: str | None = None,
    label_column: str | None = None,
) -> Sample | None:
    """`read_sample_submission` in pieces of as many rows as those of the test table, for a sample that has the table's
    ids in the table's order: without the `ids`, and with nothing in the columns that are `kept`.

    Returns
    -------
    Sample or None
        None where the order is another, and where something is wrong: `read_sample_submission` then says what.
    """
    form, problems = _roles(pieces.columns, label_names, id_column, task, delimiter, label_column)
    if problems or pieces.n_rows != len(rows):
        return None
    cells = _LabelCells(form)
    columns: list[str] = []
    done = 0
    for frame in pieces:
        if not np.array_equal(id_hashes(_sample_ids(frame, form)), rows.id_hashes[done : done + len(frame)]):
            return None
        columns = columns or spelled_header(frame)
        cells.add(frame)
        done += len(frame)
    return replace(cells.completed(form, label_names, delimiter), columns=columns)


def kept_cells(frame: pd.DataFrame, form: Sample) -> dict[int, list[str]]:
    """The cells of a sample's further columns, by place."""
    return {i: ["" if is_missing(value) else str(value) for value in frame.iloc[:, i].tolist()] for i in form.kept}


def _sample_ids(frame: pd.DataFrame, form: Sample) -> list[str]:
    return ["" if is_missing(value) else as_id(value) for value in frame.iloc[:, form.id_at].tolist()]


def _roles(
    columns: list[str],
    label_names: Sequence[str],
    id_column: str | None,
    task: TaskName | None,
    delimiter: str | None,
    label_column: str | None,
) -> tuple[Sample, list[str]]:
    """What the columns of a sample are, by their names alone; and the problems."""
    id_at = columns.index(id_header(columns, id_column, label_names))
    kept = [i for i, name in enumerate(columns) if i != id_at and is_index_name(name)]
    others = [i for i in range(len(columns)) if i != id_at and i not in kept]
    problems: list[str] = []
    names_at, labels_at = _places([columns[i] for i in others], label_names, label_column)
    if names_at is not None and not task_of(task).exclusive and delimiter is None:
        problems.append(
            f"its one column '{columns[others[0]]}' must hold all labels of a row (of {shorten(label_names)}), and "
            "nothing says what stands between them: set data.label_delimiter."
        )
    if labels_at is None and names_at is None:
        named = [columns[i] for i in others]
        unused = [label for label in label_names if label not in named]
        problems += [
            f"column '{name}' is none of the labels ({shorten(label_names)}).{did_you_mean(name, unused)}"
            for name in named
            if name not in label_names
        ]
        problems += [f"there is no column for the label '{name}'.{did_you_mean(name, columns)}" for name in unused]
    at = None if labels_at is None else [others[i] for i in labels_at]
    name_at = None if names_at is None else others[names_at]
    return Sample(columns, [], id_at, at, name_at, kept={i: [] for i in kept}), problems


def spelled_header(frame: pd.DataFrame) -> list[str]:
    """The header of a table as its file spells it, blanks and all; "" for the unnamed index that pandas writes."""
    columns = ["" if is_index_name(str(name)) else str(name) for name in frame.columns]
    header = [str(name) for name in frame.attrs.get("spelled", columns)]
    # the columns of a DataFrame may have changed since it was read
    return header if [name.strip() for name in header] == columns else columns


def write_submission(
    path: str | os.PathLike[str],
    ids: Sequence[str],
    y_pred: np.ndarray,
    label_names: Sequence[str],
    *,
    id_name: str | None = "id",
    sample: Sample | tuple[Sequence[str], Sequence[str]] | None = None,
    label_column: str | None = None,
    delimiter: str | None = None,
    y_score: np.ndarray | None = None,
    probabilities: bool = False,
    format: TableFormat = "csv",
) -> Path:
    """Write predictions as a table; the file appears whole or not at all.

    Parameters
    ----------
    path : path
    ids : length n_samples
    y_pred : ndarray of shape (n_samples, n_labels)
        0 or 1.
    label_names : length n_labels
    id_name : str or None
        Header of the id column where there is no sample; None is `id`.
    sample : as `read_sample_submission` returns it, or (columns, ids)
        The columns, rows and spelling to follow.
    label_column : str or None
        Header of the one column of names where there is no sample; None writes a 0/1 column per label.
    delimiter : str or None
        What stands between the names of a row in one column; None needs exactly one name per row.
    y_score : ndarray of shape (n_samples, n_labels)
        Probabilities, written in place of `y_pred` where the sample holds such.
    probabilities : bool
        Write them whatever the sample, unless it holds decisions: for a metric of ranks or probabilities.
    format : of the file

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
    for name, values in (("y_pred", y_pred), ("y_score", y_score)):
        if values is not None and np.shape(values) != expected:
            raise DataError(
                f"{name} must be of shape {expected}: one row per id, one column per label. Got {np.shape(values)}."
            )
    if not np.isin(y_pred, (0, 1)).all():
        wrong = y_pred[~np.isin(y_pred, (0, 1))][0].item()
        raise DataError(f"A submission holds 0 and 1: apply the thresholds before. Got {wrong!r} instead.")
    if sample is None:
        form = replace(plain_form(label_names, id_name, label_column, probabilities), ids=list(ids))
    else:
        form = sample if isinstance(sample, Sample) else _form(*sample, label_names, id_name, label_column)
        form = with_probabilities(form, probabilities)
    problems = _id_problems(form.ids, ids, "the predictions")
    problems += _several(form, ids, y_pred, delimiter)
    if form.probabilities and y_score is None:
        problems.append("the submission holds probabilities: give y_score too.")
    if problems:
        raise problem_report("the submission", problems)
    row_of = {value: i for i, value in enumerate(ids)}
    order = [row_of[value] for value in form.ids]
    score = None if y_score is None else np.asarray(y_score)[order]
    with table_file(Path(path), form.columns, format) as add:
        add(submission_cells(form, form.ids, y_pred[order], label_names, delimiter, score, form.kept))
    return Path(path)


def plain_form(
    label_names: Sequence[str], id_name: str | None, label_column: str | None, probabilities: bool
) -> Sample:
    """A submission without a sample, and without ids; see `write_submission`."""
    given = list(label_names) if label_column is None or probabilities else [label_column]
    columns = [free_name(id_name or "id", given), *given]
    if label_column is not None and not probabilities:
        return Sample(columns, [], 0, None, 1)
    words = [ZERO_ONE] * len(label_names)
    return Sample(columns, [], 0, list(range(1, len(columns))), None, words, probabilities=probabilities)


def with_probabilities(form: Sample, probabilities: bool) -> Sample:
    """A sample as it is followed for a metric of ranks or probabilities: these are written if it holds no decisions."""
    if probabilities and form.labels_at is not None and not form.decisions:
        return replace(form, probabilities=True)
    return form


def submission_cells(
    form: Sample,
    ids: Sequence[str],
    y_pred: np.ndarray,
    label_names: Sequence[str],
    delimiter: str | None,
    y_score: np.ndarray | None,
    kept: Mapping[int, Sequence[str]],
) -> list[Cells]:
    """The columns of some rows of a submission, in the order of its header.

    Parameters
    ----------
    kept : cells of the form's further columns in these rows, by place

    Raises
    ------
    DataError
        If a row has no or several names and no delimiter.
    """
    if problems := _several(form, ids, y_pred, delimiter):
        raise problem_report("the submission", problems)
    cells: dict[int, Cells] = {form.id_at: ids, **kept}
    cells |= _label_cells(form, y_pred.astype(np.int8), label_names, delimiter, y_score)
    return [cells[place] for place in range(len(form.columns))]


def _several(form: Sample, ids: Sequence[str], y_pred: np.ndarray, delimiter: str | None) -> list[str]:
    """The problem of rows that have no or several names where each needs one."""
    if form.names_at is None or delimiter is not None:
        return []
    several = np.flatnonzero(y_pred.sum(axis=1, dtype=np.int64) != 1).tolist()
    if not several:
        return []
    return [
        f"one column of names takes exactly one label per row: {shorten(ids[i] for i in several)} have another "
        "number. Give a delimiter, or 0/1 columns."
    ]


def _places(
    others: Sequence[str], label_names: Sequence[str], label_column: str | None
) -> tuple[int | None, list[int] | None]:
    """Where, among the columns beside the id, the one of names stands, or else those of the labels; (None, None) where
    they are neither."""
    if len(others) == 1 and (others[0] not in label_names or others[0] == label_column):
        # beside the id a single column of another name, or of the training table's column of names
        return (0, None) if len(label_names) > 1 else (None, [0])
    if sorted(others) != sorted(label_names):
        return None, None
    return None, [others.index(name) for name in label_names]


def _form(
    columns: Sequence[str],
    ids: Sequence[str],
    label_names: Sequence[str],
    id_name: str | None,
    label_column: str | None,
) -> Sample:
    """A sample of which only columns and ids are known."""
    columns = list(columns)
    id_at = columns.index(id_header(columns, id_name, label_names))
    others = [i for i in range(len(columns)) if i != id_at]
    names_at, labels_at = _places([columns[i] for i in others], label_names, label_column)
    if names_at is not None:
        return Sample(columns, list(ids), id_at, None, others[names_at])
    if labels_at is None:
        raise problem_report(
            "the submission",
            [
                f"the sample must have one id column and the labels {shorten(label_names)}. Got {shorten(columns)} "
                "instead."
            ],
        )
    return Sample(
        columns, list(ids), id_at, [others[i] for i in labels_at], None, [ZERO_ONE] * len(label_names)
    )  # fmt: skip


def _label_cells(
    form: Sample, y_pred: np.ndarray, label_names: Sequence[str], delimiter: str | None, y_score: np.ndarray | None
) -> dict[int, Cells]:
    """What stands in each column of labels, by its place."""
    if form.names_at is not None:
        names = [form.spelling.get(name, name) for name in label_names]
        joined = [(delimiter or "").join(names[j] for j in np.flatnonzero(row)) for row in y_pred]
        return {form.names_at: joined}
    places = form.labels_at or []
    if form.probabilities and y_score is not None:
        return {place: y_score[:, j] for j, place in enumerate(places)}
    return {
        place: y_pred[:, j] if words == ZERO_ONE else [words[value] for value in y_pred[:, j].tolist()]
        for j, (place, words) in enumerate(zip(places, form.words, strict=True))
    }


class _LabelCells:
    """What a sample's cells say of how a submission is written, in as many pieces as they come."""

    def __init__(self, form: Sample) -> None:
        self._form = form
        self._words: list[Counter[Words]] = [Counter() for _ in form.labels_at or ()]
        self._names: dict[object, object] = {}  # each different cell of names once
        self._of_rows: list[object] = []
        self._filled = self._between = self._other = False  # of numbers: any, any between 0 and 1, any that is none
        self._word = self._unknown = False  # of decisions: any other than 0 and 1, any that is none
        self._first: set[str] = set()

    def add(self, frame: pd.DataFrame) -> None:
        """Look at the cells of some rows."""
        form = self._form
        if form.names_at is not None:
            names = frame.iloc[:, form.names_at].tolist()
            self._of_rows += [self._names.setdefault(name, name) if isinstance(name, str) else name for name in names]
        for words, place in zip(self._words, form.labels_at or (), strict=True):
            values = frame.iloc[:, place]
            found = parse_soft_labels(values)
            found = found[found != MISSING]
            self._filled |= bool(len(found))
            self._other |= bool((found < 0).any())
            self._between |= bool(((found > 0) & (found < 1)).any())
            cells = Counter(str(value).strip() for value in values.tolist() if not is_missing(value))
            for cell, count in cells.items():
                pair = _pair(cell)
                if pair is None:
                    self._unknown = True
                    continue
                words[pair] += count
                self._word |= not pair[0].startswith("0")
                self._first.add(cell[0])

    def completed(self, form: Sample, label_names: Sequence[str], delimiter: str | None) -> Sample:
        """The form, with what the cells say."""
        spelling: dict[str, str] = {}
        if form.names_at is not None:
            spelling = _spelling(label_names, pd.Series(self._of_rows, dtype=object), delimiter)
        decisions = self._word or (not self._unknown and len(self._first) == 2)
        return replace(
            form,
            # the spelling of most cells of a column; 0 and 1 where they say nothing
            words=[words.most_common(1)[0][0] if words else ZERO_ONE for words in self._words],
            spelling=spelling,
            probabilities=self._filled and self._between and not self._other,
            decisions=form.names_at is not None or decisions,
        )


def _pair(cell: str) -> Words | None:
    """The spelling of 0 and of 1 that a cell is one of."""
    word = cell.lower()
    if re.fullmatch(r"[01](\.0*)?", cell):
        return f"0{cell[1:]}", f"1{cell[1:]}"
    if word not in _YES and word not in _NO:
        return None
    pair = (_YES[word], word) if word in _YES else (word, _NO[word])
    like = str.upper if cell.isupper() and len(cell) > 1 else str.capitalize if cell[:1].isupper() else str.lower
    return like(pair[0]), like(pair[1])


def _spelling(label_names: Sequence[str], cells: pd.Series, delimiter: str | None) -> dict[str, str]:
    """Names that a sample writes otherwise than the training table: 5 for 5.0, TRUE for True; {} where it says none."""
    used = {name for cell in split_names(cells, delimiter) for name in cell or ()}
    if not used or used & set(label_names):
        return {}
    pairs = {_pair(name) for name in used}
    own = [name for name in label_names if name.lower() in ("true", "false")]
    if len(pairs) == 1 and len(own) == len(label_names) and (pair := next(iter(pairs))) is not None:
        return {name: pair[name.lower() == "true"] for name in own}
    whole = [re.fullmatch(r"(-?\d+)(?:\.0*)?", name) for name in label_names]
    ends = {found[1] or "" for name in used if (found := re.fullmatch(r"-?\d+(\.0*)?", name)) is not None}
    if len(ends) != 1 or not all(re.fullmatch(r"-?\d+(\.0*)?", name) for name in used):
        return {}
    return {found[0]: found[1] + next(iter(ends)) for found in whole if found is not None}


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
