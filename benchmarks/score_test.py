"""How well the cross-fitted score foretells the score on a test file, for each way of combining the folds.

    python -m benchmarks.score_test RUN... --labels test.csv [--way mean_logit]

The label file has the run's test ids and its label columns; it was never seen by the run. Prints a Markdown table: the
cross-fitted macro-F1, the test macro-F1 under each way of combining, their difference with its bootstrap interval
(two independent sets of rows, models held fixed), minutes and peak memory.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from lora_cls.data import read_table
from lora_cls.data.names import name_matrix, split_names
from lora_cls.evaluation import Interval, bootstrap_macro_f1, bootstrap_unpaired_difference, macro_f1
from lora_cls.evaluation.decisions import Decisions
from lora_cls.recipe import Prediction, Thresholds
from lora_cls.runs import RunFolder

WAYS = ("mean_proba", "mean_logit", "vote", "each fold alone")


@dataclass
class Decided:
    """What a run decides: `fitted` by cross-fitted thresholds and `untuned` by none, out of fold; and on the test rows.

    `y_test` and `probabilities` (n_folds, n_test, n_labels) hold the test rows; all others (n_samples, n_labels).
    """

    y_true: np.ndarray
    groups: np.ndarray
    fitted: np.ndarray
    untuned: np.ndarray
    y_test: np.ndarray
    probabilities: np.ndarray
    thresholds: np.ndarray
    decisions: Decisions

    def on_test(self, way: Literal["mean_proba", "mean_logit", "vote"]) -> np.ndarray:
        """Decisions on the test rows by all folds together, array of shape (n_test, n_labels)."""
        return self.decisions.together(self.probabilities, self.thresholds, Prediction(combine=way))[1]


def decide(run: RunFolder, labels: Path) -> Decided:
    """All decisions of a run; `labels` holds the truth of its test rows."""
    names = run.label_names
    table = read_table(labels).set_index(run.info.data.test_id_column or "id").loc[run.test_ids]
    column, delimiter = run.label_column, run.recipe.data.label_delimiter
    if column is None:
        y_test = table[names].astype(float).to_numpy(np.int8)
    else:
        y_test = np.maximum(name_matrix(split_names(table[column], delimiter), names), 0)  # an empty cell is no label
    oof = run.out_of_fold()
    rows, y_score = oof.rows, oof.y_score
    fold, weights = run.folds["fold"].to_numpy()[rows], run.pos_weights()
    y_true, groups = run.y_true[rows], run.folds["group"].to_numpy()[rows]
    decisions = run.decisions(Thresholds(**json.loads((run.path / "thresholds.json").read_text())["settings"]))
    untuned = decisions.untuned(run.out_of_fold().logits)
    test_logits = run.test_logits()
    assert test_logits is not None
    return Decided(
        y_true, groups, decisions.cross_fit(y_true, y_score, fold).y_pred, untuned, y_test,
        decisions.probabilities(test_logits, weights[:, None, :]), decisions.tune(y_true, y_score), decisions,
    )  # fmt: skip


def score(run: RunFolder, labels: Path, ways: Sequence[str] = WAYS) -> list[str]:
    """Rows of the table for one run."""
    of = decide(run, labels)
    own = bootstrap_macro_f1(of.y_true, of.fitted, of.groups)
    info = run.info
    minutes = sum(info["seconds"].values()) / 60
    memory = info["peak_memory_bytes"] / 2**30
    lines = []
    for way in ways:
        if way == "each fold alone":
            # What the cross-fitted score describes: one fold's model; averaged here over the folds.
            scores = [macro_f1(of.y_test, of.decisions.apply(alone, of.thresholds)) for alone in of.probabilities]
            test, gap = f"{np.mean(scores):.4f} (sd {np.std(scores):.4f})", f"{np.mean(scores) - own.estimate:+.4f}"
        else:
            y_pred, test_groups = of.on_test(way), np.arange(len(of.y_test))
            test = _cell(bootstrap_macro_f1(of.y_test, y_pred, test_groups))
            gap = _cell(
                bootstrap_unpaired_difference(of.y_test, y_pred, test_groups, of.y_true, of.fitted, of.groups), "+"
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
