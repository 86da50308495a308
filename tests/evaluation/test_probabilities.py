"""Probabilities: the weight of the loss is taken back, and folds are combined as computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from lora_cls.evaluation import apply_thresholds, logit
from lora_cls.evaluation.links import Sigmoid
from lora_cls.evaluation.probabilities import corrected_probabilities

LINK = Sigmoid()


@pytest.mark.parametrize("pos_weight", [0.5, 1.0, 8.0])
@pytest.mark.parametrize("prevalence", [0.03, 0.6])
def test_correction_undoes_the_weight_of_the_loss(pos_weight, prevalence):
    """The constant logit with the least weighted loss is turned into the share of positives."""

    def weighted_bce(x):
        return pos_weight * prevalence * np.logaddexp(0, -x) + (1 - prevalence) * np.logaddexp(0, x)

    best = minimize_scalar(weighted_bce, bounds=(-20, 20), method="bounded", options={"xatol": 1e-9}).x
    assert corrected_probabilities([[best]], [pos_weight])[0, 0] == pytest.approx(prevalence, rel=1e-4)


def test_each_fold_is_corrected_by_its_own_weights():
    """Weights of shape (n_folds, 1, n_labels) bring folds with different weights to the same probabilities."""
    log_odds = np.random.default_rng(0).normal(size=(5, 3))
    pos_weight = np.array([[[1.0, 5.0, 30.0]], [[2.0, 4.0, 0.1]]])
    proba = corrected_probabilities((log_odds + np.log(pos_weight)).astype(np.float32), pos_weight)
    assert proba.dtype == np.float64
    assert proba[0] == pytest.approx(proba[1], rel=1e-5)
    assert proba[0] == pytest.approx(1 / (1 + np.exp(-log_odds)), rel=1e-5)


def test_extreme_logits_stay_probabilities():
    """No overflow, no NaN."""
    with np.errstate(all="raise", under="ignore"):
        assert corrected_probabilities([-1e4, 0.0, 1e4], 1.0).tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("pos_weight", [[1.0, 0.0], [1.0, -2.0], [1.0, np.nan], [1.0, 1.0, 1.0], np.ones((3, 1, 2))])
def test_weights_that_cannot_be_taken_back_are_refused(pos_weight):
    """Zero, negative, NaN, too many labels, and weights of folds for logits of one."""
    with pytest.raises(ValueError, match="'pos_weight'"):
        corrected_probabilities(np.zeros((4, 2)), pos_weight)


def test_logit_inverts_the_sigmoid_and_stays_finite():
    """Saturated scores do not turn the mean of the folds into infinity."""
    values = np.array([-20.0, -1.0, 0.0, 3.0])
    assert logit(corrected_probabilities(values, 1.0)) == pytest.approx(values)
    assert logit([0.0, 1.0]) == pytest.approx([-27.6, 27.6], abs=0.1)


def test_folds_combined_by_hand():
    """Mean, mean logit (odds 1/4 and 4 cancel) and votes of two folds."""
    per_fold = np.array([[[0.2, 0.6]], [[0.8, 0.9]]])
    assert LINK.combine_folds(per_fold)[0] == pytest.approx([0.5, 0.75])
    odds = np.sqrt(0.6 / 0.4 * 0.9 / 0.1)
    assert LINK.combine_folds(per_fold, "mean_logit")[0] == pytest.approx([0.5, odds / (1 + odds)])
    assert LINK.combine_folds(per_fold, "vote", thresholds=[0.9, 0.6])[0].tolist() == [0.0, 1.0]
    assert LINK.combine_folds(per_fold, "vote", thresholds=[[0.2, 0.7], [0.9, 0.7]])[0].tolist() == [0.5, 0.5]


def test_one_fold_is_left_as_it_is():
    """With one model every combination decides as that model does."""
    scores = np.round(np.random.default_rng(1).random((50, 3)), 1)
    thresholds = np.array([0.3, 0.5, 0.8])
    assert LINK.combine_folds(scores[None]) == pytest.approx(scores)
    assert LINK.combine_folds(scores[None], "mean_logit") == pytest.approx(scores)
    voted = LINK.combine_folds(scores[None], "vote", thresholds)
    assert np.array_equal(apply_thresholds(voted, 0.5), apply_thresholds(scores, thresholds))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"how": "median"}, "'how'.*Got 'median'"),
        ({"how": "vote"}, "'thresholds'.*Got None"),
        ({"how": "mean_proba", "thresholds": 0.5}, "'thresholds'.*only then"),
        ({"how": "vote", "thresholds": [0.5]}, r"'thresholds'.*Got shape \(1,\)"),
    ],
)
def test_combinations_that_make_no_sense_are_refused(arguments, message):
    """Votes need thresholds and means must not seem to use them."""
    with pytest.raises(ValueError, match=message):
        LINK.combine_folds(np.full((2, 3, 4), 0.5), **arguments)


def test_logits_passed_as_scores_are_refused():
    """The mean of raw logits would look like a score."""
    with pytest.raises(ValueError, match=r"'y_score_per_fold'.*probabilities.*-3\.0"):
        LINK.combine_folds([[[0.5, -3.0]]])


# Pieces of a text

PIECES = np.array([[2.0, -1.0], [0.0, 3.0], [-5.0, 1.0], [0.5, 40.0], [1.0, -2.0], [3.0, 0.0]], dtype=np.float32)
TEXT = [0, 0, 0, 1, 2, 2]


def test_pieces_by_hand():
    """The mean log-odds, the log-odds of the mean probability, the greatest; each text once, in order."""
    weight = np.array([4.0, 0.5])
    mean = LINK.combine_pieces(PIECES, TEXT, weight, "mean_logit")
    assert mean == pytest.approx(np.array([[-1.0, 1.0], [0.5, 40.0], [2.0, -1.0]]))
    assert LINK.combine_pieces(PIECES, TEXT, weight, "max").tolist() == [[2.0, 3.0], [0.5, 40.0], [3.0, 0.0]]
    found = LINK.combine_pieces(PIECES, TEXT, weight, "mean_proba")
    proba = 1 / (1 + np.exp(-(PIECES.astype(float) - np.log(weight))))
    expected = np.array([proba[:3].mean(axis=0), proba[4:].mean(axis=0)])
    assert corrected_probabilities(found[[0, 2]], weight) == pytest.approx(expected, rel=1e-6)
    assert {a.dtype for a in (mean, found)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("how", ["mean_logit", "mean_proba", "max"])
def test_one_piece_is_left_as_it_is(how):
    """To the last digit and beyond the range of probabilities, whatever stands beside it; nothing of nothing."""
    weight = np.array([4.0, 0.5])
    assert LINK.combine_pieces(PIECES, TEXT, weight, how)[1].tolist() == PIECES[3].tolist()
    assert LINK.combine_pieces(PIECES, range(6), weight, how).tolist() == PIECES.tolist()
    assert LINK.combine_pieces(PIECES[:0], np.zeros(0, dtype=np.int64), weight, how).shape == (0, 2)


@pytest.mark.parametrize("how", ["mean_logit", "mean_proba", "max"])
def test_pieces_that_agree(how):
    """Say together what each says: the positive weight is taken back and put on again."""
    logits = np.repeat(np.array([[1.5, -0.5]], dtype=np.float32), 3, axis=0)
    assert LINK.combine_pieces(logits, [0, 0, 0], [7.0, 0.2], how)[0] == pytest.approx([1.5, -0.5], abs=1e-6)
