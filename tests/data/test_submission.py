"""Submissions: the sample is checked, its order followed, and the file written whole."""

import os

import numpy as np
import pandas as pd
import pytest

from lora_cls.data import read_sample_submission, read_table, write_submission
from lora_cls.errors import DataError, WriteError

SAMPLE = pd.DataFrame({"ID": ["y", "007", "x"], "fear": [0, 0, 0], "joy": [0, 0, 0]})
IDS, LABELS = ["x", "y", "007"], ["joy", "fear"]
Y_PRED = np.array([[1, 0], [0, 1], [1, 1]], dtype=np.int8)


def test_sample_order_is_followed(tmp_path):
    """Rows, columns and the header of the id column are the sample's; ids keep their zeros."""
    SAMPLE.to_csv(tmp_path / "sample.csv", index=False)
    sample = read_sample_submission(tmp_path / "sample.csv", IDS, LABELS)
    assert (sample.columns, sample.ids) == (["ID", "fear", "joy"], ["y", "007", "x"])
    path = write_submission(tmp_path / "out" / "submission.csv", IDS, Y_PRED, LABELS, sample=sample)
    assert path.read_bytes() == b"ID,fear,joy\ny,1,0\n007,1,1\nx,0,1\n"
    assert os.listdir(tmp_path / "out") == ["submission.csv"]


def test_without_sample(tmp_path):
    """Without a sample the test table's order and the given id name hold; booleans are written as 0/1."""
    path = write_submission(tmp_path / "s.csv", IDS, Y_PRED.astype(bool), LABELS, id_name="tweet_id")
    assert path.read_text() == "tweet_id,joy,fear\nx,1,0\ny,0,1\n007,1,1\n"


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        (SAMPLE.iloc[:2], "1 ids of the test table are missing: x"),
        (pd.concat([SAMPLE, SAMPLE.iloc[:1]]), "1 ids stand more than once: y"),
        (SAMPLE.assign(ID=["y", "7", "x"]), "1 ids are not in the test table: 7"),
        (SAMPLE.assign(ID=["y", None, "x"]), "no id at row 1"),
        (SAMPLE.drop(columns="joy"), "no column for the label 'joy'"),
        (SAMPLE.assign(anger=0), "column 'anger' is none of the labels (joy, fear)"),
        (SAMPLE.rename(columns={"joy": "joyy"}), "Did you mean 'joyy'?"),
    ],
)
def test_sample_that_does_not_fit(sample, expected):
    """Ids and columns that differ are named, with examples and the nearest name."""
    with pytest.raises(DataError) as error:
        read_sample_submission(sample, IDS, LABELS)
    assert expected in str(error.value)


def test_predictions_that_cannot_be_written(tmp_path):
    """Probabilities, wrong shapes and repeated ids are refused, and no file appears."""
    path = tmp_path / "s.csv"
    with pytest.raises(DataError, match=r"apply the thresholds before. Got 0.7"):
        write_submission(path, IDS, Y_PRED * 0.7, LABELS)
    with pytest.raises(DataError, match=r"shape \(3, 2\).* Got \(2, 2\)"):
        write_submission(path, IDS, Y_PRED[:2], LABELS)
    with pytest.raises(DataError, match="1 ids stand more than once: x"):
        write_submission(path, ["x", "x", "y"], Y_PRED, LABELS)
    with pytest.raises(DataError, match="one id column and the labels joy, fear"):
        write_submission(path, IDS, Y_PRED, LABELS, sample=(["id", "joy"], IDS))
    assert os.listdir(tmp_path) == []


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    """A crash while writing leaves the previous submission and no half file."""
    path = write_submission(tmp_path / "s.csv", IDS, Y_PRED, LABELS)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(WriteError, match="disk full"):
        write_submission(path, IDS, 1 - Y_PRED, LABELS)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["s.csv"]


CLASSES = np.array([[0, 1], [1, 0], [0, 1]], dtype=np.int8)


def test_one_column_of_classes(tmp_path):
    """A sample with one label column, whatever its name and place, gets the class of each row."""
    sample = pd.DataFrame({"emotion": ["?", "?", "?"], "Id": ["y", "007", "x"]})
    read = read_sample_submission(sample, IDS, LABELS, task="single_label")
    assert (read.columns, read.ids) == (["emotion", "Id"], ["y", "007", "x"])
    path = write_submission(tmp_path / "s.csv", IDS, CLASSES, LABELS, sample=read, label_column="mood")
    assert path.read_text() == "emotion,Id\njoy,y\nfear,007\nfear,x\n"


def test_one_column_of_several_labels(tmp_path):
    """Labels are joined by the delimiter, and a row without any is an empty cell; the delimiter is asked for."""
    sample = pd.DataFrame({"id": IDS, "tags": ""})
    read = read_sample_submission(sample, IDS, LABELS, delimiter=";")
    y_pred = np.array([[1, 1], [0, 0], [0, 1]])
    path = write_submission(tmp_path / "s.csv", IDS, y_pred, LABELS, sample=read, delimiter=";")
    assert path.read_text() == "id,tags\nx,joy;fear\ny,\n007,fear\n"
    with pytest.raises(DataError, match=r"its one column 'tags' must hold all labels .* set data\.label_delimiter"):
        read_sample_submission(sample, IDS, LABELS)


def test_shape_of_the_training_table(tmp_path):
    """Without a sample the training table's column of names is the header; a sample with 0/1 columns still wins."""
    path = write_submission(tmp_path / "s.csv", IDS, CLASSES, LABELS, label_column="mood")
    assert path.read_text() == "id,mood\nx,fear\ny,joy\n007,fear\n"
    sample = read_sample_submission(SAMPLE, IDS, LABELS, task="single_label")
    path = write_submission(tmp_path / "s.csv", IDS, CLASSES, LABELS, sample=sample, label_column="mood")
    assert path.read_text() == "ID,fear,joy\ny,0,1\n007,1,0\nx,1,0\n"


def test_one_label_under_another_name(tmp_path):
    """The only column beside the id holds the 0/1 of the only label, whatever it is called."""
    sample = read_sample_submission(pd.DataFrame({"id": IDS, "target": 0}), IDS, ["joy"], task="binary")
    path = write_submission(tmp_path / "s.csv", IDS, CLASSES[:, 1:], ["joy"], sample=sample)
    assert path.read_text() == "id,target\nx,1\ny,0\n007,1\n"


def test_names_that_cannot_be_written(tmp_path):
    """A row with no or two labels fits into no column of one class; the ids are named and no file appears."""
    with pytest.raises(DataError, match="takes exactly one label per row: 007 have another number"):
        write_submission(tmp_path / "s.csv", IDS, [[0, 1], [1, 0], [1, 1]], LABELS, label_column="mood")
    assert os.listdir(tmp_path) == []


def test_one_column_that_is_a_label():
    """A sample with only one of the labels lacks the others; it is not a column of names."""
    with pytest.raises(DataError, match="no column for the label 'joy'"):
        read_sample_submission(SAMPLE.drop(columns="joy"), IDS, LABELS, task="single_label")


def test_any_id_reads_back(tmp_path):
    """Line ends, quotes and commas within ids, however Python's writer quotes them."""
    ids = ["a\rb", "a\nb", "a\r\nb", '"', "a,b", " a "]
    file = write_submission(tmp_path / "s.csv", ids, np.ones((len(ids), 1)), ["joy\r"])
    assert read_table(file)["id"].tolist() == ids
    assert file.read_bytes().endswith(b"\n a ,1\n")


def written(tmp_path, sample, y_pred=Y_PRED, labels=LABELS, y_score=None, name="sample.csv", **options):
    """The submission for a sample, given as the text of a file or as a DataFrame."""
    if isinstance(sample, str):
        (tmp_path / name).write_text(sample)
        sample = tmp_path / name
    read = read_sample_submission(sample, IDS, labels, **options)
    options = {"delimiter": options.get("delimiter"), "label_column": options.get("label_column"), "y_score": y_score}
    return write_submission(tmp_path / "s.csv", IDS, y_pred, labels, sample=read, **options).read_text()


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (("False", "False", "False"), ("False", "True")),
        (("TRUE", "TRUE", "FALSE"), ("FALSE", "TRUE")),
        (("true", "", "true"), ("false", "true")),
        (("No", "No", "No"), ("No", "Yes")),
        (("0.0", "0.0", "0.0"), ("0.0", "1.0")),
        (("1", "1", "0.0"), ("0", "1")),
        (("", "?", ""), ("0", "1")),
    ],
)
def test_words_of_the_sample(tmp_path, cells, expected):
    """0 and 1 are written as the sample writes them, label by label."""
    rows = [f"{row},{cell},0" for row, cell in zip(IDS, cells, strict=True)]
    no, yes = expected
    found = written(tmp_path, "\n".join(["id,joy,fear", *rows, ""]))
    assert found == f"id,joy,fear\nx,{yes},0\ny,{no},1\n007,{yes},1\n"


def test_words_of_values(tmp_path):
    """Booleans of a DataFrame or a JSON file are such words too, and of a single label."""
    sample = pd.DataFrame({"id": IDS, "target": [False] * 3})
    assert written(tmp_path, sample, CLASSES[:, 1:], ["joy"]) == "id,target\nx,True\ny,False\n007,True\n"


def test_header_of_the_sample(tmp_path):
    """The header is the sample's, blanks included, and so is the unnamed index that pandas writes before it."""
    assert written(tmp_path, "id, joy ,fear\nx,0,0\ny,0,0\n007,0,0\n").splitlines()[0] == "id, joy ,fear"
    found = written(tmp_path, ",row_id,fear,joy\n0,y,0,0\n1,007,0,0\n2,x,0,0\n")
    assert found == ",row_id,fear,joy\n0,y,1,0\n1,007,1,1\n2,x,0,1\n"
    with_index = pd.DataFrame({"Unnamed: 0": [7, 8, 9], "id": IDS, "joy": 0, "fear": 0})
    assert written(tmp_path, with_index) == ",id,joy,fear\n7,x,1,0\n8,y,0,1\n9,007,1,1\n"
    # the unnamed column may be the ids themselves
    assert written(tmp_path, ",joy,fear\nx,0,0\ny,0,0\n007,0,0\n") == ",joy,fear\nx,1,0\ny,0,1\n007,1,1\n"


@pytest.mark.parametrize("cells", [(0.5, 0.5, 0.5), ("0.25", 0, 1)])
def test_sample_of_probabilities(tmp_path, cells):
    """Where the sample holds numbers between 0 and 1 the probabilities are written, in full, and a note says so."""
    sample = pd.DataFrame({"id": IDS, "joy": cells, "fear": 0})
    y_score = np.array([[0.1, 1 / 3], [1.0, 0.0], [0.25, 1e-9]])
    found = written(tmp_path, sample, y_score=y_score)
    assert found == "id,joy,fear\nx,0.1,0.3333333333333333\ny,1.0,0.0\n007,0.25,1e-09\n"
    read = read_sample_submission(sample, IDS, LABELS)
    assert read.probabilities
    assert "the submission holds probabilities" in read.notes[0]
    with pytest.raises(DataError, match="give y_score too"):
        write_submission(tmp_path / "t.csv", IDS, Y_PRED, LABELS, sample=read)
    assert not read_sample_submission(SAMPLE, IDS, LABELS).probabilities


def test_class_called_like_its_column(tmp_path):
    """With spam and ham in the column `spam`, a sample `id,spam` is one column of names."""
    given = {"task": "single_label", "label_column": "spam"}
    found = written(tmp_path, "id,spam\nx,ham\ny,ham\n007,ham\n", CLASSES, ["spam", "ham"], **given)
    assert found == "id,spam\nx,ham\ny,spam\n007,ham\n"
    path = write_submission(tmp_path / "s.csv", IDS, CLASSES, ["spam", "ham"], label_column="spam")
    assert path.read_text() == "id,spam\nx,ham\ny,spam\n007,ham\n"


def test_class_called_id(tmp_path):
    """Languages have a class `id`: neither a column of names nor 0/1 columns take it for the ids."""
    given = {"task": "single_label", "label_column": "language"}
    found = written(tmp_path, "id,language\nx,en\ny,en\n007,en\n", CLASSES, ["id", "en"], **given)
    assert found == "id,language\nx,en\ny,id\n007,en\n"
    path = write_submission(tmp_path / "s.csv", IDS, Y_PRED, ["id", "en"], id_name=None)
    assert path.read_text() == "id_,id,en\nx,1,0\ny,0,1\n007,1,1\n"
    found = written(tmp_path, "row,id,en\nx,0,0\ny,0,0\n007,0,0\n", labels=["id", "en"])
    assert found == "row,id,en\nx,1,0\ny,0,1\n007,1,1\n"


@pytest.mark.parametrize(
    ("classes", "sample", "expected"),
    [
        (["5.0", "4.0"], "5", ["4", "5", "4"]),
        (["5", "4"], "4.0", ["4.0", "5.0", "4.0"]),
        (["True", "False"], "FALSE", ["FALSE", "TRUE", "FALSE"]),
        (["5.0", "4.0"], "5.0", ["4.0", "5.0", "4.0"]),
        (["5", "low"], "5.0", ["low", "5.0", "low"]),
        (["a", "b"], "?", ["b", "a", "b"]),
    ],
)
def test_spelling_of_classes(tmp_path, classes, sample, expected):
    """Names that are the same numbers or words are written as the sample spells them."""
    rows = "".join(f"{row},{sample}\n" for row in IDS)
    found = written(tmp_path, f"id,stars\n{rows}", CLASSES, classes, task="single_label", label_column="stars")
    assert [line.split(",")[1] for line in found.splitlines()[1:]] == expected
