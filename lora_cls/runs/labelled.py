"""A labelled table that a run's models can be scored on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lora_cls.data import Columns, Dataset, TableLike, load_test, read_table
from lora_cls.data.dataset import further_labels
from lora_cls.data.table import problem_report, row_name
from lora_cls.errors import DataError
from lora_cls.runs.folder import RunFolder
from lora_cls.runs.records import ScoredTable


@dataclass(frozen=True)
class Labelled:
    """A labelled table that a run's models can be scored on.

    Attributes
    ----------
    name : the file's, or what stands for it
    rows : without labels, as `predict` reads them
    y_true : ndarray of shape (n_samples, n_labels), int8
    places : where each row stands: `line 7` of a text file, `row 5` of others; None where that is not at hand
    """

    name: str
    rows: Dataset
    y_true: np.ndarray
    places: list[str] | None

    @classmethod
    def read(cls, run: RunFolder, table: TableLike) -> Labelled:
        """Texts and labels, the columns as in training.

        Raises
        ------
        DataError
            If a column is missing, or a label is empty or unknown; names the columns and the rows. If all rows hold one
            text.
        """
        config, columns = run.recipe.data, label_columns(run)
        frame = read_table(table, name="the labelled DataFrame")
        rows = load_test(config, frame, train_columns=columns)
        if len(np.unique(rows.groups)) < 2:
            raise DataError(f"{rows.source}: two different texts at least are needed for a score.")
        y_true, problems = further_labels(config, frame, rows.columns or columns, rows.ids)
        if y_true is None:
            raise problem_report(rows.source, problems)
        return cls(Path(rows.source).name, rows, y_true, [row_name(frame, i) for i in range(len(frame))])

    @classmethod
    def of(cls, rows: Dataset, y_true: np.ndarray) -> Labelled:
        """Test rows of a run whose labels stood in their table."""
        return cls(Path(rows.source).name, rows, y_true, None)

    @property
    def about(self) -> ScoredTable:
        return ScoredTable(table=self.name, rows=len(self.y_true))


def label_columns(run: RunFolder) -> Columns:
    """The roles of a run's columns, with what its labels are."""
    columns = run.info.data.columns()
    classes = None if run.label_column is None else run.label_names
    return replace(columns, task=run.recipe.task or columns.task, classes=classes, group=run.recipe.data.group_column)
