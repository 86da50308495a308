"""From saved logits to thresholds, scores and the submission. Loads no model, so it can be repeated at will."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from lora_cls.choices import ClassStrategy, MetricName
from lora_cls.data import read_sample_submission, write_submission
from lora_cls.data.submission import Sample
from lora_cls.evaluation import (
    Answers,
    Metric,
    Resamples,
    Task,
    label_ranks,
    summary,
    task_of,
)
from lora_cls.recipe import Prediction, Recipe, Thresholds, load_recipe
from lora_cls.report.page import write_reports
from lora_cls.runs import Decision, OutOfFold, Results, RunFolder, Scores, ScoreSet, TestRows
from lora_cls.runs.io import write_values
from lora_cls.runs.sums import sums

LEFT_OUT = (
    "Intervals come from resampling groups of identical texts with the trained models held fixed: they leave out the "
    "variance of training."
)
UNTUNED = ("argmax", "fixed", "prevalence")
"""Strategies that choose no threshold by the rows' scores."""
MANY_MODELS = "The score describes one fold's model; the submission combines all folds."
ONE_MODEL = "The score and the submission are those of the one model that was trained."


def tune(
    run: str | Path | RunFolder,
    thresholds: Thresholds | None = None,
    prediction: Prediction | None = None,
    metric: MetricName | None = None,
    metric_beta: float | None = None,
    *,
    say: Callable[[str], None] = lambda _: None,
) -> Scores:
    """Tune thresholds on the out-of-fold probabilities of the finished folds, score them, and write every file.

    Decisions for a fold are by thresholds of the other folds. Where only one fold is scored, its rows are divided into
    five stratified parts (`stratified_folds` by `cv.random_state`), and decisions for a part are by thresholds of the
    other parts: the model never saw any of them.

    Writes `oof_proba.csv`, `thresholds.json`, `metrics.json`, `README.md` and `report.html`, and for a run with test
    rows `test_proba.csv` and `submission.csv`.

    Parameters
    ----------
    thresholds, prediction, metric, metric_beta : settings to use instead of the recipe's
    say : told what could not be written of the card and the page, which cost a run nothing; and of another process that
        writes into the run, and is waited for

    Returns
    -------
    Scores
        What `metrics.json` holds.

    Raises
    ------
    RunError
        If no fold is finished, or those finished hold out a single group of rows.
    RecipeError
        For a metric that has no meaning for the run's task.

    Examples
    --------
    >>> scores = tune("runs/tfidf", Thresholds(strategy="global"))
    >>> scores.strategy
    'global'
    >>> len(set(RunFolder("runs/tfidf").results().decision.shipped.values()))  # one threshold for all three labels
    1
    """
    run = RunFolder.of(run)
    with run.writing(say):
        results = score(run, thresholds, prediction, metric, metric_beta)
        write_reports(run, say, results)
    return results.scores


def score(
    run: RunFolder,
    thresholds: Thresholds | None = None,
    prediction: Prediction | None = None,
    metric: MetricName | None = None,
    metric_beta: float | None = None,
    *,
    say: Callable[[str], None] = lambda _: None,
) -> Results:
    """`tune` but for the card and the page."""
    recipe, oof = run.recipe, run.out_of_fold()
    thresholds, prediction = thresholds or recipe.thresholds, prediction or recipe.prediction
    # together: what fits the recipe alone may contradict the metric
    given = {f"thresholds.{name}": value for name, value in thresholds.model_dump().items()}
    given |= {f"prediction.{name}": value for name, value in prediction.model_dump().items()}
    given |= {} if metric is None else {"metric": metric, "metric_beta": metric_beta}
    recipe = load_recipe(recipe, given)
    task = task_of(recipe.task, thresholds, recipe.metric, recipe.metric_beta)
    names, finished = oof.label_names, np.unique(oof.fold).tolist()  # others may be finished meanwhile
    optimistic = recipe.train.select == "scored_fold"
    shipped, fitted = task.tune(oof.y_true, oof.y_score), oof.cross_fit(task, prediction.at_least_one)
    cross_fitted: dict[str, Any] = {"over": oof.over, "n_parts": len(fitted.thresholds)}
    untuned = task.untuned(oof.logits)
    ways = [Answers(y_pred, oof.y_score) for y_pred in (fitted.y_pred, untuned)]
    drawn = Resamples.draw(_judged_by(task), oof.y_true, ways, oof.groups)
    more: dict[str, Any] = _answers(run)
    if task.strategy not in UNTUNED:
        gain = drawn.difference(task.metric.for_thresholds, 0, 1)
        more["tuning_gain"] = asdict(gain)
        if gain.low <= 0 and (strategy := _decides_as(untuned, task, oof)) is not None:
            more["untuned_strategy"] = strategy
    judged_by = recipe.model_dump(include={"metric", "metric_beta"}, exclude_none=True)
    by_label = {int(k): dict(zip(names, values.tolist(), strict=True)) for k, values in fitted.thresholds.items()}
    decision = Decision.model_validate(
        {
            "settings": Thresholds(
                strategy=task.strategy,
                min_positives=thresholds.min_positives,
                default=thresholds.default,
            ),
            **judged_by,
            "prediction": Prediction(**prediction.model_dump()),
            "shipped": dict(zip(names, shipped.tolist(), strict=True)),
            oof.over: by_label,
        }
    )
    submission = _Submission.of(run, task, shipped, prediction)
    if submission is not None:
        more["test"] = submission.rows

    ranks = label_ranks(oof.y_true, oof.y_score)  # the same for both ways

    def of_way(i: int, limits: np.ndarray | None, **more: Any) -> ScoreSet:
        figures = summary(oof.y_true, ways[i].y_pred, oof.y_score, names, limits, ranks)
        return _score_set(task, figures, drawn, i, optimistic=optimistic, **more)

    scores = Scores.model_validate(
        {
            "task": recipe.task,
            **judged_by,
            "strategy": task.strategy,
            "optimistic": optimistic,
            "epochs_pending": recipe.train.select == "cross_fitted" and len(finished) < len(run.fold_numbers),
            "folds_finished": finished,
            "n_splits": len(run.fold_numbers),
            "rows_scored": len(oof),
            "rows": int((run.folds["fold"] >= 0).sum()),
            "cross_fitted": of_way(0, shipped, **cross_fitted),
            "untuned": of_way(1, None),
            "note": f"{LEFT_OUT} {MANY_MODELS if len(run.fold_numbers) > 1 else ONE_MODEL}",
        }
        | more
    )
    with run.writing(say):
        write_values(run.files.oof_proba, oof.ids, names, oof.y_score)
        decision = decision.write(run.files.decision)
        if submission is not None:
            submission.write(run)
        files = sums(run.path, [run.files.oof_proba, run.files.test_proba, run.files.submission])
        scores = scores.model_copy(update={"decision_sha256": decision.sha256, "files": files}).write(run.files.scores)
    return Results(oof, decision, scores)


def _answers(run: RunFolder) -> dict[str, int]:
    """Answers that were written, and those that could not be read, over the finished folds; empty without any."""
    folds = [info for number in run.finished_folds if (info := run.fold(number).info).answers is not None]
    keys = ("answers", "unparsable_answers")
    return {key: sum(getattr(info, key) for info in folds) for key in keys} if folds else {}


@dataclass(frozen=True, eq=False)
class _Submission:
    """Test rows decided by all finished folds together; checked against the sample before anything is written."""

    ids: list[str]
    proba: np.ndarray
    y_pred: np.ndarray
    rows: TestRows
    id_name: str
    sample: Sample | None
    probabilities: bool

    @classmethod
    def of(cls, run: RunFolder, task: Task, shipped: np.ndarray, prediction: Prediction) -> _Submission | None:
        """None for a run without test rows."""
        per_fold, ids = run.test_scores(), run.test_ids
        if per_fold is None or ids is None:
            return None
        names, delimiter, given = run.label_names, run.recipe.data.label_delimiter, run.sample_submission
        id_name = run.info.data.test_id_column or "id"
        sample = (
            None
            if given is None
            else read_sample_submission(
                given,
                ids,
                names,
                id_name,
                task=run.recipe.task,
                delimiter=delimiter,
                label_column=run.label_column,
            )
        )
        proba, y_pred = task.together(per_fold, shipped, prediction)
        positives = dict(zip(names, (int(count) for count in y_pred.sum(axis=0)), strict=True))
        rows = TestRows(rows=len(ids), combine=prediction.combine, positives=positives)
        return cls(ids, proba, y_pred, rows, id_name, sample, task.metric.of_scores)

    def write(self, run: RunFolder) -> None:
        """Write `test_proba.csv` and `submission.csv`."""
        names = run.label_names
        write_values(run.files.test_proba, self.ids, names, self.proba)
        write_submission(
            run.files.submission, self.ids, self.y_pred, names, id_name=self.id_name, sample=self.sample,
            label_column=run.label_column, delimiter=run.recipe.data.label_delimiter, y_score=self.proba,
            probabilities=self.probabilities,
        )  # fmt: skip


def _decides_as(untuned: np.ndarray, task: Task, oof: OutOfFold) -> str | None:
    """The strategy of `UNTUNED` that decides the rows as they are decided untuned, but for 0.5 % of the decisions."""
    for strategy in UNTUNED:
        if (strategy in get_args(ClassStrategy)) == task.exclusive:
            plain = replace(task, settings=task.settings.model_copy(update={"strategy": strategy}))
            if (oof.cross_fit(plain, False).y_pred != untuned).mean() < 0.005:
                return strategy
    return None


def score_set(
    task: Task,
    y_true: np.ndarray,
    answers: Answers,
    groups: np.ndarray,
    label_names: Sequence[str],
    thresholds: np.ndarray | None,
    **more: Any,
) -> ScoreSet:
    """Scores of one way to decide rows, with their intervals; see `summary` and `Resamples`."""
    figures = summary(y_true, answers.y_pred, answers.y_score, label_names, thresholds)
    drawn = Resamples.draw(_judged_by(task), y_true, [answers], groups)
    return _score_set(task, figures, drawn, 0, **more)


def _judged_by(task: Task) -> list[Metric]:
    """Macro-F1, which is always told, and the task's metric."""
    return list(dict.fromkeys([Metric("macro_f1", None, task.metric.exclusive), task.metric]))


def _score_set(task: Task, figures: dict[str, Any], drawn: Resamples, i: int, **more: Any) -> ScoreSet:
    """The figures of `summary` with intervals of the i-th answers."""
    interval, judged = (drawn.interval(metric, i) for metric in (_judged_by(task)[0], task.metric))
    assert interval is not None  # macro-F1 is always defined
    return ScoreSet.model_validate(
        more
        | figures
        | task.more_scores(figures)
        | {
            "macro_f1_interval": asdict(interval),
            "metric": None if judged is None else judged.estimate,
            "metric_interval": None if judged is None else asdict(judged),
        }
    )


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
