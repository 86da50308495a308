"""The run folder: every path, format and fingerprint, in one place.

```
recipe.yaml       resolved                     run.json     versions, device, measured choices, fingerprints, seconds
labels.json       names, order, task, column   folds.csv    id, fold (-1: only trained on), group
train_labels.csv  id and 0/1 columns           README.md    model card, and a snippet that loads it without us
fold-00/          adapter/ (or model/), metrics.jsonl, oof_logits.npy, test_logits.npy, fold.json;
                  answers.csv where a model wrote its labels; state.safetensors while unfinished
test_ids.csv      sample_submission.csv, where given
blend.json        of a blend: what each way and each run gains; fitted_logits.npy where it learnt from labels
oof_proba.csv     thresholds.json  metrics.json  test_proba.csv  submission.csv  report.html
```

Files are written under a temporary name and renamed; `fold.json` completes a fold and is written last.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from lora_cls.data import Dataset
from lora_cls.errors import RunError
from lora_cls.evaluation import Decisions, decisions_for
from lora_cls.files import write_bytes, write_csv, write_json
from lora_cls.recipe import Recipe, Thresholds, flatten, load_recipe


class _Values(dict[str, Any]):
    """An object of a JSON file. A key that it lacks is a fault of the file, and told as such."""

    def __init__(self, file: Path, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.file = file

    def __missing__(self, key: str) -> Any:
        raise RunError(
            f"{self.file} lacks '{key}': it is damaged, or was written by another version of lora_cls. Scores and "
            "thresholds are written again by lora-cls tune RUN."
        )


def read_json(file: Path) -> Any:
    """Raises RunError if the file is missing or damaged, and later for a key that an object in it lacks."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"), object_hook=partial(_Values, file))
    except FileNotFoundError:
        raise RunError(f"{file} is missing: the run is incomplete, or this is no run folder.") from None
    except ValueError as error:
        raise RunError(f"{file} is damaged: {error}") from None
    if not isinstance(values, dict):
        raise RunError(f"{file} is damaged: it holds no object.")
    return values


def read_csv(file: Path, **options: Any) -> pd.DataFrame:
    """Exact floats, ids as text. Raises RunError if the file is missing or damaged."""
    try:
        return pd.read_csv(file, dtype={"id": str}, keep_default_na=False, **EXACT_FLOATS, **options)
    except FileNotFoundError:
        raise RunError(f"{file} is missing: the run is incomplete, or this is no run folder.") from None
    except (ValueError, pd.errors.ParserError) as error:
        raise RunError(f"{file} is damaged: {error}") from None


def _integers(file: Path, table: pd.DataFrame, names: list[str]) -> dict[str, np.ndarray]:
    try:
        return {name: table[name].to_numpy(np.int64) for name in names}
    except (KeyError, ValueError, TypeError) as error:
        raise RunError(f"{file} is damaged: {error}") from None


def read_array(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Raises RunError if the file is missing, damaged, or of another shape."""
    try:
        array = np.load(file, allow_pickle=False)
    except FileNotFoundError:
        raise RunError(f"{file} is missing. Remove {file.parent}/fold.json and run again with --resume.") from None
    except (ValueError, EOFError, OSError) as error:
        raise RunError(
            f"{file} is damaged ({error}). Remove {file.parent}/fold.json and run again with --resume."
        ) from None
    if array.shape != shape:
        raise RunError(f"{file} must have the shape {shape}. Got {array.shape} instead.")
    if not np.isfinite(array).all():
        raise RunError(
            f"{file} is damaged (numbers that are not finite). Remove {file.parent}/fold.json and run again with "
            "--resume."
        )
    return array


# pandas 3 reads floats back exactly by itself, and warns when asked to.
EXACT_FLOATS: dict[str, Any] = {"float_precision": "round_trip"} if int(pd.__version__.split(".")[0]) < 3 else {}
UNFINISHED = ".creating"  # stands in a folder that is not complete yet


@dataclass(frozen=True)
class FoldFolder:
    """The files of one fold, or of the model trained on all rows."""

    path: Path

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def model(self) -> Path:
        """A fully fine-tuned model, or the classical baseline's vocabulary and weights."""
        return self.path / "model"

    @property
    def state(self) -> Path:
        return self.path / "state.safetensors"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def oof_logits(self) -> Path:
        return self.path / "oof_logits.npy"

    @property
    def test_logits(self) -> Path:
        return self.path / "test_logits.npy"

    @property
    def epoch_logits(self) -> Path:
        """Out-of-fold logits of every epoch, where `select: cross_fitted` chose among them."""
        return self.path / "epoch_logits.npy"

    @property
    def answers(self) -> Path:
        """What a model that writes its labels wrote: columns id, table (train or test), answer, parsed (0 or 1)."""
        return self.path / "answers.csv"

    def answer_counts(self) -> dict[str, int]:
        """How many answers were written, and how many of them could not be read; empty for models that write none."""
        if not self.answers.is_file():
            return {}
        parsed = _integers(self.answers, read_csv(self.answers), ["parsed"])["parsed"]
        return {"answers": len(parsed), "unparsable_answers": int((parsed == 0).sum())}

    @property
    def info(self) -> Path:
        return self.path / "fold.json"

    def pos_weight(self, n_labels: int) -> np.ndarray:
        """Positive or class weights, ndarray of shape (n_labels,). Raises RunError if `fold.json` lacks them."""
        info = read_json(self.info)
        weight = np.asarray(info.get("pos_weight") if isinstance(info, dict) else None, dtype=np.float64)
        if weight.shape != (n_labels,):
            raise RunError(f"{self.info} is damaged. Remove it and run again with --resume.")
        return weight

    def epoch(self, epoch: int) -> FoldFolder:
        """Where `select: cross_fitted` keeps an epoch until every fold is done."""
        return FoldFolder(self.path / f"epoch-{epoch:02d}")

    @property
    def finished(self) -> bool:
        return self.info.is_file()


class RunFolder:
    """An existing run folder.

    Raises
    ------
    RunError
        If the path is no run folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.recipe_file.is_file():
            raise RunError(f"{self.path} is no run folder: it has no recipe.yaml.")

    @classmethod
    def create(
        cls,
        path: Path,
        recipe: Recipe,
        train: Dataset,
        fold: np.ndarray,
        info: dict[str, Any],
        test: Dataset | None = None,
        sample: pd.DataFrame | None = None,
    ) -> RunFolder:
        """Make a new run folder; `recipe.yaml`, which marks it as one, is written last."""
        cls.refuse_existing(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{path} cannot be made: {error.strerror}.") from error
        write_bytes(path / UNFINISHED, b"")
        assert train.labels is not None
        named = train.columns.labels[0] if train.columns and train.columns.classes is not None else None
        write_json(path / "labels.json", {"task": recipe.task, "labels": train.label_names, "column": named})
        write_csv(path / "folds.csv", pd.DataFrame({"id": train.ids, "fold": fold, "group": train.groups}))
        columns = {name: train.labels[:, j] for j, name in enumerate(train.label_names)}
        write_csv(path / "train_labels.csv", pd.DataFrame({"id": train.ids} | columns))
        if test is not None:
            write_csv(path / "test_ids.csv", pd.DataFrame({"id": test.ids}))
        if sample is not None:
            write_csv(path / "sample_submission.csv", sample)
        return cls._complete(path, recipe, info)

    @classmethod
    def create_like(cls, path: Path, recipe: Recipe, info: dict[str, Any], like: RunFolder) -> RunFolder:
        """Make a new run folder on the rows, labels, folds and test rows of another, without any fold finished."""
        cls.refuse_existing(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{path} cannot be made: {error.strerror}.") from error
        write_bytes(path / UNFINISHED, b"")
        for name in ("labels.json", "folds.csv", "train_labels.csv", "test_ids.csv", "sample_submission.csv"):
            if (like.path / name).is_file():
                shutil.copyfile(like.path / name, path / name)
        return cls._complete(path, recipe, info)

    @classmethod
    def _complete(cls, path: Path, recipe: Recipe, info: dict[str, Any]) -> RunFolder:
        write_json(path / "run.json", info)
        write_bytes(
            path / "recipe.yaml", yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True).encode()
        )
        (path / UNFINISHED).unlink()
        return cls(path)

    @staticmethod
    def begun(path: Path) -> bool:
        """Whether there is anything to resume: neither an empty folder nor one that `create` was stopped in."""
        return path.exists() and not (path.is_dir() and (not any(path.iterdir()) or (path / UNFINISHED).exists()))

    @classmethod
    def refuse_existing(cls, path: Path) -> None:
        """Raise RunError unless `create` may write into `path`."""
        if cls.begun(path):
            raise RunError(
                f"{path} exists already. Continue it with --resume, or choose another folder with --out; "
                "an existing run is never overwritten."
            )
        parent = next(parent for parent in path.absolute().parents if parent.exists())
        if not parent.is_dir():
            raise RunError(f"{path} cannot be made: {parent} is a file.")

    @property
    def recipe_file(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def recipe(self) -> Recipe:
        return load_recipe(self.recipe_file)

    @property
    def label_names(self) -> list[str]:
        return list(read_json(self.path / "labels.json")["labels"])

    @property
    def label_column(self) -> str | None:
        """The one column that held the labels' names; None where each label had a 0/1 column."""
        column = read_json(self.path / "labels.json").get("column")
        return None if column is None else str(column)

    def decisions(self, settings: Thresholds | None = None) -> Decisions:
        """How the run's task decides; `settings` in place of the recipe's `thresholds`."""
        recipe = self.recipe
        return decisions_for(recipe.task, settings or recipe.thresholds)

    @property
    def info(self) -> dict[str, Any]:
        """`run.json`."""
        values: dict[str, Any] = read_json(self.path / "run.json")
        return values

    def update_info(self, **values: Any) -> None:
        write_json(self.path / "run.json", self.info | values)

    @property
    def folds(self) -> pd.DataFrame:
        """Columns id, fold, group; the training rows in their order. Rows of fold -1 are only trained on."""
        table = read_csv(self.path / "folds.csv")
        return table.assign(**_integers(self.path / "folds.csv", table, ["fold", "group"]))

    @property
    def y_true(self) -> np.ndarray:
        """Training labels, ndarray of shape (n_samples, n_labels), int8."""
        file = self.path / "train_labels.csv"
        table, ids = read_csv(file), self.folds["id"].tolist()
        if "id" not in table or table["id"].tolist() != ids:
            raise RunError(f"{file} is damaged: its ids are not the {len(ids)} of {self.path / 'folds.csv'}.")
        columns = _integers(file, table, self.label_names)
        return np.column_stack([columns[name] for name in self.label_names]).astype(np.int8)

    @property
    def fitted_logits(self) -> Path:
        """Of a blend that was fitted to labels: all held-out rows by the fit of each fold (or part of a single one),
        ndarray of shape (n_folds, n_predicted, n_labels), float32."""
        return self.path / "fitted_logits.npy"

    def fold(self, number: int) -> FoldFolder:
        return FoldFolder(self.path / f"fold-{number:02d}")

    @property
    def refit(self) -> FoldFolder:
        """The model trained on all rows, where `refit` was run."""
        return FoldFolder(self.path / "refit")

    @property
    def exported(self) -> bool:
        """Whether this is one model made of a run's folds (`lora_cls.exporting`), in place of a run."""
        return (self.path / "export.json").is_file()

    @property
    def fold_numbers(self) -> list[int]:
        return sorted(int(f) for f in set(self.folds["fold"]) if f >= 0)

    @property
    def finished_folds(self) -> list[int]:
        return [number for number in self.fold_numbers if self.fold(number).finished]

    def answer_counts(self) -> dict[str, int]:
        """`FoldFolder.answer_counts`, summed over the finished folds; empty where no model writes answers."""
        counts = [found for number in self.finished_folds if (found := self.fold(number).answer_counts())]
        return {key: sum(found[key] for found in counts) for key in counts[0]} if counts else {}

    def oof_logits(self) -> tuple[np.ndarray, np.ndarray]:
        """Out-of-fold logits of the finished folds.

        Returns
        -------
        rows : ndarray of shape (n_predicted,), positions of the training rows predicted so far
        logits : ndarray of shape (n_predicted, n_labels), float32
        """
        fold, finished = self.folds["fold"].to_numpy(), self.finished_folds
        logits = np.zeros((len(fold), len(self.label_names)), dtype=np.float32)
        for number in finished:
            here = fold == number
            logits[here] = read_array(self.fold(number).oof_logits, (int(here.sum()), logits.shape[1]))
        rows = np.flatnonzero(np.isin(fold, finished))
        return rows, logits[rows]

    @property
    def test_ids(self) -> list[str] | None:
        """Ids of the test rows that the folds answered for; None where the run had no test file."""
        file = self.path / "test_ids.csv"
        if not file.is_file():
            return None
        table = read_csv(file)
        if "id" not in table:
            raise RunError(f"{file} is damaged: it has no column id.")
        return [str(value) for value in table["id"]]

    @property
    def sample_submission(self) -> Path | None:
        file = self.path / "sample_submission.csv"
        return file if file.is_file() else None

    def test_logits(self) -> np.ndarray | None:
        """Test logits of the finished folds, ndarray of shape (n_folds, n_test, n_labels), float32."""
        ids = self.test_ids
        if ids is None:
            return None
        shape = (len(ids), len(self.label_names))
        return np.array([read_array(self.fold(number).test_logits, shape) for number in self.finished_folds])

    def oof_proba(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows as in `oof_logits`, and their probabilities, ndarray of shape (n_predicted, n_labels), float64."""
        rows, logits = self.oof_logits()
        fold, y_score = self.folds["fold"].to_numpy()[rows], np.empty(logits.shape, dtype=np.float64)
        decisions = self.decisions()
        for number, weight in zip(self.finished_folds, self.pos_weights(), strict=True):
            y_score[fold == number] = decisions.probabilities(logits[fold == number], weight)
        return rows, y_score

    def pos_weights(self) -> np.ndarray:
        """Positive or class weights of the finished folds, ndarray of shape (n_folds, n_labels)."""
        return np.array([self.fold(number).pos_weight(len(self.label_names)) for number in self.finished_folds])

    def check_resume(self, recipe: Recipe, fingerprints: dict[str, Any]) -> None:
        """Refuse to continue with another recipe or other data.

        Raises
        ------
        RunError
            Names every field and file that differs.
        """
        before, now = flatten(self.recipe.identity()), flatten(recipe.identity())
        differences = [
            f"recipe {key}: was {before.get(key)!r}, now {now.get(key)!r}"
            for key in sorted(set(before) | set(now))
            if before.get(key) != now.get(key)
        ]
        data_before = self.info["data"]
        differences += [
            f"{key}: was {data_before.get(key)}, now {fingerprints.get(key)}"
            for key in fingerprints
            if data_before.get(key) != fingerprints[key]
        ]
        if differences:
            raise RunError(
                f"{self.path} was started with something else and is not continued:\n  "
                + "\n  ".join(differences)
                + "\nGive the same recipe and data, or start a new run with another --out."
            )
