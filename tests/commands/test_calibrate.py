"""Calibration: maps by hand, cross-fitted, and decisions that stay."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from lora_cls.commands.calibrate import calibrate
from lora_cls.errors import RunError
from lora_cls.evaluation import (
    apply_calibration,
    calibrated_thresholds,
    calibration_scores,
    fit_calibration,
    task_of,
)
from lora_cls.recipe import Thresholds
from lora_cls.runs.records import CalibrationInfo

LABELS = task_of("multi_label", Thresholds(min_positives=1))
CLASSES = task_of("single_label", Thresholds(min_positives=1))


def test_scores_by_hand():
    """Brier score, and calibration error: mean distance of a bin's mean probability from its share of positives."""
    scores = calibration_scores([[1], [0], [1], [1]], [[0.9], [0.92], [0.5], [1.0]])
    assert scores["brier"][0] == pytest.approx((0.01 + 0.8464 + 0.25 + 0) / 4)
    # 15 bins: 0.9, 0.92 in one (1.82 expected, 1 seen), 0.5 alone, 1.0 in the last bin, with those from 14/15 on
    assert scores["expected_calibration_error"][0] == pytest.approx((0.82 + 0.5 + 0) / 4)


def test_temperature_is_found():
    """Log-odds that are three times too large are divided by three; of classes likewise."""
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=1.5, size=(20000, 2))
    y_true = rng.random(logits.shape) < expit(logits)
    found = fit_calibration("temperature", LABELS, y_true, expit(3 * logits))
    np.testing.assert_allclose(found["temperature"], [3, 3], rtol=0.06)
    np.testing.assert_allclose(
        apply_calibration("temperature", LABELS, {"temperature": [3.0, 3.0]}, expit(3 * logits)),
        expit(logits),
        atol=1e-6,
    )
    proba = CLASSES.link.probabilities(rng.normal(size=(20000, 3)))
    drawn = (rng.random((20000, 1)) > proba.cumsum(axis=1)).sum(axis=1).clip(max=2)
    sharp = CLASSES.link.probabilities(2 * np.log(proba))
    (temperature,) = fit_calibration("temperature", CLASSES, np.eye(3)[drawn], sharp)["temperature"]
    assert temperature == pytest.approx(2, rel=0.06)


def test_a_label_of_one_class():
    """Nothing to learn from: the probabilities stay."""
    scores = np.random.default_rng(0).random((10, 1))
    assert fit_calibration("temperature", LABELS, np.zeros((10, 1)), scores) == {"temperature": [1.0]}


@pytest.mark.parametrize("task", ["multi_label", "single_label"])
def test_temperature_keeps_decisions(task):
    """Mapped thresholds decide every row, tuned on or new, as before."""
    rng, task = np.random.default_rng(1), task_of(task, Thresholds(min_positives=1))
    logits = rng.normal(scale=2, size=(500, 4))
    y_true = task.untuned(logits + rng.normal(size=logits.shape))
    scores = task.link.probabilities(logits)
    fitted, limits = fit_calibration("temperature", task, y_true, scores), task.tune(y_true, scores)
    mapped = calibrated_thresholds("temperature", task, fitted, limits, y_true, scores)
    new = task.link.probabilities(rng.normal(scale=2, size=(2000, 4)))
    for some in (scores, new):
        after = apply_calibration("temperature", task, fitted, some)
        np.testing.assert_array_equal(task.apply(after, mapped), task.apply(some, limits))


def test_isotonic_by_hand():
    """Steps that violate the order are pooled: their rows share the mean; thresholds are tuned on the steps."""
    scores, y_true = np.array([[0.1], [0.2], [0.3], [0.4]]), [[0], [1], [0], [1]]
    fitted = fit_calibration("isotonic", LABELS, y_true, scores)
    after = apply_calibration("isotonic", LABELS, fitted, scores)
    np.testing.assert_allclose(after[:, 0], [0, 0.5, 0.5, 1])
    limits = calibrated_thresholds("isotonic", LABELS, fitted, [0.35], y_true, scores)
    assert 0 < limits[0] <= 0.5  # F1 4/5 with three decided positive, 2/3 with one
    np.testing.assert_allclose(apply_calibration("isotonic", LABELS, fitted, [[0.0], [0.9]]), [[0], [1]])


@pytest.mark.parametrize("how", ["temperature", "isotonic"])
def test_run(make_run, problem, how):
    """Better probabilities out of fold, in files of their own: what the run held stays byte for byte."""
    y_true, fold, logits = problem(600)
    run = make_run("run", 4 * logits(1), y_true, fold, test=np.random.default_rng(0).normal(size=(3, 9, 2)))
    before = {file.name: file.read_bytes() for file in run.path.iterdir() if file.is_file()}
    found = calibrate(run, how)
    assert found == CalibrationInfo.read(run.path / "calibration.json")
    for key in ("brier", "expected_calibration_error"):
        assert getattr(found.after, key) < getattr(found.before, key)
    now = {file.name: file.read_bytes() for file in run.path.iterdir() if file.is_file()}
    assert {name: now[name] for name in before} == before
    assert set(now) - set(before) == {"calibration.json", "oof_proba_calibrated.csv", "test_proba_calibrated.csv"}
    table = pd.read_csv(run.path / "oof_proba_calibrated.csv").set_index("id")
    scores = calibration_scores(y_true, table.to_numpy())
    assert np.mean(scores["brier"]) == pytest.approx(found.after.brier)
    # the map of a row's fold comes from the other folds
    inside = fold == 1
    y_score = run.out_of_fold().y_score
    own = apply_calibration(
        how, LABELS, fit_calibration(how, LABELS, y_true[~inside], y_score[~inside]), y_score[inside]
    )
    np.testing.assert_array_equal(table.to_numpy()[inside], own)
    if how == "temperature":
        test = pd.read_csv(run.path / "test_proba_calibrated.csv").set_index("id")
        submission = pd.read_csv(run.path / "submission.csv").set_index("id")
        assert ((test >= pd.Series(found.thresholds)).astype(int) == submission).all().all()


def test_single_fold(make_run, problem):
    """A single scored fold, with rows beside it that are only trained on, is calibrated across its parts."""
    y_true, fold, logits = problem(1200)
    values = 5 * logits(1)
    one = make_run("one", values, y_true, np.where(fold == 1, 0, -1))
    found = calibrate(one)
    assert len(found.parts) == 5
    assert found.after.expected_calibration_error < found.before.expected_calibration_error
    assert len(pd.read_csv(one.path / "oof_proba_calibrated.csv")) == 400


def test_refusals(make_run, problem):
    """Classes have no isotonic map."""
    y_true, fold, logits = problem(60)
    classes = np.eye(2, dtype=int)[y_true[:, 0]]
    run = make_run("classes", logits(1), classes, fold, recipe={"task": "single_label"})
    with pytest.raises(RunError, match="Use --how temperature"):
        calibrate(run, "isotonic")
    found = calibrate(run)
    assert len(found.shipped["temperature"]) == 1
    table = pd.read_csv(run.path / "oof_proba_calibrated.csv").set_index("id")
    np.testing.assert_allclose(table.sum(axis=1), 1)
