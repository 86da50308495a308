"""What a run says of its cost: rows and tokens per second, padding, memory, seconds by phase, and what was reused."""

import json
import re

import pytest

from lora_cls.commands import fold_training
from lora_cls.commands.cross_validation import cross_validate
from lora_cls.runs import RunFolder
from lora_cls.terminal import print_run
from lora_cls.text import token_cache

PHASES = {"load", "tokenize", "prefix", "train", "score", "predict", "save", "tune"}


def folds_of(run):
    return [json.loads(run.fold(number).info_file.read_text()) for number in run.finished_folds]


def check_sums(run):
    """run.json says what the fold.json of all finished folds say together."""
    info, folds = run.info, folds_of(run)

    def total(key, of):
        return sum(fold[of][key] for fold in folds)

    for phase in ("train", "score", "predict", "save"):
        assert info.seconds[phase] == pytest.approx(total(phase, "seconds"), abs=0.002)
    assert info.peak_memory_bytes == max(fold["peak_memory_bytes"] for fold in folds) > 2**27
    rows, tokens, padded = (total(key, "processed") for key in ("rows", "tokens", "padded_tokens"))
    assert info.train_rows_per_second == pytest.approx(rows / total("train", "seconds"), rel=0.01)
    assert info.train_tokens_per_second == pytest.approx(tokens / total("train", "seconds"), rel=0.01)
    assert info.padding_share == pytest.approx(1 - tokens / padded, abs=1e-4)
    predicted = sum(fold["predict_pieces"] for fold in folds)
    assert info.predict_rows_per_second == pytest.approx(predicted / total("predict", "seconds"), rel=0.01)
    for fold in folds:
        rate = fold["predict_pieces"] / fold["seconds"]["predict"]
        assert fold["predict_rows_per_second"] == pytest.approx(rate, rel=0.02)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_sums_over_folds(finished, kind, train, test):
    """Every figure of run.json is that of all folds; each of them answered for its own and for the test rows."""
    run = finished(kind)
    assert set(run.info.seconds) == PHASES
    assert run.info.seconds["load"] > 0
    assert run.info.seconds["score"] == 0
    check_sums(run)
    assert sum(fold["predict_pieces"] for fold in folds_of(run)) == len(train) + 2 * len(test)


def test_classical_baseline(finished, train, test):
    """It has rows per second of prediction, and no tokens."""
    info = finished("tfidf").info
    assert set(info.seconds) == {"load", "train", "predict", "tune"}
    assert info.predict_rows_per_second > 0
    assert info.train_tokens_per_second is None


def test_resumed_run_counts_all_starts(small_recipe, train, test, tmp_path, monkeypatch, capsys):
    """After a resume the figures cover the folds of every start, its loading too, and memory is the greatest."""
    monkeypatch.setattr(token_cache, "MIN_CHARACTERS", 0)
    recipe = small_recipe("llama", train__select="inner")
    peaks = iter([2**40, 2**30])
    monkeypatch.setattr(fold_training, "peak_memory", lambda: next(peaks))
    first = cross_validate(recipe, train, test, tmp_path / "run", folds=[0]).info
    run = cross_validate(recipe, train, test, tmp_path / "run", resume=True)
    check_sums(run)
    assert run.info.seconds["score"] > 0
    assert run.info.peak_memory_bytes == 2**40
    assert run.info.seconds["load"] > first.seconds["load"] > 0
    assert run.info.seconds["tune"] >= first.seconds["tune"]
    assert run.info.reused == {"token_ids": len(train) + len(test)}
    print_run(run)
    said = capsys.readouterr().out
    assert f"Reused: token ids of {len(train) + len(test)} texts." in said
    for words in (
        r"training \d",
        r"prediction \d",
        r"trained \d+ rows/s, \d+ tokens/s, \d+% padding",
        r"predicted \d+ rows/s",
    ):
        assert re.search(words, said, re.IGNORECASE), words


def test_nothing_left_to_train(finished, copy_of, train, test):
    """A resume of a finished run keeps its figures."""
    run = copy_of(finished("llama"))
    before = run.info
    after = cross_validate(run.recipe, train, test, run.path, resume=True).info
    for key in ("train_rows_per_second", "predict_rows_per_second", "padding_share", "peak_memory_bytes"):
        assert getattr(after, key) == getattr(before, key)
    assert RunFolder(run.path).info.seconds["train"] == before.seconds["train"]


def test_prediction_says_its_speed(finished, test, tmp_path, capsys):
    """`predict` ends with rows per second, loading left out."""
    from lora_cls.commands.predict import predict_file

    for kind in ("llama", "tfidf"):
        run = finished(kind)
        predict_file(run, test, tmp_path / kind, show=True)
        said = capsys.readouterr().err.strip().splitlines()[-1]
        found = re.fullmatch(r"12 rows by (\d) models in [\d.]+ s: (\d+) rows/s by each", said)
        assert found, said
        assert int(found[1]) == len(run.finished_folds)
        assert int(found[2]) > 0
