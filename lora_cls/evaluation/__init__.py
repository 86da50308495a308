"""Scores, decisions and their uncertainty: numpy in, numpy out, no torch.

Reading order: `metrics` (decisions to figures), `metric` (the one that a run is judged by), `objectives`, `expected_f1`
and `thresholds` (scores to decisions), `intervals` (how sure the figures are), `probabilities` and `links` (logits to
probabilities, several folds to one score), `tasks` (all of it, by task), `calibration` (probabilities that mean what
they say), `blending` (several runs to one), `score_map` (one model's scores as those of others).

Arrays, everywhere in this package: `y_true` and `y_pred` are 0/1 of shape (n_samples, n_labels), `y_score` holds
float64 scores of the same shape, `fold` and `groups` hold one integer per row. A prediction is positive at
`y_score >= threshold`.
"""

from lora_cls.evaluation.blending import apply_blend, fit_blend
from lora_cls.evaluation.calibration import (
    apply_calibration,
    calibrated_thresholds,
    calibration_scores,
    fit_calibration,
)
from lora_cls.evaluation.intervals import (
    Answers,
    Interval,
    Resamples,
    bootstrap_difference,
    bootstrap_macro_f1,
    bootstrap_metric,
    bootstrap_metric_difference,
    bootstrap_metric_unpaired_difference,
    bootstrap_unpaired_difference,
)
from lora_cls.evaluation.links import Link
from lora_cls.evaluation.metric import Metric
from lora_cls.evaluation.metrics import f1_scores, label_ranks, macro_f1, summary
from lora_cls.evaluation.probabilities import logit
from lora_cls.evaluation.score_map import apply_score_map, fit_score_map
from lora_cls.evaluation.tasks import Task, task_of
from lora_cls.evaluation.thresholds import CrossFit, apply_thresholds, cross_fit_thresholds, tune_thresholds

__all__ = [
    "Answers",
    "CrossFit",
    "Interval",
    "Link",
    "Metric",
    "Resamples",
    "Task",
    "apply_blend",
    "apply_calibration",
    "apply_score_map",
    "apply_thresholds",
    "bootstrap_difference",
    "bootstrap_macro_f1",
    "bootstrap_metric",
    "bootstrap_metric_difference",
    "bootstrap_metric_unpaired_difference",
    "bootstrap_unpaired_difference",
    "calibrated_thresholds",
    "calibration_scores",
    "cross_fit_thresholds",
    "f1_scores",
    "fit_blend",
    "fit_calibration",
    "fit_score_map",
    "label_ranks",
    "logit",
    "macro_f1",
    "summary",
    "task_of",
    "tune_thresholds",
]
