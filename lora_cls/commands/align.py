"""Several run folders as one table: the same rows, folds and labels, in one order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lora_cls.data.folds import held_apart
from lora_cls.errors import RunError, shorten
from lora_cls.evaluation import Decisions
from lora_cls.recipe import Prediction, Thresholds
from lora_cls.runs import RunFolder, read_json


@dataclass(frozen=True, eq=False)
class AlignedRun:
    """What one run says about the shared rows and labels, in their order.

    Attributes
    ----------
    name : short, and different for each run
    logits, y_score : ndarray of shape (n_samples, n_labels), out of fold; `y_score` are corrected probabilities
    weights : ndarray of shape (n_folds, n_labels), positive or class weights
    thresholds : of each fold, as the run's own score uses them, in the order of the shared labels; None where a single
        fold was scored, whose parts depend on the order of rows
    labels : ndarray of int of shape (n_labels,), where each shared label stands in the run's own order
    decisions, at_least_one : how the run decides, as its `thresholds.json` was last written
    """

    run: RunFolder
    name: str
    logits: np.ndarray
    y_score: np.ndarray
    weights: np.ndarray
    thresholds: dict[int, np.ndarray] | None
    labels: np.ndarray
    decisions: Decisions
    at_least_one: bool

    def cross_fitted(self, rows: Rows) -> np.ndarray:
        """Decisions by thresholds of the other folds or parts, ndarray of shape (n_samples, n_labels), int8."""
        if self.thresholds is None:
            return self.decisions.cross_fit(rows.y_true, self.y_score, rows.part, self.at_least_one).y_pred
        y_pred = np.empty(rows.y_true.shape, dtype=np.int8)
        for number, limits in self.thresholds.items():
            inside = rows.fold == number
            y_pred[inside] = self.decisions.apply(self.y_score[inside], limits, self.at_least_one)
        return y_pred


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows that all runs scored, in the order of the first run.

    Attributes
    ----------
    y_true : ndarray of shape (n_samples, n_labels), int8
    fold, part, groups : ndarray of shape (n_samples,), int64
        `part` is what thresholds, and whatever else is fitted to labels, are cross-fitted over: the folds, or parts of
        a single one.
    over : "folds" or "parts"
    """

    ids: list[str]
    y_true: np.ndarray
    fold: np.ndarray
    part: np.ndarray
    groups: np.ndarray
    over: str
    label_names: list[str]


def align(paths: Sequence[str | Path]) -> tuple[Rows, list[AlignedRun]]:
    """Read runs and bring their rows and labels into the order of the first.

    Raises
    ------
    RunError
        With everything that differs, one line each: task, labels, rows, their labels, folds, unfinished folds; or
        if a path is no run folder, is given twice, or holds a damaged file.
    """
    runs = [RunFolder(path) for path in paths]
    if len(runs) < 2:
        raise RunError(f"At least two runs are needed. Got {len(runs)} instead.")
    places = [run.path.resolve() for run in runs]
    twice = next((run.path for run, place in zip(runs, places, strict=True) if places.count(place) > 1), None)
    if twice is not None:
        raise RunError(f"{twice} is given twice.")
    problems: list[str] = []
    first, table = runs[0], _table(runs[0])
    names = first.label_names
    for run in runs:
        unfinished = len(run.fold_numbers) - len(run.finished_folds)
        if unfinished:
            problems.append(f"{run.path}: {unfinished} of {len(run.fold_numbers)} folds are unfinished; use --resume.")
    for run in runs[1:]:
        problems += _differences(run, _table(run), first, table)
    if problems:
        raise RunError(
            "These runs have no common rows and folds to be scored on:\n" + "\n".join(f"  {line}" for line in problems)
        )
    y_true, fold = table[names].to_numpy(np.int8), table["fold"].to_numpy(np.int64)
    groups = first.folds.set_index("id").loc[table.index, "group"].to_numpy(np.int64)
    if len(np.unique(groups)) < 2:
        raise RunError(
            f"{first.path}: the held-out rows are one row, or stay together as one; scores need two at least."
        )
    over, part = held_apart(fold, y_true, groups, first.recipe)
    rows = Rows(list(table.index), y_true, fold, part, groups, over, names)
    return rows, [_aligned(run, name, rows) for run, name in zip(runs, _short_names(runs), strict=True)]


def _table(run: RunFolder) -> pd.DataFrame:
    """Fold and labels of the rows that are held out once, by id."""
    folds = run.folds
    table = pd.DataFrame(run.y_true, columns=run.label_names, index=pd.Index(folds["id"], name="id"))
    table.insert(0, "fold", folds["fold"].to_numpy())
    return table[table["fold"] >= 0]


def _differences(run: RunFolder, table: pd.DataFrame, first: RunFolder, expected: pd.DataFrame) -> list[str]:
    task, wanted = (one.recipe.task or "multi_label" for one in (run, first))
    problems = []
    if task != wanted:
        problems.append(f"{run.path}: its task is {task}; that of {first.path} is {wanted}.")
    names, wanted_names = set(table.columns[1:]), set(expected.columns[1:])
    if names != wanted_names:
        only, lacking = sorted(names - wanted_names), sorted(wanted_names - names)
        told = [f"has {shorten(only)}"] * bool(only) + [f"lacks {shorten(lacking)}"] * bool(lacking)
        problems.append(f"{run.path}: labels differ from those of {first.path}: it {' and '.join(told)}.")
    extra, missing = (
        table.index.difference(expected.index, sort=False),
        expected.index.difference(table.index, sort=False),
    )
    if len(extra):
        problems.append(f"{run.path}: {len(extra)} of its rows are not in {first.path}: ids {shorten(extra, 5)}.")
    if len(missing):
        problems.append(f"{run.path}: {len(missing)} rows of {first.path} are missing: ids {shorten(missing, 5)}.")
    if problems:
        return problems
    table = table.loc[expected.index, expected.columns]
    labels = (table.iloc[:, 1:] != expected.iloc[:, 1:]).any(axis=1).to_numpy()
    if labels.any():
        ids = shorten(expected.index[labels], 5)
        problems.append(f"{run.path}: {labels.sum()} rows have other labels than in {first.path}: ids {ids}.")
    moved = (table["fold"] != expected["fold"]).to_numpy()
    if moved.any():
        numbers = [sorted(int(k) for k in t["fold"].unique()) for t in (table, expected)]
        row = expected.index[moved][0]
        problems.append(
            f"{run.path}: {moved.sum()} of {len(moved)} rows lie in other folds than in {first.path} "
            f"({len(numbers[0])} folds for {len(numbers[1])}; id {row} in fold {table.loc[row, 'fold']}, there in "
            f"{expected.loc[row, 'fold']}). Train on the same folds with --fold-table {first.path / 'folds.csv'}."
        )
    return problems


def _aligned(run: RunFolder, name: str, rows: Rows) -> AlignedRun:
    ids = run.folds["id"].tolist()
    found, logits = run.oof_logits()
    y_score = run.oof_proba()[1]
    place = {ids[row]: i for i, row in enumerate(found)}
    order = np.array([place[row] for row in rows.ids])
    labels = np.array([run.label_names.index(label) for label in rows.label_names])
    kept = read_json(run.path / "thresholds.json")
    thresholds = None
    if rows.over == "folds":
        by_fold = {number: kept["folds"][str(number)] for number in run.fold_numbers}
        thresholds = {k: np.array([of[name] for name in rows.label_names], float) for k, of in by_fold.items()}
    return AlignedRun(
        run=run,
        name=name,
        logits=logits[np.ix_(order, labels)],
        y_score=y_score[np.ix_(order, labels)],
        weights=run.pos_weights()[:, labels],
        thresholds=thresholds,
        labels=labels,
        decisions=run.decisions(Thresholds(**kept["settings"])),
        at_least_one=Prediction(**kept["prediction"]).at_least_one,
    )


def _short_names(runs: Sequence[RunFolder]) -> list[str]:
    """The folders' names, with as many parents as they need to differ."""
    paths = [run.path.resolve() for run in runs]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names
