"""Row weights and a predefined split: read, checked, and part of what a run is known by."""

import numpy as np
import pandas as pd
import pytest

from lora_cls.data import load_train
from lora_cls.errors import DataError, RecipeError
from lora_cls.recipe import Data, load_recipe


def table(**columns):
    ids = ["a", "b", "c", "d"]
    return pd.DataFrame({"id": ids, "text": [f"text {i}" for i in ids], "joy": [1, 0, 1, 0], **columns})


def message(config, frame):
    with pytest.raises(DataError) as error:
        load_train(config, frame)
    return str(error.value)


def test_weights():
    """Weights are numbers of 0 or more, belong to their rows, and are no labels though they be 0 and 1."""
    config = Data(weight_column="w")
    data = load_train(config, table(w=["1", "0", " 2.5 ", "1e-3"]))
    assert data.row_weight.tolist() == [1, 0, 2.5, 0.001]
    assert data.label_names == ["joy"]
    assert data.subset([2, 0]).row_weight.tolist() == [2.5, 1]
    assert data.fingerprint() != load_train(config, table(w=[1, 0, 2.5, 1])).fingerprint()
    assert load_train(config, table(w=[0, 1, 1, 1])).label_names == ["joy"]
    dropped = load_train(Data(weight_column="w", on_missing="drop"), table(w=[1, 2, 3, 4], joy=[1, None, 0, 1]))
    assert dropped.row_weight.tolist() == [1, 3, 4]


def test_wrong_weights():
    """Every row whose weight is missing, negative, infinite or no number is named; so is a column of zeros."""
    text = message(Data(weight_column="w"), table(w=["", "-1", "inf", "x"]))
    assert "expected a number of 0 or more, but row 0 has '', row 1 has '-1', row 2 has 'inf', row 3 has 'x'" in text
    assert "but row 3 has nan" in message(Data(weight_column="w"), table(w=[1.0, 2.0, 3.0, None]))
    assert "every row weighs 0" in message(Data(weight_column="w"), table(w=[0, 0, 0, 0]))
    assert "Did you mean 'w8'?" in message(Data(weight_column="w88"), table(w8=[1, 1, 1, 1]))
    assert "w cannot be a label" in message(Data(weight_column="w", label_columns=["w"]), table(w=[1, 1, 1, 1]))


def test_split():
    """Words for either part, in any case, with blanks around them."""
    data = load_train(Data(split_column="part"), table(part=["Train", " VAL ", "training", "dev"]))
    assert data.held_out.tolist() == [False, True, False, True]
    (note,) = [note for note in data.notes if "held out" in note]
    assert note.startswith("2 rows are held out by data.split_column 'part', as one fold (1 train, 1 val, 1 training")
    other = load_train(Data(split_column="part"), table(part=["train", "train", "train", "test"]))
    assert other.fingerprint() != data.fingerprint()


def test_wrong_split():
    """Unknown words and empty cells are named; so is a part without rows; 0 and 1 may mean either."""
    text = message(Data(split_column="part"), table(part=["train", "x", "", "x"]))
    assert "it holds 'x' (2 rows), an empty cell (1 row); the first at row 1" in text
    assert "it holds 1 (2 rows), 0 (2 rows)" in message(Data(split_column="part"), table(part=[1, 0, 1, 0]))
    assert "no row is held out (4 train)" in message(Data(split_column="part"), table(part=["train"] * 4))
    assert "no row is left to train on (4 test)" in message(Data(split_column="part"), table(part=["test"] * 4))
    with pytest.raises(RecipeError, match="either folds or split_column"):
        load_recipe({"tfidf": {}, "data": {"folds": "f.csv", "split_column": "part"}})


def test_split_of_dropped_rows():
    """A part is judged by the rows that stay."""
    frame = table(part=["train", "train", "val", "val"], joy=[1, 0, None, None])
    assert "no row is held out (2 train)" in message(Data(split_column="part", on_missing="drop"), frame)
    kept = load_train(Data(split_column="part", on_missing="drop"), frame.assign(joy=[1, None, None, 0]))
    np.testing.assert_array_equal(kept.held_out, [False, True])
