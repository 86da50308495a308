"""Bytes of a table as text: UTF-8, or an error that names the place and gives no advice that would spoil the text."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from lora_cls.errors import DataError

LINE_END = re.compile(r"\r\n|\r|\n")

_KINDS = (
    (b"PK\x03\x04", "an Excel workbook or another ZIP archive", ".xlsx"),
    (b"PAR1", "a Parquet file", ".parquet"),
    (b"\x1f\x8b", "compressed by gzip", ".csv.gz (or .tsv.gz, .jsonl.gz)"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook (.xls)", ".xls, open it in a spreadsheet and save it as CSV UTF-8"),
    (b"%PDF", "a PDF", ".pdf, and give a table"),
)
_WIDE = (
    (b"\xff\xfe\0\0", "UTF-32"), (b"\0\0\xfe\xff", "UTF-32"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"),
)  # fmt: skip
# What Western texts of Windows-1252 hold beside letters. Other encodings read as it show other marks between letters.
_WESTERN_MARKS = frozenset("\xa0€‚„…‘’“”•–—™¡¢£§©«®°±´·»¿×")
_OPENING = frozenset("‚„«¡¿")


def decode(data: bytes, path: Path, *, bytes_before: int = 0, lines_before: int = 0) -> str:
    """UTF-8 bytes as text, without byte order marks at the start of the file.

    Parameters
    ----------
    data : a file, or whole lines of one
    bytes_before, lines_before : how much of the file stands before them

    Raises
    ------
    DataError
        Names the line, and the byte; advises a conversion only to a file that is wholly and plausibly of that encoding.
    """
    if not bytes_before:
        for start, kind, suffix in _KINDS:
            if data.startswith(start):
                raise DataError(f"{path} is no text: it is {kind}. Name it {suffix}.")
        wide = _wide_encoding(data)
        if wide:
            raise DataError(f"{path} is not UTF-8 text but {wide}. Convert it: {_conversion(path, wide)}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        said = _broken_bytes(data, error.start, path, bytes_before, lines_before)
        raise DataError(f"{path} is not UTF-8 text: {said}") from None
    if "\0" in text:
        # valid in UTF-8, but no text holds one: the file was cut, or filled with zeros by a full disk
        lines = [lines_before + _line(text[: found.start()]) for found in islice(re.finditer("\0", text), 5)]
        unpack, name = _unpacked(path)
        raise DataError(
            f"{path}: {text.count(chr(0))} NUL characters stand in it, which belong to no text (line "
            f"{', '.join(map(str, dict.fromkeys(lines)))}{' ...' if text.count(chr(0)) > 5 else ''}). The file may be "
            f"damaged: copy or export it again. To remove them: {unpack} | tr -d '\\000' > {name}"
        )
    return text if bytes_before else text.lstrip("\ufeff")


def _wide_encoding(data: bytes) -> str | None:
    """UTF-16 or UTF-32, known by their mark, or by zeros in every second byte of ASCII."""
    marked = next((name for mark, name in _WIDE if data.startswith(mark)), None)
    if marked:
        return marked
    start = data[:2000]
    high, low = (start[parity::2].count(0) / max(1, len(start[parity::2])) for parity in (0, 1))
    if max(high, low) < 0.4 or min(high, low) > 0.1:
        return None
    return "UTF-16BE" if high > low else "UTF-16LE"


def _broken_bytes(data: bytes, first: int, path: Path, bytes_before: int, lines_before: int) -> str:
    """What is wrong with bytes that are no UTF-8 from the `first` on, and what to do."""
    # where a few bytes are broken and others are right, converting all would spoil those that are right
    places = list(islice(_broken_places(data, lines_before + 1), 100))
    shown = ", ".join(f"0x{data[at]:02x} on line {line}" for at, line in places[:5]) + " ..." * (len(places) > 5)
    if any(not character.isascii() for character in data.decode("utf-8", errors="ignore")):
        count = f"{len(places)}{' or more' * (len(places) == 100)}"
        return (
            f"{count} broken byte{'s' * (len(places) > 1)} ({shown}) in a file that is UTF-8 elsewhere. Do not convert "
            "all of it: that would spoil the characters that are right. Mend these places in an editor, or export "
            "the table again as UTF-8."
        )
    where = f"there is the byte 0x{data[first]:02x} at position {bytes_before + first} (line {places[0][1]}). "
    if not _plausibly_windows_1252(data):
        return where + (
            "Nor does it look like Windows-1252. Export the table again as UTF-8 (from a spreadsheet: CSV UTF-8), or "
            "convert it from the encoding that it was written in."
        )
    convert = _conversion(path, "WINDOWS-1252")
    return where + f"It looks like Windows-1252. Convert it, and look at its accents afterwards: {convert}"


def _broken_places(data: bytes, line: int) -> Iterator[tuple[int, int]]:
    """Position and line of every byte that breaks UTF-8; the data starts on `line`."""
    start = 0
    while True:
        try:
            data[start:].decode("utf-8")
        except UnicodeDecodeError as error:
            at = start + error.start
            line += _line(data[start:at].decode("utf-8")) - 1
            yield at, line
            start = at + 1
        else:
            return


def _plausibly_windows_1252(data: bytes) -> bool:
    """Whether all bytes are of that encoding, and read as it make words: few accents among plain letters, capitals only
    where capitals are, and no odd marks. Cyrillic, Greek, Mac and DOS texts fail."""
    try:
        text = data.decode("windows-1252")
    except UnicodeDecodeError:
        return False
    others = list(re.finditer(r"[^\x00-\x7f]", text))
    if sum(found[0].isalpha() for found in others) * 3 > sum(map(str.isalpha, text)):
        return False
    for found in others:
        mark, before, after = (
            found[0],
            text[max(0, found.start() - 1) : found.start()],
            text[found.end() : found.end() + 1],
        )
        if mark.isalpha():
            odd = mark in "ªºƒ" or (mark.isupper() and before.islower())
        else:
            inside = before.isalpha() and (after.isalpha() or mark in _OPENING)
            odd = mark not in _WESTERN_MARKS or (inside and mark not in "’…–—·")
        if odd:
            return False
    return True


def _line(text: str) -> int:
    return len(LINE_END.findall(text)) + 1


def _conversion(path: Path, encoding: str) -> str:
    unpack, name = _unpacked(path)
    return f"{unpack} | iconv -f {encoding} -t UTF-8 > {name}"


def _unpacked(path: Path) -> tuple[str, str]:
    """A command that prints a file, unpacked, and a name for what is made of it."""
    packed = path.suffix.lower() == ".gz"
    name = path.stem if packed else path.name
    return f"{'gunzip -c' if packed else 'cat'} {shlex.quote(str(path))}", shlex.quote(f"utf8_{name}")
