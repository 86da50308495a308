"""Folds: every row once, groups whole, labels spread evenly."""

import numpy as np
import pandas as pd
import pytest

from lora_cls.data import fold_notes, read_folds, stratified_folds
from lora_cls.errors import DataError


@pytest.fixture(scope="module")
def synthetic():
    """2,000 rows, five labels from 3 % to 60 %, a quarter of the rows in groups of several."""
    random = np.random.default_rng(0)
    labels = (random.random((2000, 5)) < [0.03, 0.1, 0.2, 0.4, 0.6]).astype(np.int8)
    groups = np.arange(2000)
    groups[:500] = random.integers(0, 200, 500)
    return labels, groups


def test_every_row_has_one_fold(synthetic):
    """Folds are 0 to 9, about equal in size."""
    fold = stratified_folds(*synthetic)
    assert fold.shape == (2000,)
    assert fold.dtype == np.int64
    counts = np.bincount(fold)
    assert len(counts) == 10
    assert counts.min() > 150
    assert counts.max() < 250


def test_groups_stay_whole(synthetic):
    """No group has rows in two folds."""
    _, groups = synthetic
    fold = stratified_folds(*synthetic)
    assert all(len(set(fold[groups == group])) == 1 for group in np.unique(groups))


def test_labels_are_spread_evenly(synthetic):
    """Each fold has its tenth of every label's positives and of the rows without a label, and so about its share."""
    labels, _ = synthetic
    fold = stratified_folds(labels, np.arange(len(labels)))
    target = np.column_stack([labels, ~labels.any(axis=1)])
    counts = np.stack([target[fold == k].sum(axis=0) for k in range(10)])
    np.testing.assert_allclose(counts, np.tile(target.sum(axis=0) / 10, (10, 1)), atol=2)
    shares = counts / np.bincount(fold)[:, None]
    np.testing.assert_allclose(shares, np.tile(target.mean(axis=0), (10, 1)), atol=0.03)


def test_same_inputs_same_folds(synthetic):
    """Folds depend on the seed and on nothing else, such as the global random state or group numbers."""
    labels, groups = synthetic
    first = stratified_folds(labels, groups)
    np.random.seed(1)
    np.testing.assert_array_equal(first, stratified_folds(labels, groups * 3 + 7))
    assert (first != stratified_folds(labels, groups, random_state=43)).any()


@pytest.mark.parametrize("labels", [np.ones((20, 1)), np.zeros((20, 1)), np.eye(20)[:, :1], np.zeros((20, 3))])
def test_odd_labels(labels):
    """One label, constant labels and no positives at all can be split."""
    fold = stratified_folds(labels, np.arange(20), n_splits=5)
    assert np.bincount(fold).tolist() == [4] * 5


def test_too_few_groups():
    """Fewer groups than folds: the message says how many there are and what to set."""
    with pytest.raises(DataError, match=r"3 groups .* 10 folds.*cv.n_splits to 3 or less"):
        stratified_folds(np.ones((30, 2)), np.repeat([0, 1, 2], 10))
    with pytest.raises(DataError, match="at least 2"):
        stratified_folds(np.ones((30, 2)), np.arange(30), n_splits=1)
    with pytest.raises(DataError, match=r"\(30, 2\) and \(29,\)"):
        stratified_folds(np.ones((30, 2)), np.arange(29))


def test_fold_notes():
    """Rare labels, labels absent from a fold, and split groups are named; good folds have no note."""
    fold = np.repeat([0, 1, 2], 4)
    even = np.tile([1, 0, 1, 0], 3)
    assert fold_notes(even[:, None], fold, ["even"], np.arange(12)) == []
    rare, clumped = (np.arange(12) == 0).astype(int), (fold == 1).astype(int)
    notes = fold_notes(np.column_stack([even, rare, clumped]), fold, ["even", "rare", "clumped"], np.arange(12) % 6)
    assert len(notes) == 3
    assert "'rare' has 1 positive" in notes[0]
    assert "'clumped' has no positive row in fold 0, 2" in notes[1]
    assert "groups are split" in notes[2]


def test_read_folds_in_any_order(tmp_path):
    """Folds come back in the order of the ids; 007 is not 7."""
    (tmp_path / "folds.csv").write_text("fold,id\n1,b\n0,007\n1,7\n", encoding="utf-8")
    assert read_folds(tmp_path / "folds.csv", ["007", "7", "b"]).tolist() == [0, 1, 1]
    frame = pd.DataFrame({"tweet_id": ["a", "b"], "fold": [0.0, 1.0]})
    assert read_folds(frame, ["a", "b"], id_column="tweet_id").tolist() == [0, 1]


@pytest.mark.parametrize(
    ("ids", "fold", "expected"),
    [
        (["a", "b"], [0, 1], "1 training ids have no fold: c"),
        (["a", "b", "c", "d"], [0, 1, 0, 1], "1 ids are not in the training table: d"),
        (["a", "b", "c", "a"], [0, 1, 0, 1], "row 3: id 'a' stands more than once"),
        (["a", "b", "c"], [0, 1, 1.5], "row 2: fold must be an integer from 0, or -1 (only trained on). Got 1.5"),
        (["a", "b", "c"], [0, 1, -2], "row 2: fold must be an integer from 0, or -1 (only trained on). Got -2"),
        (["a", "b", "c"], [0, "x", None], "row 1: fold must be an integer from 0, or -1 (only trained on). Got 'x'"),
        (["a", "b", "c"], [-1, -1, -1], "one and rows of fold -1 to train on. Got none"),
        (["a", "b", "c"], [1, 2, 2], "no row has fold 0"),
        (["a", "b", "c"], [0, 0, 0], "at least two folds"),
        (["a", "b", ""], [0, 1, 1], "row 2: no id"),
    ],
)
def test_read_folds_problems(ids, fold, expected):
    """Each way in which folds do not fit the training table has its message."""
    with pytest.raises(DataError) as error:
        read_folds(pd.DataFrame({"id": ids, "fold": pd.Series(fold, dtype=object)}), ["a", "b", "c"])
    assert expected in str(error.value)


def test_read_folds_of_a_split():
    """Fold -1 is only trained on: one fold is then enough. Extra rows need no line, and are never held out; a sample
    needs no line for each row of the table."""
    frame = pd.DataFrame({"id": ["a", "b", "c"], "fold": [0, -1, 0]})
    assert read_folds(frame, ["c", "b", "a"]).tolist() == [0, -1, 0]
    extra = np.array([False, False, False, True])
    assert read_folds(frame, ["a", "b", "c", "extra-1"], extra=extra).tolist() == [0, -1, 0, -1]
    assert read_folds(frame, ["b", "c"], sampled=True).tolist() == [-1, 0]
    scored = pd.DataFrame({"id": ["a", "b", "c", "extra-1"], "fold": [0, -1, 0, 0]})
    with pytest.raises(DataError, match="1 extra rows have a fold, but are never held out: extra-1"):
        read_folds(scored, ["a", "b", "c", "extra-1"], extra=extra)


def test_notes_of_a_split():
    """Labels that only one part has are named, and groups that stand in both."""
    fold = np.array([-1, -1, -1, 0, 0])
    labels = np.array([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]])
    notes = fold_notes(labels, fold, ["both", "train", "held", "none"], np.array([0, 1, 2, 2, 3]))
    assert [note.split(":")[0].removesuffix(".") for note in notes] == [
        "label 'train' has no positive row among the held-out rows",
        "label 'held' has no positive row to train on",
        "label 'none' has no positive row among the held-out rows",
        "1 group is split over folds (identical texts or one value of the group column)",
    ]


def test_read_folds_without_its_columns():
    """A table without the column fold names the nearest column."""
    with pytest.raises(DataError, match=r"no column 'fold'\. Did you mean 'folds'\?"):
        read_folds(pd.DataFrame({"id": ["a"], "folds": [0]}), ["a"])
