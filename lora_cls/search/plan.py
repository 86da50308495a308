"""What all trials of a search share: rows, columns, folds; fixed before the first of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lora_cls.data import Dataset, TableLike, fold_notes, read_table, stratified_folds
from lora_cls.data.folds import check_rows, chosen_folds, make_folds
from lora_cls.data.table import write_frame
from lora_cls.data.tables import Tables
from lora_cls.errors import RecipeError, RunError, visible
from lora_cls.files import make_folder, whole_file, write_bytes, write_csv
from lora_cls.machine import surroundings
from lora_cls.recipe import LARGEST_SEED, Recipe, flatten, load_recipe
from lora_cls.runs.folder import recipe_bytes
from lora_cls.runs.start import find_start
from lora_cls.search.folder import LOSSES, SweepFiles, SweepFolder, SweepInfo, without
from lora_cls.search.optuna_files import load_optuna, open_study


@dataclass(frozen=True)
class Given:
    """The tables of a search, as files or DataFrames."""

    train: TableLike | None
    test: TableLike | None
    sample_submission: TableLike | None
    extra_train: TableLike | None
    fold_table: TableLike | None


@dataclass(frozen=True)
class Plan:
    """A search before its first trial.

    Attributes
    ----------
    recipe : its `sweep` section resolved
    info : what `sweep.json` will hold, but for the place of a DataFrame
    train : the table that was given
    folds, fresh : columns id, fold, group; `fresh` is None where the folds were given
    held_out : ids of the rows that no trial sees
    """

    recipe: Recipe
    info: SweepInfo
    train: TableLike
    folds: pd.DataFrame
    fresh: pd.DataFrame | None
    held_out: list[str]

    def create(self, path: Path, say: Callable[[str], None]) -> None:
        """Make the folder; `sweep.json`, which marks it as one, is written last."""
        files, info = SweepFiles(path), self.info
        make_folder(files.trials)
        if isinstance(self.train, pd.DataFrame):
            say(f"The DataFrame is kept as {files.train}, which trials read: its texts lie there.")
            with whole_file(files.train) as scratch:
                write_frame(self.train, scratch)
            info = info.model_copy(update={"paths": info.paths | {"train": str(files.train.absolute())}})
        if self.held_out:
            write_csv(files.holdout, pd.DataFrame({"id": self.held_out}))
        write_csv(files.folds, self.folds)
        if self.fresh is not None:
            write_csv(files.fresh, self.fresh)
        write_bytes(files.base, recipe_bytes(self.recipe))
        assert self.recipe.sweep is not None
        direction = "minimize" if self.recipe.sweep.objective in LOSSES else "maximize"
        open_study(files.journal, load_optuna().samplers.RandomSampler(), direction)
        info.write(files.info)

    def check_same(self, folder: SweepFolder) -> None:
        """Refuse to go on with another search.

        Raises
        ------
        RunError
            Names every field that differs.
        """
        before, now = (
            flatten({**recipe.identity(), "sweep": (recipe.to_dict()["sweep"] or {})})
            for recipe in (folder.recipe, self.recipe)
        )
        told = [
            f"recipe {key}: was {before.get(key)!r}, now {now.get(key)!r}"
            for key in sorted(set(before) | set(now))
            if before.get(key) != now.get(key)
        ]
        for key in ("train_sha256", "folds", "n_splits", "holdout", "start_from"):
            was, given = getattr(folder.info, key), getattr(self.info, key)
            told += [f"{key}: was {was}, now {given}"] if was != given else []
        if told:
            raise RunError(
                f"{folder.path} was started with something else and is not continued:\n  "
                + "\n  ".join(told)
                + "\nGive the same recipe and data, or start a new search with another --out."
            )


def make_plan(
    name: str,
    recipe: Recipe,
    given: Given,
    folds: Sequence[int] | None,
    holdout: float | None,
    say: Callable[[str], None],
) -> Plan:
    """Read the tables, and divide the rows.

    Parameters
    ----------
    name : of the recipe
    folds : numbers of the folds that trials train; the first `sweep.n_folds` where None
    holdout : share of the rows that no trial sees

    Raises
    ------
    LoraClsError
        For anything the user can mend.
    """
    assert recipe.sweep is not None
    tables = Tables(recipe, given.train, given.test, given.sample_submission, given.extra_train)
    for line in tables.notes:
        say(line)
    columns, fingerprint = _columns(tables), tables.fingerprints()["train_sha256"]
    source = given.train if given.train is not None else recipe.data.train
    assert source is not None
    held_out: list[str] = []
    text_of: dict[str, str] = {}
    if holdout is not None:
        held_out = _held_out(tables, holdout, recipe.sweep.random_state)
        text_of = dict(zip(tables.train.ids, tables.train.texts, strict=True))
        kept = without(read_table(source), held_out, columns.get("data.id_column"))
        tables = Tables(load_recipe(recipe, columns), kept, extra=given.extra_train)
        say(f"{len(held_out)} rows are held out from the whole search (--holdout {holdout:g})")
    data, known = tables.train, tables.recipe
    assert data.labels is not None
    table = recipe.data.folds if given.fold_table is None else given.fold_table
    fold = make_folds(known, data, table)
    numbers = chosen_folds(fold)
    wanted = chosen_folds(fold, folds) if folds is not None else numbers[: recipe.sweep.n_folds]
    check_rows(data, fold)
    start = find_start(known, data, fold, wanted)
    if start is not None:
        start.refuse_seen(held_out, [text_of[name] for name in held_out])
        for line in start.notes(None):
            say(line)
    for line in fold_notes(data.labels, fold, data.label_names, data.groups):
        say(line)
    fresh = None
    if recipe.sweep.confirm:
        if start is not None and start.by_fold:
            say(f"Fresh folds would have no model of {start.run.path} to begin with: no trial is scored again.")
        elif table is not None or data.held_out is not None:
            say("The folds were given, so there are no fresh ones: no trial is scored again.")
        else:
            drawn = (recipe.cv.random_state + 1) % (LARGEST_SEED + 1)
            fresh = _fold_table(data, make_folds(load_recipe(known, {"cv.random_state": drawn}), data))
    info = SweepInfo(
        started=f"{datetime.now():%Y-%m-%d %H:%M:%S}",
        versions=surroundings()["versions"],
        recipe_name=visible(name),
        paths={"train": _full(source), "extra_train": _full(given.extra_train or recipe.data.extra_train)},
        columns=columns,
        label_names=data.label_names,
        folds=wanted,
        n_splits=len(numbers),
        rows=int((~data.extra).sum()),
        train_sha256=fingerprint,
        holdout=holdout,
        **({} if start is None else start.choices),
    )
    return Plan(recipe, info, source, _fold_table(data, fold), fresh, held_out)


def _columns(tables: Tables) -> dict[str, Any]:
    """Fields that say what the columns are, for trials, which do not read the test table."""
    recipe, found = tables.recipe, tables.train.columns
    fixed: dict[str, Any] = {"task": recipe.task}
    if found is not None:
        fixed["data.label_columns"] = found.labels
        if found.id is not None:
            fixed["data.id_column"] = found.id
        if recipe.data.text_template is None:
            fixed["data.text_columns"] = found.text
        if recipe.data.label_delimiter is not None:
            fixed["data.label_delimiter"] = recipe.data.label_delimiter
    return fixed


def _held_out(tables: Tables, share: float, random_state: int) -> list[str]:
    """Ids of a stratified share of the rows; groups stay whole, extra rows stay."""
    data = tables.train
    if data.held_out is not None:
        raise RecipeError("--holdout has no meaning beside data.split_column: its held-out rows are scored alone.")
    assert data.labels is not None
    own = np.flatnonzero(~data.extra)
    n_parts = max(2, round(1 / share))
    parts = stratified_folds(data.labels[own], data.groups[own], n_parts, random_state, task=tables.recipe.task)
    return [data.ids[i] for i in own[parts == 0]]


def _fold_table(data: Dataset, fold: np.ndarray) -> pd.DataFrame:
    own = ~data.extra
    ids = [name for name, kept in zip(data.ids, own.tolist(), strict=True) if kept]
    return pd.DataFrame({"id": ids, "fold": fold[own], "group": data.groups[own]})


def _full(table: TableLike | None) -> str | None:
    """The full path of a file, so that a search can be gone on with from another folder."""
    if table is None or isinstance(table, pd.DataFrame):
        return None
    text = str(table)
    return text if text.startswith("sample:") else str(Path(text).absolute())
