"""How far a run or a search is: what is finished, running, failed; the score so far; minutes left. Writes nothing."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from statistics import median
from typing import Any, ClassVar, Literal

import numpy as np

from lora_cls.errors import LoraClsError, RunError, brief, shown, visible
from lora_cls.evaluation import Metric, macro_f1, task_of
from lora_cls.recipe import Recipe, TaskName
from lora_cls.report.sentences import describe
from lora_cls.runs import FoldFolder, RunFolder, Scores
from lora_cls.runs.folder import UNFINISHED
from lora_cls.runs.lock import LOCK, held_by
from lora_cls.runs.records import ExportInfo
from lora_cls.search.folder import LOST_AFTER, HoldoutScore, SweepFiles, SweepFolder, Trial

FoldState = Literal["finished", "running", "stopped", "not started", "damaged"]
RunKind = Literal["run", "blend", "export"]
RunState = Literal["finished", "running", "stopped", "begun", "damaged"]
SweepState = Literal["finished", "running", "stopped", "damaged"]

ALL = "all rows"


@dataclass(frozen=True)
class FoldStatus:
    """How far one fold is, or the model of all rows.

    Attributes
    ----------
    name : its number, or "all rows"
    epochs, n_epochs : finished ones, and all; None of what is trained without epochs
    kept : the epoch that a finished fold kept, where `train.select` chose it
    seconds : that it took, or took so far
    rows_per_second : in training
    macro_f1 : of the rows that it held out, untuned
    holder : who trains it and since when, of a running one
    silent_for : seconds since its last epoch, or its start
    damage : what is wrong with its files
    """

    name: str
    state: FoldState
    epochs: int | None = None
    n_epochs: int | None = None
    kept: int | None = None
    seconds: float | None = None
    rows_per_second: float | None = None
    macro_f1: float | None = None
    holder: str | None = None
    silent_for: float | None = None
    damage: str | None = None

    @property
    def title(self) -> str:
        """What it is called in a sentence."""
        return "The model of all rows" if self.name == ALL else f"Fold {self.name}"


@dataclass(frozen=True)
class ScoreSoFar:
    """The score of the folds that are finished.

    Attributes
    ----------
    macro_f1, untuned : cross-fitted, and at logit > 0
    judged : the metric, where it is another than macro-F1, in a few words
    interval : 95 %; None where it was computed just now
    noted : whether `metrics.json` holds it; else it was computed as `lora-cls tune` would, and not kept
    optimistic : the epoch was chosen on the rows that are scored
    """

    macro_f1: float
    untuned: float
    interval: tuple[float, float] | None
    rows_scored: int
    rows: int
    noted: bool
    optimistic: bool
    task: TaskName | None
    judged: str = ""

    def __str__(self) -> str:
        within = "" if self.interval is None else f" (95 % interval {self.interval[0]:.4f} to {self.interval[1]:.4f})"
        kept = "" if self.noted else "; computed now as lora-cls tune would, and not kept"
        optimistic = " OPTIMISTIC: the epoch was chosen on the rows that are scored." if self.optimistic else ""
        return (
            f"{self.judged}{task_of(self.task).headline} {self.macro_f1:.4f}{within}, untuned {self.untuned:.4f}, on "
            f"{self.rows_scored:,} of {self.rows:,} rows{kept}.{optimistic}"
        )


@dataclass(frozen=True)
class RunStatus:
    """How far a run is; shows itself in a notebook, and on a terminal by `lora-cls status`.

    Attributes
    ----------
    kind : "run", "blend" or "export"
    state : of it as a whole; "begun" is a folder that is not complete yet
    about : base, method and task, in words
    folds : in the order of their numbers
    refit : the model of all rows; None where there is none
    writer : who writes scores and pages, or makes the folder, now
    minutes_left : about, for the folds that are not finished; None where nothing is known
    basis : what the minutes were taken from
    notes : what else there is to say, damage first
    """

    path: Path
    kind: RunKind
    state: RunState
    about: str = ""
    folds: list[FoldStatus] = field(default_factory=list)
    refit: FoldStatus | None = None
    writer: str | None = None
    score: ScoreSoFar | None = None
    minutes_left: float | None = None
    basis: str | None = None
    notes: list[str] = field(default_factory=list)
    header: ClassVar = ["fold", "state", "epochs", "rows/s", "seconds", "macro-F1 untuned"]
    left: ClassVar = (0, 1)
    """Columns that are no numbers."""

    @property
    def finished_folds(self) -> int:
        """How many folds are finished."""
        return sum(fold.state == "finished" for fold in self.folds)

    def __repr__(self) -> str:
        score = "" if self.score is None else f", macro_f1={self.score.macro_f1:.4f}"
        folds = f", {self.finished_folds} of {len(self.folds)} folds" if self.folds else ""
        return f"RunStatus({str(self.path)!r}, {self.state}{folds}{score})"

    def _repr_html_(self) -> str:
        """For notebooks: what `lora-cls status` prints."""
        return _html(repr(self), self.header, self.cells, self.sentences)

    @property
    def cells(self) -> list[list[str]]:
        """A row of text per fold, under `header`."""
        return [_fold_cells(fold) for fold in [*self.folds, *([self.refit] if self.refit else [])]]

    @property
    def sentences(self) -> list[str]:
        """What the table of folds does not say."""
        said = [f"{self.path}: {self.about}." if self.about else f"{self.path}:"]
        if self.writer is not None:
            said.append(f"It is written by {self.writer}.")
        said += self.notes
        if self.score is not None:
            said.append(f"{'Score' if self.state == 'finished' else 'Score so far'}: {self.score}")
        if self.minutes_left:
            said.append(f"About {_minutes(self.minutes_left)} left, {self.basis}.")
        return said


@dataclass(frozen=True)
class TrialStatus:
    """How far the run of a trial is, or that of its setting on fresh folds.

    Attributes
    ----------
    folds : those that the search trains; none before the run folder stands
    silent_for : seconds since its process was last heard of, by this machine's clock; None where nobody works on it
    score : of the finished folds
    """

    trial: Trial
    folds: list[FoldStatus]
    silent_for: float | None
    score: ScoreSoFar | None = None

    @property
    def at_work(self) -> bool:
        """Whether a process works on it. One that was not heard of for `LOST_AFTER` seconds is gone."""
        return self.silent_for is not None and self.silent_for <= LOST_AFTER

    @property
    def known(self) -> str:
        """Of its process, in words."""
        if self.silent_for is None:
            return "set aside; the next start goes on with it"
        if not self.at_work:
            return f"its process is gone ({self.silent_for:.0f} s silent); the next worker goes on with it"
        return f"heard of {self.silent_for:.0f} s ago"

    @property
    def progress(self) -> str:
        """How many of its folds are finished, in words."""
        done = sum(fold.state == "finished" for fold in self.folds)
        current = [fold for fold in self.folds if fold.state != "finished" and fold.epochs]
        epochs = "".join(f", fold {fold.name}: epoch {fold.epochs} of {fold.n_epochs}" for fold in current)
        return f"{done} of {len(self.folds)} finished{epochs}" if self.folds else "none begun"


@dataclass(frozen=True)
class SweepStatus:
    """How far a search is; shows itself in a notebook, and on a terminal by `lora-cls status`.

    Attributes
    ----------
    state : "finished" where nothing that was begun is left; more trials may be asked for all the same
    about : the recipe that it started from, and the folds of a trial, in words
    objective : what trials are compared by
    counts : trials by state
    running, failed : those trials
    best : the best complete trial so far
    confirmed : the best trials on fresh folds, as far as that is begun
    to_confirm : how many of the best trials are to be run on fresh folds yet
    holdout : the score of the rows that no trial saw
    rows_trained, rows_planned : over the trials that were stopped; the difference was saved
    trial_minutes : median of the complete trials
    notes : damage
    """

    path: Path
    state: SweepState
    about: str = ""
    objective: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    running: list[TrialStatus] = field(default_factory=list)
    failed: list[Trial] = field(default_factory=list)
    best: Trial | None = None
    confirmed: list[TrialStatus] = field(default_factory=list)
    to_confirm: int = 0
    holdout: HoldoutScore | None = None
    rows_trained: int = 0
    rows_planned: int = 0
    trial_minutes: float | None = None
    notes: list[str] = field(default_factory=list)
    header: ClassVar = ["trial", "state", "fields", "folds", "what is known"]
    left: ClassVar = (1, 2, 3, 4)
    """Columns that are no numbers."""

    def __repr__(self) -> str:
        counts = "".join(f", {number} {state}" for state, number in self.counts.items())
        best = "" if self.best is None or self.best.score is None else f", best={self.best.score:.4f}"
        return f"SweepStatus({str(self.path)!r}, {self.state}{counts}{best})"

    def _repr_html_(self) -> str:
        """For notebooks: what `lora-cls status` prints."""
        return _html(repr(self), self.header, self.cells, self.sentences)

    @property
    def cells(self) -> list[list[str]]:
        """A row of text per trial that is running or failed, under `header`."""
        rows = [
            [str(one.trial.number), "running" if one.at_work else "left", _params(one.trial), one.progress, one.known]
            for one in self.running
        ]
        failed = [[str(trial.number), "failed", _params(trial), "", _reason(trial)] for trial in self.failed]
        return rows + failed

    @property
    def sentences(self) -> list[str]:
        """What the table of trials does not say."""
        n = sum(self.counts.values())
        counts = ", ".join(f"{number} {state}" for state, number in self.counts.items())
        said = [f"{self.path}: {self.about or 'a search'}; {n} trial{'s' * (n != 1)}{': ' * bool(n)}{counts}."]
        said += self.notes
        if self.rows_planned > self.rows_trained:
            said.append(
                f"Trials that were stopped early trained {self.rows_trained:,} of {self.rows_planned:,} rows: "
                f"{1 - self.rows_trained / self.rows_planned:.0%} of their training was saved."
            )
        if self.best is not None:
            fields = "; ".join(f"{name}: {_value(value)}" for name, value in self.best.params.items())
            said.append(
                f"Best so far: trial {self.best.number}, {self.objective} {self.best.score:.4f} with {fields}. Chosen "
                "by that score, it flatters itself."
            )
        for one in self.confirmed:
            own = "" if one.trial.score is None else f" In the search: {self.objective} {one.trial.score:.4f}."
            at_work = f", {one.known}" if one.silent_for is not None else ""
            score = "not scored yet." if one.score is None else f"{one.score}{own}"
            said.append(f"Trial {one.trial.number} on fresh folds ({one.progress}{at_work}): {score}")
        if self.holdout is not None:
            f1 = self.holdout.macro_f1
            said.append(
                f"Trial {self.holdout.trial} on {self.holdout.rows:,} rows that no trial saw: macro-F1 "
                f"{f1.estimate:.4f} (95 % interval {f1.low:.4f} to {f1.high:.4f})."
            )
        if self.trial_minutes is not None:
            said.append(f"A complete trial takes about {_minutes(self.trial_minutes)} (the median).")
        if self.to_confirm:
            said.append(f"{self.to_confirm} of the best trials are to be run on fresh folds yet.")
        if self.state == "stopped":
            said.append("Nobody works on it now; the same command goes on.")
        return said


def status(path: str | Path | RunFolder | SweepFolder) -> RunStatus | SweepStatus:
    """How far a run, or a search, is. Loads no model, and changes nothing in the folder.

    Returns
    -------
    RunStatus or SweepStatus
        Damage in the folder stands in its `notes`.

    Raises
    ------
    RunError
        If the folder is neither a run's nor a search's.

    Examples
    --------
    >>> found = status("runs/tfidf")
    >>> found.state, [fold.state for fold in found.folds], found.minutes_left
    ('finished', ['finished', 'finished'], 0.0)
    >>> found.score.macro_f1 == RunFolder("runs/tfidf").scores.cross_fitted.macro_f1
    True
    """
    path = path.path if isinstance(path, (RunFolder, SweepFolder)) else Path(path)
    if os.path.isfile(path / "sweep.json"):
        return _sweep_status(SweepFolder(path))
    if not os.path.isfile(path / "recipe.yaml") or os.path.exists(path / UNFINISHED):
        return _begun(path)
    return _run_status(RunFolder(path))


def _begun(path: Path) -> RunStatus:
    """Of a folder that is being made, or that its maker was stopped in."""
    writer = held_by(path)
    if writer is not None:
        return RunStatus(path, "run", "begun", writer=writer, notes=["The folder is being made."])
    if not os.path.exists(path / UNFINISHED):
        raise RunError(
            f"{path} is no run folder and no folder of a search: it has neither recipe.yaml nor sweep.json. A run that "
            "is still loading its model has no folder yet."
        )
    note = "Stopped while the folder was made: nothing is trained. The same command with --resume begins the run."
    return RunStatus(path, "run", "begun", notes=[note])


def _run_status(run: RunFolder) -> RunStatus:
    notes: list[str] = []
    about, truth = "", None
    kind: RunKind = "run"
    with _noting(notes):
        about = f"{describe(run.recipe)}; {run.task().title}, {len(run.label_names)} {run.task().nouns}"
        kind = "blend" if run.recipe.blend else "run"
    writer = held_by(run.path)
    if run.exported:
        with _noting(notes):
            made = ExportInfo.read(run.files.export)
            about = f"{made.name} of {len(made.folds)} folds of {made.run}, exported; {about}"
        return RunStatus(run.path, "export", "damaged" if notes else "finished", about, writer=writer, notes=notes)
    folds: list[FoldStatus] = []
    with _noting(notes):
        truth = run.y_true
    with _noting(notes):
        folds = [_fold_status(run, number, truth) for number in run.fold_numbers]
    refit = _fold_status(run, None, None) if run.refit.path.is_dir() else None
    models = [*folds, *([] if refit is None else [refit])]
    notes += dict.fromkeys(model.damage for model in models if model.damage)
    score = None
    if any(fold.state == "finished" for fold in folds):
        score = _noted_score(run, notes) or _score(run)
    complete = score is not None and score.noted and all(model.state == "finished" for model in models)
    running = [model for model in models if model.state == "running"]
    state: RunState = "running" if running or writer else "damaged" if notes else "finished" if complete else "stopped"
    notes += [f"{model.title} is trained by {model.holder}." for model in running]
    if state == "stopped":
        notes.append(_what_is_left(folds, refit))
    left, basis = _minutes_left(run, models)
    return RunStatus(run.path, kind, state, about, folds, refit, writer, score, left, basis, notes)


def _what_is_left(folds: Sequence[FoldStatus], refit: FoldStatus | None) -> str:
    """Of a run that nobody works on: what a next start would do."""
    again = "The same command with --resume goes on."
    left = sum(fold.state != "finished" for fold in folds)
    if left:
        return (
            f"{'1 fold is' if left == 1 else f'{left} folds are'} left, and nobody trains one now (a process that is "
            f"still loading its model is not seen). {again}"
        )
    if refit is not None and refit.state != "finished":
        return "The model of all rows is not finished: lora-cls refit RUN goes on."
    return f"All folds are finished, and their scores are not written. {again}"


@contextmanager
def _noting(notes: list[str]) -> Iterator[None]:
    """What is wrong with a folder's files is noted, once, and the rest is looked at all the same."""
    try:
        yield
    except LoraClsError as error:
        if str(error) not in notes:
            notes.append(str(error))


def _fold_status(run: RunFolder, number: int | None, truth: np.ndarray | None) -> FoldStatus:
    """Of one fold; of the model of all rows where `number` is None. `truth`: the labels of all rows, if known."""
    folder = run.refit if number is None else run.fold(number)
    name, holder = ALL if number is None else str(number), held_by(folder.path)
    try:
        recipe = run.recipe
        n_epochs = None
        if recipe.backbone is not None:
            n_epochs = (run.refit_epochs if number is None else None) or recipe.train.num_train_epochs
        if folder.finished:
            f1 = None
            if number is not None and truth is not None and recipe.blend is None:
                rows = truth[(run.folds["fold"] == number).to_numpy()]
                f1 = macro_f1(rows, run.task().untuned(folder.read_array(folder.oof_logits, rows.shape)))
            return _finished(name, folder, n_epochs, recipe, f1)
        said = folder.progress()
    except LoraClsError as error:
        return FoldStatus(name, "running" if holder else "damaged", holder=holder, damage=str(error))
    begun: FoldState = "stopped" if folder.path.is_dir() else "not started"
    done = 0 if said is None else said["epoch"]
    return FoldStatus(
        name,
        "running" if holder else begun,
        epochs=None if n_epochs is None else done,
        n_epochs=n_epochs,
        seconds=sum(said["seconds"].values()) if said else None,
        rows_per_second=said["rows"] / max(said["seconds"]["train"], 1e-9) if said and said["rows"] else None,
        holder=holder,
        silent_for=_silent_for(folder.path / LOCK, folder.state) if holder else None,
    )


def _finished(name: str, folder: FoldFolder, n_epochs: int | None, recipe: Recipe, f1: float | None) -> FoldStatus:
    info = folder.info
    rows = info.processed.rows if info.processed else info.train_rows
    trained = info.seconds.get("train")
    return FoldStatus(
        name,
        "finished",
        epochs=n_epochs,
        n_epochs=n_epochs,
        kept=None if recipe.train.select == "last" else info.epoch,
        seconds=sum(info.seconds.values()),
        rows_per_second=rows / max(trained, 1e-9) if rows and trained and recipe.blend is None else None,
        macro_f1=f1,
    )


def _silent_for(*files: Path) -> float | None:
    """Seconds since the last of these files was written, by this machine's clock: to ask the file system's own would
    leave a file for an instant."""
    times = []
    for file in files:
        with suppress(OSError):
            times.append(file.stat().st_mtime)
    return max(0.0, time.time() - max(times)) if times else None


def _noted_score(run: RunFolder, notes: list[str]) -> ScoreSoFar | None:
    """What `metrics.json` says, if that is of the folds that are finished now."""
    if not run.files.scores.is_file():
        return None
    scores = None
    with _noting(notes):
        if Scores.read(run.files.scores).folds_finished == run.finished_folds:
            scores = run.results().scores
    if scores is None:
        return None
    of, within = scores.cross_fitted, scores.cross_fitted.macro_f1_interval
    return ScoreSoFar(
        of.macro_f1, scores.untuned.macro_f1, (within.low, within.high), scores.rows_scored, scores.rows, True,
        scores.optimistic, scores.task, _judged(scores.of, of.metric),
    )  # fmt: skip


def _score(run: RunFolder) -> ScoreSoFar | None:
    """As `tune` would score the finished folds; None where that cannot be done (yet)."""
    try:
        oof, task, recipe = run.out_of_fold(), run.task(), run.recipe
        decided = oof.cross_fit(task, recipe.prediction.at_least_one).y_pred
        rows = int((run.folds["fold"] >= 0).sum())
    except LoraClsError:  # damage is noted with its fold
        return None
    tuned, untuned = macro_f1(oof.y_true, decided), macro_f1(oof.y_true, task.untuned(oof.logits))
    optimistic = recipe.train.select == "scored_fold"
    judged = _judged(task.metric, task.metric.score(oof.y_true, decided, oof.y_score))
    return ScoreSoFar(tuned, untuned, None, len(oof), rows, False, optimistic, recipe.task, judged)


def _judged(metric: Metric, value: float | None) -> str:
    if metric.name == "macro_f1" or value is None or np.isnan(value):
        return ""
    return f"{metric.title[:1].upper()}{metric.title[1:]} {value:.4f}; "


def _minutes_left(run: RunFolder, models: Sequence[FoldStatus]) -> tuple[float | None, str | None]:
    """About how long what is not finished takes, and what that was taken from; (None, None) where nothing is known."""
    unfinished = [model for model in models if model.state != "finished"]
    finished = [model.seconds for model in models if model.state == "finished" and model.seconds and model.name != ALL]
    begun = [model for model in unfinished if model.epochs and model.n_epochs and model.seconds]
    if models and not unfinished:
        return 0.0, "everything is finished"
    if finished:
        each = median(finished)
        basis = f"by the median of {len(finished)} finished folds" if len(finished) > 1 else "by the one finished fold"
    elif begun:
        each = median(model.seconds / model.epochs * model.n_epochs for model in begun)  # type: ignore[operator]
        n = sum(model.epochs or 0 for model in begun)
        basis = f"by {n} epoch{'s' * (n > 1)} of training, prediction not counted"
    else:
        return None, None
    seconds = []
    for model in unfinished:
        done = (model.epochs or 0) / model.n_epochs if model.n_epochs else 0.0
        since = model.silent_for or 0.0 if model.state == "running" else 0.0
        seconds.append(max(0.0, each * (1 - done) - since))
    at_once = sum(model.state == "running" for model in unfinished)
    left = sum(seconds)
    if at_once > 1:
        basis += f"; {at_once} processes go on as now"
        left = max(left / at_once, *(s for s, m in zip(seconds, unfinished, strict=True) if m.state == "running"))
    return left / 60, basis


def _sweep_status(sweep: SweepFolder) -> SweepStatus:
    files, notes = sweep.files, list[str]()
    about, objective, numbers, wanted = "", "", list[int](), 0
    with _noting(notes):
        info, numbers = sweep.info, sweep.info.folds
        about = f"search from {info.recipe_name}, {len(numbers)} of {info.n_splits} folds each"
    trials, best = list[Trial](), list[Trial]()
    with _noting(notes):
        objective = sweep.objective
        trials = _trials(sweep)
        best = sweep.ranked(trials)
        wanted = sweep.settings.confirm if files.fresh.is_file() else 0
    running = [_trial_status(files.run(t.number), t, numbers) for t in trials if t.state == "running"]
    confirmed = [
        _trial_status(place, trial, numbers)
        for trial in best
        if os.path.isdir(place := files.confirmation(trial.number))
    ]
    to_confirm = sum(not (files.confirmation(trial.number) / "metrics.json").is_file() for trial in best[:wanted])
    holdout = None
    if files.holdout_score.is_file():
        with _noting(notes):
            holdout = HoldoutScore.read(files.holdout_score)
    counted = Counter(trial.state for trial in trials)
    stopped = [trial for trial in trials if trial.state == "stopped" and trial.rows_planned]
    took = [trial.seconds for trial in trials if trial.state == "complete" and trial.seconds is not None]
    at_work = any(one.at_work for one in [*running, *confirmed])
    left = running or to_confirm or not best
    return SweepStatus(
        sweep.path,
        "running" if at_work else "damaged" if notes else "stopped" if left else "finished",
        about,
        objective,
        {state: counted[state] for state in ("complete", "stopped", "failed", "running") if counted[state]},
        running,
        [trial for trial in trials if trial.state == "failed"],
        best[0] if best else None,
        confirmed,
        to_confirm,
        holdout,
        sum(trial.rows_trained or 0 for trial in stopped),
        sum(trial.rows_planned or 0 for trial in stopped),
        median(took) / 60 if took else None,
        notes,
    )


def _trials(sweep: SweepFolder) -> list[Trial]:
    """All trials. A field that no search wrote is damage of the journal."""
    try:
        return sweep.trials
    except LoraClsError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError(f"{sweep.files.journal} is damaged ({brief(error)}).") from None


def _trial_status(place: Path, trial: Trial, numbers: Sequence[int]) -> TrialStatus:
    """Of a trial's run, or its run on fresh folds: those folds that the search trains."""
    silent_for = _silent_for(SweepFiles.alive(place))
    try:
        found = status(place)
    except RunError:
        found = None
    if not isinstance(found, RunStatus):
        return TrialStatus(trial, [], silent_for)
    wanted = {str(number) for number in numbers}
    return TrialStatus(trial, [fold for fold in found.folds if fold.name in wanted], silent_for, found.score)


def _fold_cells(fold: FoldStatus) -> list[str]:
    epochs = "" if fold.n_epochs is None else f"{fold.epochs} of {fold.n_epochs}"
    if fold.kept is not None:
        epochs += f", kept {fold.kept}"
    numbers = [(fold.rows_per_second, ".1f"), (fold.seconds, ".1f"), (fold.macro_f1, ".4f")]
    return [fold.name, fold.state, epochs, *("" if value is None else format(value, form) for value, form in numbers)]


def _reason(trial: Trial) -> str:
    return "the reason was not noted" if trial.reason is None else shown(trial.reason, 500, quoted=False)


def _params(trial: Trial) -> str:
    return ", ".join(f"{name}={_value(value)}" for name, value in trial.params.items())


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _minutes(minutes: float) -> str:
    return f"{minutes:.1f} minutes" if minutes < 600 else f"{minutes / 60:.1f} hours"


def _html(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], sentences: Sequence[str]) -> str:
    """A table and sentences for a notebook."""
    lines = [f"<p><b>{escape(visible(title))}</b></p>", *(f"<p>{escape(visible(text))}</p>" for text in sentences)]
    if rows:
        cells = [("th", header), *(("td", row) for row in rows)]
        table = ["".join(f"<{tag}>{escape(visible(cell))}</{tag}>" for cell in row) for tag, row in cells]
        lines.insert(1, f"<table>{''.join(f'<tr>{row}</tr>' for row in table)}</table>")
    return "".join(lines)
