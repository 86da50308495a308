"""One writer at a time: locks on a run folder and on each of its folds, held by one process and gone with it."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from lora_cls.errors import RunError, unwritable
from lora_cls.files import make_folder, writing

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
    make_folder(folder)
    lock = FileLock(file, is_singleton=True)
    for patience in (0.0, PATIENCE):
        try:
            lock.acquire(timeout=patience)
            break
        except Timeout:
            said = f"{folder}: {what} by {_holder(file)}"
            if wait is None or patience:
                raise RunError(f"{said}. Wait for it, or stop it, and try again.") from None
            wait(f"{said}; waiting for it.")
        except OSError as error:
            raise unwritable(file, error) from error
    try:
        if lock.lock_counter == 1:
            with writing(file):
                file.write_text(f"process {os.getpid()} on {platform.node()} since {datetime.now():%Y-%m-%d %H:%M:%S}")
        yield
    finally:
        try:
            if lock.lock_counter == 1:
                with suppress(OSError):
                    file.unlink()  # while it is held: whoever opened it before finds it gone, and opens the new one
        finally:
            lock.release()


def _holder(file: Path) -> str:
    """Who holds a lock, as it says itself."""
    with suppress(OSError, UnicodeDecodeError):
        if text := file.read_text()[:200]:
            return text
    return "another process"
