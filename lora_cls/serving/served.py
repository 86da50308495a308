"""What is served: models under a name, opened here, whatever they were made by."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import pandas as pd

from lora_cls.choices import Models
from lora_cls.commands.abstain import fit_abstention
from lora_cls.commands.predict import Classifier
from lora_cls.errors import RecipeError, shown
from lora_cls.evaluation.abstention import Abstention
from lora_cls.runs import RunFolder

if TYPE_CHECKING:
    from lora_cls.modeling.resident import ResidentModels

NAME = re.compile(r"[\w.-]{1,100}")

Row: TypeAlias = "str | dict[str, str]"
"""A text; or the cells of a row by column, where a run's texts are made of several."""


class Answering(Protocol):
    """What a server asks of models."""

    label_names: list[str]

    @property
    def n_models(self) -> int:
        """Models that answer together."""
        ...

    def answer(self, texts: Any) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities and decisions, each of shape (n_texts, n_labels)."""
        ...


@dataclass(frozen=True, eq=False)
class Served:
    """Models under a name.

    Attributes
    ----------
    columns : what texts are made of
    task : `multi_label`, `binary` or `single_label`
    exclusive : whether every text has exactly one of the labels
    thresholds : of every label, what `probabilities` are held against
    band : where no answer is given; None gives every answer
    """

    name: str
    models: Answering
    columns: tuple[str, ...]
    task: str
    exclusive: bool
    thresholds: tuple[float, ...]
    band: Abstention | None = None

    @property
    def label_names(self) -> list[str]:
        return self.models.label_names

    def answer(self, rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
        """See `Answering.answer`."""
        table = pd.DataFrame(list(rows), columns=list(self.columns)) if len(self.columns) > 1 else list(rows)
        return self.models.answer(table)

    def problem(self, row: Row) -> str | None:
        """Why a row cannot be read as a text, None where it can."""
        if len(self.columns) == 1:
            return None if isinstance(row, str) else "expected a text (a string)"
        if isinstance(row, str) or set(row) != set(self.columns):
            return f"expected an object with a text for each of the columns {', '.join(self.columns)}"
        return None


def named_places(given: Sequence[str]) -> dict[str, Path]:
    """The folders to serve by the name that requests give: `NAME=FOLDER`, or the folder's own name.

    Raises
    ------
    RecipeError
        For a name that cannot stand in a request, and for two that are the same.

    Examples
    --------
    >>> {name: path.as_posix() for name, path in named_places(["runs/minilm", "old=runs/2025/minilm"]).items()}
    {'minilm': 'runs/minilm', 'old': 'runs/2025/minilm'}
    """
    places: dict[str, Path] = {}
    for text in given:
        name, equals, folder = text.partition("=")
        if not equals or not NAME.fullmatch(name) or Path(text).exists():
            name, folder = Path(text).resolve().name, text
        if not NAME.fullmatch(name):
            raise RecipeError(
                f"{shown(name)} is no name to ask for: letters, digits, '.', '-' and '_', at most 100. Give one, as "
                f"NAME={text}."
            )
        if name in places:
            raise RecipeError(
                f"{places[name]} and {folder} would both be called {name}. Give one of them another name, as "
                f"other={folder}."
            )
        places[name] = Path(folder)
    return places


def open_run(
    name: str,
    place: Path,
    resident: Callable[[], ResidentModels],
    *,
    backbone: str | None = None,
    models: Models = "folds",
    abstain_below_precision: float | None = None,
    trust_remote_code: bool = False,
    outside_runs: bool = False,
) -> Served:
    """Open a run, an export or a blend. Its weights are read at the first answer. Errors: see `Classifier.load`.

    Parameters
    ----------
    resident : gives what keeps models in memory; not called where no torch is needed
    """
    run = RunFolder(place, trust_remote_code=trust_remote_code, outside_runs=outside_runs)
    band = None if abstain_below_precision is None else fit_abstention(run, abstain_below_precision)[0]
    kept = resident() if run.recipe.tfidf is None else None
    classifier = Classifier.load(run, backbone=backbone, models=models, resident=kept)
    task = run.task()
    votes = classifier.prediction.combine == "vote"  # the probabilities are then shares of votes
    thresholds = np.full(len(run.label_names), 0.5) if votes else classifier.thresholds
    columns = tuple(run.info.data.text_columns or ["text"])
    return Served(name, classifier, columns, task.name, task.exclusive, tuple(thresholds.tolist()), band)
