"""Tables read, answered and written in pieces: the same files as from memory, whatever the format and the stops."""

import json

import numpy as np
import pandas as pd
import pytest

from lora_cls.commands import predict as module
from lora_cls.commands.answers import Answers
from lora_cls.commands.predict import Classifier, predict_file
from lora_cls.errors import DataError

ANSWERS = ("test_proba.csv", "submission.csv")


@pytest.fixture
def table(test):
    """33 rows; texts with line breaks, quotes and separators, that pieces must not be cut in."""
    many = pd.concat([test] * 3, ignore_index=True).iloc[:33]
    texts = [f'{text}\n"said", {i}\r\nédeé\u2028' for i, text in enumerate(many["text"])]
    return many.assign(id=[f"{i:03d}" for i in range(len(many))], text=texts)


@pytest.fixture
def written(table, tmp_path):
    """Function that writes the table in a format, and gives its path."""

    def write(suffix, table=table):
        file = tmp_path / f"table{suffix}"
        if suffix == ".parquet":
            table.to_parquet(file, index=False, row_group_size=7)
        elif suffix == ".jsonl":
            file.write_text("".join(json.dumps(row) + "\n" for row in table.to_dict("records")), encoding="utf-8")
        else:
            table.to_csv(file, index=False, sep="\t" if suffix == ".tsv" else ",", encoding="utf-8")
        return file

    return write


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(module, "ROWS_PER_PIECE", 5)


@pytest.fixture
def asked(monkeypatch):
    """How many rows the models were asked for, by call; the fourth call is stopped."""
    logits, sizes = Classifier.logits, []

    def stop(self, rows, models, *told):
        sizes.append(len(rows))
        if len(sizes) == 4:
            raise KeyboardInterrupt
        return logits(self, rows, models, *told)

    monkeypatch.setattr(Classifier, "logits", stop)
    return sizes


def answers(folder):
    return {name: (folder / name).read_bytes() for name in ANSWERS}


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".tsv", ".jsonl", ".parquet"])
def test_same_files_as_from_memory(suffix, finished, written, tmp_path, monkeypatch):
    run, file = finished("tfidf"), written(suffix)
    whole = predict_file(run, pd.DataFrame(module.read_pieces(file, 1000).frame(0)), tmp_path / "whole")
    monkeypatch.setattr(module, "ROWS_PER_PIECE", 5)
    assert answers(predict_file(run, file, tmp_path / "pieces")) == answers(whole)


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_sample_submission(shuffled, finished, table, written, tmp_path, monkeypatch):
    """Its ids may stand in the order of the table, or in another one."""
    labels = finished("tfidf").label_names
    sample = pd.DataFrame({"id": table["id"], **dict.fromkeys(reversed(labels), 0)})
    sample = sample.sample(frac=1, random_state=0) if shuffled else sample
    sample.to_csv(tmp_path / "sample.csv", index=False)
    given = {"sample_submission": tmp_path / "sample.csv"}
    whole = predict_file(finished("tfidf"), written(".csv"), tmp_path / "whole", **given)
    monkeypatch.setattr(module, "ROWS_PER_PIECE", 5)
    pieces = predict_file(finished("tfidf"), written(".csv"), tmp_path / "pieces", **given)
    assert answers(pieces) == answers(whole)
    assert pd.read_csv(pieces / "submission.csv", dtype=str)["id"].tolist() == sample["id"].tolist()


def test_parquet_out(finished, written, tmp_path, small_pieces):
    """The same values as in CSV."""
    run, file = finished("tfidf"), written(".csv")
    as_csv = predict_file(run, file, tmp_path / "csv")
    as_parquet = predict_file(run, file, tmp_path / "parquet", format="parquet")
    for name in ("test_proba", "submission"):
        found = pd.read_parquet(as_parquet / f"{name}.parquet")
        wanted = pd.read_csv(as_csv / f"{name}.csv", dtype={"id": str})
        pd.testing.assert_frame_equal(found, wanted, check_dtype=False)
        np.testing.assert_array_equal(found.iloc[:, 1:].to_numpy(), wanted.iloc[:, 1:].to_numpy())
    assert sorted(file.name for file in as_parquet.iterdir()) == ["submission.parquet", "test_proba.parquet"]


@pytest.fixture
def whole(finished, written, tmp_path, small_pieces):
    """Predictions that nobody stopped."""
    return predict_file(finished("tfidf"), written(".csv"), tmp_path / "whole")


def test_stopped_and_repeated(whole, finished, written, tmp_path, asked):
    """The same call goes on with the pieces that were not answered, and ends in the same files."""
    run, file = finished("tfidf"), written(".csv")
    with pytest.raises(KeyboardInterrupt):
        predict_file(run, file, tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "submission.csv").exists()
    predict_file(run, file, tmp_path / "stopped")
    assert len(asked) == 4 + 4, "seven pieces, of which three were kept"
    assert answers(tmp_path / "stopped") == answers(whole)
    assert sorted(file.name for file in (tmp_path / "stopped").iterdir()) == sorted(ANSWERS)


def test_another_table_is_not_taken_for_the_first(finished, table, written, tmp_path, small_pieces, asked):
    """Kept pieces belong to the texts that they answer."""
    run, file = finished("tfidf"), written(".csv")
    with pytest.raises(KeyboardInterrupt):
        predict_file(run, file, tmp_path / "out")
    changed = table.assign(text=["joy" if i == 0 else text for i, text in enumerate(table["text"])])
    predict_file(run, written(".csv", changed), tmp_path / "out")
    assert len(asked) == 4 + 7


def test_models_that_did_not_answer_yet(finished, written, tmp_path, monkeypatch):
    """Of a piece that some models have answered, the others alone are asked."""
    run, file = finished("tfidf"), written(".csv")
    keep, logits, asked = Answers._keep, Classifier.logits, []

    def ask(self, rows, models, *told):
        asked.append(list(models))
        return logits(self, rows, models, *told)

    monkeypatch.setattr(Classifier, "logits", ask)
    whole = predict_file(run, file, tmp_path / "whole")

    def lose_the_second(self, number, models, logits):
        keep(self, number, models[:1], logits[:1])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Answers, "_keep", lose_the_second)
        with pytest.raises(KeyboardInterrupt):
            predict_file(run, file, tmp_path / "out")
    assert answers(predict_file(run, file, tmp_path / "out")) == answers(whole)
    assert asked == [[0, 1, 2], [0, 1, 2], [1, 2]]


def test_mistakes_of_all_pieces_at_once(finished, table, written, tmp_path, small_pieces):
    """A repeated id is named with its rows, however far apart they stand."""
    table = table.assign(id=[*table["id"][:-1], "001"])
    with pytest.raises(DataError, match=r"'001'"):
        predict_file(finished("tfidf"), written(".csv", table), tmp_path / "out")
    assert not (tmp_path / "out").exists()
