"""A labelled table that a run's models can be scored on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lora_cls.data import Dataset, TableLike, load_test, read_table
from lora_cls.data.names import as_binary_labels, label_matrix
from lora_cls.errors import DataError, shorten
from lora_cls.runs.folder import RunFolder
from lora_cls.runs.records import ScoredTable


@dataclass(frozen=True)
class Labelled:
    """A labelled table that a run's models can be scored on."""

    name: str
    rows: Dataset
    y_true: np.ndarray

    @classmethod
    def read(cls, run: RunFolder, table: TableLike) -> Labelled:
        """Texts and labels, the columns as in training.

        Raises
        ------
        DataError
            If a column is missing, or a label is empty or unknown; names the rows.
        """
        data, names = run.info.data, run.label_names
        columns = data.columns()
        frame = read_table(table, name="the labelled DataFrame")
        rows = load_test(run.recipe.data, frame, train_columns=columns)
        column, config = run.label_column, run.recipe.data
        if len(np.unique(rows.groups)) < 2:
            raise DataError(f"{rows.source}: two different texts at least are needed for a score.")
        lacking = [name for name in ([column] if column else names) if name not in frame.columns]
        if lacking:
            raise DataError(f"{rows.source}: no label column {shorten(repr(name) for name in lacking)} to score by.")
        classes = None if column is None else names
        y_true = as_binary_labels(label_matrix(frame, names if column is None else [column], classes, config))
        bad = (y_true < 0).any(axis=1)
        if classes is not None and run.task().exclusive:
            bad |= y_true.sum(axis=1) != 1  # a list of several names, or of none
        if bad.any():
            ids = shorten(rows.ids[i] for i in np.flatnonzero(bad).tolist())
            raise DataError(f"{rows.source}: labels that are missing or that the run does not know, in rows {ids}.")
        return cls(Path(rows.source).name, rows, y_true)

    @property
    def about(self) -> ScoredTable:
        return ScoredTable(table=self.name, rows=len(self.y_true))
