"""The process that trains one trial of a search: `python -m lora_cls.commands.trial SWEEP NUMBER`.

Each trial has a process of its own, so that no memory stays behind; it ends with the process that started it.
"""

from __future__ import annotations

import argparse
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from lora_cls.commands.cross_validation import cross_validate
from lora_cls.commands.tune import score
from lora_cls.errors import LoraClsError, brief, memory_full
from lora_cls.execution.child import Parent
from lora_cls.files import make_folder, remove
from lora_cls.recipe import Recipe, load_recipe
from lora_cls.runs import RunFolder
from lora_cls.search.folder import BEAT, SweepFolder
from lora_cls.search.objective import fold_score, run_score
from lora_cls.search.optuna_files import load_optuna, note, note_mean, open_study
from lora_cls.search.stopping import lost_by_folds, lost_by_loss
from lora_cls.training.progress import Listener


class HopelessTrialError(Exception):
    """A trial without hope; the message says why."""


class TrialListener(Listener):
    """Writes how a trial goes on into the journal, and stops it by the rules of `search.stopping`."""

    def __init__(self, sweep: SweepFolder, study: Any, number: int) -> None:
        self.sweep, self.study, self.number = sweep, study, number
        before = sweep.trials[number]
        self.fold_scores, self.losses = dict(before.fold_scores), list(before.losses)
        self.rows_of_fold: dict[int, int] = {}
        self._share = 0.0

    def run_started(self, run: RunFolder) -> None:
        """Note how many rows the trial is going to go through."""
        fold = run.folds["fold"].to_numpy()
        epochs = 1 if run.recipe.tfidf is not None else run.recipe.train.num_train_epochs
        self.rows_of_fold = {number: int((fold != number).sum()) * epochs for number in self.sweep.info.folds}
        note(self.study, self.number, rows_planned=sum(self.rows_of_fold.values()))

    def loss_seen(self, fold: int, step: int, share: float, loss: float, learning_rate: float) -> None:
        """Note the loss of the first fold, and compare it with other trials'."""
        self._share = share
        if fold != self.sweep.info.folds[0]:
            return
        self.losses = [point for point in self.losses if point[0] < share] + [(round(share, 4), round(loss, 6))]
        note(self.study, self.number, losses=self.losses)
        settings = self.sweep.settings
        if settings.stop_losses and not any(field.startswith("loss.") for field in settings.space or {}):
            self._stop(lost_by_loss(self.losses, self.sweep.ranked()))

    def fold_done(self, run: RunFolder, fold: int, macro_f1: float) -> None:
        """Note the fold's score, and compare the mean so far with the best trial's folds."""
        self._share = 0.0
        self.fold_scores[fold] = fold_score(run, fold, self.sweep.objective)
        mean = sum(self.fold_scores.values()) / len(self.fold_scores)
        note(self.study, self.number, fold_scores=self.fold_scores)
        note_mean(self.study, self.number, len(self.fold_scores), mean)
        if self.sweep.settings.stop_folds and len(self.fold_scores) < len(self.sweep.info.folds):
            best = next(iter(self.sweep.ranked()), None)
            self._stop(lost_by_folds(list(self.fold_scores.values()), best, self.sweep.maximized))

    def rows_trained(self) -> int:
        """So far, each epoch counted."""
        done = sum(self.rows_of_fold.get(fold, 0) for fold in self.fold_scores)
        current = next((fold for fold in self.sweep.info.folds if fold not in self.fold_scores), None)
        return done + round(self._share * self.rows_of_fold.get(current, 0) if current is not None else 0)

    @staticmethod
    def _stop(reason: str | None) -> None:
        if reason is not None:
            raise HopelessTrialError(reason)


def train_trial(sweep: SweepFolder, number: int, threads: int | None) -> None:
    """Train a trial, or go on with it, and write into the journal what became of it."""
    states = load_optuna().trial.TrialState
    study = open_study(sweep.files.journal)
    place, listener = sweep.files.run(number), TrialListener(sweep, study, number)
    try:
        run = _run(sweep, number, place, sweep.files.folds, threads, [listener])
        value = run_score(run, sweep.objective)
        state, reason = states.COMPLETE, None
    except HopelessTrialError as stopped:
        state, reason = states.PRUNED, str(stopped)
        run = RunFolder(place, trust_remote_code=sweep.trust_remote_code)
        if run.finished_folds:
            with run.writing():
                score(run)
    except LoraClsError as error:
        if "is trained by" in str(error):  # another worker, which took it for lost
            return
        state, reason = states.FAIL, str(error)
    except MemoryError:
        state, reason = states.FAIL, memory_full("", "the setting needs more than there is.")
    except Exception as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's
            raise
        state, reason = states.FAIL, memory_full("", "the setting needs more than there is.")
    note(study, number, rows_trained=listener.rows_trained(), **({} if reason is None else {"reason": reason}))
    study.tell(number, value if state == states.COMPLETE else None, state)


def confirm_trial(sweep: SweepFolder, number: int, threads: int | None) -> None:
    """Run a trial's setting on the fresh folds."""
    place = sweep.files.confirmation(number)
    _run(sweep, number, place, sweep.files.fresh, threads, [])


def _run(
    sweep: SweepFolder,
    number: int,
    place: Path,
    fold_table: Path,
    threads: int | None,
    listeners: list[Listener],
) -> RunFolder:
    recipe: Recipe = sweep.trial_recipe(sweep.trials[number], fresh=fold_table == sweep.files.fresh)
    if threads is not None and recipe.engine.num_threads is None:
        recipe = load_recipe(recipe, {"engine.num_threads": threads}, trust_remote_code=sweep.trust_remote_code)
    return cross_validate(
        recipe, sweep.train_table(), out=place, extra_train=sweep.info.paths.get("extra_train"),
        folds=sweep.info.folds, fold_table=fold_table, resume=True, listeners=listeners, show=True,
        trust_remote_code=sweep.trust_remote_code,
    )  # fmt: skip


def _stay_alive(alive: Path, ended: threading.Event) -> None:
    """Touch a file every few seconds, while the process works."""
    while not ended.wait(BEAT):
        with suppress(OSError):  # a full disk: others may then take the trial for lost, and find it locked
            alive.touch()


def main() -> None:
    """Exit code 0 if the journal, or a finished run, says what became of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("sweep", type=Path)
    parser.add_argument("number", type=int)
    parser.add_argument("--confirm", action="store_true")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--trust-remote-code", action="store_true")
    given = parser.parse_args()
    sweep = SweepFolder(given.sweep, trust_remote_code=given.trust_remote_code)
    place = sweep.files.confirmation(given.number) if given.confirm else sweep.files.run(given.number)
    alive, ended = sweep.files.alive(place), threading.Event()
    Parent(lambda: alive.unlink(missing_ok=True))
    make_folder(place.parent)
    alive.touch()
    threading.Thread(target=_stay_alive, args=(alive, ended), daemon=True).start()
    try:
        (confirm_trial if given.confirm else train_trial)(sweep, given.number, given.threads)
    except LoraClsError as error:
        print(f"Error: {brief(error, 1500)}", file=sys.stderr)
        sys.exit(2)
    finally:
        ended.set()
        with suppress(OSError):
            remove(alive)


if __name__ == "__main__":
    main()
