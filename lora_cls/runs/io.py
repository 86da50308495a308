"""Reading and writing the tables and arrays of a run folder: every fault is a RunError that says what to do."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lora_cls.data.names import free_name
from lora_cls.errors import RunError
from lora_cls.files import write_csv

RESTORE = " Restore it from a copy, or start a new run with another --out."  # what nothing can write again

# pandas 3 reads floats back exactly by itself, and warns when asked to.
EXACT_FLOATS: dict[str, Any] = {"float_precision": "round_trip"} if int(pd.__version__.split(".")[0]) < 3 else {}


def read_bytes(file: Path, noted: str | None = None, remedy: str = "") -> bytes:
    """Raises RunError if the file is missing, cannot be read, or its SHA-256 is not the `noted` one."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise RunError(f"{file} is missing: the run is incomplete, or this is no run folder.{remedy}") from None
    except OSError as error:
        raise RunError(f"{file} cannot be read: {error.strerror}.") from None
    if noted not in (None, hashlib.sha256(content).hexdigest()):
        raise changed(file, remedy)
    return content


def changed(file: Path, remedy: str) -> RunError:
    """What is said of a file whose SHA-256 is not the one that was noted when it was written."""
    return RunError(f"{file} is damaged, or was changed since it was written: its SHA-256 is another.{remedy}")


def read_csv(file: Path, noted: str | None = None, *, ids: str = "id", remedy: str = RESTORE) -> pd.DataFrame:
    """Exact floats, the column `ids` as text. Raises RunError if it is missing, damaged or not the `noted` one."""
    content = read_bytes(file, noted, remedy)
    try:
        return pd.read_csv(io.BytesIO(content), dtype={ids: str}, keep_default_na=False, **EXACT_FLOATS)
    except (ValueError, pd.errors.ParserError) as error:
        raise RunError(f"{file} is damaged: {error}") from None


def integers(file: Path, table: pd.DataFrame, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns of whole numbers. Raises RunError if `table`, read from `file`, lacks one or holds something else."""
    try:
        return {name: table[name].to_numpy(np.int64) for name in names}
    except (KeyError, ValueError, TypeError) as error:
        raise RunError(f"{file} is damaged: {error}") from None


def write_values(file: Path, ids: Sequence[str], names: Sequence[str], values: np.ndarray) -> None:
    """A table of ids and one column per label, for `read_values`; the ids' column is `id`, or `id_` beside a label of
    that name.

    Parameters
    ----------
    values : ndarray of shape (n_samples, n_labels)
    """
    columns = {name: values[:, j] for j, name in enumerate(names)}
    write_csv(file, pd.DataFrame({free_name("id", names): list(ids)} | columns))


def read_values(file: Path, ids: Sequence[str], names: Sequence[str], noted: str | None = None) -> np.ndarray:
    """The whole numbers that `write_values` wrote for these ids, ndarray of shape (n_samples, n_labels), int64.

    Raises
    ------
    RunError
        If the file is missing or damaged, of other ids or labels, or not the `noted` one.
    """
    id_name = free_name("id", names)
    table = read_csv(file, noted, ids=id_name)
    if id_name not in table or table[id_name].tolist() != list(ids):
        raise RunError(f"{file} is damaged: its ids are not the {len(ids)} of {file.parent / 'folds.csv'}.")
    columns = integers(file, table, names)
    return np.column_stack([columns[name] for name in names])


def read_array(file: Path, shape: tuple[int, ...], noted: str | None = None, remedy: str = "") -> np.ndarray:
    """Raises RunError if the file is missing, damaged, of another shape (-1 is any length), or not the `noted` one."""
    content = read_bytes(file, noted, remedy)
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise RunError(f"{file} is damaged ({error}).{remedy}") from None
    if array.ndim != len(shape) or any(wanted not in (-1, n) for n, wanted in zip(array.shape, shape, strict=True)):
        raise RunError(f"{file} must have the shape {shape}. Got {array.shape} instead.")
    if not np.isfinite(array).all():
        raise RunError(f"{file} is damaged (numbers that are not finite).{remedy}")
    return array
