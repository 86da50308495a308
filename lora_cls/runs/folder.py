"""The run folder: where its files lie, and what they hold as values.

```
recipe.yaml       resolved                     run.json     versions, device, measured choices, fingerprints, seconds
labels.json       names, order, task, column   folds.csv    id, fold (-1: only trained on), group
train_labels.csv  id and 0/1 columns           README.md    model card, and a snippet that loads it without us
text_hashes.npy   of what was trained on: tells a run that starts from this one which texts its models saw
fold-00/          adapter/ (or model/), metrics.jsonl, oof_logits.npy, test_logits.npy, fold.json;
                  answers.csv where a model wrote its labels; teachers.safetensors where it learnt from others;
                  state.safetensors while unfinished
test_ids.csv      sample_submission.csv, where given
blend.json        of a blend: what each way and each run gains; fitted_logits.npy where it learnt from labels
oof_proba.csv     thresholds.json  metrics.json  test_proba.csv  submission.csv
report.html       mistakes.csv  doubts.csv
logs/             worker-0.log, ... of processes that trained folds
```

Files are written under a temporary name and renamed; `fold.json` completes a fold and is written last. `run.json` and
`fold.json` hold the SHA-256 of tables, arrays and weights, and every JSON file that of its own fields: what was changed
since is an error when it is read. `.lock` stands in a folder, or a fold, while a process writes it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from html import escape
from os import PathLike
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd

from lora_cls.data import Dataset, text_hashes
from lora_cls.data.folds import held_apart
from lora_cls.data.names import free_name
from lora_cls.data.submission import spelled_header
from lora_cls.errors import RunError, no_fold_finished, shorten, visible
from lora_cls.evaluation import Task, task_of
from lora_cls.files import remove, sweep, whole_folder, write_array, write_bytes, write_csv, writing
from lora_cls.recipe import Recipe, flatten, load_recipe
from lora_cls.runs.fold import FoldFolder
from lora_cls.runs.io import RESTORE, integers, read_array, read_bytes, read_csv, read_values, write_values
from lora_cls.runs.lock import LOCK, locked
from lora_cls.runs.out_of_fold import OutOfFold
from lora_cls.runs.records import Decision, LabelsInfo, RunInfo, Scores, TableScores
from lora_cls.runs.sums import sums
from lora_cls.yaml_text import write_yaml

TABLE_SCORES, TABLE_LABELS, TABLE_ROWS = "scores.json", "labels.csv", "rows.csv"  # in the folder of a labelled table
ANSWERS, ABSTENTION = "answers.csv", "abstain.json"  # in a folder of predictions
UNFINISHED = ".creating"  # stands in a folder that is not complete yet


class RunFiles:
    """Where everything lies in a run folder; `FoldFolder` goes on within a fold."""

    def __init__(self, root: Path) -> None:
        self.recipe, self.info, self.labels = root / "recipe.yaml", root / "run.json", root / "labels.json"
        self.folds, self.train_labels = root / "folds.csv", root / "train_labels.csv"
        self.text_hashes = root / "text_hashes.npy"
        self.test_ids, self.sample_submission = root / "test_ids.csv", root / "sample_submission.csv"
        self.decision, self.scores = root / "thresholds.json", root / "metrics.json"
        self.oof_proba, self.test_proba = root / "oof_proba.csv", root / "test_proba.csv"
        self.submission = root / "submission.csv"
        self.card, self.page = root / "README.md", root / "report.html"
        self.mistakes, self.doubts = root / "mistakes.csv", root / "doubts.csv"
        self.blend, self.fitted_logits = root / "blend.json", root / "fitted_logits.npy"
        self.export = root / "export.json"
        self.classifier = root / "classifier.json"
        if self.classifier.is_file():  # of an ONNX export: it holds what these two do
            self.labels = self.decision = self.classifier
        self.calibration = root / "calibration.json"
        self.oof_calibrated, self.test_calibrated = (
            root / "oof_proba_calibrated.csv",
            root / "test_proba_calibrated.csv",
        )
        self.predictions, self.table_scores = root / "predictions", root / "scores"
        self.logs = root / "logs"


@dataclass(frozen=True)
class Results:
    """What a run comes to: its out-of-fold predictions, how they are decided, and the scores of that."""

    oof: OutOfFold
    decision: Decision
    scores: Scores


class RunFolder:
    """An existing run folder. What stays fixed is read once; what `tune` writes is read each time that it is asked for.
    To open and read one changes nothing in it.

    Parameters
    ----------
    name : what it will be called, while it stands under a scratch name; that of the folder where None
    trust_remote_code : whether Python code that comes with the base model may run; the folder's own recipe is not
        asked, as somebody else may have written it
    outside_runs : whether a blend may open runs that lie outside the folder that it lies in. What this process made
        itself has both as its maker had them

    Raises
    ------
    RunError
        If the path is no run folder.

    Examples
    --------
    The results of a run, as tables: `run.scores`, `run.per_label`, `run.oof`, `run.test_proba`, `run.submission`.

    >>> RunFolder("no/such/run")
    Traceback (most recent call last):
    lora_cls.errors.RunError: no/such/run is no run folder: it has no recipe.yaml.
    """

    def __init__(
        self,
        path: str | Path,
        name: str | None = None,
        *,
        trust_remote_code: bool = False,
        outside_runs: bool = False,
    ) -> None:
        self.path = Path(path)
        self.name = visible(name or self.path.resolve().name)  # a name of bytes that are no text
        self.trust_remote_code, self.outside_runs = trust_remote_code, outside_runs
        self.files = RunFiles(self.path)
        if not os.path.isfile(self.files.recipe):  # Path's asks with errors of its own, as of a name that is too long
            what = "an export for another program" if os.path.isfile(self.files.export) else "no run folder"
            raise RunError(f"{self.path} is {what}: it has no recipe.yaml.")
        self._folds: dict[int, FoldFolder] = {}
        self._info: RunInfo | None = None

    @classmethod
    def of(
        cls, run: str | Path | RunFolder, *, trust_remote_code: bool = False, outside_runs: bool = False
    ) -> RunFolder:
        """A run folder, whichever way it is given; what it was opened with stays permitted.

        Raises
        ------
        RunError
            If it is no run folder, or neither a path nor a `RunFolder`.
        """
        if not isinstance(run, (str, PathLike, RunFolder)):
            raise RunError(f"A run is given by its path or as a RunFolder. Got {type(run).__name__} instead.")
        if not isinstance(run, RunFolder):
            return cls(run, trust_remote_code=trust_remote_code, outside_runs=outside_runs)
        trusted, outside = run.trust_remote_code or trust_remote_code, run.outside_runs or outside_runs
        if (trusted, outside) == (run.trust_remote_code, run.outside_runs):
            return run
        return cls(run.path, trust_remote_code=trusted, outside_runs=outside)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    def _repr_html_(self) -> str:
        """For notebooks: where the run is, how far it is, its scores, and its page."""
        shown = f"<p><b>{escape(repr(self))}</b></p>"
        try:
            folds = f"{len(self.finished_folds)} of {len(self.fold_numbers)} folds finished"
            more = f"{self.task().title}, {len(self.label_names)} {self.task().nouns}, {folds}"
            shown += f"<p>{escape(more)}</p>"
            if self.files.scores.is_file():
                shown += self.scores._repr_html_()
            if self.files.page.is_file():
                shown += f"<p>Curves, mistakes and doubtful labels: {escape(str(self.files.page))}</p>"
        except RunError as error:  # damage should not keep a notebook from showing which run it is
            shown += f"<p>{escape(str(error))}</p>"
        return shown

    @property
    def scores(self) -> Scores:
        """`metrics.json`."""
        return Scores.read(self.files.scores)

    @property
    def per_label(self) -> pd.DataFrame:
        """A row per label: the cross-fitted scores, and the shipped threshold."""
        return self.scores.per_label()

    @property
    def oof(self) -> pd.DataFrame:
        """Columns id and fold (`id_`, `fold_` beside labels of such names), then each label's out-of-fold probability;
        the rows of the finished folds."""
        if self.files.decision.is_file():
            self.decision()  # raises where folds are gone that the scores beside this table are of
        found = self.out_of_fold()
        rows = pd.DataFrame(
            {free_name("id", found.label_names): found.ids, free_name("fold", found.label_names): found.fold}
        )
        return pd.concat([rows, pd.DataFrame(found.y_score, columns=found.label_names)], axis=1)

    @property
    def test_proba(self) -> pd.DataFrame | None:
        """Column id, then each label's probability for the test rows; None for a run without test rows."""
        if self.test_ids is None:
            return None
        return self._tuned(self.files.test_proba, free_name("id", self.label_names))

    @property
    def submission(self) -> pd.DataFrame | None:
        """`submission.csv`, the ids in its first column as text; None for a run without test rows."""
        if self.test_ids is None:
            return None
        file = self.files.submission
        return self._tuned(file, self._tuned(file).columns[0])

    def _tuned(self, file: Path, ids: str = "id") -> pd.DataFrame:
        """A table that `tune` wrote together with `metrics.json`."""
        return read_csv(file, self.scores.files.get(file.name), ids=ids, remedy=Scores.remedy)

    @classmethod
    def create(
        cls,
        path: Path,
        recipe: Recipe,
        train: Dataset,
        fold: np.ndarray,
        info: RunInfo,
        test: Dataset | None = None,
        sample: pd.DataFrame | None = None,
        seen: np.ndarray | None = None,
        *,
        overwrite: bool = False,
    ) -> RunFolder:
        """Make a new run folder; `recipe.yaml`, which marks it as one, is written last.

        With `overwrite` a folder of ours gives way as soon as the new one is complete.

        Parameters
        ----------
        seen : hashes of texts that the weights were trained on before this run, see `text_hashes`
        """
        if overwrite and cls.begun(path):
            refuse_foreign(path)
            with whole_folder(path, replace=True) as new:
                made = cls.create(new, recipe, train, fold, info, test, sample, seen)
            return cls(path, trust_remote_code=made.trust_remote_code, outside_runs=True)
        assert train.labels is not None
        with cls._locked(path):
            files = cls._begin(path)
            named = train.columns.label_column if train.columns else None
            LabelsInfo(task=recipe.task, labels=train.label_names, column=named).write(files.labels)
            write_csv(files.folds, pd.DataFrame({"id": train.ids, "fold": fold, "group": train.groups}))
            write_values(files.train_labels, train.ids, train.label_names, train.labels)
            own = text_hashes(train.texts)
            write_array(files.text_hashes, own if seen is None else np.concatenate([own, seen]))
            if test is not None:
                write_csv(files.test_ids, pd.DataFrame({"id": test.ids}))
            if sample is not None:
                write_csv(files.sample_submission, sample.set_axis(spelled_header(sample), axis=1))
            return cls._complete(path, recipe, info)

    @classmethod
    def create_like(cls, path: Path, recipe: Recipe, info: RunInfo, like: RunFolder) -> RunFolder:
        """Make a new run folder on the rows, labels, folds and test rows of another, without any fold finished."""
        with cls._locked(path):
            files = cls._begin(path)
            for name in ("labels", "folds", "train_labels", "test_ids", "sample_submission"):
                source = getattr(like.files, name)
                if like._has(source):
                    write_bytes(getattr(files, name), read_bytes(source, like._noted(source), RESTORE))
            return cls._complete(path, recipe, info)

    @staticmethod
    def _locked(path: Path, say: Callable[[str], None] = lambda _: None) -> AbstractContextManager[None]:
        return locked(path, "is written", wait=say)

    @contextmanager
    def writing(self, say: Callable[[str], None] = lambda _: None) -> Iterator[None]:
        """Held while scores, decisions and whatever else stands at the top of the folder are written; what killed
        processes left half-written goes first.

        Parameters
        ----------
        say : told of another process that is waited for
        """
        with self._locked(self.path, say):
            sweep(self.path, deep=True)
            yield

    @classmethod
    def _begin(cls, path: Path) -> RunFiles:
        cls.refuse_existing(path)
        write_bytes(path / UNFINISHED, b"")
        return RunFiles(path)

    @classmethod
    def _complete(cls, path: Path, recipe: Recipe, info: RunInfo) -> RunFolder:
        files = RunFiles(path)
        written = recipe_bytes(recipe)
        tables = [files.folds, files.train_labels, files.text_hashes, files.test_ids, files.sample_submission]
        noted = sums(path, tables)
        noted |= {files.recipe.name: hashlib.sha256(written).hexdigest()}
        info.model_copy(update={"files": noted}).write(files.info)
        write_bytes(files.recipe, written)
        remove(path / UNFINISHED)
        trusted = recipe.backbone is not None and recipe.backbone.trust_remote_code
        return cls(path, trust_remote_code=trusted, outside_runs=True)

    @staticmethod
    def begun(path: Path) -> bool:
        """Whether there is anything to resume: neither an empty folder nor one that `create` was stopped in."""
        sweep(path)
        if not path.is_dir():
            return path.exists()
        return any(file.name != LOCK for file in path.iterdir()) and not (path / UNFINISHED).exists()

    @classmethod
    def refuse_existing(cls, path: Path, overwrite: bool = False) -> None:
        """Raise RunError unless `create` may write into `path`."""
        with writing(path):
            begun = cls.begun(path)
        if begun:
            if not overwrite:
                raise RunError(
                    f"{path} exists already. Continue it with --resume, replace it with --overwrite, or choose another "
                    "folder with --out."
                )
            refuse_foreign(path)
        parent = next(parent for parent in path.absolute().parents if parent.exists())
        if not parent.is_dir():
            raise RunError(f"{path} cannot be made: {parent} is a file.")

    @cached_property
    def recipe(self) -> Recipe:
        file = self.files.recipe
        read_bytes(file, self._noted(file), RESTORE)
        return load_recipe(file, trust_remote_code=self.trust_remote_code)

    @cached_property
    def labels_info(self) -> LabelsInfo:
        """`labels.json`."""
        return LabelsInfo.read(self.files.labels)

    @property
    def label_names(self) -> list[str]:
        return list(self.labels_info.labels)

    @property
    def label_column(self) -> str | None:
        """The one column that held the labels' names; None where each label had a 0/1 column."""
        return self.labels_info.column

    def task(self, decision: Decision | None = None) -> Task:
        """How the run's task decides, and what it is judged by: as the recipe says, or as `thresholds.json` does."""
        recipe = self.recipe
        if decision is not None:
            return task_of(recipe.task, decision.settings, decision.metric, decision.metric_beta)
        return task_of(recipe.task, recipe.thresholds, recipe.metric, recipe.metric_beta)

    @property
    def info(self) -> RunInfo:
        """`run.json`."""
        if self._info is None:
            self._info = RunInfo.read(self.files.info)
        return self._info

    def _noted(self, file: Path) -> str | None:
        """The SHA-256 that `run.json` holds of a file at the top of the folder."""
        return self.info.files.get(file.name)

    def told_as(self, name: str, recipe: Recipe, info: RunInfo) -> RunFolder:
        """The same files under another name, with another recipe and `run.json`, as a run is shown to others."""
        told = RunFolder(self.path, name, trust_remote_code=self.trust_remote_code, outside_runs=self.outside_runs)
        told.recipe, told._info = recipe, info
        return told

    def _has(self, file: Path) -> bool:
        """Whether there is, or should be, such a file."""
        return self._noted(file) is not None or file.is_file()

    def reread(self) -> None:
        """Forget what was read of `run.json` and the folds: another process may have written them."""
        self._info = None
        self._folds.clear()

    def update_info(self, **values: Any) -> None:
        """Change fields of `run.json`, on top of what other processes wrote meanwhile."""
        with self.writing():
            self._info = RunInfo.read(self.files.info).model_copy(update=values)
            self._info.write(self.files.info)

    @cached_property
    def folds(self) -> pd.DataFrame:
        """Columns id, fold, group; the training rows in their order. Rows of fold -1 are only trained on.

        Raises
        ------
        RunError
            Where there are none, as in a run that was pushed to the hub.
        """
        if not self._has(self.files.folds) and not self.info.data.train_sha256:
            raise RunError(
                f"{self.path} was pushed to the hub without its rows: it answers (lora-cls predict, explain, export), "
                "and what asks for its rows needs the folder that it was pushed from."
            )
        table = read_csv(self.files.folds, self._noted(self.files.folds))
        return table.assign(**integers(self.files.folds, table, ["fold", "group"]))

    @cached_property
    def y_true(self) -> np.ndarray:
        """Training labels, ndarray of shape (n_samples, n_labels), int8."""
        file, ids = self.files.train_labels, self.folds["id"].tolist()
        return read_values(file, ids, self.label_names, self._noted(file)).astype(np.int8)

    def fold(self, number: int) -> FoldFolder:
        return self._folds.setdefault(number, FoldFolder(self.path / f"fold-{number:02d}"))

    @cached_property
    def refit(self) -> FoldFolder:
        """The model trained on all rows, where `refit` was run."""
        return FoldFolder(self.path / "refit")

    def base_place(self, given: str | None = None) -> str | None:
        """Where the base model is to be looked for: at `given`; at the full path that `run.json` holds, where the
        recipe's relative one leads nowhere from the current folder; None for where the recipe says."""
        named, noted = self.recipe.backbone, self.info.backbone_path
        if given is not None or named is None or noted is None or named.name_or_path.startswith("package:"):
            return given
        found = Path(noted).is_absolute() and Path(noted).is_dir()
        return noted if found and not Path(named.name_or_path).expanduser().exists() else None

    @property
    def exported(self) -> bool:
        """Whether this is one model made of a run's folds (`lora_cls.commands.export`), in place of a run."""
        return self.files.export.is_file()

    @property
    def fold_numbers(self) -> list[int]:
        if not self._has(self.files.folds):  # a run that was pushed to the hub: its rows stayed where they were
            names = [path.name for path in self.path.glob("fold-*") if path.is_dir()]
            return sorted(int(name[5:]) for name in names if name[5:].isdecimal())
        return sorted(int(f) for f in set(self.folds["fold"]) if f >= 0)

    @property
    def finished_folds(self) -> list[int]:
        return [number for number in self.fold_numbers if self.fold(number).finished]

    @property
    def refit_epochs(self) -> int | None:
        """Epochs of a model of all rows: the median of those that the folds chose; None for all of the recipe's."""
        chosen = [self.fold(number).info.epoch or 0 for number in self.finished_folds]
        return round(median(chosen)) if self.recipe.train.select != "last" and chosen else None

    def pos_weights(self, folds: Sequence[int] | None = None) -> np.ndarray:
        """Positive or class weights of the finished folds, ndarray of shape (n_folds, n_labels).

        Parameters
        ----------
        folds : those that were finished when it was asked: others may be, meanwhile, where several processes train
        """
        folds = self.finished_folds if folds is None else folds
        return np.array([self.fold(number).pos_weight(len(self.label_names)) for number in folds])

    def out_of_fold(self) -> OutOfFold:
        """What the finished folds say of the rows that they held out.

        Raises
        ------
        RunError
            If no fold is finished, if those finished hold out a single group of rows, or if a file is damaged.
        """
        finished, names = self.finished_folds, self.label_names
        if not finished:
            raise no_fold_finished(self.path)
        fold = self.folds["fold"].to_numpy()
        rows = np.flatnonzero(np.isin(fold, finished))
        fold, groups, y_true = fold[rows], self.folds["group"].to_numpy()[rows], self.y_true[rows]
        if len(np.unique(groups)) < 2:
            raise RunError(
                f"{self.path}: the rows scored so far are one row, or stay together as one; scores need two at least. "
                "Train more folds with --resume."
            )
        task = self.task()
        logits = np.empty((len(rows), len(names)), dtype=np.float32)
        y_score = np.empty(logits.shape, dtype=np.float64)
        for number, weight in zip(finished, self.pos_weights(finished), strict=True):
            here = fold == number
            folder = self.fold(number)
            logits[here] = folder.read_array(folder.oof_logits, (int(here.sum()), len(names)))
            y_score[here] = task.link.probabilities(logits[here], weight)
        over, part = held_apart(fold, y_true, groups, self.recipe)
        fitted = None
        if self._has(file := self.files.fitted_logits):
            shape = (len(np.unique(part)), *logits.shape)
            again = " Make the blend anew with another --out."
            fitted = task.link.probabilities(read_array(file, shape, self._noted(file), again), np.ones(len(names)))
        ids = self.folds["id"].iloc[rows].tolist()
        return OutOfFold(ids, names, rows, fold, groups, over, part, y_true, logits, y_score, fitted)

    def table_scores(self) -> dict[str, TableScores]:
        """What `score` found on labelled tables, by the name of the folder in `scores/`; raises RunError for damage."""
        return {
            file.parent.name: TableScores.read(file)
            for file in sorted(self.files.table_scores.glob(f"*/{TABLE_SCORES}"))
        }

    def results(self) -> Results:
        """The run's predictions, decisions and scores, as they were last tuned. Raises RunError if it has none yet."""
        scores, decision = Scores.read(self.files.scores), self.decision()
        if scores.decision_sha256 not in (None, decision.sha256):
            raise RunError(
                f"{self.files.scores} does not belong to {self.files.decision}: tuning was stopped between the two. "
                f"Write both again with: lora-cls tune {shlex.quote(str(self.path))}"
            )
        return Results(self.out_of_fold(), decision, scores)

    def decision(self) -> Decision:
        """`thresholds.json`. Raises RunError if it is damaged, of other labels or folds, or holds no thresholds."""
        file = self.files.decision
        decision = Decision.read(file)
        if list(decision.shipped) != self.label_names:
            raise RunError(f"{file} holds thresholds of other labels.{Decision.remedy}")
        # of classes they divide, and need no bound; just above 1 lies what no probability reaches
        highest = float("inf") if self.task().exclusive else float(np.nextafter(1.0, 2))
        wrong = [f"shipped.{name} is {value}" for name, value in decision.shipped.items() if not 0 <= value <= highest]
        if wrong:
            raise RunError(f"{file} is damaged: {shorten(wrong)}, and thresholds lie from 0 to 1.{Decision.remedy}")
        tuned = set() if self.exported else set(decision.folds or {})
        if tuned and (gone := sorted(tuned - set(self.finished_folds))):
            raise RunError(
                f"{file} was tuned with folds that are not finished any more: {shorten(gone)}. Continue the run with "
                "--resume; or decide without them: lora-cls tune RUN."
            )
        return decision

    @cached_property
    def test_ids(self) -> list[str] | None:
        """Ids of the test rows that the folds answered for; None where the run had no test file."""
        file = self.files.test_ids
        if not self._has(file):
            return None
        table = read_csv(file, self._noted(file))
        if "id" not in table:
            raise RunError(f"{file} is damaged: it has no column id.")
        return [str(value) for value in table["id"]]

    @property
    def sample_submission(self) -> Path | None:
        """Where it lies; None without one. Raises RunError if it was changed since the run was started."""
        file = self.files.sample_submission
        if not self._has(file):
            return None
        read_bytes(file, self._noted(file), RESTORE)
        return file

    def test_logits(self) -> np.ndarray | None:
        """Test logits of the finished folds, ndarray of shape (n_folds, n_test, n_labels), float32."""
        return self._test_logits(self.finished_folds)

    def _test_logits(self, folds: Sequence[int]) -> np.ndarray | None:
        ids = self.test_ids
        if ids is None:
            return None
        shape = (len(ids), len(self.label_names))
        folders = [self.fold(number) for number in folds]
        return np.array([folder.read_array(folder.test_logits, shape) for folder in folders])

    def test_scores(self) -> np.ndarray | None:
        """Probabilities of the test rows by each finished fold, ndarray of shape (n_folds, n_test, n_labels)."""
        finished = self.finished_folds
        logits = self._test_logits(finished)
        return None if logits is None else self.task().link.probabilities(logits, self.pos_weights(finished)[:, None])

    def is_test_table(self, rows: Dataset) -> bool:
        """Whether these are the test rows that the folds have answered for, in their order."""
        return self.test_ids == rows.ids and self.info.data.test_sha256 == rows.fingerprint()

    def check_resume(self, recipe: Recipe, fingerprints: dict[str, Any], train: Dataset) -> None:
        """Refuse to continue with another recipe or other data.

        Raises
        ------
        RunError
            Names every field and table that differs, and of the training rows what.
        """
        before, now = flatten(self.recipe.identity()), flatten(recipe.identity())
        differences = [
            f"recipe {key}: was {before.get(key)!r}, now {now.get(key)!r}"
            for key in sorted(set(before) | set(now))
            if before.get(key) != now.get(key)
        ]
        data_before = self.info.data.model_dump()
        for key in fingerprints:
            if data_before[key] != fingerprints[key]:
                what = f"was {data_before[key]}, now {fingerprints[key]}"
                if key == "train_sha256":
                    what = self.changed_rows(train.subset(~train.extra))
                differences.append(f"{key}: {what}")
        if differences:
            raise RunError(
                f"{self.path} was started with something else and is not continued:\n  "
                + "\n  ".join(differences)
                + "\nGive the same recipe and data, or start a new run with another --out."
            )

    def changed_rows(self, train: Dataset) -> str:
        """How other training rows differ from the run's."""
        own = len(self.folds) - self.info.data.extra_rows  # extra rows stand behind
        ids = self.folds["id"].tolist()[:own]
        parts = [("labels", self.label_names, train.label_names), ("rows", ids, train.ids)]
        found = []
        for noun, before, now in parts:
            new, gone = ([name for name in a if name not in set(b)] for a, b in ((now, before), (before, now)))
            found += [f"new {noun}: {shorten(map(repr, new))}"] if new else []
            found += [f"{noun} gone: {shorten(map(repr, gone))}"] if gone else []
            found += [f"the {noun} stand in another order"] if not new and not gone and before != now else []
        if found or train.labels is None:
            return "; ".join(found)
        moved = np.flatnonzero((self.y_true[:own] != train.labels).any(axis=1)).tolist()
        if moved:
            return f"other labels in rows {shorten(ids[i] for i in moved)}"
        return "other texts, weights, soft labels or split"


def recipe_bytes(recipe: Recipe) -> bytes:
    """The resolved recipe, defaults included, as YAML."""
    return write_yaml(recipe.to_dict()).encode()


OURS = re.compile(
    r"fold-\d\d+|refit|adapter|model|fold\.json|\.creating|\.lock|\..*\.tmp|\.ipynb_checkpoints|\.DS_Store|Thumbs\.db"
)
"""What lies in a run folder or an export beside `RunFiles`: folds, models, scratch, what folder viewers leave."""


def refuse_foreign(path: Path) -> None:
    """Raise RunError unless `path` is a run folder, an export or a blend that holds nothing else, and may be removed.

    A `recipe.yaml` alone proves nothing: it may lie in the folder of somebody's whole project.
    """
    if path.is_symlink() or not path.is_dir() or not RunFiles(path).recipe.is_file():
        raise RunError(f"{path} is no run folder, and is not overwritten. Choose another folder with --out.")
    ours = {file.name for file in vars(RunFiles(path)).values()}
    foreign = sorted(e.name for e in path.iterdir() if e.name not in ours and not OURS.fullmatch(e.name))
    if foreign or not RunFiles(path).info.is_file():
        what = f"also holds {shorten(foreign, 5)}" if foreign else "has no run.json"
        raise RunError(
            f"{path} {what}: not only a run lies there, and nothing is overwritten. Move that away, or choose another "
            "folder with --out."
        )
