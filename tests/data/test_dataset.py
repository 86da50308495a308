"""Datasets: columns found, mistakes reported together, identical texts grouped."""

import re
import shlex

import numpy as np
import pandas as pd
import pytest
import yaml

from lora_cls.data import load_test, load_train, read_table, resolve_columns
from lora_cls.data.columns import set_list
from lora_cls.errors import DataError
from lora_cls.recipe import Data


def table(**columns):
    defaults = {"id": ["a", "b", "c"], "text": ["first text", "second text", "third text"]}
    return pd.DataFrame({**defaults, "joy": [1, 0, 1], "fear": [0, 0, 1], **columns})


TEST = pd.DataFrame({"id": ["x", "y"], "text": ["new text", "other text"]})


def message(config, *args, load=load_train, **kwargs):
    with pytest.raises(DataError) as error:
        load(config, *args, **kwargs)
    return str(error.value)


def test_plain_table():
    """Without any setting, id, text and the 0/1 columns that the test table lacks are found."""
    train = table(is_reply=[1, 0, 1])
    data = load_train(Data(), train, TEST.assign(is_reply=[0, 1]))
    assert data.ids == ["a", "b", "c"]
    assert data.texts == ["first text", "second text", "third text"]
    assert data.label_names == ["joy", "fear"]
    assert data.labels.dtype == np.int8
    assert data.labels.tolist() == [[1, 0], [0, 0], [1, 1]]
    assert data.groups.dtype == np.int64
    assert data.groups.tolist() == [0, 1, 2]
    assert "2 columns (joy, fear), the 0/1 columns that the test file lacks" in data.columns.how
    assert data.notes == []


def test_files_and_their_lines(tmp_path):
    """Paths of the recipe are read, and messages give the file's line even after a text of several lines."""
    (tmp_path / "train.csv").write_text('id,text,joy,fear\n007,"a\nb",1,0\n008,NA,yes,\n', encoding="utf-8")
    said = message(Data(train=str(tmp_path / "train.csv")))
    assert "train.csv: 2 problems" in said
    assert "label column 'joy': expected 0 or 1 (or true/false), but row '008' (line 4) has 'yes'" in said
    assert "1 row with a missing label (of fear): '008' (line 4)" in said


def test_labels_by_sample_submission():
    """The sample submission's columns are the labels, whatever the test table holds."""
    sample = pd.DataFrame({"ID": ["x"], "fear": [0], "joy": [0]})
    data = load_train(Data(), table(extra=[0, 1, 0]), TEST.assign(joy=0, fear=0), sample)
    assert data.label_names == ["fear", "joy"]
    assert data.labels.tolist() == [[0, 1], [0, 0], [1, 1]]


def test_unknown_label_of_sample_submission_names_the_nearest():
    """A label that the training table spells differently is reported with the near name."""
    sample = pd.DataFrame({"id": ["x"], "joyy": [0]})
    assert "no column 'joyy' (sample submission). Did you mean 'joy'?" in message(Data(), table(), TEST, sample)


def test_labels_without_test_table():
    """Without a test table all 0/1 columns but id, text and group are labels."""
    data = load_train(Data(group_column="g"), table(g=[0, 1, 1], score=[3.5, 2, 9]))
    assert data.label_names == ["joy", "fear"]


def test_no_labels_says_what_was_looked_for():
    """Where the test table has the 0/1 columns too, the line to add to the recipe is shown."""
    said = message(Data(), table(), TEST.assign(joy=0, fear=0))
    assert "no label columns" in said
    assert "sample submission" in said
    assert "Columns: id, text, joy, fear" in said
    assert "data.label_columns=[joy, fear]" in said


def test_label_column_with_one_mistake_is_not_lost():
    """A label column that holds a 2 is reported, not silently left out of the labels."""
    said = message(Data(), table(fear=[0, 2, 1]), TEST)
    assert "label column 'fear'" in said
    assert "'b' (row 1) has 2" in said


def test_left_out_columns_are_said():
    """A column that the test table lacks but is no label is mentioned."""
    data = load_train(Data(), table(rating=[3, 4, 5]), TEST)
    assert data.label_names == ["joy", "fear"]
    assert "also lacks rating" in data.columns.how


@pytest.mark.parametrize(
    ("values", "told", "advice"),
    [
        (["yes", "no", "no"], "'yes' and 'no'", "data.ignore_columns=[anger]"),
        (["Y", "Y", "Y"], "'Y'", "data.ignore_columns=[anger]"),
        ([-1, -1, 1], "'-1' and '1'", "data.ignore_columns=[anger]"),
        ([0.2, 0.7, None], "numbers from 0 to 1", "data.soft_labels=true"),
        (["0.25", "0.5", "1"], "numbers from 0 to 1", "data.ignore_columns=[anger]"),
    ],
)
@pytest.mark.parametrize("test", [TEST, None])
def test_labels_written_otherwise_are_not_left_out(values, told, advice, test):
    """A column that may be a label beside 0/1 ones stops the run, and the message's options say which it is."""
    found = message(Data(), table(anger=values), test)
    assert f"column 'anger' holds {told} beside the 0/1 columns (joy, fear)" in found
    options = [quoted or plain for quoted, plain in re.findall(r'--set (?:"([^"]*)"|([^\s";]+))', found)]
    assert advice in options
    for option in options:
        key, value = option.removeprefix("data.").split("=")
        config = Data(**{key: yaml.safe_load(value)})
        names = load_train(config, table(anger=values), test, None).label_names if key != "soft_labels" else []
        assert names in (["joy", "fear"], [])
    other = table(anger=values)
    if test is not None:  # what the test table has too is no label
        assert load_train(Data(), other, TEST.assign(anger=values[:2])).label_names == ["joy", "fear"]


def test_pasted_lists():
    """A list in an option is read back as those names, by YAML and by a shell."""
    names = ["joy", "yes", "null", "2019", "1e3", "it's", 'a "b", [c]', "$HOME `x`", "é", "no way"]
    (option,) = shlex.split(set_list("data.label_columns", names))[1:]
    assert yaml.safe_load(option.removeprefix("data.label_columns=")) == names
    assert set_list("data.label_columns", ["joy", "fear"]) == '--set "data.label_columns=[joy, fear]"'


def test_repeated_ids_without_others():
    """Where nothing else names the rows, the advice is to number them; it works when it is followed."""
    repeated = table(id=["a", "a", "b"])
    assert 'number the rows instead: --set "data.ignore_columns=[id]"' in message(Data(), repeated)
    assert load_train(Data(ignore_columns=["id"]), repeated).ids == ["row-0", "row-1", "row-2"]
    told = message(Data(id_column="id"), repeated)
    assert '--set data.id_column=null --set "data.ignore_columns=[id]"' in told
    assert "data.id_column to a column of unique values (key)" in message(Data(), repeated.assign(key=[7, 8, 9]))


@pytest.mark.parametrize(
    "values",
    [
        [1, 0, 1],
        [1.0, 0.0, 1.0],
        [True, False, True],
        ["1", "0", "1.0"],
        ["TRUE", "false", "True"],
        [" 1", "0.0", True],
    ],
)
def test_accepted_label_values(values):
    """Numbers, booleans and their spellings mean the same."""
    assert load_train(Data(label_columns=["joy"]), table(joy=values)).labels.tolist() == [[1], [0], [1]]


@pytest.mark.parametrize("value", [2, -1, 0.5, "yes", "x", [1], float("inf")])
def test_rejected_label_values(value):
    """Anything else is named with row and value."""
    said = message(Data(label_columns=["joy"]), table(joy=[1, value, 0]))
    assert f"'b' (row 1) has {value!r}" in said


@pytest.mark.parametrize("value", ["", " ", None, float("nan"), pd.NA, "nan"])
def test_missing_labels(value):
    """A missing label stops, or is dropped and counted."""
    train = table(joy=pd.Series([1, value, 0], dtype=object))
    assert "1 row with a missing label (of joy): 'b' (row 1)" in message(Data(label_columns=["joy"]), train)
    data = load_train(Data(label_columns=["joy"], on_missing="drop"), train)
    assert data.ids == ["a", "c"]
    assert data.labels.tolist() == [[1], [0]]
    assert "dropped 1 of 3 training rows" in data.notes[0]
    assert "1 with a missing label" in data.notes[0]


def test_many_missing_labels_are_counted():
    """Of many rows the first ten are named."""
    train = pd.DataFrame({"text": [f"text {i}" for i in range(40)], "joy": [None] * 30 + [1, 0] * 5})
    said = message(Data(label_columns=["joy"]), train)
    assert "30 rows" in said
    assert "row 9 and 20 more" in said


def test_empty_texts_of_train():
    """White space is no text: stop, or drop and count."""
    assert "1 empty text: 'b' (row 1)" in message(Data(), table(text=["x y", " \n", "z"]))
    data = load_train(Data(on_missing="drop"), table(text=["x y", " \n", "z"]))
    assert data.ids == ["a", "c"]
    assert "1 with an empty text" in data.notes[0]
    assert "every row" in message(Data(on_missing="drop", text_columns=["text"]), table(text=""))


def test_all_problems_at_once():
    """One error names every mistake of the table."""
    train = table(id=["a", "a", ""], text=["x", "", "y"], joy=["yes", "0", "1"], fear=["0", "", "1"])
    said = message(Data(label_columns=["joy", "fear", "angr"], group_column="grp"), train.assign(anger=0, group=1))
    for words in (
        "7 problems",
        "no column 'angr' (data.label_columns). Did you mean 'anger'?",
        "no column 'grp' (data.group_column). Did you mean 'group'?",
        "'a' (row 0, row 1)",
        "no id at row 2",
        "has 'yes'",
        "missing label (of fear)",
        "1 empty text: 'a' (row 1)",
    ):
        assert words in said
    assert len(said.splitlines()) == 8


def test_ids():
    """The id column in any case, else a unique ..._id column, else row numbers."""
    assert load_train(Data(), table().rename(columns={"id": "Id"})).ids == ["a", "b", "c"]
    assert load_train(Data(), table(id=[7, 8, 9])).ids == ["7", "8", "9"]
    by_suffix = table(user_id=[11, 11, 12]).rename(columns={"id": "tweet_id"})
    assert load_train(Data(), by_suffix).columns.id == "tweet_id"
    assert load_train(Data(), table().drop(columns="id")).ids == ["row-0", "row-1", "row-2"]
    assert load_train(Data(id_column="key"), table(key=["007", "8", "9"])).ids == ["007", "8", "9"]
    assert "no column 'ky' (data.id_column)" in message(Data(id_column="ky"), table())


def test_float_ids_of_dataframes():
    """Ids that pandas turned into floats are written as the integers they were."""
    assert load_train(Data(), table(id=[7.0, 8.0, 9.0])).ids == ["7", "8", "9"]


def test_text_column():
    """The only column of free text, else one with a usual name, else an error that lists the candidates."""
    renamed = table().rename(columns={"text": "words"})
    assert load_train(Data(), renamed).columns.text == ["words"]
    two = table(lang=["en", "de", "en"])
    assert load_train(Data(), two).columns.text == ["text"]
    said = message(Data(), two.rename(columns={"text": "words"}))
    assert "several columns could be the text: words, lang" in said
    assert "data.text_columns" in said
    assert "no column of free text" in message(Data(), table(text=[1.5, 2.5, 3.5]))
    assert "Did you mean 'text'?" in message(Data(text_columns=["txt"]), table())


def test_several_text_columns():
    """Columns are joined by a line break or by the template; a row is empty only if all are."""
    train = table(title=["T1", "", "{text}"])
    joined = load_train(Data(text_columns=["title", "text"]), train)
    assert joined.texts[0] == "T1\nfirst text"
    config = Data(text_template="<{title}> {{x}} {text}")
    assert load_train(config, train).texts == [
        "<T1> {x} first text", "<> {x} second text", "<{text}> {x} third text"
    ]  # fmt: skip
    assert "1 empty text" in message(config, train.assign(text=["a", "", "b"]))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{text.__class__}", "no column 'text.__class__'"),
        ("{text[0]}", "no column 'text[0]'"),
        ("{text!r}", "only plain {column} fields"),
        ("{text:>10}", "only plain {column} fields"),
        ("{}", "only plain {column} fields"),
        ("{text", "braces"),
        ("words", "names no column"),
        ("{txet}", "Did you mean 'text'?"),
    ],
)
def test_templates_are_never_evaluated(template, expected):
    """Anything but a plain column name in braces is refused."""
    assert expected in message(Data(text_template=template), table())


def test_text_of_wrong_kind():
    """A list, bytes or half an emoji in the text column is named with its row."""
    said = message(Data(text_columns=["text"]), table(text=[["a"], b"b", "\ud83d"]))
    assert "row 0 holds list" in said
    assert "row 1 holds bytes" in said
    assert "row 2 holds half" in said


def test_identical_texts_share_a_group():
    """Outer white space and Unicode composition make no difference; inner differences do."""
    train = table(text=["caf\u00e9 ", "cafe\u0301", "Cafe"])
    assert load_train(Data(), train).groups.tolist() == [0, 0, 1]


def test_groups_chain():
    """Row 0 and 1 share a text, 1 and 2 a group value: all three are one group. No value groups nothing."""
    train = pd.DataFrame(
        {"text": ["a", "a", "b", "c", "d"], "thread": ["t1", "t2", "t2", "", None], "joy": [0, 1, 0, 1, 0]}
    )
    data = load_train(Data(group_column="thread", text_columns=["text"]), train)
    assert data.groups.tolist() == [0, 0, 0, 1, 2]


def test_dropped_row_links_nothing():
    """Groups are those of the rows that are left."""
    train = pd.DataFrame({"text": ["a", "a", "b"], "thread": ["t1", "t2", "t2"], "joy": [0, None, 1]})
    config = Data(group_column="thread", text_columns=["text"], on_missing="drop")
    assert load_train(config, train).groups.tolist() == [0, 1]


def test_constant_label_is_noted():
    """A label that is the same in all rows is named."""
    assert "label 'fear' is 0 in all 3 training rows" in load_train(Data(), table(fear=[0, 0, 0])).notes[0]


def test_load_test():
    """Labels of a test table are not looked at, empty texts stay with a note."""
    columns = load_train(Data(), table(), TEST).columns
    data = load_test(Data(), table(text=["x", " ", "y"], joy=["?", 5, None]), train_columns=columns)
    assert data.labels is None
    assert data.texts == ["x", "", "y"]
    assert data.label_names == ["joy", "fear"]
    assert "1 empty test text" in data.notes[0]
    assert "'b' (row 1)" in data.notes[0]


def test_load_test_problems():
    """Repeated ids and a missing text column are reported together."""
    columns = load_train(Data(), table()).columns
    test = pd.DataFrame({"id": ["x", "x"], "texts": ["a", "b"]})
    said = message(Data(), test, load=load_test, train_columns=columns)
    assert "Did you mean 'texts'?" in said
    assert "'x' (row 0, row 1)" in said


def test_load_test_without_ids():
    """A test table without the training table's id column gets row numbers, and a note."""
    columns = load_train(Data(), table()).columns
    data = load_test(Data(), TEST.drop(columns="id"), train_columns=columns)
    assert data.ids == ["row-0", "row-1"]
    assert "lacks the id column 'id'" in data.notes[0]


def test_no_table_given():
    """Without a path anywhere the field to set is named."""
    assert "data.train" in message(Data())
    assert "data.test" in message(Data(), load=load_test)


def test_empty_and_unfit_lists():
    """An empty list of columns, a text used as label, and a name given twice are mistakes."""
    assert "data.label_columns is an empty list" in message(Data(label_columns=[]), table())
    assert "data.text_columns is an empty list" in message(Data(text_columns=[]), table())
    said = message(Data(label_columns=["joy", "joy", "text"], text_columns=["text"]), table())
    assert "more than once: joy" in said
    assert "text cannot be a label" in said


def test_index_column_of_pandas_is_neither_label_nor_text(tmp_path):
    """The nameless first column that to_csv writes is left alone."""
    table().head(2).to_csv(tmp_path / "t.csv")
    assert load_train(Data(), tmp_path / "t.csv").label_names == ["joy", "fear"]


def test_subset_and_fingerprint():
    """A subset keeps what belongs together; the fingerprint changes with each of its parts only."""
    data = load_train(Data(), table())
    part = data.subset([2, 0])
    assert part.ids == ["c", "a"]
    assert part.labels.tolist() == [[1, 1], [1, 0]]
    assert part.groups.tolist() == [2, 0]
    assert data.subset(np.array([False, True, False])).texts == ["second text"]
    assert len(data.subset([])) == 0
    assert data.fingerprint() == load_train(Data(), table()).fingerprint()
    # as it was before soft labels, weights and splits: runs that use none of them can still be resumed
    assert data.fingerprint() == "bcd9864e7e65fc477464b8a9147091e63b6103330ed422784d4c1932a9292e43"
    changed = [table(id=["a", "b", "d"]), table(text=["x", "y", "z"]), table(joy=[0, 0, 1])]
    changed.append(table().rename(columns={"joy": "joi"}))
    assert len({load_train(Data(), t).fingerprint() for t in [table(), *changed]}) == 5


def test_resolve_columns_raises_with_all_problems():
    """The public function reports what `load_train` would."""
    frame = read_table(table())
    assert resolve_columns(Data(), frame).labels == ["joy", "fear"]
    with pytest.raises(DataError, match="2 problems"):
        resolve_columns(Data(id_column="nope", label_columns=["nope"]), frame)


# Columns to ignore


def test_ignored_columns():
    """An ignored column is no label, text or id, whatever it looks like."""
    frame = table(is_new=[0, 1, 0], note=["some", "other", "words"]).rename(columns={"id": "ID"})
    data = load_train(Data(ignore_columns=["is_new", "note", "ID"]), frame)
    assert data.label_names == ["joy", "fear"]
    assert data.columns.text == ["text"]
    assert data.ids == ["row-0", "row-1", "row-2"]
    assert "ignored: is_new, note, ID" in data.columns.how
    test = TEST.assign(note=["a b", "c d"], only_test="e f")
    assert load_train(Data(ignore_columns=["is_new", "note", "only_test"]), frame, test).label_names == ["joy", "fear"]
    assert load_test(Data(ignore_columns=["note", "only_test"]), test).texts == ["new text", "other text"]


def test_ignored_columns_that_are_not_there_or_needed():
    """An unknown name suggests the nearest, and no column is ignored and used at once."""
    text = message(Data(ignore_columns=["feer", "text"], text_columns=["text"], label_columns=["joy"]), table())
    assert "no column 'feer' (data.ignore_columns). Did you mean 'fear'?" in text
    assert "text cannot be ignored and be the id, text, group, weight or split column too" in text
    assert "joy cannot be a label and" in message(Data(ignore_columns=["joy"], label_columns=["joy"]), table())


# Soft labels


def test_soft_labels():
    """Shares are kept as targets; 0.5 and above is 1 for folds and scores."""
    frame = table(joy=["0.25", "1", "0.5"], fear=[0, 0.49, True])
    data = load_train(Data(soft_labels=True), frame)
    assert data.label_names == ["joy", "fear"]
    assert data.targets.dtype == np.float32
    np.testing.assert_array_equal(data.targets, np.float32([[0.25, 0], [1, 0.49], [0.5, 1]]))
    assert data.labels.tolist() == [[0, 0], [1, 0], [1, 1]]
    assert data.labels.dtype == np.int8
    np.testing.assert_array_equal(data.subset([2]).targets, [[0.5, 1]])
    other = load_train(Data(soft_labels=True), frame.assign(joy=["0.3", "1", "0.5"]))
    assert other.fingerprint() != data.fingerprint()
    assert load_train(Data(), table()).targets is None


def test_soft_labels_that_are_none():
    """Numbers outside of 0 to 1 and words are named by row; shares without the setting name the setting."""
    frame = table(joy=["0.25", "1.5", "x"], fear=["", "nan", "0.5"])
    text = message(Data(soft_labels=True, label_columns=["joy", "fear"]), frame)
    assert (
        "label column 'joy': expected a number from 0 to 1, but row 'b' (row 1) has '1.5', 'c' (row 2) has 'x'" in text
    )
    assert "2 rows with a missing label (of fear): 'a' (row 0), 'b' (row 1)" in text
    shares = message(Data(), table(joy=["0.25", "1", "0"]))
    assert "has '0.25'" in shares
    assert "or data.soft_labels: true if these are shares" in shares
    assert "shares" not in message(Data(), table(joy=["2", "1", "0"]))


# Odd texts


def test_unescape():
    """Line ends written as a backslash and a letter are noted, or turned into line ends, in train and test alike."""
    frame = table(text=["one\\ntwo", "a\\tb\\r\\nc", "C:\\dir"])
    notes = load_train(Data(), frame).notes
    assert [note for note in notes if "data.unescape: true" in note and "in 2 training texts" in note]
    data = load_train(Data(unescape=True), frame)
    assert data.texts == ["one\ntwo", "a\tb\r\nc", "C:\\dir"]
    assert not any("unescape" in note for note in data.notes)
    test = TEST.assign(text=["x\\ny", "z"])
    assert load_test(Data(unescape=True), test).texts == ["x\ny", "z"]
    assert "in 1 test text:" in load_test(Data(), test).notes[0]


def test_texts_that_differ_in_line_ends_share_a_group():
    """Copies of a text through Windows and Unix tools are one text; the texts themselves are not changed."""
    frame = table(text=["one\r\ntwo", "one\ntwo", "one\rtwo"])
    data = load_train(Data(), frame)
    assert data.groups.tolist() == [0, 0, 0]
    assert data.texts == list(frame["text"])
