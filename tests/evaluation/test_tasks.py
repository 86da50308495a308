"""Decisions by task: by hand, against brute force, and never tuned on the rows that they decide."""

from typing import get_args

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from lora_cls.evaluation import apply_thresholds, cross_fit_thresholds, macro_f1, task_of, tune_thresholds
from lora_cls.evaluation.links import Sigmoid, Softmax
from lora_cls.evaluation.probabilities import corrected_class_probabilities, corrected_probabilities
from lora_cls.evaluation.tasks import EXPONENTS, TASKS
from lora_cls.recipe import Prediction, TaskName, Thresholds

CLASSES = task_of("single_label")
LABELS = task_of("multi_label")


def rows_of_classes(n=400, shares=(0.7, 0.2, 0.07, 0.03), seed=0):
    """Truth and calibrated scores of classes with these shares, and folds."""
    rng = np.random.default_rng(seed)
    y = rng.choice(len(shares), size=n, p=shares)
    logits = rng.normal(size=(n, len(shares))) + np.log(np.maximum(shares, 1e-9)) + 1.5 * np.eye(len(shares))[y]
    return np.eye(len(shares), dtype=np.int8)[y], softmax(logits, axis=1), rng.integers(4, size=n)


def test_one_place_for_every_task():
    """multi_label, binary and a task not yet known decide labels one by one; single_label one class per row."""
    assert set(TASKS) == set(get_args(TaskName))
    assert [task_of(name).exclusive for name in (None, "multi_label", "binary", "single_label")] == [0, 0, 0, 1]
    assert [task_of(name).name for name in (None, "binary")] == ["multi_label", "binary"]
    assert (task_of("binary").headline, LABELS.headline) == ("F1 of the positive class", "Macro-F1")
    assert (LABELS.strategy, CLASSES.strategy) == ("per_label", "prior_adjusted")


def test_labels_do_what_their_functions_do():
    """For labels the class adds nothing to thresholds and probabilities."""
    rng = np.random.default_rng(0)
    y_true, logits, fold = rng.integers(0, 2, (60, 3)), rng.normal(size=(60, 3)), rng.integers(3, size=60)
    weight = np.array([1.0, 4.0, 0.5])
    settings = Thresholds(strategy="global", min_positives=2, default=0.4)
    decide = task_of("multi_label", settings)
    scores = decide.link.probabilities(logits, weight)
    np.testing.assert_array_equal(scores, corrected_probabilities(logits, weight))
    same = {"strategy": "global", "min_positives": 2, "default": 0.4}
    tuned = decide.tune(y_true, scores)
    np.testing.assert_array_equal(tuned, tune_thresholds(y_true, scores, **same))
    np.testing.assert_array_equal(decide.apply(scores, tuned, True), apply_thresholds(scores, tuned, at_least_one=True))
    expected = cross_fit_thresholds(y_true, scores, fold, **same, at_least_one=True)
    np.testing.assert_array_equal(decide.cross_fit(y_true, scores, fold, True).y_pred, expected.y_pred)
    np.testing.assert_array_equal(decide.untuned(logits), logits > 0)
    per_fold = np.stack([scores, scores[::-1]])
    for way in ("mean_proba", "mean_logit"):
        y_score, y_pred = decide.together(per_fold, tuned, Prediction(combine=way))
        np.testing.assert_array_equal(y_score, Sigmoid().combine_folds(per_fold, way))
        np.testing.assert_array_equal(y_pred, apply_thresholds(y_score, tuned))
    y_score, y_pred = decide.together(per_fold, tuned, Prediction(combine="vote"))
    np.testing.assert_array_equal(y_pred, (per_fold >= tuned).sum(axis=0) >= 1)


@pytest.mark.parametrize("task", ["multi_label", "binary", "single_label"])
def test_strategies_of_the_other_task_are_refused(task):
    """No silent fallback where a strategy has no meaning."""
    strategy = "global" if task == "single_label" else "argmax"
    with pytest.raises(ValueError, match=f"Got '{strategy}'"):
        task_of(task, Thresholds(strategy=strategy)).tune([[1, 0], [0, 1]], [[0.6, 0.4], [0.5, 0.5]])


def test_class_probabilities_by_hand():
    """Weights 1, 2 and 4 shift ideal logits by their logarithms: taking them away gives 0.5, 0.3, 0.2 again."""
    p, weight = np.array([0.5, 0.3, 0.2]), np.array([1.0, 2.0, 4.0])
    assert corrected_class_probabilities(np.log(p * weight) + 7, weight) == pytest.approx(p)
    assert CLASSES.link.probabilities([[0.0, np.log(3)]], [1.0, 1.0]) == pytest.approx(np.array([[0.25, 0.75]]))


@pytest.mark.parametrize("weight", [[1.0, 2.0, 5.0], [0.3, 1.0, 1.0]])
def test_correction_undoes_weighted_cross_entropy(weight):
    """Minimising -sum w_c p_c log softmax(z)_c by gradient descent, the corrected softmax is p."""
    p, weight, z = np.array([0.6, 0.3, 0.1]), np.array(weight), np.zeros(3)
    for _ in range(3000):
        z -= 0.5 * (softmax(z) * (weight * p).sum() - weight * p)
    assert corrected_class_probabilities(z, weight) == pytest.approx(p, abs=1e-9)
    with pytest.raises(ValueError, match="'class_weight' parameter must be greater than 0"):
        corrected_class_probabilities(z, [0.0, 1.0, 1.0])


def test_untuned_is_argmax_of_the_logits():
    """The greatest logit, negative or not; the first of equals; one 1 per row."""
    assert CLASSES.untuned([[-3.0, -1.0, -2.0], [5.0, 5.0, 0.0]]).tolist() == [[0, 1, 0], [1, 0, 0]]
    assert CLASSES.untuned(np.zeros((0, 3))).shape == (0, 3)


def test_apply_by_hand():
    """The greatest score / threshold; thresholds of 1 are argmax."""
    scores = [[0.6, 0.3, 0.1], [0.4, 0.4, 0.2]]
    assert CLASSES.apply(scores, np.ones(3)).tolist() == [[1, 0, 0], [1, 0, 0]]
    assert CLASSES.apply(scores, [3.0, 1.0, 0.2]).tolist() == [[0, 0, 1], [0, 0, 1]]
    assert CLASSES.apply(scores, [2.5, 1.0, 1.0]).tolist() == [[0, 1, 0], [0, 1, 0]]
    for wrong in ([1.0, 1.0], [1.0, 0.0, 1.0]):
        with pytest.raises(ValueError, match="one number above 0, or one per class"):
            CLASSES.apply(scores, wrong)


@pytest.mark.parametrize("seed", range(5))
def test_prior_adjusted_is_the_best_of_the_grid(seed):
    """Against brute force over the grid, written out; so never below argmax on the rows that tune."""
    y_true, scores, _ = rows_of_classes(seed=seed)
    counts = y_true.sum(axis=0).astype(float)
    best, at = -1.0, None
    for tau in [i / 10 for i in range(16)]:
        chosen = np.argmax(np.log(scores) - tau * np.log(counts / counts.sum()), axis=1)
        f1 = macro_f1(y_true, np.eye(4, dtype=int)[chosen])
        if f1 > best:
            best, at = f1, tau
    decide = task_of("single_label", Thresholds(min_positives=1))
    tuned = decide.tune(y_true, scores)
    assert macro_f1(y_true, decide.apply(scores, tuned)) == best
    assert tuned == pytest.approx((counts / counts.mean()) ** at)
    assert best >= macro_f1(y_true, CLASSES.apply(scores, np.ones(4)))


def test_rare_classes_gain_from_tuning():
    """On imbalanced classes the tuned power is above 0, and rarer classes get lower thresholds."""
    y_true, scores, _ = rows_of_classes(2000)
    tuned = CLASSES.tune(y_true, scores)
    assert (np.diff(tuned) < 0).all()
    assert tuned[0] > 1 > tuned[-1]


def test_argmax_and_ties():
    """argmax keeps thresholds of 1; where no power changes a decision, prior_adjusted is argmax too."""
    y_true, scores, _ = rows_of_classes()
    assert task_of("single_label", Thresholds(strategy="argmax")).tune(y_true, scores).tolist() == [1] * 4
    assert CLASSES.tune(y_true, y_true.astype(float)).tolist() == [1] * 4
    assert EXPONENTS[0] == 0


def test_class_with_too_few_rows():
    """A class that is absent or rarer than min_positives counts as min_positives rows: its threshold is not 0."""
    y_true, scores, _ = rows_of_classes(shares=(0.6, 0.4, 0.0, 0.0))
    decide = task_of("single_label", Thresholds(min_positives=8))
    tuned = decide.tune(y_true, scores)
    assert (tuned > 0).all()
    assert decide.tune(np.zeros((0, 4)), np.zeros((0, 4))).tolist() == [1] * 4
    y_true[:10] = [0, 0, 0, 1]
    counts = np.maximum(y_true.sum(axis=0), 8)
    tuned = decide.tune(y_true, scores)
    power = np.log(tuned[0]) / np.log(counts[0] * 4 / 400)
    assert tuned == pytest.approx((counts * 4 / 400) ** power)


def test_cross_fit_never_sees_its_own_rows():
    """Turning over the truth of a fold's rows changes other folds' thresholds, never its own decisions."""
    y_true, scores, fold = rows_of_classes()
    before = CLASSES.cross_fit(y_true, scores, fold)
    changed = y_true.copy()
    changed[fold == 2] = np.roll(changed[fold == 2], 1, axis=1)
    after = CLASSES.cross_fit(changed, scores, fold)
    np.testing.assert_array_equal(before.thresholds[2], after.thresholds[2])
    np.testing.assert_array_equal(before.y_pred[fold == 2], after.y_pred[fold == 2])
    assert any(not np.array_equal(before.thresholds[k], after.thresholds[k]) for k in (0, 1, 3))
    for k in range(4):
        tuned = CLASSES.tune(y_true[fold != k], scores[fold != k])
        np.testing.assert_array_equal(before.thresholds[k], tuned)
        np.testing.assert_array_equal(before.y_pred[fold == k], CLASSES.apply(scores[fold == k], tuned))
    assert (before.y_pred.sum(axis=1) == 1).all()


# Three folds, two rows, three classes.
PER_FOLD = np.array(
    [
        [[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]],
        [[0.2, 0.7, 0.1], [0.3, 0.4, 0.3]],
        [[0.1, 0.2, 0.7], [0.2, 0.6, 0.2]],
    ]
)


def test_folds_of_classes_together_by_hand():
    """Mean probability; softmax of the mean log-probability; share of folds that decide for the class."""
    ones = np.ones(3)
    y_score, y_pred = CLASSES.together(PER_FOLD, ones, Prediction(combine="mean_proba"))
    assert y_score[0] == pytest.approx([0.8 / 3, 0.4, 1 / 3])
    assert y_pred.tolist() == [[0, 1, 0], [0, 1, 0]]
    y_score, _ = CLASSES.together(PER_FOLD, ones, Prediction(combine="mean_logit"))
    geometric = np.array([0.01, 0.042, 0.014]) ** (1 / 3)
    assert y_score[0] == pytest.approx(geometric / geometric.sum())
    assert y_score.sum(axis=1) == pytest.approx([1, 1])
    y_score, y_pred = CLASSES.together(PER_FOLD, [0.15, 1.0, 1.0], Prediction(combine="vote"))
    assert y_score.tolist() == [[2 / 3, 0, 1 / 3], [2 / 3, 1 / 3, 0]]
    assert y_pred.tolist() == [[1, 0, 0], [1, 0, 0]]


def test_equal_votes_go_to_the_more_probable_class():
    """One vote each: the greatest mean probability / threshold decides, not the first name."""
    y_score, y_pred = CLASSES.together(PER_FOLD[:, :1], np.ones(3), Prediction(combine="vote"))
    assert y_score[0] == pytest.approx([1 / 3] * 3)
    assert y_pred.tolist() == [[0, 1, 0]]
    two = np.array([[[0.8, 0.1, 0.1]], [[0.0, 0.6, 0.4]]])  # a class without a vote is not the best of the mean
    assert CLASSES.together(two, np.ones(3), Prediction(combine="vote"))[1].tolist() == [[1, 0, 0]]


def test_one_fold_stays_what_it_is():
    """Every way gives a single fold's own probabilities, 0 among them included."""
    alone = np.array([[[0.9, 0.1, 0.0], [0.2, 0.3, 0.5]]])
    for way in ("mean_proba", "mean_logit"):
        assert CLASSES.together(alone, np.ones(3), Prediction(combine=way))[0] == pytest.approx(alone[0])


# Pieces of two texts: the first of two pieces, the second of one.
LOGITS = np.array([[2.0, 0.0, -1.0], [0.5, 1.5, 5.0], [1.0, 2.0, 3.0]], dtype=np.float32)
TEXT, WEIGHT = np.array([0, 0, 1]), np.array([1.0, 2.0, 0.5])


@pytest.mark.parametrize("how", ["mean_logit", "mean_proba", "max"])
def test_pieces_of_classes(how):
    """Softmax of the mean log-probability, mean probability, greatest probability scaled to a sum of 1: by hand."""
    p = softmax(LOGITS - np.log(WEIGHT), axis=1)
    by_hand = {
        "mean_logit": np.exp((np.log(p[0]) + np.log(p[1])) / 2),
        "mean_proba": p[:2].mean(axis=0),
        "max": p[:2].max(axis=0),
    }[how]
    found = CLASSES.link.combine_pieces(LOGITS, TEXT, WEIGHT, how)
    assert found.shape == (2, 3) and found.dtype == np.float32
    proba = CLASSES.link.probabilities(found, WEIGHT)
    assert proba[0] == pytest.approx(by_hand / by_hand.sum(), rel=1e-5)
    assert proba[1] == pytest.approx(p[2], rel=1e-5)


@pytest.mark.parametrize("how", ["mean_logit", "mean_proba", "max"])
def test_a_constant_in_a_piece_changes_nothing(how):
    """Softmax ignores a constant added to all logits of a piece, and so do its combinations."""
    shifted = LOGITS + np.array([[10.0], [-3.0], [1.0]], dtype=np.float32)
    before, after = (
        CLASSES.link.probabilities(CLASSES.link.combine_pieces(z, TEXT, WEIGHT, how), WEIGHT) for z in (LOGITS, shifted)
    )
    assert after == pytest.approx(before, rel=1e-4)


@pytest.mark.parametrize("link", [Sigmoid(), Softmax()])
def test_links_turn_back(link):
    """Logits of probabilities give them back, however small the softmax makes them, and 0 and 1 stay finite."""
    p = np.array([[0.7, 0.2, 0.1], [1 - 1e-9, 1e-9 - 1e-11, 1e-11]])
    assert link.probabilities(link.logits(p)) == pytest.approx(p, rel=1e-6)
    assert np.isfinite(link.logits([0.0, 1.0])).all()


def test_small_probabilities_of_classes_stay_apart():
    """The floor of the logarithm is the smallest normal number, not one above probabilities that models do give."""
    p = np.array([[1.0, 1e-30, 1e-200]])
    assert Softmax().probabilities(Softmax().logits(p)) == pytest.approx(p, rel=1e-9, abs=0)


def test_extreme_logits_stay_finite():
    """Classes whose probability underflows keep finite scores and logits."""
    logits = np.array([[2000.0, 0.0], [0.0, 2000.0]], dtype=np.float32)
    per_fold = CLASSES.link.probabilities(logits, [1.0, 1.0])[None]
    y_score, _ = CLASSES.together(np.repeat(per_fold, 2, axis=0), [1.0, 1.0], Prediction())
    assert np.isfinite(y_score).all()
    for how in ("mean_logit", "mean_proba", "max"):
        assert np.isfinite(CLASSES.link.combine_pieces(logits, np.array([0, 0]), [1.0, 1.0], how)).all()
    assert log_softmax(logits, axis=1).min() == -2000  # the case is a real one
