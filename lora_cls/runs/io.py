"""Reading and writing the tables and arrays of a run folder: every fault is a RunError that says what to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lora_cls.errors import DataError, RunError
from lora_cls.files import write_csv

# pandas 3 reads floats back exactly by itself, and warns when asked to.
EXACT_FLOATS: dict[str, Any] = {"float_precision": "round_trip"} if int(pd.__version__.split(".")[0]) < 3 else {}


def read_bytes(file: Path) -> bytes:
    """Raises RunError if the file is missing or cannot be read."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise RunError(f"{file} is missing: the run is incomplete, or this is no run folder.") from None
    except OSError as error:
        raise RunError(f"{file} cannot be read: {error.strerror}.") from None


def read_csv(file: Path, id_name: str = "id", **options: Any) -> pd.DataFrame:
    """Exact floats, ids as text. Raises RunError if the file is missing or damaged."""
    try:
        return pd.read_csv(file, dtype={id_name: str}, keep_default_na=False, **EXACT_FLOATS, **options)
    except FileNotFoundError:
        raise RunError(f"{file} is missing: the run is incomplete, or this is no run folder.") from None
    except (ValueError, pd.errors.ParserError) as error:
        raise RunError(f"{file} is damaged: {error}") from None


def integers(file: Path, table: pd.DataFrame, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns of whole numbers. Raises RunError if `table`, read from `file`, lacks one or holds something else."""
    try:
        return {name: table[name].to_numpy(np.int64) for name in names}
    except (KeyError, ValueError, TypeError) as error:
        raise RunError(f"{file} is damaged: {error}") from None


def write_values(file: Path, ids: Sequence[str], names: Sequence[str], values: np.ndarray) -> None:
    """A table of ids and one column per label.

    Parameters
    ----------
    values : ndarray of shape (n_samples, n_labels)

    Raises
    ------
    DataError
        If a label is called `id`, as the column of the ids is.
    """
    if "id" in names:
        raise DataError(f"A label is called 'id', as the column of the ids in {file.name} is: rename that label.")
    columns = {name: values[:, j] for j, name in enumerate(names)}
    write_csv(file, pd.DataFrame({"id": list(ids)} | columns))


def read_array(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Raises RunError if the file is missing, damaged, or of another shape."""
    again = f"Remove {file.parent}/fold.json and run again with --resume."
    try:
        array = np.load(file, allow_pickle=False)
    except FileNotFoundError:
        raise RunError(f"{file} is missing. {again}") from None
    except (ValueError, EOFError, OSError) as error:
        raise RunError(f"{file} is damaged ({error}). {again}") from None
    if array.shape != shape:
        raise RunError(f"{file} must have the shape {shape}. Got {array.shape} instead.")
    if not np.isfinite(array).all():
        raise RunError(f"{file} is damaged (numbers that are not finite). {again}")
    return array
