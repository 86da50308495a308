"""Tables: CSV, TSV, JSON lines and Parquet files (or a DataFrame) read so that no value is guessed away."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd

from lora_cls.errors import DataError, did_you_mean, shorten

TableLike: TypeAlias = "str | os.PathLike[str] | pd.DataFrame"

FILE_LINE = "file line"
"""Name of the index of a table read from a text file: the line on which each row starts (quoted texts span lines)."""

SAMPLE = Path(__file__).parent.parent / "sample"
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".csv.gz", ".tsv.gz", ".jsonl.gz", ".ndjson.gz", ".parquet")
_LINE_END = re.compile(r"\r\n|\r|\n")


def table_path(source: str | os.PathLike[str]) -> Path:
    """The file that a name stands for; `sample:train.csv` is a file of the sample that comes with the package."""
    text = str(source)
    return SAMPLE / text.removeprefix("sample:") if text.startswith("sample:") else Path(text).expanduser()


def table_stem(source: str | os.PathLike[str]) -> str:
    """A table's name without folder and suffix: `2024.01` of `new/2024.01.csv.gz`."""
    name = table_path(source).name
    suffix = max((end for end in SUFFIXES if name.lower().endswith(end)), key=len, default="")
    return name.removesuffix(name[len(name) - len(suffix) :]) or "table"


def read_table(source: TableLike, *, name: str = "the DataFrame") -> pd.DataFrame:
    """Read a table without interpreting its values.

    Parameters
    ----------
    source : path or DataFrame
        A path, or `sample:NAME` (see `table_path`),
        with one of the suffixes in `SUFFIXES`. Text files are UTF-8, with or without a byte order mark.
    name : str
        What messages call a table given as a DataFrame; files go by their path.

    Returns
    -------
    DataFrame
        Of CSV and TSV, every value is a `str` ('' where the cell is empty); of JSON lines and Parquet, the value as
        stored. The index holds file lines (named `FILE_LINE`) for text files and row positions otherwise;
        `attrs["source"]` says where the table comes from, `attrs["header"]`
        of a text file how it spells the columns' names. A named index of a DataFrame becomes columns.

    Raises
    ------
    DataError
        If the file is missing, empty, without rows, not UTF-8, damaged or of an unknown suffix, if a line has too many
        or too few fields, or if two columns share a name.

    Examples
    --------
    The id keeps its zeros, and the word "NA" is a word.

    >>> pd.DataFrame({"id": ["007"], "text": ["NA"]}).to_csv("table.csv", index=False)
    >>> read_table("table.csv").to_dict("records")
    [{'id': '007', 'text': 'NA'}]
    """
    if isinstance(source, pd.DataFrame):
        where = str(source.attrs.get("source", name))
        frame = _plain_index(source)
        frame.columns = pd.Index(_checked_names([str(column) for column in frame.columns], where))
    else:
        path = table_path(source)
        where = str(path)
        suffix = _suffix(path)
        _check_exists(path)
        if suffix == ".parquet":
            frame = _read_parquet(path)
        else:
            text = _decode(_read_bytes(path), path)
            kind = suffix.removesuffix(".gz")
            frame = (
                _read_json_lines(text, where) if kind in (".jsonl", ".ndjson") else _read_delimited(text, kind, where)
            )
    if frame.empty:
        columns = f" It has the columns {shorten(frame.columns)}." if len(frame.columns) else ""
        raise DataError(f"{where} has no rows.{columns} At least one row is needed.")
    frame.attrs["source"] = where
    return frame


def row_name(frame: pd.DataFrame, position: int) -> str:
    """`"line 7"` where the table was read from a text file, `"row 5"` (counted from 0) otherwise."""
    return f"line {frame.index[position]}" if frame.index.name == FILE_LINE else f"row {position}"


def is_missing(value: object) -> bool:
    """Whether a cell holds nothing: None, NaN, NA, or a text of white space only. The word "NA" is a text."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and math.isnan(value))


def as_id(value: object) -> str:
    """An id as text: "007" stays "007"; 7.0, which pandas makes of 7 beside a missing cell, is "7"."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def problem_report(where: str, problems: Sequence[str], hint: str = "", at_most: int = 40) -> DataError:
    """One error for all problems of a table, one line each; `hint` is a last line that applies to all."""
    count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
    more = [f"and {len(problems) - at_most} more such lines."] if len(problems) > at_most else []
    lines = [*problems[:at_most], *more, *([hint] if hint else [])]
    return DataError(f"{where}: {count}\n" + "\n".join(f"  {line}" for line in lines))


def _plain_index(frame: pd.DataFrame) -> pd.DataFrame:
    """A copy whose named index, as `read_csv(..., index_col="id")` makes it, is columns again."""
    if frame.index.name == FILE_LINE:
        return frame.copy()
    # A named level that repeats a column would clash; then the column is the one to keep.
    named = [level for level in frame.index.names if level is not None and level not in frame.columns]
    unnamed = [i for i, level in enumerate(frame.index.names) if level not in named]
    if named:
        frame = frame.reset_index(level=unnamed, drop=True) if unnamed else frame
        return frame.reset_index()
    return frame.reset_index(drop=True)


def _suffix(path: Path) -> str:
    found = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)
    if found is None:
        raise DataError(
            f"{path} has the suffix '{path.suffix}'; tables are read by suffix: {', '.join(SUFFIXES)}. "
            "Save it as one of these (from a spreadsheet: CSV UTF-8), or rename it."
        )
    return found


def _check_exists(path: Path) -> None:
    if path.is_file():
        return
    if path.exists():
        raise DataError(f"{path} is a folder; give the path of a table.")
    if not path.parent.is_dir():
        raise DataError(f"{path} does not exist, and neither does the folder {path.parent.absolute()}.")
    files = sorted(entry.name for entry in path.parent.iterdir() if entry.is_file())
    raise DataError(f"{path} does not exist in {path.parent.absolute()}.{did_you_mean(path.name, files)}")


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        if path.suffix.lower() == ".gz":
            data = gzip.decompress(data)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is no intact gzip file ({error}). Copy or download it again.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    if not data.strip():
        raise DataError(f"{path} is empty. It must hold a table with at least one row.")
    return data


def _decode(data: bytes, path: Path) -> str:
    """UTF-8 bytes as text, without the byte order mark."""
    problem = None
    text = ""
    try:
        text = data.decode("utf-8")
        position = data.find(b"\0")  # valid in UTF-8, but in a table it means UTF-16 or a damaged file
        if position >= 0:
            problem = "there is a NUL byte"
    except UnicodeDecodeError as error:
        position = error.start
        problem = f"there is the byte 0x{data[position]:02x}"
    if problem is None:
        return text.removeprefix("\ufeff")
    line = len(_LINE_END.findall(data[:position].decode("latin-1"))) + 1
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data[:100]
    guess = "UTF-16" if wide else "WINDOWS-1252"
    unpacked, to = (f"gunzip -c '{path}'", path.stem) if path.suffix.lower() == ".gz" else (f"cat '{path}'", path.name)
    raise DataError(
        f"{path} is not UTF-8 text: {problem} at position {position} (line {line}). "
        f"Convert it, for example: {unpacked} | iconv -f {guess} -t UTF-8 > 'utf8_{to}'"
        f"{'' if wide else ' (if it was written on Windows; else name its encoding)'}"
    )


@contextmanager
def _no_field_size_limit() -> Iterator[None]:
    """The csv module refuses fields above 128 KiB; whole documents may be longer."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _read_delimited(text: str, kind: str, where: str) -> pd.DataFrame:
    # Python's own reader, and not pandas': it says on which line a row starts, and it is strict about quotes.
    delimiter = "\t" if kind == ".tsv" else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    names: list[str] = []
    rows: list[list[str]] = []
    lines: list[int] = []
    problems: list[str] = []
    start = 1
    with _no_field_size_limit():
        try:
            for fields in reader:
                line, start = start, reader.line_num + 1
                if not fields:  # a blank line
                    continue
                if not names:
                    header, names = fields, _header(fields, delimiter, where)
                elif len(fields) != len(names):
                    problems.append(f"line {line} has {len(fields)} fields, but the header has {len(names)}.")
                else:
                    rows.append(fields)
                    lines.append(line)
        except csv.Error as error:
            raise DataError(_quote_problem(where, start, delimiter, error)) from None
    if problems:
        comma = "tab" if delimiter == "\t" else "comma"
        hint = f'A text that holds a {comma}, a line break or a " must stand between double quotes.'
        raise problem_report(where, problems, hint, at_most=10)
    frame = pd.DataFrame(rows, columns=names, index=pd.Index(lines, name=FILE_LINE), dtype=object)
    frame.attrs["header"] = header
    return frame


def _quote_problem(where: str, line: int, delimiter: str, error: Exception) -> str:
    separator = "\\t" if delimiter == "\t" else ","
    return (
        f"{where}: the quotes of the row that starts on line {line} do not match ({error}). A text that starts with a "
        '" must also end with one, and a " inside it is doubled (""). If the file was written without quoting, convert '
        f"it: python -c \"import pandas as pd; pd.read_csv('{where}', sep='{separator}', quoting=3, dtype=str, "
        "keep_default_na=False).to_csv('quoted.csv', index=False)\""
    )


def _header(fields: list[str], delimiter: str, where: str) -> list[str]:
    if len(fields) == 1:
        other = next((mark for mark in (";", "\t", "|", ",") if mark in fields[0] and mark != delimiter), None)
        if other:
            wanted = "tabs" if delimiter == "\t" else "commas"
            raise DataError(
                f"{where}: the header looks separated by {other!r}, but this suffix means {wanted}. "
                f"Save it with {wanted}{', or rename it to .tsv' if other == chr(9) else ''}."
            )
    # pandas writes its index under an empty name; the same stand-in that pandas uses on reading.
    return _checked_names([name.strip() or f"Unnamed: {i}" for i, name in enumerate(fields)], where)


def _checked_names(names: Iterable[str], where: str) -> list[str]:
    names = list(names)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"{where}: these column names stand more than once: {shorten(twice)}. Rename or remove columns."
        )
    return names


def _read_json_lines(text: str, where: str) -> pd.DataFrame:
    records: list[dict[str, Any]] = []
    lines: list[int] = []
    problems: list[str] = []
    # Not splitlines(): a JSON text may hold U+2028 and other characters that it would split at.
    for number, line in enumerate(_LINE_END.split(text), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line, object_pairs_hook=_unique_pairs)
        except (ValueError, RecursionError) as error:
            problems.append(f"line {number} is not a JSON object: {error}.")
            continue
        if isinstance(record, dict):
            records.append(record)
            lines.append(number)
        else:
            problems.append(f"line {number} holds a JSON {type(record).__name__}, not an object.")
    if problems:
        raise problem_report(where, problems, "Each line must hold one object with the row's columns.", at_most=10)
    # dtype=object: an integer id beside a row without one must not become a float.
    return pd.DataFrame(records, index=pd.Index(lines, name=FILE_LINE), dtype=object)


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name '{next(name for name in names if names.count(name) > 1)}' stands more than once")
    return record


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError(f"{path}: Parquet files need pyarrow: pip install pyarrow, or save the table as CSV.") from None
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty. It must hold a table with at least one row.")
    try:
        table = pq.read_table(path)
        _checked_names(table.column_names, str(path))
        # Integers beside missing cells stay integers: id 7 must not become 7.0.
        return _plain_index(table.to_pandas(integer_object_nulls=True))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is no readable Parquet file: {error}") from None
