"""What ways to set thresholds are worth for rare labels and for common ones, out of fold and on a test file.

    python -m benchmarks.rare_labels RUN... --labels test.csv [--bands 20 100]

The label file has the runs' test ids and label columns; without it only out-of-fold scores are shown. Prints a Markdown
table per run: macro-F1 over the labels with fewer positive training rows than the first band, from it to the next, and
so on, and over all of them, for every strategy; cross-fitted / on the test rows. The last line of a run is the paired
difference of `auto` from `per_label` over all labels, with its bootstrap interval (models held fixed). No model is
loaded and no run is changed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.score_test import true_labels
from lora_cls.choices import LabelStrategy
from lora_cls.evaluation import Interval, bootstrap_difference, f1_scores
from lora_cls.runs import RunFolder

STRATEGIES: tuple[LabelStrategy, ...] = ("prevalence", "per_label", "expected_f1", "auto")


@dataclass
class Decided:
    """Decisions by one strategy: out of fold, and on the test rows where their labels are known."""

    oof: np.ndarray
    test: np.ndarray | None


def decide(run: RunFolder, strategy: LabelStrategy, *, on_test: bool) -> Decided:
    """What the run would decide by that strategy, its other settings kept."""
    decision, rows = run.decision(), run.out_of_fold()
    settings = decision.settings.model_copy(update={"strategy": strategy})
    task = run.task(decision.model_copy(update={"settings": settings}))
    test = None
    if on_test:
        per_fold = run.test_scores()
        if per_fold is None:
            raise SystemExit(f"{run.path}: no test rows were predicted; leave out --labels, or run with --test.")
        test = task.together(per_fold, task.tune(rows.y_true, rows.y_score), decision.prediction)[1]
    return Decided(rows.cross_fit(task, decision.prediction.at_least_one).y_pred, test)


def bands_of(positives: np.ndarray, limits: Sequence[int]) -> dict[str, np.ndarray]:
    """Which labels are in each band, by what it is called; bands without labels are left out."""
    edges = [0, *limits, np.inf]
    bands = {}
    for low, high in pairwise(edges):
        name = f"< {high:.0f}" if low == 0 else f"{low:.0f} to {high - 1:.0f}" if high < np.inf else f">= {low:.0f}"
        bands[name] = (positives >= low) & (positives < high)
    return {name: inside for name, inside in bands.items() if inside.any()} | {"all": np.full(len(positives), True)}


def table(run: RunFolder, labels: Path | None, limits: Sequence[int] = (20, 100)) -> list[str]:
    """Lines of the run's table."""
    task = run.task()
    if task.exclusive:
        raise SystemExit(f"{run.path}: its task is {task.name}: only labels decided one by one have thresholds.")
    rows = run.out_of_fold()
    bands = bands_of(rows.y_true.sum(axis=0), limits)
    y_test = None if labels is None else true_labels(run, labels)
    names = [f"{name} ({inside.sum()} labels)" for name, inside in bands.items()]
    lines = [
        f"| {run.path.name} | " + " | ".join(names) + " |",
        "|---" * (len(bands) + 1) + "|",
    ]
    decided = {strategy: decide(run, strategy, on_test=labels is not None) for strategy in STRATEGIES}
    for strategy, of in decided.items():
        scores = [f1_scores(rows.y_true, of.oof)]
        if y_test is not None and of.test is not None:
            scores.append(f1_scores(y_test, of.test))
        cells = [" / ".join(f"{f1[inside].mean():.3f}" for f1 in scores) for inside in bands.values()]
        lines.append(f"| {strategy} | " + " | ".join(cells) + " |")
    auto, tuned = decided["auto"], decided["per_label"]
    said = [f"out of fold {_cell(bootstrap_difference(rows.y_true, auto.oof, tuned.oof, rows.groups))}"]
    if y_test is not None and auto.test is not None and tuned.test is not None:
        difference = bootstrap_difference(y_test, auto.test, tuned.test, np.arange(len(y_test)))
        said.append(f"on the test rows {_cell(difference)}")
    return [*lines, "", f"auto minus per_label, all labels: {', '.join(said)}"]


def _cell(interval: Interval) -> str:
    return f"{interval.estimate:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"


def main() -> None:
    """Parse, print a table per run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--labels", type=Path, help="a labelled table of the runs' test rows")
    parser.add_argument("--bands", nargs="+", type=int, default=[20, 100], help="positives at which a band begins")
    given = parser.parse_args()
    for path in given.runs:
        print("\n".join(table(RunFolder(path), given.labels, sorted(given.bands))), end="\n\n")


if __name__ == "__main__":
    main()
