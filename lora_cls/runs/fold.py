"""The folder of one fold, or of the model trained on all rows."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from lora_cls.errors import RunError, brief
from lora_cls.runs.io import integers, read_array, read_csv
from lora_cls.runs.lock import locked
from lora_cls.runs.records import FoldInfo
from lora_cls.runs.sums import check, sums

LOST_PATIENCE = 60.0  # seconds


class FoldFolder:
    """Where the files of a fold lie, and its `fold.json`.

    Attributes
    ----------
    adapter : a PEFT adapter, head included
    model : in its place: a fully fine-tuned model, or the classical baseline's vocabulary and weights
    state : training as far as it is; removed when the fold is finished
    metrics : a line of JSON per epoch
    teachers : what the teachers said of the fold's training rows and of rows without labels, where there are teachers
    oof_logits, test_logits : arrays of shape (n_rows, n_labels), float32
    epoch_logits : out-of-fold logits of every epoch, where `select: cross_fitted` chose among them
    answers : what a model that writes its labels wrote: columns id, table (train or test), answer, parsed (0 or 1)
    info_file : `fold.json`
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.adapter, self.model = path / "adapter", path / "model"
        self.state, self.metrics = path / "state.safetensors", path / "metrics.jsonl"
        self.teachers = path / "teachers.safetensors"
        self.oof_logits, self.test_logits = path / "oof_logits.npy", path / "test_logits.npy"
        self.epoch_logits, self.answers = path / "epoch_logits.npy", path / "answers.csv"
        self._arrays = [self.oof_logits, self.test_logits, self.epoch_logits]
        self.info_file = path / "fold.json"
        self._info: FoldInfo | None = None
        self._verified: set[Path] = set()

    def __repr__(self) -> str:
        return f"FoldFolder({str(self.path)!r})"

    @property
    def finished(self) -> bool:
        return self.info_file.is_file()

    @property
    def info(self) -> FoldInfo:
        """`fold.json`, read once. Raises RunError if it is missing or damaged."""
        if self._info is None:
            self._info = FoldInfo.read(self.info_file, self.remedy(self.info_file))
        return self._info

    def write_info(self, info: FoldInfo) -> None:
        """Write `fold.json`, which makes this a finished fold; with the SHA-256 of what is there, and the counts of
        written answers, if there are any.

        What training alone writes keeps a sum that it has: damage since then would be taken for what was trained.
        """
        epochs = sorted(self.path.glob("epoch-*"))
        places = [self.adapter, self.model, self.metrics, self.teachers, *self._arrays, self.answers, *epochs]
        trained = {self.metrics.name, self.teachers.name, *(epoch.name for epoch in epochs)}
        files = sums(self.path, places)
        files |= {name: noted for name, noted in info.files.items() if name.split("/")[0] in trained}
        self._info = info.model_copy(update={"files": files} | self._answer_counts()).write(self.info_file)
        self._verified.clear()

    def weights(self, folder: Path) -> Path:
        """`adapter`, `model`, or all of an epoch, after a look at its SHA-256 (once). Raises RunError if it was
        changed since."""
        if folder not in self._verified and self.finished:
            inside = f"{folder.relative_to(self.path).as_posix()}/"
            noted = {path: wanted for path, wanted in self.info.files.items() if path.startswith(inside)}
            check(self.path, noted, self.remedy(folder))
            self._verified.add(folder)
        return folder

    def read_array(self, file: Path, shape: tuple[int, ...]) -> np.ndarray:
        """One of the fold's arrays. Raises RunError if it is missing, damaged, changed, or of another shape."""
        return read_array(file, shape, self.noted(file), self.remedy(file))

    def noted(self, file: Path) -> str | None:
        """The SHA-256 that `fold.json` holds of a file; None of a fold that is not finished."""
        return self.info.files.get(file.relative_to(self.path).as_posix()) if self.finished else None

    def has(self, file: Path) -> bool:
        """Whether there is, or should be, such a file."""
        return self.noted(file) is not None or file.is_file()

    def remedy(self, place: Path) -> str:
        """What mends a damaged file or folder of the fold."""
        if (self.path / "export.json").is_file():
            return " Export the run again."
        if (self.path.parent / "blend.json").is_file():
            return " Blend the runs again."
        if self.path.name == "refit":
            return f" Remove {self.info_file} and repeat: lora-cls refit {shlex.quote(str(self.path.parent))}"
        again = place in (self.adapter, self.model, self.answers, *self._arrays)
        if again and any(self.path.glob("epoch-*")):  # stopped while epochs were chosen: they are chosen again
            return " Continue the run with --resume."
        return f" Remove {self.info_file} and run again with --resume."

    def progress(self) -> dict[str, Any] | None:
        """What `state.safetensors` says of the training so far, without a look at the weights in it: `epoch`, `rows`,
        `seconds` by phase. None where there is none. Raises RunError if it is damaged."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.state, framework="numpy") as opened:
                said = json.loads(opened.metadata()["progress"])
            return said | {"epoch": int(said["epoch"]), "rows": int(said["rows"]), "seconds": dict(said["seconds"])}
        except FileNotFoundError:
            return None
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise RunError(f"{self.state} is damaged ({brief(error)}). Remove it to train the fold again.") from None

    def training(self, wait: Callable[[str], None] | None = None) -> AbstractContextManager[None]:
        """Held while the fold is trained. Raises RunError if another process trains it.

        Parameters
        ----------
        wait : told of it, where that process may be one whose node was lost, which takes some seconds to end
        """
        return locked(self.path, "is trained", wait=wait, patience=LOST_PATIENCE)

    def _answer_counts(self) -> dict[str, int]:
        """How many answers were written, and how many of them could not be read."""
        if not self.answers.is_file():
            return {}
        parsed = integers(self.answers, read_csv(self.answers), ["parsed"])["parsed"]
        return {"answers": len(parsed), "unparsable_answers": int((parsed == 0).sum())}

    def pos_weight(self, n_labels: int) -> np.ndarray:
        """Positive or class weights, ndarray of shape (n_labels,). Raises RunError if `fold.json` lacks them."""
        weight = np.asarray(self.info.pos_weight, dtype=np.float64)
        if weight.shape != (n_labels,):
            raise RunError(f"{self.info_file} is damaged.{self.remedy(self.info_file)}")
        return weight

    def epoch(self, epoch: int) -> FoldFolder:
        """Where `select: cross_fitted` keeps an epoch until every fold is done."""
        return FoldFolder(self.path / f"epoch-{epoch:02d}")
