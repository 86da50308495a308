"""`report.html` of a run: one page that loads nothing, for reading, printing and sharing.

What users wrote (names, ids, texts) is escaped by Jinja wherever it stands in the page, isolated by `<bdi>` against
marks of writing direction, and free of control characters. A content security policy allows the page's own scripts by
their digests, and nothing else: no request, no inline handler.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from lora_cls.data import Dataset
from lora_cls.files import write_bytes, write_csv
from lora_cls.report.card import write_card
from lora_cls.report.content import TEXT_LENGTH, doubts_table, mistakes_table, page_content
from lora_cls.report.sentences import OPTIMISTIC
from lora_cls.report.templating import fill, resource
from lora_cls.runs import Results, RunFolder

LIBRARIES = ("d3", "plot")
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""Control characters, and halves of characters, which no page can hold."""


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
    content = _printable(content)
    figures, scripts = content["figures"], _scripts()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {' '.join(map(_digest, scripts))}"
    )
    epochs = [epoch for fold in figures["folds"] for epoch in fold["epochs"]]
    return fill(
        "page.html.j2",
        **content,
        has_epochs=bool(epochs),
        has_selection=any("selection_macro_f1" in epoch for epoch in epochs),
        text_length=TEXT_LENGTH,
        optimistic_sentence=f"{OPTIMISTIC}.",
        policy=policy,
        style=_asset("page.css"),
        scripts=scripts,
        payload=_json(figures),
    )


@cache
def _scripts() -> list[str]:
    """The page's scripts; those of others with their licences, which must go where they go."""
    libraries = [f"/*\n{_asset(f'vendor/{name}.LICENSE')}*/\n{_asset(f'vendor/{name}.min.js')}" for name in LIBRARIES]
    return [*libraries, _asset("page.js")]


def _asset(name: str) -> str:
    return resource(f"assets/{name}")


def _digest(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _json(values: Any) -> str:
    """JSON that can stand in a script element: ASCII, and no `<` that could end it."""
    text = json.dumps(values, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _printable(value: Any) -> Any:
    """The same with `UNPRINTABLE` characters replaced, in every string at any depth."""
    if isinstance(value, str):
        return UNPRINTABLE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {key: _printable(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_printable(inner) for inner in value]
    return value
