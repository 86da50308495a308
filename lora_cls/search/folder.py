"""The folder of a search: what was planned, the trials as values, and who works on which.

```
sweep.json    what all trials share             base.yaml     the recipe with its search, resolved
folds.csv     id, fold, group                   fresh.csv     the same, of the folds that confirm
journal.log   Optuna's: every trial             trials/0007/  a run folder each
confirmed/0007/  the best trials on fresh folds      holdout.csv  holdout.json
best.yaml     trials.csv     sweep.html     train.parquet, where the table was given as a DataFrame
```

The journal is the one place that says what became of a trial. While a process trains one, it touches
`trials/.0007.alive` every few seconds, and removes it as it ends; a trial that is running and was not touched for
`LOST_AFTER` seconds has lost its process, and the next worker goes on with it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from lora_cls.data import TableLike, read_table
from lora_cls.data.table import as_id
from lora_cls.errors import RunError
from lora_cls.evaluation import Interval
from lora_cls.recipe import Recipe, Sweep, SweepObjective, load_recipe
from lora_cls.runs import RunFolder
from lora_cls.runs.io import read_csv
from lora_cls.runs.lock import locked
from lora_cls.runs.records import Record
from lora_cls.search.coding import decoded
from lora_cls.search.optuna_files import open_study

LOSSES = ("loss", "log_loss")
"""Objectives of which less is better."""

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
    columns: dict[str, Any]
    """Fields of the recipe that say what the columns are, as found with the test table that trials do not read."""
    label_names: list[str]
    folds: list[int]
    """Numbers of the folds that each trial trains, in this order."""
    n_splits: int
    rows: int
    """That trials are trained and scored on; extra rows not counted."""
    train_sha256: str
    holdout: float | None = None
    """The share of rows that no trial sees; their ids stand in `holdout.csv`."""
    start_from: dict[str, Any] | None = None
    """Which weights all trials begin with, as in the `choices` of a run."""


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


class HoldoutScore(Record):
    """`holdout.json`: the best trial's models of fresh folds, on rows that no trial saw."""

    trial: int
    rows: int
    macro_f1: Interval


class SweepFiles:
    """Where everything lies in the folder of a search."""

    def __init__(self, root: Path) -> None:
        self.info, self.base = root / "sweep.json", root / "base.yaml"
        self.folds, self.fresh, self.holdout = root / "folds.csv", root / "fresh.csv", root / "holdout.csv"
        self.journal = root / "journal.log"
        self.train = root / "train.parquet"
        self.holdout_score = root / "holdout.json"
        self.trials, self.confirmed = root / "trials", root / "confirmed"
        self.best, self.table, self.page = root / "best.yaml", root / "trials.csv", root / "sweep.html"

    def run(self, number: int) -> Path:
        """The run folder of a trial."""
        return self.trials / f"{number:04d}"

    def confirmation(self, number: int) -> Path:
        """The run folder of a trial's settings on fresh folds."""
        return self.confirmed / f"{number:04d}"

    @staticmethod
    def alive(run: Path) -> Path:
        """Touched by the process that trains a run of the search."""
        return run.with_name(f".{run.name}.alive")


def without(table: pd.DataFrame, ids: Sequence[str], column: str | None) -> pd.DataFrame:
    """A table without the rows of the given ids.

    Parameters
    ----------
    column : that holds the ids; None where rows are named by their number, `row-0`, ...
    """
    left_out = set(ids)
    names = [f"row-{i}" if column is None else as_id(table[column].iloc[i]) for i in range(len(table))]
    return table[[name not in left_out for name in names]]


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
        if self.recipe.sweep is None:
            raise RunError(f"{self.files.base} is damaged: it has no section sweep.")
        return self.recipe.sweep

    @property
    def objective(self) -> SweepObjective:
        """What trials are compared by."""
        return self.settings.objective or self.recipe.metric

    @property
    def maximized(self) -> bool:
        """Whether a greater score is better."""
        return self.objective not in LOSSES

    @cached_property
    def folds(self) -> pd.DataFrame:
        """Columns id, fold, group."""
        return read_csv(self.files.folds)

    @property
    def trials(self) -> list[Trial]:
        """All trials, in the order of their numbers."""
        return [self._trial(frozen) for frozen in open_study(self.files.journal).trials]

    def _trial(self, frozen: Any) -> Trial:
        states: dict[str, TrialState] = {"COMPLETE": "complete", "PRUNED": "stopped", "FAIL": "failed"}
        said = frozen.user_attrs
        state = states.get(frozen.state.name, "running")
        return Trial(
            number=frozen.number,
            state=state,
            params=decoded(frozen.params, self.settings),
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

    @property
    def best(self) -> Trial | None:
        """The complete trial of the best score."""
        return next(iter(self.ranked()), None)

    def ranked(self, trials: list[Trial] | None = None) -> list[Trial]:
        """Complete trials, the best first; of equals the earlier one."""
        trials = self.trials if trials is None else trials
        done = [(trial.score, trial) for trial in trials if trial.score is not None]
        sign = -1 if self.maximized else 1
        return [trial for _, trial in sorted(done, key=lambda pair: (sign * pair[0], pair[1].number))]

    def silent_for(self, run: Path) -> float | None:
        """Seconds since the process that trains a run of the search was last heard of, by this machine's clock; None
        where nothing was heard."""
        try:
            return time.time() - self.files.alive(run).stat().st_mtime
        except FileNotFoundError:
            return None

    def trial_recipe(self, trial: Trial, *, fresh: bool = False) -> Recipe:
        """What a trial runs: the search's recipe with its setting, the columns as they were found, and the trial as one
        of a group for trackers.

        Parameters
        ----------
        fresh : whether it is the run on fresh folds, which trackers show beside the other
        """
        fixed: dict[str, Any] = {"sweep": None, **self.info.columns}
        if self.recipe.tracking.to:
            fixed |= {"tracking.group": self.recipe.tracking.group or self.path.resolve().name}
            fixed |= {"tracking.name": f"trial {trial.number}{' on fresh folds' * fresh}"}
            fixed |= {"tracking.folder": self.recipe.tracking.folder or str(self.path.absolute() / "tracking")}
        return load_recipe(self.recipe, fixed | trial.params)

    def train_table(self) -> TableLike:
        """What trials read: the training table, without the rows that are held out from the whole search."""
        source = self.info.paths["train"]
        assert source is not None
        if self.info.holdout is None:
            return source
        return without(read_table(source), self.holdout_ids, self.info.columns.get("data.id_column"))

    @property
    def holdout_ids(self) -> list[str]:
        """Of the rows that no trial sees."""
        return read_csv(self.files.holdout)["id"].astype(str).tolist()

    def run(self, number: int) -> RunFolder:
        """The run folder of a trial. Raises RunError where it has none yet."""
        return RunFolder(self.files.run(number), trust_remote_code=self.trust_remote_code)

    def confirmation(self, number: int) -> RunFolder | None:
        """The settings of a trial on fresh folds, scored; None where that was not done."""
        place = self.files.confirmation(number)
        if not (place / "metrics.json").is_file():
            return None
        return RunFolder(place, trust_remote_code=self.trust_remote_code)

    def writing(self) -> AbstractContextManager[None]:
        """Held for moments, while a trial is chosen or ended, so that no two workers take the same one."""
        return locked(self.path, "is written", wait=lambda _: None)
