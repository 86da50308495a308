"""Blends of trained runs: new texts go through all their models; a missing model or another text is an error."""

import shutil

import pytest

from lora_cls.commands.blend import blend
from lora_cls.errors import RunError


@pytest.fixture(scope="module")
def pair(finished, train, test, sample, tfidf_recipe, tmp_path_factory):
    """Two classical runs on the same folds, with test rows and a sample submission."""
    from lora_cls.commands.cross_validation import cross_validate

    first = finished("tfidf")
    recipe = tfidf_recipe(tfidf={"min_df": 1, "C": 0.05, "char_ngram_range": [1, 2]})
    out = tmp_path_factory.mktemp("second") / "second"
    second = cross_validate(recipe, train, test, out, sample_submission=sample, fold_table=first.folds[["id", "fold"]])
    return first, second


@pytest.mark.parametrize("how", ["mean_logit", "rank_mean", "stacking"])
def test_predict_as_in_the_run(pair, test, tmp_path, how):
    """The run's own test rows, predicted again through its runs' models, give the same probabilities and submission."""
    import numpy as np
    import pandas as pd

    from lora_cls import Classifier
    from lora_cls.commands.predict import predict_file

    run = blend([one.path for one in pair], tmp_path / "blend", how)
    predict_file(run, test, tmp_path / "new", sample_submission=run.sample_submission)
    tables = [pd.read_csv(folder / "test_proba.csv").set_index("id") for folder in (tmp_path / "new", run.path)]
    np.testing.assert_allclose(*tables, atol=1e-6)
    assert (tmp_path / "new" / "submission.csv").read_bytes() == (run.path / "submission.csv").read_bytes()
    alone = Classifier.load(run).predict_proba(test["text"].iloc[2])
    np.testing.assert_allclose(alone, tables[1].iloc[2][run.label_names], atol=1e-6)


def test_runs_that_are_gone(pair, tmp_path):
    """A blend whose run was deleted says which; its scores can still be tuned."""
    from lora_cls import Classifier
    from lora_cls.commands.tune import tune

    for one in pair:
        shutil.copytree(one.path, tmp_path / one.path.name)
    run = blend([tmp_path / one.path.name for one in pair], tmp_path / "blend")
    with pytest.raises(RunError, match="--backbone names one base model"):
        Classifier.load(run, backbone="elsewhere")
    shutil.rmtree(tmp_path / "second")
    with pytest.raises(RunError, match=r"and \.\./second is gone"):
        Classifier.load(run).predict("a text")
    before = (run.path / "metrics.json").read_bytes()
    tune(run)
    assert (run.path / "metrics.json").read_bytes() == before


def test_command_line(pair, train, tmp_path, monkeypatch, capsys):
    """compare, blend and calibrate, one after the other; a wrong folder ends with code 2 and no traceback."""
    import sys

    from lora_cls import cli

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["lora-cls", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    paths = [one.path for one in pair]
    code, out, _ = call("blend", *paths, "--out", tmp_path / "blend", "--how", "weights")
    assert code == 0
    assert "Blended by weights, 2 runs gain" in out
    shown = (tmp_path / "blend" / "report.html").read_text(encoding="utf-8")
    assert "2 runs together (blend by weights)" in shown
    assert "weights (written)" in shown
    assert "blend by weights" in (tmp_path / "blend" / "README.md").read_text(encoding="utf-8")
    table = tmp_path / "train.csv"
    train.to_csv(table, index=False)
    code, out, _ = call("report", tmp_path / "blend", "--train", table)
    assert code == 0
    assert "This page holds texts" in (tmp_path / "blend" / "report.html").read_text(encoding="utf-8")
    code, out, _ = call("compare", *paths, tmp_path / "blend", "--out", tmp_path / "out")
    assert code == 0
    assert "second" in out
    assert "compare.html" in out
    code, out, _ = call("calibrate", tmp_path / "blend")
    assert code == 0
    assert "calibration.json" in out
    code, out, err = call("compare", paths[0], tmp_path / "nothing", "--out", tmp_path / "x")
    assert code == 2
    assert "is no run folder" in err
    assert "Traceback" not in err
    assert not (tmp_path / "x").exists()
    code, _, err = call("tune", tmp_path / "blend", "--strategy", "global")
    assert code == 0
