"""Files and folders that are whole or absent: written under a scratch name beside their place, and renamed."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

_numbers = count()


@contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """A scratch path beside `file`; what is written there takes its place at the end, or is removed if that fails."""
    scratch = _scratch(file)
    try:
        yield scratch
        os.replace(scratch, file)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """An empty scratch folder beside `folder`, which takes its place at the end, or is removed if that fails.

    Parameters
    ----------
    replace : whether a folder that stands there gives way

    Raises
    ------
    OSError
        If the scratch folder cannot be made, or, without `replace`, if there is a folder with something in it.
    """
    scratch = _scratch(folder)
    try:
        scratch.mkdir(parents=True)
        yield scratch
        if replace:
            shutil.rmtree(folder, ignore_errors=True)
        os.rename(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _scratch(place: Path) -> Path:
    """A name that no other process, and nothing else in this one, writes to."""
    return place.with_name(f".{place.name}.{os.getpid()}-{next(_numbers)}.tmp")


def write_bytes(file: Path, content: bytes) -> None:
    """Write a whole file or nothing."""
    with whole_file(file) as scratch:
        scratch.write_bytes(content)


def write_json(file: Path, values: Any) -> None:
    """Indented, in UTF-8."""
    write_bytes(file, (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())


def write_csv(file: Path, table: pd.DataFrame) -> None:
    """CSV with every float in the shortest form that reads back exactly, and every text as it is."""
    lines: list[str] = []
    table.to_csv(CsvLines(lines), index=False, lineterminator=CsvLines.END)
    write_bytes(file, "".join(lines).encode())


class CsvLines(io.TextIOBase):
    """A file for `csv.writer`, which writes one line at a time; their ends become plain.

    Before Python 3.11.9 that writer quotes a carriage return within a cell only where it is part of the line end.
    """

    END = "\r\n"

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def write(self, line: str) -> int:
        self._lines.append(line.removesuffix(self.END) + "\n")
        return len(line)


def write_array(file: Path, array: np.ndarray) -> None:
    """NumPy's own format, without pickle."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_bytes(file, buffer.getvalue())
