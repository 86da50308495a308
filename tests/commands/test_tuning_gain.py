"""Tuned minus untuned, paired: in metrics.json, and in the sentence that terminal, card and page share."""

import json

import numpy as np
import pytest

from lora_cls.commands.tune import tune
from lora_cls.evaluation import Interval, bootstrap_difference, task_of, tune_thresholds
from lora_cls.evaluation.probabilities import corrected_probabilities
from lora_cls.recipe import Thresholds
from lora_cls.report.sentences import score_sentence, tuning_sentence


def test_gain_is_paired(make_run, problem):
    """The interval is that of the run's decisions minus logit > 0, and stands on terminal, card and page."""
    y_true, fold, logits = problem(120)
    run = make_run("run", logits(1) - 1, y_true, fold)
    scores, oof = run.results().scores, run.out_of_fold()
    decided = run.task().cross_fit(oof.y_true, oof.y_score, oof.fold).y_pred
    expected = bootstrap_difference(y_true, decided, (oof.logits > 0).astype(int), np.arange(120))
    assert scores.tuning_gain == expected
    assert scores.tuning_gain.estimate == pytest.approx(scores.cross_fitted.macro_f1 - scores.untuned.macro_f1)
    assert json.loads((run.path / "metrics.json").read_text())["tuning_gain"] == vars(expected)
    sentence = f"Tuning gains {expected.estimate:+.4f} over untuned"
    assert sentence in score_sentence(scores)
    assert sentence in (run.path / "README.md").read_text()
    assert sentence.replace("+", "&#43;") in (run.path / "report.html").read_text().replace("+", "&#43;")


def test_the_advice_decides_as_untuned(make_run, problem):
    """What is advised where tuning gains nothing: with positive weights of negatives / positives it is logit > 0."""
    y_true, fold, logits = problem(120)
    raw, decide = logits(1) - 1, task_of("multi_label", Thresholds(strategy="prevalence"))
    y_score = np.empty_like(raw)
    for k in np.unique(fold):
        others = y_true[fold != k]
        y_score[fold == k] = corrected_probabilities(raw[fold == k], (1 - others).sum(0) / others.sum(0))
    assert np.array_equal(decide.cross_fit(y_true, y_score, fold).y_pred, raw > 0)
    run = make_run("run", np.where(y_true, 1, -1) + 0.1 * raw, y_true, fold)  # untuned is right everywhere
    assert tune(run).untuned_strategy == "fixed"  # no weights: logit > 0 is a probability of 0.5
    assert "--strategy fixed decides without tuning" in score_sentence(tune(run))
    scores = tune(run, Thresholds(strategy="prevalence"))
    assert scores.tuning_gain is None
    assert "share of positives in the other rows" in score_sentence(scores)
    assert tune_thresholds([[1, 0], [1, 0]], [[0.2, 0.1], [0.3, 0.4]], strategy="prevalence").tolist() == [0.5, 0.5]


def test_nothing_is_said_where_nothing_is_tuned(make_run, problem):
    """Fixed thresholds gain nothing from rows."""
    y_true, fold, logits = problem(60)
    scores = tune(make_run("run", logits(1), y_true, fold), Thresholds(strategy="fixed"))
    assert scores.tuning_gain is None
    assert "Tuning" not in score_sentence(scores)


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ((0.01, 0.03), None),
        ((-0.02, 0.01), "these rows show no gain"),
        ((-0.03, -0.01), "WARNING: tuned decisions are"),
    ],
)
def test_sentence(ends, said):
    """One sentence; where the interval holds zero or less, it says so and what decides without tuning."""
    sentence = tuning_sentence(Interval(sum(ends) / 2, *ends, 0.95, 1000, 50), "fixed")
    assert f"{ends[0]:+.4f} to {ends[1]:+.4f}" in sentence
    if said is None:
        assert sentence.endswith(").")
    else:
        assert said in sentence
        assert "lora-cls tune RUN --strategy fixed decides without tuning." in sentence
        assert "lora-cls" not in tuning_sentence(Interval(0, *ends, 0.95, 1000, 50), None)
