"""Folds of a run that stands: trained in this process, or shared out to others."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from lora_cls.commands.costs import Costs
from lora_cls.data import TableLike
from lora_cls.data.table import write_frame
from lora_cls.data.tables import Tables
from lora_cls.evaluation import macro_f1, task_of
from lora_cls.execution.executor import Executor
from lora_cls.execution.pool import Pool
from lora_cls.files import remove, scratch_folder, write_array
from lora_cls.machine import peak_memory
from lora_cls.recipe import Recipe, load_recipe
from lora_cls.runs import FoldFolder, FoldInfo, RunFolder
from lora_cls.training.factory import ask_fold, make_learner
from lora_cls.training.learner import FoldResult, FoldTrainer, Learner
from lora_cls.training.processes import ALONE, Processes
from lora_cls.training.progress import Progress, fold_title
from lora_cls.training.teachers import Teachers

COMMAND = [sys.executable, "-m", "lora_cls.commands.fold_worker"]
"""Of the processes that train folds."""


def find_teachers(
    recipe: Recipe, tables: Tables, fold: np.ndarray, untrained: Sequence[int], noted: Mapping[str, Any] | None
) -> Teachers | None:
    """Whom the folds that are not trained yet learn from; None where nobody is asked any more.

    Parameters
    ----------
    noted : see `Teachers`
    """
    if recipe.distill is None or not untrained:
        return None
    return Teachers(recipe, tables, fold, untrained, partial(ask_fold, recipe.engine), noted)


def open_trainer(
    run: RunFolder,
    recipe: Recipe,
    tables: Tables,
    folds: Sequence[int],
    progress: Progress,
    processes: Processes = ALONE,
) -> tuple[Learner, FoldTrainer]:
    """Who trains folds of a run that stands, in another process than the one that started it.

    Parameters
    ----------
    folds : that may be asked for; those that are finished already are left out

    Raises
    ------
    RunError
        If recipe or tables are not those of the run.
    """
    run.check_resume(recipe, tables.fingerprints(), tables.train)
    choices = run.info.choices
    untrained = [number for number in folds if not run.fold(number).finished]
    teachers = find_teachers(recipe, tables, run.folds["fold"].to_numpy(np.int64), untrained, choices)
    learner = make_learner(recipe, tables.train.label_names, choices, run.base_place(), progress, processes)
    trainer = learner.prepare(tables.train, tables.test, teachers)
    trainer.adapt(tables.extra_texts)
    return learner, trainer


def train_fold(
    run: RunFolder,
    trainer: FoldTrainer,
    number: int,
    *,
    begun: Callable[[int], None] = lambda _: None,
    wait: Callable[[str], None] | None = None,
) -> float | None:
    """Train a fold, or go on with it, and write what it answers.

    Parameters
    ----------
    begun : told the fold's number, if it is trained
    wait : see `FoldFolder.training`

    Returns
    -------
    float or None
        Its untuned macro-F1; None where it was finished already.

    Raises
    ------
    RunError
        If another process trains it.
    """
    folder = run.fold(number)
    with folder.training(wait):
        if folder.finished:
            remove(folder.state)  # of a process that was killed as it finished the fold
            return None
        begun(number)
        result = fit_fold(run, trainer, number)
        complete_fold(folder, result)
    held_out = run.folds["fold"].to_numpy(np.int64) == number
    return macro_f1(run.y_true[held_out], task_of(run.recipe.task).untuned(result.oof_logits))


def fit_fold(run: RunFolder, trainer: FoldTrainer, number: int) -> FoldResult:
    """Train a fold on the rows of all others."""
    held_out = run.folds["fold"].to_numpy(np.int64) == number
    return trainer.fit_fold(number, np.flatnonzero(~held_out), np.flatnonzero(held_out), run.fold(number))


def train_beside(launch: Processes, given: Mapping[str, TableLike | None]) -> RunFolder:
    """What every process of a launch but the first one does: train the folds that that one trains, and write nothing.

    It opens the run folder that the first one has made, and so chooses and measures nothing itself.

    Parameters
    ----------
    given : the tables, by the names of `Tables`' parameters
    """
    job = launch.heard()
    recipe = load_recipe(job["recipe"], trust_remote_code=job["trust_remote_code"])
    run = RunFolder(job["run"], trust_remote_code=job["trust_remote_code"])
    tables = Tables(recipe, **given)
    if job["smoke"]:
        tables.smoke()
    with Progress(0, False) as progress:
        _, trainer = open_trainer(run, recipe, tables, job["folds"], progress, launch)
        while (number := launch.heard()) is not None:
            fit_fold(run, trainer, number)
    run.reread()
    return run


def complete_fold(folder: FoldFolder, result: FoldResult) -> None:
    """Write a fold's answers; `fold.json`, last, makes it a finished fold."""
    write_array(folder.oof_logits, result.oof_logits)
    if result.test_logits is not None:
        write_array(folder.test_logits, result.test_logits)
    rate = result.info["predict_pieces"] / max(result.info["seconds"]["predict"], 1e-9)
    info = FoldInfo(
        pos_weight=result.pos_weight.tolist(),
        **result.info,
        predict_rows_per_second=round(rate, 2),
        peak_memory_bytes=peak_memory(),
    )
    folder.write_info(info)
    remove(folder.state)


@dataclass(frozen=True)
class FoldWork:
    """What processes need to know to train folds of a run.

    Parameters
    ----------
    recipe : of this start; where files lie may differ from what the run folder holds
    given : the tables, by the names of `Tables`' parameters
    folds : that are to be trained by any of them
    """

    run: RunFolder
    recipe: Recipe
    given: Mapping[str, TableLike | None]
    folds: Sequence[int]

    def spread(self, executor: Executor, progress: Progress, costs: Costs) -> None:
        """Have the folds trained by processes; for what is raised see `Pool.run`."""
        run = self.run
        if self.recipe.backbone is not None:
            from lora_cls.training.batches import release_memory  # needs torch

            release_memory()  # of the model that was measured: it and its caches hold each other

        def done(number: int, macro_f1: float | None) -> None:
            run.reread()
            costs.note()
            if macro_f1 is not None:
                progress.fold_scored(run, number, macro_f1)

        def heard(number: int, where: str, message: dict[str, Any]) -> None:
            if "spent" in message:
                costs.add(where, **message["spent"])
            else:
                progress.heard(number, where, message)

        with ExitStack() as stack:
            job = {
                "folds": list(self.folds),
                "recipe": self.recipe.to_dict(),
                "run": str(run.path.absolute()),
                "tables": self._as_files(stack),
                "trust_remote_code": run.trust_remote_code,
            }
            progress.share_out(self.folds)
            Pool(
                executor, COMMAND, job, run.files.logs,
                title=fold_title, heard=heard, done=done, say=progress.say,
            ).run(self.folds)  # fmt: skip

    def _as_files(self, stack: ExitStack) -> dict[str, str | None]:
        """Where the tables lie; DataFrames are written down for as long as folds are trained."""
        places: dict[str, str | None] = {}
        for name, table in self.given.items():
            if isinstance(table, pd.DataFrame):
                scratch = stack.enter_context(scratch_folder(self.run.path))
                file = scratch.absolute() / f"{name}.parquet"
                write_frame(table, file)
                places[name] = str(file)
            else:
                places[name] = None if table is None else str(table)
        return places
