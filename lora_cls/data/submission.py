"""Submissions: a table of id and 0/1 columns, or of id and one column of label names, as the sample submission is."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from lora_cls.data.columns import id_header, is_index_name
from lora_cls.data.labels import MISSING, parse_soft_labels
from lora_cls.data.names import free_name, split_names
from lora_cls.data.table import TableLike, as_id, is_missing, problem_report, read_table, row_name
from lora_cls.errors import DataError, did_you_mean, shorten
from lora_cls.evaluation import task_of
from lora_cls.files import CsvLines, make_folder, write_bytes
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
    id_at = columns.index(id_header(columns, id_column, label_names))
    id_name = columns[id_at]
    ids = ["" if is_missing(value) else as_id(value) for value in frame.iloc[:, id_at].tolist()]
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
    blank = [row_name(frame, i) for i, value in enumerate(ids) if not value]
    if blank:
        problems.append(f"column '{id_name}': no id at {shorten(blank)}.")
    problems += _id_problems([value for value in ids if value], test_ids, "the test table")
    if problems:
        raise problem_report(str(frame.attrs["source"]), problems, frame.attrs["header"])
    at = None if labels_at is None else [others[i] for i in labels_at]
    cells = [frame.iloc[:, place].tolist() for place in at or ()]
    return Sample(
        columns=spelled_header(frame),
        ids=ids,
        id_at=id_at,
        labels_at=at,
        names_at=None if names_at is None else others[names_at],
        words=[_words(column) for column in cells],
        spelling={} if names_at is None else _spelling(label_names, frame.iloc[:, others[names_at]], delimiter),
        kept={i: ["" if is_missing(value) else str(value) for value in frame.iloc[:, i].tolist()] for i in kept},
        probabilities=_are_probabilities(cells),
        decisions=names_at is not None or _are_decisions(cells),
    )


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
        form = _plain(ids, label_names, id_name or "id", None if probabilities else label_column)
    else:
        form = sample if isinstance(sample, Sample) else _form(*sample, label_names, id_name, label_column)
    if probabilities and form.labels_at is not None and not form.decisions:
        form = replace(form, probabilities=True)
    problems = _id_problems(form.ids, ids, "the predictions")
    several = np.flatnonzero(y_pred.sum(axis=1, dtype=np.int64) != 1).tolist()
    if form.names_at is not None and delimiter is None and several:
        problems.append(
            f"one column of names takes exactly one label per row: {shorten(ids[i] for i in several)} have another "
            "number. Give a delimiter, or 0/1 columns."
        )
    if form.probabilities and y_score is None:
        problems.append("the submission holds probabilities: give y_score too.")
    if problems:
        raise problem_report("the submission", problems)
    cells = _cells(form, y_pred.astype(np.int8), label_names, delimiter, y_score)
    row_of = {value: i for i, value in enumerate(ids)}
    lines = [list(form.columns)]
    for k, value in enumerate(form.ids):
        line = [""] * len(form.columns)
        line[form.id_at] = value
        for place, column in cells.items():
            line[place] = column[row_of[value]]
        for place, column in form.kept.items():
            line[place] = column[k]
        lines.append(line)
    return _write_csv(Path(path), lines)


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


def _plain(ids: Sequence[str], label_names: Sequence[str], id_name: str, label_column: str | None) -> Sample:
    """A submission without a sample."""
    given = list(label_names) if label_column is None else [label_column]
    columns = [free_name(id_name, given), *given]
    if label_column is not None:
        return Sample(columns, list(ids), 0, None, 1)
    return Sample(columns, list(ids), 0, list(range(1, len(columns))), None, [ZERO_ONE] * len(label_names))


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


def _cells(
    form: Sample, y_pred: np.ndarray, label_names: Sequence[str], delimiter: str | None, y_score: np.ndarray | None
) -> dict[int, list[str]]:
    """What stands in each column of labels, by its place; rows in the order of `y_pred`."""
    if form.names_at is not None:
        names = [form.spelling.get(name, name) for name in label_names]
        joined = [(delimiter or "").join(names[j] for j in np.flatnonzero(row)) for row in y_pred]
        return {form.names_at: joined}
    places = form.labels_at or []
    if form.probabilities and y_score is not None:
        return {place: [repr(value) for value in y_score[:, j].tolist()] for j, place in enumerate(places)}
    return {
        place: [words[value] for value in y_pred[:, j].tolist()]
        for j, (place, words) in enumerate(zip(places, form.words, strict=True))
    }


def _words(cells: Iterable[object]) -> Words:
    """How a column of 0/1 labels writes them, by the spelling of most of its cells; 0 and 1 where they say nothing."""
    found = Counter(words for cell in cells if not is_missing(cell) and (words := _pair(str(cell).strip())) is not None)
    return found.most_common(1)[0][0] if found else ZERO_ONE


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


def _are_probabilities(columns: Sequence[Sequence[object]]) -> bool:
    """Whether all filled cells are numbers from 0 to 1, and some lie between."""
    values = [parse_soft_labels(pd.Series(list(column), dtype=object)) for column in columns]
    found = np.concatenate(values) if values else np.zeros(0)
    found = found[found != MISSING]
    return bool(len(found)) and bool((found >= 0).all()) and bool(((found > 0) & (found < 1)).any())


def _are_decisions(columns: Sequence[Sequence[object]]) -> bool:
    """Whether some cell is a word, or the cells are 0 and 1, both."""
    cells = {str(cell).strip() for column in columns for cell in column if not is_missing(cell)}
    pairs = [_pair(cell) for cell in cells]
    if any(pair is not None and not pair[0].startswith("0") for pair in pairs):
        return True
    return None not in pairs and len({cell[0] for cell in cells}) == 2


def _write_csv(path: Path, rows: Sequence[Sequence[object]]) -> Path:
    make_folder(path.parent)
    lines: list[str] = []
    csv.writer(CsvLines(lines.append), lineterminator=CsvLines.END).writerows(rows)
    write_bytes(path, "".join(lines).encode())
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
