"""`backbone.start_from`: whose weights the folds of a run begin with, and which texts these have seen."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lora_cls.data import Dataset, text_hashes
from lora_cls.data.dataset import HASH_BYTES
from lora_cls.errors import DataError, RunError, brief, no_fold_finished, shorten
from lora_cls.recipe import Recipe
from lora_cls.runs.fold import FoldFolder
from lora_cls.runs.folder import RunFolder
from lora_cls.runs.io import RESTORE, read_array
from lora_cls.runs.sums import of_values, sums
from lora_cls.runs.tables import training_data

WHOLE = "export"  # the name of an export's one model among a start's models
ONE_MODEL = re.compile(r"refit|fold-\d\d+")


@dataclass(frozen=True)
class Start:
    """The models that the folds of a run begin with.

    Attributes
    ----------
    run : whose models they are
    models : by name: `fold-00`, `refit`, or `WHOLE`
    by_fold : each fold begins with the model of the same number; else all begin with the mean of the models
    """

    run: RunFolder
    models: Mapping[str, FoldFolder]
    by_fold: bool = False

    def of_fold(self, number: int) -> list[FoldFolder]:
        """The models whose mean a fold begins with; of all rows (-1) it is that of all models.

        Raises
        ------
        RunError
            If each fold begins with its own model, and there is none.
        """
        if not self.by_fold or number < 0:
            return list(self.models.values())
        name = f"fold-{number:02d}"
        if name not in self.models:
            raise RunError(
                f"fold {number} begins with the model of {self.run.path / name}, which was not finished when this run "
                f"was started (there were {shorten(self.models)}). Start a new run with another --out."
            )
        return [self.models[name]]

    def place(self, model: FoldFolder) -> Path:
        """Where a model's weights lie."""
        return model.adapter if self.run.recipe.lora is not None else model.model

    @property
    def words(self) -> str:
        """What a fold begins with."""
        if self.by_fold:
            return f"each with the model of the same fold of {self.run.name}"
        if len(self.models) > 1:
            return f"with the mean of {len(self.models)} models of {self.run.name}"
        name = next(iter(self.models))
        return f"with {self.run.name}" if name == WHOLE else f"with {name} of {self.run.name}"

    @cached_property
    def sums(self) -> dict[str, str]:
        """SHA-256 of every model's weights, by its name; their files are read and compared with it.

        Raises
        ------
        RunError
            If a file is missing, or was changed since it was written.
        """
        found = {}
        for name, model in self.models.items():
            place = model.weights(self.place(model))
            inside = f"{place.relative_to(model.path).as_posix()}/"
            noted = {path: value for path, value in model.info.files.items() if path.startswith(inside)}
            noted = noted or sums(model.path, [place])
            weights = {path: value for path, value in noted.items() if not path.endswith(".md")}
            if not weights:
                raise RunError(f"{place} is missing: {self.run.path} has no weights to start from.")
            found[name] = of_values(weights)
        return found

    @property
    def choices(self) -> dict[str, Any]:
        """What `run.json` keeps, so that a later start goes on from the same weights."""
        return {"start_from": {"run": self.run.name, "models": self.sums, "by_fold": self.by_fold}}

    # What they have seen

    @cached_property
    def _hashes(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the texts that the run was trained on in the order of its rows, and of those that its own start had seen,
        each of shape (n_texts, HASH_BYTES); an export has the latter only."""
        run, file = self.run, self.run.files.text_hashes
        n_rows = 0 if run.exported else len(run.folds)
        if notes_texts(run):
            hashes = read_array(file, (-1, HASH_BYTES), run.info.files.get(file.name), RESTORE)
            if len(hashes) >= n_rows:
                return hashes[:n_rows], hashes[n_rows:]
            raise RunError(f"{file} is damaged: it has fewer texts than {run.files.folds} has rows.")
        if run.recipe.backbone is not None and run.recipe.backbone.start_from is not None:
            raise RunError(f"{file} is missing: which texts {run.path} was trained on cannot be told.")
        try:
            data = training_data(run)
        except (DataError, RunError) as error:
            raise RunError(
                f"{run.path} does not say which texts it was trained on (it was made before {file.name} was written), "
                f"and its training table cannot be read again: {brief(error).partition(': give it again')[0]}. Put the "
                "table there, or train that run again."
            ) from None
        hashes = text_hashes(data.texts)
        if run.exported:
            return hashes[:0], hashes
        if data.ids != run.folds["id"].tolist():
            raise RunError(f"{run.files.folds} has other rows than {data.source}: it is damaged.")
        return hashes, hashes[:0]

    def seen(self, name: str) -> np.ndarray:
        """Hashes of the texts that a model was trained on, or chosen by, ndarray of shape (n_texts, HASH_BYTES)."""
        own, before = self._hashes
        if name.startswith("fold-") and self.run.recipe.train.select != "scored_fold":
            own = own[self.run.folds["fold"].to_numpy() != int(name.removeprefix("fold-"))]
        return np.concatenate([own, before])

    @cached_property
    def seen_by_any(self) -> np.ndarray:
        """The same of all models together, each text once."""
        return np.unique(np.concatenate([self.seen(name) for name in self.models]), axis=0)

    def seen_before(self, texts: Sequence[str]) -> np.ndarray:
        """Hashes of what any of the models was trained on, but for the `texts` of the run that begins with them: its
        folds saw these, or were kept from them, whatever they began with."""
        return self.seen_by_any[~among(self.seen_by_any, text_hashes(texts))]

    def kept_apart(self, train: Dataset, fold: np.ndarray, numbers: list[int]) -> Start:
        """The start in which no fold is scored on a text that its model was trained on: as it is, or `by_fold`.

        Parameters
        ----------
        train : the rows of the run that is to begin
        fold : ndarray of shape (n_rows,), -1 for rows that are only trained on
        numbers : the folds to train

        Raises
        ------
        RunError
            If there is none: names rows, and says what to do.
        """
        hashes = text_hashes(train.texts)
        met = (fold >= 0) & among(hashes, self.seen_by_any)
        if not met.any():
            return self
        names = {f"fold-{number:02d}": fold == number for number in sorted(set(fold[fold >= 0].tolist()))}
        lacking = [name for name in names if name not in self.models]
        same_rows = among(hashes[fold >= 0], self._hashes[0]).all()  # a text or two may lie in the same fold by chance
        clash = any(among(hashes[here], self.seen(name)).any() for name, here in names.items() if name in self.models)
        if same_rows and not clash and not {f"fold-{number:02d}" for number in numbers} & set(lacking):
            return replace(self, by_fold=True)
        raise self._flattered([train.ids[row] for row in np.flatnonzero(met).tolist()], self._advice(train, lacking))

    def refuse_seen(self, ids: Sequence[str], texts: Sequence[str]) -> None:
        """Raise RunError if any of the models was trained on texts of rows that a search holds out."""
        met = [name for name, is_met in zip(ids, among(text_hashes(texts), self.seen_by_any), strict=True) if is_met]
        if met:
            raise self._flattered(met, "Search without --holdout, or remove these rows.")

    def _flattered(self, ids: Sequence[str], advice: str) -> RunError:
        rows = f"{len(ids)} row{'s' * (len(ids) > 1)}"
        return RunError(
            f"{self.run.path} was trained on the texts of {rows} to be scored, and a score on them would be too high: "
            f"{shorten(ids)}. {advice}"
        )

    def _advice(self, train: Dataset, lacking: list[str]) -> str:
        """What to do about texts that both runs have."""
        remove = f"Remove these rows from {train.source or 'the training table'}"
        if self.run.exported or set(self.models) == {"refit"}:
            return (
                f"{remove}; or, where both runs have the same rows, start from the run itself and give this one its "
                "folds, so that every fold begins with the model that never saw its rows."
            )
        folds = shlex.quote(str(self.run.files.folds))
        same = f"give this run the folds of that one, --set data.folds={folds}"
        if any(self.run.fold(number).finished for number in self.run.fold_numbers) and lacking:
            same += f", whose {shorten(lacking)} must be finished first"
        return f"{remove}; or, where both runs have the same rows, {same}."

    def notes(self, test: Dataset | None) -> list[str]:
        """What the user should know of the start, one sentence each."""
        found = [f"Every fold begins {self.words}; the head is fresh."]
        met = 0 if test is None else int(among(text_hashes(test.texts), self.seen_by_any).sum())
        if test is not None and met:
            found.append(
                f"{met} of {len(test)} test rows have a text that {self.run.name} was trained on: a score on the test "
                "table may flatter this run."
            )
        return found


def texts_met(run: RunFolder, texts: Sequence[str]) -> dict[int, str | None]:
    """Which texts a run was trained on, or tuned its thresholds on: their positions, with the id of the training row of
    that text (of an export, or where only the models that training began with saw it: None). Of a blend, all its runs'.

    Raises
    ------
    RunError
        If that cannot be told: a run of before texts were noted, whose training table is gone.
    """
    if run.recipe.blend is not None:
        found: dict[int, str | None] = {}
        for path in run.recipe.blend.runs:
            member = (run.path / path).resolve()
            if not run.outside_runs and run.path.resolve().parent not in member.parents:
                raise RunError(
                    f"{run.path} is a blend of runs that lie outside the folder that it lies in. If you trust who made "
                    "it, give --outside-runs."
                )
            found = texts_met(RunFolder(member, outside_runs=run.outside_runs), texts) | found
        return found
    own, before = Start(run, {})._hashes
    names: dict[bytes, str | None] = dict.fromkeys(_keys(before))
    if len(own):
        names |= dict(zip(_keys(own)[::-1], run.folds["id"].tolist()[::-1], strict=True))  # the first of equals stays
    return {i: names[key] for i, key in enumerate(_keys(text_hashes(texts))) if key in names}


def notes_texts(run: RunFolder) -> bool:
    """Whether a run or an export holds the hashes of what it was trained on."""
    file = run.files.text_hashes
    return file.name in run.info.files or file.is_file()


def among(hashes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which of the hashes stand among others, ndarray of shape (n_hashes,), bool."""
    known = set(_keys(others))
    return np.array([key in known for key in _keys(hashes)], dtype=bool)


def _keys(hashes: np.ndarray) -> list[bytes]:
    return list(np.ascontiguousarray(hashes).view(np.dtype((np.void, HASH_BYTES))).reshape(-1).tolist())


def find_start(recipe: Recipe, train: Dataset, fold: np.ndarray, numbers: list[int]) -> Start | None:
    """The start that a recipe names, for a new run; None without one.

    Parameters
    ----------
    train, fold, numbers : see `Start.kept_apart`

    Raises
    ------
    RunError
        If there is no such run, it has no model that this recipe could begin with, or the models were trained on texts
        that they would be scored on.
    """
    found = _opened(recipe, None)
    return None if found is None else found.kept_apart(train, fold, numbers)


def noted_start(recipe: Recipe, choices: Mapping[str, Any]) -> Start | None:
    """The start of a run that goes on; None without one.

    Parameters
    ----------
    choices : those of its `run.json`

    Raises
    ------
    RunError
        If it is not found where the recipe says, or has other weights by now.
    """
    noted = choices.get("start_from")
    start = _opened(recipe, noted)
    if start is None or noted is None:
        return start
    start = replace(start, by_fold=bool(noted["by_fold"]))
    changed = [name for name, value in start.sums.items() if noted["models"].get(name) != value]
    if changed:
        raise RunError(
            f"{start.run.path} is not what this run was started from: the weights of {shorten(changed)} are others. "
            "Set backbone.start_from to the run that has them, or start a new run with another --out."
        )
    return start


def _opened(recipe: Recipe, noted: Mapping[str, Any] | None) -> Start | None:
    if recipe.backbone is None or recipe.backbone.start_from is None:
        return None
    path = Path(recipe.backbone.start_from).expanduser()
    one = path.name if ONE_MODEL.fullmatch(path.name) and (path.parent / "recipe.yaml").is_file() else None
    place = path if one is None else path.parent
    if not (place / "recipe.yaml").is_file():
        raise RunError(
            f"backbone.start_from: there is no run folder or export at {path.absolute()}. Say where it lies: --set "
            "backbone.start_from=RUN, by a path from the working directory or a full one."
        )
    run = RunFolder(place)
    _refuse_other_kind(run, recipe)
    return Start(run, _models(run, one, noted))


def _models(run: RunFolder, one: str | None, noted: Mapping[str, Any] | None) -> dict[str, FoldFolder]:
    """A run's finished models by name: the `one` that is asked for, those `noted`, or all folds'."""
    if run.exported:
        found = {WHOLE: FoldFolder(run.path)}
    else:
        found = {run.fold(number).path.name: run.fold(number) for number in run.finished_folds}
        if one == "refit" or (noted is not None and "refit" in noted["models"]):
            found["refit"] = run.refit
    if not found and one is None:
        raise no_fold_finished(run.path)
    wanted = [one] if one is not None else list(found) if noted is None else list(noted["models"])
    for name in wanted:
        if name not in found or not found[name].finished:
            command = f" Train it with: lora-cls refit {shlex.quote(str(run.path))}" if name == "refit" else ""
            raise RunError(f"{run.path / name} has no finished model to start from.{command}")
    return {name: found[name] for name in wanted}


def _refuse_other_kind(run: RunFolder, recipe: Recipe) -> None:
    """Raise RunError for a run whose models are none that a recipe could begin with, as far as its recipe tells."""
    theirs, ours = run.recipe, recipe.backbone
    assert ours is not None
    if run.files.classifier.is_file():
        raise RunError(
            f"backbone.start_from: {run.path} is an ONNX export, whose weights can only answer. Start from the run "
            "that it was made from."
        )
    if theirs.backbone is None:
        kind = "a blend" if theirs.blend is not None else "a run of TF-IDF"
        raise RunError(f"backbone.start_from: {run.path} is {kind}: it has no pretrained model to start from.")
    if theirs.head.kind == "generate":
        raise RunError(
            f"backbone.start_from: {run.path} writes its labels (head.kind: generate), and was adapted for that. Start "
            "from a run with another head."
        )
    quoted = shlex.quote(str(run.path))
    if theirs.lora is None and recipe.lora is not None:
        raise RunError(
            f"backbone.start_from: {run.path} has all weights of its own, trained or merged, and adapters go on a "
            "plain base: set lora to null, or start from a run with adapters."
        )
    if theirs.lora is not None and recipe.lora is None:
        raise RunError(
            f"backbone.start_from: {run.path} has adapters, and lora: null trains every weight. Merge them first, and "
            f"start from that: lora-cls export {quoted} --to merged --out NEW. Or set lora."
        )
    if theirs.quantization != recipe.quantization:
        raise RunError(
            f"backbone.start_from: the adapters of {run.path} were trained on a base that is quantized otherwise: give "
            "this recipe the section quantization of that one."
        )
    before, now = theirs.backbone.num_hidden_layers, ours.num_hidden_layers
    if before != now:
        raise RunError(
            f"backbone.start_from: {run.path} keeps {before or 'all'} layers (backbone.num_hidden_layers), this recipe "
            f"{now or 'all'}: give both the same."
        )
