"""Progress of folds, epochs and steps: bars on a terminal, one plain line per epoch in notebooks and log files."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from lora_cls.errors import in_callers_words, message_text
from lora_cls.runs import RunFolder
from lora_cls.training.task_table import TaskTable

SECONDS_BETWEEN_LINES = 10


def fold_title(fold: int) -> str:
    """What a fold is called; -1 stands for a model of all rows."""
    return "all rows" if fold < 0 else f"fold {fold}"


def interactive() -> bool:
    """Whether somebody reads along: a notebook, IPython, or Python's own prompt, which all set `sys.ps1`."""
    return hasattr(sys, "ps1")


class Listener:
    """What is told how a run goes on, from `Progress`; here every method does nothing.

    What a method raises ends the run, which can then be resumed: a search stops trials so.
    """

    def run_started(self, run: RunFolder) -> None:
        """The run folder stands, or was opened again; folds are trained from now on."""

    def loss_seen(self, fold: int, step: int, share: float, loss: float, learning_rate: float) -> None:
        """A tenth of a fold's training is done.

        Parameters
        ----------
        step : optimizer steps so far
        share : of all steps, above 0 and at most 1
        loss : mean over the steps since the last call
        """

    def epoch_done(self, fold: int, record: dict[str, Any]) -> None:
        """An epoch is done. `record` is its line of the fold's `metrics.jsonl`, and `rows_per_second`."""

    def fold_done(self, run: RunFolder, fold: int, macro_f1: float) -> None:
        """A fold's files stand; its macro-F1 is untuned."""

    def run_done(self, run: RunFolder) -> None:
        """Scores, card and page of the folds that were wanted are written."""


class Reporter(Listener):
    """Tells another process of the folds that this one trains; `Progress.heard` takes it in.

    Parameters
    ----------
    n_epochs : of a fold
    tell : sends a message, values of JSON by name
    """

    def __init__(self, n_epochs: int, tell: Callable[..., None]) -> None:
        self.n_epochs, self.tell = n_epochs, tell

    def loss_seen(self, fold: int, step: int, share: float, loss: float, learning_rate: float) -> None:
        """See `Listener.loss_seen`."""
        self.tell(step=step, share=share, loss=loss, learning_rate=learning_rate)

    def epoch_done(self, fold: int, record: dict[str, Any]) -> None:
        """See `Listener.epoch_done`."""
        self.tell(record=record, n_epochs=self.n_epochs)


class Progress:
    """Shows how far a run is. Bars on a terminal; in a notebook or a log file one line per finished epoch.

    Parameters
    ----------
    n_folds : folds of this run that are still to be trained
    show : False says nothing at all; None shows it to whoever works interactively, and nothing to a script
    listeners : told the same as values
    """

    def __init__(self, n_folds: int, show: bool | None = None, listeners: Sequence[Listener] = ()) -> None:
        self.listeners = listeners
        if show is None:
            show = interactive()
        self.n_folds = n_folds
        self.done = 0
        self.started = time.monotonic()
        self._bars: Any = None
        self._table: TaskTable | None = None
        if show:  # lines and bars of our own need none of Jupyter's widgets, which libraries below ask for
            warnings.filterwarnings("ignore", message="IProgress not found")
        self._lines = show and not sys.stderr.isatty()
        self._wanted = show and sys.stderr.isatty()

    def __enter__(self) -> Progress:
        if self._wanted:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bars

            self._bars = Bars(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=Console(stderr=True),
            )  # fmt: skip
            self._folds = self._bars.add_task("loading", total=self.n_folds or None, note="")
            self._steps: Any = None
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._table:
            self._table.stop()
        if self._bars:
            self._bars.stop()

    def expect(self, n_folds: int) -> None:
        """So many folds are to be trained from now on."""
        self.n_folds, self.done, self.started = n_folds, 0, time.monotonic()
        if self._bars:
            self._bars.update(self._folds, total=n_folds, description="folds")

    def say(self, text: str) -> None:
        """A line above the bars, or in the log; its advice in the words of the caller."""
        text = message_text(in_callers_words(text))
        if self._bars:
            self._bars.console.print(text, markup=False, highlight=False)
        elif self._lines:
            # a notebook shows stderr in red, as if it were an error
            print(text, file=sys.stdout if interactive() else sys.stderr, flush=True)

    def epoch(self, name: str, epoch: int, n_epochs: int, n_steps: int) -> None:
        """An epoch of `n_steps` optimizer steps begins."""
        if self._bars:
            if self._steps is None:  # a learner without epochs shows no bar for them
                self._steps = self._bars.add_task("", note="")
            self._bars.reset(self._steps, total=n_steps, description=f"{name}, epoch {epoch}/{n_epochs}", note="")

    def step(self, loss: float | None = None) -> None:
        if self._bars:
            note = {} if loss is None else {"note": f"loss {loss:.4f}"}
            self._bars.update(self._steps, advance=1, **note)

    def loss_seen(self, fold: int, step: int, n_steps: int, loss: float, learning_rate: float) -> None:
        """The mean loss since the last call; see `Listener.loss_seen`."""
        for listener in self.listeners:
            listener.loss_seen(fold, step, step / n_steps, loss, learning_rate)

    def epoch_done(self, fold: int, n_epochs: int, record: dict[str, Any], rows_per_second: float) -> None:
        """`record` is the epoch's line of `metrics.jsonl`."""
        self._epoch_line(fold_title(fold), n_epochs, record, rows_per_second)
        for listener in self.listeners:
            listener.epoch_done(fold, record | {"rows_per_second": round(rows_per_second, 2)})

    def _epoch_line(self, name: str, n_epochs: int, record: Mapping[str, Any], rows_per_second: float) -> None:
        if self._lines:
            epoch, loss = record["epoch"], record["loss"]
            self.say(f"{name}: epoch {epoch}/{n_epochs}, loss {loss:.4f}, {rows_per_second:.0f} rows/s")

    def share_out(self, folds: Sequence[int]) -> None:
        """From now on other processes train these folds, see `heard`: one table shows them all."""
        if self._bars:
            self._table = TaskTable([fold_title(fold) for fold in folds], self._bars)
            self._table.start()

    def heard(self, fold: int, where: str, message: Mapping[str, Any]) -> None:
        """What a process that trains a fold says of it, as `Reporter` sends it."""
        if self._table:
            self._table.heard(fold_title(fold), where, message)
        if "record" in message:
            record = message["record"]
            name = f"{fold_title(fold)} ({where})"
            self._epoch_line(name, message["n_epochs"], record, record["rows_per_second"])
            for listener in self.listeners:
                listener.epoch_done(fold, record)
        elif "loss" in message:
            for listener in self.listeners:
                listener.loss_seen(fold, **message)

    def fold_scored(self, run: RunFolder, fold: int, macro_f1: float) -> None:
        """A fold's files stand."""
        optimistic = " (OPTIMISTIC)" if run.recipe.train.select == "scored_fold" else ""
        if self._table:
            self._table.done(fold_title(fold), f"macro-F1 {macro_f1:.4f}")
        self.part_done(fold_title(fold), f"macro-F1 {macro_f1:.4f} untuned{optimistic}")
        for listener in self.listeners:
            listener.fold_done(run, fold, macro_f1)

    def part_done(self, name: str, note: str) -> None:
        """One of the parts that were expected is done."""
        self.done += 1
        if self._bars:
            self._bars.update(self._folds, advance=1)
        minutes = (time.monotonic() - self.started) / 60
        left = minutes / self.done * (self.n_folds - self.done)
        self.say(f"{name}: {note} ({self.done} of {self.n_folds}, {minutes:.1f} min, about {left:.1f} min left)")


class RowProgress(Progress):
    """Shows how many rows of a long table are answered: a bar on a terminal; elsewhere a line after a piece, at most
    one in ten seconds.

    Parameters
    ----------
    n_rows : of the table
    show : see `Progress`
    """

    def __init__(self, n_rows: int, show: bool | None = None) -> None:
        super().__init__(0, show)
        self.n_rows = n_rows
        self._found, self._answered = 0, 0.0
        self._said = self.started

    def __enter__(self) -> RowProgress:
        super().__enter__()
        if self._bars:
            self._bars.update(self._folds, total=self.n_rows, description="rows")
        return self

    @property
    def rate(self) -> float:
        """Rows per second, of those that were not answered before."""
        return self._answered / max(time.monotonic() - self.started, 1e-9)

    def advance(self, n_rows: float) -> None:
        """So many more rows are answered; a part of one where not all models have been asked."""
        self._answered += n_rows
        if self._bars:
            self._bars.update(self._folds, completed=self._found + round(self._answered), note=f"{self.rate:,.0f}/s")

    def found(self, n_rows: float) -> None:
        """So many rows were answered before."""
        self._found = round(n_rows)
        if self._bars:
            self._bars.update(self._folds, completed=self._found)

    def tell(self) -> None:
        """Say how far it is; a line each ten seconds at most, and a last one."""
        done = self._found + round(self._answered)
        now = time.monotonic()
        if self._bars or (now - self._said < SECONDS_BETWEEN_LINES and done < self.n_rows):
            return
        self._said = now
        left = (self.n_rows - done) / self.rate / 60
        before = f", {self._found:,} of them before" if self._found else ""
        self.say(
            f"{done:,} of {self.n_rows:,} rows answered{before}; {self.rate:,.0f} rows/s, about {left:.1f} min left"
        )
