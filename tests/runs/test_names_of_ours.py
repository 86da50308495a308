"""Labels, classes and columns may be called like columns of ours: every command gives the same numbers."""

import numpy as np
import pandas as pd
import pytest

from lora_cls import Classifier, blend, calibrate, compare, cross_validate, predict_file, refit, tune
from lora_cls.commands.check import check
from lora_cls.report.comparison import write_comparison
from lora_cls.report.page import write_page
from lora_cls.runs import training_data

PLAIN = ["joy", "anger", "fear"]
OURS = ["id", "fold", "group"], ["text", "table", "answer"], ["label", "run", "score"]


def everything(recipe, train, test, sample, folder):
    """The numbers of every command over a table."""
    check(recipe, train, test, sample)
    run = cross_validate(recipe, train, test, folder / "a", sample_submission=sample)
    other = cross_validate(recipe, train, test, folder / "b", sample_submission=sample, overrides=["tfidf.C=0.5"])
    tune(run)
    calibrate(run)
    both = blend([run, other], folder / "both")
    refit(run, train)
    write_page(run, training_data(run, train), folder / "page.html")
    write_comparison(comparison := compare([run, other]), folder / "compared")
    for how in ("folds", "refit"):
        predict_file(run, test, folder / how, models=how, sample_submission=sample)
    proba = Classifier.load(both).predict_proba(test)
    rows = [line.split(",", 1)[1] for line in (run.path / "submission.csv").read_text().splitlines()[1:]]
    assert (folder / "folds" / "submission.csv").read_bytes() == (run.path / "submission.csv").read_bytes()
    assert run.folds["id"].tolist() == train.iloc[:, 0].tolist()
    columns = pd.read_csv(run.files.oof_calibrated).columns
    assert len(set(columns)) == 1 + len(run.label_names)
    return run.y_true, run.out_of_fold().y_score, proba, [one.score.estimate for one in comparison.runs], rows


@pytest.mark.parametrize("names", OURS)
def test_labels(tfidf_recipe, train, test, names, tmp_path):
    """0/1 columns of any name, beside an id column of another."""
    recipe = tfidf_recipe(data__id_column="key", data__text_columns=["words"], data__label_columns=PLAIN)
    train = train.rename(columns={"id": "key", "text": "words"})
    test = test.rename(columns={"id": "key", "text": "words"})
    expected = everything(recipe, train, test, None, tmp_path / "plain")
    recipe = tfidf_recipe(data__id_column="key", data__text_columns=["words"], data__label_columns=names)
    renamed = train.rename(columns=dict(zip(PLAIN, names, strict=True)))
    (tmp_path / "ours").mkdir()
    for found, wanted in zip(everything(recipe, renamed, test, None, tmp_path / "ours"), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("column", ["spam", "id"])
@pytest.mark.parametrize("with_sample", [True, False])
def test_classes(tfidf_recipe, train, test, column, with_sample, tmp_path):
    """A class named like its column, or `id`, with and without a sample; the submission names the classes."""
    names = {"spam": ["spam", "ham"], "id": ["id", "en"]}[column]
    of_column = "spam" if column == "spam" else "language"
    table = train[["id", "text"]].assign(**{of_column: np.where(train["joy"] == 1, *names)})
    sample = test[["id"]].assign(**{of_column: names[1]}) if with_sample else None
    (tmp_path / "run").mkdir()
    y_true, *_, rows = everything(tfidf_recipe(), table, test, sample, tmp_path / "run")
    assert set(rows) <= set(names)
    order = sorted(names)
    np.testing.assert_array_equal(y_true[:, order.index(names[0])], train["joy"])
    assert (tmp_path / "run" / "a" / "submission.csv").read_text().splitlines()[0] == f"id,{of_column}"


def test_classes_of_a_sample_called_like_a_column(tfidf_recipe, train, test, tmp_path):
    """A sample with a 0/1 column per class tells the column of names though one class is called like it."""
    table = train[["id", "text"]].assign(spam=np.where(train["joy"] == 1, "spam", "ham"))
    sample = test[["id"]].assign(ham=0, spam=0)
    run = cross_validate(tfidf_recipe(), table, test, tmp_path / "run", sample_submission=sample)
    assert run.label_names == ["ham", "spam"]
    submission = pd.read_csv(run.files.submission)
    assert list(submission) == ["id", "ham", "spam"]
    assert (submission[["ham", "spam"]].sum(axis=1) == 1).all()


def test_sample_as_it_is_spelled(tfidf_recipe, train, test, tmp_path):
    """`run`, `tune` and `predict` write the sample's words, header and kept columns byte for byte."""
    sample = test[["id"]].assign(joy=False, anger="0.0", fear=0).set_axis(["id", " joy", "anger", "fear"], axis=1)
    sample.to_csv(tmp_path / "sample.csv")
    test.to_csv(tmp_path / "test.csv", index=False)
    files = {"test": tmp_path / "test.csv", "sample_submission": tmp_path / "sample.csv"}
    run = cross_validate(tfidf_recipe(), train, out=tmp_path / "run", **files)
    lines = run.files.submission.read_text().splitlines()
    assert lines[0] == ",id, joy,anger,fear"
    cells = [set(column) for column in zip(*(line.split(",") for line in lines[1:]), strict=True)]
    assert cells[2:] == [{"False", "True"}, {"0.0", "1.0"}, {"0", "1"}]
    assert cells[0] == {str(i) for i in range(len(test))}
    before = run.files.submission.read_bytes()
    tune(run)
    assert run.files.submission.read_bytes() == before
    out = predict_file(run, test, tmp_path / "new", sample_submission=tmp_path / "sample.csv")
    assert (out / "submission.csv").read_bytes() == before


def test_sample_of_probabilities(tfidf_recipe, train, test, tmp_path):
    """A sample of 0.5 gets the probabilities of test_proba.csv, and `check` says so."""
    sample = test[["id"]].assign(**dict.fromkeys(PLAIN, 0.5))
    run = cross_validate(tfidf_recipe(), train, test, tmp_path / "run", sample_submission=sample)
    submission, proba = pd.read_csv(run.files.submission), pd.read_csv(run.files.test_proba)
    pd.testing.assert_frame_equal(submission[["id", *PLAIN]], proba[["id", *PLAIN]])
    assert any("holds probabilities" in note for note in check(tfidf_recipe(), train, test, sample).notes)


def test_numbers_as_ids(tfidf_recipe, train, test, tmp_path):
    """Ids that pandas made floats are those of the file, in the run's copy of the sample too."""
    train, test = train.assign(id=np.arange(45.0)), test.assign(id=np.arange(100.0, 112))
    sample = test[["id"]].assign(**dict.fromkeys(PLAIN, 0))
    run = cross_validate(tfidf_recipe(), train, test, tmp_path / "run", sample_submission=sample)
    tune(run)
    assert run.files.submission.read_text().splitlines()[1].startswith("100,")


@pytest.mark.parametrize("name", ["fold", "group"])
def test_ids_called_like_a_column_of_folds(tfidf_recipe, train, tmp_path, name):
    """A run's folds.csv gives the same folds again where the ids are called `fold` or `group`."""
    recipe, table = tfidf_recipe(data__id_column=name), train.rename(columns={"id": name})
    run = cross_validate(recipe, table, out=tmp_path / "a")
    again = cross_validate(recipe, table, out=tmp_path / "b", fold_table=run.files.folds)
    pd.testing.assert_frame_equal(again.folds, run.folds)
