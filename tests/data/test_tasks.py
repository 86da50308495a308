"""Tasks: what the label columns say, and every contradiction with what was asked for."""

import numpy as np
import pandas as pd
import pytest

from lora_cls.data import load_test, load_train, stratified_folds
from lora_cls.data.labels import parse_labels
from lora_cls.data.names import likely_delimiter, looks_like_names
from lora_cls.data.tables import Tables
from lora_cls.errors import DataError, RecipeError
from lora_cls.recipe import Data, load_recipe

N = 24
GENRES = ["jazz", "rock", "folk"]


def table(**columns):
    """24 rows with distinct texts."""
    rows = {"id": [f"r{i}" for i in range(N)], "text": [f"some text {i}" for i in range(N)]}
    return pd.DataFrame({**rows, **columns})


def cycle(*values):
    return [values[i % len(values)] for i in range(N)]


TEST = pd.DataFrame({"id": ["x", "y"], "text": ["new text", "other text"]})
BY_GENRE = table(genre=cycle(*GENRES))
ONE_HOT = table(joy=cycle(1, 0, 0), anger=cycle(0, 1, 0), fear=cycle(0, 0, 1))
DELIMITED = table(tags=cycle("joy, anger", "anger", "", "fear,joy"))


def message(config, *args, **kwargs):
    with pytest.raises(DataError) as error:
        load_train(config, *args, **kwargs)
    return str(error.value)


def test_column_of_names_that_the_test_file_lacks():
    """Found, said why, classes sorted, one 1 per row."""
    data = load_train(Data(), BY_GENRE, TEST)
    assert data.columns.task == "single_label"
    assert data.label_names == ["folk", "jazz", "rock"]
    assert data.labels.dtype == np.int8
    assert data.labels[:3].tolist() == [[0, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert "task: single_label, because genre holds one name per row" in data.columns.how
    assert "3 names (folk, jazz, rock) in the column genre, the only column with few values" in data.columns.how
    assert load_test(Data(), TEST, train_columns=data.columns).label_names == data.label_names


def test_column_of_names_by_sample_or_by_name():
    """The one column of a sample submission, or of data.label_columns, may hold names; no test file is needed."""
    sample = pd.DataFrame({"id": ["x", "y"], "genre": ["?", "?"]})
    for data in (load_train(Data(), BY_GENRE, TEST, sample), load_train(Data(label_columns=["genre"]), BY_GENRE)):
        assert data.columns.task == "single_label"
        assert data.columns.labels == ["genre"]
        assert data.label_names == ["folk", "jazz", "rock"]


def test_sample_that_names_the_classes():
    """A sample with a column per class does not hide that the training table has one column of names."""
    sample = pd.DataFrame({"id": ["x", "y"], "jazz": 0, "folk": 0, "rock": 0})
    data = load_train(Data(), BY_GENRE, TEST, sample)
    assert (data.columns.task, data.columns.labels) == ("single_label", ["genre"])


def test_sample_with_another_name():
    """A sample's one column that train lacks does not say which column holds the names; data.label_columns does."""
    sample = pd.DataFrame({"id": ["x", "y"], "prediction": ["?", "?"]})
    said = message(Data(), BY_GENRE, TEST, sample)
    assert "no column 'prediction' (sample submission)" in said and "name them in data.label_columns" in said
    assert load_train(Data(label_columns=["genre"]), BY_GENRE, TEST, sample).columns.task == "single_label"


def test_without_a_test_file_nothing_is_guessed():
    """Any column might be a label then: the one that looks like it is named in the hint."""
    assert '--set "data.label_columns=[genre]"' in message(Data(), BY_GENRE)


def test_several_columns_of_names():
    """Two columns with few values are ambiguous; a column of many values is none."""
    said = message(Data(), BY_GENRE.assign(mood=cycle("up", "down")), TEST)
    assert "several columns could hold the labels' names: genre, mood" in said
    data = load_train(Data(), BY_GENRE.assign(url=[f"http://{i}" for i in range(N)]), TEST)
    assert data.columns.labels == ["genre"]


def test_zero_one_columns_come_first():
    """A column of names beside 0/1 columns is no label, and said so, unless a task or delimiter asks for it."""
    both = ONE_HOT.assign(genre=cycle(*GENRES))
    assert load_train(Data(), both, TEST).label_names == ["joy", "anger", "fear"]
    assert "also lacks genre" in load_train(Data(), both, TEST).columns.how
    one = BY_GENRE.assign(reply=cycle(0, 1))
    assert load_train(Data(), one, TEST).columns.task == "binary"
    assert load_train(Data(), one, TEST, task="single_label").columns.labels == ["genre"]
    tagged = load_train(Data(label_delimiter=","), DELIMITED.assign(reply=cycle(0, 1)), TEST)
    assert tagged.columns.labels == ["tags"]


def test_zero_one_columns():
    """Several are multi_label, one is binary; one 1 in every row is only noted."""
    several = ONE_HOT.assign(joy=cycle(1, 0, 1))
    data = load_train(Data(), several, TEST)
    assert data.columns.task == "multi_label" and data.notes == []
    assert "task: multi_label, because there are several 0/1 columns" in data.columns.how
    data = load_train(Data(), ONE_HOT, TEST)
    assert data.columns.task == "multi_label"
    assert "--set task=single_label" in data.notes[0]
    data = load_train(Data(label_columns=["joy"]), ONE_HOT, TEST)
    assert data.columns.task == "binary" and data.label_names == ["joy"] and data.labels.shape == (N, 1)


def test_single_label_from_zero_one_columns():
    """Named explicitly, 0/1 columns with one 1 per row are classes, in the columns' order."""
    data = load_train(Data(), ONE_HOT, TEST, task="single_label")
    assert data.columns.task == "single_label" and data.columns.classes is None
    assert data.label_names == ["joy", "anger", "fear"]
    assert data.notes == []
    wrong = ONE_HOT.assign(joy=cycle(1, 0, 1, 0))
    said = message(Data(), wrong, TEST, task="single_label")
    assert "2 problems" in said
    assert "with no 1 in the label columns: 'r3' (row 3)" in said
    assert "with several 1s in the label columns: 'r2' (row 2)" in said


def test_delimited_labels():
    """Names are split and stripped, an empty cell is a row without labels, which is noted."""
    data = load_train(Data(label_columns=["tags"], label_delimiter=","), DELIMITED)
    assert data.columns.task == "multi_label"
    assert data.label_names == ["anger", "fear", "joy"]
    assert data.labels[:4].tolist() == [[1, 0, 1], [1, 0, 0], [0, 0, 0], [0, 1, 1]]
    assert "6 empty cells are rows without any label" in data.notes[0]
    assert "because tags is split at data.label_delimiter" in data.columns.how
    again = load_train(Data(label_delimiter=","), DELIMITED.replace({"tags": {"": None}}), TEST)
    np.testing.assert_array_equal(again.labels, data.labels)


def test_delimiters_of_space_and_empty_parts():
    """A space splits at any number of spaces; doubled, leading and repeated names count once."""
    data = load_train(
        Data(label_columns=["tags"], label_delimiter=" "), table(tags=cycle("joy  fear", "fear ", "joy joy"))
    )
    assert data.label_names == ["fear", "joy"]
    assert data.labels[:3].tolist() == [[1, 1], [1, 0], [0, 1]]


def test_classes_keep_their_spelling():
    """Codes are sorted as numbers; 7.0 of a DataFrame is 7; white space around names does not count."""
    codes = load_train(Data(label_columns=["c"]), table(c=cycle(10, 9, 2, 7)))
    assert codes.label_names == ["2", "7", "9", "10"]
    assert load_train(Data(label_columns=["c"]), table(c=cycle("010", "9"))).label_names == ["9", "010"]
    assert load_train(Data(label_columns=["c"]), table(c=cycle(2.0, 7.0, 3.5))).label_names == ["2", "3.5", "7"]
    assert load_train(Data(label_columns=["c"]), table(c=cycle(" a", "b "))).label_names == ["a", "b"]
    alike = load_train(Data(label_columns=["c"]), table(c=cycle("Joy", "joy")))
    assert "'Joy' and 'joy' differ only in case" in alike.notes[0]


def test_class_codes_0_1_2():
    """Codes that are mostly 0 and 1 are ambiguous: an error with the way out, which then works."""
    codes = table(c=cycle(0, 1, 2))
    assert "or task: single_label if its values are classes" in message(Data(label_columns=["c"]), codes)
    data = load_train(Data(label_columns=["c"]), codes, task="single_label")
    assert data.label_names == ["0", "1", "2"]


def test_missing_names():
    """An empty cell is a missing class: stop and name the row, or drop it."""
    for blank in ("", " ", None, float("nan")):
        values = pd.Series(cycle(*GENRES), dtype=object)
        values[1] = blank
        said = message(Data(label_columns=["genre"]), table(genre=values))
        assert "1 row with a missing label (of genre): 'r1' (row 1). Write a name" in said
        data = load_train(Data(label_columns=["genre"], on_missing="drop"), table(genre=values))
        assert len(data) == N - 1
        assert data.label_names == ["folk", "jazz", "rock"]


def test_cells_that_are_no_names():
    """A list in a cell is named with its row."""
    values = pd.Series(cycle(*GENRES), dtype=object)
    values[2] = ["jazz"]
    assert "'r2' (row 2) has ['jazz']" in message(Data(label_columns=["genre"]), table(genre=values))


@pytest.mark.parametrize(
    ("config", "train", "task", "expected"),
    [
        ({}, ONE_HOT, "binary", "task: binary needs exactly one label column. Got 3 (joy, anger, fear)"),
        ({"label_columns": ["genre"]}, BY_GENRE, "binary", "task: binary needs a 0/1 column, but 'genre' holds 'jazz'"),
        ({"label_columns": ["genre"]}, BY_GENRE, "multi_label", "to split the names in 'genre'"),
        ({"label_columns": ["genre"], "label_delimiter": ";"}, BY_GENRE, None, "';' stands in no cell of 'genre'"),
        ({"label_delimiter": ";"}, BY_GENRE, None, "';' stands in no cell of 'genre'"),
        ({"label_columns": ["joy"], "label_delimiter": ";"}, ONE_HOT, None, "no meaning for the 0/1 column 'joy'"),
        ({"label_columns": ["tags"]}, DELIMITED, None, "looks like several labels separated by ','"),
        ({"label_columns": ["id"], "id_column": "text"}, BY_GENRE, None, "is no label column: 24 different values"),
        ({"label_columns": ["genre"]}, table(genre="jazz"), None, "two different names are needed. Got jazz"),
        ({"label_columns": ["genre"]}, table(genre=""), "single_label", "Got none"),
        ({"label_columns": ["genre", "joy"]}, ONE_HOT.assign(genre="a"), None, "expected 0 or 1"),
    ],
)  # fmt: skip
def test_contradictions(config, train, task, expected):
    """What was asked for and what the table holds disagree: both are said, and what to set."""
    assert expected in message(Data(**config), train, TEST, task=task)


def test_contradictions_and_other_mistakes_at_once():
    """A wrong task does not hide a repeated id."""
    said = message(Data(label_columns=["genre"]), BY_GENRE.assign(id="a"), task="binary")
    assert "task: binary" in said and "ids that stand more than once" in said


def test_too_many_names():
    """A column that nobody named holds at most a thousand names; one that was named any number, if some stand twice."""
    n = 3600
    rows = pd.DataFrame({"text": [f"t {i}" for i in range(n)], "author": [f"a{i % 1200}" for i in range(n)]})
    test = pd.DataFrame({"text": ["a text"]})
    assert "no label columns" in message(Data(), rows, test)
    assert len(load_train(Data(label_columns=["author"]), rows).label_names) == 1200
    sample = pd.DataFrame({"id": ["row-0"], "author": ["a1"]})
    assert len(load_train(Data(), rows, test, sample).label_names) == 1200
    few = rows[:70].assign(author=[f"a{i % 50}" for i in range(70)])
    assert len(load_train(Data(label_columns=["author"]), few).label_names) == 50
    few["author"] = [f"a{i}" for i in range(70)]
    told = message(Data(label_columns=["author"]), few)
    assert "is no label column: 70 different values in 70 filled cells" in told
    assert "Set data.label_columns to another" in told


def test_likely_delimiter():
    """A mark in many cells with names that others share; one department with a comma in its name is a name."""
    assert likely_delimiter(pd.Series(["a|b", "a", "b", "b|c"])) == "|"
    assert likely_delimiter(pd.Series(["a; b", "a", "b", "c"])) == ";"
    assert likely_delimiter(pd.Series(["Sales, Marketing", "IT", "Sales, Marketing", "HR"])) is None
    assert likely_delimiter(pd.Series(["a,b", *"abcdefgh"])) is None
    assert likely_delimiter(pd.Series([1, 2, None])) is None
    assert load_train(Data(label_columns=["tags"], on_missing="drop"), DELIMITED, task="single_label").label_names == [
        "anger", "fear,joy", "joy, anger"
    ]  # fmt: skip


def test_soft_labels_are_no_names():
    """With data.soft_labels one column of numbers is not taken for classes, and one of names is refused."""
    data = load_train(Data(label_columns=["s"], soft_labels=True), table(s=cycle(0.25, 0.5, 0.75)))
    assert data.columns.task == "binary" and data.label_names == ["s"]
    np.testing.assert_array_equal(data.targets[:3, 0], np.array([0.25, 0.5, 0.75], dtype=np.float32))
    said = message(Data(label_columns=["genre"], soft_labels=True), BY_GENRE)
    assert "label column 'genre': expected a number from 0 to 1" in said
    assert "single_label" not in said  # which takes no shares


def one_hot(y):
    return np.eye(max(y) + 1, dtype=np.int8)[y]


@pytest.mark.parametrize("alone", [True, False])
def test_folds_of_classes(alone):
    """Each class is spread evenly, groups stay whole, and the same inputs give the same folds."""
    rng = np.random.default_rng(0)
    y = rng.choice(4, size=300, p=[0.7, 0.2, 0.07, 0.03])
    groups = np.arange(300) if alone else np.arange(300) // 2
    fold = stratified_folds(one_hot(y), groups, 5, 1, task="single_label")
    assert fold.dtype == np.int64 and set(fold) == set(range(5))
    np.testing.assert_array_equal(fold, stratified_folds(one_hot(y), groups, 5, 1, task="single_label"))
    assert (fold != stratified_folds(one_hot(y), groups, 5, 2, task="single_label")).any()
    for group in np.unique(groups):
        assert len(set(fold[groups == group])) == 1
    for k in range(4):
        per_fold = np.bincount(fold[y == k], minlength=5)
        assert per_fold.max() - per_fold.min() <= (1 if alone else 4)


def test_folds_of_rare_classes(recwarn):
    """A class with fewer rows than folds is no error (and no warning beside our own note); none with enough is."""
    y = np.array([0] * 20 + [1] * 2)
    assert set(stratified_folds(one_hot(y), np.arange(22), 5, task="single_label")) == set(range(5))
    assert not recwarn.list
    with pytest.raises(DataError, match=r"no class has 5 rows .* Set cv.n_splits to 4 or less"):
        stratified_folds(one_hot(np.arange(20) // 4), np.arange(20), 5, task="single_label")


def test_folds_are_all_filled_or_refused():
    """Few large groups fill every fold, or say that they cannot."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        groups = np.sort(rng.integers(6, size=40))
        y = rng.integers(3, size=40)
        try:
            fold = stratified_folds(one_hot(y), groups, 4, task="single_label")
        except DataError as error:
            assert "stays empty" in str(error) or "cannot fill" in str(error)  # noqa: PT017
        else:
            assert set(fold) == {0, 1, 2, 3}


def test_weights_of_labels_that_are_none(emotion_table):
    """A name in `loss.label_weights` that no label has is refused as the tables are read, with the nearest that is."""
    recipe = load_recipe({"backbone": {"name_or_path": "x"}, "loss": {"label_weights": {"joy": 2, "angre": 2}}})
    with pytest.raises(RecipeError, match=r"label_weights: no label 'angre'\. Did you mean 'anger'.* joy, anger, fear"):
        Tables(recipe, emotion_table(20))
    assert Tables(load_recipe(recipe, {"loss.label_weights": {"joy": 2}}), emotion_table(20)).recipe.loss.label_weights
    one = pd.DataFrame({"text": [f"text {i}" for i in range(20)], "kind": ["a", "b"] * 10})
    with pytest.raises(RecipeError, match=r"loss\.label_weights: a class of task: single_label has one weight"):
        Tables(load_recipe(recipe, {"loss.label_weights": {"a": 2}, "data.label_columns": ["kind"]}), one)


def test_cells_of_any_type_are_the_same_labels():
    """Columns of texts alone take a shorter way than those that also hold numbers; both say the same."""
    texts = ["0", "1", " 1.0", "TRUE", "false", "", "na", "maybe", "0"]
    expected = [0, 1, 1, 1, 0, -1, -1, -2, 0]
    assert parse_labels(pd.Series(texts, dtype=object)).tolist() == expected
    mixed = [*texts, 1, 0.0, True, None, float("nan"), 2, [1]]
    assert parse_labels(pd.Series(mixed, dtype=object)).tolist() == [*expected, 1, 0, 1, -1, -1, -2, -2]


def test_a_thousand_names_are_labels_and_one_more_are_not():
    """However many rows hold them; what looks alike counts once."""
    names = [f"name {i}" for i in range(1001)]
    assert looks_like_names(pd.Series(names[:1000] * 3), None)
    assert looks_like_names(pd.Series([*names[:1000] * 3, "name  7"]), None)
    assert not looks_like_names(pd.Series(names * 3), None)
    assert not looks_like_names(pd.Series(["one"] * 5), None)
    assert not looks_like_names(pd.Series([*["one", "two"] * 5, {}], dtype=object), None)
