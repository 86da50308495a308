"""Tables: CSV, TSV, JSON, Parquet and Excel files (or a DataFrame) read so that no value is guessed away."""

from __future__ import annotations

import csv
import gc
import gzip
import io
import json
import math
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from lora_cls.data.encoding import LINE_END, decode
from lora_cls.data.header import check_header, lacks_header
from lora_cls.errors import DataError, brief, did_you_mean, shorten, shown

TableLike: TypeAlias = "str | os.PathLike[str] | pd.DataFrame"

FILE_LINE = "file line"
"""Name of the index of a table read from a text file: the line on which each row starts (quoted texts span lines); of
an Excel sheet its rows."""

SAMPLE = Path(__file__).parent.parent / "sample"
_TEXT_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
SUFFIXES = (*_TEXT_SUFFIXES, *(f"{suffix}.gz" for suffix in _TEXT_SUFFIXES), ".parquet", ".xlsx")
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*(?:\r\n|\r|\n)', re.IGNORECASE)
_LONGEST_INTEGER = 300
"""Longer ones, which no float can hold, stay text."""


def table_path(source: str | os.PathLike[str]) -> Path:
    """The file that a name stands for; `sample:train.csv` is a file of the sample that comes with the package."""
    text = str(source)
    if text.startswith("sample:"):
        return SAMPLE / text.removeprefix("sample:")
    try:
        return Path(text).expanduser()
    except RuntimeError:  # `~` of nobody's home
        return Path(text)


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
        with one of the suffixes in `SUFFIXES`. Text files are UTF-8, with or without a byte order mark. JSON is one
        object per line, or an array of them. Excel files need openpyxl, and hold one sheet.
    name : str
        What messages call a table given as a DataFrame; files go by their path.

    Returns
    -------
    DataFrame
        Of CSV and TSV, every value is a `str` ('' where the cell is empty); of the other formats, the value as
        stored. The index holds file lines (named `FILE_LINE`) where there are lines and row positions otherwise;
        `attrs["source"]` says where the table comes from, `attrs["header"]` is a note on its header, or '', and
        `attrs["spelled"]` of a text file how it spells the columns' names. A named index of a DataFrame becomes
        columns.

    Raises
    ------
    DataError
        If the file is missing, empty, without rows, not UTF-8, damaged or of an unknown suffix, if a line has too many
        or too few fields, if two columns share a name, or if the header is missing or stands twice.

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
        frame.columns = pd.Index(checked_names([str(column) for column in frame.columns], where))
        kind = ""
    else:
        path = table_path(source)
        where = str(path)
        with reading(path):
            kind = checked_suffix(path)
            frame = _read_file(path, kind)
    if frame.empty:
        raise no_rows(where, frame.columns)
    frame.attrs["source"] = where
    frame.attrs["header"] = "" if kind in JSON else check_header(frame, where) or ""
    return frame


JSON = (".jsonl", ".ndjson", ".json")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Within it, whatever keeps a table from being read is a DataError that names it.

    Python looks for no cycles to collect meanwhile: cells are none, and with each million of them it would go through
    all again (1,000,000 rows with 28 labels took 7.5 s of the processor, and take 4.2).
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    except MemoryError:
        raise DataError(f"{path} is too large for this machine's memory. Give a smaller table.") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is no intact gzip file ({error}). Copy or download it again.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None
    finally:
        if collects:
            gc.enable()


def no_rows(where: str, columns: Sequence[str] | pd.Index) -> DataError:
    """What is said of a table that has nothing but perhaps a header."""
    named = f" It has the columns {shorten(columns)}." if len(columns) else ""
    return DataError(f"{where} has no rows.{named} At least one row is needed.")


def empty_file(path: Path) -> DataError:
    """What is said of a file in which nothing stands."""
    return DataError(f"{path} is empty. It must hold a table with at least one row.")


def _read_file(path: Path, kind: str) -> pd.DataFrame:
    where = str(path)
    if kind == ".parquet":
        return _read_parquet(path)
    if kind == ".xlsx":
        return _read_excel(path)
    text = decode(_read_bytes(path), path)
    return _read_json(text, where) if kind in JSON else _read_delimited(text, kind, where)


def row_name(frame: pd.DataFrame, position: int) -> str:
    """`"line 7"` where the table was read from a text file, `"row 5"` (counted from 0) otherwise.

    The index says it, and not the position: `frame` may be a piece of a table.
    """
    return f"{'line' if frame.index.name == FILE_LINE else 'row'} {frame.index[position]}"


def is_missing(value: object) -> bool:
    """Whether a cell holds nothing: None, NaN, NA, or a text of white space only. The word "NA" is a text."""
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, (float, np.floating)):
        return math.isnan(value)
    return value is None or value is pd.NA or value is pd.NaT


def as_id(value: object) -> str:
    """An id as text: "007" stays "007"; 7.0, which pandas makes of 7 beside a missing cell, is "7"."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def half_character(text: str) -> bool:
    """Whether a text holds a lone surrogate, which JSON can write and no file can hold."""
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


def problem_report(where: str, problems: Sequence[str], hint: str = "", at_most: int = 40, more: int = 0) -> DataError:
    """One error for all problems of a table, one line each; `hint` is a last line that applies to all, and `more` is
    the number of problems that were counted and not kept."""
    total = len(problems) + more
    left = total - min(len(problems), at_most)
    count = f"{total} problem{'s' * (total > 1)}"
    others = [f"and {left} more such lines."] if left else []
    lines = [*problems[:at_most], *others, *([hint] if hint else [])]
    return DataError(f"{where}: {count}\n" + "\n".join(f"  {line}" for line in lines))


def write_frame(frame: pd.DataFrame, file: Path) -> None:
    """Write a DataFrame down for other processes, which read the same rows from the file.

    Raises
    ------
    DataError
        If Parquet cannot hold what is in it.
    """
    try:
        _plain_index(frame).to_parquet(file)
    except (ValueError, TypeError, NotImplementedError) as error:  # pyarrow's own are kinds of these
        raise DataError(
            f"The DataFrame cannot be handed to other processes ({brief(error)}). Write it to a file and give its path."
        ) from None


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


def checked_suffix(path: Path) -> str:
    """What kind of file it is: its suffix, without .gz. Raises DataError if it is missing, or of no known kind."""
    if not path.is_file():
        raise _missing(path)
    found = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)
    if found is None:
        raise DataError(
            f"{path} has the suffix '{path.suffix}'; tables are read by suffix: {', '.join(SUFFIXES)}. "
            "Save it as one of these (from a spreadsheet: CSV UTF-8), or rename it."
        )
    return found.removesuffix(".gz")


def _missing(path: Path) -> DataError:
    if path.exists():
        return DataError(f"{path} is {'a folder' if path.is_dir() else 'no file'}; give the path of a table.")
    if not path.parent.is_dir():
        return DataError(f"{path} does not exist, and neither does the folder {path.parent.absolute()}.")
    files = sorted(entry.name for entry in path.parent.iterdir() if entry.is_file())
    return DataError(f"{path} does not exist in {path.parent.absolute()}.{did_you_mean(path.name, files)}")


def _read_bytes(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix.lower() == ".gz":
        data = gzip.decompress(data)
    if not data.strip():
        raise empty_file(path)
    return data


def read_text_file(path: Path) -> str:
    """A file of plain text, which may be compressed. Raises DataError if it is missing, empty, damaged or not UTF-8."""
    if not path.is_file():
        raise _missing(path)
    with reading(path):
        return decode(_read_bytes(path), path)


@contextmanager
def no_field_size_limit() -> Iterator[None]:
    """The csv module refuses fields above 128 KiB; whole documents may be longer."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


class DelimitedRows:
    """The rows of CSV or TSV lines, each with the line on which it starts (a quoted text spans lines).

    Python's own reader, and not pandas': it says on which line a row starts, and it is strict about quotes. Read them
    within `no_field_size_limit`.

    Parameters
    ----------
    lines : with their ends, from the first on
    kind : .csv or .tsv
    where : what messages call the file

    Attributes
    ----------
    header : names of the columns as the file spells them; [] where there is not even a header
    names : names of the columns
    """

    def __init__(self, lines: Iterable[str], kind: str, where: str) -> None:
        lines = iter(lines)
        first = next(lines, "")
        self.where, self.delimiter, before = where, "\t" if kind == ".tsv" else ",", 0
        if separator := _SEPARATOR_LINE.fullmatch(first):  # how spreadsheets are told what separates the fields
            self.delimiter, before = separator[1], 1
        else:
            lines = chain([first], lines)
        self._rows = self.behind(lines, before)
        self.header = next(self._rows, (0, []))[1]
        self.names = _header(self.header, self.delimiter, where) if self.header else []

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        return self._rows

    def behind(self, lines: Iterable[str], before: int) -> Iterator[tuple[int, list[str]]]:
        """Rows of other lines of the same file, which has `before` lines before them. Blank lines are no rows."""
        reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
        start = before + 1
        try:
            for fields in reader:
                line, start = start, before + reader.line_num + 1
                if fields:
                    yield line, fields
        except csv.Error as error:
            raise DataError(_quote_problem(self.where, start, self.delimiter, error)) from None

    def problem(self, line: int, fields: Sequence[str]) -> str | None:
        """What is wrong with the number of a row's fields."""
        if len(fields) == len(self.names):
            return None
        return f"line {line} has {len(fields)} fields, but the header has {len(self.names)}."

    def report(self, problems: Sequence[str], more: int = 0) -> DataError:
        """One error for the problems of rows, of which `more` are not among these."""
        comma = {"\t": "tab", ",": "comma"}.get(self.delimiter, self.delimiter)
        hint = f'A text that holds a {comma}, a line break or a " must stand between double quotes.'
        return problem_report(self.where, problems, hint, at_most=10, more=more)

    def frame(self, rows: Sequence[tuple[int, list[str]]]) -> pd.DataFrame:
        """Rows without a problem as a table."""
        index = pd.Index([line for line, _ in rows], name=FILE_LINE)
        frame = pd.DataFrame([fields for _, fields in rows], columns=self.names, index=index, dtype=object)
        frame.attrs["spelled"] = self.header
        return frame


def _read_delimited(text: str, kind: str, where: str) -> pd.DataFrame:
    with no_field_size_limit():
        table = DelimitedRows(io.StringIO(text, newline=""), kind, where)
        rows = list(table)
    problems = [found for line, fields in rows if (found := table.problem(line, fields)) is not None]
    if problems:
        raise table.report(problems)
    return table.frame(rows)


def _quote_problem(where: str, line: int, delimiter: str, error: Exception) -> str:
    separator = "\\t" if delimiter == "\t" else delimiter
    return (
        f"{where}: the quotes of the row that starts on line {line} do not match ({error}). A text that starts with a "
        '" must also end with one, and a " inside it is doubled (""). If the file was written without quoting, convert '
        f"it: python -c \"import pandas as pd; pd.read_csv('{where}', sep='{separator}', quoting=3, dtype=str, "
        "keep_default_na=False).to_csv('quoted.csv', index=False)\""
    )


def _header(fields: list[str], delimiter: str, where: str) -> list[str]:
    if len(fields) == 1:
        other = next((mark for mark in (";", "\t", "|", ",") if mark in fields[0] and mark != delimiter), None)
        if other and delimiter in ("\t", ","):
            wanted = "tabs" if delimiter == "\t" else "commas"
            raise DataError(
                f"{where}: the header looks separated by {other!r}, but this suffix means {wanted}. "
                f"Save it with {wanted}{', or rename it to .tsv' if other == chr(9) else ''}."
            )
    # pandas writes its index under an empty name; the same stand-in that pandas uses on reading.
    return checked_names([name.strip() or f"Unnamed: {i}" for i, name in enumerate(fields)], where)


def checked_names(names: Iterable[str], where: str) -> list[str]:
    names = list(names)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"{where}: these column names stand more than once: {shorten(twice)}. Rename or remove columns."
            f"{lacks_header(names)}"
        )
    return names


def _read_json(text: str, where: str) -> pd.DataFrame:
    """JSON lines, or an array of objects."""
    array = _json_array(text, where)
    records: list[dict[str, Any]] = []
    lines: list[int] = []
    problems: list[str] = []
    # Not splitlines(): a JSON text may hold U+2028 and other characters that it would split at.
    for number, line in enumerate(LINE_END.split(text) if array is None else array, start=1):
        if array is None and isinstance(line, str) and not line.strip():
            continue
        record = json_record(str(line), number) if array is None else _item(line, number)
        if isinstance(record, str):
            problems.append(record)
        else:
            records.append(record)
            lines.append(number)
    if problems:
        raise json_report(where, problems)
    return json_frame(records, lines if array is None else None)


def json_frame(records: Sequence[dict[str, Any]], lines: Sequence[int] | None) -> pd.DataFrame:
    """Objects as the rows of a table, with the lines they stand on if they have any."""
    # dtype=object: an integer id beside a row without one must not become a float.
    return pd.DataFrame(records, index=None if lines is None else pd.Index(lines, name=FILE_LINE), dtype=object)


def json_record(line: str, number: int) -> dict[str, Any] | str:
    """The object on a line that is not blank; or what is wrong with it."""
    try:
        found = _json_value(line)
    except (ValueError, RecursionError) as error:
        return f"line {number} is not a JSON object: {error}."
    return found if isinstance(found, dict) else f"line {number} holds a JSON {type(found).__name__}, not an object."


def _item(found: object, number: int) -> dict[str, Any] | str:
    return found if isinstance(found, dict) else f"item {number} holds a JSON {type(found).__name__}, not an object."


def json_report(where: str, problems: Sequence[str], more: int = 0) -> DataError:
    """One error for the problems of JSON rows, of which `more` are not among these."""
    hint = "Each line (or each item of one array) must hold one object with the row's columns."
    return problem_report(where, problems, hint, at_most=10, more=more)


def _json_array(text: str, where: str) -> list[object] | None:
    """The items of a text that is one array; None for JSON lines."""
    start = text.lstrip()[:1]
    if start not in ("[", "{"):
        return None
    try:
        found = _json_value(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(found, list):
        return found
    nested = isinstance(found, dict) and any(isinstance(value, (dict, list)) for value in found.values())
    if isinstance(found, dict) and nested and ("\n" in text.strip() or len(found) == 1):
        raise DataError(
            f"{where} is one JSON object ({shorten(found)}), not one per row. Write an array of objects, or one "
            'object per line: with pandas to_json(..., orient="records", lines=True).'
        )
    return None


def _json_value(text: str) -> object:
    return json.loads(text, object_pairs_hook=_unique_pairs, parse_int=_json_integer)


def _json_integer(digits: str) -> int | str:
    return int(digits) if len(digits) <= _LONGEST_INTEGER else digits


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    broken = next((name for name in record if half_character(name)), None)
    if broken is not None:
        raise ValueError(f"the name {broken!r} holds half of a character (a lone surrogate)")
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name '{next(name for name in names if names.count(name) > 1)}' stands more than once")
    return record


def _read_parquet(path: Path) -> pd.DataFrame:
    with reading_parquet(path) as parquet:
        table = parquet.read_table(path)
        checked_names(table.column_names, str(path))
        return parquet_frame(table)


@contextmanager
def reading_parquet(path: Path) -> Iterator[Any]:
    """pyarrow's module of Parquet files. Within it, whatever keeps the file from being read is a DataError."""
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError(f"{path}: Parquet files need pyarrow: pip install pyarrow, or save the table as CSV.") from None
    if path.stat().st_size == 0:
        raise empty_file(path)
    try:
        yield pq
    except (DataError, MemoryError):
        raise
    except Exception as error:  # pyarrow raises what it meets: its own errors, ValueError, KeyError, UnicodeError ...
        raise DataError(f"{path} is no readable Parquet file: {shown(error, 300, quoted=False)}") from None


def parquet_frame(table: Any) -> pd.DataFrame:
    """An Arrow table, or a piece of one, with its named index as columns."""
    try:
        # Integers beside missing cells stay integers: id 7 must not become 7.0.
        return _plain_index(table.to_pandas(integer_object_nulls=True))
    except Exception:  # what pandas noted of its index is damaged: the columns themselves are not
        plain = table.select([name for name in table.column_names if not re.fullmatch(r"__index_level_\d+__", name)])
        return plain.replace_schema_metadata(None).to_pandas(integer_object_nulls=True)


def _read_excel(path: Path) -> pd.DataFrame:
    """The only sheet with cells of an .xlsx file; formulas count as what they last showed."""
    try:
        import openpyxl
    except ImportError:
        raise DataError(
            f"{path}: Excel files need openpyxl: pip install openpyxl. Or save the sheet as CSV UTF-8 in a spreadsheet."
        ) from None
    sheets: dict[str, list[tuple[int, list[object]]]] = {}
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        try:
            for sheet in book.worksheets:
                cells_of = enumerate(sheet.iter_rows(values_only=True), start=1)
                filled = [(line, list(cells)) for line, cells in cells_of if not all(map(is_missing, cells))]
                if filled:
                    sheets[sheet.title] = filled
        finally:
            book.close()
    except MemoryError:
        raise
    except Exception as error:  # whatever the parsers of ZIP and XML meet in a damaged file
        raise DataError(
            f"{path} is no readable Excel file ({shown(error, 300, quoted=False)}). Save it as CSV UTF-8."
        ) from None
    if len(sheets) > 1:
        raise DataError(
            f"{path} has several sheets with cells ({shorten(sheets)}): save the one that is the table as CSV UTF-8."
        )
    if not sheets:
        raise DataError(f"{path} is empty. It must hold a table with at least one row.")
    ((_, header), *rows) = next(iter(sheets.values()))
    width = max(i + 1 for _, cells in [(0, header), *rows] for i, cell in enumerate(cells) if not is_missing(cell))
    table = [["" if cell is None else cell for cell in [*cells, *[None] * width][:width]] for _, cells in rows]
    names = ["" if is_missing(cell) else as_id(cell) for cell in [*header, *[None] * width][:width]]
    index = pd.Index([line for line, _ in rows], name=FILE_LINE)
    return pd.DataFrame(table, columns=_header(names, "", str(path)), index=index, dtype=object)
