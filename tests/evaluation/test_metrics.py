"""Metrics are compared with scikit-learn's."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn import metrics as sk

from lora_cls.evaluation import f1_scores, macro_f1, summary
from lora_cls.evaluation.metrics import exact_match, label_table, micro_f1

NAMES = ["never", "rare", "common", "always"]


@pytest.fixture(params=range(5))
def problem(request):
    """80 rows; one label never occurs, one always, and the second is never predicted."""
    rng = np.random.default_rng(request.param)
    y_true = (rng.random((80, 4)) < [0.0, 0.1, 0.5, 1.0]).astype(int)
    y_true[0, 1] = 1
    y_score = np.round(np.clip(0.6 * rng.random((80, 4)) + 0.4 * y_true, 0, 1), 2)
    y_pred = (y_score >= [0.5, 2.0, 0.5, 0.5]).astype(np.int8)
    return y_true, y_pred, y_score


def test_f1_and_exact_match_equal_scikit_learn(problem):
    """Labels that never occur or are never predicted count as 0, as with zero_division=0."""
    y_true, y_pred, _ = problem
    y_pred[:, 0] = 0  # neither occurs nor predicted: 0 / 0
    assert f1_scores(y_true, y_pred) == pytest.approx(sk.f1_score(y_true, y_pred, average=None, zero_division=0))
    assert macro_f1(y_true, y_pred) == pytest.approx(sk.f1_score(y_true, y_pred, average="macro", zero_division=0))
    assert micro_f1(y_true, y_pred) == pytest.approx(sk.f1_score(y_true, y_pred, average="micro", zero_division=0))
    assert exact_match(y_true, y_pred) == pytest.approx(sk.accuracy_score(y_true, y_pred))
    assert f1_scores(y_true, y_pred)[0] == 0


def test_label_table_equals_scikit_learn(problem):
    """Precision, recall and the ranking metrics belong to the right label, and are None where only one class is."""
    y_true, y_pred, y_score = problem
    precision, recall, f1, support = sk.precision_recall_fscore_support(y_true, y_pred, zero_division=0)
    table = label_table(y_true, y_pred, y_score, NAMES, thresholds=[0.5, 2.0, 0.5, 0.5])
    assert [row["label"] for row in table] == NAMES
    for key, expected in [("precision", precision), ("recall", recall), ("f1", f1), ("support", support)]:
        assert [row[key] for row in table] == pytest.approx(list(expected))
    for j, row in enumerate(table):
        if j in (0, 3):
            assert row["roc_auc"] is None
            assert row["average_precision"] is None
        else:
            assert row["roc_auc"] == pytest.approx(sk.roc_auc_score(y_true[:, j], y_score[:, j]))
            assert row["average_precision"] == pytest.approx(sk.average_precision_score(y_true[:, j], y_score[:, j]))


def test_summary_is_strict_json_and_skips_undefined_labels(problem):
    """No NaN and no numpy number reaches the file; the means are over the labels where the metric exists."""
    y_true, y_pred, y_score = problem
    figures = summary(y_true, y_pred, y_score, NAMES)
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    expected = np.mean([sk.roc_auc_score(y_true[:, j], y_score[:, j]) for j in (1, 2)])
    assert figures["macro_roc_auc"] == pytest.approx(expected)
    assert figures["per_label"][0]["threshold"] is None


def test_summary_without_any_ranking_metric_has_none():
    """A slice of rows with one class in every label still gives a table."""
    figures = summary([[1], [1]], [[1], [0]], [[0.9], [0.1]], ["always"])
    assert figures["macro_roc_auc"] is None
    assert figures["macro_average_precision"] is None


@pytest.mark.parametrize(
    ("y_true", "y_pred", "message"),
    [
        ([[0, 1]], [[0], [1]], r"'y_pred' .*\(1, 2\).*Got \(2, 1\)"),
        ([[0, 2]], [[0, 1]], r"'y_true' .*only 0 and 1.*\[2\]"),
        ([[0, 1]], [[0.0, 0.7]], r"'y_pred' .*only 0 and 1.*0\.7"),
        ([0, 1], [0, 1], r"'y_true' .*2 dimension"),
        (np.empty((0, 2)), np.empty((0, 2)), r"'y_true' .*rows"),
    ],
)
def test_arrays_that_are_no_decisions_are_refused(y_true, y_pred, message):
    """Probabilities passed as decisions, a transposed array or no rows at all are named, not scored."""
    with pytest.raises(ValueError, match=message):
        macro_f1(y_true, y_pred)


def test_label_names_must_fit():
    """A missing name would shift the table."""
    with pytest.raises(ValueError, match=r"'label_names' .*2 label.*Got 1"):
        label_table([[0, 1]], [[0, 1]], [[0.1, 0.9]], ["only"])
