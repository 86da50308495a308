"""New texts through saved models: the run's own answers again, from any place, and never over older ones."""

import json
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

from lora_cls.commands.cross_validation import cross_validate
from lora_cls.commands.export import export
from lora_cls.commands.predict import Classifier, predict_file
from lora_cls.commands.refit import refit
from lora_cls.commands.tune import tune
from lora_cls.errors import BackboneError, DataError, RunError
from lora_cls.evaluation import apply_thresholds
from lora_cls.runs import RunFolder

LABELS = ["joy", "anger", "fear"]
TRANSFORMERS = ["llama", "bert", "gemma3"]


def proba(folder):
    return pd.read_csv(folder / "test_proba.csv", dtype={"id": str})


@pytest.mark.parametrize("kind", ["tfidf", *TRANSFORMERS])
def test_same_answers_as_the_run(finished, kind, test, tmp_path):
    """The models read back from disk answer for the test file as they did in the run."""
    run = finished(kind)
    folder = predict_file(run, test, tmp_path / "new", sample_submission=run.sample_submission)
    before, after = proba(run.path), proba(folder)
    assert list(before["id"]) == list(after["id"])
    tolerance = 0 if kind == "tfidf" else 1e-6
    np.testing.assert_allclose(after[LABELS], before[LABELS], rtol=0, atol=tolerance)
    assert (folder / "submission.csv").read_bytes() == (run.path / "submission.csv").read_bytes()


@pytest.mark.parametrize("kind", ["tfidf", *TRANSFORMERS])
def test_classifier(finished, kind, test):
    """One text gives one row of scores, several give a table, none an empty one; decisions follow from thresholds."""
    run = finished(kind)
    classifier = Classifier.load(run.path)
    texts = list(test["text"])
    scores = classifier.predict_proba(texts)
    assert scores.shape == (12, 3)
    assert scores.dtype == np.float64
    one = classifier.predict_proba(texts[3])
    assert one.shape == (3,)
    # a text alone or in a batch is padded differently: bf16 then rounds differently
    np.testing.assert_allclose(one, scores[3], atol=2e-2 if kind == "llama" else 1e-5)
    expected = proba(run.path)[classifier.label_names]
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    decided = classifier.predict(texts)
    assert decided.dtype == np.int8
    np.testing.assert_array_equal(decided, apply_thresholds(scores, classifier.thresholds))
    assert classifier.predict(texts[3]).shape == (3,)
    assert classifier.predict_proba([]).shape == (0, 3)
    assert classifier.predict([]).shape == (0, 3)


@pytest.mark.parametrize("kind", ["bert", "llama", "gemma3"])
def test_many_texts(finished, kind, monkeypatch):
    """Many texts are read once for all folds, and answered with the adapters merged where there are plain ones."""
    from lora_cls.modeling import merged_updates
    from lora_cls.training.session import Session

    run = finished(kind)
    texts = [f"so {word} and {number} times" for number in range(40) for word in ("happy", "furious")]
    few = Classifier.load(run)
    expected = np.concatenate([few.predict_proba(texts[i : i + 40]) for i in range(0, len(texts), 40)])
    encode, merge, encoded, merged = Session.encode, merged_updates._merge, [], []
    monkeypatch.setattr(Session, "encode", lambda self, given: encoded.append(len(given)) or encode(self, given))
    monkeypatch.setattr(merged_updates, "_merge", lambda *given: merged.append(1) or merge(*given))
    many = Classifier.load(run)
    np.testing.assert_allclose(many.predict_proba(texts), expected, atol=2e-2 if kind == "llama" else 1e-5)
    assert encoded == [80]
    assert bool(merged) == (kind == "llama")  # all weights are trained; quantized
    assert len(merged) % 2 == 0  # both folds
    many.predict_proba([*texts[1:], "another"])
    assert encoded == [80, 80]


def test_moved_backbone(finished, small_recipe, train, test, tmp_path, tiny_model, monkeypatch):
    """On a machine where the base lies elsewhere, backbone= (--backbone) says where; without it the error says so."""
    from lora_cls import cli

    base = shutil.copytree(tiny_model("llama"), tmp_path / "before")
    recipe = small_recipe("llama", backbone__name_or_path=str(base), train__num_train_epochs=1)
    run = cross_validate(recipe, train, test, tmp_path / "run")
    base.rename(tmp_path / "after")
    with pytest.raises(BackboneError, match=f"No folder at {base}"):
        Classifier.load(run)
    test.to_csv(tmp_path / "new.csv", index=False)
    given = ["predict", run.path, "--input", tmp_path / "new.csv", "--backbone", tmp_path / "after"]
    monkeypatch.setattr(sys, "argv", ["lora-cls", *map(str, given)])
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert not done.value.code
    np.testing.assert_allclose(
        proba(run.path / "predictions" / "new")[LABELS], proba(run.path)[LABELS], rtol=0, atol=1e-6
    )


def test_relative_backbone_from_another_folder(small_recipe, train, test, tmp_path, tiny_model, monkeypatch):
    """The full path in run.json is tried where the recipe's leads nowhere, for every command; and an error that is
    left names --backbone."""
    (tmp_path / "work" / "models").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(tiny_model("llama"), tmp_path / "work" / "models" / "tiny")
    monkeypatch.chdir(tmp_path / "work")
    recipe = small_recipe("llama", backbone__name_or_path="models/tiny", train__num_train_epochs=1)
    run = cross_validate(recipe, train, test, "run", folds=[0])
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = RunFolder(tmp_path / "work" / "run")
    texts = list(test["text"])
    expected = Classifier.load(run, backbone=str(tmp_path / "work" / "models" / "tiny")).predict_proba(texts)
    np.testing.assert_array_equal(Classifier.load(run).predict_proba(texts), expected)
    cross_validate(recipe, train, test, run.path, resume=True)
    assert run.finished_folds == [0, 1]
    refit(run, train)
    export(run, "merged", to="merged")
    (tmp_path / "work" / "models").rename(tmp_path / "work" / "moved")
    with pytest.raises(BackboneError, match="--backbone"):
        Classifier.load(run).predict_proba(texts)


def test_another_backbone(finished, tiny_model):
    """A base of another architecture is refused, never half loaded."""
    with pytest.raises(BackboneError, match="not the base that this run was trained on"):
        Classifier.load(finished("llama"), backbone=tiny_model("gpt2")).predict_proba("a text")


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_same_shape_other_weights(finished, tiny_model, tmp_path, kind):
    """An instruction-tuned base in place of the plain one fits every key, and is still refused."""
    folder = shutil.copytree(tiny_model(kind), tmp_path / "other")
    weights = load_file(folder / "model.safetensors")
    weights["norm.weight"] = weights["norm.weight"] + 0.01  # Gemma's are 0 when new
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BackboneError, match="its weights differ"):
        Classifier.load(finished(kind), backbone=str(folder)).predict_proba("a text")


@pytest.mark.parametrize("kind", ["tfidf", "llama", "bert"])
def test_refit(finished, copy_of, train, test, kind, tmp_path):
    """`refit` trains one model on all rows, beside the folds; it answers on its own and leaves the run as it was."""
    run = copy_of(finished(kind))
    with pytest.raises(RunError, match=r"has no model of all rows\. Train it with: lora-cls refit"):
        Classifier.load(run, models="refit")
    before = (run.path / "oof_proba.csv").read_bytes()
    folder = refit(run, train)
    assert json.loads(folder.info_file.read_text())["train_rows"] == len(train)
    out = predict_file(run, test, models="refit")
    assert out == run.path / "predictions" / "table-refit"
    folds = Classifier.load(run).predict_proba(list(test["text"]))
    assert not np.allclose(proba(out)[run.label_names], folds, atol=1e-6)
    assert (run.path / "oof_proba.csv").read_bytes() == before
    assert run.finished_folds == run.fold_numbers
    stamp = folder.info_file.stat().st_mtime_ns
    assert refit(run, train).info_file.stat().st_mtime_ns == stamp, "trained again"


def test_refit_finds_the_training_file(finished, copy_of):
    """A run started from files is refitted without naming them."""
    run = copy_of(finished("tfidf"))
    assert refit(run).finished


def test_refit_on_other_data(finished, copy_of, train):
    """refit refuses rows that are not the run's, and asks for a table that was a DataFrame."""
    run = copy_of(finished("llama"))
    with pytest.raises(RunError, match="is not the data that"):
        refit(run, train[:-1])
    with pytest.raises(RunError, match="give it again with --train"):
        refit(run)
    assert not run.refit.path.exists()


def test_refit_knows_the_columns(tfidf_recipe, train, test, tmp_path):
    """refit takes the run's text column even where only the test table had told it from another."""
    noted = train.assign(note=[f"written by annotator {i % 4}" for i in range(len(train))])
    noted = noted.rename(columns={"text": "words"})
    run = cross_validate(tfidf_recipe(), noted, test.rename(columns={"text": "words"}), tmp_path / "run")
    assert run.info.data.text_columns == ["words"]
    assert refit(run, noted).finished


def test_refit_needs_no_test_table(tfidf_recipe, train, test, tmp_path):
    """refit needs the training table only, even if the recipe's test file is gone."""
    for name, table in (("train", train), ("test", test)):
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    recipe = tfidf_recipe(data__train=str(tmp_path / "train.csv"), data__test=str(tmp_path / "test.csv"))
    run = cross_validate(recipe, out=tmp_path / "run")
    (tmp_path / "test.csv").unlink()
    assert refit(run).finished


def test_predictions_are_never_overwritten(finished, copy_of, test, tmp_path):
    """A folder that holds predictions is refused, whether named or the default one."""
    run = copy_of(finished("tfidf"))
    test.to_csv(tmp_path / "new.csv", index=False)
    folder = predict_file(run, tmp_path / "new.csv")
    assert folder == run.path / "predictions" / "new"
    before = (folder / "submission.csv").read_bytes()
    for out in (None, folder, run.path):
        with pytest.raises(RunError, match="holds predictions already"):
            predict_file(run, tmp_path / "new.csv", out)
    assert (folder / "submission.csv").read_bytes() == before


@pytest.mark.parametrize("kind", ["llama", "bert", "tfidf"])
def test_truncated_model(finished, copy_of, damage, kind):
    """A model file cut short, or gone, is named; nothing is predicted with half a model."""
    run = copy_of(finished(kind))
    name = {"llama": "adapter/adapter_model", "bert": "model/model", "tfidf": "model/weights"}[kind] + ".safetensors"
    file = damage(run.fold(1).path / name)
    with pytest.raises(RunError, match="fold-01"):
        Classifier.load(run).predict_proba("a text")
    file.unlink()
    with pytest.raises(RunError, match="fold-01"):
        Classifier.load(run).predict_proba("a text")


def test_missing_head(finished, copy_of):
    """A fully fine-tuned model without its head is refused, never answered by a random one."""
    run = copy_of(finished("bert"))
    (run.fold(0).model / "head.safetensors").unlink()
    with pytest.raises(RunError, match=r"head\.safetensors is missing"):
        Classifier.load(run).predict_proba("a text")


def test_columns_as_in_training(finished, copy_of, test, tmp_path):
    """The new table needs the run's text column, and may carry any others, labels too."""
    run = copy_of(finished("tfidf"))
    with pytest.raises(DataError, match="no column 'text'"):
        predict_file(run, test.rename(columns={"text": "tweet"}), tmp_path / "a")
    assert not (tmp_path / "a").exists()
    table = test.assign(joy=1, note="free text of another kind")
    assert len(proba(predict_file(run, table, tmp_path / "b"))) == len(test)


def test_sample_of_another_table(finished, sample, test, tmp_path):
    """A sample submission that does not fit is refused before a file is written."""
    with pytest.raises(DataError, match="ids"):
        predict_file(finished("tfidf"), test[:-1], tmp_path / "a", sample_submission=sample)
    assert not (tmp_path / "a").exists()


def test_partial_run(finished, copy_of, test, tmp_path):
    """A run with some folds finished predicts with those that its thresholds were tuned with."""
    run = copy_of(finished("tfidf"))
    run.fold(2).info_file.unlink()
    with pytest.raises(RunError, match="tuned with folds that are not finished any more: 2"):
        predict_file(run, test, tmp_path / "a")
    whole = proba(run.path)[LABELS]
    tune(run)
    predict_file(run, test, tmp_path / "a", sample_submission=run.sample_submission)
    assert not np.allclose(proba(tmp_path / "a")[LABELS], whole)


def test_names_of_predictions(finished, copy_of, test, tmp_path):
    """The default folder is the table's whole name without its suffix: months are not taken for one another."""
    run = copy_of(finished("tfidf"))
    for name, folder in {
        "2024.01.csv": "2024.01", "2024.02.csv": "2024.02", "v1.2.CSV.gz": "v1.2", "a.b.jsonl": "a.b",
    }.items():  # fmt: skip
        if name.endswith("jsonl"):
            test.to_json(tmp_path / name, orient="records", lines=True)
        else:
            test.to_csv(tmp_path / name, index=False, compression="gzip" if name.endswith("gz") else None)
        assert predict_file(run, tmp_path / name) == run.path / "predictions" / folder
