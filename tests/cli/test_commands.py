"""The commands on good input: what they print, and where they say that the files are."""

import re
import sys

import pytest


@pytest.fixture
def lora_cls(monkeypatch, capsys, tmp_path, emotion_table):
    """Function that calls `lora-cls` in a folder with train.csv and test.csv, and returns stdout and stderr."""
    emotion_table(36).to_csv(tmp_path / "train.csv", index=False)
    test = emotion_table(8, seed=1)[["id", "text"]].assign(id=[f"t{i}" for i in range(8)])
    test.loc[2, "text"] = ""
    test.to_csv(tmp_path / "test.csv", index=False)
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        from lora_cls import cli

        monkeypatch.setattr(sys, "argv", ["lora-cls", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            cli.main()
        printed = capsys.readouterr()
        assert not done.value.code, printed.err
        return printed

    return call


DATA = ["--train", "train.csv", "--test", "test.csv", "--set", "cv.n_splits=3"]


def test_check(lora_cls, tmp_path):
    """`check` shows labels, duplicates and odd rows, and writes nothing."""
    before = sorted(tmp_path.rglob("*"))
    out = lora_cls("check", "tfidf-logreg", *DATA).out
    assert "36 training rows, 8 test rows" in out
    assert "labels: 3 columns (joy, anger, fear), the 0/1 columns that the test file lacks" in out
    assert "1 empty test text, predicted all the same: 't2' (line 4)" in out
    assert "carry no label" in out
    assert "GiB" not in out
    assert sorted(tmp_path.rglob("*")) == before


def test_check_counts_tokens(lora_cls, tmp_path, tiny_model):
    """`check` with a backbone says how long texts are and how many are cut, without loading weights."""
    (tmp_path / "r.yaml").write_text(f"backbone: {{name_or_path: '{tiny_model('bert')}'}}\ndata: {{max_length: 24}}\n")
    out = lora_cls("check", "r.yaml", *DATA, "--no-measure").out
    assert "Tokens per train text" in out
    assert "Tokens per test text" in out
    assert "are longer than data.max_length 24: only their start is read" in out
    found = re.search(
        r"Training takes about ([\d.]+) GiB on this .PU, estimated: base 0.00, .* 16 texts of 24 tokens", out
    )
    assert 0.5 < float(found[1]) < 2


def test_run_predict_tune_refit(lora_cls, tmp_path):
    """The whole way on the command line: every command names the files that it wrote, and they are there."""
    printed = lora_cls("run", "tfidf-logreg", *DATA)
    assert "fold 2: macro-F1" in printed.err
    assert "Macro-F1" in printed.out
    assert "95 % interval" in printed.out
    run = tmp_path / "runs" / "tfidf-logreg"
    for name in ("metrics.json", "thresholds.json", "oof_proba.csv", "test_proba.csv", "submission.csv", "README.md"):
        assert f"runs/tfidf-logreg/{name}" in printed.out
        assert (run / name).is_file()
    out = lora_cls("predict", run, "--input", "test.csv", "--out", "new").out
    assert "new/submission.csv" in out
    assert (tmp_path / "new" / "submission.csv").read_bytes() == (run / "submission.csv").read_bytes()
    assert "Macro-F1" in lora_cls("tune", run, "--strategy", "fixed", "--default", "0.2").out
    assert "runs/tfidf-logreg/refit" in lora_cls("refit", run).out
    lora_cls("predict", run, "--input", "test.csv", "--models", "refit", "--out", "all-rows")
    assert (tmp_path / "all-rows" / "test_proba.csv").is_file()


def test_partial_run_says_how_to_go_on(lora_cls):
    """After --folds the output says how many folds are left and how to train them."""
    out = lora_cls("run", "tfidf-logreg", *DATA, "--folds", "0,2").out
    assert "Partial: 2 of 3 folds." in out
    assert "1 fold" in out
    assert "--resume" in out
    assert "Partial" not in lora_cls("run", "tfidf-logreg", *DATA, "--resume").out


def test_sample_that_comes_with_the_package(lora_cls):
    """`sample:` names the tables in the package, for a first run without data."""
    out = lora_cls("check", "tfidf-logreg", "--train", "sample:train.csv", "--test", "sample:test.csv").out
    assert "519 training rows, 60 test rows" in out


def test_names_with_markup(lora_cls, tmp_path):
    """A label name in square brackets is printed as it is, not swallowed as markup."""
    table = (tmp_path / "train.csv").read_text().replace("joy", "[red]joy[/red]", 1)
    (tmp_path / "train.csv").write_text(table)
    assert "[red]joy[/red]" in lora_cls("check", "tfidf-logreg", *DATA).out.split("Labels")[1]
