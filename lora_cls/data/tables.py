"""All tables of a run, read once and checked against each other."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pandas as pd

from lora_cls.choices import ScoreMetric
from lora_cls.data.dataset import Dataset, further_labels, load_test, load_train, text_key
from lora_cls.data.names import LIKELY_DELIMITERS
from lora_cls.data.submission import Sample, read_sample_submission
from lora_cls.data.subsample import stratified_subsample
from lora_cls.data.table import TableLike, read_table
from lora_cls.data.texts import read_texts
from lora_cls.errors import RecipeError, did_you_mean, shorten, shown
from lora_cls.recipe import Recipe, load_recipe

SMOKE_ROWS, SMOKE_TEST_ROWS, SMOKE_EXTRA_ROWS = 96, 32, 16


class Tables:
    """The data of a run: training rows, test rows where given, further texts without labels (`distill.unlabelled`), and
    the sample submission; and the recipe with the task that the label columns say."""

    def __init__(
        self,
        recipe: Recipe,
        train: TableLike | None = None,
        test: TableLike | None = None,
        sample: TableLike | None = None,
        extra: TableLike | None = None,
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
            "train": table_name(train),
            "test": table_name(test),
            "sample_submission": table_name(sample),
            "extra_train": table_name(extra),
        }
        self.sample = None if sample is None else read_table(sample)
        test = None if test is None else read_table(test, name="the test DataFrame")
        self.train: Dataset = load_train(data, train, test, self.sample, recipe.task, extra)
        self.recipe = _resolved(recipe, self.train)
        self._sample_note = self._keep_sample(data.max_rows, recipe.cv.random_state)
        self.test: Dataset | None = None if test is None else load_test(data, test, train_columns=self.train.columns)
        self.test_labels: np.ndarray | None = None
        """Of the test rows where their table holds them, (n_samples, n_labels), int8: they enter nothing but a score of
        the finished run."""
        self._test_label_notes: list[str] = []
        if test is not None and self.test is not None:
            self._keep_test_labels(test, self.test)
        self.extra_texts: list[str] = []
        if recipe.adapt is not None and recipe.adapt.extra_texts is not None:
            self.paths["extra_texts"] = recipe.adapt.extra_texts
            columns = self.train.columns
            self.extra_texts = read_texts(data, recipe.adapt.extra_texts, columns.text if columns else [])
        further = None if recipe.distill is None else recipe.distill.unlabelled
        self.unlabelled: Dataset | None = (
            None if further is None else load_test(data, further, train_columns=self.train.columns)
        )
        self._submission: Sample | None = None
        if self.test is not None and self.sample is not None:
            columns = self.train.columns
            self._submission = read_sample_submission(
                self.sample, self.test.ids, self.train.label_names, self.id_name, task=self.recipe.task,
                delimiter=self.recipe.data.label_delimiter,
                label_column=columns.label_column if columns else None,
            )  # fmt: skip
            # 7.0, which pandas makes of 7, is written and read again as 7
            self.sample.isetitem(self._submission.id_at, self._submission.ids)

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
        found += [*train.notes, *(self.test.notes if self.test else []), *self._test_label_notes, *self._sample_note]
        if train.row_weight is not None:
            weight = train.row_weight
            found.append(
                f"row weights: {weight.min():g} to {weight.max():g}, mean {weight.mean():.4g}, "
                f"{int((weight == 0).sum())} of {len(weight)} rows weigh 0 (in the loss they are scaled to a mean of 1)"
            )
        found += self._submission.notes if self._submission else []
        metric = self.recipe.metric
        if self.test is not None and metric in get_args(ScoreMetric):
            if self._submission is not None and self._submission.decisions:
                found.append(
                    f"metric: {metric} is of probabilities, but the sample submission holds decisions, and so will the "
                    "submission; test_proba.csv holds the probabilities"
                )
            elif self._submission is None or not self._submission.probabilities:
                found.append(f"metric: {metric}: the submission holds probabilities, no decisions")
        if self.extra_texts:
            found.append(
                f"{len(self.extra_texts)} more texts, without labels, to adapt the base on (adapt.extra_texts)"
            )
        if self.test is not None and train.extra.any():
            known = {text_key(text) for text in self.test.texts}
            shared = sum(text_key(train.texts[i]) in known for i in np.flatnonzero(train.extra))
            if shared:
                found.append(f"of the extra rows {shared} also stand in the test table, as pseudo-labels do")
        return found

    def _keep_test_labels(self, frame: pd.DataFrame, test: Dataset) -> None:
        """`test_labels`, where the test table has all label columns, and more in them than placeholders."""
        columns = self.train.columns
        if columns is None or not set(columns.labels) <= set(frame.columns):
            return
        self.test_labels, problems = further_labels(
            self.recipe.data, frame, replace(columns, id=self.id_name), test.ids
        )
        if self.test_labels is not None and (len(np.unique(test.groups)) < 2 or not self.test_labels.any()):
            self.test_labels, problems = None, ["no row has any label, or all hold one text"]
        if self.test_labels is None:
            self._test_label_notes = [f"the label columns of the test table are not read: {problems[0]}"]
        else:
            self._test_label_notes = [
                "the test table holds its labels: the finished run is scored on them, and they do nothing else"
            ]

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
        found = {
            "train_sha256": self.train.subset(~extra).fingerprint(),
            "extra_train_sha256": self.train.subset(extra).fingerprint() if extra.any() else None,
            "test_sha256": self.test.fingerprint() if self.test else None,
            "unlabelled_sha256": self.unlabelled.fingerprint() if self.unlabelled else None,
            "sample_submission_sha256": None if self.sample is None else _fingerprint(self.sample),
        }
        if self.recipe.adapt is not None:
            texts = json.dumps(self.extra_texts).encode()
            found["extra_texts_sha256"] = hashlib.sha256(texts).hexdigest() if self.extra_texts else None
        return found

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
        self.extra_texts = self.extra_texts[:SMOKE_EXTRA_ROWS]
        if self.test is not None:
            few = np.arange(min(SMOKE_TEST_ROWS, len(self.test)))
            self.test = self.test.subset(few)
            self.test_labels = None if self.test_labels is None else self.test_labels[few]
        if self.sample is not None and self._submission is not None and self.test is not None:
            ids = self.sample.iloc[:, self._submission.id_at]
            self.sample = self.sample[ids.isin(self.test.ids)].reset_index(drop=True)


def _resolved(recipe: Recipe, train: Dataset) -> Recipe:
    """The recipe with its task set; of a column of lists, also with what stands between names in a submission.

    Raises
    ------
    RecipeError
        If the task that the label columns say contradicts other fields, or a label that the recipe names is none.
    """
    for name in recipe.loss.label_weights or ():
        if name not in train.label_names:
            raise RecipeError(
                f"loss.label_weights: no label {shown(name)}.{did_you_mean(name, train.label_names)} The labels are "
                f"{shorten(train.label_names)}."
            )
    columns = train.columns
    found: dict[str, str] = {}
    if columns is None:
        return recipe
    if recipe.task is None:
        found["task"] = columns.task
    if columns.lists and columns.task == "multi_label" and recipe.data.label_delimiter is None:
        marks = (mark for mark in (*LIKELY_DELIMITERS, " / ") if not any(mark in name for name in train.label_names))
        found["data.label_delimiter"] = next(marks, "\n")
    return load_recipe(recipe, found) if found else recipe


def _fingerprint(table: pd.DataFrame) -> str:
    return hashlib.sha256(table.to_csv(index=False, lineterminator="\n").encode()).hexdigest()


def table_name(table: TableLike | None) -> str | None:
    """What messages and `run.json` call a table; None for none."""
    return None if table is None else "DataFrame" if isinstance(table, pd.DataFrame) else str(table)
