"""How well the cross-fitted score foretells the score on a test file, for each way of combining the folds.

    python -m benchmarks.score_test RUN... --labels test.csv [--way mean_logit]

The label file has the run's test ids and its label columns; it was never seen by the run. Prints a Markdown table: the
cross-fitted macro-F1, the test macro-F1 under each way of combining, their difference with its bootstrap interval
(two independent sets of rows, models held fixed), minutes and peak memory.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lora_cls.choices import Combination
from lora_cls.data import read_table
from lora_cls.data.names import as_binary_labels, label_matrix
from lora_cls.evaluation import Interval, Task, bootstrap_macro_f1, bootstrap_unpaired_difference, macro_f1
from lora_cls.recipe import Prediction
from lora_cls.runs import OutOfFold, RunFolder

WAYS = ("mean_proba", "mean_logit", "vote", "each fold alone")


@dataclass
class Decided:
    """What a run decides: `y_pred` out of fold, as its own score has it; and on the test rows.

    `y_test` and `per_fold` (n_folds, n_test, n_labels) hold the test rows.
    """

    oof: OutOfFold
    y_pred: np.ndarray
    y_test: np.ndarray
    per_fold: np.ndarray
    thresholds: np.ndarray
    task: Task

    @property
    def untuned(self) -> np.ndarray:
        """Out-of-fold decisions without tuning."""
        return self.task.untuned(self.oof.logits)

    def on_test(self, way: Combination) -> np.ndarray:
        """Decisions on the test rows by all folds together, array of shape (n_test, n_labels)."""
        return self.task.together(self.per_fold, self.thresholds, Prediction(combine=way))[1]


def true_labels(run: RunFolder, labels: Path) -> np.ndarray:
    """Labels of a run's test rows as a file has them, ndarray of shape (n_test, n_labels), int8."""
    names = run.label_names
    table = read_table(labels).set_index(run.info.data.test_id_column or "id").loc[run.test_ids]
    columns, classes = (names, None) if run.label_column is None else ([run.label_column], names)
    y_test = as_binary_labels(label_matrix(table, columns, classes, run.recipe.data))
    if (y_test < 0).any():
        raise SystemExit(f"{labels}: labels that are missing or that the run does not know.")
    return y_test


def decide(run: RunFolder, labels: Path) -> Decided:
    """All decisions of a run; `labels` holds the truth of its test rows."""
    results = run.results()
    task, per_fold = run.task(results.decision), run.test_scores()
    assert per_fold is not None
    thresholds = np.array([results.decision.shipped[name] for name in run.label_names])
    y_pred = results.oof.decide(task, results.decision)
    return Decided(results.oof, y_pred, true_labels(run, labels), per_fold, thresholds, task)


def score(run: RunFolder, labels: Path, ways: Sequence[str] = WAYS) -> list[str]:
    """Rows of the table for one run."""
    of = decide(run, labels)
    own = bootstrap_macro_f1(of.oof.y_true, of.y_pred, of.oof.groups)
    info = run.info
    minutes = sum(info.seconds.values()) / 60
    memory = (info.peak_memory_bytes or 0) / 2**30
    lines = []
    for way in ways:
        if way == "each fold alone":
            # What the cross-fitted score describes: one fold's model; averaged here over the folds.
            scores = [macro_f1(of.y_test, of.task.apply(alone, of.thresholds)) for alone in of.per_fold]
            test, gap = f"{np.mean(scores):.4f} (sd {np.std(scores):.4f})", f"{np.mean(scores) - own.estimate:+.4f}"
        else:
            y_pred, test_groups = of.on_test(way), np.arange(len(of.y_test))
            test = _cell(bootstrap_macro_f1(of.y_test, y_pred, test_groups))
            gap = _cell(
                bootstrap_unpaired_difference(of.y_test, y_pred, test_groups, of.oof.y_true, of.y_pred, of.oof.groups),
                "+",
            )
        start = f"| {run.path.name} ({len(run.finished_folds)} folds) | {_cell(own)}"
        lines.append(f"{start} | {way} | {test} | {gap} | {minutes:.1f} | {memory:.2f} |")
    if run.recipe.train.select == "scored_fold":
        lines = [line.replace(f"| {run.path.name} (", f"| {run.path.name} OPTIMISTIC (") for line in lines]
    return lines


def _cell(interval: Interval, sign: str = "") -> str:
    return f"{interval.estimate:{sign}.4f} [{interval.low:{sign}.4f}, {interval.high:{sign}.4f}]"


def main() -> None:
    """Parse, score every run, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--labels", required=True, type=Path)
    parser.add_argument("--way", choices=WAYS, action="append", help="only this way of combining; may be repeated")
    given = parser.parse_args()
    print("| run | cross-fitted macro-F1 | folds combined by | test macro-F1 | test minus cross-fitted | min | GiB |")
    print("|---|---|---|---|---|---|---|")
    for path in given.runs:
        print("\n".join(score(RunFolder(path), given.labels, given.way or WAYS)))


if __name__ == "__main__":
    main()
