"""The tables of a run, read again as it read them."""

from __future__ import annotations

from lora_cls.data import Dataset, TableLike, table_path
from lora_cls.data.tables import Tables, table_name
from lora_cls.errors import DataError, RunError
from lora_cls.recipe import load_recipe
from lora_cls.runs.folder import RunFolder


def training_data(run: RunFolder, train: TableLike | None = None, extra_train: TableLike | None = None) -> Dataset:
    """The rows that a run was trained on, extra rows too, read again as it read them.

    Parameters
    ----------
    train, extra_train : where None, the files that the run was started with

    Raises
    ------
    RunError
        If the data is not the run's.
    DataError
        If the table cannot be read.
    """
    data = run.info.data
    path = _found_again(run, "train", train, "training data")
    extra = _found_again(run, "extra_train", extra_train, "data of extra rows")
    # Decided when the run was started, and not again without its test file.
    decided = {
        "data.label_columns": data.label_columns,
        "data.text_columns": data.text_columns,
        "data.test": None,
        "data.sample_submission": None,
        "data.extra_train": None,
        "adapt": None,
    }
    recipe = load_recipe(run.recipe, decided)
    try:
        tables = Tables(recipe, path, extra=extra)
    except DataError:
        # rows that do not fit those of another table are no fault of theirs
        if extra is not None and Tables(recipe, path).fingerprints()["train_sha256"] != data.train_sha256:
            raise RunError(f"{table_name(path)} is not the data that {run.path} was trained on.") from None
        raise
    fingerprints = tables.fingerprints()
    for key, table in (("train_sha256", path), ("extra_train_sha256", extra)):
        if fingerprints[key] != getattr(data, key):
            raise RunError(f"{table_name(table)} is not the data that {run.path} was trained on.")
    return tables.train


def _found_again(run: RunFolder, key: str, given: TableLike | None, what: str) -> TableLike | None:
    """A table of a run: the one given, or the file that the run was started with."""
    if given is not None:
        return given
    path = run.info.data.paths.get(key)
    if isinstance(path, str) and (path == "DataFrame" or not table_path(path).is_file()):
        raise RunError(f"The {what} of {run.path} was {path}: give it again with --{key.replace('_', '-')}.")
    return path
