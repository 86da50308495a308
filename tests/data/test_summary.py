"""The summary: counts a user can check by hand, ready for JSON."""

import json

import pandas as pd
import pytest

from lora_cls.data import load_test, load_train, summarize
from lora_cls.recipe import Data


@pytest.fixture
def train():
    return load_train(
        Data(),
        pd.DataFrame(
            {
                "id": ["a", "b", "c", "d", "e"],
                "text": ["one two", "one two ", "three", "three", "a b c d"],
                "joy": [1, 0, 1, 1, 0],
                "fear": [0, 0, 1, 1, 0],
            }
        ),
    )


def test_train_summary(train):
    """Rows, label rates, words and duplicates, with the copies that disagree."""
    found = json.loads(json.dumps(summarize(train)))["train"]
    assert found["rows"] == 5
    assert found["groups"] == 3
    assert found["labels"] == [
        {"name": "joy", "positives": 3, "prevalence": 0.6},
        {"name": "fear", "positives": 2, "prevalence": 0.4},
    ]
    assert found["rows_without_label"] == {"count": 2, "share": 0.4}
    assert found["rows_with_several_labels"] == {"count": 2, "share": 0.4}
    assert found["words"]["mean"] == 2.0
    assert found["words"]["max"] == 4
    assert found["duplicates"] == {
        "texts": 2, "extra_rows": 2, "conflicting_texts": 1, "conflicting_examples": [["a", "b"]]
    }  # fmt: skip
    assert summarize(train)["test"] is None


def test_test_summary(train):
    """Texts that stand in both tables are counted; an empty text is empty, and no overlap."""
    test = load_test(
        Data(text_columns=["text"]), pd.DataFrame({"id": [1, 2, 3, 4], "text": [" three", "", "new", "x"]})
    )
    found = json.loads(json.dumps(summarize(train, test)))["test"]
    assert found["rows"] == 4
    assert found["empty_texts"] == 1
    assert found["texts_also_in_train"] == {"count": 1, "share": 0.25, "examples": ["1"]}
