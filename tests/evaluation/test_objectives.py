"""Objectives: the recipe's names are those of the table, and whatever is tuned is tuned for the one that is set."""

from itertools import product
from typing import get_args

import numpy as np
import pytest

from lora_cls.evaluation import apply_thresholds, fit_blend, task_of, tune_thresholds
from lora_cls.evaluation.objectives import OBJECTIVES, Objective
from lora_cls.recipe import Thresholds


def test_names_are_those_of_the_recipe():
    """A recipe takes the objectives of the table, and no other."""
    assert tuple(OBJECTIVES) == get_args(Thresholds.model_fields["objective"].annotation)
    with pytest.raises(ValueError, match=r"The 'objective' parameter must be one of macro_f1.* Got 'accuracy'"):
        tune_thresholds([[1]], [[0.5]], objective="accuracy")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_cuts_are_the_best(name):
    """No other cuts score more, each label's own or one for all: every one is tried."""
    rng, score = np.random.default_rng(0), OBJECTIVES[name].score
    for _ in range(5):
        y_true, y_score = rng.integers(0, 2, (7, 3)), rng.integers(0, 5, (7, 3)) / 5
        cuts = [np.append(np.unique(column), 2.0) for column in y_score.T]
        best = max(score(y_true, apply_thresholds(y_score, cut)) for cut in product(*cuts))
        common = max(score(y_true, apply_thresholds(y_score, cut)) for cut in np.append(np.unique(y_score), 2.0))
        for strategy, expected in (("per_label", best), ("global", common)):
            tuned = tune_thresholds(y_true, y_score, objective=name, strategy=strategy, min_positives=1)
            assert score(y_true, apply_thresholds(y_score, tuned)) == pytest.approx(expected)


def test_everything_tuned_asks_the_objective(monkeypatch):
    """Thresholds, class weights and weights of blends follow `settings.objective`."""
    asked = []

    def score(y_true, y_pred):
        asked.append(len(y_true))
        return float(len(asked) == 4)

    monkeypatch.setitem(
        OBJECTIVES, "mine", Objective(score, lambda truth, *_: np.full(truth.shape[1], 0.25), lambda *_: 0.125)
    )
    settings = Thresholds(min_positives=1).model_copy(update={"objective": "mine"})
    labels, classes = task_of("multi_label", settings), task_of("single_label", settings)
    y_true, y_score = np.eye(2), np.array([[0.9, 0.1], [0.4, 0.6]])
    assert labels.tune(y_true, y_score).tolist() == [0.25, 0.25] and not asked
    joint = settings.model_copy(update={"strategy": "global"})
    assert task_of("multi_label", joint).tune(y_true, y_score).tolist() == [0.125, 0.125]
    skewed = np.array([[1, 0], [1, 0], [0, 1]])
    assert classes.tune(skewed, np.full((3, 2), 0.5)) == pytest.approx((np.array([4, 2]) / 3) ** 0.3)
    asked.clear()
    fit_blend("weights", labels, y_true, np.stack([y_score, y_score]))
    assert len(asked) > 3
