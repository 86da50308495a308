"""One writer at a time: locks on a run folder and on each of its folds, held by one process and gone with it."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from lora_cls.errors import RunError

LOCK = ".lock"
PATIENCE = 600.0  # seconds: writing scores and pages takes some


@contextmanager
def locked(folder: Path, what: str, *, wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold `folder/.lock` (`filelock`: an flock, which the system releases when a process is killed).

    The lock file names its holder, and is removed with the lock. A process may take a lock that it holds again.

    Parameters
    ----------
    folder : made if it is not there
    what : what is being done, as "fold 1 is trained"
    wait : told whom it waits for; without it a lock that another process holds is an error

    Raises
    ------
    RunError
        If another process holds the lock, and goes on doing so for ten minutes where it may be waited for; or if the
        folder cannot be written.
    """
    file = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file, is_singleton=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            holder = _holder(file)
            if wait is None:
                raise RunError(f"{folder}: {what} by {holder}. Wait for it, or stop it, and try again.") from None
            wait(f"{folder}: {what} by {holder}; waiting for it.")
            lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise RunError(
            f"{folder}: {what} by {_holder(file)}, for more than {PATIENCE / 60:.0f} minutes. Stop it, and try again."
        ) from None
    except OSError as error:
        raise RunError(
            f"{folder} cannot be written ({error.strerror}): give yourself the right to write there, or work on a copy."
        ) from error
    try:
        if lock.lock_counter == 1:
            file.write_text(f"process {os.getpid()} on {platform.node()} since {datetime.now():%Y-%m-%d %H:%M:%S}")
        yield
    finally:
        if lock.lock_counter == 1:
            with suppress(OSError):
                file.unlink()  # while it is held: whoever opened it before finds it gone, and opens the new one
        lock.release()


def _holder(file: Path) -> str:
    """Who holds a lock, as it says itself."""
    with suppress(OSError, UnicodeDecodeError):
        if text := file.read_text()[:200]:
            return text
    return "another process"
