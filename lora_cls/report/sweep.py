"""`sweep.html` and `trials.csv` of a search: a page that loads nothing, and all trials as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_cls.files import write_bytes, write_csv
from lora_cls.report.content import spreadsheet
from lora_cls.report.offline import fill_page
from lora_cls.report.sweep_content import (
    SearchedField,
    SweepSummary,
    field_text,
    is_number,
    searched_fields,
    summarize,
    sweep_content,
)
from lora_cls.search.folder import SweepFolder, Trial


def write_sweep_page(sweep: SweepFolder, out: Path | None = None) -> Path:
    """Write the page of a search, finished or in progress.

    Parameters
    ----------
    out : the file; `sweep.html` in the folder of the search where None

    Returns
    -------
    Path
        The file.

    Raises
    ------
    RunError
        As `sweep_content`; and if the file cannot be written.
    """
    file = sweep.files.page if out is None else out
    write_bytes(file, fill_page("sweep.html.j2", sweep_content(sweep), "sweep.js").encode())
    return file


def write_trials_table(sweep: SweepFolder) -> Path:
    """Write `trials.csv`: a line per trial, with a column for every searched field and every fold.

    Raises
    ------
    RunError
        As `summarize`; and if the file cannot be written.
    """
    found = summarize(sweep)
    fields = searched_fields(sweep, found.trials)
    rows = [_cells(trial, fields, found, sweep.info.folds) for trial in found.trials]
    columns = [
        *("number", "state", "score", "mean_of_folds", "score_on_fresh_folds"),
        *(f"score_fold_{fold}" for fold in sweep.info.folds),
        *(field.name for field in fields),
        *("rows_trained", "rows_planned", "minutes", "retries", "reason"),
    ]
    write_csv(sweep.files.table, spreadsheet(rows, columns))
    return sweep.files.table


def _cells(trial: Trial, fields: list[SearchedField], found: SweepSummary, folds: list[int]) -> dict[str, Any]:
    settings = {field.name: _cell(trial.params[field.name]) for field in fields if field.name in trial.params}
    return {
        "number": trial.number,
        "state": trial.state,
        "score": trial.score,
        "mean_of_folds": trial.mean,
        "score_on_fresh_folds": found.fresh.get(trial.number),
        **{f"score_fold_{fold}": trial.fold_scores.get(fold) for fold in folds},
        **settings,
        "rows_trained": trial.rows_trained,
        "rows_planned": trial.rows_planned,
        "minutes": None if trial.seconds is None else trial.seconds / 60,
        "retries": max(0, trial.attempts - 1),
        "reason": trial.reason,
    }


def _cell(value: Any) -> Any:
    """Numbers as they are, all else as recipes write it: an empty cell is a field without a value."""
    return value if is_number(value) else field_text(value)
