"""Folds: which model scores which training row."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from lora_cls.choices import Over
from lora_cls.data.dataset import Dataset
from lora_cls.data.stratification import iterative_stratification
from lora_cls.data.table import TableLike, as_id, is_missing, problem_report, read_table, row_name
from lora_cls.errors import DataError, RecipeError, did_you_mean, shorten, shown
from lora_cls.evaluation import task_of
from lora_cls.recipe import Recipe, TaskName

PARTS = 5
"""Of a single fold's rows, across which thresholds are tuned."""

MOST_NOTES = 20
"""So many labels are noted one by one; more of them together."""


def stratified_folds(
    labels: np.ndarray, groups: np.ndarray, n_splits: int = 10, random_state: int = 42, *, task: TaskName | None = None
) -> np.ndarray:
    """Split rows into folds that all have about the same share of each label.

    Iterative stratification over groups: a group counts as one row with all its rows' labels, and stays whole. For
    `single_label` scikit-learn's `StratifiedKFold`, or `StratifiedGroupKFold` where a group has several rows.

    Parameters
    ----------
    labels : ndarray of shape (n_samples, n_labels)
        0 or 1. Rows without any label are spread evenly too.
    groups : ndarray of shape (n_samples,)
    n_splits : int
    random_state : int
        The same inputs give the same folds.
    task : the recipe's; rows of `single_label` must have one class each

    Returns
    -------
    ndarray of shape (n_samples,), int64
        The fold, from 0 to `n_splits - 1`, in which each row is held out.

    Raises
    ------
    DataError
        If there are fewer groups than folds, or if the shapes do not agree.

    Examples
    --------
    The first three rows have the same text, one group: they are held out together. Each fold gets half of every label.

    >>> labels = np.array([[1, 0], [0, 1]] * 6)
    >>> fold = stratified_folds(labels, groups=np.array([0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]), n_splits=2)
    >>> len(set(fold[:3].tolist()))
    1
    >>> [labels[fold == number].sum(axis=0).tolist() for number in (0, 1)]
    [[3, 3], [3, 3]]
    """
    labels, groups = np.asarray(labels), np.asarray(groups)
    if labels.ndim != 2 or groups.shape != labels.shape[:1]:
        raise DataError(
            "labels must be of shape (n_samples, n_labels) and groups of shape (n_samples,). "
            f"Got {labels.shape} and {groups.shape} instead."
        )
    if n_splits < 2:
        raise DataError(f"cv.n_splits must be at least 2. Got {n_splits} instead.")
    names, group_of = np.unique(groups, return_inverse=True)
    group_of = group_of.reshape(-1)
    if len(names) < n_splits:
        raise DataError(
            f"{len(names)} groups of rows cannot fill {n_splits} folds (identical texts, and rows with the same value "
            f"of data.group_column, are one group). Set cv.n_splits to {len(names)} or less, or add rows."
        )
    if task_of(task).exclusive:
        return _folds_of_classes(labels.argmax(axis=1), group_of, n_splits, random_state)
    of_group = np.zeros((len(names), labels.shape[1]), dtype=np.int8)
    np.maximum.at(of_group, group_of, labels.astype(np.int8))
    # "No label" is stratified as a label of its own, or such rows would only fill the gaps that the others leave.
    target = np.column_stack([of_group, ~of_group.any(axis=1)])
    return iterative_stratification(target, n_splits, random_state)[group_of]


def most_folds(labels: np.ndarray, groups: np.ndarray, task: TaskName | None) -> tuple[int, str]:
    """How many folds `stratified_folds` can make of rows, and of what there are only so many."""
    n_groups = len(np.unique(groups)), "groups of rows"
    if not task_of(task).exclusive or not len(labels):
        return n_groups
    return min(n_groups, (int(labels.sum(axis=0, dtype=np.int64).max()), "rows of its most frequent class"))


def _folds_of_classes(y: np.ndarray, group_of: np.ndarray, n_splits: int, random_state: int) -> np.ndarray:
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    if np.bincount(y).max() < n_splits:
        raise DataError(
            f"no class has {n_splits} rows (the most frequent one has {np.bincount(y).max()}): folds cannot be "
            f"stratified. Set cv.n_splits to {np.bincount(y).max()} or less, or add rows."
        )
    alone = len(np.unique(group_of)) == len(y)
    splitter = (StratifiedKFold if alone else StratifiedGroupKFold)(n_splits, shuffle=True, random_state=random_state)
    fold = np.full(len(y), -1, dtype=np.int64)
    with warnings.catch_warnings():  # of a class with fewer rows than folds: `fold_notes` names it
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        for number, (_, held_out) in enumerate(splitter.split(y, y, None if alone else group_of)):
            fold[held_out] = number
    empty = sorted(set(range(n_splits)) - set(fold.tolist()))
    if empty:
        raise DataError(
            f"the groups of rows are too few and too large to fill {n_splits} folds with every class: fold "
            f"{shorten(empty)} stays empty. Lower cv.n_splits."
        )
    return fold


def fold_notes(
    labels: np.ndarray, fold: np.ndarray, label_names: Sequence[str], groups: np.ndarray | None = None
) -> list[str]:
    """What the user should know about folds.

    Parameters
    ----------
    labels : ndarray of shape (n_samples, n_labels)
    fold : ndarray of shape (n_samples,)
        Rows of fold -1 are trained on with every fold.
    label_names : length n_labels
    groups : ndarray of shape (n_samples,), optional
        Given, a group that is split over folds is noted.

    Returns
    -------
    list of str
        On labels with fewer positives than folds, labels without a positive in some fold, and split groups.
    """
    labels, fold = np.asarray(labels), np.asarray(fold)
    folds = np.unique(fold[fold >= 0])
    notes = []
    positives = np.stack([labels[fold == k].sum(axis=0, dtype=np.int64) for k in folds])
    rare = []
    for j, (name, count, per_fold) in enumerate(zip(label_names, positives.sum(axis=0), positives.T, strict=True)):
        absent = folds[per_fold == 0]
        if len(folds) == 1:
            if not count:
                notes.append(f"label '{name}' has no positive row among the held-out rows: its F1 can only be 0.")
            elif not labels[fold < 0, j].any():
                notes.append(f"label '{name}' has no positive row to train on.")
        elif count < len(folds):
            rare.append(name)
            notes.append(
                f"label '{name}' has {count} positive rows for {len(folds)} folds: {len(absent)} folds hold none out, "
                "and its scores are uncertain."
            )
        elif len(absent):
            notes.append(f"label '{name}' has no positive row in fold {shorten(absent)}.")
    if len(notes) > MOST_NOTES:
        notes = [
            f"{len(rare)} of {len(label_names)} labels have fewer positive rows than the {len(folds)} folds, so that "
            f"their scores are uncertain: {shorten(rare)}."
            if len(folds) > 1
            else f"{len(notes)} of {len(label_names)} labels have no positive row on one side of the split."
        ]
    if groups is not None:
        pairs = np.unique(np.column_stack([np.asarray(groups), fold]), axis=0)
        split = int((np.unique(pairs[:, 0], return_counts=True)[1] > 1).sum())
        if split:
            notes.append(
                f"{split} group{'s are' if split > 1 else ' is'} split over folds (identical texts or one value of the "
                "group column): scores will look better than they are."
            )
    return notes


def read_folds(
    source: TableLike,
    ids: Sequence[str],
    id_column: str | None = None,
    *,
    extra: np.ndarray | None = None,
    sampled: bool = False,
) -> np.ndarray:
    """Read folds from a table of id and fold.

    Parameters
    ----------
    source : path or DataFrame
        With a column `fold` and a column `id` (or `id_column`); exactly the training ids, in any order. Fold -1 is for
        rows that are only trained on.
    ids : length n_samples
    id_column : str or None
        Null, or a name that the table lacks or that `folds.csv` uses, takes the column `id`.
    extra : ndarray of shape (n_samples,), bool
        Rows that the table may leave out, and must not hold out.
    sampled : bool
        The table may hold more ids than `ids`.

    Returns
    -------
    ndarray of shape (n_samples,), int64
        In the order of `ids`.

    Raises
    ------
    DataError
        With all problems, one line each.
    """
    frame = read_table(source, name="the table of folds")
    where = str(frame.attrs["source"])
    # `fold`, and `group` beside `id`, are columns of ours, as `folds.csv` has them, whatever the ids are called
    ours = ("fold", "group") if "id" in frame.columns else ("fold",)
    id_name = id_column if id_column is not None and id_column in frame.columns and id_column not in ours else "id"
    absent = [name for name in (id_name, "fold") if name not in frame.columns]
    if absent:
        raise problem_report(
            where,
            [
                f"no column '{name}'.{did_you_mean(name, frame.columns)} Columns: {shorten(frame.columns)}."
                for name in absent
            ],
        )
    problems: list[str] = []
    fold_of: dict[str, int] = {}
    for i, (row_id, value) in enumerate(zip(frame[id_name].tolist(), frame["fold"].tolist(), strict=True)):
        name, number = "" if is_missing(row_id) else as_id(row_id), _fold_number(value)
        if not name:
            problems.append(f"{row_name(frame, i)}: no id.")
        elif name in fold_of:
            problems.append(f"{row_name(frame, i)}: id '{name}' stands more than once.")
        if number is None:
            problems.append(
                f"{row_name(frame, i)}: fold must be an integer from 0, or -1 (only trained on). Got {shown(value)} "
                "instead."
            )
        fold_of[name] = -1 if number is None else number
    if len(problems) > 10:
        problems = [*problems[:10], f"and {len(problems) - 10} more such rows."]
    optional = set() if extra is None else {name for name, is_extra in zip(ids, extra, strict=True) if is_extra}
    problems += _coverage_problems(fold_of, ids, optional, sampled)
    if problems:
        raise problem_report(where, problems)
    return np.array([fold_of.get(name, -1) for name in ids], dtype=np.int64)


def _fold_number(value: object) -> int | None:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return int(number) if number.is_integer() and number >= -1 else None


def _coverage_problems(fold_of: dict[str, int], ids: Sequence[str], optional: set[str], sampled: bool) -> list[str]:
    known = set(ids)
    missing = [name for name in ids if name not in fold_of and name not in optional]
    extra = [] if sampled else [name for name in fold_of if name and name not in known]
    scored = [name for name in ids if name in optional and fold_of.get(name, -1) >= 0]
    problems = []
    if missing:
        problems.append(f"{len(missing)} training ids have no fold: {shorten(missing)}.")
    if extra:
        problems.append(f"{len(extra)} ids are not in the training table: {shorten(extra)}. Remove these rows.")
    if scored:
        problems.append(f"{len(scored)} extra rows have a fold, but are never held out: {shorten(scored)}. Write -1.")
    used = {fold for fold in fold_of.values() if fold >= 0}
    only_trained = any(fold_of.get(name) == -1 for name in ids if name not in optional)
    if len(used) < 2 - only_trained:
        problems.append(
            "at least two folds are needed, or one and rows of fold -1 to train on. "
            f"Got {shorten(sorted(used)) or 'none'} instead."
        )
    elif len(used) <= max(used):
        gaps = [fold for fold in range(min(max(used), 1000)) if fold not in used]
        problems.append(
            f"folds are numbered from 0 without gaps, up to {max(used)} here: no row has fold {shorten(gaps)}."
        )
    return problems


def make_folds(recipe: Recipe, data: Dataset, fold_table: TableLike | None = None) -> np.ndarray:
    """The fold of every training row, ndarray of shape (n_samples,), int64: read from a table, by the split column, or
    stratified. Rows that are only trained on have fold -1."""
    assert data.labels is not None
    if fold_table is not None:
        if data.held_out is not None:
            raise RecipeError("A table of folds and data.split_column both say which rows are held out: give one.")
        id_name, sampled = data.columns.id if data.columns else None, recipe.data.max_rows is not None
        return read_folds(fold_table, data.ids, id_name, extra=data.extra, sampled=sampled)
    if data.held_out is not None:
        return np.where(data.held_out, 0, -1).astype(np.int64)
    own = ~data.extra
    fold = np.full(len(data), -1, dtype=np.int64)
    fold[own] = stratified_folds(
        data.labels[own], data.groups[own], recipe.cv.n_splits, recipe.cv.random_state, task=recipe.task
    )
    return fold


def chosen_folds(fold: np.ndarray, folds: Sequence[int] | None = None) -> list[int]:
    """The folds that are asked for, or all that hold rows out. Raises RecipeError for one that there is not."""
    numbers = sorted({int(f) for f in fold if f >= 0})
    unknown = sorted(set(folds or ()) - set(numbers))
    if unknown:
        raise RecipeError(
            f"--folds: there is no fold {unknown[0]}; this run has the folds {numbers[0]} to {numbers[-1]}."
        )
    return numbers if folds is None else list(dict.fromkeys(folds))


def check_rows(data: Dataset, fold: np.ndarray) -> None:
    """Refuse folds of which nothing can be scored, or from which nothing can be learnt."""
    if len(np.unique(data.groups[fold >= 0])) < 2:
        raise DataError(
            f"{data.source}: the held-out rows are one row, or stay together as one (identical texts, or one value of "
            "data.group_column). Scores need two at least."
        )
    if data.row_weight is None:
        return
    for number in np.unique(fold[fold >= 0]).tolist():
        if not data.row_weight[fold != number].any():
            raise DataError(
                f"{data.source}: all rows that fold {number} is trained on weigh 0 in data.weight_column "
                f"'{data.columns.weight if data.columns else None}'."
            )


def held_apart(fold: np.ndarray, y_true: np.ndarray, groups: np.ndarray, recipe: Recipe) -> tuple[Over, np.ndarray]:
    """What thresholds are tuned across, and where each scored row lies in it, ndarray of shape (n_rows,), int64.

    Folds; or, where all rows are of one fold, five stratified parts of them. Iterative stratification for classes too:
    it divides any rows, however few of a class were held out.
    """
    if len(np.unique(fold)) > 1:
        return "folds", fold
    return "parts", stratified_folds(y_true, groups, min(PARTS, len(np.unique(groups))), recipe.cv.random_state)
