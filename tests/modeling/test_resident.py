"""Models that stay in memory answer as those that are read at each answer do; a base is loaded once."""

import shutil

import numpy as np
import pytest

from lora_cls.commands.cross_validation import cross_validate
from lora_cls.commands.predict import Classifier
from lora_cls.errors import RunError
from lora_cls.modeling.resident import ResidentModels

TEXTS = ["happy and delighted, a lovely day", "furious and angry", "afraid"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_recipe, emotion_table):
    """Two runs with adapters on one base, of different ranks and labels; one in which every weight was trained."""
    folder, table = tmp_path_factory.mktemp("resident"), emotion_table(24)
    return [
        cross_validate(tiny_recipe("llama", train__num_train_epochs=1), table, out=folder / "a"),
        cross_validate(
            tiny_recipe("llama", train__num_train_epochs=1, lora__r=2, backbone__attn_implementation="eager"),
            table.drop(columns="fear"),
            out=folder / "b",
        ),
        cross_validate(tiny_recipe("bert", train__num_train_epochs=1, lora=None), table, out=folder / "c"),
    ]


@pytest.mark.parametrize("room", [None, 0], ids=["all fit", "none fits"])
def test_answers_are_the_same(runs, room, monkeypatch, tmp_path):
    """Whatever run was asked before; nothing of the texts is kept on disk."""
    resident = ResidentModels(room)
    expected = [Classifier.load(run).predict_proba(TEXTS) for run in runs]
    monkeypatch.setenv("LORA_CLS_CACHE", str(tmp_path / "cache"))
    classifiers = [Classifier.load(run, resident=resident) for run in runs]
    for _ in range(2):
        for classifier, answers in zip(classifiers, expected, strict=True):
            assert np.array_equal(classifier.predict_proba(TEXTS), answers)
    assert resident.n_bases == 1  # of the third every weight is its own
    models = [classifier._predictor.session.model().base for classifier in classifiers[:2]]
    embeddings = [model.get_input_embeddings().weight for model in models]
    assert embeddings[0] is embeddings[1]
    assert classifiers[0].predict_proba(TEXTS * 30).shape[0] == 90  # as many as would be kept otherwise
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_damage_is_said_and_does_not_stay(runs, tmp_path):
    """A fold that cannot be read is an error at each answer, and the others are as they were."""
    copied = shutil.copytree(runs[0].path, tmp_path / "a")
    classifier = Classifier.load(copied, resident=ResidentModels())
    weights = next((copied / "fold-01").rglob("adapter_model.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    for _ in range(2):
        with pytest.raises(RunError):
            classifier.predict_proba(TEXTS)
    weights.write_bytes(whole)
    assert np.array_equal(classifier.predict_proba(TEXTS), Classifier.load(copied).predict_proba(TEXTS))
