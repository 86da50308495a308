"""Sets of words that recipes, functions and the command line choose from. Nothing is imported here but `typing`."""

from typing import Literal

LabelStrategy = Literal["per_label", "global", "prevalence", "fixed", "expected_f1", "auto"]
"""Of labels that are decided one by one."""
ClassStrategy = Literal["argmax", "prior_adjusted"]
"""Of classes, of which a row has exactly one."""
ThresholdStrategy = Literal[LabelStrategy, ClassStrategy]
Combination = Literal["mean_proba", "mean_logit", "vote"]
"""How the folds' models answer together."""
PieceCombination = Literal["mean_logit", "mean_proba", "max"]
"""How the pieces of one text answer together."""
BlendHow = Literal["mean_proba", "mean_logit", "rank_mean", "weights", "stacking"]
Calibration = Literal["temperature", "isotonic"]
Models = Literal["folds", "refit"]
"""What answers for new texts: all folds together, or the model of all rows."""
TableFormat = Literal["csv", "parquet"]
"""What tables of answers are written as."""
ExportKind = Literal["adapter", "merged", "transformers", "onnx"]
Over = Literal["folds", "parts"]
"""What thresholds are cross-fitted over."""
DecisionMetric = Literal["macro_f1", "micro_f1", "samples_jaccard", "f_beta", "accuracy", "mcc"]
"""Metrics of decisions."""
ScoreMetric = Literal["roc_auc", "average_precision", "log_loss"]
"""Metrics of ranks and of probabilities, which no threshold changes."""
MetricName = Literal[DecisionMetric, ScoreMetric]
