"""Where work that can be done apart is done: what all executors have in common, and which one a name stands for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol


class Process(Protocol):
    """A process that works for this one, here or on another machine."""

    where: str
    """What it is called in tables and messages."""
    log: Path

    @property
    def placed(self) -> bool:
        """Whether it has begun, or cannot; False while it waits for room on a cluster."""
        ...

    @property
    def code(self) -> int | None:
        """The exit code, minus the signal that ended it; None while it runs, or while it was not heard out."""
        ...

    def send(self, **message: Any) -> None:
        """A message to the process; lost where it is gone, which `code` tells."""
        ...

    def heard(self, seconds: float) -> list[dict[str, Any]]:
        """What it said since the last call; waits for so long at most where it said nothing."""
        ...

    def end(self) -> None:
        """It ends when it has done what it was told."""
        ...

    def stop(self) -> None:
        """End it now, and wait until it is gone."""
        ...


class Executor(Protocol):
    """Starts processes.

    Attributes
    ----------
    n_workers : how many of them are to work at once
    n_threads : of each of them, where they share cores and the recipe does not say; None for what it takes alone
    """

    n_workers: int
    n_threads: int | None

    def start(self, worker: int, command: Sequence[str], log: Path) -> Process:
        """Start a process.

        Parameters
        ----------
        worker : from 0 to `n_workers` - 1; no two processes that run at once have the same
        command : the program and its arguments
        log : what it prints is added there
        """
        ...

    def close(self) -> None:
        """Give back whatever was taken; no process is started any more."""
        ...
