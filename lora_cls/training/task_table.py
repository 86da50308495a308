"""One table of all tasks that other processes do at once: where each is done, how far it is, and the minutes left."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

HEADER = ("task", "where", "epoch", "done", "loss", "rows/s", "minutes left")


@dataclass
class Row:
    """What is known of a task."""

    where: str = ""
    epoch: str = ""
    share: float | None = None
    loss: float | None = None
    rate: float | None = None
    note: str = "waits"
    began: tuple[float, float] | None = None  # when it was first heard of, and the share that was done by then

    def left(self) -> str:
        """Minutes, by what was done since it was first heard of."""
        if self.began is None or self.share is None or self.share <= self.began[1]:
            return self.note
        seconds = (time.monotonic() - self.began[0]) / (self.share - self.began[1]) * (1 - self.share)
        return f"{seconds / 60:.1f}"


class TaskTable:
    """The table on a terminal, above the bar of all tasks.

    Parameters
    ----------
    titles : of the tasks, a row each
    bars : rich's bars, which end: the table stands in their place
    """

    def __init__(self, titles: Sequence[str], bars: Bars) -> None:
        self.rows = {title: Row() for title in titles}
        self._bars, self._began = bars, time.monotonic()
        self._live = Live(console=bars.console, get_renderable=self._shown, refresh_per_second=4)

    def start(self) -> None:
        """Show it from now on."""
        self._bars.stop()
        self._live.start()

    def stop(self) -> None:
        """Leave it as it is now."""
        self._live.stop()

    def heard(self, title: str, where: str, message: Mapping[str, Any]) -> None:
        """A message of `Reporter`."""
        row = self.rows[title]
        if where != row.where:
            row.where, row.began = where, None
        row.note = "begun"
        if (share := message.get("share")) is not None:
            row.share, row.loss = share, message["loss"]
        if record := message.get("record"):
            n_epochs = message["n_epochs"]
            row.epoch, row.loss = f"{record['epoch']}/{n_epochs}", record["loss"]
            row.share, row.rate = record["epoch"] / n_epochs, record["rows_per_second"]
        if row.began is None:
            row.began = (time.monotonic(), row.share or 0.0)

    def done(self, title: str, note: str) -> None:
        """A task is finished."""
        row = self.rows[title]
        row.share, row.began, row.note = 1.0, None, note

    def _shown(self) -> RenderableType:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for name in HEADER:
            table.add_column(name, justify="left" if name in HEADER[:2] else "right", no_wrap=True)
        for title, row in self.rows.items():
            numbers = (
                row.epoch,
                "" if row.share is None else f"{row.share:.0%}",
                "" if row.loss is None else f"{row.loss:.4f}",
                "" if row.rate is None else f"{row.rate:.0f}",
                row.left(),
            )
            table.add_row(title, Text(row.where), *numbers)
        return Group(table, Text(self._total()))

    def _total(self) -> str:
        """All tasks together: minutes left by the share of all that is done."""
        done = sum(row.share == 1 and row.began is None for row in self.rows.values())
        share = sum(row.share or 0.0 for row in self.rows.values()) / len(self.rows)
        minutes = (time.monotonic() - self._began) / 60
        left = f", about {minutes / share * (1 - share):.1f} min left" if 0 < share < 1 else ""
        return f"{done} of {len(self.rows)} done, {minutes:.1f} min{left}"
