"""Errors that users can act on. The command line prints them without a traceback and exits with 2.

Messages and notes are written in the words of the command line, `--resume`. Whoever calls from Python reads them in
Python's, `resume=True`: `in_callers_words` is the one place that translates.
"""

from __future__ import annotations

import errno
import json
import re
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

LONGEST_MESSAGE = 1900
# control characters but tab and newline; marks that turn the direction of text or have no width; halves of characters
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
_CREDENTIALS = re.compile(r"(?<=://)[^\s/@]+(?=@)")  # of an address: user:password@, or key@

Caller = Literal["shell", "python"]

_caller: Caller = "python"
_OPTIONS = {
    "abstain-below-precision": "abstain_below_precision=", "align": "align=", "at-least-one": "at_least_one=True",
    "backbone": "backbone=", "base-model": "base_model=", "combine": "combine=", "default": "default=",
    "dry-run": "dry_run=True",
    "executor": "executor=", "extra-train": "extra_train=", "fold-table": "fold_table=", "folds": "folds=",
    "format": "format=", "holdout": "holdout=",
    "how": "how=", "input": "table=", "int8": "int8=True",
    "measure": "measure=True", "metric": "metric=", "metric-beta": "metric_beta=",
    "min-positives": "min_positives=", "minutes": "minutes=", "models": "models=", "no-measure": "measure=False",
    "only": "only=", "out": "out=", "outside-runs": "outside_runs=True", "overwrite": "overwrite=True",
    "public": "public=True",
    "rank": "rank=", "resume": "resume=True", "sample-submission": "sample_submission=", "score": "score=",
    "set": "overrides=", "share": "share=", "smoke": "smoke=True", "strategy": "strategy=", "test": "test=",
    "to": "to=", "train": "train=", "trials": "trials=", "trust-remote-code": "trust_remote_code=True",
    "words": "most_words=", "workers": "workers=",
}  # fmt: skip
"""What Python calls the options of the command line."""
_VALUED = ("extra-train", "fold-table", "how", "models", "strategy", "test", "to", "train")
"""Options that messages name together with a value only."""
_WORD = r"""(?:"[^"]*"|'[^']*'|[^\s"']*[^\s"'.,;:)])"""
_SET = rf"""--set\ (?:"[^"\s]*=[^"]*"|'[^'\s]*=[^']*'|[\w.]+={_WORD})"""
_ADVICE = re.compile(
    rf"""(?x)
    (?P<command> lora-cls\ [a-z]+ (?:\ (?:--[a-z-]+(?:\ {_WORD})?|[A-Z]+\b|[^\s.,;:)]*/{_WORD}))* )
    | (?P<sets> {_SET} (?:\ {_SET})* )
    | (?<![\w-]) --folds\ (?P<folds> \d+(?:,\d+)*)
    | (?<![\w-]) --(?P<valued> {"|".join(_VALUED)})\ (?P<value> {_WORD})
    | (?<![\w-]) --(?P<option> {"|".join(_OPTIONS)}) (?![\w-])
    """
)
"""A whole command, which stays one for the shell; `--set key=value`, once or more; options with and without values."""


@contextmanager
def words_of(caller: Caller) -> Iterator[None]:
    """Inside, messages are in the words of this caller."""
    global _caller
    before, _caller = _caller, caller
    try:
        yield
    finally:
        _caller = before


def in_callers_words(text: str) -> str:
    """A message with the options that its reader can give: `--resume` in a shell, `resume=True` in Python.

    Examples
    --------
    >>> with words_of("python"):
    ...     print(in_callers_words("Continue it with --resume, or choose another folder with --out."))
    ...     print(in_callers_words('Name them: --set "data.label_columns=[joy, anger]" --set task=multi_label.'))
    Continue it with resume=True, or choose another folder with out=.
    Name them: overrides=["data.label_columns=[joy, anger]", "task=multi_label"].
    """
    return text if _caller == "shell" else _ADVICE.sub(_for_python, text)


def _for_python(found: re.Match[str]) -> str:
    if found["command"]:
        return found[0]
    try:
        words = shlex.split(found[0])
    except ValueError:  # a backslash of the user's before a closing quote
        return found[0]
    if found["sets"]:
        values = [word for word in words if word != "--set"]
        return f"overrides=[{', '.join(map(_quoted, values))}]"
    if found["folds"]:
        return f"folds=[{', '.join(found['folds'].split(','))}]"
    if found["valued"]:
        return f"{_OPTIONS[found['valued']]}{_quoted(words[1])}"
    return _OPTIONS[found["option"]]


def _quoted(text: str) -> str:
    """A string of Python; FILE stays what the reader puts a value for."""
    return text if text.isupper() and text.isalpha() else json.dumps(text, ensure_ascii=False)


class LoraClsError(Exception):
    """Something the user can mend: the message says what was wrong, where, and what to do.

    Names, values and paths in it may be anyone's: they are made `visible`, and cut in the middle if they are endless.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message_text(in_callers_words(message)))


class RecipeError(LoraClsError):
    """A recipe that cannot be run as written."""


class DataError(LoraClsError):
    """A table that cannot be used as given; names the file, rows and columns."""


class BackboneError(LoraClsError):
    """A pretrained model that cannot be found, opened or quantized here."""


class RunError(LoraClsError):
    """A run folder that is missing, incomplete, damaged, or belongs to another recipe or other data."""


class WriteError(RunError):
    """A file or folder that cannot be written: no space, no rights, or something else stands in its place."""


class TrainingError(LoraClsError):
    """Training that went wrong: a loss that is not a number, names fold, epoch and step."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the nearest known name, or an empty string."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""


def shorten(values: Iterable[object], at_most: int = 10) -> str:
    """`a, b, c and 7 more`: long lists in messages stay readable, and so do long values in them."""
    texts = [shown(value, quoted=False) for value in values]
    more = len(texts) - at_most
    return ", ".join(texts[:at_most]) + (f" and {more} more" if more > 0 else "")


def shown(value: object, at_most: int = 100, *, quoted: bool = True) -> str:
    """A value in a message: as Python writes it, or (not `quoted`) as it is; its start where it is long."""
    try:
        text = repr(value) if quoted else str(value)
    except Exception:  # an integer of thousands of digits; whatever a user's own class does
        return f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= at_most else f"{text[:at_most]} ... ({len(text):,} characters)"


def brief(error: BaseException, at_most: int = 300) -> str:
    """What another library says, on one line and no longer than fits into a sentence."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= at_most else f"{text[:at_most].rstrip()} ..."


_REMEDIES = {
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG): "Free space and repeat the command; a run continues with --resume.",
    (errno.EACCES, errno.EPERM, errno.EROFS): (
        "Get the right to write there and repeat the command (a run continues with --resume), or where the command has "
        "--out, choose another place; of a run that may only be read, work on a copy."
    ),
    (errno.ENAMETOOLONG,): "Choose a shorter name with --out.",
    (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY): (
        "A folder stands where a file belongs, or the other way round: rename or remove it, or where the command has "
        "--out, choose another place."
    ),
}


def unwritable(place: Path, error: OSError) -> WriteError:
    """What is said of a place where nothing can be written: its name, the reason, and what to do."""
    other = "Check that the folder and its disk are there and repeat the command; a run continues with --resume."
    remedy = next((text for codes, text in _REMEDIES.items() if error.errno in codes), other)
    name, reason = str(place), error.strerror or f"{type(error).__name__}: {str(error)[:300]}"
    return WriteError(f"{name if len(name) < 500 else name[:497] + '...'} cannot be written: {reason}. {remedy}")


def visible(text: str) -> str:
    r"""Text that does nothing where it is shown: what a terminal would obey, or nobody would see, stands as its code.

    Examples
    --------
    >>> print(visible("joy\x1b[2J, \u202eyoj"))
    joy\x1b[2J, \u202eyoj
    """
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def message_text(text: str) -> str:
    """A message as it is shown: `visible`, without the user and password of an address, as logs keep messages,
    and without its middle where it is longer than `LONGEST_MESSAGE`.

    Examples
    --------
    >>> message_text("https://ann:pass@example.org answers 403")
    'https://***@example.org answers 403'
    """
    text = _CREDENTIALS.sub("***", visible(text))
    if len(text) <= LONGEST_MESSAGE:
        return text
    half = LONGEST_MESSAGE // 2 - 20
    return f"{text[:half]} [{len(text) - 2 * half:,} characters] {text[-half:]}"


def memory_full(where: str, advice: str) -> str:
    """What is said of a full memory, of the machine's and of a GPU's."""
    return f"The memory is full{where}. In a new run with another --out: {advice}"


def no_fold_finished(run: Path) -> RunError:
    """What is said of a run that has no model yet."""
    return RunError(f"{run}: no fold is finished yet. Continue the run with --resume.")
