"""One writer at a time: locks on a run folder and on each of its folds, held by one process and gone with it."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from lora_cls.errors import RunError, unwritable
from lora_cls.files import make_folder, writing

LOCK = ".lock"
GLANCE = 0.3  # seconds: longer than `held_by` has a lock for
PATIENCE = 600.0  # seconds: writing scores and pages takes some


@contextmanager
def locked(
    folder: Path, what: str, *, wait: Callable[[str], None] | None = None, patience: float = PATIENCE
) -> Iterator[None]:
    """Hold `folder/.lock` (`filelock`: an flock, which the system releases when a process is killed).

    The lock file names its holder, and is removed with the lock. A process may take a lock that it holds again.

    Parameters
    ----------
    folder : made if it is not there
    what : what is being done, as "fold 1 is trained"
    wait : told whom it waits for; without it a lock that another process holds is an error
    patience : for so many seconds

    Raises
    ------
    RunError
        If another process holds the lock, and goes on doing so for ten minutes (`patience`) where it may be waited for;
        or if the folder cannot be written.
    """
    file = folder / LOCK
    make_folder(folder)
    lock = FileLock(file, is_singleton=True)
    for seconds in (GLANCE, patience):
        try:
            lock.acquire(timeout=seconds)
            break
        except Timeout:
            said = f"{folder}: {what} by {_holder(file)}"
            if wait is None or seconds > GLANCE:
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


def held_by(folder: Path) -> str | None:
    """Who holds `folder/.lock` now, as it says itself; None where nobody does, whatever file a killed process left.

    Nothing is written. A lock that nobody holds is had for an instant, shared with whoever else looks; a process that
    wants it meanwhile waits longer than that (`GLANCE`).
    """
    file = folder / LOCK
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError:
        return None  # there is none, or nothing in this folder can be read
    try:
        return _holder(file) if _is_locked(descriptor) else None
    finally:
        os.close(descriptor)  # which gives the lock back


def _is_locked(descriptor: int) -> bool:
    """Whether another open file has the lock that filelock takes: an flock, or on Windows one of the first byte."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True  # held; or a file system without locks, on which the file itself is the lock
    return False


def _holder(file: Path) -> str:
    """Who holds a lock, as it says itself."""
    with suppress(OSError, UnicodeDecodeError):
        if text := " ".join(file.read_text()[:200].split()):
            return text
    return "another process"
