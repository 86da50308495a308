"""`benchmarks.rare_labels` states what `tune` would, and changes no run."""

import re

import numpy as np
import pandas as pd
import pytest

from benchmarks.rare_labels import STRATEGIES, bands_of, table
from lora_cls.commands.blend import blend
from lora_cls.commands.tune import tune
from lora_cls.evaluation import tune_thresholds
from lora_cls.recipe import Thresholds
from lora_cls.runs import RunFolder


def test_scores_are_those_of_tune(make_run, problem, tmp_path):
    """The cells of all labels, rounded, for every strategy; test rows by the thresholds of all rows."""
    y_true, fold, logits = problem(240)
    test = np.random.default_rng(1).normal(size=(3, 40, 2))
    run = make_run("a", logits(1.5), y_true, fold, test=test)
    place = np.arange(40)
    truth = pd.DataFrame({"id": [f"t{i}" for i in place], "anger": place % 2, "joy": place % 3 // 2})
    truth.to_csv(tmp_path / "labels.csv", index=False)
    before = (run.path / "metrics.json").read_bytes()
    lines = table(run, tmp_path / "labels.csv", (80,))
    assert (run.path / "metrics.json").read_bytes() == before
    assert "< 80 (1 labels)" in lines[0] and ">= 80 (1 labels)" in lines[0]
    for strategy, line in zip(STRATEGIES, lines[2:], strict=False):
        scores = tune(run, Thresholds(strategy=strategy, min_positives=1))
        cells = re.split(r" \| | / ", line.strip("| "))
        assert (cells[0], cells[-2]) == (strategy, f"{scores.cross_fitted.macro_f1:.3f}")
    assert len(table(RunFolder(run.path), None)[-1].split("test")) == 1


def test_bands_and_tasks(make_run, problem):
    """Every label is in one band; classes are refused."""
    positives = np.array([0, 19, 20, 99, 100, 5000])
    bands = bands_of(positives, (20, 100))
    assert {name: inside.sum() for name, inside in bands.items()} == {"< 20": 2, "20 to 99": 2, ">= 100": 2, "all": 6}
    y_true, fold, logits = problem(60)
    one_of = np.stack([y_true[:, 0], 1 - y_true[:, 0]], axis=1)
    run = make_run("classes", logits(1), one_of, fold, recipe={"task": "single_label"})
    with pytest.raises(SystemExit, match="single_label"):
        table(run, None)


@pytest.mark.parametrize("how", ["stacking", "rank_mean"])
@pytest.mark.parametrize("strategy", ["expected_f1", "auto"])
def test_blended_scores_are_what_is_calibrated(make_run, problem, tmp_path, how, strategy):
    """A blend of runs decided so is decided so itself, by cuts for its own scores, of which ranks are some."""
    y_true, fold, logits = problem(240)
    recipe = {"thresholds": {"strategy": strategy}}
    runs = [make_run(name, logits(1.5), y_true, fold, recipe=recipe) for name in ("a", "b")]
    both = blend(runs, tmp_path / "both", how)
    rows, decision = both.out_of_fold(), both.decision()
    assert decision.settings.strategy == strategy
    expected = tune_thresholds(rows.y_true, rows.y_score, strategy=strategy)
    assert list(decision.shipped.values()) == expected.tolist()
    assert both.scores.cross_fitted.macro_f1 > runs[0].scores.cross_fitted.macro_f1 - 0.02
