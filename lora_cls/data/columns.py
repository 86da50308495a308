"""Which columns of a table hold the id, the text, the labels and the group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter

import pandas as pd

from lora_cls.data.labels import looks_like_labels
from lora_cls.data.table import as_id, is_missing, problem_report
from lora_cls.errors import did_you_mean, shorten
from lora_cls.recipe import Data

TEXT_NAMES = (
    "text", "tweet", "comment", "sentence", "content", "message", "body", "review", "document", "utterance",
)  # fmt: skip


@dataclass(frozen=True)
class Columns:
    """The roles of a table's columns, decided once, on the training table."""

    id: str | None
    """Null numbers the rows: `row-0`, `row-1`, ..."""
    text: list[str]
    labels: list[str]
    how: str
    """One sentence for the user: what was chosen, and why."""
    group: str | None = None
    weight: str | None = None
    split: str | None = None


def resolve_columns(
    config: Data, train: pd.DataFrame, test: pd.DataFrame | None = None, sample: pd.DataFrame | None = None
) -> Columns:
    """Decide what each column of the training table is.

    Parameters
    ----------
    config : Data
        What it names is taken; what it leaves null is found by the rules written beside its fields.
    train, test, sample : DataFrame
        As `read_table` returns them. The test table and the sample submission tell labels from other 0/1 columns.

    Raises
    ------
    DataError
        With every column that is missing, cannot be found, or could be one of several.
    """
    columns, problems = find_columns(config, train, test, sample)
    if problems:
        raise problem_report(str(train.attrs.get("source", "the training table")), problems)
    return columns


def find_columns(
    config: Data, train: pd.DataFrame, test: pd.DataFrame | None = None, sample: pd.DataFrame | None = None
) -> tuple[Columns, list[str]]:
    """`resolve_columns` that returns the problems, and what could be decided despite them."""
    problems: list[str] = []
    named_text = _named_text(config, train, problems)
    group, weight, split = (
        _present(train, [name] if name else [], f"data.{field}", problems)
        for field, name in (
            ("group_column", config.group_column),
            ("weight_column", config.weight_column),
            ("split_column", config.split_column),
        )
    )
    id_column = find_id(config, train, problems)
    others = {*named_text, *group, *weight, *split, *([id_column] if id_column else [])}
    others |= _ignored(config, train, test, others, problems)
    if config.label_columns is not None or sample is not None:
        field, named, labels_how = _named_labels(config, sample, id_column, problems)
        labels = _fit_for_labels(train, named, field, others, problems)
    else:
        labels, labels_how = _guess_labels(train, test, others, problems, config.soft_labels)
    text, text_how = named_text, "from the recipe"
    if config.text_columns is None and config.text_template is None:
        text, text_how = _guess_text(train, test, {*others, *labels}, problems)
    roles = {
        "labels": f"{len(labels)} column{'s' * (len(labels) != 1)} ({shorten(labels, 30)}), {labels_how}",
        "text": f"{shorten(text)}, {text_how}",
        "id": id_column or "the row numbers, because no column is named id",
    }
    if group:
        roles["groups"] = f"{group[0]}, and identical texts"
    if weight:
        roles["row weights"] = weight[0]
    if split:
        roles["split"] = split[0]
    if config.ignore_columns:
        roles["ignored"] = shorten(config.ignore_columns)
    how = "; ".join(f"{role}: {what}" for role, what in roles.items())
    first = (found[0] if found else None for found in (group, weight, split))
    return Columns(id_column, text, labels, how, *first), problems


def find_test_columns(
    config: Data, test: pd.DataFrame, train_columns: Columns | None = None
) -> tuple[Columns, list[str]]:
    """The columns of a test table: the training table's, with an id that may differ; and the problems."""
    problems: list[str] = []
    id_column = train_columns.id if train_columns else None
    if config.id_column or id_column not in test.columns:
        id_column = find_id(config, test, problems)
    labels = train_columns.labels if train_columns else list(config.label_columns or [])
    if train_columns:
        text, how = (
            _present(test, train_columns.text, "the training table's text", problems),
            "as in the training table",
        )
    elif config.text_columns is not None or config.text_template is not None:
        text, how = _named_text(config, test, problems), "from the recipe"
    else:
        taken = {*labels, *config.ignore_columns, *([id_column] if id_column else [])}
        text, how = _guess_text(test, None, taken, problems)
    group = train_columns.group if train_columns else config.group_column
    group = group if group in test.columns else None  # a test table needs no groups
    how = f"text: {shorten(text)}, {how}; id: {id_column or 'the row numbers, because no column is named id'}"
    return Columns(id=id_column, text=text, labels=labels, how=how, group=group), problems


def find_id(config: Data, frame: pd.DataFrame, problems: list[str]) -> str | None:
    """The id column: the recipe's, or one named id, or the first of unique values whose name ends in `_id` or `ID`."""
    if config.id_column is not None:
        found = _present(frame, [config.id_column], "data.id_column", problems)
        return found[0] if found else None
    exact = [name for name in frame.columns if name.lower() == "id" and name not in config.ignore_columns]
    if exact:
        return str(exact[0])
    named = {config.group_column, *(config.text_columns or []), *(config.label_columns or [])}
    named |= {config.weight_column, config.split_column, *config.ignore_columns}
    for name in frame.columns:
        if name.endswith(("_id", "_Id", "ID")) and name not in named and _is_unique(frame[name]):
            return str(name)
    return None


def template_fields(template: str) -> tuple[list[tuple[str, str | None]], list[str]]:
    """Split a text template into pieces.

    Returns
    -------
    pieces : list of (literal text, column name or None)
    problems : list of str
        For unbalanced braces and for anything but a plain `{column}`: nothing in a template is ever evaluated.
    """
    pieces: list[tuple[str, str | None]] = []
    problems: list[str] = []
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        return [], [f"data.text_template {template!r}: {error}. Write {{{{ and }}}} for braces that are text."]
    for literal, name, spec, conversion in parsed:
        if name == "" or spec or conversion:
            written = f"{{{name}{'!' + conversion if conversion else ''}{':' + spec if spec else ''}}}"
            problems.append(f"data.text_template: only plain {{column}} fields are allowed. Got {written} instead.")
        pieces.append((literal, name))
    if not problems and not any(name for _, name in pieces):
        problems.append(f'data.text_template {template!r} names no column. Write for example "{{title}}\\n{{body}}".')
    return pieces, problems


def fill_template(pieces: Sequence[tuple[str, str | None]], row: Mapping[str, str]) -> str:
    """The text of one row; values are inserted as they are, braces in them included."""
    return "".join(literal + (row[name] if name is not None else "") for literal, name in pieces)


def _present(frame: pd.DataFrame, names: Sequence[str], field: str, problems: list[str]) -> list[str]:
    """The names that are columns; the others become problems."""
    for name in names:
        if name not in frame.columns:
            guess = did_you_mean(name, frame.columns)
            problems.append(f"no column '{name}' ({field}).{guess} Columns: {shorten(frame.columns, 40)}.")
    return [name for name in names if name in frame.columns]


def _ignored(
    config: Data, train: pd.DataFrame, test: pd.DataFrame | None, others: set[str], problems: list[str]
) -> set[str]:
    """`data.ignore_columns`, which may also be columns that only the test table has."""
    of_test = () if test is None else test.columns
    _present(train, [name for name in config.ignore_columns if name not in of_test], "data.ignore_columns", problems)
    both = [name for name in config.ignore_columns if name in others]
    if both:
        problems.append(
            f"data.ignore_columns: {shorten(both)} cannot be ignored and be the id, text, group, weight or "
            "split column too."
        )
    return set(config.ignore_columns)


def _named_text(config: Data, frame: pd.DataFrame, problems: list[str]) -> list[str]:
    """The text columns that the recipe names, in `text_columns` or in `text_template`."""
    if config.text_columns is not None and not config.text_columns:
        problems.append("data.text_columns is an empty list: name a column, or set it to null.")
    named = list(dict.fromkeys(config.text_columns or []))
    field = "data.text_columns"
    if config.text_template is not None:
        pieces, wrong = template_fields(config.text_template)
        problems += wrong
        if wrong:
            return []
        used = list(dict.fromkeys(name for _, name in pieces if name is not None))
        unused = [name for name in named if name not in used]
        if unused:
            problems.append(f"data.text_template does not use {shorten(unused)} of data.text_columns: add or remove.")
        named, field = used, "data.text_template"
    return _present(frame, named, field, problems)


def _guess_text(
    frame: pd.DataFrame, test: pd.DataFrame | None, taken: set[str], problems: list[str]
) -> tuple[list[str], str]:
    free = [name for name in frame.columns if name not in taken and not name.startswith("Unnamed: ")]
    if test is not None:
        free = [name for name in free if name in test.columns]
    candidates = [name for name in free if _is_text(frame[name])]
    if len(candidates) == 1:
        return candidates, "the only column of free text"
    named = [name for name in candidates if name.lower() in TEXT_NAMES]
    if len(named) == 1:
        return named, "by its name"
    if candidates:
        problems.append(
            f"several columns could be the text: {shorten(candidates, 40)}. Set data.text_columns to one or more."
        )
    else:
        both = " that the test file has too" if test is not None else ""
        problems.append(f"no column of free text{both}. Columns: {shorten(frame.columns, 40)}. Set data.text_columns.")
    return [], "not found"


def _named_labels(
    config: Data, sample: pd.DataFrame | None, id_column: str | None, problems: list[str]
) -> tuple[str, list[str], str]:
    """The labels that the recipe or else the sample submission names: by which field, the names, and how to say so."""
    if config.label_columns is not None or sample is None:
        named = list(config.label_columns or [])
        if not named:
            problems.append("data.label_columns is an empty list: name the labels, or set it to null.")
        return "data.label_columns", named, "from data.label_columns"
    sample_id = sample_id_column(sample, id_column)
    named = [name for name in sample.columns if name != sample_id]
    if not named:
        problems.append(f"the sample submission has no column but '{sample_id}': set data.label_columns.")
    return "sample submission", named, "as in the sample submission"


def _fit_for_labels(
    train: pd.DataFrame, named: list[str], field: str, others: set[str], problems: list[str]
) -> list[str]:
    """The named labels that are columns with no other role, each once; the others become problems."""
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        problems.append(f"{field}: named more than once: {shorten(twice)}.")
    both = [name for name in dict.fromkeys(named) if name in others]
    if both:
        problems.append(
            f"{field}: {shorten(both)} cannot be a label and the id, text, group, weight or split column, or an "
            "ignored one, too."
        )
    return _present(train, [name for name in dict.fromkeys(named) if name not in others], field, problems)


def _guess_labels(
    train: pd.DataFrame, test: pd.DataFrame | None, others: set[str], problems: list[str], soft: bool
) -> tuple[list[str], str]:
    """The 0/1 columns (of soft labels: those of numbers from 0 to 1) that the test table, if there is one, lacks."""
    free = [name for name in train.columns if name not in others and not name.startswith("Unnamed: ")]
    zero_one = [name for name in free if looks_like_labels(train[name], soft)]
    kind = "columns of numbers from 0 to 1" if soft else "0/1 columns"
    if test is None:
        if not zero_one:
            _no_labels(train, kind, [], problems)
        return zero_one, f"the {kind} (no test file was given to compare with)"
    labels = [name for name in zero_one if name not in test.columns]
    if not labels:
        _no_labels(train, f"{kind} that the test file lacks", zero_one, problems)
    left_out = [name for name in free if name not in test.columns and name not in labels]
    how = f"the {kind} that the test file lacks"
    why = "not from 0 to 1" if soft else "not 0/1"
    return labels, how + (f" (it also lacks {shorten(left_out)}: {why}, so not labels)" if left_out else "")


def _no_labels(train: pd.DataFrame, looked_for: str, shared: list[str], problems: list[str]) -> None:
    hint = "Set data.label_columns."
    if shared:
        hint = (
            "The test file has the 0/1 columns too; if they are the labels, name them: --set "
            f'"data.label_columns=[{", ".join(shared)}]"'
        )
    problems.append(
        f"no label columns: looked for data.label_columns, a sample submission, and {looked_for}. "
        f"Columns: {shorten(train.columns, 40)}. {hint}"
    )


def sample_id_column(sample: pd.DataFrame, id_column: str | None) -> str:
    """The id column of a sample submission: the named one, or one named id, or else its first."""
    if id_column is not None and id_column in sample.columns:
        return id_column
    return str(next((name for name in sample.columns if name.lower() == "id"), sample.columns[0]))


def _is_unique(values: pd.Series) -> bool:
    cells = values.tolist()
    return not any(map(is_missing, cells)) and len(set(map(as_id, cells))) == len(cells)


def _is_text(values: pd.Series) -> bool:
    """Whether every filled cell is a text and at least one is no number."""
    filled = [value for value in values.tolist() if not is_missing(value)]
    return all(isinstance(value, str) for value in filled) and any(not _is_number(value) for value in filled)


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True
