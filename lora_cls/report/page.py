"""`report.html` of a run: one page that loads nothing, for reading, printing and sharing."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from lora_cls.data import Dataset
from lora_cls.files import write_bytes, write_csv
from lora_cls.report.card import write_card
from lora_cls.report.content import TEXT_LENGTH, doubts_table, mistakes_table, page_content
from lora_cls.report.offline import fill_page
from lora_cls.report.sentences import OPTIMISTIC
from lora_cls.runs import Results, RunFolder


def write_page(
    run: RunFolder, train: Dataset | None = None, out: Path | None = None, results: Results | None = None
) -> Path:
    """Write the page of a run, and beside it all its mistakes and doubtful labels as CSV.

    The tables are `mistakes.csv` and `doubts.csv` beside `report.html`, and `NAME.mistakes.csv` and `NAME.doubts.csv`
    beside a page of another name.

    Parameters
    ----------
    train : the run's training data; with it the page holds texts
    out : the file; `report.html` in the run folder where None
    results : of the run, where they are at hand

    Returns
    -------
    Path
        The file.

    Raises
    ------
    RunError
        As `page_content`; and if the file cannot be written.
    """
    file, results = run.files.page if out is None else out, results or run.results()
    page = render(page_content(run, train, results)).encode()
    mistakes, doubts = mistakes_table(run, results, train), doubts_table(run, results, train)
    own = file == run.files.page
    write_bytes(file, page)
    write_csv(run.files.mistakes if own else file.with_suffix(".mistakes.csv"), mistakes)
    write_csv(run.files.doubts if own else file.with_suffix(".doubts.csv"), doubts)
    return file


def write_reports(run: RunFolder, say: Callable[[str], None], results: Results) -> None:
    """Write the card and the page of a run that has its scores.

    Whatever goes wrong here is said, and costs the run nothing: its scores and submission are written already. An old
    page, and old tables beside it, would show old scores, and are removed.
    """
    files = run.files
    for written, write in (
        ([files.card], lambda: write_card(run, results.scores)),
        ([files.page, files.mistakes, files.doubts], lambda: write_page(run, results=results)),
    ):
        try:
            write()
        except Exception as error:
            for file in written:
                with suppress(OSError):
                    file.unlink(missing_ok=True)
            say(
                f"{written[0].name} could not be written ({type(error).__name__}: {error}). Scores and submission are "
                f"complete; lora-cls report {shlex.quote(str(run.path))} tries again."
            )


def render(content: dict[str, Any]) -> str:
    """The page that shows `page_content`."""
    epochs = [epoch for fold in content["figures"]["folds"] for epoch in fold["epochs"]]
    more = {
        "has_epochs": bool(epochs),
        "has_selection": any("selection_macro_f1" in epoch for epoch in epochs),
        "text_length": TEXT_LENGTH,
        "optimistic_sentence": f"{OPTIMISTIC}.",
    }
    return fill_page("page.html.j2", content | more, "page.js")
