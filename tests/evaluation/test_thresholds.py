"""Thresholds are compared with every possible cut, tried one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_cls.evaluation import apply_thresholds, cross_fit_thresholds, macro_f1, tune_thresholds
from lora_cls.evaluation.thresholds import best_f1_threshold


def f1_at(y_true, y_score, threshold):
    """F1 of one label, written out."""
    decided = y_score >= threshold
    tp = np.sum(decided & (y_true == 1))
    return 2 * tp / max(decided.sum() + y_true.sum(), 1)


def best_f1_by_trying(y_true, y_score):
    """The greatest F1 over all cuts, and the highest score at which a cut reaches it."""
    found = [(f1_at(y_true, y_score, s), s) for s in np.unique(y_score)]
    return max(found)


def random_problem(rng, n, n_labels, levels):
    """Labels from never to always, scores with ties."""
    prevalence = np.linspace(0, 1, n_labels)
    y_true = (rng.random((n, n_labels)) < prevalence).astype(int)
    y_score = np.clip(rng.random((n, n_labels)) * 0.7 + 0.3 * y_true, 0, 1)
    return y_true, np.round(y_score * levels) / levels


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.5, 0.9, 1.0])), min_size=1, max_size=25)
)
def test_per_label_threshold_equals_trying_every_cut(rows):
    """With ties, one class only or one row, no cut is better, and of equal cuts the highest is taken."""
    y_true = np.array([row[0] for row in rows], dtype=int)
    y_score = np.array([row[1] for row in rows])
    threshold = best_f1_threshold(y_true, y_score, min_positives=1, default=-7.0)
    if y_true.sum() == 0:
        assert threshold == -7.0
        return
    best, lowest_positive = best_f1_by_trying(y_true, y_score)
    assert f1_at(y_true, y_score, threshold) == best
    assert np.array_equal(y_score >= threshold, y_score >= lowest_positive)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_scores_that_are_neighbours_in_float64_are_still_separated(data):
    """Where no number lies between two scores, the threshold is the upper one, never the lower."""
    low = data.draw(st.floats(-1e308, 1e308))
    high = float(np.nextafter(low, np.inf))
    threshold = best_f1_threshold([0, 1], [low, high], min_positives=1)
    assert low < threshold <= high


def test_threshold_is_the_midpoint_of_the_two_scores_it_separates():
    """A new score between the two neighbours is decided by the nearer one."""
    assert best_f1_threshold([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9], min_positives=1) == pytest.approx(0.4)


@pytest.mark.parametrize("y_true", [[], [0, 0, 0, 0], [1, 1, 1, 0]])
def test_too_few_positives_keep_the_default(y_true):
    """Empty input, no positives, and fewer than asked for all give the stated default."""
    assert best_f1_threshold(y_true, np.linspace(0, 1, len(y_true)), min_positives=4, default=0.3) == 0.3


def test_label_without_negatives_is_always_decided_positive():
    """An all-ones label ends at its lowest score."""
    assert best_f1_threshold([1] * 6, [0.9, 0.2, 0.4, 0.2, 0.7, 0.8]) == 0.2


@pytest.mark.parametrize("strategy", ["per_label", "global", "prevalence", "fixed"])
def test_nan_scores_are_refused_by_name(strategy):
    """A NaN would sort anywhere; the error names the array and the place."""
    with pytest.raises(ValueError, match=r"'y_score'.*NaN.*\(1, 0\)"):
        tune_thresholds([[0, 1], [1, 0]], [[0.1, 0.2], [np.nan, 0.3]], strategy=strategy)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("levels", [5, 1000])
def test_global_threshold_equals_trying_every_score(seed, levels):
    """No single threshold gives a greater macro-F1, among labels from never to always positive."""
    y_true, y_score = random_problem(np.random.default_rng(seed), n=17, n_labels=4, levels=levels)
    thresholds = tune_thresholds(y_true, y_score, strategy="global", min_positives=1)
    tried = [(macro_f1(y_true, y_score >= s), s) for s in np.unique(y_score)]
    best = max(f1 for f1, _ in tried)
    highest = max(s for f1, s in tried if f1 > best - 1e-12)
    assert len(set(thresholds)) == 1
    assert np.array_equal(y_score >= thresholds, y_score >= highest)


@pytest.mark.parametrize("seed", range(5))
def test_strategies_are_ordered_on_the_rows_they_were_tuned_on(seed):
    """Per label is at least as good as global, and global as fixed."""
    y_true, y_score = random_problem(np.random.default_rng(seed), n=60, n_labels=5, levels=50)
    per_label, one, fixed = (
        macro_f1(y_true, apply_thresholds(y_score, tune_thresholds(y_true, y_score, strategy=s, min_positives=1)))
        for s in ("per_label", "global", "fixed")
    )
    assert per_label >= one >= fixed


def test_global_threshold_is_fast_enough_for_go_emotions():
    """43k rows and 28 labels with float scores agree with a direct count at the cut found and near it."""
    rng = np.random.default_rng(0)
    y_true = rng.random((43_000, 28)) < np.geomspace(0.002, 0.3, 28)
    y_score = 1 / (1 + np.exp(-(rng.normal(size=y_true.shape) + 2 * y_true - 2)))
    threshold = tune_thresholds(y_true, y_score, strategy="global")[0]
    at = {shift: macro_f1(y_true, y_score >= threshold + shift) for shift in (-0.01, -1e-5, 0.0, 1e-5, 0.01)}
    assert max(at, key=at.get) == 0.0


def test_unknown_strategy_is_named():
    """A typing error in the recipe does not fall through to a default."""
    with pytest.raises(ValueError, match=r"'strategy'.*Got 'perlabel'"):
        tune_thresholds([[0], [1]], [[0.1], [0.2]], strategy="perlabel")


def test_a_score_on_the_threshold_is_positive():
    """Decisions are at >=, in float64, whatever the type of the scores."""
    y_score = np.array([[0.1, 0.7], [0.3, 0.2]], dtype=np.float32)
    y_pred = apply_thresholds(y_score, y_score[0].astype(np.float64))
    assert y_pred.tolist() == [[1, 1], [1, 0]]
    assert y_pred.dtype == np.int8


def test_at_least_one_takes_the_greatest_margin_not_the_greatest_score():
    """Only rows without a label get one, and the one nearest to its own threshold."""
    y_pred = apply_thresholds([[0.5, 0.1], [0.7, 0.3], [0.1, 0.1]], [0.6, 0.15], at_least_one=True)
    assert y_pred.tolist() == [[0, 1], [1, 1], [0, 1]]


@pytest.mark.parametrize("thresholds", [[0.5], [0.5, 0.5, 0.5], [[0.5, 0.5]], [0.5, np.nan]])
def test_thresholds_that_do_not_fit_are_refused(thresholds):
    """One threshold in a list does not silently stand for all labels, nor does NaN mean never."""
    with pytest.raises(ValueError, match="'thresholds'"):
        apply_thresholds([[0.1, 0.2]], thresholds)


@pytest.mark.parametrize("strategy", ["per_label", "global"])
def test_cross_fitted_decisions_do_not_depend_on_the_labels_they_are_scored_against(strategy):
    """Flipping every label of a fold changes no decision in it, but does change those of other folds."""
    rng = np.random.default_rng(3)
    y_true, y_score = random_problem(rng, n=120, n_labels=3, levels=100)
    fold = rng.integers(0, 3, size=120)
    before = cross_fit_thresholds(y_true, y_score, fold, strategy=strategy)
    flipped = np.where((fold == 1)[:, None], 1 - y_true, y_true)
    after = cross_fit_thresholds(flipped, y_score, fold, strategy=strategy)
    assert np.array_equal(before.y_pred[fold == 1], after.y_pred[fold == 1])
    assert np.array_equal(before.thresholds[1], after.thresholds[1])
    assert not np.array_equal(before.y_pred, after.y_pred)


def test_cross_fit_uses_all_other_folds_and_decides_every_row():
    """Each fold's thresholds equal those tuned on the rest, and each row is decided by its own fold's."""
    y_true, y_score = random_problem(np.random.default_rng(4), n=60, n_labels=3, levels=100)
    fold = np.tile([2, 5, 9], 20)
    fitted = cross_fit_thresholds(y_true, y_score, fold)
    assert list(fitted.thresholds) == [2, 5, 9]
    for k, thresholds in fitted.thresholds.items():
        assert np.array_equal(thresholds, tune_thresholds(y_true[fold != k], y_score[fold != k]))
        assert np.array_equal(fitted.y_pred[fold == k], apply_thresholds(y_score[fold == k], thresholds))


def test_one_fold_cannot_be_cross_fitted():
    """There is nothing to tune on; the message says so."""
    with pytest.raises(ValueError, match=r"at least two folds.*Got \[0\]"):
        cross_fit_thresholds([[0], [1]], [[0.1], [0.9]], [0, 0])
