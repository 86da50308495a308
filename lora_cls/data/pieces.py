"""A table in pieces: CSV, JSON lines and Parquet read from any piece on, without the whole table in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lora_cls.data.lines import FileLines
from lora_cls.data.table import (
    JSON,
    DelimitedRows,
    TableLike,
    checked_names,
    checked_suffix,
    empty_file,
    json_frame,
    json_record,
    json_report,
    no_field_size_limit,
    no_rows,
    parquet_frame,
    read_table,
    reading,
    reading_parquet,
    table_path,
)
from lora_cls.errors import DataError

_KEPT_PROBLEMS = 40
_PARQUET_BUFFER = 2**20  # bytes of a column that are read at once: without, all of a row group's


@dataclass(frozen=True)
class Place:
    """Where a piece of a table is: its first row (counted from 0), how many it has; in a text file the byte that it
    starts at, and the lines before."""

    first: int
    n_rows: int
    byte: int = 0
    line: int = 0


class TablePieces(ABC):
    """A table of which so many rows are read at a time.

    It can be sent to other processes, which find the same pieces in the same file.

    Attributes
    ----------
    source : the file, or what stands for it
    columns : names of the columns
    places : one of each piece, at least one
    has_header : whether the first row of the file names the columns, so that it may be missing
    spelled : the columns' names as a text file spells them; None where `columns` are those
    """

    source: str
    columns: list[str]
    places: list[Place]
    has_header = True
    spelled: list[str] | None = None

    @property
    def n_rows(self) -> int:
        """Rows of all pieces."""
        return self.places[-1].first + self.places[-1].n_rows

    def __iter__(self) -> Iterator[pd.DataFrame]:
        return map(self.frame, range(len(self.places)))

    def frame(self, number: int) -> pd.DataFrame:
        """The rows of one piece as `read_table` reads them; the index counts on from the pieces before.

        The pieces in their order are read in one go.

        Raises
        ------
        DataError
            If the file cannot be read, or has changed in a way that shows.
        """
        frame = self._read(number)
        frame.attrs["source"], frame.attrs["header"] = self.source, ""
        if self.spelled is not None:
            frame.attrs["spelled"] = self.spelled
        return frame

    @abstractmethod
    def _read(self, number: int) -> pd.DataFrame: ...

    def changed(self) -> DataError:
        """What is said of a file that is not what it was when its pieces were looked for."""
        return DataError(f"{self.source} has changed while it was read. Repeat the command once it stays as it is.")


def read_pieces(source: TableLike, n_rows: int, *, name: str = "the DataFrame") -> TablePieces:
    """Find the pieces of a table.

    CSV, TSV, JSON lines (compressed, too) and Parquet are gone through once and not kept; Excel, a JSON array and a
    DataFrame are in memory as a whole.

    Parameters
    ----------
    source, name : see `read_table`
    n_rows : of each piece but the last

    Raises
    ------
    DataError
        As `read_table`, but for a header that is missing or stands twice: only who reads the rows sees that.

    Examples
    --------
    >>> pd.DataFrame({"id": ["007", "8", "9"], "text": ["a", "b", "c"]}).to_csv("table.csv", index=False)
    >>> pieces = read_pieces("table.csv", 2)
    >>> pieces.n_rows, pieces.frame(1).to_dict("records")
    (3, [{'id': '9', 'text': 'c'}])
    """
    if isinstance(source, pd.DataFrame):
        return WholeTable(read_table(source, name=name), n_rows)
    path = table_path(source)
    found: TablePieces | None = None
    with reading(path):
        kind = checked_suffix(path)
        if kind in (".csv", ".tsv"):
            found = DelimitedPieces(path, kind, n_rows)
        elif kind == ".parquet":
            found = ParquetPieces.of(path, n_rows)
        elif kind in JSON and _is_json_lines(path):
            found = JsonPieces(path, n_rows)
    if found is None:
        return WholeTable(read_table(source), n_rows)
    if not found.places or not found.columns:
        raise no_rows(found.source, found.columns)
    return found


class WholeTable(TablePieces):
    """A table that is in memory."""

    def __init__(self, frame: pd.DataFrame, n_rows: int) -> None:
        self.source, self.has_header = str(frame.attrs["source"]), False  # `read_table` looked
        self.columns = [str(name) for name in frame.columns]
        self.spelled = frame.attrs.get("spelled")
        self.places = _places(len(frame), n_rows)
        self._frame = frame

    def _read(self, number: int) -> pd.DataFrame:
        place = self.places[number]
        return self._frame.iloc[place.first : place.first + place.n_rows]


def _places(total: int, n_rows: int) -> list[Place]:
    return [Place(first, min(n_rows, total - first)) for first in range(0, total, n_rows)]


class _TextPieces(TablePieces):
    """A text file: rows are lines, or stand on several."""

    def __init__(self, path: Path) -> None:
        self.source, self._path = str(path), path
        self.places = []
        self._rows: Iterator[tuple[int, Any]] = iter(())
        self._next = -1

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_rows": None, "_next": -1}  # where this process is in the file

    def _find(self, lines: FileLines, rows: Iterator[tuple[int, Any]], n_rows: int) -> None:
        """Note where the pieces start, of rows that the lines hold from here on."""
        total = 0
        while True:
            byte, line = lines.byte, lines.line
            found = sum(1 for _ in islice(rows, n_rows))
            if not found:
                return
            self.places.append(Place(total, found, byte, line))
            total += found

    def _taken(self, number: int) -> list[tuple[int, Any]]:
        """The rows of a piece with their lines."""
        place = self.places[number]
        with reading(self._path):
            if number != self._next:
                self._rows = self._rows_from(place)
            rows = list(islice(self._rows, place.n_rows))
        self._next = number + 1
        if len(rows) != place.n_rows:
            raise self.changed()
        return rows

    @abstractmethod
    def _rows_from(self, place: Place) -> Iterator[tuple[int, Any]]: ...


class DelimitedPieces(_TextPieces):
    """A CSV or TSV file."""

    def __init__(self, path: Path, kind: str, n_rows: int) -> None:
        super().__init__(path)
        lines = FileLines(path)
        problems: list[str] = []
        more = 0

        def checked() -> Iterator[tuple[int, list[str]]]:
            nonlocal more
            for line, fields in table:
                problem = table.problem(line, fields)
                if problem is None:
                    yield line, fields
                elif len(problems) < _KEPT_PROBLEMS:
                    problems.append(problem)
                else:
                    more += 1

        with no_field_size_limit():
            table = DelimitedRows(lines, kind, self.source)
            self._find(lines, checked(), n_rows)
        if problems:
            raise table.report(problems, more)
        if not self.places and not "".join(table.header).strip():
            raise empty_file(path)
        self.columns, self.spelled = table.names, table.header
        self._table = table

    def _rows_from(self, place: Place) -> Iterator[tuple[int, list[str]]]:
        return self._table.behind(FileLines(self._path, place.byte, place.line), place.line)

    def _read(self, number: int) -> pd.DataFrame:
        with no_field_size_limit():
            rows = self._taken(number)
        if any(self._table.problem(line, fields) for line, fields in rows):
            raise self.changed()
        return self._table.frame(rows)


def _is_json_lines(path: Path) -> bool:
    """Whether the first line that is not blank holds an object, and others follow: else it may be one array."""
    lines = (line for line in FileLines(path) if line.strip())
    first = next(lines, "")
    return isinstance(json_record(first, 1), dict) and next(lines, None) is not None


class JsonPieces(_TextPieces):
    """A file with a JSON object on each line."""

    has_header = False

    def __init__(self, path: Path, n_rows: int) -> None:
        super().__init__(path)
        lines = FileLines(path)
        names: dict[str, None] = {}
        problems: list[str] = []
        more = 0

        def checked() -> Iterator[tuple[int, dict[str, Any]]]:
            nonlocal more
            for line, record in _json_rows(lines):
                if isinstance(record, dict):
                    names.update(dict.fromkeys(record))
                    yield line, record
                elif len(problems) < _KEPT_PROBLEMS:
                    problems.append(record)
                else:
                    more += 1

        self._find(lines, checked(), n_rows)
        if problems:
            raise json_report(self.source, problems, more)
        self.columns = list(names)

    def _rows_from(self, place: Place) -> Iterator[tuple[int, dict[str, Any] | str]]:
        return _json_rows(FileLines(self._path, place.byte, place.line))

    def _read(self, number: int) -> pd.DataFrame:
        rows = self._taken(number)
        if any(isinstance(record, str) or not self._known.issuperset(record) for _, record in rows):
            raise self.changed()
        frame = json_frame([record for _, record in rows], [line for line, _ in rows])
        return frame.reindex(columns=self.columns)

    @property
    def _known(self) -> set[str]:
        return set(self.columns)


def _json_rows(lines: FileLines) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for line in lines:
        if line.strip():
            yield lines.line, json_record(line.rstrip("\r\n"), lines.line)


class ParquetPieces(TablePieces):
    """A Parquet file, of which a piece of a row group is read at a time."""

    def __init__(self, path: Path, columns: Sequence[str], total: int, n_rows: int) -> None:
        self.source, self._path = str(path), path
        self.columns, self.places = list(columns), _places(total, n_rows)
        self._n_rows = n_rows
        self._tables: Iterator[Any] = iter(())
        self._next = -1

    @classmethod
    def of(cls, path: Path, n_rows: int) -> ParquetPieces | None:
        """None for a file whose index is noted for the whole table only."""
        with reading_parquet(path) as parquet, parquet.ParquetFile(path) as file:
            schema, total = file.schema_arrow, file.metadata.num_rows
            checked_names(schema.names, str(path))
            index = (schema.pandas_metadata or {}).get("index_columns", [])
            if any(isinstance(level, dict) and level.get("name") is not None for level in index):
                return None
            pieces = cls(path, schema.names, total, n_rows)
        if total:
            pieces.columns = [str(name) for name in pieces._read(0).columns]
        return pieces

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tables": None, "_next": -1}

    def _read(self, number: int) -> pd.DataFrame:
        place = self.places[number]
        with reading(self._path), reading_parquet(self._path) as parquet:
            if number != self._next:
                self._tables = self._tables_from(parquet, place.first)
            table = next(self._tables, None)
            if table is None or table.num_rows != place.n_rows:
                raise self.changed()
            frame = parquet_frame(table)
        self._next = number + 1
        if frame.index.name is None:  # else it holds file lines
            frame.index = pd.RangeIndex(place.first, place.first + place.n_rows)
        return frame

    def _tables_from(self, parquet: Any, first: int) -> Iterator[Any]:
        """Pieces from a row on, which one of them starts with."""
        import pyarrow as pa

        with parquet.ParquetFile(self._path, buffer_size=_PARQUET_BUFFER, pre_buffer=False) as file:
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
            ends = np.cumsum(sizes)
            group = int(np.searchsorted(ends, first, side="right"))
            skipped = first - int(ends[group] - sizes[group])
            kept: list[Any] = []
            n_kept = 0
            for batch in file.iter_batches(self._n_rows, row_groups=range(group, len(sizes))):
                left_out = min(skipped, batch.num_rows)
                table = pa.Table.from_batches([batch]).slice(left_out)
                skipped -= left_out
                kept.append(table)
                n_kept += table.num_rows
                while n_kept >= self._n_rows:
                    whole = pa.concat_tables(kept)
                    yield whole.slice(0, self._n_rows)
                    kept = [whole.slice(self._n_rows)]
                    n_kept -= self._n_rows
            if n_kept:
                yield pa.concat_tables(kept)
