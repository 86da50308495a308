"""Run folders and an export of version 0.1.0, as it was at commit 7b0bd2f: today's commands do all that they did then.

`make_version_0_1_0.py` made them, and says how.
"""

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lora_cls.commands.blend import blend
from lora_cls.commands.calibrate import calibrate
from lora_cls.commands.compare import compare
from lora_cls.commands.cross_validation import cross_validate
from lora_cls.commands.export import export
from lora_cls.commands.predict import Classifier, predict_file
from lora_cls.commands.refit import refit
from lora_cls.commands.score import score_file
from lora_cls.commands.status import status
from lora_cls.commands.tune import tune
from lora_cls.errors import BackboneError
from lora_cls.report.page import write_page
from lora_cls.runs import RunFolder, training_data

LABELS = ["joy", "anger", "fear"]


@pytest.fixture
def old(tmp_path, monkeypatch):
    """Where the folders of then lie: `lora`, `tfidf`, `export`, `base` and tables. Also the working directory, from
    which their recipe's base is found by its relative path."""
    zipfile.ZipFile(Path(__file__).with_name("version_0_1_0.zip")).extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def numbers(file):
    return pd.read_csv(file, index_col=0)[LABELS].to_numpy()


@pytest.mark.parametrize("name", ["lora", "tfidf"])
def test_scores_and_decisions_of_then(old, name):
    """Tuned again, thresholds, scores and submission are those that the run had; its page can hold texts."""
    before = RunFolder(name)
    kept = {file: (old / name / file).read_bytes() for file in ("oof_proba.csv", "test_proba.csv", "submission.csv")}
    decision, scores = before.decision(), before.scores
    found = status(name)
    assert (found.state, found.notes) == ("finished", [])
    assert found.score.macro_f1 == scores.cross_fitted.macro_f1
    tune(name)
    after = RunFolder(name)
    assert {file: (old / name / file).read_bytes() for file in kept} == kept
    assert after.decision().shipped == decision.shipped
    assert after.scores.cross_fitted.macro_f1_interval == scores.cross_fitted.macro_f1_interval
    assert after.scores.cross_fitted.per_label == scores.cross_fitted.per_label
    texts, page = pd.read_csv("train.csv")["text"], old / name / "report.html"
    assert not any(text in page.read_text() for text in texts)
    write_page(after, training_data(after))
    assert any(text in page.read_text() for text in texts)


@pytest.mark.parametrize("name", ["lora", "tfidf"])
def test_answers_of_then(old, name):
    """The models answer the test rows as they did, and words and labelled rows."""
    folder = predict_file(name, "test.csv", abstain_below_precision=0.6)
    np.testing.assert_allclose(numbers(folder / "test_proba.csv"), numbers(f"{name}/test_proba.csv"), atol=1e-6)
    assert (folder / "submission.csv").read_bytes() == (old / name / "submission.csv").read_bytes()
    scored = score_file(name, "labelled.csv")
    assert (scored.rows, scored.seen) == (6, [])
    assert calibrate(name).after.brier > 0
    assert Classifier.load(name).explain("so happy today").table().shape == (3, 3)


def test_models_of_then(old):
    """The model of all rows and the export of then answer; a model of all rows and an export made today equal them."""
    texts = pd.read_csv("test.csv")["text"].tolist()
    of_all, exported = (
        Classifier.load("lora", models="refit").predict_proba(texts),
        Classifier.load("export").predict_proba(texts),
    )
    export("lora", "again")
    np.testing.assert_allclose(Classifier.load("again").predict_proba(texts), exported, atol=1e-6)
    shutil.rmtree("lora/refit")
    refit("lora")
    np.testing.assert_allclose(Classifier.load("lora", models="refit").predict_proba(texts), of_all, atol=1e-6)


def test_goes_on(old):
    """A fold that was not trained then is trained now, to the same answers; runs of then are compared and blended."""
    file = old / "lora" / "fold-01" / "oof_logits.npy"
    logits = np.load(file)
    shutil.rmtree("lora/fold-01")
    cross_validate("lora/recipe.yaml", "train.csv", "test.csv", out="lora", resume=True)
    np.testing.assert_allclose(np.load(file), logits, atol=1e-4)  # on the machine of then, the same bytes
    assert [run.name for run in compare(["lora", "tfidf"]).runs] == ["tfidf", "lora"]
    blended = blend(["lora", "tfidf"], "blended")
    assert predict_file(blended, "test.csv").is_dir()


def test_base_that_lies_elsewhere(old, monkeypatch):
    """From another folder one sentence says what to do, and that works."""
    (old / "away").mkdir()
    monkeypatch.chdir("away")
    with pytest.raises(BackboneError, match="--backbone"):
        predict_file("../lora", "../test.csv")
    assert predict_file("../lora", "../test.csv", backbone="../base").is_dir()
