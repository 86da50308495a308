"""Cross-validation: folds to out-of-fold predictions to thresholds, in a run folder that can be resumed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from lora_cls.commands.costs import Costs
from lora_cls.commands.epochs import choose_epochs
from lora_cls.commands.fold_training import FoldWork, find_teachers, train_beside, train_fold
from lora_cls.commands.score import score_test
from lora_cls.commands.tune import score
from lora_cls.commands.workers import Workers, check_workers, make_executor, threads_of
from lora_cls.data import (
    TableLike,
    fold_notes,
)
from lora_cls.data.folds import check_rows, chosen_folds, make_folds
from lora_cls.data.summary import length_summary
from lora_cls.data.tables import Tables, table_name
from lora_cls.errors import RecipeError, RunError, visible
from lora_cls.machine import reset_peak_memory, surroundings
from lora_cls.recipe import Recipe, find_recipe, load_recipe
from lora_cls.report.page import write_reports
from lora_cls.runs import Labelled, RunFolder, RunInfo
from lora_cls.runs.records import DataInfo
from lora_cls.runs.start import find_start, noted_start
from lora_cls.training.factory import make_learner
from lora_cls.training.learner import Learner
from lora_cls.training.processes import processes_of_launch
from lora_cls.training.progress import Listener, Progress
from lora_cls.training.selection import check_selection
from lora_cls.training.teachers import Teachers
from lora_cls.training.tracking import check_tracking, tracked


def refuse_blend(recipe: Recipe) -> None:
    """Raise RecipeError for a recipe without anything to train."""
    if recipe.blend is not None:
        raise RecipeError(
            "This is the recipe of a blend, which has nothing to train: make one with lora-cls blend RUN RUN --out NEW."
        )


def _smoke_settings(recipe: Recipe) -> dict[str, Any]:
    """Overrides that keep a recipe's way and make it short; a prompt keeps the length that it was written for."""
    data = recipe.data
    prompted = recipe.head.prompt or recipe.head.kind != "linear"
    max_length = data.max_length if prompted else min(64, data.max_length)
    adapted = {"adapt.num_train_epochs": 1} if recipe.adapt is not None else {}
    return {
        **adapted,
        "cv.n_splits": 2,
        "train.num_train_epochs": 1,
        "data.max_length": max_length,
        "data.chunk_stride": min(data.chunk_stride, max_length // 4),
        "data.max_chunks": min(4, data.max_chunks or 4),
    }


def cross_validate(
    recipe: str | Path | Recipe,
    train: TableLike | None = None,
    test: TableLike | None = None,
    out: str | Path | None = None,
    *,
    sample_submission: TableLike | None = None,
    extra_train: TableLike | None = None,
    folds: Sequence[int] | None = None,
    fold_table: TableLike | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    smoke: bool = False,
    show: bool | None = None,
    listeners: Sequence[Listener] = (),
    trust_remote_code: bool = False,
    workers: Workers | None = None,
    executor: str = "local",
) -> RunFolder:
    """Run a recipe: train the folds, predict every training row out of fold, tune thresholds, score, predict the test.

    In a script that a launcher starts (`accelerate launch`, `torchrun`) all processes call this alike, and train each
    fold together; the first one writes.

    Parameters
    ----------
    recipe : path, name of a shipped recipe, or Recipe
    train, test, sample_submission, extra_train : files or DataFrames; those of the recipe where None
    out : the run folder; `runs/<recipe>` where None
    folds : numbers of the folds to run now; all where None
    fold_table : columns id and fold, instead of making folds
    overrides : `["lora.r=8", ...]`
    resume : continue an existing run folder
    overwrite : replace an existing run folder, once the new run can be started; a folder that holds anything but a run
        is refused
    smoke : go the whole way on a few rows, 2 folds and 1 epoch, in a folder of its own
    show : progress; where None, in notebooks and at a prompt
    listeners : told how the run goes on, each a `lora_cls.training.progress.Listener`
    trust_remote_code : let Python code that comes with the base model run; so does the recipe's field of this name,
        unless it is the recipe of a run folder
    workers : folds that other processes train at once; where None, one after the other in this process. The files are
        the same where the threads of each are
    executor : where those processes are started, see `lora_cls.commands.workers.make_executor`

    Returns
    -------
    RunFolder
        With `metrics.json`, `thresholds.json`, `oof_proba.csv` and, with test rows, `submission.csv`.

    Raises
    ------
    LoraClsError
        For anything the user can mend: the recipe, the data, the backbone, the folder.

    Examples
    --------
    >>> run = cross_validate("tfidf-logreg", train_df, test_df, "runs/new", overrides=["cv.n_splits=3"])
    >>> run, run.finished_folds
    (RunFolder('runs/new'), [0, 1, 2])
    >>> run.results().scores.rows_scored == len(train_df)  # each row by the model that did not train on it
    True
    """
    started = time.monotonic()
    given = {"train": train, "test": test, "sample": sample_submission, "extra": extra_train}
    launch = processes_of_launch()
    if not launch.main:
        return train_beside(launch, given)
    if resume and overwrite:
        raise RunError("--resume continues a run, and --overwrite replaces it: give one of them.")
    reset_peak_memory()
    name = find_recipe(recipe).stem if isinstance(recipe, (str, Path)) else "run"
    recipe = load_recipe(recipe, overrides, trust_remote_code=trust_remote_code or None)
    path = Path(out) if out is not None else Path("runs") / name
    refuse_blend(recipe)
    if smoke and recipe.distill is not None:
        raise RecipeError(
            "--smoke makes folds of its own, which no teacher was trained on. Leave the teachers out of it: --set "
            "distill=null"
        )
    check_workers(workers, executor)
    launch.check(recipe, alone=workers is None and executor == "local")
    tables = Tables(recipe, **given)
    recipe = tables.recipe
    fold_table = recipe.data.folds if fold_table is None else fold_table
    if smoke:
        tables.smoke()
        recipe = load_recipe(recipe, _smoke_settings(recipe))
        path = path.with_name(f"{path.name}-smoke-{datetime.now():%Y%m%d-%H%M%S}")
        fold_table, folds = None, None
    check_tracking(recipe, path)
    data = tables.train
    assert data.labels is not None
    resumed = resume and RunFolder.begun(path)
    if resumed:
        run = RunFolder(path, trust_remote_code=recipe.backbone is not None and recipe.backbone.trust_remote_code)
        run.check_resume(recipe, tables.fingerprints(), data)
        fold = run.folds["fold"].to_numpy(np.int64)
        if fold_table is not None and (make_folds(recipe, data, fold_table) != fold).any():
            raise RunError(f"{path} was started with other folds than those of {table_name(fold_table)}.")
    else:
        fold = make_folds(recipe, data, fold_table)
    wanted = chosen_folds(fold, folds)
    numbers = chosen_folds(fold)
    check_selection(recipe, data, fold)
    check_rows(data, fold)
    if not resumed:
        start = find_start(recipe, data, fold, wanted)
    elif not all(run.fold(number).finished for number in wanted):
        noted_start(recipe, run.info.choices)  # refuses another one before anything is loaded
    untrained = [number for number in wanted if not (resumed and run.fold(number).finished)]
    teachers = find_teachers(recipe, tables, fold, untrained, run.info.choices if resumed else None)
    if teachers is not None:
        teachers.refuse_within(path)
    processes = None if smoke else make_executor(recipe, workers, executor, len(untrained), path)
    if (threads := threads_of(processes, recipe)) is not None:
        recipe = load_recipe(recipe, {"engine.num_threads": threads})

    started_processes = nullcontext() if processes is None else closing(processes)
    with started_processes, Progress(0, show, listeners) as progress, tracked(recipe, progress):
        if smoke and (workers not in (None, 1) or executor != "local"):
            progress.say("--smoke tries the way out in this process alone, without --workers and --executor.")
        for note in [*tables.notes, *fold_notes(data.labels, fold, data.label_names, data.groups)]:
            progress.say(note)
        for note in teachers.notes if teachers is not None else []:
            progress.say(note)
        if not resumed:
            RunFolder.refuse_existing(path, overwrite)  # before minutes of loading
            for note in start.notes(tables.test) if start is not None else []:
                progress.say(note)
        choices = run.info.choices if resumed else start.choices if start is not None else None
        base_place = run.base_place() if resumed else None
        learner = make_learner(recipe, data.label_names, choices, base_place, progress, launch)
        trainer = learner.prepare(data, tables.test, teachers)
        trainer.adapt(tables.extra_texts)
        if not resumed:
            trainer.measure()
            info = _info(tables, learner, teachers)
            seen = None if start is None else start.seen_before(data.texts)
            tested, sample = tables.test, tables.sample
            run = RunFolder.create(path, recipe, data, fold, info, tested, sample, seen, overwrite=overwrite)
        costs = Costs(run, learner, started)
        for listener in progress.listeners:
            listener.run_started(run)
        launch.tell(
            {
                "run": str(path),
                "recipe": recipe.to_dict(),
                "trust_remote_code": run.trust_remote_code,
                "folds": untrained,
                "smoke": smoke,
            }
        )
        progress.expect(sum(not run.fold(number).finished for number in wanted))
        if processes is None or not untrained:
            for number in wanted:
                f1 = train_fold(run, trainer, number, begun=launch.tell)
                if f1 is not None:
                    costs.note()
                    progress.fold_scored(run, number, f1)
        else:
            del learner, trainer  # whose memory the processes need
            costs.hand_over()
            FoldWork(run, recipe, given, untrained).spread(processes, progress, costs)
        with run.writing(progress.say):
            run.reread()
            if recipe.train.select == "cross_fitted" and len(run.finished_folds) == len(numbers):
                choose_epochs(run)
            tuning = time.monotonic()
            results = score(run)
            costs.tune = time.monotonic() - tuning
            costs.note(last_session_seconds=round(time.monotonic() - started, 1))
            if tables.test is not None and tables.test_labels is not None:
                score_test(run, results, Labelled.of(tables.test, tables.test_labels), progress.say)
            write_reports(run, progress.say, results)
        for listener in progress.listeners:
            listener.run_done(run)
    launch.tell(None)
    return run


def _info(tables: Tables, learner: Learner, teachers: Teachers | None) -> RunInfo:
    train, columns = tables.train, tables.train.columns
    data = DataInfo(
        paths={name: None if path is None else visible(path) for name, path in tables.paths.items()},
        id_column=columns.id if columns else None,
        test_id_column=tables.id_name,
        text_columns=columns.text if columns else None,
        label_columns=columns.labels if columns else train.label_names,
        train_rows=int((~train.extra).sum()),
        extra_rows=int(train.extra.sum()),
        test_rows=len(tables.test) if tables.test else None,
        lengths=length_summary(train.texts),
        **tables.fingerprints(),
    )
    choices = learner.choices | (teachers.choices if teachers is not None else {})
    return RunInfo(**surroundings(), data=data, choices=choices, backbone_path=learner.backbone_path)
