"""New texts through the runs of a blend. Nothing is trained here: see `lora_cls.commands.blend`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from lora_cls.errors import RunError, shown
from lora_cls.evaluation import apply_blend, task_of
from lora_cls.recipe import Recipe
from lora_cls.runs import FoldFolder, RunFolder
from lora_cls.training.learner import Predictor


class BlendPredictor:
    """Answers as the runs of a blend do together; their base models stay loaded side by side.

    Parameters
    ----------
    of_run : opens who answers for a run
    trust_remote_code, outside_runs : see `make_predictor`
    """

    def __init__(
        self,
        recipe: Recipe,
        label_names: Sequence[str],
        of_run: Callable[[RunFolder], Predictor],
        *,
        trust_remote_code: bool = False,
        outside_runs: bool = False,
    ) -> None:
        assert recipe.blend is not None
        self.recipe, self.blend, self.label_names = recipe, recipe.blend, list(label_names)
        self.notes: list[str] = []
        self.predict_seconds = 0.0
        self._of_run = of_run
        self._trust_remote_code, self._outside_runs = trust_remote_code, outside_runs
        self._members: list[tuple[RunFolder, Predictor]] = []

    def predict(self, folder: FoldFolder, texts: Sequence[str]) -> np.ndarray:
        """See `Predictor.predict`."""
        run = folder.path.parent
        self._members = self._members or self._open(run)
        task = task_of(self.recipe.task)
        y_score, reference = [], []
        self.predict_seconds = 0.0
        for member, predictor in self._members:
            same = FoldFolder(member.path / folder.path.name)
            labels = [member.label_names.index(name) for name in self.label_names]
            logits = predictor.predict(same, texts)
            y_score.append(task.link.probabilities(logits, same.pos_weight(len(labels)))[:, labels])
            self.notes = predictor.notes
            self.predict_seconds += predictor.predict_seconds
            if self.blend.how == "rank_mean":
                reference.append(member.out_of_fold().y_score[:, labels])
        fitted = folder.info.blend or {}
        known = np.array(reference) if reference else None
        proba = apply_blend(self.blend.how, task, fitted, np.array(y_score), known)
        return task.link.logits(proba).astype(np.float32)

    def _open(self, run: Path) -> list[tuple[RunFolder, Predictor]]:
        members: list[tuple[RunFolder, Predictor]] = []
        home, blended = run.resolve().parent, RunFolder(run)
        for index, path in enumerate(self.blend.runs):
            place = (run / path).resolve()
            if not self._outside_runs and home not in place.parents:
                raise RunError(
                    f"{run} is a blend, and its run {shown(path)} lies outside {home}, where the blend lies. If the "
                    "blend is yours, or you trust who sent it, give --outside-runs (outside_runs=True in Python)."
                )
            if not (run / path).is_dir():
                raise RunError(
                    f"{run} is a blend of {', '.join(self.blend.runs)} (seen from it), and {path} is gone. Put it "
                    "back; its scores, thresholds and submission can be read without."
                )
            member = RunFolder(place, trust_remote_code=self._trust_remote_code)
            self._same_texts(blended, member)
            self._same_models(blended, member, index)
            members.append((member, self._of_run(member)))
        return members

    def _same_texts(self, run: RunFolder, member: RunFolder) -> None:
        ours, theirs = run.info.data, member.info.data
        settings, others = self.recipe.data, member.recipe.data
        same = ours.text_columns == theirs.text_columns and settings.text_template == others.text_template
        if not same or settings.unescape != others.unescape:
            raise RunError(
                f"{member.path} makes its texts in another way (text_columns, text_template, unescape) than the first "
                f"run of {run.path}: predict with each run."
            )

    def _same_models(self, run: RunFolder, member: RunFolder, index: int) -> None:
        """Refuse a run that was trained anew, or lost a fold, since it was blended."""
        for number in run.finished_folds:
            fold, noted = member.fold(number), run.fold(number).info.blended
            if not fold.finished:
                raise RunError(f"{fold.path} is not finished. Continue that run with --resume.")
            if noted is not None and noted[index] != fold.noted(fold.oof_logits):
                raise RunError(f"{fold.path} is not the fold that {run.path} was made of. Blend the runs again.")
