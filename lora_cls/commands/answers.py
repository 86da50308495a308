"""Answers to a long table: asked piece by piece, of this process or of others, and kept as soon as they are there."""

from __future__ import annotations

import base64
import hashlib
import io
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lora_cls.data import Dataset
from lora_cls.data.new_rows import NewRows
from lora_cls.execution.executor import Executor
from lora_cls.execution.pool import Pool
from lora_cls.files import array_bytes, make_folder, write_bytes
from lora_cls.runs.io import read_array
from lora_cls.training.progress import RowProgress

PIECES = ".pieces-"  # and what of; within the folder of predictions that are not finished
COMMAND = [sys.executable, "-m", "lora_cls.commands.predict_worker"]
"""Of the processes that answer."""


class Answerer(Protocol):
    """Who answers: a `Classifier`."""

    label_names: list[str]

    @property
    def n_models(self) -> int: ...

    def fingerprint(self) -> str: ...

    def logits(self, texts: Dataset, models: Sequence[int], told: Callable[[], None] | None = None) -> np.ndarray: ...

    def together(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...


class Answers:
    """What the models of a run say of the rows of a table.

    Each model's logits of each piece are a file of their own in the folder of predictions: what was stopped goes on
    with the rest, whoever answered before.

    Parameters
    ----------
    folder : of the predictions
    """

    def __init__(self, classifier: Answerer, rows: NewRows, folder: Path) -> None:
        self._classifier, self._rows = classifier, rows
        self._kept = folder / f"{PIECES}{classifier.fingerprint()[:12]}-{rows.fingerprint()[:12]}"
        self._files = {file.name.rpartition("-")[0]: file for file in self._kept.glob("*.npy")}

    def missing(self) -> list[tuple[int, list[int]]]:
        """Pieces that were not answered by all models yet, and by which not."""
        models = range(self._classifier.n_models)
        of_pieces = [
            [model for model in models if self._name(number, model) not in self._files]
            for number in range(self._rows.n_pieces)
        ]
        return [(number, models) for number, models in enumerate(of_pieces) if models]

    def ask(self, show: bool | None) -> None:
        """Have this process answer what is missing."""
        missing = self.missing()
        if self._rows.n_pieces == 1:
            for number, models in missing:
                self._keep(number, models, self._classifier.logits(self._rows.piece(number), models))  # says how far
            return
        with RowProgress(len(self._rows), show) as progress:
            progress.found(len(self._rows) - sum(self._share(number, models) for number, models in missing))
            for number, models in missing:

                def told(share: float = self._share(number, models) / len(models)) -> None:
                    progress.advance(share)

                self._keep(number, models, self._classifier.logits(self._rows.piece(number), models, told))
                progress.tell()

    def share_out(self, executor: Executor, job: dict[str, Any], show: bool | None) -> None:
        """Have other processes answer what is missing: a task is a piece, or a part of the models for one.

        Their logs lie beside the answers, and stay where one of them fails.

        Parameters
        ----------
        job : what every process is told first, see `lora_cls.commands.predict_worker`

        Raises
        ------
        RunError
            As `Pool.run`.
        """
        missing = self.missing()
        tasks = parts_of(missing, 2 * executor.n_workers)  # whoever is faster does more of them
        with RowProgress(len(self._rows), show) as progress:
            progress.found(len(self._rows) - sum(self._share(number, models) for number, models in missing))

            said: Counter[int] = Counter()

            def task(i: int) -> dict[str, Any]:
                number, models = tasks[i]
                return {"texts": list(self._rows.piece(number).texts), "models": models}

            def heard(i: int, _: str, __: dict[str, Any]) -> None:
                number, models = tasks[i]
                said[i] += 1
                progress.advance(self._share(number, models[:1]))

            def done(i: int, logits: str) -> None:
                number, models = tasks[i]
                self._keep(number, models, unpacked(logits))
                progress.advance(self._share(number, models[:1]) * (len(models) - said[i]))  # begun again, it said more
                progress.tell()

            def title(i: int) -> str:
                number, models = tasks[i]
                place = self._rows.place(number)
                whole = len(models) == self._classifier.n_models
                of_models = "" if whole else f", models {', '.join(str(model + 1) for model in models)}"
                return f"rows {place.first + 1:,} to {place.first + place.n_rows:,}{of_models}"

            Pool(
                executor, COMMAND, job, self._kept, title=title, task=task, heard=heard, done=done, say=progress.say,
                again="It is begun again.", advice="What is answered is kept: the same command goes on.",
            ).run(range(len(tasks)))  # fmt: skip

    def piece(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities and decisions of a piece that is answered, each of shape (n_rows, n_labels).

        Raises
        ------
        RunError
            If a file is missing or damaged.
        """
        shape = (self._rows.place(number).n_rows, len(self._classifier.label_names))
        logits = np.empty((self._classifier.n_models, *shape), dtype=np.float32)
        for model in range(len(logits)):
            file = self._files[self._name(number, model)]  # named by what is in it
            logits[model] = read_array(file, shape, file.stem.rpartition("-")[2], " Remove it, and predict again.")
        return self._classifier.together(logits)

    def _name(self, number: int, model: int) -> str:
        return f"{self._rows.place(number).first:09d}-{model:03d}"

    def _share(self, number: int, models: Sequence[int]) -> float:
        """What some models' answers to a piece are of the whole work, in rows."""
        return self._rows.place(number).n_rows * len(models) / self._classifier.n_models

    def _keep(self, number: int, models: Sequence[int], logits: np.ndarray) -> None:
        make_folder(self._kept)
        for model, of_model in zip(models, logits, strict=True):
            content, name = array_bytes(of_model), self._name(number, model)
            self._files[name] = self._kept / f"{name}-{hashlib.sha256(content).hexdigest()}.npy"
            write_bytes(self._files[name], content)


def parts_of(missing: Sequence[tuple[int, list[int]]], n_tasks: int) -> list[tuple[int, list[int]]]:
    """The same pieces and models in at least so many tasks, as far as there are models: they answer apart as they do
    together.

    Examples
    --------
    >>> parts_of([(0, [0, 1, 2])], 2), parts_of([(0, [0, 1]), (1, [1])], 2)
    ([(0, [0, 1]), (0, [2])], [(0, [0, 1]), (1, [1])])
    """
    n_parts = -(-n_tasks // max(1, len(missing)))
    return [
        (number, part.tolist())
        for number, models in missing
        for part in np.array_split(models, min(n_parts, len(models)))
    ]


def packed(logits: np.ndarray) -> str:
    """An array as text, for a message."""
    return base64.b64encode(array_bytes(logits)).decode("ascii")


def unpacked(message: str) -> np.ndarray:
    """The array of `packed`."""
    return np.load(io.BytesIO(base64.b64decode(message)), allow_pickle=False)
