"""Several runs on the same rows and folds, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd

from lora_cls.evaluation.intervals import Interval
from lora_cls.evaluation.metric import MACRO_F1, Metric

TUNED = "thresholds tuned on the other folds (of a single fold, on its other parts)"
NOTE = (
    f"out of fold, {TUNED}; 95 % intervals from resampling groups of identical texts, the same draws for both runs of "
    "a difference, with the trained models held fixed: they leave out the variance of training. The best of several is "
    "chosen on these very rows, so that its own score flatters, and every interval of a difference is for that one "
    "comparison alone: among many, some exclude zero by chance."
)
COST_NOTE = (
    "Minutes, memory (of the whole process) and speed are those of the machine and the moment of each run. Training is "
    "of all folds together; 1,000 texts are predicted by the model of one fold, all folds together take as many times "
    "longer."
)


@dataclass(frozen=True)
class Compared:
    """One run in a comparison.

    Attributes
    ----------
    name, recipe : the folder's name; backbone and method in a few words
    seed : `train.seed`
    score : the metric, cross-fitted
    untuned : the metric at logit > 0 (of classes: the greatest logit); None for a blend, whose logits are made of
        corrected probabilities
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
    untuned: float | None
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


@dataclass(frozen=True, repr=False)
class Comparison:
    """Runs from the best score to the worst by `metric` (the first run's), on `n_rows` rows in `n_folds` folds.

    Decisions are cross-fitted over `n_parts` of `over`: the folds, or parts of a single one.
    """

    label_names: list[str]
    n_rows: int
    n_folds: int
    over: str
    n_parts: int
    runs: list[Compared]
    seeds: list[Seeds]
    metric: Metric = MACRO_F1

    @property
    def note(self) -> str:
        """What the figures are of, and what they leave out."""
        title = self.metric.title
        less = (
            " (less is better; differences are turned, so that below 0 is worse)" if self.metric.less_is_better else ""
        )
        note = NOTE.replace(f", {TUNED}", "") if self.metric.of_scores else NOTE
        return f"{title[:1].upper()}{title[1:]}{less} {note}"

    def table(self) -> pd.DataFrame:
        """A row per run, numbers in full; `minus_best` is the paired difference from the first."""
        rows = []
        for run in self.runs:
            row: dict[str, Any] = {"run": run.name, "recipe": run.recipe, "seed": run.seed}
            row |= {"optimistic": run.optimistic, self.metric.name: run.score.estimate}
            row |= {"low": run.score.low, "high": run.score.high, "untuned": run.untuned}
            gap = run.difference
            row |= {
                "minus_best": gap.estimate if gap else 0.0,
                "minus_best_low": gap.low if gap else None,
                "minus_best_high": gap.high if gap else None,
            }
            rows.append(row | run.cost | {f"f1_{label}": run.f1[j] for j, label in enumerate(self.label_names)})
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        runs = ", ".join(f"{run.name} {run.score.estimate:.4f}" for run in self.runs)
        return f"Comparison({self._where}, {self.metric.title}: {runs})"

    def _repr_html_(self) -> str:
        """For notebooks: scores with their intervals and differences, and F1 of each label."""
        table = self.table().set_index("run").rename_axis(None)
        scores = table[[self.metric.name, "low", "high", "untuned", "minus_best", "minus_best_low", "minus_best_high"]]
        labels = table[[f"f1_{label}" for label in self.label_names]].set_axis(self.label_names, axis=1).T
        shown = [
            part.to_html(float_format="{:.4f}".format, na_rep="")
            for part in (scores.assign(train_minutes=table["train_minutes"]), labels)
        ]
        return f"<p><b>{escape(self._where)}</b></p>{shown[0]}<p>F1 of each label</p>{shown[1]}"

    @property
    def _where(self) -> str:
        return f"{len(self.runs)} runs, {self.n_rows} rows, {self.n_folds} fold{'s' * (self.n_folds > 1)}"

    def winners(self, label: int) -> list[str]:
        """Names of the runs with the greatest F1 of a label."""
        top = max(run.f1[label] for run in self.runs)
        return [run.name for run in self.runs if run.f1[label] == top]
