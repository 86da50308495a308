"""Rows that are only trained on: behind the training rows, never a copy of one, and known by themselves."""

import numpy as np
import pandas as pd
import pytest

from lora_cls.data import load_train
from lora_cls.errors import DataError
from lora_cls.recipe import Data


def table(texts, ids=None, **columns):
    ids = ids or [f"r{i}" for i in range(len(texts))]
    n = len(texts)
    return pd.DataFrame(
        {"id": ids, "text": texts, "joy": [i % 2 for i in range(n)], "fear": [1] + [0] * (n - 1)} | columns
    )


TRAIN = table(["one", "two", "three", "four"])


def test_behind_the_training_rows():
    """Extra rows come last, with ids of their own and groups of their own; the training rows are what they were."""
    alone = load_train(Data(), TRAIN)
    data = load_train(Data(), TRAIN, extra_train=table(["five", "six", "five "]))
    assert data.ids == [*alone.ids, "extra-r0", "extra-r1", "extra-r2"]
    assert data.texts == ["one", "two", "three", "four", "five", "six", "five "]
    assert data.extra.tolist() == [False] * 4 + [True] * 3
    assert data.groups.tolist() == [0, 1, 2, 3, 4, 5, 4]
    assert data.labels.tolist() == [[0, 1], [1, 0], [0, 0], [1, 0], [0, 1], [1, 0], [0, 0]]
    assert data.subset(~data.extra).fingerprint() == alone.fingerprint()
    assert data.subset(data.extra).fingerprint() != data.subset([4, 5]).fingerprint()
    assert any("3 extra rows of the DataFrame of extra rows are trained on" in note for note in data.notes)


def test_copies_of_training_rows_are_left_out():
    """A text that stands in the training table would be trained on where its copy is held out."""
    data = load_train(Data(), TRAIN, extra_train=table([" one", "new", "two\n"]))
    assert data.texts[4:] == ["new"]
    assert any("left out 2 extra rows whose text stands in the training table" in note for note in data.notes)
    none = load_train(Data(), TRAIN, extra_train=table(["one", "two"]))
    assert len(none) == 4
    assert not none.extra.any()


def test_extra_rows_from_a_file(tmp_path):
    """Named in the recipe; no ids are needed; columns beyond text and labels do not matter."""
    table(["five", "six"], more=["a b", "c d"]).drop(columns="id").to_csv(tmp_path / "extra.csv", index=False)
    data = load_train(Data(extra_train=str(tmp_path / "extra.csv")), TRAIN)
    assert data.ids[4:] == ["extra-row-0", "extra-row-1"]


def test_groups_of_extra_rows():
    """A value that training rows have too puts an extra row into their group; their own groups stay as they are."""
    train = TRAIN.assign(author=["x", "y", "x", None])
    extra = table(["five", "six", "seven", "five"], author=["y", "z", None, "q"])
    data = load_train(Data(group_column="author"), train, extra_train=extra)
    assert data.groups[:4].tolist() == load_train(Data(group_column="author"), train).groups.tolist() == [0, 1, 0, 2]
    five, six, seven, five_again = data.groups[4:]
    assert five == five_again == 1
    assert len({six, seven, 0, 1, 2}) == 5


def test_weights_soft_labels_and_splits_of_extra_rows():
    """Soft labels and weights are read where they are; without weights each weighs 1, and no split is needed."""
    train = TRAIN.assign(w=[2, 2, 0, 1], part=["train", "val"] * 2, joy=[0.5, 0.25, 1, 0])
    config = Data(weight_column="w", split_column="part", soft_labels=True)
    data = load_train(config, train, extra_train=table(["five", "six"], joy=[0.75, 0.1]))
    assert data.row_weight.tolist() == [2, 2, 0, 1, 1, 1]
    np.testing.assert_array_equal(data.targets[4:, 0], np.float32([0.75, 0.1]))
    assert data.held_out.tolist() == [False, True, False, True, False, False]
    assert any("have no column 'w': each weighs 1" in note for note in data.notes)
    weighted = load_train(config, train, extra_train=table(["five", "six"], w=[0.5, 0]))
    assert weighted.row_weight[4:].tolist() == [0.5, 0]


def test_mistakes_in_extra_rows():
    """All at once, with the file's name; ids that would clash; on_missing counts for them too."""
    with pytest.raises(DataError, match=r"the DataFrame of extra rows: 1 problem\n.*no column 'joy'.*mean 'joi'"):
        load_train(Data(), TRAIN, extra_train=table(["five"]).rename(columns={"joy": "joi"}))
    wrong = table(["five", "", "six"], joy=[2, 1, None], w=[1, -1, 1])
    with pytest.raises(DataError) as error:
        load_train(Data(weight_column="w"), TRAIN.assign(w=1), extra_train=wrong)
    for expected in ("4 problems", "has 2", "1 empty text", "missing label", "row 1 has -1"):
        assert expected in str(error.value)
    clashing = TRAIN.assign(id=["extra-r0", "b", "c", "d"])
    with pytest.raises(DataError, match="stand in the training table too: extra-r0"):
        load_train(Data(), clashing, extra_train=table(["five"]))
    dropped = load_train(Data(on_missing="drop"), TRAIN, extra_train=table(["five", "", "six"], joy=[1, 1, None]))
    assert dropped.texts[4:] == ["five"]
    assert any("dropped 2 of 3 extra rows" in note for note in dropped.notes)
