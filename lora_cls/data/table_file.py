"""A table written row by row, as CSV or Parquet: the file appears whole or not at all."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from lora_cls.choices import TableFormat
from lora_cls.files import CsvLines, make_folder, whole_file

Cells: TypeAlias = "Sequence[str] | np.ndarray"
"""A column of some rows: texts, or an array of numbers."""
Add: TypeAlias = Callable[[Sequence[Cells]], None]


@contextmanager
def table_file(path: Path, columns: Sequence[str], format: TableFormat = "csv") -> Iterator[Add]:
    """A function that adds rows to a new table, given as their columns; every call the same kinds of cells.

    Numbers in CSV have the shortest form that reads back exactly.

    Raises
    ------
    WriteError
        If it cannot be written.

    Examples
    --------
    >>> with table_file(Path("scores.csv"), ["id", "joy"]) as add:
    ...     add([["t1", "t2"], np.array([0.1, 1.0])])
    ...     add([["t3"], np.array([0.25])])
    >>> print(Path("scores.csv").read_text(), end="")
    id,joy
    t1,0.1
    t2,1.0
    t3,0.25
    """
    make_folder(path.parent)
    with whole_file(path) as scratch, _FORMATS[format](scratch, columns) as add:
        yield add


@contextmanager
def _csv(path: Path, columns: Sequence[str]) -> Iterator[Add]:
    with path.open("w", encoding="utf-8", newline="") as file:

        def add_lines(rows: Sequence[Sequence[object]] | zip[Any]) -> None:
            lines: list[str] = []
            csv.writer(CsvLines(lines), lineterminator=CsvLines.END).writerows(rows)
            file.write("".join(lines))

        add_lines([columns])
        yield lambda cells: add_lines(zip(*map(_values, cells), strict=True))


def _values(cells: Cells) -> Sequence[object]:
    return cells.tolist() if isinstance(cells, np.ndarray) else cells


@contextmanager
def _parquet(path: Path, columns: Sequence[str]) -> Iterator[Add]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    writers: list[Any] = []  # opened by the first rows, which say the columns' types

    def add(cells: Sequence[Cells]) -> None:
        arrays = [pa.array(column, None if isinstance(column, np.ndarray) else pa.string()) for column in cells]
        table = pa.Table.from_arrays(arrays, names=list(columns))
        if not writers:
            writers.append(pq.ParquetWriter(path, table.schema))
        writers[0].write_table(table)

    try:
        yield add
    finally:
        for writer in writers:
            writer.close()


_FORMATS = {"csv": _csv, "parquet": _parquet}
