"""Abstaining: edges by brute force, and a precision that other rows confirm."""

import numpy as np
import pytest

from lora_cls.evaluation.abstention import Abstention, abstention_scores


def rows(n, seed, n_labels=3):
    """Labels that are as probable as their scores say, the scores with ties; decided at 0.4."""
    rng = np.random.default_rng(seed)
    y_score = np.round(rng.random((n, n_labels)), 2)
    return (rng.random((n, n_labels)) < y_score).astype(int), y_score, (y_score >= 0.4).astype(int)


@pytest.mark.parametrize("seed", range(20))
def test_edges_are_the_widest(seed):
    """Every score is tried as an edge: the least that keeps the precision, one wrong answer added."""
    y_true, y_score, y_pred = rows(40, seed)
    for precision in (0.5, 0.7, 0.9):
        band = Abstention.fit(y_true, y_score, y_pred, precision, exclusive=False)
        for j in range(3):
            for side, edge, sign in ((1, band.yes[j], 1), (0, band.no[j], -1)):
                decided = y_pred[:, j] == side
                kept = []
                for cut in y_score[decided, j]:
                    inside = decided & (sign * y_score[:, j] >= sign * cut)
                    if (y_true[inside, j] == side).sum() / (inside.sum() + 1) >= precision:
                        kept.append(sign * cut)
                assert sign * edge == (min(kept) if kept else np.inf)


def test_precision_holds_on_other_rows():
    """Of rows that chose no edge; and what is answered is a part of what was decided."""
    fitted, new = rows(4000, 0), rows(4000, 1)
    band = Abstention.fit(*fitted, 0.85, exclusive=False)
    answered = band.answered(*new[1:])
    found = abstention_scores(new[0], new[2], answered, ["a", "b", "c"], exclusive=False)
    for row in found["per_label"]:
        assert row["precision_yes"] == pytest.approx(0.85, abs=0.03) and row["precision_yes_without"] < 0.75
        assert row["precision_no"] == pytest.approx(0.85, abs=0.03) and row["precision_no_without"] < 0.83
    assert found["right"] > found["right_without"]
    assert found["coverage"] == answered.mean() and found["rows_answered"] == answered.all(axis=1).mean()


def test_nothing_is_left_out_where_all_is_right_enough():
    """The band is empty, and covers every decision."""
    y_true = np.repeat([[1], [0]], 50, axis=0)
    y_score = np.where(y_true, 0.9, 0.1)
    band = Abstention.fit(y_true, y_score, y_true, 0.9, exclusive=False)
    assert band.answered(y_score, y_true).all()


def test_few_rows_promise_little():
    """Eight right answers of eight are not nine of ten; without any decision there is no edge."""
    y_true = np.ones((8, 1), dtype=int)
    assert Abstention.fit(y_true, y_true * 0.9, y_true, 0.9, exclusive=False).yes[0] == np.inf
    band = Abstention.fit(y_true, y_true * 0.1, 0 * y_true, 0.5, exclusive=False)
    assert band.yes[0] == np.inf and band.no[0] == -np.inf
    assert not band.answered(y_true * 0.1, 0 * y_true).any()


def test_classes():
    """A row's answer is the class decided, or none."""
    rng = np.random.default_rng(0)
    y_score = rng.dirichlet([0.4, 0.4, 0.4], 3000)
    drawn = (rng.random((3000, 1)) > y_score.cumsum(axis=1)).sum(axis=1).clip(max=2)
    y_true, y_pred = np.eye(3, dtype=int)[drawn], np.eye(3, dtype=int)[y_score.argmax(axis=1)]
    band = Abstention.fit(y_true[:1500], y_score[:1500], y_pred[:1500], 0.95, exclusive=True)
    assert band.no is None
    answered = band.answered(y_score[1500:], y_pred[1500:])
    assert (answered.all(axis=1) == answered.any(axis=1)).all()
    found = abstention_scores(y_true[1500:], y_pred[1500:], answered, "abc", exclusive=True)
    assert found["right"] == pytest.approx(0.95, abs=0.03) and found["right_without"] < 0.85
    assert found["coverage"] == found["rows_answered"]


@pytest.mark.parametrize("precision", [0, 1, 1.5, float("nan")])
def test_a_precision_that_is_none(precision):
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        Abstention.fit([[1]], [[0.5]], [[1]], precision, exclusive=False)
