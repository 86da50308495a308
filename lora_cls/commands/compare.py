"""Several runs on the same rows and folds, side by side: scores, paired differences, and what each one cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from lora_cls.errors import RunError
from lora_cls.evaluation import Answers, Interval, bootstrap_metric, bootstrap_metric_difference, f1_scores
from lora_cls.evaluation.comparison import Compared, Comparison, Seeds
from lora_cls.report.sentences import describe
from lora_cls.runs import AlignedRun, RunFolder, align


def compare(paths: Sequence[str | Path | RunFolder]) -> Comparison:
    """Score finished runs on their common rows, by the metric that the first was last tuned for.

    Parameters
    ----------
    paths : two run folders or more, on the same rows, labels and folds

    Raises
    ------
    RunError
        If rows, labels, folds or tasks differ, or folds are finished that others lack; names every difference. If the
        metric is undefined on these rows.

    Examples
    --------
    The best run comes first; the others have a paired difference from it.

    >>> best, other = compare(["runs/lora", "runs/tfidf"]).runs
    >>> best.name, other.name, best.difference
    ('tfidf', 'lora', None)
    >>> other.difference.estimate < 0
    True
    """
    members = align(paths)
    rows, y_pred, metric = members[0].oof, [member.y_pred for member in members], members[0].task.metric
    answers = [Answers(member.y_pred, member.oof.y_score) for member in members]
    scores: list[Interval] = []
    for one in answers:
        score = bootstrap_metric(metric, rows.y_true, one, rows.groups)
        if score is None:
            raise RunError(f"{metric.title} is undefined: no label has both positives and negatives in these rows.")
        scores.append(score)
    order = sorted(range(len(members)), key=lambda i: scores[i].estimate * (1 if metric.less_is_better else -1))
    best = order[0]
    runs = [
        Compared(
            name=members[i].name,
            recipe=describe(members[i].run.recipe),
            seed=members[i].run.recipe.train.seed,
            score=scores[i],
            untuned=(
                None  # a blend's logits are of corrected probabilities: another quantity
                if members[i].run.recipe.blend
                else metric.score(rows.y_true, members[i].task.untuned(members[i].oof.logits), members[i].oof.y_score)
            ),
            difference=(
                None
                if i == best
                else bootstrap_metric_difference(metric, rows.y_true, answers[i], answers[best], rows.groups)
            ),
            f1=f1_scores(rows.y_true, y_pred[i]).tolist(),
            cost=_cost(members[i].run),
            optimistic=members[i].run.recipe.train.select == "scored_fold",
        )
        for i in order
    ]
    seeds = _seeds([members[i] for i in order], [scores[i].estimate for i in order])
    return Comparison(
        label_names=rows.label_names,
        n_rows=len(rows),
        n_folds=len(np.unique(rows.fold)),
        over=rows.over,
        n_parts=len(np.unique(rows.part)),
        runs=runs,
        seeds=seeds,
        metric=metric,
    )


def _cost(run: RunFolder) -> dict[str, float | None]:
    info, folds = run.info, [run.fold(number).info for number in run.finished_folds]
    seconds = {phase: sum(fold.seconds[phase] for fold in folds) for phase in ("train", "predict")}
    rows: float | None = None
    if not run.recipe.blend:  # a blend's rows are each trained on by several models: no one speed
        rows = sum(fold.processed.rows if fold.processed else fold.train_rows or 0 for fold in folds)  # of all epochs
        rows /= info.pieces_per_row or 1
    held_out = int((run.folds["fold"] >= 0).sum())
    predicted = held_out + len(folds) * len(run.test_ids or ())
    memory = info.peak_memory_bytes
    return {
        "train_minutes": seconds["train"] / 60,
        "train_rows_per_second": None if rows is None else rows / max(seconds["train"], 1e-9),
        "seconds_per_1000_texts": 1000 * seconds["predict"] / predicted,
        "peak_memory_gib": memory / 2**30 if memory else None,
        "trainable_parameters": folds[0].trainable_parameters,
    }


def _seeds(members: Sequence[AlignedRun], scores: Sequence[float]) -> list[Seeds]:
    """Runs that differ in `train.seed` and in nothing else: one of each seed, where there are two seeds or more."""
    groups: dict[str, dict[int, int]] = {}
    for i, member in enumerate(members):
        recipe, info = member.run.recipe, member.run.info
        identity: dict[str, Any] = recipe.identity()
        seed = identity["train"].pop("seed")
        identity["cv"] = None  # the folds are the same, however they were made
        # as decided now: a run may have been tuned anew
        identity["thresholds"] = member.task.settings.model_dump(mode="json")
        identity["metric"], identity["metric_beta"] = member.decision.metric, member.decision.metric_beta
        identity["prediction"] = member.at_least_one
        identity["rows"] = [info.data.train_sha256, info.data.extra_train_sha256, info.data.unlabelled_sha256]
        identity["start"] = info.choices.get("start_from")
        identity["teachers"] = info.choices.get("teachers")
        groups.setdefault(json.dumps(identity, sort_keys=True), {}).setdefault(seed, i)
    return [
        Seeds(
            names=[members[i].name for i in group],
            mean=mean(scores[i] for i in group),
            sd=stdev(scores[i] for i in group),
            low=min(scores[i] for i in group),
            high=max(scores[i] for i in group),
        )
        for group in (list(by_seed.values()) for by_seed in groups.values())
        if len(group) > 1
    ]
