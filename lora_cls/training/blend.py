"""New texts through the runs of a blend. Nothing is trained here: see `lora_cls.analysis.blend`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lora_cls.errors import RecipeError, RunError
from lora_cls.evaluation import apply_blend, task_of
from lora_cls.recipe import Recipe
from lora_cls.runs import FoldFolder, RunFolder
from lora_cls.training.learner import FoldResult, Learner, make_learner
from lora_cls.training.progress import Progress


class BlendLearner:
    """Answers as the runs of a blend do together; their base models stay loaded side by side."""

    def __init__(
        self, recipe: Recipe, label_names: Sequence[str], backbone: str | None, progress: Progress | None
    ) -> None:
        if backbone is not None:
            raise RunError("--backbone names one base model, and a blend may have several: predict with its runs.")
        assert recipe.blend is not None
        self.recipe, self.blend, self.label_names, self.progress = recipe, recipe.blend, list(label_names), progress
        self.choices: dict[str, Any] = {}
        self.backbone_path: str | None = None
        self.notes: list[str] = []
        self.seconds: dict[str, float] = {}
        self.predict_seconds = 0.0
        self._members: list[tuple[RunFolder, Learner]] = []

    @property
    def reused(self) -> dict[str, int]:
        """See `Learner.reused`."""
        return {}

    def prepare(self) -> None:
        """See `Learner.prepare`."""
        raise RecipeError("A blend has nothing to train: make one with lora-cls blend RUN RUN --out NEW.")

    def fit_fold(
        self,
        fold: int,
        train_rows: np.ndarray,
        oof_rows: np.ndarray,
        folder: FoldFolder,
        n_epochs: int | None = None,
    ) -> FoldResult:
        """See `Learner.fit_fold`."""
        raise RecipeError("A blend has nothing to train: make one with lora-cls blend RUN RUN --out NEW.")

    def predict(self, folder: FoldFolder, texts: Sequence[str]) -> np.ndarray:
        """See `Learner.predict`."""
        run = folder.path.parent
        self._members = self._members or self._open(run)
        task = task_of(self.recipe.task)
        y_score, reference = [], []
        self.predict_seconds = 0.0
        for member, learner in self._members:
            same = FoldFolder(member.path / folder.path.name)
            labels = [member.label_names.index(name) for name in self.label_names]
            logits = learner.predict(same, texts)
            y_score.append(task.link.probabilities(logits, same.pos_weight(len(labels)))[:, labels])
            self.notes = learner.notes
            self.predict_seconds += learner.predict_seconds
            if self.blend.how == "rank_mean":
                reference.append(member.out_of_fold().y_score[:, labels])
        fitted = folder.info.blend or {}
        known = np.array(reference) if reference else None
        proba = apply_blend(self.blend.how, task, fitted, np.array(y_score), known)
        return task.link.logits(proba).astype(np.float32)

    def _open(self, run: Path) -> list[tuple[RunFolder, Learner]]:
        members: list[tuple[RunFolder, Learner]] = []
        for path in self.blend.runs:
            if not (run / path).is_dir():
                raise RunError(
                    f"{run} is a blend of {', '.join(self.blend.runs)} (seen from it), and {path} is gone. Put it "
                    "back; its scores, thresholds and submission can be read without."
                )
            member = RunFolder((run / path).resolve())
            self._same_texts(run, member)
            learner = make_learner(
                member.recipe, member.label_names, choices=member.info.choices, progress=self.progress
            )
            members.append((member, learner))
        return members

    def _same_texts(self, run: Path, member: RunFolder) -> None:
        ours, theirs = RunFolder(run).info.data, member.info.data
        same = ours.text_columns == theirs.text_columns
        if not same or self.recipe.data.text_template != member.recipe.data.text_template:
            raise RunError(
                f"{member.path} makes its texts of other columns than the first run of {run}: predict with each run."
            )
