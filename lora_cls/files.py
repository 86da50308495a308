"""Files and folders that are whole or absent: written in a scratch folder beside them, and renamed.

Everything that is written goes through here, so that a full disk, missing rights or a folder in a file's place end in
one sentence (`WriteError`), and everything has the rights that the umask gives.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil

from lora_cls.errors import LoraClsError, unwritable

_numbers = count()
_in_use: set[str] = set()
"""Names of the scratch folders that this process writes into now."""
_SCRATCH = re.compile(r"\.lora_cls-([0-9a-f]{6})-(\d+)-\d+\.tmp")
_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:6]
_FOREIGN_SECONDS = 24 * 3600  # whether a process of another machine still runs cannot be asked


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Within it, whatever keeps `place` from being written is a WriteError that names it.

    Libraries written in Rust (safetensors, tokenizers) raise errors of their own that end in `(os error 28)`.
    """
    try:
        yield
    except LoraClsError:
        raise
    except OSError as error:
        raise unwritable(place, error) from error
    except Exception as error:
        code = re.search(r"\(os error (\d+)\)", str(error))
        if code is None:
            raise
        raise unwritable(place, OSError(int(code[1]), os.strerror(int(code[1])))) from error


@contextmanager
def whole_file(file: Path, *, durable: bool = True) -> Iterator[Path]:
    """A scratch path; what is written there takes the place of `file` at the end, or is removed if that fails.

    Parameters
    ----------
    durable : whether it is on the disk before it is seen under its name, so that it outlives a power cut; a cache,
        which knows a damaged file by its checksum, need not wait for that

    Raises
    ------
    WriteError
        If it cannot be written.
    """
    with writing(file), scratch_folder(file.parent) as scratch:
        whole = scratch / "whole"
        yield whole
        _settle(whole, scratch, durable)
        os.replace(whole, file)
        if durable:
            _sync(file.parent)


@contextmanager
def whole_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """An empty scratch folder, which takes the place of `folder` at the end, or is removed if that fails.

    Parameters
    ----------
    replace : whether what stands there gives way

    Raises
    ------
    WriteError
        If it cannot be written, or, without `replace`, if there is a folder with something in it.
    """
    make_folder(folder.parent)
    with writing(folder), scratch_folder(folder.parent) as scratch:
        whole, before = scratch / "whole", scratch / "before"
        whole.mkdir()
        yield whole
        for path in [*whole.rglob("*"), whole]:
            _settle(path, scratch)
        if replace and os.path.lexists(folder):
            os.rename(folder, before)
        try:
            os.rename(whole, folder)
        except OSError:
            if before.exists():
                os.rename(before, folder)
            raise
        _sync(folder.parent)


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A folder that no other process, and nothing else in this one, writes into. It names the process: see `sweep`."""
    scratch = parent / f".lora_cls-{_HOST}-{os.getpid()}-{next(_numbers)}.tmp"
    sweep(parent)
    _in_use.add(scratch.name)
    try:
        scratch.mkdir()
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        _in_use.discard(scratch.name)


def sweep(folder: Path, *, deep: bool = False) -> None:
    """Remove scratch folders of processes that were killed; whatever cannot be removed stays.

    Parameters
    ----------
    deep : in the folders below, too
    """
    for where, folders, _ in os.walk(folder):
        for name in folders:
            if (found := _SCRATCH.fullmatch(name)) and _left(Path(where, name), found[1], int(found[2])):
                shutil.rmtree(Path(where, name), ignore_errors=True)
        if not deep:
            return
        folders[:] = [name for name in folders if not _SCRATCH.fullmatch(name)]


def _left(scratch: Path, host: str, process: int) -> bool:
    """Whether the process that made a scratch folder is gone."""
    if host == _HOST and process == os.getpid():  # or had this one's number, as in containers
        return scratch.name not in _in_use
    if host == _HOST and not psutil.pid_exists(process):
        return True
    with suppress(OSError):
        return time.time() - scratch.stat().st_mtime > _FOREIGN_SECONDS
    return False


def _settle(path: Path, scratch: Path, durable: bool = True) -> None:
    """Give a file the rights that the umask gives (safetensors' are the owner's alone), and bring it to the disk."""
    if path.is_file():
        rights = scratch.stat().st_mode & 0o666
        if path.stat().st_mode & 0o777 != rights:
            path.chmod(rights)
    if durable:
        _sync(path)


def _sync(path: Path) -> None:
    """Wait until the disk has a file, or a folder's names."""
    if os.name == "nt" and path.is_dir():  # has no such call for folders
        return
    opened = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def make_folder(folder: Path, rights: int = 0o777) -> None:
    """Make a folder that may exist, with these rights less the umask. Raises WriteError if it cannot be made."""
    with writing(folder):
        folder.mkdir(rights, parents=True, exist_ok=True)


def remove(file: Path) -> None:
    """Remove a file that may be missing. Raises WriteError if it stays."""
    with writing(file):
        file.unlink(missing_ok=True)


def write_bytes(file: Path, content: bytes) -> None:
    """Write a whole file or nothing. Raises WriteError if it cannot be written."""
    with whole_file(file) as scratch:
        scratch.write_bytes(content)


def append_line(file: Path, text: str) -> None:
    """Add a line. A stop within may leave a part of it. Raises WriteError if it cannot be written."""
    with writing(file), file.open("a", encoding="utf-8") as opened:
        opened.write(text + "\n")


def write_json(file: Path, values: Any) -> None:
    """Indented, in UTF-8."""
    write_bytes(file, (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())


def write_csv(file: Path, table: pd.DataFrame) -> None:
    """CSV with every float in the shortest form that reads back exactly, and every text as it is."""
    with whole_file(file) as scratch, scratch.open("wb") as opened:  # line by line: of a large table it is no copy
        table.to_csv(CsvLines(lambda line: opened.write(line.encode())), index=False, lineterminator=CsvLines.END)


class CsvLines(io.TextIOBase):
    """A file for `csv.writer`, which writes one line at a time; their ends become plain.

    Before Python 3.11.9 that writer quotes a carriage return within a cell only where it is part of the line end.
    """

    END = "\r\n"

    def __init__(self, take: Callable[[str], object]) -> None:
        self._take = take

    def write(self, line: str) -> int:
        self._take(line.removesuffix(self.END) + "\n")
        return len(line)


def array_bytes(array: np.ndarray) -> bytes:
    """NumPy's own format, without pickle."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def write_array(file: Path, array: np.ndarray) -> None:
    """In NumPy's own format."""
    write_bytes(file, array_bytes(array))
