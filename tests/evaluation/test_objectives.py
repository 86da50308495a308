"""The best cuts for every metric are compared with every possible cut, tried one by one."""

from itertools import product
from typing import get_args

import numpy as np
import pytest

from lora_cls.choices import DecisionMetric, MetricName, ScoreMetric
from lora_cls.evaluation import apply_thresholds, fit_blend, task_of, tune_thresholds
from lora_cls.evaluation.metric import TITLES, Metric, exact_rows, jaccard_rows
from lora_cls.evaluation.objectives import (
    ascend,
    between,
    f1_rate,
    f_beta_rate,
    highest_best_cut,
    mcc_rate,
    right_rate,
)
from lora_cls.recipe import Thresholds

LOCAL = ("samples_jaccard", "accuracy")
"""Their cuts are a local optimum."""


def metric_of(name, exclusive=False):
    return Metric(name, 2.0 if name == "f_beta" else None, exclusive)


def score(metric, y_true, y_score, cuts):
    return metric.score(y_true, apply_thresholds(y_score, cuts), y_score)


def problem(rng, n=7, levels=5):
    """Labels with at least a positive row each, and scores with ties."""
    y_true = rng.integers(0, 2, (n, 3))
    y_true[rng.integers(n, size=3), range(3)] = 1
    return y_true, rng.integers(0, levels, y_true.shape) / levels


def every_cut(y_score):
    return [np.append(np.unique(column), 2.0) for column in y_score.T]


def test_names_are_those_of_the_recipe():
    """A metric has one of the recipe's names, and no other."""
    assert tuple(TITLES) == get_args(MetricName)
    with pytest.raises(ValueError, match=r"The 'metric' must be one of macro_f1.* Got 'f1'"):
        Metric("f1")


@pytest.mark.parametrize("name", [name for name in get_args(DecisionMetric) if name not in LOCAL])
@pytest.mark.parametrize("seed", range(12))
def test_cuts_of_labels_are_the_best_of_all(name, seed):
    """No other cuts score more, also where labels are coupled (micro-F1), and with ties."""
    metric, (y_true, y_score) = metric_of(name), problem(np.random.default_rng(seed), levels=3 + seed)
    best = max(score(metric, y_true, y_score, cut) for cut in product(*every_cut(y_score)))
    tuned = tune_thresholds(y_true, y_score, metric=metric, min_positives=1)
    assert score(metric, y_true, y_score, tuned) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("name", get_args(DecisionMetric))
@pytest.mark.parametrize("seed", range(12))
def test_one_cut_for_all_labels_is_the_best(name, seed):
    """`strategy: global` is exact for every metric."""
    metric, (y_true, y_score) = metric_of(name), problem(np.random.default_rng(seed), levels=3 + seed)
    y_true[0] = 0  # a row without any label
    y_true[1] = 1
    best = max(score(metric, y_true, y_score, cut) for cut in np.append(np.unique(y_score), 2.0))
    tuned = tune_thresholds(y_true, y_score, metric=metric, strategy="global", min_positives=1)
    assert score(metric, y_true, y_score, tuned) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize(("value", "name"), [(jaccard_rows, "samples_jaccard"), (exact_rows, "accuracy")])
@pytest.mark.parametrize("seed", range(12))
def test_ascent_of_coupled_labels_ends_where_no_single_cut_gains(value, name, seed):
    """Never below its start; and no label's cut can be moved for the better, of all cuts that it has."""
    rng, metric = np.random.default_rng(seed), metric_of(name)
    y_true, y_score = problem(rng, n=12)
    start = rng.random(3)
    found = ascend(y_true == 1, y_score, 1, start, value)
    reached = score(metric, y_true, y_score, found)
    assert reached >= score(metric, y_true, y_score, start)
    for j, cuts in enumerate(every_cut(y_score)):
        for cut in cuts:
            moved = found.copy()
            moved[j] = cut
            assert score(metric, y_true, y_score, moved) <= reached + 1e-12
    tuned = tune_thresholds(y_true, y_score, metric=metric, min_positives=1)
    plain = tune_thresholds(y_true, y_score, min_positives=1)
    assert score(metric, y_true, y_score, tuned) >= score(metric, y_true, y_score, plain) - 1e-12


@pytest.mark.parametrize("name", get_args(DecisionMetric))
def test_one_label_alone_has_its_best_cut(name):
    """With a single label, what is local otherwise is exact."""
    metric = metric_of(name)
    for seed in range(10):
        y_true, y_score = (part[:, :1] for part in problem(np.random.default_rng(seed)))
        best = max(score(metric, y_true, y_score, [cut]) for cut in every_cut(y_score)[0])
        tuned = tune_thresholds(y_true, y_score, metric=metric, min_positives=1)
        assert score(metric, y_true, y_score, tuned) == pytest.approx(best)


@pytest.mark.parametrize("name", get_args(MetricName))
def test_labels_with_few_positives_keep_the_default_whatever_the_metric(name):
    """A cut that chance would set is not set."""
    rng = np.random.default_rng(1)
    y_true = np.c_[rng.integers(0, 2, 40), np.eye(40)[0]].astype(int)
    tuned = tune_thresholds(y_true, rng.random((40, 2)), metric=metric_of(name), min_positives=5, default=0.4)
    assert tuned[1] == 0.4 and tuned[0] != 0.4


@pytest.mark.parametrize("name", get_args(DecisionMetric))
def test_a_label_of_every_row_is_always_given(name):
    """MCC of a label without negatives is 0 at any cut: it is not left out for that."""
    y_true, y_score = np.ones((6, 1), int), np.linspace(0.2, 0.7, 6)[:, None]
    assert tune_thresholds(y_true, y_score, metric=metric_of(name), min_positives=1).tolist() == [0.2]


def test_a_label_that_is_best_never_given_gets_a_cut_above_its_scores():
    """Most decisions are right without any: the cut lies above the highest score, also where that is 1."""
    y_true = np.zeros((20, 1), int)
    y_true[0] = 1
    for highest in (0.6, 1.0):
        y_score = np.full((20, 1), highest)
        cut = tune_thresholds(y_true, y_score, metric=Metric("accuracy"), min_positives=1)[0]
        assert highest < cut <= max(1.0, np.nextafter(highest, 2))


@pytest.mark.parametrize("name", get_args(ScoreMetric))
def test_metrics_of_scores_leave_thresholds_to_macro_f1(name):
    """Tables of labels still need decisions."""
    y_true, y_score = problem(np.random.default_rng(3), n=30)
    for strategy in ("per_label", "global"):
        tuned = tune_thresholds(y_true, y_score, metric=Metric(name), strategy=strategy, min_positives=1)
        assert np.array_equal(tuned, tune_thresholds(y_true, y_score, strategy=strategy, min_positives=1))


@pytest.mark.parametrize("name", ["macro_f1", "accuracy", "mcc", "f_beta"])
def test_weights_of_classes_follow_the_metric(name):
    """Of all powers of the shares the one that is best for the metric; accuracy and macro-F1 take different ones."""
    rng = np.random.default_rng(0)
    classes = rng.choice(3, 300, p=[0.8, 0.15, 0.05])
    y_true = np.eye(3, dtype=int)[classes]
    y_score = rng.dirichlet([1, 1, 1], 300) * 0.7 + 0.3 * y_true * rng.random((300, 1))
    y_score /= y_score.sum(axis=1, keepdims=True)
    task = task_of("single_label", Thresholds(), name, 2.0 if name == "f_beta" else None)
    shares = y_true.mean(axis=0) * 3
    reached = {tau: task.metric.score(y_true, task.apply(y_score, shares ** (tau / 10)), y_score) for tau in range(16)}
    assert task.tune(y_true, y_score) == pytest.approx(shares ** (max(reached, key=reached.get) / 10))


@pytest.mark.parametrize("name", get_args(MetricName))
def test_weights_of_a_blend_are_no_worse_than_equal_ones_or_one_run(name):
    """In the metric that is set, at thresholds tuned for it."""
    rng = np.random.default_rng(4)
    y_true = rng.integers(0, 2, (60, 3))
    runs = np.stack(
        [np.clip(0.5 + 0.2 * (y_true - 0.5) + rng.normal(0, s, y_true.shape), 0.01, 0.99) for s in (0.1, 0.3)]
    )
    task = task_of("multi_label", Thresholds(), name, 2.0 if name == "f_beta" else None)

    def reached(weights):
        proba = task.link.probabilities(np.tensordot(weights, task.link.logits(runs), axes=1))
        return task.metric.gain(y_true, task.apply(proba, task.tune(y_true, proba)), proba)

    weights = fit_blend("weights", task, y_true, runs)["weights"]
    assert reached(weights) >= max(map(reached, ([0.5, 0.5], [1, 0], [0, 1]))) - 1e-9


def every_row_tried(truth, scores, min_positives, default, rate):
    """The best cut of one label by the rate after every row, as a reference."""
    if truth.sum() < max(min_positives, 1):
        return default
    order = np.argsort(-scores, kind="stable")
    falling, found = scores[order], np.concatenate([[0], np.cumsum(truth[order])])
    values = np.rint(rate(found, np.arange(len(truth) + 1), truth.sum(), len(truth)) * 2**52)
    ends = np.flatnonzero(np.append(falling[:-1] != falling[1:], True)) + 1
    if values[ends].max() <= values[0]:
        return between(falling[0], 1.0) if falling[0] < 1 else np.nextafter(falling[0], np.inf)
    best = ends[np.argmax(values[ends])]
    return falling[-1] if best == len(truth) else between(falling[best], falling[best - 1])


@pytest.mark.parametrize("rate", [f1_rate, f_beta_rate(0.5), f_beta_rate(3.0), mcc_rate, right_rate])
def test_cuts_that_are_not_looked_at_are_not_the_best(rate):
    """Only cuts that take another positive are tried, and the very same cut is found as by trying all of them."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(1, 200))
        truth, scores = rng.random((n, 1)) < rng.random(), rng.integers(0, rng.choice([3, 40, 10**6]), (n, 1)) / 10**6
        found = highest_best_cut(truth, scores, 2, 0.5, rate)
        assert found == every_row_tried(truth[:, 0], scores[:, 0], 2, 0.5, rate)


@pytest.mark.parametrize("name", get_args(MetricName))
@pytest.mark.parametrize("levels", [3, 10**6])
def test_cuts_of_the_other_parts_are_those_of_their_rows_alone(name, levels):
    """All parts' cuts come of one sort of all rows, and are the same to the last bit."""
    metric, rng = metric_of(name), np.random.default_rng(levels)
    y_true, y_score = rng.random((150, 4)) < [0.0, 1.0, 0.05, 0.5], rng.integers(0, levels, (150, 4)) / levels
    part = rng.integers(0, 4, 150)
    found = metric.cut_others(y_true, y_score, part, 3, 0.5)
    expected = [metric.cut_each(y_true[part != k], y_score[part != k], 3, 0.5) for k in range(4)]
    np.testing.assert_array_equal(found, expected)
