"""Errors that users can act on. The command line prints them without a traceback and exits with 2."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

LONGEST_MESSAGE = 1900
# control characters but tab and newline; marks that turn the direction of text or have no width; halves of characters
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


class LoraClsError(Exception):
    """Something the user can mend: the message says what was wrong, where, and what to do.

    Names, values and paths in it may be anyone's: they are made `visible`, and cut in the middle if they are endless.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message_text(message))


class RecipeError(LoraClsError):
    """A recipe that cannot be run as written."""


class DataError(LoraClsError):
    """A table that cannot be used as given; names the file, rows and columns."""


class BackboneError(LoraClsError):
    """A pretrained model that cannot be found, opened or quantized here."""


class RunError(LoraClsError):
    """A run folder that is missing, incomplete, damaged, or belongs to another recipe or other data."""


class TrainingError(LoraClsError):
    """Training that went wrong: a loss that is not a number, names fold, epoch and step."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the nearest known name, or an empty string."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""


def shorten(values: Iterable[object], at_most: int = 10) -> str:
    """`a, b, c and 7 more`: long lists in messages stay readable."""
    texts = [str(value) for value in values]
    more = len(texts) - at_most
    return ", ".join(texts[:at_most]) + (f" and {more} more" if more > 0 else "")


def visible(text: str) -> str:
    r"""Text that does nothing where it is shown: what a terminal would obey, or nobody would see, stands as its code.

    Examples
    --------
    >>> print(visible("joy\x1b[2J, \u202eyoj"))
    joy\x1b[2J, \u202eyoj
    """
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def message_text(text: str) -> str:
    """A message as it is shown: `visible`, and without its middle where it is longer than `LONGEST_MESSAGE`."""
    text = visible(text)
    if len(text) <= LONGEST_MESSAGE:
        return text
    half = LONGEST_MESSAGE // 2 - 20
    return f"{text[:half]} [{len(text) - 2 * half:,} characters] {text[-half:]}"


def unwritable(place: Path, error: OSError, kind: Literal["folder", "file"] = "folder") -> RunError:
    """What is said of a place given by `--out` where nothing can be written."""
    done = "made" if kind == "folder" else "written"
    return RunError(f"{place} cannot be {done} ({error.strerror}): choose another {kind} with --out.")


def memory_full(where: str, advice: str) -> str:
    """What is said of a full memory, of the machine's and of a GPU's."""
    return f"The memory is full{where}. In a new run with another --out: {advice}"


def no_fold_finished(run: Path) -> RunError:
    """What is said of a run that has no model yet."""
    return RunError(f"{run}: no fold is finished yet. Continue the run with --resume.")
