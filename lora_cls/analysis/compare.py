"""Several runs on the same rows and folds, side by side: scores, paired differences, and what each one cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from lora_cls.analysis.align import AlignedRun, align
from lora_cls.evaluation import Interval, bootstrap_difference, bootstrap_macro_f1, f1_scores, macro_f1
from lora_cls.recipe import Recipe
from lora_cls.runs import RunFolder, read_json

NOTE = (
    "Macro-F1 out of fold, thresholds tuned on the other folds (of a single fold, on its other parts); 95 % intervals "
    "from resampling groups of identical texts, the same draws for both runs of a difference, with the trained models "
    "held fixed: they leave out the variance of training. The best of several is chosen on these very rows, so that "
    "its own score flatters, and every interval of a difference is for that one comparison alone: among many, some "
    "exclude zero by chance."
)
COST_NOTE = (
    "Minutes, memory and speed are those of the machine and the moment of each run. Training is of all folds together; "
    "1,000 texts are predicted by the model of one fold, all folds together take as many times longer."
)


@dataclass(frozen=True)
class Compared:
    """One run in a comparison.

    Attributes
    ----------
    name, recipe : the folder's name; backbone and method in a few words
    seed : `train.seed`
    score : cross-fitted macro-F1
    untuned : macro-F1 at logit > 0 (of classes: the greatest logit)
    difference : score minus the best run's, paired; None for the best
    f1 : F1 of each label, cross-fitted
    cost : train_minutes, train_rows_per_second, seconds_per_1000_texts, peak_memory_gib, trainable_parameters;
        None where the run did not record it
    optimistic : its epochs were chosen on the rows that are scored
    """

    name: str
    recipe: str
    seed: int
    score: Interval
    untuned: float
    difference: Interval | None
    f1: list[float]
    cost: dict[str, float | None]
    optimistic: bool


@dataclass(frozen=True)
class Seeds:
    """Runs that differ in `train.seed` only: mean, standard deviation, least and greatest score."""

    names: list[str]
    mean: float
    sd: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Runs from the best score to the least, on `n_rows` rows in `n_folds` folds.

    Decisions are cross-fitted over `n_parts` of `over`: the folds, or parts of a single one.
    """

    label_names: list[str]
    n_rows: int
    n_folds: int
    over: str
    n_parts: int
    runs: list[Compared]
    seeds: list[Seeds]

    def winners(self, label: int) -> list[str]:
        """Names of the runs with the greatest F1 of a label."""
        top = max(run.f1[label] for run in self.runs)
        return [run.name for run in self.runs if run.f1[label] == top]


def compare(paths: Sequence[str | Path]) -> Comparison:
    """Score finished runs on their common rows.

    Parameters
    ----------
    paths : two run folders or more, on the same rows, labels and folds

    Raises
    ------
    RunError
        If rows, labels, folds or tasks differ, or folds are unfinished; names every difference.
    """
    rows, members = align(paths)
    y_pred = [member.cross_fitted(rows) for member in members]
    scores = [bootstrap_macro_f1(rows.y_true, decided, rows.groups) for decided in y_pred]
    order = sorted(range(len(members)), key=lambda i: -scores[i].estimate)
    best = order[0]
    runs = [
        Compared(
            name=members[i].name,
            recipe=describe(members[i].run.recipe),
            seed=members[i].run.recipe.train.seed,
            score=scores[i],
            untuned=macro_f1(rows.y_true, members[i].decisions.untuned(members[i].logits)),
            difference=(None if i == best else bootstrap_difference(rows.y_true, y_pred[i], y_pred[best], rows.groups)),
            f1=f1_scores(rows.y_true, y_pred[i]).tolist(),
            cost=_cost(members[i].run),
            optimistic=members[i].run.recipe.train.select == "scored_fold",
        )
        for i in order
    ]
    seeds = _seeds([members[i] for i in order], [scores[i].estimate for i in order])
    return Comparison(
        label_names=rows.label_names,
        n_rows=len(rows.ids),
        n_folds=len(np.unique(rows.fold)),
        over=rows.over,
        n_parts=len(np.unique(rows.part)),
        runs=runs,
        seeds=seeds,
    )


def describe(recipe: Recipe) -> str:
    """A recipe in a few words: base and method."""
    if recipe.blend is not None:
        return f"blend of {len(recipe.blend.runs)}, {recipe.blend.how}"
    if recipe.backbone is None:
        return "TF-IDF, logistic regression"
    quantization = recipe.quantization
    if recipe.lora is None:
        method = "full"
    elif quantization is None:
        method = f"LoRA r={recipe.lora.r}"
    else:
        method = f"QLoRA {'8-bit' if quantization.load_in_8bit else '4-bit'} r={recipe.lora.r}"
    kind = "" if recipe.head.kind == "linear" else f", {recipe.head.kind}"
    return f"{recipe.backbone.name_or_path}, {method}{kind}"


def _cost(run: RunFolder) -> dict[str, float | None]:
    info, folds = run.info, [read_json(run.fold(number).info) for number in run.finished_folds]
    seconds = {phase: sum(fold["seconds"][phase] for fold in folds) for phase in ("train", "predict")}
    # A blend's rows are each trained on by several models: no one speed. Rows count once per epoch.
    rows = (
        None if run.recipe.blend else sum(fold.get("processed", {}).get("rows", fold["train_rows"]) for fold in folds)
    )
    if rows is not None and "pieces_per_row" in info:
        rows /= info["pieces_per_row"]
    held_out = int((run.folds["fold"] >= 0).sum())
    predicted = held_out + len(folds) * len(run.test_ids or ())
    memory, trained = info.get("peak_memory_bytes"), folds[0].get("trainable_parameters")
    return {
        "train_minutes": seconds["train"] / 60,
        "train_rows_per_second": None if rows is None else rows / max(seconds["train"], 1e-9),
        "seconds_per_1000_texts": 1000 * seconds["predict"] / predicted,
        "peak_memory_gib": memory / 2**30 if memory else None,
        "trainable_parameters": trained,
    }


def _seeds(members: Sequence[AlignedRun], scores: Sequence[float]) -> list[Seeds]:
    groups: dict[str, list[int]] = {}
    for i, member in enumerate(members):
        identity: dict[str, Any] = member.run.recipe.identity()
        identity["train"].pop("seed")
        identity["cv"] = None  # the folds are the same, however they were made
        groups.setdefault(json.dumps(identity, sort_keys=True), []).append(i)
    return [
        Seeds(
            names=[members[i].name for i in group],
            mean=mean(scores[i] for i in group),
            sd=stdev(scores[i] for i in group),
            low=min(scores[i] for i in group),
            high=max(scores[i] for i in group),
        )
        for group in groups.values()
        if len(group) > 1
    ]
