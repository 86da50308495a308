"""From saved logits to thresholds, scores and the submission. Loads no model, so it can be repeated at will."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from lora_cls.data import read_sample_submission, write_submission
from lora_cls.data.folds import held_apart
from lora_cls.errors import RunError, no_fold_finished
from lora_cls.evaluation import CrossFit, Decisions, bootstrap_macro_f1, summary
from lora_cls.files import write_csv, write_json
from lora_cls.recipe import Prediction, Recipe, Task, Thresholds, load_recipe
from lora_cls.runs import RunFolder, read_array

LEFT_OUT = (
    "Intervals come from resampling groups of identical texts with the trained models held fixed: they leave out the "
    "variance of training."
)
MANY_MODELS = "The score describes one fold's model; the submission combines all folds."
ONE_MODEL = "The score and the submission are those of the one model that was trained."


def tune(run: RunFolder, thresholds: Thresholds | None = None, prediction: Prediction | None = None) -> dict[str, Any]:
    """Tune thresholds on the out-of-fold probabilities of the finished folds, score them, and write every file.

    Decisions for a fold are by thresholds of the other folds. Where only one fold is scored, its rows are divided into
    five stratified parts (`stratified_folds` by `cv.random_state`), and decisions for a part are by thresholds of the
    other parts: the model never saw any of them.

    Writes `oof_proba.csv`, `thresholds.json`, `metrics.json`, and for a run with test rows `test_proba.csv` and
    `submission.csv`.

    Parameters
    ----------
    thresholds, prediction : settings to use instead of the recipe's

    Returns
    -------
    dict
        The content of `metrics.json`.

    Raises
    ------
    RunError
        If no fold is finished, or those finished hold out a single group of rows.
    """
    recipe = run.recipe
    thresholds, prediction = thresholds or recipe.thresholds, prediction or recipe.prediction
    finished, names = run.finished_folds, run.label_names
    if not finished:
        raise no_fold_finished(run.path)
    (rows, logits), (_, y_score) = run.oof_logits(), run.oof_proba()
    folds, weights = run.folds.iloc[rows], run.pos_weights()
    fold, groups = folds["fold"].to_numpy(), folds["group"].to_numpy()
    if len(np.unique(groups)) < 2:
        raise RunError(
            f"{run.path}: the rows scored so far are one row, or stay together as one; scores need two at least. "
            "Train more folds with --resume."
        )
    y_true, decisions = run.y_true[rows], run.decisions(thresholds)
    settings: dict[str, Any] = {
        "strategy": decisions.strategy,
        "min_positives": thresholds.min_positives,
        "default": thresholds.default,
    }
    shipped = decisions.tune(y_true, y_score)
    optimistic = recipe.train.select == "scored_fold"
    metrics: dict[str, Any] = {
        "task": recipe.task,
        "strategy": decisions.strategy,
        "optimistic": optimistic,
        "epochs_pending": recipe.train.select == "cross_fitted" and len(finished) < len(run.fold_numbers),
        "folds_finished": finished,
        "n_splits": len(run.fold_numbers),
        "rows_scored": len(rows),
        "rows": int((run.folds["fold"] >= 0).sum()),
    }
    kept: dict[str, Any] = {
        "settings": settings,
        "prediction": prediction.model_dump(),
        "shipped": dict(zip(names, shipped.tolist(), strict=True)),
    }
    over, part = held_apart(fold, y_true, groups, recipe)
    fitted = cross_fit(decisions, y_true, y_score, part, prediction.at_least_one, _fitted_proba(run, decisions, part))
    metrics["cross_fitted"] = {"optimistic": optimistic, "over": over, "n_parts": len(fitted.thresholds)} | _scores(
        recipe.task, y_true, fitted.y_pred, y_score, names, shipped, groups
    )
    kept[over] = {int(k): dict(zip(names, values.tolist(), strict=True)) for k, values in fitted.thresholds.items()}
    metrics["untuned"] = {"optimistic": optimistic} | _scores(
        recipe.task, y_true, decisions.untuned(logits), y_score, names, None, groups
    )
    metrics["note"] = f"{LEFT_OUT} {MANY_MODELS if len(run.fold_numbers) > 1 else ONE_MODEL}"
    metrics |= run.answer_counts()
    write_csv(run.path / "oof_proba.csv", _table(folds["id"].tolist(), y_score, names))
    write_json(run.path / "thresholds.json", kept)
    test_logits, test_ids = run.test_logits(), run.test_ids
    if test_logits is not None and test_ids is not None:
        per_fold = decisions.probabilities(test_logits, weights[:, None, :])
        proba, y_pred = decisions.together(per_fold, shipped, prediction)
        write_csv(run.path / "test_proba.csv", _table(test_ids, proba, names))
        id_name = str(run.info["data"]["test_id_column"] or "id")
        given, delimiter = run.sample_submission, recipe.data.label_delimiter
        sample = (
            None
            if given is None
            else read_sample_submission(given, test_ids, names, id_name, task=recipe.task, delimiter=delimiter)
        )
        write_submission(
            run.path / "submission.csv", test_ids, y_pred, names, id_name=id_name, sample=sample,
            label_column=run.label_column, delimiter=delimiter,
        )  # fmt: skip
        metrics["test"] = {
            "rows": len(test_ids),
            "combine": prediction.combine,
            "positives": dict(zip(names, (int(v) for v in y_pred.sum(axis=0)), strict=True)),
        }
    write_json(run.path / "metrics.json", metrics)
    return metrics


def cross_fit(
    decisions: Decisions,
    y_true: np.ndarray,
    y_score: np.ndarray,
    part: np.ndarray,
    at_least_one: bool,
    fitted_proba: np.ndarray | None = None,
) -> CrossFit:
    """Decide the rows of each part by thresholds of the other parts' rows.

    Parameters
    ----------
    y_true, y_score : ndarray of shape (n_samples, n_labels)
    part : ndarray of shape (n_samples,)
    fitted_proba : ndarray of shape (n_parts, n_samples, n_labels), in the order of `np.unique(part)`
        Where the scores themselves were fitted to labels (blends): all rows by the fit of each part, which saw the
        other parts' labels alone. Thresholds of a part are tuned on these, so that its labels enter nowhere.
    """
    if fitted_proba is None:
        return decisions.cross_fit(y_true, y_score, part, at_least_one)
    thresholds, y_pred = {}, np.empty(y_true.shape, dtype=np.int8)
    for number, proba in zip(np.unique(part).tolist(), fitted_proba, strict=True):
        inside = part == number
        thresholds[number] = decisions.tune(y_true[~inside], proba[~inside])
        y_pred[inside] = decisions.apply(y_score[inside], thresholds[number], at_least_one)
    return CrossFit(thresholds, y_pred)


def _fitted_proba(run: RunFolder, decisions: Decisions, part: np.ndarray) -> np.ndarray | None:
    if not run.fitted_logits.is_file():
        return None
    n_labels = len(run.label_names)
    logits = read_array(run.fitted_logits, (len(np.unique(part)), len(part), n_labels))
    return decisions.probabilities(logits, np.ones(n_labels))


def _scores(
    task: Task | None,
    y_true: np.ndarray,
    y_pred: np.ndarray,
    y_score: np.ndarray,
    names: list[str],
    thresholds: np.ndarray | None,
    groups: np.ndarray,
) -> dict[str, Any]:
    interval = bootstrap_macro_f1(y_true, y_pred, groups)
    scores = summary(y_true, y_pred, y_score, names, thresholds)
    if task == "single_label":
        scores["accuracy"] = scores["exact_match"]
    return scores | {"macro_f1_interval": asdict(interval)}


def _table(ids: list[str], y_score: np.ndarray, names: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"id": ids} | {name: y_score[:, j] for j, name in enumerate(names)})


def recipe_settings(recipe: Recipe, **given: Any) -> tuple[Thresholds, Prediction]:
    """The recipe's settings with those given instead (None keeps the recipe's).

    Raises
    ------
    RecipeError
        For settings that contradict the recipe's task.
    """
    sections = dict.fromkeys(Thresholds.model_fields, "thresholds")
    sections |= dict.fromkeys(Prediction.model_fields, "prediction")
    changed = load_recipe(
        recipe, {f"{sections[key]}.{key}": value for key, value in given.items() if value is not None}
    )
    return changed.thresholds, changed.prediction
