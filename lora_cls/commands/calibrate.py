"""Calibrated probabilities of a run, beside its own: nothing that the run holds is changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from lora_cls.data.folds import held_apart
from lora_cls.errors import RunError
from lora_cls.evaluation import (
    Calibration,
    Decisions,
    apply_calibration,
    calibrated_thresholds,
    calibration_scores,
    fit_calibration,
    macro_f1,
)
from lora_cls.evaluation.calibration import N_BINS
from lora_cls.files import write_csv, write_json
from lora_cls.recipe import Prediction, Thresholds
from lora_cls.runs import RunFolder, read_json


def calibrate(run: RunFolder, how: Calibration = "temperature") -> dict[str, Any]:
    """Calibrate the out-of-fold probabilities of the finished folds, and those of the test rows.

    The rows of a fold are calibrated by the map of the other folds' rows (of a single fold, part by part, as `tune`
    decides them); `calibration.json` also keeps the map of all rows, with thresholds for it, for test rows and whatever
    comes later. Writes `calibration.json`, `oof_proba_calibrated.csv` and, for a run with test rows,
    `test_proba_calibrated.csv`.

    Returns
    -------
    dict
        The content of `calibration.json`.

    Raises
    ------
    RunError
        If no fold is finished, or the way does not fit the task.
    """
    recipe = run.recipe
    if how == "isotonic" and recipe.task == "single_label":
        raise RunError(
            f"{run.path}: isotonic calibrates labels one by one, and a row's classes would no longer sum to 1. "
            "Use --how temperature."
        )
    kept = read_json(run.path / "thresholds.json")
    decisions, prediction = run.decisions(Thresholds(**kept["settings"])), Prediction(**kept["prediction"])
    rows, y_score = run.oof_proba()
    folds, y_true = run.folds.iloc[rows], run.y_true[rows]
    over, part = held_apart(folds["fold"].to_numpy(), y_true, folds["group"].to_numpy(), recipe)
    calibrated, per_part = np.empty(y_score.shape), {}
    for number in np.unique(part).tolist():
        inside = part == number
        per_part[number] = fit_calibration(how, decisions, y_true[~inside], y_score[~inside])
        calibrated[inside] = apply_calibration(how, decisions, per_part[number], y_score[inside])
    shipped = fit_calibration(how, decisions, y_true, y_score)
    thresholds = calibrated_thresholds(
        how, decisions, shipped, [kept["shipped"][name] for name in run.label_names], y_true, y_score
    )
    before, after = calibration_scores(y_true, y_score), calibration_scores(y_true, calibrated)
    found: dict[str, Any] = {
        "how": how,
        "bins": N_BINS,
        "before": _means(before) | {"macro_f1": _macro_f1(decisions, y_true, y_score, part, prediction)},
        "after": _means(after) | {"macro_f1": _macro_f1(decisions, y_true, calibrated, part, prediction)},
        "per_label": [
            {"label": name}
            | {f"{key}_before": before[key][j] for key in before}
            | {f"{key}_after": after[key][j] for key in after}
            for j, name in enumerate(run.label_names)
        ],
        "thresholds": dict(zip(run.label_names, thresholds.tolist(), strict=True)),
        "shipped": shipped,
        over: per_part,
    }
    write_csv(run.path / "oof_proba_calibrated.csv", _table(folds["id"].tolist(), calibrated, run.label_names))
    test_logits, test_ids = run.test_logits(), run.test_ids
    if test_logits is not None and test_ids is not None:
        # votes are counts of folds, which no map makes probabilities
        if prediction.combine == "vote":
            prediction = prediction.model_copy(update={"combine": "mean_logit"})
        of_folds = decisions.probabilities(test_logits, run.pos_weights()[:, None, :])
        proba, _ = decisions.together(apply_calibration(how, decisions, shipped, of_folds), thresholds, prediction)
        write_csv(run.path / "test_proba_calibrated.csv", _table(test_ids, proba, run.label_names))
        found["test_combine"] = prediction.combine
    write_json(run.path / "calibration.json", found)
    return found


def _means(scores: dict[str, list[float]]) -> dict[str, float]:
    return {key: float(np.mean(values)) for key, values in scores.items()}


def _macro_f1(
    decisions: Decisions, y_true: np.ndarray, y_score: np.ndarray, part: np.ndarray, given: Prediction
) -> float:
    return macro_f1(y_true, decisions.cross_fit(y_true, y_score, part, given.at_least_one).y_pred)


def _table(ids: list[str], y_score: np.ndarray, names: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"id": ids} | {name: y_score[:, j] for j, name in enumerate(names)})
