"""`lora-cls sweep`: many settings of a recipe tried on the same folds, the best scored again on fresh ones.

Any number of processes may work on one folder, started together or one after the other. Each worker claims a task under
the folder's lock, has it trained by a process of its own (`commands.trial`), and settles what became of it.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from lora_cls.commands.cross_validation import refuse_blend
from lora_cls.commands.predict import Classifier
from lora_cls.commands.workers import Workers, check_workers, make_executor, threads_of
from lora_cls.data import TableLike
from lora_cls.data.tables import Tables
from lora_cls.errors import RecipeError, RunError, shorten
from lora_cls.evaluation import bootstrap_macro_f1
from lora_cls.execution.executor import Executor
from lora_cls.execution.local import LocalExecutor, end_of
from lora_cls.execution.pool import in_threads
from lora_cls.files import make_folder, write_bytes
from lora_cls.recipe import Recipe, find_recipe, load_recipe
from lora_cls.report.sweep import write_sweep_page, write_trials_table
from lora_cls.runs.lock import locked
from lora_cls.search.folder import LOST_AFTER, HoldoutScore, SweepFiles, SweepFolder, Trial
from lora_cls.search.optuna_files import drop_torn_line, load_optuna, note, open_study
from lora_cls.search.plan import Given, make_plan
from lora_cls.search.space import distributions, next_setting, resolved
from lora_cls.training.progress import Progress
from lora_cls.training.tracking import check_tracking
from lora_cls.yaml_text import write_yaml

MOST_ATTEMPTS = 3
"""Processes that may begin a trial before it counts as failed."""
LOOK_AGAIN = 1.0
"""Seconds between two looks at what other workers do."""
PAGE_EVERY = 60.0
"""Seconds between two pages while trials go on."""


def sweep(
    recipe: str | Path | Recipe,
    train: TableLike | None = None,
    test: TableLike | None = None,
    out: str | Path | None = None,
    *,
    sample_submission: TableLike | None = None,
    extra_train: TableLike | None = None,
    fold_table: TableLike | None = None,
    overrides: Sequence[str] = (),
    trials: int = 20,
    minutes: float | None = None,
    workers: Workers = 1,
    only: Sequence[str] = (),
    folds: Sequence[int] | None = None,
    holdout: float | None = None,
    show: bool | None = None,
    trust_remote_code: bool = False,
    executor: str = "local",
) -> SweepFolder:
    """Search for the best settings of a recipe, as its section `sweep` says.

    All trials are trained and scored on the same folds. A folder that exists is gone on with: after a stop, with more
    trials, or beside another process that works on it.

    Parameters
    ----------
    recipe : path, name of a shipped recipe, or Recipe
    train, test, sample_submission, extra_train : files or DataFrames; those of the recipe where None. Trials do not
        predict the test table; it tells which columns are labels
    out : the folder; `sweeps/<recipe>` where None
    fold_table : columns id and fold, instead of making folds; there are then no fresh folds to confirm on
    overrides : `["lora.r=8", ...]`
    trials : how many there are to be in all, those of earlier starts counted
    minutes : end after about so many, with what is finished; a trial in the middle is gone on with by the next start
    workers : processes that train at once; `auto`: one for each GPU, or for each core that the memory has room for
    only : fields to search, in place of all of the space
    folds : numbers of the folds that trials train; the first `sweep.n_folds` where None
    holdout : share of the rows that no trial sees, for a score that nothing was chosen by
    show : progress; where None, in notebooks and at a prompt
    trust_remote_code, executor : see `cross_validate`

    Returns
    -------
    SweepFolder
        With `best.yaml`, `trials.csv` and `sweep.html`.

    Raises
    ------
    LoraClsError
        For anything the user can mend: the recipe, the space, the data, a folder of another search.

    Examples
    --------
    >>> quick = ["cv.n_splits=3", "sweep.confirm=0"]
    >>> found = sweep("tfidf-logreg", train_df, out="sweeps/tfidf", trials=2, overrides=quick)
    >>> len(found.trials)
    2
    >>> load_recipe(found.files.best).tfidf.C == found.best.params["tfidf.C"]
    True
    """
    started = time.monotonic()
    load_optuna()
    if trials < 1 or (minutes is not None and not minutes > 0):
        raise RecipeError("--trials must be at least 1, and --minutes above 0.")
    check_workers(workers, executor)
    if holdout is not None and not 0 < holdout <= 0.5:
        raise RecipeError(f"--holdout takes a share of the rows above 0 and at most 0.5. Got {holdout:g} instead.")
    name = find_recipe(recipe).stem if isinstance(recipe, (str, Path)) else "sweep"
    recipe = load_recipe(recipe, overrides, trust_remote_code=trust_remote_code or None)
    refuse_blend(recipe)
    if recipe.distill is not None:
        raise RecipeError(
            "A search scores its best trials again on fresh folds, which no teacher was trained on: search without "
            "teachers (--set distill=null), and give them to the run with the settings that were found."
        )
    recipe = recipe.model_copy(update={"sweep": resolved(recipe, only)})
    path = Path(out) if out is not None else Path("sweeps") / name
    check_tracking(recipe, path / "trials")
    given = Given(train, test, sample_submission, extra_train, fold_table)
    with Progress(0, show) as progress:
        plan = make_plan(name, recipe, given, folds, holdout, progress.say)
        with locked(path, "is written", wait=progress.say):
            if not SweepFiles(path).info.is_file():
                _refuse_other(path)
                plan.create(path, progress.say)
            trusted = recipe.backbone is not None and recipe.backbone.trust_remote_code
            folder = SweepFolder(path, trust_remote_code=trusted)
            plan.check_same(folder)
            drop_torn_line(folder.files.journal)
        deadline = None if minutes is None else started + 60 * minutes
        processes = make_executor(recipe, workers, executor, trials, path, ["a search's trials"]) or LocalExecutor(1)
        with closing(processes):
            Search(folder, trials, deadline, processes, progress).run()
        finish(folder)
    return folder


def _refuse_other(path: Path) -> None:
    """Raise RunError if something else than a search that was stopped as it began lies there."""
    begun = {".lock", "trials", "train.parquet", "holdout.csv", "folds.csv", "fresh.csv", "base.yaml", "journal.log"}
    others = sorted(file.name for file in path.iterdir() if file.name not in begun)
    if others:
        raise RunError(
            f"{path} holds {shorten(others, 5)} and is no folder of a search. Choose another folder with --out."
        )
    SweepFiles(path).journal.unlink(missing_ok=True)


@dataclass(frozen=True)
class Task:
    """A trial to train, or to run again on fresh folds."""

    trial: Trial
    confirm: bool = False

    @property
    def title(self) -> str:
        """What it is called in messages."""
        return f"trial {self.trial.number}{' on fresh folds' if self.confirm else ''}"

    def place(self, files: SweepFiles) -> Path:
        """Its run folder."""
        number = self.trial.number
        return files.confirmation(number) if self.confirm else files.run(number)


class Search:
    """What one process does for a search: its workers, threads that each wait for a process that trains.

    Parameters
    ----------
    n_trials : how many there are to be in all
    deadline : by `time.monotonic`
    """

    def __init__(
        self, folder: SweepFolder, n_trials: int, deadline: float | None, executor: Executor, progress: Progress
    ) -> None:
        self.folder, self.n_trials, self.deadline, self.progress = folder, n_trials, deadline, progress
        self.executor, self.n_workers = executor, executor.n_workers
        self.known = distributions(folder.recipe, folder.settings)
        self.ended = threading.Event()
        self.problems: list[BaseException] = []
        self.not_confirmed: set[int] = set()
        self.exhausted = False
        self._lock = threading.Lock()
        self._page_written = time.monotonic()

    def run(self) -> None:
        """Work until all is done, or the time is over."""
        before = self.folder.trials
        self.progress.expect(max(0, self.n_trials - sum(trial.state != "running" for trial in before)))
        if before:
            self.progress.say(f"{self.folder.path} is gone on with: {len(before)} trials so far.")
        in_threads(self.n_workers, self._work, self.ended)
        if self.problems:
            raise self.problems[0]

    def _work(self, worker: int) -> None:
        try:
            while not self.ended.is_set():
                task, done = self._claim()
                if task is not None:
                    self._train(worker, task)
                elif done:
                    return
                else:
                    self.ended.wait(LOOK_AGAIN)
        except BaseException as error:
            self.problems.append(error)
            self.ended.set()

    def _claim(self) -> tuple[Task | None, bool]:
        """A task that nobody works on; or None, and whether there is none left that may yet become one."""
        with self._lock, self.folder.writing():
            trials = self.folder.trials
            running = [trial for trial in trials if trial.state == "running"]
            for trial in running:
                if self._lost(self.folder.files.run(trial.number)):
                    if trial.attempts >= MOST_ATTEMPTS:
                        self._fail(trial, f"its process was lost {trial.attempts} times")
                        continue
                    self._note(trial.number, attempts=trial.attempts + 1)
                    return self._taken(Task(trial)), False
            if not self._search_over():
                failed = sum(trial.state == "failed" for trial in trials)
                if len(trials) < self.n_trials and not self.exhausted and failed < max(5, self.n_trials // 2):
                    if (task := self._new_trial(len(trials))) is not None:
                        return task, False
                    self.exhausted = True
                    self.progress.say("Every setting of the space was tried.")
            if any(trial.state == "running" for trial in self.folder.trials):
                return None, self._search_over()
            return self._confirmation(trials)

    def _new_trial(self, number: int) -> Task | None:
        optuna = load_optuna()
        study = open_study(self.folder.files.journal)
        setting = next_setting(self.folder.recipe, self.folder.settings, study)
        if setting is None:
            return None
        study.add_trial(
            optuna.create_trial(
                state=optuna.trial.TrialState.RUNNING, params=setting, distributions=self.known,
                user_attrs={"attempts": 1},
            )
        )  # fmt: skip
        return self._taken(Task(self.folder.trials[number]))

    def _confirmation(self, trials: list[Trial]) -> tuple[Task | None, bool]:
        """The next of the best trials that was not run on fresh folds; all trials are done."""
        if not self.folder.files.fresh.is_file() or self._overdue():
            return None, True
        waiting = False
        for trial in self.folder.ranked(trials)[: self.folder.settings.confirm]:
            task = Task(trial, confirm=True)
            if self.folder.confirmation(trial.number) is not None or trial.number in self.not_confirmed:
                continue
            if self._lost(task.place(self.folder.files)):
                return self._taken(task), False
            waiting = True
        return None, not waiting

    def _taken(self, task: Task) -> Task:
        alive = self.folder.files.alive(task.place(self.folder.files))
        make_folder(alive.parent)
        alive.touch()
        return task

    def _lost(self, place: Path) -> bool:
        """Whether no process works on a run of the search."""
        silent = self.folder.silent_for(place)
        return silent is None or silent > LOST_AFTER

    def _reserve(self) -> float:
        """Seconds that the runs on fresh folds will take, by what complete trials took."""
        if not self.folder.files.fresh.is_file():
            return 0.0
        ranked = self.folder.ranked()
        took = [trial.seconds for trial in ranked if trial.seconds is not None]
        rounds = -(-min(self.folder.settings.confirm, len(ranked)) // self.n_workers)
        return rounds * median(took) if took else 0.0

    def _search_over(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline - self._reserve()

    def _overdue(self) -> bool:
        """Whether even the runs on fresh folds would begin too late."""
        return self.deadline is not None and time.monotonic() > self.deadline

    def _train(self, worker: int, task: Task) -> None:
        """Have a task trained, and look what became of it."""
        files, number = self.folder.files, task.trial.number
        place = task.place(files)
        log = place.with_suffix(".log")
        self.progress.say(f"{task.title}: {settings_line(task.trial)}")
        command = [sys.executable, "-m", "lora_cls.commands.trial", str(self.folder.path), str(number)]
        command += ["--confirm"] * task.confirm + ["--trust-remote-code"] * self.folder.trust_remote_code
        threads = threads_of(self.executor, self.folder.recipe)
        command += ["--threads", str(threads)] if threads is not None else []
        began = time.monotonic()
        process = self.executor.start(worker, command, log)
        try:
            while process.code is None:
                over = self._overdue() if task.confirm else self._search_over()
                if over or self.ended.is_set():
                    break
                process.heard(0.2)  # trials say nothing: they write into the journal
        finally:
            stopped = process.code is None
            process.stop()
            if stopped:
                files.alive(place).unlink(missing_ok=True)
        self._settle(task, process.code or 0, stopped, log, (time.monotonic() - began) / 60)

    def _settle(self, task: Task, code: int, stopped: bool, log: Path, minutes: float) -> None:
        with self._lock, self.folder.writing():
            trials = self.folder.trials
            trial = trials[task.trial.number]
            if stopped:
                self.progress.say(f"{task.title}: set aside, the next start goes on with it.")
                return
            if task.confirm:
                if code:
                    self.not_confirmed.add(trial.number)
                    self.progress.say(f"{task.title}: failed, {end_of(code, log)}")
                elif (confirmed := self.folder.confirmation(trial.number)) is not None:
                    f1 = confirmed.scores.cross_fitted.macro_f1
                    self.progress.say(f"{task.title}: macro-F1 {f1:.4f} ({minutes:.1f} min)")
                self._drop_models()
                return
            if trial.state == "running":
                if code == 0:  # another worker trains it
                    return
                self._fail(trial, end_of(code, log))
                trial = self.folder.trials[trial.number]
            best = self.folder.best
            said = {
                "complete": f"{self.folder.objective} {trial.score or 0:.4f} over {_folds(trial)}",
                "stopped": f"stopped, {trial.reason}",
                "failed": f"failed, {trial.reason}",
            }[trial.state]
            so_far = f"; best {best.score:.4f}, trial {best.number}" if best and best.score is not None else ""
            self.progress.part_done(f"trial {trial.number}", said + so_far)
            self._drop_models()
            if time.monotonic() - self._page_written > PAGE_EVERY:
                with suppress(Exception):  # the page is written again at the end, and what is wrong is then said
                    write_sweep_page(self.folder)
                self._page_written = time.monotonic()

    def _fail(self, trial: Trial, reason: str) -> None:
        study = open_study(self.folder.files.journal)
        note(study, trial.number, reason=reason)
        study.tell(trial.number, None, load_optuna().trial.TrialState.FAIL)

    def _note(self, number: int, **values: Any) -> None:
        note(open_study(self.folder.files.journal), number, **values)

    def _drop_models(self) -> None:
        """Remove the models of all trials but the best few; what they answered stays."""
        trials = self.folder.trials
        kept = {trial.number for trial in self.folder.ranked(trials)[: self.folder.settings.keep_models]}
        for trial in trials:
            if trial.state == "running" or trial.number in kept:
                continue
            for fold in self.folder.files.run(trial.number).glob("fold-*"):
                for name in ("adapter", "model"):
                    shutil.rmtree(fold / name, ignore_errors=True)
                with suppress(OSError):
                    (fold / "state.safetensors").unlink(missing_ok=True)


def settings_line(trial: Trial) -> str:
    """A trial's setting on one line."""
    return ", ".join(f"{field} {_short(value)}" for field, value in trial.params.items())


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _folds(trial: Trial) -> str:
    n = len(trial.fold_scores)
    return f"{n} fold{'s' * (n != 1)}"


def finish(folder: SweepFolder) -> None:
    """Write what a search leaves: the best recipe, the table, the page, the score of the rows held out.

    Any process that works on the search may do it, as often as it likes.
    """
    with folder.writing():
        best = folder.best
        if best is not None:
            write_bytes(folder.files.best, best_recipe(folder, best).encode())
            confirmed = folder.confirmation(best.number)
            if folder.info.holdout is not None and confirmed is not None and _holdout_pending(folder, best):
                _score_holdout(folder, best)
        write_trials_table(folder)
        write_sweep_page(folder)


def best_recipe(folder: SweepFolder, best: Trial) -> str:
    """The recipe of a trial as `lora-cls run` takes it: the fields that are no defaults, and how it was found."""
    recipe = load_recipe(folder.recipe, {"sweep": None, **best.params}, trust_remote_code=folder.trust_remote_code)
    confirmed = folder.confirmation(best.number)
    lines = [
        f"# Found by lora-cls sweep {folder.info.recipe_name} on {datetime.now():%Y-%m-%d}: trial {best.number} of "
        f"{len(folder.trials)}, {folder.objective} {best.score:.4f} over {_folds(best)}, chosen by it;",
        "# on fresh folds "
        + (f"macro-F1 {confirmed.scores.cross_fitted.macro_f1:.4f}." if confirmed else "it was not scored."),
    ]
    return "\n".join(lines) + "\n" + write_yaml(recipe.model_dump(mode="json", exclude_defaults=True))


def _holdout_pending(folder: SweepFolder, best: Trial) -> bool:
    file = folder.files.holdout_score
    return not file.is_file() or HoldoutScore.read(file).trial != best.number


def _score_holdout(folder: SweepFolder, best: Trial) -> None:
    confirmed = folder.confirmation(best.number)
    assert confirmed is not None
    data = Tables(folder.trial_recipe(best), folder.info.paths["train"]).train  # all: of a part, classes may lack
    assert data.labels is not None
    held_out = set(folder.holdout_ids)
    rows = np.flatnonzero([name in held_out for name in data.ids])
    y_pred = Classifier.load(confirmed).predict([data.texts[i] for i in rows])
    found = bootstrap_macro_f1(data.labels[rows], y_pred, data.groups[rows])
    HoldoutScore(trial=best.number, rows=len(rows), macro_f1=found).write(folder.files.holdout_score)
