"""Teachers: finished runs that a run learns from, asked fold by fold, so that no label of a held-out row comes through.

What a student of fold k may learn from is what the teachers' models of fold k say. They never saw the labels of fold k,
whatever rows they are asked about: those that they were trained on themselves, or rows without labels. The rows that
fold k holds out are not asked about, and nobody learns from them.

A teacher's out-of-fold answers must not be used. Those of fold k's training rows come from the teacher's models of the
other folds, and these were trained on fold k's labels: through them a student would learn what it is then scored on.
For the same reason a teacher is refused whose model of fold k depends on other folds' models: by an epoch that
`train.select: cross_fitted` chose, or by the weights, regressions or ranks of a blend.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lora_cls.data import Dataset
from lora_cls.data.dataset import text_key
from lora_cls.data.tables import Tables
from lora_cls.errors import RunError, brief, shorten, shown
from lora_cls.evaluation import apply_blend, task_of
from lora_cls.files import write_bytes
from lora_cls.recipe import Distill, Recipe, TaskName
from lora_cls.runs import FoldFolder, RunFolder
from lora_cls.runs.sums import of_values, sha256, sums
from lora_cls.text.tokens import Tokens
from lora_cls.training.progress import Progress, fold_title
from lora_cls.training.rows import TrainingRows

Ask = Callable[[RunFolder, int, Sequence[str], Progress], np.ndarray]
"""Logits of the model of a run's fold for texts, ndarray of shape (n_texts, n_labels)."""
BLENDS = ("mean_logit", "mean_proba")  # ways that learn nothing from other folds' rows


@dataclass(frozen=True)
class Teacher:
    """A run to learn from; of a blend also its runs.

    Attributes
    ----------
    name : as the recipe gives it
    """

    name: str
    run: RunFolder
    members: list[Teacher]

    @classmethod
    def open(cls, name: str, run: RunFolder) -> Teacher:
        """Raises RunError for a run that cannot teach."""
        if run.exported:
            raise RunError(f"{name} is an export, whose one model saw every row: teachers are runs, with their folds.")
        recipe, members = run.recipe, []
        if recipe.blend is not None:
            if recipe.blend.how not in BLENDS:
                raise RunError(
                    f"{name} is a blend by {recipe.blend.how}, fitted on answers of models that saw the rows which a "
                    f"fold holds out. Blend by {' or '.join(BLENDS)}, or name its runs."
                )
            home = run.path.resolve().parent
            for path in recipe.blend.runs:
                place = (run.path / path).resolve()
                if home not in place.parents:
                    raise RunError(
                        f"{name} is a blend, and its run {shown(path)} lies outside the folder of the blend. Name the "
                        "blend's runs as teachers in its place."
                    )
                if not place.is_dir():
                    raise RunError(f"{name} is a blend of {', '.join(recipe.blend.runs)}, and {path} is gone.")
                member = RunFolder(place, trust_remote_code=run.trust_remote_code)
                members.append(cls.open(f"{name} ({path})", member))
        elif recipe.train.select in ("cross_fitted", "scored_fold"):
            how = "the other folds' rows, by models that saw this fold's labels"
            if recipe.train.select == "scored_fold":
                how = "the very rows that are then scored"
            raise RunError(
                f"{name}: train.select: {recipe.train.select} chose its epochs on {how}. Teachers keep the last epoch, "
                "or choose by rows of their own (train.select: last or inner)."
            )
        return cls(name, run, members)

    def places(self) -> list[Path]:
        """Its folder; of a blend also those of its runs."""
        return [self.run.path.resolve(), *(place for member in self.members for place in member.places())]

    def finished(self) -> set[int]:
        """Folds whose models are there."""
        return set(self.run.finished_folds).intersection(*(member.finished() for member in self.members))

    def check(self, data: Dataset, fold: np.ndarray, task: TaskName | None, train_sha256: str) -> list[str]:
        """What keeps the run from teaching on these rows and folds, one sentence each."""
        run, own = self.run, np.flatnonzero(~data.extra)
        if run.task().name != task_of(task).name:
            return [f"{self.name}: its task is {run.task().name}; here it is {task_of(task).name}."]
        if run.info.data.train_sha256 != train_sha256:
            return [f"{self.name} was trained on another table: {run.changed_rows(data.subset(own))}."]
        theirs = run.folds["fold"].to_numpy()[: len(own)]  # extra rows stand behind
        moved = np.flatnonzero(theirs != fold[own])
        if len(moved):
            row = moved[0]
            return [
                f"{self.name}: {len(moved)} of {len(own)} rows lie in other folds (id {data.ids[own[row]]} in fold "
                f"{theirs[row]}, here in {fold[own[row]]}). Train on its folds with --fold-table "
                f"{run.files.folds}."
            ]
        for number in run.finished_folds if self.members else []:
            now = [m.run.fold(number).noted(m.run.fold(number).oof_logits) for m in self.members]
            for member, noted, found in zip(self.members, run.fold(number).info.blended or now, now, strict=True):
                if found is not None and found != noted:
                    return [f"{member.name} is not the run that was blended any more (fold {number}): blend again."]
        return [problem for member in self.members for problem in member.check(data, fold, task, train_sha256)]

    def key(self, number: int) -> str:
        """SHA-256 of all that the answers of a fold's model follow from: weights, positive weights, recipe."""
        recipe = sha256(self.run.files.recipe)
        if self.members:
            return of_values({"recipe": recipe, "runs": [member.key(number) for member in self.members]})
        folder = self.run.fold(number)
        places = (folder.adapter, folder.model)
        noted = {path: found for path, found in folder.info.files.items() if path.startswith(("adapter/", "model/"))}
        weights = noted or sums(folder.path, places)
        return of_values({"recipe": recipe, "files": weights, "pos_weight": folder.info.pos_weight})

    def say(self, number: int, texts: Sequence[str], ask: Ask, progress: Progress) -> np.ndarray:
        """Corrected probabilities by the model of a fold, ndarray of shape (n_texts, n_labels)."""
        if self.run.recipe.blend is None:
            return self._probabilities(ask(self.run, number, texts, progress), number)
        scores = np.array([member.say(number, texts, ask, progress) for member in self.members])
        return apply_blend(self.run.recipe.blend.how, self.run.task(), {}, scores)

    def said_of_test(self, number: int, test_sha256: str | None, n_test: int) -> np.ndarray | None:
        """Its probabilities of the test rows, which the run folder holds; None where those were of another table."""
        if test_sha256 is None or self.run.info.data.test_sha256 != test_sha256:
            return None
        folder = self.run.fold(number)
        return self._probabilities(folder.read_array(folder.test_logits, (n_test, len(self.run.label_names))), number)

    def _probabilities(self, logits: np.ndarray, number: int) -> np.ndarray:
        weight = self.run.fold(number).pos_weight(len(self.run.label_names))
        return self.run.task().link.probabilities(logits, weight)


class Teachers:
    """All teachers of a run.

    Parameters
    ----------
    recipe : with a `distill` section
    fold : ndarray of shape (n_samples,), the fold of every training row
    wanted : numbers of the folds that are to be trained
    ask : how a run is asked, see `lora_cls.training.factory.ask_fold`
    noted : `choices` of an earlier start of the same run; None for a new one

    Attributes
    ----------
    texts : those without labels that are learnt from
    choices : what `run.json` keeps
    notes : what is said of them

    Raises
    ------
    RunError
        If a teacher is no run, of other rows, labels, folds or another task, has not finished a wanted fold, was
        changed since the run was started, or learnt its models in a way that would let labels of held-out rows through;
        names all that is wrong.
    """

    def __init__(
        self,
        recipe: Recipe,
        tables: Tables,
        fold: np.ndarray,
        wanted: Sequence[int],
        ask: Ask,
        noted: Mapping[str, Any] | None = None,
    ) -> None:
        assert recipe.distill is not None
        self.distill: Distill = recipe.distill
        self._ask = ask
        self.task, self.data = task_of(recipe.task), tables.train
        trusted = recipe.backbone is not None and recipe.backbone.trust_remote_code
        self.all = [Teacher.open(path, RunFolder(path, trust_remote_code=trusted)) for path in self.distill.teachers]
        sha = tables.fingerprints()
        self._test_sha256: str | None = sha["test_sha256"]
        problems = [
            problem
            for teacher in self.all
            for problem in teacher.check(self.data, fold, recipe.task, sha["train_sha256"])
        ]
        finished = set.intersection(*(teacher.finished() for teacher in self.all))
        for teacher in self.all:
            lacking = sorted(set(wanted) - teacher.finished())
            if lacking and not problems:
                others = f", or train others (--folds {','.join(map(str, sorted(finished)))})" if finished else ""
                problems.append(
                    f"{teacher.name}: folds that are to be trained here are not finished there ({shorten(lacking)}). "
                    f"Continue it with --resume{others}."
                )
        if problems:
            raise RunError("Nothing can be learnt from these teachers:\n" + "\n".join(f"  {line}" for line in problems))
        self.keys = {number: [teacher.key(number) for teacher in self.all] for number in sorted(finished)}
        self._refuse_changed(noted or {})
        self.choices: dict[str, Any] = {"teachers": {str(number): keys for number, keys in self.keys.items()}}
        self._find_texts(tables)

    def refuse_within(self, out: Path) -> None:
        """Raise RunError if a teacher lies where the student is to be written."""
        within = [
            teacher.name for teacher in self.all for place in teacher.places() if place.is_relative_to(out.resolve())
        ]
        if within:
            raise RunError(f"{out} holds {within[0]}, which is to teach. Choose another folder with --out.")

    def _refuse_changed(self, noted: Mapping[str, Any]) -> None:
        for number, before in noted.get("teachers", {}).items():
            now = self.keys.get(int(number), [None] * len(self.all))
            if len(before) != len(now):
                raise RunError(f"The run was started with {len(before)} teachers, and now there are {len(now)}.")
            changed = [teacher.name for teacher, *pair in zip(self.all, before, now, strict=True) if len(set(pair)) > 1]
            if changed:
                raise RunError(
                    f"{shorten(changed)}: the model of fold {number} is another than when this run was started. Put it "
                    "back, or start a new run with another --out."
                )

    def _find_texts(self, tables: Tables) -> None:
        """Texts without labels, each once, and none that stands in the training table."""
        self._test = tables.test.texts if tables.test is not None else []
        further = tables.unlabelled.texts if tables.unlabelled is not None else []
        seen = {text_key(text) for text in self.data.texts} | {""}
        kept = []
        for i, text in enumerate([*self._test, *further]):
            if (key := text_key(text)) not in seen:
                seen.add(key)
                kept.append(i)
        self._from_test = [i for i in kept if i < len(self._test)]
        self._further = [further[i - len(self._test)] for i in kept[len(self._from_test) :]]
        self.texts = [*(self._test[i] for i in self._from_test), *self._further]
        n_rows = len(self._test) + len(further)
        if self.distill.hard is not None and not self.texts:
            raise RunError(
                "distill.hard labels rows without labels, and there are none: give --test FILE or distill.unlabelled, "
                "or remove distill.hard."
            )
        out = n_rows - len(self.texts)
        self.notes = [
            f"teachers: {', '.join(teacher.name for teacher in self.all)}; {len(self.texts)} texts without labels"
            + (f" ({out} left out: empty, repeated, or in the training table)" if out else "")
        ]

    def answers(self, number: int, rows: np.ndarray, folder: FoldFolder, progress: Progress) -> np.ndarray:
        """What the teachers' models of a fold say: the mean of their log-odds, of classes of their log-probabilities.

        Kept in the fold's folder, so that a resume learns the same to the last digit.

        Parameters
        ----------
        rows : the fold's training rows
        folder : the student's

        Returns
        -------
        ndarray of float32 of shape (n_samples + n_texts, n_labels)
            Of all training rows, and `texts` behind them. NaN of the rows that the fold holds out: nobody is asked.
        """
        texts = [self.data.texts[row] for row in rows]
        about = {"teachers": self.keys[number], "texts": _of_texts([*texts, *self.texts])}
        shape = (len(rows) + len(self.texts), len(self.data.label_names))
        said = _read(folder.teachers, about, shape)
        if said is None:
            progress.say(
                f"{fold_title(number)}: {len(self.all)} teachers answer for {len(rows)} training rows and "
                f"{len(self.texts)} texts without labels"
            )
            scores = np.array([self._scores(teacher, number, texts, progress) for teacher in self.all])
            said = self.task.link.logits(scores).mean(axis=0).astype(np.float32)
            _write(folder.teachers, about, said)
        found = np.full((len(self.data) + len(self.texts), shape[1]), np.nan, dtype=np.float32)
        found[rows] = said[: len(rows)]
        found[len(self.data) :] = said[len(rows) :]
        return found

    def _scores(self, teacher: Teacher, number: int, texts: list[str], progress: Progress) -> np.ndarray:
        """A teacher's probabilities of training texts and `texts`."""
        test = teacher.said_of_test(number, self._test_sha256, len(self._test))
        asked = [*texts, *(self._further if test is not None else self.texts)]
        said = teacher.say(number, asked, self._ask, progress)
        if test is None:
            return said
        return np.concatenate([said[: len(texts)], test[self._from_test], said[len(texts) :]])

    def lesson(self, rows: TrainingRows, tokens: Tokens, of_rows: np.ndarray, of_texts: np.ndarray) -> TrainingRows:
        """A fold's training rows with what is learnt from teachers.

        Parameters
        ----------
        rows : the labelled ones
        tokens : of `texts`
        of_rows, of_texts : answers for both, ndarray of shape (n, n_labels)
        """
        n_labels, row_weight = rows.labels.shape[1], rows.row_weight
        if self.distill.hard is None:
            labels, taught = np.zeros((tokens.n_texts, n_labels), rows.labels.dtype), of_texts
        else:
            p = self.task.link.probabilities(of_texts)
            sure = p.max(axis=1) if self.task.exclusive else np.maximum(p, 1 - p).min(axis=1)
            kept = np.flatnonzero(sure >= self.distill.hard)
            tokens, p = tokens.take(kept), p[kept]
            highest = p.argmax(axis=1)[:, None] == np.arange(n_labels)
            labels = (highest if self.task.exclusive else p >= 0.5).astype(rows.labels.dtype)
        n_more = len(labels)
        return TrainingRows(
            rows.tokens.and_more(tokens),
            np.concatenate([rows.labels, labels]),
            np.concatenate([rows.targets, labels]),
            None if row_weight is None else np.concatenate([row_weight / row_weight.mean(), np.ones(n_more)]),
            taught=None if self.distill.hard is not None else np.concatenate([of_rows, taught]),
            n_labelled=None if self.distill.hard is not None else len(rows.labels),
        )


def _of_texts(texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(texts)).encode("ascii")).hexdigest()


def _write(file: Path, about: Mapping[str, Any], said: np.ndarray) -> None:
    from safetensors.numpy import save

    own = hashlib.sha256(said.tobytes()).hexdigest()
    # one entry, as several would stand in another order each time
    write_bytes(file, save({"logits": said}, {"about": json.dumps({**about, "sha256": own})}))


def _read(file: Path, about: Mapping[str, Any], shape: tuple[int, int]) -> np.ndarray | None:
    """What `_write` wrote; None where there is nothing yet. Raises RunError if it is damaged, or of something else."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="numpy") as opened:
            known, said = json.loads(opened.metadata()["about"]), np.asarray(opened.get_tensor("logits"))
        if known.pop("sha256") != hashlib.sha256(said.tobytes()).hexdigest():
            raise ValueError("its SHA-256 is another")
        if known == about and said.shape != shape:
            raise ValueError(f"its shape is {said.shape}")
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise RunError(f"{file} is damaged ({brief(error)}). Remove it, and the teachers are asked again.") from None
    if known != about:
        raise RunError(
            f"{file} holds answers of other teachers, or for other texts, than this run learns from. Start a new run "
            "with another --out."
        )
    return said
