"""`predict --abstain-below-precision`: labels that are left open, and what that comes to out of fold."""

import sys

import numpy as np
import pandas as pd
import pytest

from lora_cls.commands.abstain import fit_abstention
from lora_cls.commands.cross_validation import cross_validate
from lora_cls.commands.export import export
from lora_cls.commands.predict import predict_file
from lora_cls.commands.tune import tune
from lora_cls.errors import RecipeError, RunError
from lora_cls.recipe import Prediction
from lora_cls.runs.records import AbstentionInfo


def test_answers(finished, test, tmp_path):
    """Each label says 1, 0 or abstain: as the submission outside of the band; nothing else changes."""
    run = finished("tfidf")
    plain = predict_file(run, test, tmp_path / "plain")
    folder = predict_file(run, test, tmp_path / "out", abstain_below_precision=0.9)
    for name in ("submission.csv", "test_proba.csv"):
        assert (folder / name).read_bytes() == (plain / name).read_bytes()
    answers = pd.read_csv(folder / "answers.csv", dtype=str)
    proba, decided = (pd.read_csv(folder / f"{name}.csv", dtype={"id": str}) for name in ("test_proba", "submission"))
    assert answers["id"].tolist() == decided["id"].tolist()
    about = AbstentionInfo.read(folder / "abstain.json")
    for name in run.label_names:
        yes, no = (np.nan if edge is None else edge for edge in (about.yes[name], about.no[name]))
        known = np.where(decided[name] == 1, proba[name] >= yes, proba[name] <= no)
        assert answers[name].tolist() == np.where(known, decided[name].astype(str), "abstain").tolist()
    assert "abstain" in answers[run.label_names].to_numpy()
    predict_file(run, test, folder, overwrite=True)
    assert sorted(file.name for file in folder.iterdir()) == ["submission.csv", "test_proba.csv"]


def test_no_label_of_a_fold_enters_what_is_said_of_it(finished, copy_of):
    """With the labels of one fold turned round, thresholds tuned anew, the same rows of that fold are answered: only
    which of them are right changes."""
    run = finished("tfidf")
    _, about = fit_abstention(run, 0.7)
    oof = run.out_of_fold()
    other = copy_of(run)
    inside = run.folds["fold"].to_numpy() == 1
    turned = np.where(inside[:, None], 1 - run.y_true, run.y_true)
    other.y_true = turned  # in the place of the property: the file keeps its sum
    tune(other)
    _, changed = fit_abstention(other, 0.7)
    before, after = oof.part == 1, other.out_of_fold().part == 1
    np.testing.assert_array_equal(before, after)
    # folds 0 and 2 are decided by bands that saw fold 1; fold 1 by bands that did not: look at it alone
    from lora_cls.evaluation.abstention import Abstention

    def answered_of_fold_1(run):
        results = run.results()
        task, oof = run.task(results.decision), results.oof
        limits = np.array([results.decision.fitted[1][name] for name in oof.label_names])
        outside = oof.part != 1
        decided = task.apply(oof.y_score[outside], limits)
        band = Abstention.fit(oof.y_true[outside], oof.y_score[outside], decided, 0.7, task.exclusive)
        return band.answered(oof.y_score[~outside], task.apply(oof.y_score[~outside], limits))

    np.testing.assert_array_equal(answered_of_fold_1(run), answered_of_fold_1(other))
    assert about.out_of_fold != changed.out_of_fold


def test_classes(tfidf_recipe, emotion_table, tmp_path):
    """The class that was decided, and whether it is an answer, stand in columns of their own."""
    tables = []
    for seed, n in ((0, 90), (9, 30)):
        table = emotion_table(n, seed)
        genre = np.where(table["fear"] == 1, "fear", np.where(table["joy"] == 1, "joy", "abstain"))
        tables.append(table[["id", "text"]].assign(genre=genre))
    run = cross_validate(tfidf_recipe(task="single_label"), tables[0], tables[1][["id", "text"]], tmp_path / "run")
    folder = predict_file(run, tables[1], abstain_below_precision=0.8)
    answers = pd.read_csv(folder / "answers.csv", dtype=str)
    assert answers.columns.tolist() == ["id", "class", "abstain"]
    assert answers["class"].tolist() == pd.read_csv(folder / "submission.csv")["genre"].tolist()
    about = AbstentionInfo.read(folder / "abstain.json")
    assert about.no is None and 0 < about.out_of_fold.coverage < 1
    assert about.out_of_fold.right > about.out_of_fold.right_without


def test_what_cannot_be_measured_is_refused(finished, copy_of, test, tmp_path):
    """Before a model answers: a precision that is none, votes, and exports."""
    run = copy_of(finished("tfidf"))
    with pytest.raises(RecipeError, match=r"must lie between 0 and 1, as 0\.9\. Got 90 instead"):
        predict_file(run, test, tmp_path / "out", abstain_below_precision=90)
    tune(run, prediction=Prediction(combine="vote"))
    with pytest.raises(RunError, match="lora-cls tune RUN --combine mean_proba"):
        predict_file(run, test, tmp_path / "out", abstain_below_precision=0.9)
    with pytest.raises(RunError, match="is an export"):
        fit_abstention(export(finished("bert"), tmp_path / "shipped", to="merged"), 0.9)
    assert not (tmp_path / "out").exists()


def test_command(finished, copy_of, test, tmp_path, monkeypatch, capsys):
    """What it comes to is printed."""
    from lora_cls import cli

    run = copy_of(finished("tfidf"))
    test.to_csv(tmp_path / "new.csv", index=False)
    given = ["predict", run.path, "--input", tmp_path / "new.csv", "--abstain-below-precision", "0.8"]
    monkeypatch.setattr(sys, "argv", ["lora-cls", *map(str, given)])
    with pytest.raises(SystemExit) as done:
        cli.main()
    out = capsys.readouterr().out
    assert not done.value.code
    assert "of the decisions are answered" in out and "answers.csv" in out
