"""The lines of a text file, read block by block from any place of it."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from lora_cls.data.encoding import decode

_BLOCK = 2**22  # bytes


class FileLines(Iterator[str]):
    """Lines of UTF-8, with their ends, as `io.StringIO(text, newline="")` splits the whole text; a byte order mark is
    not part of the first.

    Parameters
    ----------
    path : a file, which may be compressed (.gz): getting to a place is then slow
    byte : where a line starts
    line : lines before it

    Attributes
    ----------
    byte, line : where the line starts that comes next, and how many come before it

    Raises
    ------
    DataError
        While reading, for what is no UTF-8, NUL characters, and files of another kind.
    OSError
        If the file cannot be read.
    """

    def __init__(self, path: Path, byte: int = 0, line: int = 0) -> None:
        self.byte, self.line = byte, line
        self._path = path
        self._lines = self._decoded()

    def __next__(self) -> str:
        line = next(self._lines)
        self.byte += len(line) if line.isascii() else len(line.encode())
        self.line += 1
        return line

    def _decoded(self) -> Iterator[str]:
        with gzip.open(self._path) if self._path.suffix.lower() == ".gz" else self._path.open("rb") as opened:
            opened.seek(self.byte)
            for block in _blocks(opened):
                text = decode(block, self._path, bytes_before=self.byte, lines_before=self.line)
                if not self.byte:
                    self.byte = len(block) - len(text.encode())  # byte order marks
                yield from io.StringIO(text, newline="")


def _blocks(opened: IO[bytes]) -> Iterator[bytes]:
    """The bytes of a file, cut where lines end."""
    kept: list[bytes] = []
    while data := opened.read(_BLOCK):
        end = data.rfind(b"\n") + 1
        if not end:  # line ends of old Macs; a last one may be half of "\r\n"
            end = data.rfind(b"\r", 0, -1) + 1
        if end:
            yield b"".join([*kept, data[:end]])
            kept = [data[end:]]
        else:
            kept.append(data)
    if rest := b"".join(kept):
        yield rest
