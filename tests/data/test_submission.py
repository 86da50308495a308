"""Submissions: the sample is checked, its order followed, and the file written whole."""

import os

import numpy as np
import pandas as pd
import pytest

from lora_cls.data import read_sample_submission, write_submission
from lora_cls.errors import DataError, WriteError

SAMPLE = pd.DataFrame({"ID": ["y", "007", "x"], "fear": [0, 0, 0], "joy": [0, 0, 0]})
IDS, LABELS = ["x", "y", "007"], ["joy", "fear"]
Y_PRED = np.array([[1, 0], [0, 1], [1, 1]], dtype=np.int8)


def test_sample_order_is_followed(tmp_path):
    """Rows, columns and the header of the id column are the sample's; ids keep their zeros."""
    SAMPLE.to_csv(tmp_path / "sample.csv", index=False)
    sample = read_sample_submission(tmp_path / "sample.csv", IDS, LABELS)
    assert sample == (["ID", "fear", "joy"], ["y", "007", "x"])
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
    assert read == (["emotion", "Id"], ["y", "007", "x"])
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
