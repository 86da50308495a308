"""Optuna's study in its journal file: opened, mended after a kill or a full disk, and read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_cls.errors import RecipeError, RunError, brief

NAME = "sweep"


def load_optuna() -> Any:
    """The module `optuna`, quiet. Raises RecipeError where it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise RecipeError(
            f'A search needs Optuna ({brief(error)}). Install it with: pip install "optuna>=5.0"'
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def open_study(journal: Path, sampler: Any = None, direction: str | None = None) -> Any:
    """The study of a journal; made there where `direction` is given and it is new.

    Raises
    ------
    RunError
        If the journal is missing or damaged.
    """
    optuna = load_optuna()
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    if direction is None and not journal.is_file():
        raise RunError(f"{journal} is missing: the search cannot be read. Begin a new one with another --out.")
    try:
        storage = JournalStorage(JournalFileBackend(str(journal)))
        if direction is not None:
            return optuna.create_study(
                study_name=NAME, storage=storage, sampler=sampler, direction=direction, load_if_exists=True
            )
        return optuna.load_study(study_name=NAME, storage=storage, sampler=sampler)
    except OSError as error:
        raise RunError(f"{journal} cannot be read: {error.strerror or error}.") from None
    except Exception as error:  # whatever Optuna raises on lines that it did not write
        raise RunError(
            f"{journal} is damaged ({brief(error)}). The runs in its folder are whole; begin a new search with another "
            "--out."
        ) from None


def note(study: Any, number: int, **values: Any) -> None:
    """Attributes of a trial that is running."""
    trial_id = _trial_id(study, number)
    for key, value in values.items():
        study._storage.set_trial_user_attr(trial_id, key, value)


def note_mean(study: Any, number: int, step: int, value: float) -> None:
    """The mean of a trial's first `step` folds, which samplers read of trials that were stopped."""
    study._storage.set_trial_intermediate_value(_trial_id(study, number), step, value)


def _trial_id(study: Any, number: int) -> int:
    return int(study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number))


def drop_torn_line(journal: Path) -> None:
    """Remove the end of a journal that a kill or a full disk left without its line end: whatever is written behind it
    could not be read."""
    load_optuna()
    from optuna.storages.journal import JournalFileSymlinkLock

    if not journal.is_file():
        return
    lock = JournalFileSymlinkLock(str(journal))  # Optuna's own: nobody is in the middle of a line while it is held
    lock.acquire()
    try:
        with journal.open("r+b") as file:
            content = file.read()
            if content and not content.endswith(b"\n"):
                file.truncate(content.rfind(b"\n") + 1)
    finally:
        lock.release()
