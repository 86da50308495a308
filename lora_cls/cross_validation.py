"""Cross-validation: folds to out-of-fold predictions to thresholds, in a run folder that can be resumed."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd

from lora_cls.analysis.tune import tune
from lora_cls.data import (
    Dataset,
    fold_notes,
    load_test,
    load_train,
    read_folds,
    read_sample_submission,
    read_table,
    stratified_folds,
    stratified_subsample,
    table_path,
    text_key,
)
from lora_cls.data import Source as Table
from lora_cls.data.columns import sample_id_column
from lora_cls.data.summary import length_summary
from lora_cls.data.table import as_id
from lora_cls.errors import DataError, RecipeError, RunError
from lora_cls.evaluation import decisions_for, macro_f1
from lora_cls.files import whole_folder, write_array, write_bytes, write_json
from lora_cls.machine import peak_memory, surroundings
from lora_cls.recipe import Recipe, find_recipe, load_recipe
from lora_cls.report.page import write_reports
from lora_cls.runs import FoldFolder, RunFolder, read_array, read_json
from lora_cls.training.learner import FoldResult, Learner, make_learner
from lora_cls.training.progress import Progress
from lora_cls.training.selection import check_selection

SMOKE_ROWS, SMOKE_TEST_ROWS, SMOKE_EXTRA_ROWS = 96, 32, 16


class Tables:
    """The data of a run: training rows, test rows where given, and the sample submission; and the recipe with the task
    that the label columns say."""

    def __init__(
        self,
        recipe: Recipe,
        train: Table | None = None,
        test: Table | None = None,
        sample: Table | None = None,
        extra: Table | None = None,
    ) -> None:
        data = recipe.data
        if train is not None and (data.train or "").startswith("sample:"):
            # the test rows of the package's sample do not belong to the user's own training rows
            data = data.model_copy(update={"test": None, "sample_submission": None})
        train = data.train if train is None else train
        test = data.test if test is None else test
        sample = data.sample_submission if sample is None else sample
        if train is None:
            raise RecipeError("No training data: give --train FILE, or data.train in the recipe.")
        extra = data.extra_train if extra is None else extra
        self.paths = {
            "train": _name(train),
            "test": _name(test),
            "sample_submission": _name(sample),
            "extra_train": _name(extra),
        }
        self.sample = None if sample is None else read_table(sample)
        test = None if test is None else read_table(test, name="the test DataFrame")
        self.train: Dataset = load_train(data, train, test, self.sample, recipe.task, extra)
        self.recipe = resolved_recipe(recipe, self.train)
        self._sample_note = self._keep_sample(data.max_rows, recipe.cv.random_state)
        self.test: Dataset | None = None if test is None else load_test(data, test, train_columns=self.train.columns)
        if self.test is not None and self.sample is not None:
            read_sample_submission(
                self.sample, self.test.ids, self.train.label_names, self.id_name, task=self.recipe.task,
                delimiter=data.label_delimiter,
            )  # fmt: skip

    @property
    def id_name(self) -> str | None:
        """Name of the test table's id column (of the training table's without a test)."""
        columns = self.test.columns if self.test is not None else self.train.columns
        return columns.id if columns else None

    @property
    def notes(self) -> list[str]:
        """What the user should know before anything runs."""
        train = self.train
        n_rows = int((~train.extra).sum())
        found = [f"{n_rows} training rows, {len(self.test) if self.test else 'no'} test rows"]
        found += [train.columns.how] if train.columns else []
        found += [*train.notes, *(self.test.notes if self.test else []), *self._sample_note]
        if train.row_weight is not None:
            weight = train.row_weight
            found.append(
                f"row weights: {weight.min():g} to {weight.max():g}, mean {weight.mean():.4g}, "
                f"{int((weight == 0).sum())} of {len(weight)} rows weigh 0 (in the loss they are scaled to a mean of 1)"
            )
        if self.test is not None and train.extra.any():
            known = {text_key(text) for text in self.test.texts}
            shared = sum(text_key(train.texts[i]) in known for i in np.flatnonzero(train.extra))
            if shared:
                found.append(f"of the extra rows {shared} also stand in the test table, as pseudo-labels do")
        return found

    def _keep_sample(self, max_rows: int | None, random_state: int) -> list[str]:
        """`data.max_rows`; says what it left. Extra rows stay, and so does each part's share of a split."""
        own, held_out = np.flatnonzero(~self.train.extra), self.train.held_out
        if max_rows is None or len(own) <= max_rows:
            return []
        assert self.train.labels is not None
        parts = [own] if held_out is None else [own[held_out[own]], own[~held_out[own]]]
        rows = [np.flatnonzero(self.train.extra)]
        for part in parts:
            share = max(1, len(part) * max_rows // len(own))
            labels, groups = self.train.labels[part], self.train.groups[part]
            rows.append(part[stratified_subsample(labels, groups, share, random_state)])
        self.train = self.train.subset(np.sort(np.concatenate(rows)))
        kept = int((~self.train.extra).sum())
        note = f"{kept} of {len(own)} training rows are used, a stratified sample (data.max_rows {max_rows})"
        return [note if self.train.held_out is None else f"{note}; {int(self.train.held_out.sum())} are held out"]

    def fingerprints(self) -> dict[str, Any]:
        extra = self.train.extra
        return {
            "train_sha256": self.train.subset(~extra).fingerprint(),
            "extra_train_sha256": self.train.subset(extra).fingerprint() if extra.any() else None,
            "test_sha256": self.test.fingerprint() if self.test else None,
            "sample_submission_sha256": None if self.sample is None else _fingerprint(self.sample),
        }

    def smoke(self) -> None:
        """Keep a few rows, some of every label, and of every part of a split."""
        labels, own = self.train.labels, np.flatnonzero(~self.train.extra)
        assert labels is not None
        rng = np.random.default_rng(0)
        of_each = max(2, min(6, SMOKE_ROWS // labels.shape[1]))
        held_out = self.train.held_out
        rows: list[int] = []
        for part in [] if held_out is None else [held_out[own], ~held_out[own]]:
            rows += rng.permutation(own[part])[: SMOKE_ROWS // 4].tolist()
        for column in labels[own].T:
            rows += rng.permutation(own[column > 0])[:of_each].tolist()
        rows += rng.permutation(own).tolist()
        extra = np.flatnonzero(self.train.extra)[:SMOKE_EXTRA_ROWS].tolist()
        self.train = self.train.subset([*sorted(list(dict.fromkeys(rows))[:SMOKE_ROWS]), *extra])
        if self.test is not None:
            self.test = self.test.subset(np.arange(min(SMOKE_TEST_ROWS, len(self.test))))
        if self.sample is not None and self.test is not None:
            id_name = sample_id_column(self.sample, self.id_name)
            self.sample = self.sample[self.sample[id_name].map(as_id).isin(self.test.ids)].reset_index(drop=True)


def refuse_blend(recipe: Recipe) -> None:
    """Raise RecipeError for a recipe without anything to train."""
    if recipe.blend is not None:
        raise RecipeError(
            "This is the recipe of a blend, which has nothing to train: make one with lora-cls blend RUN RUN --out NEW."
        )


def _smoke_settings(recipe: Recipe) -> dict[str, Any]:
    """Overrides that keep a recipe's way and make it short; a prompt keeps the length that it was written for."""
    data = recipe.data
    max_length = data.max_length if recipe.head.prompt or recipe.head.kind != "linear" else min(64, data.max_length)
    return {
        "cv.n_splits": 2,
        "train.num_train_epochs": 1,
        "data.max_length": max_length,
        "data.chunk_stride": min(data.chunk_stride, max_length // 4),
        "data.max_chunks": min(4, data.max_chunks or 4),
    }


def resolved_recipe(recipe: Recipe, train: Dataset) -> Recipe:
    """The recipe with its task set.

    Raises
    ------
    RecipeError
        If the task that the label columns say contradicts other fields.
    """
    if recipe.task is not None or train.columns is None:
        return recipe
    return load_recipe(recipe, {"task": train.columns.task})


def _fingerprint(table: pd.DataFrame) -> str:
    return hashlib.sha256(table.to_csv(index=False, lineterminator="\n").encode()).hexdigest()


def _name(table: Table | None) -> str | None:
    return None if table is None else "DataFrame" if isinstance(table, pd.DataFrame) else str(table)


def cross_validate(
    recipe: str | Path | Recipe,
    train: Table | None = None,
    test: Table | None = None,
    out: str | Path | None = None,
    *,
    sample_submission: Table | None = None,
    extra_train: Table | None = None,
    folds: Sequence[int] | None = None,
    fold_table: Table | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    smoke: bool = False,
    show: bool = False,
) -> RunFolder:
    """Run a recipe: train the folds, predict every training row out of fold, tune thresholds, score, predict the test.

    Parameters
    ----------
    recipe : path, name of a shipped recipe, or Recipe
    train, test, sample_submission, extra_train : files or DataFrames; those of the recipe where None
    out : the run folder; `runs/<recipe>` where None
    folds : numbers of the folds to run now; all where None
    fold_table : columns id and fold, instead of making folds
    overrides : `["lora.r=8", ...]`
    resume : continue an existing run folder
    smoke : go the whole way on a few rows, 2 folds and 1 epoch, in a folder of its own
    show : progress on stderr

    Returns
    -------
    RunFolder
        With `metrics.json`, `thresholds.json`, `oof_proba.csv` and, with test rows, `submission.csv`.

    Raises
    ------
    LoraClsError
        For anything the user can mend: the recipe, the data, the backbone, the folder.
    """
    started = time.monotonic()
    name = find_recipe(recipe).stem if isinstance(recipe, (str, Path)) else "run"
    recipe = load_recipe(recipe, overrides)
    path = Path(out) if out is not None else Path("runs") / name
    refuse_blend(recipe)
    tables = Tables(recipe, train, test, sample_submission, extra_train)
    recipe = tables.recipe
    fold_table = recipe.data.folds if fold_table is None else fold_table
    if smoke:
        tables.smoke()
        recipe = load_recipe(recipe, _smoke_settings(recipe))
        path = path.with_name(f"{path.name}-smoke-{datetime.now():%Y%m%d-%H%M%S}")
        fold_table, folds = None, None
    data = tables.train
    assert data.labels is not None
    resumed = resume and RunFolder.begun(path)
    if resumed:
        run = RunFolder(path)
        run.check_resume(recipe, tables.fingerprints())
        fold = run.folds["fold"].to_numpy(np.int64)
        if fold_table is not None and (make_folds(recipe, data, fold_table) != fold).any():
            raise RunError(f"{path} was started with other folds than those of {_name(fold_table)}.")
    else:
        fold = make_folds(recipe, data, fold_table)
    wanted = chosen_folds(fold, folds)
    numbers = chosen_folds(fold)
    check_selection(recipe, data, fold)
    _check_rows(data, fold)

    with Progress(0, show) as progress:
        for note in [*tables.notes, *fold_notes(data.labels, fold, data.label_names, data.groups)]:
            progress.say(note)
        if not resumed:
            RunFolder.refuse_existing(path)  # before minutes of loading
        choices = run.info.get("choices") if resumed else None
        learner = make_learner(recipe, data.label_names, data, tables.test, choices, None, progress)
        if not resumed:
            learner.prepare()
            info = _info(tables) | {"choices": learner.choices, "backbone_path": learner.backbone_path}
            run = RunFolder.create(path, recipe, data, fold, info, tables.test, tables.sample)
        spent = _Session(run, learner, started)
        todo = [k for k in wanted if not run.fold(k).finished]
        progress.expect(len(todo))
        for number in todo:
            folder = run.fold(number)
            result = learner.fit_fold(number, np.flatnonzero(fold != number), np.flatnonzero(fold == number), folder)
            _complete(folder, result)
            _account(run, spent)
            score = macro_f1(data.labels[fold == number], decisions_for(recipe.task).untuned(result.oof_logits))
            optimistic = " (OPTIMISTIC)" if recipe.train.select == "scored_fold" else ""
            progress.fold_done(f"fold {number}", f"macro-F1 {score:.4f} untuned{optimistic}")
        if recipe.train.select == "cross_fitted" and len(run.finished_folds) == len(numbers):
            choose_epochs(run)
        tuning = time.monotonic()
        metrics = tune(run)
        spent.tune = time.monotonic() - tuning
        _account(run, spent)
        run.update_info(last_session_seconds=round(time.monotonic() - started, 1))
        write_reports(run, metrics, progress.say)
    return run


def refit(
    run: RunFolder, train: Table | None = None, *, extra_train: Table | None = None, show: bool = False
) -> FoldFolder:
    """Train one model on all rows, for those who ship one. It has no out-of-fold score of its own.

    Parameters
    ----------
    train, extra_train : the run's training data; where None, the files that the run was started with

    Raises
    ------
    RunError
        If the data is not the run's.
    """
    if run.exported:
        raise RunError(f"{run.path} is an export: refit the run that it was made from.")
    refuse_blend(run.recipe)
    info, recipe, data = run.info, run.recipe, training_data(run, train, extra_train)
    with Progress(1, show) as progress:
        if run.refit.finished:
            progress.say(f"{run.refit.path} is finished already.")
            return run.refit
        chosen = [read_json(run.fold(number).info).get("epoch") for number in run.finished_folds]
        n_epochs = None  # all epochs; or as many as the folds kept where they chose
        if recipe.train.select != "last" and chosen:
            n_epochs = round(median(chosen))
            progress.say(f"Training for {n_epochs} epochs, the median of those that the folds chose.")
        learner = make_learner(recipe, run.label_names, data, None, info["choices"], None, progress)
        rows = np.arange(len(data))  # extra rows too
        _complete(run.refit, learner.fit_fold(-1, rows, rows[:0], run.refit, n_epochs))
        progress.fold_done("all rows", "done")
    return run.refit


def training_data(run: RunFolder, train: Table | None = None, extra_train: Table | None = None) -> Dataset:
    """The rows that a run was trained on, extra rows too, read again as it read them.

    Parameters
    ----------
    train, extra_train : where None, the files that the run was started with

    Raises
    ------
    RunError
        If the data is not the run's.
    DataError
        If the table cannot be read.
    """
    info = run.info
    path = _found_again(run, "train", train, "training data")
    extra = _found_again(run, "extra_train", extra_train, "data of extra rows")
    # Decided when the run was started, and not again without its test file.
    decided = {
        "data.label_columns": info["data"]["label_columns"],
        "data.text_columns": info["data"]["text_columns"],
        "data.test": None,
        "data.sample_submission": None,
        "data.extra_train": None,
    }
    tables = Tables(load_recipe(run.recipe, decided), path, extra=extra)
    found = tables.fingerprints()
    for key, table in (("train_sha256", path), ("extra_train_sha256", extra)):
        if found[key] != info["data"].get(key):
            raise RunError(f"{_name(table)} is not the data that {run.path} was trained on.")
    return tables.train


def _found_again(run: RunFolder, key: str, given: Table | None, what: str) -> Table | None:
    """A table of a run: the one given, or the file that the run was started with."""
    path = given if given is not None else run.info["data"]["paths"].get(key)
    if isinstance(path, str) and (path == "DataFrame" or not table_path(path).is_file()):
        raise RunError(f"The {what} of {run.path} was {path}: give it again with --{key.replace('_', '-')}.")
    return path


def choose_epochs(run: RunFolder) -> None:
    """`select: cross_fitted`: each fold takes the epoch that is best on the other folds' rows.

    The other folds' curves never saw this fold's rows scored, so the choice does not flatter its score. Every epoch's
    macro-F1 is taken at thresholds tuned on those same rows, for each epoch alike.
    """
    numbers, epochs = run.fold_numbers, range(1, run.recipe.train.num_train_epochs + 1)
    chosen = {number: _chosen(run.fold(number)) for number in numbers}
    if not all(chosen.values()):
        fold, y_true, weights = run.folds["fold"].to_numpy(), run.y_true, run.pos_weights()
        decisions = run.decisions()
        by_epoch = np.zeros((len(epochs), *y_true.shape))
        for number, weight in zip(numbers, weights, strict=True):
            folder, shape = run.fold(number), (int((fold == number).sum()), y_true.shape[1])
            if not chosen[number]:  # small, and kept: a fold that is trained again is chosen by the others' curves
                logits = np.array([read_array(folder.epoch(epoch).oof_logits, shape) for epoch in epochs])
                write_array(folder.epoch_logits, logits)
            logits = read_array(folder.epoch_logits, (len(epochs), *shape))
            by_epoch[:, fold == number] = decisions.probabilities(logits, weight)
        for number in numbers:
            if not chosen[number]:
                others = (fold != number) & (fold >= 0)
                truth = y_true[others]
                scores = [
                    macro_f1(truth, decisions.apply(s[others], decisions.tune(truth, s[others]))) for s in by_epoch
                ]
                best = epochs[int(np.argmax(scores))]
                _take_epoch(run.fold(number), best, [round(score, 6) for score in scores])
    for number in numbers:  # only now: a stop in between chooses again from the same files
        for epoch in epochs:
            shutil.rmtree(run.fold(number).epoch(epoch).path, ignore_errors=True)


def _chosen(folder: FoldFolder) -> bool:
    return "other_folds_macro_f1" in read_json(folder.info)


def _take_epoch(folder: FoldFolder, epoch: int, scores: list[float]) -> None:
    kept = folder.epoch(epoch)
    write_array(folder.oof_logits, np.load(kept.oof_logits, allow_pickle=False))
    if kept.test_logits.is_file():
        write_array(folder.test_logits, np.load(kept.test_logits, allow_pickle=False))
    if kept.answers.is_file():
        write_bytes(folder.answers, kept.answers.read_bytes())
    for source, target in ((kept.adapter, folder.adapter), (kept.model, folder.model)):
        if source.is_dir():
            with whole_folder(target, replace=True) as scratch:
                shutil.copytree(source, scratch, dirs_exist_ok=True)
    chosen = {"epoch": epoch, "other_folds_macro_f1": scores} | folder.answer_counts()
    write_json(folder.info, read_json(folder.info) | chosen)


def make_folds(recipe: Recipe, data: Dataset, fold_table: Table | None = None) -> np.ndarray:
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


def _check_rows(data: Dataset, fold: np.ndarray) -> None:
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


def _complete(folder: FoldFolder, result: FoldResult) -> None:
    """Write a fold's answers; `fold.json`, last, makes it a finished fold."""
    write_array(folder.oof_logits, result.oof_logits)
    if result.test_logits is not None:
        write_array(folder.test_logits, result.test_logits)
    info = {"pos_weight": result.pos_weight.tolist()} | result.info
    info["predict_rows_per_second"] = round(info["predict_pieces"] / max(info["seconds"]["predict"], 1e-9), 2)
    info["peak_memory_bytes"] = peak_memory()
    write_json(folder.info, info | folder.answer_counts())
    folder.state.unlink(missing_ok=True)


def _info(tables: Tables) -> dict[str, Any]:
    columns = tables.train.columns
    return surroundings() | {
        "data": {
            "paths": tables.paths,
            "id_column": columns.id if columns else None,
            "test_id_column": tables.id_name,
            "text_columns": columns.text if columns else None,
            "label_columns": columns.labels if columns else tables.train.label_names,
            "train_rows": int((~tables.train.extra).sum()),
            "extra_rows": int(tables.train.extra.sum()),
            "test_rows": len(tables.test) if tables.test else None,
            "lengths": length_summary(tables.train.texts),
        }
        | tables.fingerprints(),
    }


class _Session:
    """What this start of a run spends beside its folds, on top of what earlier starts spent.

    Parameters
    ----------
    started : by `time.monotonic`; all from there to now is loading, or tokenising
    """

    def __init__(self, run: RunFolder, learner: Learner, started: float) -> None:
        self._learner, self.tune = learner, 0.0
        self._before, self._reused = run.info.get("seconds", {}), run.info.get("reused", {})
        self._start = time.monotonic() - started - sum(learner.seconds.values())

    def seconds(self) -> dict[str, float]:
        own = dict(self._learner.seconds)
        own["load"] = own.get("load", 0.0) + self._start
        own["tune"] = self.tune
        return {phase: self._before.get(phase, 0.0) + value for phase, value in own.items()}

    def reused(self) -> dict[str, int]:
        return self._reused | self._learner.reused


def _account(run: RunFolder, session: _Session) -> None:
    """Where time and memory went: summed over the finished folds, whichever start trained them."""
    folds = [read_json(run.fold(number).info) for number in run.finished_folds]
    of_folds = {phase: sum(f["seconds"].get(phase, 0.0) for f in folds) for f in folds for phase in f["seconds"]}
    seconds = {phase: round(value, 3) for phase, value in (session.seconds() | of_folds).items()}
    values: dict[str, Any] = {"seconds": seconds, "reused": session.reused()}
    if not folds:
        run.update_info(**values)
        return
    values["peak_memory_bytes"] = max(f["peak_memory_bytes"] for f in folds)
    pieces = sum(f.get("train_pieces", f["train_rows"]) for f in folds)
    if pieces > (rows := sum(f["train_rows"] for f in folds)):
        values["pieces_per_row"] = round(pieces / rows, 3)  # what is a row in rows per second is then a piece of a text
    predicted = sum(f["predict_pieces"] for f in folds)
    values["predict_rows_per_second"] = round(predicted / max(of_folds["predict"], 1e-9), 2)
    processed = [f["processed"] for f in folds if "processed" in f]
    if processed:
        rows, tokens, padded = (sum(p[key] for p in processed) for key in ("rows", "tokens", "padded_tokens"))
        values |= {
            "train_rows_per_second": round(rows / max(of_folds["train"], 1e-9), 2),
            "train_tokens_per_second": round(tokens / max(of_folds["train"], 1e-9), 1),
            "padding_share": round(1 - tokens / max(padded, 1), 4),
        }
    run.update_info(**values)
