"""Lists as labels: as values or as text, one meaning in every format; what is no list of names is refused."""

import json

import numpy as np
import pandas as pd
import pytest

from lora_cls.data import load_test, load_train
from lora_cls.data.names import list_items
from lora_cls.data.tables import Tables
from lora_cls.errors import DataError
from lora_cls.recipe import Data, load_recipe

LISTS = [["joy", "anger"], ["anger"], [], ["joy"]] * 6
TEXTS = [f"some text {i}" for i in range(len(LISTS))]
TEST = pd.DataFrame({"text": ["new text", "other text"]})
EXPECTED = [[1, 1], [1, 0], [0, 0], [0, 1]]
NAMED = Data(label_columns=["tags"])


def table(cells):
    return pd.DataFrame({"text": TEXTS, "tags": pd.Series(list(cells), dtype=object)})


def numpy_text(names):
    return "[" + " ".join(map(repr, names)) + "]"


def message(config, frame, **options):
    with pytest.raises(DataError) as error:
        load_train(config, frame, **options)
    return str(error.value)


@pytest.mark.parametrize("delimiter", [None, ","])
@pytest.mark.parametrize(
    "write", [list, tuple, set, np.array, str, json.dumps, numpy_text, lambda names: "[" + ", ".join(names) + "]"]
)
def test_lists_in_a_frame(write, delimiter):
    """However a list is written, its items are the labels, an empty one means none, and no delimiter splits it."""
    config = Data(label_columns=["tags"], label_delimiter=delimiter)
    data = load_train(config, table(map(write, LISTS)))
    assert data.label_names == ["anger", "joy"]
    assert data.labels[:4].tolist() == EXPECTED
    assert data.columns.task == "multi_label"
    assert any("splits none" in note for note in data.notes) == (delimiter is not None)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_lists_in_files(tmp_path, suffix):
    """Every format gives the same labels, also in a column that nobody named."""
    file = tmp_path / f"train{suffix}"
    frame = table(LISTS)
    if suffix == ".parquet":
        frame.to_parquet(file)
    elif suffix == ".jsonl":
        frame.to_json(file, orient="records", lines=True)
    else:
        frame.to_csv(file, index=False, sep="\t" if suffix == ".tsv" else ",")
    for config in (NAMED, Data()):
        data = load_train(config, file, TEST)
        assert data.label_names == ["anger", "joy"]
        assert data.labels[:4].tolist() == EXPECTED


def test_extra_rows_may_be_written_otherwise():
    """Lists in the training table, delimited text in the extra rows: each table says itself how it is written."""
    config = Data(label_columns=["tags"], label_delimiter="|")
    extra = pd.DataFrame({"text": ["an extra text", "another"], "tags": ["joy|anger", "joy"]})
    data = load_train(config, table(LISTS), extra_train=extra)
    assert data.labels[-2:].tolist() == [[1, 1], [0, 1]]


def test_submission_of_lists():
    """Names of a row are written with a mark between that stands in no name; a run's recipe keeps it."""
    tables = Tables(load_recipe({"tfidf": {}}), table(LISTS), TEST)
    assert tables.recipe.data.label_delimiter == "|"
    again = load_train(tables.recipe.data, table(LISTS), TEST)
    np.testing.assert_array_equal(again.labels, tables.train.labels)
    assert again.label_names == tables.train.label_names
    odd = [[name.replace("joy", "joy|glee;, fun") for name in cell] for cell in LISTS]
    assert Tables(load_recipe({"tfidf": {}}), table(odd), TEST).recipe.data.label_delimiter == " / "


@pytest.mark.parametrize("write", [list, str])
def test_vectors_are_refused(write):
    """`[1, 0, 0]` says no label's name, and the advice is not to split it."""
    vectors = [write(v) for v in ([1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 1, 1])] * 6
    for config in (NAMED, Data(label_columns=["tags"], label_delimiter=",")):
        said = message(config, table(vectors))
        assert "one number per label" in said and "[1, 0, 0]" in said
        assert "label_delimiter" not in said
    shares = [write(v) for v in ([0.25, 0.75], [0.5, 0.5])] * 12
    assert "one number per label" in message(NAMED, table(shares))


def test_lists_of_numbers_are_names():
    """Indices of labels, as data sets of several labels have them, are sorted as numbers."""
    data = load_train(NAMED, table([[27], [3, 10], [10], [3]] * 6))
    assert data.label_names == ["3", "10", "27"]
    assert data.labels[1].tolist() == [1, 1, 0]


def test_single_label_takes_lists_of_one():
    """With task: single_label each list holds one name; others are named."""
    one = [["joy"], ["anger"]] * 12
    data = load_train(NAMED, table(one), task="single_label")
    assert data.labels[:2].tolist() == [[0, 1], [1, 0]]
    said = message(NAMED, table([*one[:-1], ["joy", "anger"]]), task="single_label")
    assert "exactly one name per row" in said and "row 23" in said
    assert "row 0" in message(NAMED, table([[], *one[1:]]), task="single_label")


def test_missing_cells_are_not_empty_lists():
    """None says nothing: an error, or dropped as asked."""
    cells = [None, *LISTS[1:]]
    assert "1 row with a missing label" in message(NAMED, table(cells))
    assert len(load_train(Data(label_columns=["tags"], on_missing="drop"), table(cells))) == len(LISTS) - 1


def test_other_values_are_refused():
    """A mapping, a list in a list, a null in a list: no names, and shown."""
    assert "cells such as {'joy': 1}" in message(NAMED, table([{"joy": 1}] * 24))
    for odd in ([["joy"]], ["joy", None], {"joy": 1}):
        said = message(NAMED, table([odd, *LISTS[1:]]))
        assert f"row 0 has {odd}" in said


def test_brackets_of_a_name():
    """A class in brackets is a class; lists beside other texts are texts."""
    data = load_train(NAMED, table(["[spam]", "[ham]"] * 12))
    assert (data.columns.task, data.label_names) == ("single_label", ["[ham]", "[spam]"])
    data = load_train(NAMED, table(["['a']", "b"] * 12))
    assert data.label_names == ["['a']", "b"]
    assert load_test(NAMED, TEST, train_columns=data.columns).label_names == data.label_names


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("[]", []),
        ("['it\\'s', \"a, b\"]", ["it's", "a, b"]),
        ("[1. 0. 0.]", ["1.", "0.", "0."]),
        ("[sales team]", ["sales team"]),
        ("['a''b']", None),
        ("['a'", None),
        ("[a[b]]", None),
        ("[" * 100_000 + "]", None),
    ],
)
def test_texts_of_lists(text, items):
    """What Python, JSON and NumPy write is read; nothing is evaluated, and nothing nested is guessed."""
    assert list_items(text) == items
