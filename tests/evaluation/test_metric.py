"""Metrics are those of scikit-learn."""

from typing import get_args

import numpy as np
import pytest
import sklearn.metrics as sk

from lora_cls.choices import MetricName
from lora_cls.evaluation import (
    Answers,
    bootstrap_metric,
    bootstrap_metric_difference,
    bootstrap_metric_unpaired_difference,
    bootstrap_unpaired_difference,
)
from lora_cls.evaluation.metric import Metric

OF_LABELS = {
    "macro_f1": lambda t, d, s: sk.f1_score(t, d, average="macro", zero_division=0),
    "micro_f1": lambda t, d, s: sk.f1_score(t, d, average="micro", zero_division=0),
    "samples_jaccard": lambda t, d, s: sk.jaccard_score(t, d, average="samples", zero_division=0),
    "f_beta": lambda t, d, s: sk.fbeta_score(t, d, beta=2, average="macro", zero_division=0),
    "accuracy": lambda t, d, s: sk.accuracy_score(t, d),
    "mcc": lambda t, d, s: np.mean([sk.matthews_corrcoef(t[:, j], d[:, j]) for j in range(t.shape[1])]),
    "roc_auc": lambda t, d, s: sk.roc_auc_score(t, s, average="macro"),
    "average_precision": lambda t, d, s: sk.average_precision_score(t, s, average="macro"),
    "log_loss": lambda t, d, s: np.mean([sk.log_loss(t[:, j], s[:, j], labels=[0, 1]) for j in range(t.shape[1])]),
}
OF_CLASSES = {
    "macro_f1": lambda t, d, s: sk.f1_score(t, d, average="macro"),
    "f_beta": lambda t, d, s: sk.fbeta_score(t, d, beta=2, average="macro"),
    "accuracy": lambda t, d, s: sk.accuracy_score(t, d),
    "mcc": lambda t, d, s: sk.matthews_corrcoef(t, d),
    "roc_auc": lambda t, d, s: sk.roc_auc_score(t, s, average="macro", multi_class="ovr"),
    "log_loss": lambda t, d, s: sk.log_loss(t, s, labels=range(s.shape[1])),
}


def test_every_metric_is_compared():
    assert set(OF_LABELS) == set(get_args(MetricName))


@pytest.mark.parametrize("name", OF_LABELS)
@pytest.mark.parametrize("seed", range(6))
def test_metrics_of_labels_are_those_of_scikit_learn(name, seed):
    """Rows without labels, rows without decisions, and labels never decided are among them."""
    rng = np.random.default_rng(seed)
    y_true, y_pred = rng.integers(0, 2, (30, 4)), rng.integers(0, 2, (30, 4))
    y_true[0] = y_pred[0] = y_true[1] = y_pred[2] = 0
    y_pred[:, 3] = 0
    y_score = np.round(rng.random((30, 4)), 1)  # with ties, zeros and ones
    metric = Metric(name, 2.0 if name == "f_beta" else None)
    expected = OF_LABELS[name](y_true, y_pred, y_score)
    assert metric.score(y_true, y_pred, y_score) == pytest.approx(expected, abs=1e-12)
    assert metric.gain(y_true, y_pred, y_score) == pytest.approx(-expected if name == "log_loss" else expected)


@pytest.mark.parametrize("name", OF_CLASSES)
@pytest.mark.parametrize("seed", range(6))
def test_metrics_of_classes_are_those_of_scikit_learn(name, seed):
    """MCC is the one of several classes, not a mean over them; log loss is of the row's class."""
    rng = np.random.default_rng(seed)
    true, decided = rng.integers(0, 3, 30), rng.integers(0, 3, 30)
    y_score = rng.dirichlet([1, 1, 1], 30)
    metric = Metric(name, 2.0 if name == "f_beta" else None, exclusive=True)
    found = metric.score(np.eye(3)[true], np.eye(3)[decided], y_score)
    assert found == pytest.approx(OF_CLASSES[name](true, decided, y_score), abs=1e-12)


@pytest.mark.parametrize("name", ["roc_auc", "average_precision"])
def test_ranks_leave_out_labels_of_one_kind_and_are_undefined_without_any(name):
    """scikit-learn warns, and gives NaN or 0 for such a label."""
    y_true, y_score = np.array([[1, 1], [0, 1]]), np.array([[0.9, 0.1], [0.2, 0.3]])
    assert Metric(name).score(y_true, None, y_score) == 1.0
    assert np.isnan(Metric(name).score(y_true[:, 1:], None, y_score[:, 1:]))
    assert Metric(name).gain(y_true[:, 1:], None, y_score[:, 1:]) == -np.inf


@pytest.mark.parametrize("name", get_args(MetricName))
def test_arrays_that_do_not_fit_are_refused(name):
    """Shapes that differ, and no rows."""
    with pytest.raises(ValueError, match="must have the shape"):
        Metric(name, 2.0).score([[1, 0]], [[1]], [[0.5]])
    if name not in ("roc_auc", "average_precision"):
        with pytest.raises(ValueError, match="must have rows and labels"):
            Metric(name, 2.0).score(np.empty((0, 2)), np.empty((0, 2)), np.empty((0, 2)))


def drawn_anew(metric, y_true, y_pred, y_score, groups, n_resamples):
    """The metric of rows that are drawn and copied, group by group, by the draws of `bootstrap_metric`."""
    rng, names, found = np.random.default_rng(np.random.SeedSequence(0)), np.unique(groups), []
    for _ in range(n_resamples):
        rows = np.concatenate([np.flatnonzero(groups == names[k]) for k in rng.integers(len(names), size=len(names))])
        found.append(metric.score(y_true[rows], y_pred[rows], y_score[rows]))
    return np.array(found)


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("name", get_args(MetricName))
def test_intervals_are_those_of_rows_drawn_anew(name, exclusive):
    """Sums of draws, and ranks of draws, give what copying the rows gives; ties and groups included."""
    rng = np.random.default_rng(5)
    groups = rng.integers(0, 15, 40)
    if exclusive:
        y_true, y_pred = (np.eye(3, dtype=int)[rng.integers(0, 3, 40)] for _ in range(2))
        y_score = rng.dirichlet([1, 1, 1], 40)
    else:
        y_true, y_pred = rng.integers(0, 2, (2, 40, 3))
        y_score = np.round(rng.random((40, 3)), 1)
    metric = Metric(name, 2.0 if name == "f_beta" else None, exclusive)
    a, b = Answers(y_pred, y_score), Answers(1 - y_pred if not exclusive else y_pred[::-1], y_score[::-1])
    drawn, of_b = (drawn_anew(metric, y_true, one.y_pred, one.y_score, groups, 20) for one in (a, b))
    found = bootstrap_metric(metric, y_true, a, groups, n_resamples=20)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))
    assert found.estimate == metric.score(y_true, y_pred, y_score)
    sign = -1 if name == "log_loss" else 1
    gap = bootstrap_metric_difference(metric, y_true, a, b, groups, n_resamples=20)
    assert (gap.low, gap.high) == pytest.approx(tuple(np.quantile(sign * (drawn - of_b), [0.025, 0.975])))
    values = [metric.gain(y_true, one.y_pred, one.y_score) for one in (a, b)]
    assert gap.estimate == pytest.approx(values[0] - values[1])


def test_a_metric_that_is_undefined_has_no_interval():
    y_true, answers = np.ones((4, 1), int), Answers(np.ones((4, 1)), np.arange(4.0)[:, None])
    assert bootstrap_metric(Metric("roc_auc"), y_true, answers, np.arange(4), n_resamples=5) is None


@pytest.mark.parametrize("name", get_args(MetricName))
def test_unpaired_differences(name):
    """Rows of two tables, each drawn for itself: the estimate is the plain difference, within its interval, which is as
    wide as both tables' intervals say together; log loss is turned."""
    rng = np.random.default_rng(3)
    metric, sign = Metric(name, 2.0 if name == "f_beta" else None), -1.0 if name == "log_loss" else 1.0
    sets = []
    for n in (80, 120):
        y_score = rng.random((n, 3))
        y_true = (rng.random((n, 3)) < y_score).astype(int)
        sets.append((y_true, Answers((y_score > 0.5).astype(int), y_score), np.arange(n)))
    found = bootstrap_metric_unpaired_difference(metric, *sets[0], *sets[1])
    plain = [metric.score(y_true, answers.y_pred, answers.y_score) for y_true, answers, _ in sets]
    assert found.estimate == pytest.approx(sign * (plain[0] - plain[1]))
    alone = [bootstrap_metric(metric, *of) for of in sets]
    width = np.sqrt(sum((interval.high - interval.low) ** 2 for interval in alone))
    assert found.high - found.low == pytest.approx(width, rel=0.2)
    assert found.low < found.estimate < found.high
    assert found.n_groups == 200
    if name == "macro_f1":
        given = [(y_true, answers.y_pred, groups) for y_true, answers, groups in sets]
        assert found == bootstrap_unpaired_difference(*given[0], *given[1])


def test_an_undefined_metric_has_no_difference():
    """Of labels without positives there is no rank to compare."""
    rows = (np.zeros((4, 1)), Answers(np.zeros((4, 1)), np.full((4, 1), 0.5)), np.arange(4))
    assert bootstrap_metric_unpaired_difference(Metric("roc_auc"), *rows, *rows) is None
