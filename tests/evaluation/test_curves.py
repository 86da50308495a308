"""Counts at thresholds, histograms and reliability, against scikit-learn."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix

from lora_cls.evaluation.curves import reliability, score_histogram, threshold_counts


def label(n, prevalence, seed=0, ties=False):
    rng = np.random.default_rng(seed)
    y_true = (rng.random(n) < prevalence).astype(int)
    y_score = 1 / (1 + np.exp(-rng.normal(2 * y_true - 2, 2)))
    return y_true, np.round(y_score, 2) if ties else y_score


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("n", "n_thresholds"), [(300, 1000), (5000, 400), (1, 10)])
def test_counts_are_scikit_learns(n, n_thresholds, ties):
    """At every threshold offered, true positives and positive decisions are those of `y_score >= threshold`."""
    y_true, y_score = label(n, 0.1, ties=ties)
    shipped = 0.0712345678901
    counts = threshold_counts(y_true, y_score, n_thresholds, [shipped])
    assert shipped in counts.thresholds
    assert (np.diff(counts.thresholds) > 0).all()
    for threshold, tp, predicted in zip(counts.thresholds, counts.true_positives, counts.predicted, strict=True):
        matrix = confusion_matrix(y_true, y_score >= threshold, labels=[0, 1])
        assert (tp, predicted) == (matrix[1, 1], matrix[:, 1].sum())


def test_every_cut_of_a_small_label():
    """With few different scores there is a threshold for every decision that can be made."""
    y_true, y_score = label(500, 0.2, ties=True)
    counts = threshold_counts(y_true, y_score, 1000)
    assert counts.complete
    assert set(counts.predicted) >= {int((y_score >= s).sum()) for s in np.unique(y_score)}


def test_large_labels_are_sampled_where_it_matters():
    """A choice of thresholds comes within 0.002 of the best F1, for a rare label too, and says that it is a choice."""
    y_true, y_score = label(60_000, 0.003)
    counts = threshold_counts(y_true, y_score, 300)
    assert not counts.complete
    assert len(counts.thresholds) < 400
    f1 = 2 * counts.true_positives / (counts.predicted + y_true.sum())
    order = np.argsort(-y_score)
    best = (2 * np.cumsum(y_true[order]) / (np.arange(1, len(y_true) + 1) + y_true.sum())).max()
    assert f1.max() > best - 0.002


@pytest.mark.parametrize("y_score", [[0.0, 5e-324, 1e-300, 1.0], [0.0] * 4, [0.3, 0.29999999999999993, 1 - 1e-16, 1.0]])
def test_extreme_scores(y_score):
    """Underflowed and neighbouring scores neither fail nor are cut off from thresholds made of them."""
    counts = threshold_counts([0, 1, 0, 1], y_score)
    for threshold, predicted in zip(counts.thresholds, counts.predicted, strict=True):
        assert predicted == (np.array(y_score) >= threshold).sum()
    assert counts.predicted.max() == 4


def test_reliability_is_scikit_learns():
    """Bins of equal counts, as `calibration_curve(strategy="quantile")`."""
    y_true, y_score = label(1000, 0.3)
    share, mean = calibration_curve(y_true, y_score, n_bins=10, strategy="quantile")
    found = reliability(y_true, y_score, 10)
    np.testing.assert_allclose(found.share_positive, share)
    np.testing.assert_allclose(found.mean_score, mean)
    assert found.rows.tolist() == [100] * 10


def test_histogram():
    """Every row once, 1.0 in the last bin, classes apart."""
    negatives, positives = score_histogram([0, 0, 1, 1, 1], [0.0, 0.49, 0.5, 0.99, 1.0], n_bins=2)
    assert negatives.tolist() == [2, 0]
    assert positives.tolist() == [0, 3]
