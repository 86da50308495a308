"""What trials are compared by: a score of rows out of fold, and of one fold by itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lora_cls.data.folds import held_apart
from lora_cls.errors import RunError
from lora_cls.evaluation import task_of
from lora_cls.recipe import SweepObjective
from lora_cls.runs import OutOfFold, RunFolder


def run_score(run: RunFolder, objective: SweepObjective) -> float:
    """The objective over all finished folds of a trial's run: a metric, of decisions by thresholds of the other folds
    that are tuned for it, or of the corrected probabilities; or the log loss of these."""
    return _score(run.out_of_fold(), run, objective)


def fold_score(run: RunFolder, number: int, objective: SweepObjective) -> float:
    """The same of one fold by itself, decided by thresholds of the other parts of its rows: it depends on no other
    fold, so that folds of two trials can be compared."""
    oof = run.out_of_fold()
    here = np.flatnonzero(oof.fold == number)
    alone = oof.take(here, np.arange(len(oof.label_names)))
    over, part = held_apart(alone.fold, alone.y_true, alone.groups, run.recipe)
    return _score(replace(alone, over=over, part=part), run, objective)


def _score(oof: OutOfFold, run: RunFolder, objective: SweepObjective) -> float:
    recipe = run.recipe
    if objective == "loss":
        right = np.where(oof.y_true == 1, oof.y_score, 1 - oof.y_score)
        if run.task().exclusive:
            right = oof.y_score[oof.y_true == 1]
        return float(-np.log(np.clip(right, 1e-15, 1.0)).mean())
    task = task_of(recipe.task, recipe.thresholds, objective, recipe.metric_beta)
    y_pred = None if task.metric.of_scores else oof.cross_fit(task, recipe.prediction.at_least_one).y_pred
    found = task.metric.score(oof.y_true, y_pred, oof.y_score)
    if np.isnan(found):
        raise RunError(f"{task.metric_name} is undefined: no label has both positives and negatives in these rows.")
    return found
