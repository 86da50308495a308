"""Calibrated probabilities of a run, beside its own: nothing that the run holds is changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lora_cls.choices import Calibration
from lora_cls.errors import RunError
from lora_cls.evaluation import apply_calibration, calibrated_thresholds, calibration_scores, fit_calibration, macro_f1
from lora_cls.evaluation.calibration import N_BINS
from lora_cls.runs import RunFolder
from lora_cls.runs.io import write_values
from lora_cls.runs.records import CalibrationInfo


def calibrate(
    run: str | Path | RunFolder,
    how: Calibration = "temperature",
    *,
    say: Callable[[str], None] = lambda _: None,
) -> CalibrationInfo:
    """Calibrate the out-of-fold probabilities of the finished folds, and those of the test rows.

    The rows of a fold are calibrated by the map of the other folds' rows (of a single fold, part by part, as `tune`
    decides them). `calibration.json` also keeps the map of all rows, with thresholds for it, for test rows and whatever
    comes later. Writes `calibration.json`, `oof_proba_calibrated.csv` and, for a run with test rows,
    `test_proba_calibrated.csv`.

    Parameters
    ----------
    say : told of another process that writes into the run, and is waited for

    Returns
    -------
    CalibrationInfo
        The content of `calibration.json`.

    Raises
    ------
    RunError
        If no fold is finished, or the way does not fit the task.
    """
    run = RunFolder.of(run)
    if how not in run.task().calibrations:
        raise RunError(
            f"{run.path}: isotonic calibrates labels one by one, and a row's classes would no longer sum to 1. "
            "Use --how temperature."
        )
    decision = run.decision()
    task, prediction = run.task(decision), decision.prediction
    oof, names = run.out_of_fold(), run.label_names
    y_true, y_score, part = oof.y_true, oof.y_score, oof.part
    calibrated, per_part = np.empty(y_score.shape), {}
    for number in np.unique(part).tolist():
        inside = part == number
        per_part[number] = fit_calibration(how, task, y_true[~inside], y_score[~inside])
        calibrated[inside] = apply_calibration(how, task, per_part[number], y_score[inside])
    shipped = fit_calibration(how, task, y_true, y_score)
    thresholds = calibrated_thresholds(how, task, shipped, [decision.shipped[name] for name in names], y_true, y_score)
    before, after = calibration_scores(y_true, y_score), calibration_scores(y_true, calibrated)

    def means(scores: dict[str, list[float]], proba: np.ndarray) -> dict[str, float]:
        y_pred = task.cross_fit(y_true, proba, part, prediction.at_least_one).y_pred
        return {key: float(np.mean(values)) for key, values in scores.items()} | {"macro_f1": macro_f1(y_true, y_pred)}

    values: dict[str, Any] = {
        "how": how,
        "bins": N_BINS,
        "before": means(before, y_score),
        "after": means(after, calibrated),
        "per_label": [
            {"label": name}
            | {f"{key}_before": before[key][j] for key in before}
            | {f"{key}_after": after[key][j] for key in after}
            for j, name in enumerate(names)
        ],
        "thresholds": dict(zip(names, thresholds.tolist(), strict=True)),
        "shipped": shipped,
        oof.over: per_part,
    }
    per_fold, test_ids, test_proba = run.test_scores(), run.test_ids, None
    if per_fold is not None and test_ids is not None:
        # votes are counts of folds, which no map makes probabilities
        if prediction.combine == "vote":
            prediction = prediction.model_copy(update={"combine": "mean_logit"})
        test_proba, _ = task.together(apply_calibration(how, task, shipped, per_fold), thresholds, prediction)
        values["test_combine"] = prediction.combine
    info = CalibrationInfo.model_validate(values)
    with run.writing(say):
        write_values(run.files.oof_calibrated, oof.ids, names, calibrated)
        if test_proba is not None and test_ids is not None:
            write_values(run.files.test_calibrated, test_ids, names, test_proba)
        return info.write(run.files.calibration)
