"""The rows of a table to be predicted, checked and read in pieces: `load_test` for tables of any length."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from lora_cls.data.columns import Columns, find_test_columns
from lora_cls.data.dataset import Dataset, repeated_ids, row_ids
from lora_cls.data.header import check_header, check_repeated_header
from lora_cls.data.pieces import Place, TablePieces
from lora_cls.data.table import as_id, half_character, is_missing, problem_report, row_name
from lora_cls.data.texts import table_texts
from lora_cls.recipe import Data

_KEPT_PROBLEMS = 40
_KEPT_REPEATS = 100


class NewRows:
    """Rows with ids and texts and without labels, of which one piece is in memory at a time, and 8 bytes of each id.

    It can be sent to other processes, which then read the same pieces.

    Parameters
    ----------
    config : Data
    table : the table
    train_columns : of the training table, so that the same columns make the text

    Attributes
    ----------
    columns : Columns
    source : the file, or what stands for it
    id_hashes : ndarray of shape (n_rows,), uint64
    sha256 : of ids and texts, for each piece

    Raises
    ------
    DataError
        With the problems of the table, as `load_test` finds them; those of rows are put together piece by piece.
    """

    def __init__(self, config: Data, table: TablePieces, train_columns: Columns) -> None:
        self._config, self._table = config, table
        self.source = table.source
        names = pd.DataFrame(columns=table.columns)
        self.columns, problems = find_test_columns(config, names, train_columns, self._unique)
        self.sha256: list[str] = []
        hashes, header, more = [], "", 0
        for number, frame in enumerate(table):
            if table.has_header:
                header = header if number else check_header(frame, self.source) or ""
                check_repeated_header(frame, self.source)
            rows, wrong = self._read(number, frame)
            hashes.append(id_hashes(rows.ids))
            self.sha256.append(rows.fingerprint())
            room = _KEPT_PROBLEMS - len(problems)
            problems += wrong[:room]
            more += len(wrong[room:])
        self.id_hashes = np.concatenate(hashes)
        if self.columns.id is not None and len(alike := _repeated(self.id_hashes)):
            places = self._places(alike)
            if places:
                left = len(alike) - len(places) if len(places) == _KEPT_REPEATS else 0
                problems.append(repeated_ids(config, self.columns, table.columns, places, self._unique, left))
        if problems:
            raise problem_report(self.source, problems, header, more=more)

    def __len__(self) -> int:
        return self._table.n_rows

    @property
    def n_pieces(self) -> int:
        return len(self._table.places)

    def place(self, number: int) -> Place:
        """Which rows are a piece."""
        return self._table.places[number]

    def ids(self) -> list[str]:
        """The ids of all rows, in memory."""
        return [name for number in range(self.n_pieces) for name in self.piece(number).ids]

    def fingerprint(self) -> str:
        """SHA-256 over ids and texts, and over how they are cut into pieces; 64 hexadecimal digits."""
        return hashlib.sha256("".join(self.sha256).encode()).hexdigest()

    def piece(self, number: int) -> Dataset:
        """The rows of one piece.

        Raises
        ------
        DataError
            If they are not what they were.
        """
        rows, problems = self._read(number, self._table.frame(number))
        if problems or rows.fingerprint() != self.sha256[number]:
            raise self._table.changed()
        return rows

    def _read(self, number: int, frame: pd.DataFrame) -> tuple[Dataset, list[str]]:
        ids, problems = row_ids(frame, self.columns, self.place(number).first)
        texts, _, wrong = table_texts(self._config, frame, self.columns.text)
        labels = list(self.columns.label_names)
        rows = Dataset(ids, texts, None, labels, np.arange(len(ids)), source=self.source, columns=self.columns)
        return rows, problems + wrong

    def _unique(self, name: str) -> bool:
        """Whether every cell of a column is filled, and differs from all others."""
        hashes = []
        for frame in self._table:
            cells = frame[name].tolist()
            if any(map(is_missing, cells)):
                return False
            hashes.append(id_hashes([as_id(value) for value in cells]))
        return not len(_repeated(np.concatenate(hashes)))

    def _places(self, alike: np.ndarray) -> dict[str, list[str]]:
        """The rows of ids that stand more than once, of those that come first; `alike` are the hashes of all."""
        places: dict[str, list[str]] = {}
        for number, frame in enumerate(self._table):
            ids = row_ids(frame, self.columns, self.place(number).first)[0]
            for i in np.flatnonzero(np.isin(id_hashes(ids), alike)).tolist():
                if ids[i] and (ids[i] in places or len(places) < _KEPT_REPEATS):
                    places.setdefault(ids[i], []).append(row_name(frame, i))
        return {value: rows for value, rows in places.items() if len(rows) > 1}


def id_hashes(ids: Sequence[str]) -> np.ndarray:
    """8 bytes of each text, uint64."""
    whole = ["" if half_character(value) else value for value in ids]  # such an id is refused
    return pd.util.hash_array(np.array(whole, dtype=object), categorize=False)


def _repeated(hashes: np.ndarray) -> np.ndarray:
    """The hashes that stand more than once."""
    ordered = np.sort(hashes)
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
