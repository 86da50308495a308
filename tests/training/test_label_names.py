"""`head.kind: label_names`: names before the text, each label read at its own."""

import numpy as np
import pytest

from lora_cls.commands.cross_validation import cross_validate
from lora_cls.commands.predict import Classifier

HEAD = {"kind": "label_names", "pooling": "mean", "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_recipe, emotion_table):
    """Factory of finished runs of two folds, by tiny model and other settings."""
    made = {}

    def make(kind, **overrides):
        key = (kind, str(overrides))
        if key not in made:
            recipe = tiny_recipe(kind, head=HEAD, **overrides)
            test = emotion_table(8, seed=5)[["id", "text"]]
            made[key] = cross_validate(recipe, emotion_table(30), test, tmp_path_factory.mktemp(kind) / "run")
        return made[key]

    return make


@pytest.mark.parametrize("lora", [{"r": 4}, None], ids=["LoRA", "full"])
def test_trains_and_answers(finished, lora):
    run = finished("bert", lora=lora)
    proba = Classifier.load(run).predict_proba(["happy and lovely", "afraid"])
    assert proba.shape == (2, 3) and np.isfinite(proba).all()
