"""Every way of blending runs, out of fold and on a test file that no run saw, against the best single run.

    python -m benchmarks.score_blend RUN... --labels test.csv [--noise]

`--noise` adds a run whose logits are drawn at random. The label file has the runs' test ids and label columns. The
single run that is best out of fold is the one that blends are compared with, on the test rows too. Prints Markdown.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd

from benchmarks.score_test import true_labels
from lora_cls.choices import BlendHow
from lora_cls.commands.blend import blend
from lora_cls.commands.tune import tune
from lora_cls.evaluation import Interval, bootstrap_difference, bootstrap_macro_f1
from lora_cls.files import write_array
from lora_cls.recipe import load_recipe
from lora_cls.report.sentences import blend_runs
from lora_cls.runs import Decision, FoldInfo, RunFolder
from lora_cls.runs.records import BlendInfo


def noise_run(like: RunFolder, out: Path) -> RunFolder:
    """A finished run on the rows of another, whose logits are drawn from a normal distribution."""
    recipe = load_recipe({"tfidf": {}, "task": like.recipe.task, "data": like.recipe.data.model_dump()})
    run = RunFolder.create_like(out, recipe, like.info.model_copy(update={"choices": {}, "backbone_path": None}), like)
    rng, n_labels = np.random.default_rng(0), len(like.label_names)
    for number in run.fold_numbers:
        folder, rows = run.fold(number), int((run.folds["fold"] == number).sum())
        folder.path.mkdir()
        write_array(folder.oof_logits, rng.normal(size=(rows, n_labels)).astype(np.float32))
        if run.test_ids is not None:
            write_array(folder.test_logits, rng.normal(size=(len(run.test_ids), n_labels)).astype(np.float32))
        seconds = {"train": 0.0, "predict": 0.0}
        weight = [1.0] * n_labels
        folder.write_info(FoldInfo(pos_weight=weight, train_rows=0, seconds=seconds, trainable_parameters=0))
    tune(run)
    return run


def decided(run: RunFolder, ids: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Decisions by the shipped thresholds, ndarray of shape (n_test, n_labels), int8.

    Every run's folds are combined by `mean_logit`, whatever a run was told, so that no gain comes from that.
    """
    decision, per_fold, test_ids = Decision.read(run.files.decision), run.test_scores(), run.test_ids
    assert per_fold is not None and test_ids is not None
    thresholds = np.array([decision.shipped[name] for name in run.label_names])
    prediction = decision.prediction.model_copy(update={"combine": "mean_logit"})
    y_pred = run.task(decision).together(per_fold, thresholds, prediction)[1]
    table = pd.DataFrame(y_pred, index=test_ids, columns=run.label_names)
    return table.loc[list(ids), list(names)].to_numpy(np.int8)


def score(paths: Sequence[Path], labels: Path, scratch: Path) -> list[str]:
    """Lines of Markdown: a table of ways, and what each run adds to the mean of logits."""
    runs = [RunFolder(path) for path in paths]
    ids = runs[0].test_ids
    assert ids is not None
    y_test, groups = true_labels(runs[0], labels), np.arange(len(ids))
    about: dict[str, BlendInfo] = {}
    lines: list[str] = []
    for how in get_args(BlendHow):
        run = blend(paths, scratch / how, how)
        about[how] = BlendInfo.read(run.files.blend)
        names = [row.name for row in about[how].runs]
        best = runs[names.index(about[how].best_single)]
        alone, y_pred = (decided(one, ids, runs[0].label_names) for one in (best, run))
        if not lines:
            own = best.results().scores.cross_fitted.macro_f1_interval
            lines = [
                "| way | cross-fitted macro-F1 | gain over the best single run | test macro-F1 | gain on test rows |",
                "|---|---|---|---|---|",
                f"| best single: {about[how].best_single} | {_cell(own)} | | "
                f"{_cell(bootstrap_macro_f1(y_test, alone, groups))} | |",
            ]
        way = next(way for way in about[how].ways if way.how == how)
        lines.append(
            f"| {how} | {_cell(way.macro_f1_interval)} | {_gain(way.gain_over_best)} | "
            f"{_cell(bootstrap_macro_f1(y_test, y_pred, groups))} | "
            f"{_gain(bootstrap_difference(y_test, y_pred, alone, groups))} |"
        )
    header, rows = blend_runs(about["mean_logit"])
    lines += ["", f"| {' | '.join(header)} |", "|---|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows), ""]
    return lines


def _cell(interval: Interval) -> str:
    return f"{interval.estimate:.4f} [{interval.low:.4f}, {interval.high:.4f}]"


def _gain(interval: Interval) -> str:
    mark = "" if interval.low > 0 else " (worse)" if interval.high < 0 else " (no gain shown)"
    return f"{interval.estimate:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]{mark}"


def main() -> None:
    """Parse, blend in every way, print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--labels", required=True, type=Path)
    parser.add_argument("--noise", action="store_true", help="add a run of random logits")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        paths = list(given.runs)
        if given.noise:
            paths.append(noise_run(RunFolder(paths[0]), Path(scratch) / "noise").path)
        print("\n".join(score(paths, given.labels, Path(scratch))))


if __name__ == "__main__":
    main()
