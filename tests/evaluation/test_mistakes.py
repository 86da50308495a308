"""Tables of mistakes: which rows, in which order."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from lora_cls.evaluation import mistakes
from lora_cls.evaluation.mistakes import (
    class_doubts,
    co_occurrence,
    confident_mistakes,
    confusion,
    label_doubts,
    taken_for,
)


def test_confident_mistakes():
    """False positives by falling score, false negatives by rising score; right decisions never."""
    y_true, y_pred = [0, 0, 0, 1, 1, 1], [1, 1, 0, 0, 0, 1]
    wrongly, missed = confident_mistakes(y_true, y_pred, [0.6, 0.9, 0.1, 0.4, 0.2, 0.9], n=5)
    assert wrongly.tolist() == [1, 0]
    assert missed.tolist() == [4, 3]
    assert [len(rows) for rows in confident_mistakes(y_true, y_pred, np.zeros(6), n=1)] == [1, 1]


def test_matrices_of_classes():
    """The confusion matrix is scikit-learn's, and what is taken for another is the part off its diagonal."""
    rng = np.random.default_rng(0)
    true, decided = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    expected = confusion_matrix(true, decided)
    assert (confusion(np.eye(4)[true], np.eye(4)[decided]) == expected).all()
    assert (taken_for(np.eye(4)[true], np.eye(4)[decided]) == expected - np.diag(np.diag(expected))).all()


def test_labels_together():
    """Pairs that stand together, and pairs of a missed and a wrongly given label in one row."""
    y_true, y_pred = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]]), np.array([[1, 0, 1], [0, 1, 1], [0, 0, 1]])
    assert co_occurrence(y_true).tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert taken_for(y_true, y_pred).tolist() == [[0, 1, 1], [0, 0, 1], [0, 0, 0]]


def test_swapped_labels_are_found():
    """Of 400 rows 12 have a wrong label: all 12 are in doubt, and nearly all stand first."""
    rng = np.random.default_rng(1)
    clean = rng.random((400, 2)) < [0.3, 0.1]
    y_score = np.clip(np.where(clean, 0.8, 0.1) + rng.normal(0, 0.08, clean.shape), 0, 1)
    y_true = clean.copy()
    wrong = rng.choice(400, 12, replace=False)
    y_true[wrong, 0] ^= True
    found = label_doubts(y_true, y_score)
    first = set(zip(found.rows[:12].tolist(), found.labels[:12].tolist(), strict=True))
    assert len(first & {(int(i), 0) for i in wrong}) >= 11
    assert {(int(i), 0) for i in wrong} <= set(zip(found.rows.tolist(), found.labels.tolist(), strict=True))


def test_swapped_classes_are_found():
    """With one class per row the doubt names the class that the model would give."""
    rng = np.random.default_rng(1)
    clean = rng.integers(0, 3, 300)
    y_score = np.eye(3)[clean] * 0.7 + 0.1 + rng.normal(0, 0.02, (300, 3))
    y_score /= y_score.sum(axis=1, keepdims=True)
    given = clean.copy()
    given[:9] = (clean[:9] + 1) % 3
    found = class_doubts(np.eye(3)[given], y_score)
    assert sorted(found.rows[:9]) == list(range(9))
    assert (found.labels[:9] == clean[found.rows[:9]]).all()


def test_labels_without_rows():
    """A label that no row has, and one that every row has, are never in doubt."""
    y_true = np.tile([0, 1], (20, 1))
    found = label_doubts(y_true, np.random.default_rng(0).random((20, 2)))
    assert len(found.rows) == 0


@pytest.mark.parametrize("levels", [4, 10**6])
def test_doubts_are_the_same_by_blocks_of_labels(monkeypatch, levels):
    """Blocks bound the memory of many labels, and change neither the doubts nor their order, also of equal ones."""
    rng = np.random.default_rng(levels)
    y_true, y_score = rng.random((60, 7)) < 0.3, rng.integers(0, levels, (60, 7)) / levels
    whole = label_doubts(y_true, y_score)
    monkeypatch.setattr(mistakes, "_BLOCK", 1)
    parts = label_doubts(y_true, y_score)
    assert np.array_equal(parts.rows, whole.rows) and np.array_equal(parts.labels, whole.labels)
