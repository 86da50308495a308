"""Which columns of a table hold the id, the text, the labels and the group."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from string import Formatter

import pandas as pd
import yaml

from lora_cls.data.header import is_number
from lora_cls.data.labels import looks_like_labels
from lora_cls.data.names import (
    Names,
    distinct_names,
    holds_lists,
    likely_delimiter,
    look,
    looks_like_names,
    occurs,
    spellings,
    split_names,
    too_many,
    vectors,
)
from lora_cls.data.table import as_id, is_missing, problem_report
from lora_cls.errors import did_you_mean, shorten, shown
from lora_cls.recipe import Data, TaskName

TEXT_NAMES = (
    "text", "tweet", "comment", "sentence", "content", "message", "body", "review", "document", "utterance",
)  # fmt: skip

_ID_ENDS = ("_id", "_Id", "ID")
_YES_NO = ({"yes", "no"}, {"y", "n"}, {"t", "f"}, {"true", "false"}, {"on", "off"}, {"-1", "1"}, {"-1.0", "1.0"})


@dataclass(frozen=True)
class Columns:
    """The roles of a table's columns, decided once, on the training table."""

    id: str | None
    """Null numbers the rows: `row-0`, `row-1`, ..."""
    text: list[str]
    labels: list[str]
    """The label columns: 0/1 each, or one that holds names."""
    how: str
    """One sentence for the user: what was chosen, and why."""
    group: str | None = None
    task: TaskName = "multi_label"
    classes: list[str] | None = None
    """The names in the one label column, where it holds names; None where every label has a 0/1 column."""
    notes: tuple[str, ...] = ()
    """What the user should know about the choice."""

    @property
    def label_names(self) -> list[str]:
        """The labels in their order: the classes, or the 0/1 columns."""
        return self.labels if self.classes is None else self.classes

    @property
    def label_column(self) -> str | None:
        """The one column that holds the labels' names; None where every label has a 0/1 column."""
        return None if self.classes is None else self.labels[0]

    weight: str | None = None
    split: str | None = None
    lists: bool = False
    """Whether the cells of the one label column are lists of names."""


def resolve_columns(
    config: Data,
    train: pd.DataFrame,
    test: pd.DataFrame | None = None,
    sample: pd.DataFrame | None = None,
    task: TaskName | None = None,
) -> Columns:
    """Decide what each column of the training table is.

    Parameters
    ----------
    config : Data
        What it names is taken; what it leaves null is found by the rules written beside its fields.
    train, test, sample : DataFrame
        As `read_table` returns them. The test table and the sample submission tell labels from other 0/1 columns.
    task : the recipe's; None takes what the label columns say

    Raises
    ------
    DataError
        With every column that is missing, cannot be found, or could be one of several.
    """
    columns, problems = find_columns(config, train, test, sample, task)
    if problems:
        raise problem_report(str(train.attrs.get("source", "the training table")), problems)
    return columns


def find_columns(
    config: Data,
    train: pd.DataFrame,
    test: pd.DataFrame | None = None,
    sample: pd.DataFrame | None = None,
    task: TaskName | None = None,
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
    named = config.label_columns is not None or (sample is not None and not _only_classes(train, sample, id_column))
    if named:
        field, names, labels_how = _named_labels(config, sample, id_column, problems)
        labels = _fit_for_labels(train, names, field, others, problems)
    else:
        labels, labels_how = _guess_labels(config, task, train, test, others, problems)
    found, classes, task_how, notes = _decide_task(config, task, train, labels, named, problems)
    text, text_how = named_text, "from the recipe"
    if config.text_columns is None and config.text_template is None:
        text, text_how = _guess_text(train, test, {*others, *labels}, problems)
    if classes is None:
        what = f"{len(labels)} column{'s' * (len(labels) != 1)} ({shorten(labels, 30)})"
    else:
        what = f"{len(classes)} names ({shorten(classes, 30)}) in the column {labels[0]}"
    roles = {
        "task": f"{found}, {task_how}",
        "labels": f"{what}, {labels_how}",
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
    group_name, weight_name, split_name = (names[0] if names else None for names in (group, weight, split))
    columns = Columns(
        id=id_column, text=text, labels=labels, how=how, group=group_name, weight=weight_name, split=split_name,
        task=found, classes=classes, notes=notes, lists=classes is not None and holds_lists(train[labels[0]]),
    )  # fmt: skip
    return columns, problems


def find_test_columns(
    config: Data,
    test: pd.DataFrame,
    train_columns: Columns | None = None,
    unique: Callable[[str], bool] | None = None,
) -> tuple[Columns, list[str]]:
    """The columns of a test table: the training table's, with an id that may differ; and the problems.

    With `train_columns` and `unique` (see `find_id`) its rows are not looked at.
    """
    problems: list[str] = []
    id_column = train_columns.id if train_columns else None
    if config.id_column or id_column not in test.columns:
        id_column = find_id(config, test, problems, unique)
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
    columns = train_columns or Columns(id=None, text=[], labels=labels, how="")
    return replace(columns, id=id_column, text=text, how=how, group=group, notes=()), problems


def find_id(
    config: Data, frame: pd.DataFrame, problems: list[str], unique: Callable[[str], bool] | None = None
) -> str | None:
    """The id column: the recipe's, or one named id, or the first of unique values whose name ends in `_id` or `ID`.

    `unique` says of a column whether its values are; where None, the rows of `frame` say it.
    """
    if config.id_column is not None:
        found = _present(frame, [config.id_column], "data.id_column", problems)
        return found[0] if found else None
    exact = [name for name in frame.columns if name.lower() == "id" and name not in config.ignore_columns]
    if exact:
        return str(exact[0])
    named = {config.group_column, *(config.text_columns or []), *(config.label_columns or [])}
    named |= {config.weight_column, config.split_column, *config.ignore_columns}
    for name in frame.columns:
        if name.endswith(_ID_ENDS) and name not in named and (unique(name) if unique else is_unique(frame[name])):
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
    free = [name for name in frame.columns if name not in taken and not is_index_name(name)]
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
    named = [name for name in sample.columns if name != sample_id and not is_index_name(name)]
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
    found = _present(train, [name for name in dict.fromkeys(named) if name not in others], field, problems)
    if field == "sample submission" and not found:
        problems.append(
            "the sample submission has none of the training table's labels: name them in data.label_columns."
        )
    return found


def _guess_labels(
    config: Data,
    task: TaskName | None,
    train: pd.DataFrame,
    test: pd.DataFrame | None,
    others: set[str],
    problems: list[str],
) -> tuple[list[str], str]:
    """The 0/1 columns (of soft labels: those of numbers from 0 to 1) that the test table, if there is one, lacks; or
    its one column of names."""
    free = [name for name in train.columns if name not in others and not is_index_name(name)]
    zero_one = [name for name in free if looks_like_labels(train[name], config.soft_labels)]
    of_names = [name for name in free if name not in zero_one and looks_like_names(train[name], config.label_delimiter)]
    kind = _kind(config)
    if test is None:
        if not zero_one:
            _no_labels(train, kind, [], [] if config.soft_labels else of_names, problems)
        _undecided(config, train, zero_one, [name for name in free if name not in zero_one], problems)
        return zero_one, f"the {kind} (no test file was given to compare with)"
    labels = [name for name in zero_one if name not in test.columns]
    if not of_names and not labels:  # of a delimiter that stands nowhere `_decide_task` knows more to say
        of_names = [name for name in free if name not in zero_one and looks_like_names(train[name], None)]
    of_names = [] if config.soft_labels else [name for name in of_names if name not in test.columns]
    asked_for = config.label_delimiter is not None or (task == "single_label" and len(labels) < 2)
    if of_names and (asked_for or not labels):
        if len(of_names) > 1:
            problems.append(
                f"several columns could hold the labels' names: {shorten(of_names, 40)}. Set data.label_columns to one."
            )
            return [], "not found"
        return of_names, "the only column with few values that the test file lacks"
    if not labels:
        wanted = kind if config.soft_labels else f"{kind} (or one column of few values)"
        _no_labels(train, f"{wanted} that the test file lacks", zero_one, of_names, problems)
    left_out = [name for name in free if name not in test.columns and name not in labels]
    _undecided(config, train, labels, left_out, problems)
    how = f"the {kind} that the test file lacks"
    why = "not from 0 to 1" if config.soft_labels else "not 0/1"
    return labels, how + (f" (it also lacks {shorten(left_out)}: {why}, so not labels)" if left_out else "")


def _are_shares(values: pd.Series) -> bool:
    """Whether every filled cell is a number from 0 to 1."""
    filled = pd.to_numeric(pd.Series([value for value in values.tolist() if not is_missing(value)]), errors="coerce")
    return len(filled) > 0 and bool(filled.between(0, 1).all())


def _undecided(config: Data, train: pd.DataFrame, labels: list[str], left_out: list[str], problems: list[str]) -> None:
    """Refuse to leave out a column that may be a label too, written in another way than those beside it."""
    for name in left_out if labels else ():
        values = train[name]
        if not config.soft_labels and _are_shares(values):
            what, wanted = "numbers from 0 to 1", "--set data.soft_labels=true"
        elif _is_yes_no(values):
            words = dict.fromkeys(repr(str(value).strip()) for value in values.tolist() if not is_missing(value))
            what, wanted = " and ".join(words), "write it as 0 and 1"
        else:
            continue
        problems.append(
            f"column '{name}' holds {what} beside the {_kind(config)} ({shorten(labels)}): if it is a label, {wanted}; "
            f"if not, name the labels ({set_list('data.label_columns', labels)}) or leave it out "
            f"({set_list('data.ignore_columns', [*config.ignore_columns, name])})."
        )


def _is_yes_no(values: pd.Series) -> bool:
    """Whether every filled cell is one of two words for yes and no."""
    words = {str(value).strip().lower() for value in values.tolist() if not is_missing(value)}
    return bool(words) and any(words <= pair for pair in _YES_NO)


def set_list(field: str, names: Sequence[str]) -> str:
    """The option for a list of names, ready to be pasted: what YAML or a shell would take otherwise is quoted."""
    plain = re.compile(r"[A-Za-z_][\w-]*")
    values = [name if plain.fullmatch(name) and yaml.safe_load(name) == name else json.dumps(name) for name in names]
    option = f"{field}=[{', '.join(values)}]"
    return f'--set "{option}"' if '"' not in option else f"--set {shlex.quote(option)}"


def _kind(config: Data, count: int = 2) -> str:
    columns = "column" if count == 1 else "columns"
    return f"{columns} of numbers from 0 to 1" if config.soft_labels else f"0/1 {columns}"


def _no_labels(
    train: pd.DataFrame, looked_for: str, shared: list[str], of_names: list[str], problems: list[str]
) -> None:
    hint = "Set data.label_columns."
    if of_names and not shared:
        option = set_list("data.label_columns", of_names[:1])
        hint = f"Few values stand in {shorten(of_names)}; if one holds the labels, name it: {option}"
    if shared:
        option = set_list("data.label_columns", shared)
        hint = f"The test file has the 0/1 columns too; if they are the labels, name them: {option}"
    problems.append(
        f"no label columns: looked for data.label_columns, a sample submission, and {looked_for}. "
        f"Columns: {shorten(train.columns, 40)}. {hint}"
    )


def _only_classes(train: pd.DataFrame, sample: pd.DataFrame, id_column: str | None) -> bool:
    """Whether a sample submission names classes, one column each, in place of columns of the training table.

    A class may be called like a column; then they are the names that stand in one column.
    """
    sample_id = sample_id_column(sample, id_column)
    named = [name for name in sample.columns if name != sample_id and not is_index_name(name)]
    columns = [name for name in named if name in train.columns]
    if len(named) < 2 or len(columns) == len(named):
        return False
    return not columns or any(
        set(named) <= {str(value).strip() for value in train[name].tolist()} for name in train.columns
    )


def _decide_task(
    config: Data, task: TaskName | None, train: pd.DataFrame, labels: list[str], named: bool, problems: list[str]
) -> tuple[TaskName, list[str] | None, str, tuple[str, ...]]:
    """The task, the names in the one label column if it holds names, why, and notes. A column that somebody `named` may
    hold any number of names, if some stand in several rows.

    `dataset` checks the rows themselves: that each has exactly one class.
    """
    why = "from the recipe" if task else ""
    if len(labels) != 1:
        if task == "binary" and labels:
            problems.append(
                f"task: binary needs exactly one label column. Got {len(labels)} ({shorten(labels)}) instead. Set "
                "data.label_columns to one of them, or task: multi_label."
            )
        return task or "multi_label", None, why or f"because there are several {_kind(config)}", ()
    name = labels[0]
    values = train[name]
    zero_one = config.soft_labels or looks_like_labels(values)
    if zero_one and task != "single_label":
        if config.label_delimiter is not None:
            problems.append(f"data.label_delimiter has no meaning for the 0/1 column '{name}': remove it.")
        return task or "binary", None, why or f"because there is one {_kind(config, 1)}", ()
    if task == "binary":
        problems.append(
            f"task: binary needs a 0/1 column, but '{name}' holds {_examples(split_names(values, None))}. Set task: "
            "single_label, or data.label_columns."
        )
    lists = holds_lists(values)
    if task == "multi_label" and config.label_delimiter is None and not lists:
        problems.append(
            f"task: multi_label needs 0/1 columns, or data.label_delimiter to split the names in '{name}' "
            f"({_examples(split_names(values, None))}). For one class per row set task: single_label."
        )
    names = split_names(values, config.label_delimiter)
    classes, filled = distinct_names(names), sum(bool(cell) for cell in names)
    notes = _spelling_notes(name, classes, names)
    if vectors(names):
        problems.append(
            f"label column '{name}' holds lists of one number per label, such as {shown(values.iloc[0])}, and nothing "
            "says which label each number is of. Write one column per label in their place, its name in the header, "
            "and name these columns in data.label_columns; or write lists of the labels' names."
        )
    elif len(classes) < 2:
        odd = next((value for value, cell in zip(values.tolist(), names, strict=True) if cell is None), None)
        found = shorten(classes) or ("none" if odd is None else f"cells such as {shown(odd)}, which are no names,")
        problems.append(f"label column '{name}': at least two different names are needed. Got {found} instead.")
    elif too_many(len(classes), filled) and (not named or len(classes) == filled):
        problems.append(
            f"column '{name}' is no label column: {len(classes)} different values in {filled} filled cells "
            f"({shorten(classes, 3)}). Set data.label_columns{' to another' if named else ''}."
        )
    elif lists:
        if config.label_delimiter is not None:
            notes += (f"column '{name}' holds lists: data.label_delimiter splits none of them.",)
    elif config.label_delimiter is not None:
        if not occurs(values, config.label_delimiter):
            problems.append(
                f"data.label_delimiter {config.label_delimiter!r} stands in no cell of '{name}' "
                f"({_examples(names)}). Set it to what separates the labels; for one class per row remove it."
            )
        empty = len(names) - filled
        if empty:
            notes += (f"column '{name}': {empty} empty cells are rows without any label.",)
    else:
        mark = likely_delimiter(values)
        if mark is not None and task is None:
            problems.append(
                f"column '{name}' looks like several labels separated by {mark!r} ({_examples(names, mark)}). Set "
                f"data.label_delimiter to {mark!r}; or task: single_label, if each value is one class."
            )
    if lists:
        return task or "multi_label", classes, why or f"because {name} holds lists of names", notes
    if config.label_delimiter is not None:
        return task or "multi_label", classes, why or f"because {name} is split at data.label_delimiter", notes
    return task or "single_label", classes, why or f"because {name} holds one name per row", notes


def _examples(names: Sequence[list[str] | None], mark: str = "") -> str:
    """Some different cells, those that hold `mark`."""
    cells = dict.fromkeys(", ".join(cell) for cell in names if cell and any(mark in name for name in cell))
    return shorten((repr(cell) for cell in cells), 3) or "nothing"


def _spelling_notes(name: str, classes: Sequence[str], names: Names) -> tuple[str, ...]:
    same = [same for same in spellings(names).values() if len(same) > 1]
    one = [" and ".join(map(ascii, alike)) for alike in same]
    notes = [f"column '{name}': {shorten(one)} look alike and are taken as one label each."] if one else []
    alike: dict[str, list[str]] = {}
    for value in classes:
        alike.setdefault(look(value).casefold(), []).append(value)
    pairs = [" and ".join(map(repr, same)) for same in alike.values() if len(same) > 1]
    if pairs:
        notes.append(f"column '{name}': {shorten(pairs)} differ only in case and are different labels.")
    return tuple(notes)


def sample_id_column(sample: pd.DataFrame, id_column: str | None) -> str:
    """The id column of a sample submission: the named one, or one named id, or else its first."""
    return id_header([str(name) for name in sample.columns], id_column)


def id_header(columns: Sequence[str], id_column: str | None, label_names: Sequence[str] = ()) -> str:
    """`sample_id_column` from the names of the columns; where all labels have columns, the id's is another one."""
    if id_column is not None and id_column in columns:
        return id_column
    labels = label_names if set(label_names) < set(columns) else ()
    free = [name for name in columns if name not in labels]
    named = [name for name in free if name.lower() == "id"] or [name for name in free if name.endswith(_ID_ENDS)]
    first = free[0]
    if is_index_name(first) and named:  # else the unnamed index is what names the rows
        return named[0]
    return next((name for name in named if name.lower() == "id"), first)


def is_index_name(name: str) -> bool:
    """Whether a column is the index that pandas writes without a name."""
    return not name.strip() or re.fullmatch(r"Unnamed: \d+", name) is not None


def is_unique(values: pd.Series) -> bool:
    """Whether every cell is filled, and differs from all others."""
    cells = values.tolist()
    return not any(map(is_missing, cells)) and len(set(map(as_id, cells))) == len(cells)


def _is_text(values: pd.Series) -> bool:
    """Whether every filled cell is a text and at least one is no number."""
    filled = [value for value in values.tolist() if not is_missing(value)]
    return all(isinstance(value, str) for value in filled) and any(not is_number(value) for value in filled)
