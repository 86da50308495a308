"""Several run folders as one: the same rows, folds and labels, in the order of the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from lora_cls.errors import RunError, no_fold_finished, shorten
from lora_cls.evaluation import Task
from lora_cls.runs.folder import RunFolder
from lora_cls.runs.out_of_fold import OutOfFold
from lora_cls.runs.records import Decision


@dataclass(frozen=True, eq=False)
class AlignedRun:
    """What one run says about the rows and labels that all share, in the order of the first run.

    Attributes
    ----------
    name : short, and different for each run
    oof : the shared rows; ids, labels, folds, parts and groups are those of the first run
    y_pred : ndarray of shape (n_samples, n_labels), int8
        The decisions that the run's own score is of.
    labels : ndarray of shape (n_labels,), int64
        Where each shared label stands in the run's own order.
    decision, task : how the run decides, as its `thresholds.json` was last written
    """

    run: RunFolder
    name: str
    oof: OutOfFold
    y_pred: np.ndarray
    labels: np.ndarray
    decision: Decision
    task: Task

    @property
    def at_least_one(self) -> bool:
        return self.decision.prediction.at_least_one

    def test_scores(self) -> np.ndarray | None:
        """`RunFolder.test_scores`, of the shared labels."""
        scores = self.run.test_scores()
        return None if scores is None else scores[..., self.labels]


def align(paths: Sequence[str | Path | RunFolder]) -> list[AlignedRun]:
    """Read runs and bring their rows and labels into the order of the first.

    Raises
    ------
    RunError
        With everything that differs, one line each: task, labels, rows, their labels, folds, folds that only some have
        finished; or if a path is no run folder, is given twice, or holds a damaged file.
    """
    if isinstance(paths, (str, Path, RunFolder)):
        raise RunError(f"A list of runs is needed. Got {str(paths)!r} alone.")
    runs = [RunFolder.of(path) for path in paths]
    if len(runs) < 2:
        raise RunError(f"At least two runs are needed. Got {len(runs)} instead.")
    places = [run.path.resolve() for run in runs]
    twice = next((run.path for run, place in zip(runs, places, strict=True) if places.count(place) > 1), None)
    if twice is not None:
        raise RunError(f"{twice} is given twice.")
    problems: list[str] = []
    first, rows = runs[0], _HeldOut.of(runs[0])
    finished = set().union(*(run.finished_folds for run in runs))
    if not finished:
        raise no_fold_finished(first.path)
    problems += [  # the same folds may be unfinished in all, as in the trials of a search
        f"{run.path}: {len(lacking)} of {len(run.fold_numbers)} folds are unfinished that another run has "
        f"({shorten(lacking)}); use --resume."
        for run in runs
        if (lacking := sorted(finished - set(run.finished_folds)))
    ]
    for run in runs[1:]:
        problems += _differences(run, _HeldOut.of(run), first, rows)
    if problems:
        raise RunError(
            "These runs have no common rows and folds to be scored on:\n" + "\n".join(f"  {line}" for line in problems)
        )
    own = [run.out_of_fold() for run in runs]
    return [_aligned(*of_run, own[0]) for of_run in zip(runs, _short_names(runs), own, strict=True)]


@dataclass(frozen=True)
class _HeldOut:
    """The rows of a run that are held out once, by id: their labels, and their folds."""

    labels: pd.DataFrame
    fold: pd.Series

    @classmethod
    def of(cls, run: RunFolder) -> _HeldOut:
        held_out = (run.folds["fold"] >= 0).to_numpy()
        ids = pd.Index(run.folds["id"][held_out], name="id")
        labels = pd.DataFrame(run.y_true[held_out], columns=run.label_names, index=ids)
        return cls(labels, pd.Series(run.folds["fold"].to_numpy()[held_out], index=ids))


def _differences(run: RunFolder, rows: _HeldOut, first: RunFolder, expected: _HeldOut) -> list[str]:
    task, wanted = (one.task().name for one in (run, first))
    problems = []
    if task != wanted:
        problems.append(f"{run.path}: its task is {task}; that of {first.path} is {wanted}.")
    names, wanted_names = set(rows.labels.columns), set(expected.labels.columns)
    if names != wanted_names:
        only, lacking = sorted(names - wanted_names), sorted(wanted_names - names)
        told = [f"has {shorten(only)}"] * bool(only) + [f"lacks {shorten(lacking)}"] * bool(lacking)
        problems.append(f"{run.path}: labels differ from those of {first.path}: it {' and '.join(told)}.")
    ids, wanted_ids = rows.labels.index, expected.labels.index
    extra, missing = ids.difference(wanted_ids, sort=False), wanted_ids.difference(ids, sort=False)
    if len(extra):
        problems.append(f"{run.path}: {len(extra)} of its rows are not in {first.path}: ids {shorten(extra, 5)}.")
    if len(missing):
        problems.append(f"{run.path}: {len(missing)} rows of {first.path} are missing: ids {shorten(missing, 5)}.")
    if problems:
        return problems
    labels = (rows.labels.loc[wanted_ids, expected.labels.columns] != expected.labels).any(axis=1).to_numpy()
    if labels.any():
        other = shorten(wanted_ids[labels], 5)
        problems.append(f"{run.path}: {labels.sum()} rows have other labels than in {first.path}: ids {other}.")
    fold = rows.fold.loc[wanted_ids]
    moved = (fold != expected.fold).to_numpy()
    if moved.any():
        n_folds, n_wanted = (one.nunique() for one in (fold, expected.fold))
        row = wanted_ids[moved][0]
        problems.append(
            f"{run.path}: {moved.sum()} of {len(moved)} rows lie in other folds than in {first.path} "
            f"({n_folds} folds for {n_wanted}; id {row} in fold {fold[row]}, there in "
            f"{expected.fold[row]}). Train on the same folds with --fold-table {first.path / 'folds.csv'}."
        )
    return problems


def _aligned(run: RunFolder, name: str, oof: OutOfFold, shared: OutOfFold) -> AlignedRun:
    decision = run.decision()
    task = run.task(decision)
    place = {row: i for i, row in enumerate(oof.ids)}
    order = np.array([place[row] for row in shared.ids])
    labels = np.array([oof.label_names.index(label) for label in shared.label_names])
    of_run = oof.take(order, labels)
    y_pred = oof.decide(task, decision)[np.ix_(order, labels)]
    aligned = replace(shared, logits=of_run.logits, y_score=of_run.y_score, fitted_score=None)
    return AlignedRun(run, name, aligned, y_pred, labels, decision, task)


def _short_names(runs: Sequence[RunFolder]) -> list[str]:
    """The folders' names, with as many parents as they need to differ."""
    paths = [run.path.resolve() for run in runs]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names
