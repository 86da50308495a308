"""Several runs on the same rows and folds, side by side."""

from __future__ import annotations

from dataclasses import dataclass

from lora_cls.evaluation.intervals import Interval

NOTE = (
    "Macro-F1 out of fold, thresholds tuned on the other folds (of a single fold, on its other parts); 95 % intervals "
    "from resampling groups of identical texts, the same draws for both runs of a difference, with the trained models "
    "held fixed: they leave out the variance of training. The best of several is chosen on these very rows, so that "
    "its own score flatters, and every interval of a difference is for that one comparison alone: among many, some "
    "exclude zero by chance."
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
    score : cross-fitted macro-F1
    untuned : macro-F1 at logit > 0 (of classes: the greatest logit); None for a blend, whose logits are made of
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
