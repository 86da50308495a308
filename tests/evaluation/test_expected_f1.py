"""Expected F1: against every cut tried one by one, and never by labels of the rows that are decided."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from lora_cls.evaluation import apply_thresholds, cross_fit_thresholds, task_of, tune_thresholds
from lora_cls.evaluation.expected_f1 import calibrated, calibration_maps, expected_f1_cut
from lora_cls.recipe import Thresholds

STRATEGIES = ["expected_f1", "auto"]


def rare_labels(n=600, counts=(1, 4, 12, 60, 200), strength=2.0, seed=0):
    """Labels of these positives, and scores that are log-odds of half the true strength."""
    rng = np.random.default_rng(seed)
    y_true = np.zeros((n, len(counts)), dtype=int)
    for j, count in enumerate(counts):
        y_true[rng.choice(n, count, replace=False), j] = 1
    shares = np.array(counts) / n
    logits = logit(shares) + strength**2 * (y_true - 0.5) + strength * rng.normal(size=y_true.shape)
    return y_true, expit(logits / 2)


def ratio(proba, decided):
    """The expected F1 as it is stated, written out."""
    return 2 * proba[decided].sum() / (decided.sum() + proba.sum())


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from([0.0, 0.1, 0.3, 0.5, 1.0])), min_size=1, max_size=25))
def test_cut_equals_trying_every_cut(rows):
    """With ties, one row, and probabilities of 0 and 1, whatever order they are in, no cut has a greater one."""
    proba, scores = np.array(rows).T
    proba = np.clip(proba, 1e-6, 1)
    found = ratio(proba, scores >= expected_f1_cut(proba, scores))
    assert found == pytest.approx(max(ratio(proba, scores >= cut) for cut in np.unique(scores)))


@pytest.mark.parametrize("seed", range(5))
def test_ratio_of_expectations_nears_the_expectation(seed):
    """Over all outcomes of twelve rows, the cut loses next to nothing of the greatest expectation of F1 itself."""
    rng = np.random.default_rng(seed)
    proba = np.sort(rng.beta(0.5, 1.5, size=12))
    outcomes = np.array(list(product((0, 1), repeat=12)))
    likely = np.where(outcomes, proba, 1 - proba).prod(axis=1)

    def expectation(cut):
        decided = proba >= cut
        return likely @ (2 * outcomes[:, decided].sum(axis=1) / (decided.sum() + outcomes.sum(axis=1)))

    best = max(expectation(cut) for cut in proba)
    assert expectation(expected_f1_cut(proba, proba)) >= best - 0.02


def test_pooled_map_is_platts():
    """Labels that share one map get that of scikit-learn's regression without penalty over all of them."""
    y_true, y_score = rare_labels(5000, counts=(400,) * 4)
    slope, level = calibration_maps(y_true == 1, y_score)
    expected = LogisticRegression(C=1e10).fit(logit(y_score).reshape(-1, 1), y_true.ravel())
    assert slope == pytest.approx(expected.coef_[0, 0], rel=0.15)
    assert level == pytest.approx(expected.intercept_[0], abs=0.25)
    assert 1.7 < slope.mean() < 2.3  # the scores are of half the strength


def test_rare_labels_borrow_and_common_ones_do_not():
    """A label whose scores are shifted keeps the others' map with one positive, and gets its own with many."""
    y_true, y_score = rare_labels(4000, counts=(1, 800, 800, 800, 800))
    shifted = expit(logit(y_score) + np.array([2.0, 2.0, 0, 0, 0]))
    slope, level = calibration_maps(y_true == 1, shifted)
    proba = calibrated(shifted, (slope, level))
    assert proba.mean(axis=0)[1:] == pytest.approx(y_true.mean(axis=0)[1:], rel=0.05)
    assert slope[0] == pytest.approx(slope[2], rel=0.3)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_thresholds_are_the_cuts_of_calibrated_rows(strategy):
    """`expected_f1` cuts by probabilities; `auto` by a mixture with labels, so that many positives are `per_label`."""
    y_true, y_score = rare_labels()
    found = tune_thresholds(y_true, y_score, strategy=strategy)
    proba = calibrated(y_score, calibration_maps(y_true == 1, y_score))
    n = y_true.sum(axis=0)
    counted = proba if strategy == "expected_f1" else (n * y_true + 20 * proba) / (n + 20)
    for j, cut in enumerate(found):
        reached = ratio(counted[:, j], y_score[:, j] >= cut)
        assert reached == pytest.approx(max(ratio(counted[:, j], y_score[:, j] >= s) for s in y_score[:, j]))


def test_auto_goes_from_one_to_the_other():
    """With thousands of positives `auto` is `per_label`, with one it is nearly `expected_f1`."""
    y_true, y_score = rare_labels(20_000, counts=(1, 9000))
    auto, tuned, expected = (
        tune_thresholds(y_true, y_score, strategy=strategy) for strategy in ("auto", "per_label", "expected_f1")
    )
    decided = [apply_thresholds(y_score, cuts).sum(axis=0) for cuts in (auto, tuned, expected)]
    assert decided[0][1] == pytest.approx(decided[1][1], rel=0.02)
    assert tuned[0] == 0.5 and abs(logit(auto[0]) - logit(expected[0])) < 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rare_labels_are_given(strategy):
    """Where labels are too rare to tune on, `per_label` gives none and these find some of their rows."""
    y_true, y_score = rare_labels(2000, counts=(4,) * 30 + (200,), strength=3.0)
    fold = np.arange(len(y_true)) % 4
    right = {
        name: (cross_fit_thresholds(y_true, y_score, fold, strategy=name).y_pred[:, :30] & y_true[:, :30]).sum()
        for name in ("per_label", strategy)
    }
    assert right["per_label"] < 0.7 * right[strategy] and right[strategy] > 30


@pytest.mark.parametrize("task", ["multi_label", "binary"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_labels_of_a_fold_decide_nothing_in_it(task, strategy):
    """Other labels in one fold change no threshold of that fold, and those of the others."""
    y_true, y_score = rare_labels(counts=(60,) if task == "binary" else (4, 12, 60, 200))
    fold, decide = np.arange(len(y_true)) % 3, task_of(task, Thresholds(strategy=strategy))
    other = np.where((fold == 1)[:, None], 1 - y_true, y_true)
    before, after = (decide.cross_fit(labels, y_score, fold) for labels in (y_true, other))
    np.testing.assert_array_equal(before.thresholds[1], after.thresholds[1])
    np.testing.assert_array_equal(before.y_pred[fold == 1], after.y_pred[fold == 1])
    assert not np.array_equal(before.thresholds[0], after.thresholds[0])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_edges(strategy):
    """No row, no label, no positive, only positives, equal scores, scores of 0 and 1, and a single row."""
    tune = task_of("multi_label", Thresholds(strategy=strategy, default=0.3)).tune
    assert tune(np.zeros((0, 2)), np.zeros((0, 2))).tolist() == [0.3, 0.3]
    assert tune(np.zeros((3, 0)), np.zeros((3, 0))).tolist() == []
    assert tune([[0, 0], [0, 0]], [[0.1, 0.2], [0.3, 0.4]]).tolist() == [0.3, 0.3]
    assert tune([[1, 0]], [[0.25, 0.1]]).tolist() == [0.25, 0.3]
    assert tune([[1], [1]], [[0.6], [0.2]]).tolist() == [0.2]
    assert tune([[1], [0], [1]], [[0.5]] * 3).tolist() == [0.5]
    assert 0 < tune([[1], [0], [0], [0]], [[1.0], [0.0], [0.0], [0.0]])[0] <= 1
    with pytest.raises(ValueError, match=r"'y_score' parameter must hold probabilities"):
        tune([[1], [0]], [[3.0], [0.1]])
