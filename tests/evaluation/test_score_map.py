"""Scores mapped to be distributed as another model's: quantile by quantile, rising, and shifted beyond the ends."""

import numpy as np
import pytest

from lora_cls.evaluation import apply_score_map, fit_score_map


@pytest.fixture
def scores():
    """Two models' log-odds of 2,000 texts: the second ranks nearly alike, shifted and stretched by label."""
    rng = np.random.default_rng(0)
    first = rng.normal([0.0, -3.0], [1.0, 2.0], (2000, 2))
    return first, np.tanh(first / 3) * [2.0, 4.0] + [1.0, -0.5] + rng.normal(0, 0.05, first.shape)


@pytest.mark.parametrize("limit", [-4.0, -1.0, 0.0, 0.7, 1.4])
def test_each_threshold_gives_as_many_positives(scores, limit):
    """What thresholds were tuned for: at any of them as many rows are positive as before, to a quantile's width."""
    source, target = scores
    mapped = apply_score_map(*fit_score_map(source, target), source)
    np.testing.assert_allclose((mapped >= limit).mean(axis=0), (target >= limit).mean(axis=0), atol=0.003)


def test_rare_labels_are_mapped_exactly_at_the_end(scores):
    """The highest scores, where a label of few rows is decided, are knots themselves."""
    source, target = scores
    mapped = apply_score_map(*fit_score_map(source, target), source)
    for k in (1, 2, 4, 8, 16):
        np.testing.assert_allclose(np.sort(mapped, axis=0)[-k], np.sort(target, axis=0)[-k], atol=2e-5)


def test_order_is_kept(scores):
    """The map never falls, also between other texts and beyond the knots, where it is a shift."""
    x, y = fit_score_map(*scores)
    grid = np.repeat(np.linspace(-30, 30, 5001)[:, None], 2, axis=1)
    assert (np.diff(apply_score_map(x, y, grid), axis=0) >= 0).all()
    for j in range(2):
        assert np.all(np.diff(x[j]) > 0)
        np.testing.assert_allclose(apply_score_map(x, y, np.full((1, 2), 30.0))[0, j], 30 + y[j][-1] - x[j][-1])


def test_scores_that_are_equal_already_stay(scores):
    source, _ = scores
    np.testing.assert_allclose(apply_score_map(*fit_score_map(source, source), source), source, atol=2e-5)


def test_one_text_and_constant_scores_are_shifted():
    assert fit_score_map([[1.0]], [[3.0]]) == ([[1.0]], [[3.0]])
    x, y = fit_score_map([[2.0], [2.0], [2.0]], [[1.0], [2.0], [6.0]])
    assert (x, y) == ([[2.0]], [[3.0]])
    np.testing.assert_allclose(apply_score_map(x, y, [[0.0], [5.0]]), [[1.0], [6.0]])


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (np.zeros((0, 2)), np.zeros((0, 2)), "at least one row"),
        (np.zeros((3, 2)), np.zeros((3, 1)), "shape"),
        (np.full((3, 1), np.nan), np.zeros((3, 1)), "scores"),
    ],
)
def test_what_cannot_be_mapped(source, target, message):
    with pytest.raises(ValueError, match=message):
        fit_score_map(source, target)
