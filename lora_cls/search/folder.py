"""The folder of a search: what was planned, the trials as values, and who works on which.

```
sweep.json    what all trials share             base.yaml     the recipe with its search, resolved
folds.csv     id, fold, group                   fresh.csv     the same, of the folds that confirm
journal.log   Optuna's: every trial             trials/0007/  a run folder each
confirmed/0007/  the best trials on fresh folds
best.yaml     trials.csv     sweep.html
```

The journal is the one place that says what became of a trial. While a process trains one, it touches
`trials/.0007.alive` every few seconds; a trial that is running and was not touched for `LOST_AFTER` seconds has lost its
process, and the next worker goes on with it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from lora_cls.errors import RunError
from lora_cls.recipe import Recipe, Sweep, load_recipe
from lora_cls.runs import RunFolder
from lora_cls.runs.io import read_csv
from lora_cls.runs.lock import locked
from lora_cls.runs.records import Record
from lora_cls.search.optuna_files import read_study

BEAT = 5.0
"""Seconds between two touches of a trial's `.alive` file."""
LOST_AFTER = 60.0
"""Seconds without a touch after which a trial's process counts as gone."""

TrialState = Literal["running", "complete", "stopped", "failed"]


class SweepInfo(Record):
    """`sweep.json`: what all trials of a search share, fixed when it is started."""

    started: str
    versions: dict[str, str]
    recipe_name: str
    paths: dict[str, str | None]
    """By `train` and `extra_train`: full paths."""
    label_names: list[str]
    folds: list[int]
    """Numbers of the folds that each trial trains, in this order."""
    n_splits: int
    rows: int
    """That trials are trained and scored on; extra rows not counted."""
    train_sha256: str
    holdout: float | None = None
    """The share of rows that no trial sees; their ids stand in `holdout.csv`."""


@dataclass(frozen=True)
class Trial:
    """One setting that was tried.

    Attributes
    ----------
    params : by field of the recipe
    score : what `sweep.objective` names, over the folds of the trial; None unless it is complete
    fold_scores : by fold number, each decided within its own rows
    losses : pairs of the share of the first fold's training, and the mean loss since the pair before
    reason : why it was stopped or failed
    rows_trained, rows_planned : rows that went through the model, each epoch counted; None of `tfidf`
    attempts : processes that began it
    """

    number: int
    state: TrialState
    params: dict[str, Any]
    score: float | None
    fold_scores: dict[int, float]
    losses: list[tuple[float, float]]
    reason: str | None
    started: datetime | None
    ended: datetime | None
    rows_trained: int | None
    rows_planned: int | None
    attempts: int

    @property
    def seconds(self) -> float | None:
        """From its first start to its end, interruptions included."""
        return None if self.started is None or self.ended is None else (self.ended - self.started).total_seconds()

    @property
    def mean(self) -> float | None:
        """Mean of its folds so far."""
        return sum(self.fold_scores.values()) / len(self.fold_scores) if self.fold_scores else None


class SweepFiles:
    """Where everything lies in the folder of a search."""

    def __init__(self, root: Path) -> None:
        self.info, self.base = root / "sweep.json", root / "base.yaml"
        self.folds, self.fresh, self.holdout = root / "folds.csv", root / "fresh.csv", root / "holdout.csv"
        self.journal = root / "journal.log"
        self.trials, self.confirmed = root / "trials", root / "confirmed"
        self.best, self.table, self.page = root / "best.yaml", root / "trials.csv", root / "sweep.html"

    def run(self, number: int) -> Path:
        """The run folder of a trial."""
        return self.trials / f"{number:04d}"

    def confirmation(self, number: int) -> Path:
        """The run folder of a trial's settings on fresh folds."""
        return self.confirmed / f"{number:04d}"

    def alive(self, number: int) -> Path:
        """Touched by the process that trains a trial."""
        return self.trials / f".{number:04d}.alive"


class SweepFolder:
    """An existing folder of a search. What stays fixed is read once; trials are read each time.

    Raises
    ------
    RunError
        If the path is no folder of a search.
    """

    def __init__(self, path: str | Path, *, trust_remote_code: bool = False) -> None:
        self.path = Path(path)
        self.files = SweepFiles(self.path)
        self.trust_remote_code = trust_remote_code
        if not os.path.isfile(self.files.info):
            raise RunError(f"{self.path} is no folder of a search: it has no sweep.json.")

    def __repr__(self) -> str:
        return f"SweepFolder({str(self.path)!r})"

    @cached_property
    def info(self) -> SweepInfo:
        """`sweep.json`."""
        return SweepInfo.read(self.files.info)

    @cached_property
    def recipe(self) -> Recipe:
        """What every trial starts from, its `sweep` section resolved."""
        return load_recipe(self.files.base, trust_remote_code=self.trust_remote_code)

    @property
    def settings(self) -> Sweep:
        """The recipe's `sweep` section."""
        assert self.recipe.sweep is not None
        return self.recipe.sweep

    @property
    def maximized(self) -> bool:
        """Whether a greater score is better."""
        return self.settings.objective != "loss"

    @cached_property
    def folds(self) -> pd.DataFrame:
        """Columns id, fold, group."""
        return read_csv(self.files.folds)

    @property
    def trials(self) -> list[Trial]:
        """All trials, in the order of their numbers."""
        return [self._trial(frozen) for frozen in read_study(self.files.journal).trials]

    def _trial(self, frozen: Any) -> Trial:
        states: dict[str, TrialState] = {"COMPLETE": "complete", "PRUNED": "stopped", "FAIL": "failed"}
        said = frozen.user_attrs
        state = states.get(frozen.state.name, "running")
        return Trial(
            number=frozen.number,
            state=state,
            params=dict(frozen.params),
            score=frozen.value if state == "complete" else None,
            fold_scores={int(fold): float(score) for fold, score in said.get("fold_scores", {}).items()},
            losses=[(float(share), float(loss)) for share, loss in said.get("losses", [])],
            reason=said.get("reason"),
            started=frozen.datetime_start,
            ended=frozen.datetime_complete,
            rows_trained=said.get("rows_trained"),
            rows_planned=said.get("rows_planned"),
            attempts=int(said.get("attempts", 0)),
        )

    def ranked(self, trials: list[Trial] | None = None) -> list[Trial]:
        """Complete trials, the best first; of equals the earlier one."""
        done = [(trial.score, trial) for trial in trials or self.trials if trial.score is not None]
        sign = -1 if self.maximized else 1
        return [trial for _, trial in sorted(done, key=lambda pair: (sign * pair[0], pair[1].number))]

    def silent_for(self, number: int) -> float | None:
        """Seconds since the process of a trial was last heard of; None where nothing was heard.

        Both times are the file system's, so that the clocks of two machines need not agree.
        """
        try:
            heard = self.files.alive(number).stat().st_mtime
        except FileNotFoundError:
            return None
        now = self.files.trials / f".{os.getpid()}.now"
        try:
            now.write_bytes(b"")
            return now.stat().st_mtime - heard
        finally:
            now.unlink(missing_ok=True)

    def run(self, number: int) -> RunFolder:
        """The run folder of a trial. Raises RunError where it has none yet."""
        return RunFolder(self.files.run(number), trust_remote_code=self.trust_remote_code)

    def confirmation(self, number: int) -> RunFolder | None:
        """The settings of a trial on fresh folds, scored; None where that was not done."""
        place = self.files.confirmation(number)
        if not (place / "metrics.json").is_file():
            return None
        return RunFolder(place, trust_remote_code=self.trust_remote_code)

    def writing(self, say: Callable[[str], None] = lambda _: None) -> AbstractContextManager[None]:
        """Held while a trial is chosen or ended, so that no two workers take the same one."""
        return locked(self.path, "is written", wait=say)
