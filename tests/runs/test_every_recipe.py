"""Every shipped recipe, the whole way, on a tiny random model of its own class with its own kind of tokenizer.

Only what makes a run small is changed: place of the model, folds, epochs, length, batch, threads.
"""

import json
import re
import warnings
from pathlib import Path

import bitsandbytes
import numpy as np
import pandas as pd
import pytest
import transformers

from lora_cls import recipe as recipes
from lora_cls.commands.cross_validation import cross_validate
from lora_cls.commands.predict import Classifier
from lora_cls.errors import RunError
from lora_cls.recipe import load_recipe

FILES = sorted(recipes.shipped_recipes().values())
LORA = {"lora.r": 16, "train.learning_rate": 1e-3}
FULL = {"lora": None, "train.learning_rate": 1e-4}
SMALL = {
    "cv.n_splits": 2, "data.max_length": 32, "engine.num_threads": 1, "data.train": None, "data.test": None,
    "data.sample_submission": None,
}  # fmt: skip
SHORT = {
    "train.num_train_epochs": 1, "train.per_device_train_batch_size": 8, "train.per_device_eval_batch_size": 8,
    "train.gradient_accumulation_steps": 1,
}  # fmt: skip


def cases():
    """Every recipe as it is; an encoder, which is not quantized, with adapters and with all weights trained."""
    for file in FILES:
        recipe = load_recipe(file)
        if recipe.backbone is None or recipe.quantization or "decoders" in file.parts:
            yield pytest.param(file, {}, id=file.stem)
        else:
            yield pytest.param(file, LORA if recipe.lora is None else {}, id=f"{file.stem}-LoRA")
            yield pytest.param(file, {} if recipe.lora is None else FULL, id=f"{file.stem}-full")


@pytest.fixture(scope="module")
def rows(emotion_table):
    """24 training rows, one of 5,000 words, and 6 test rows: two of 5,000 words, so that no batch of them is padded."""
    train = emotion_table(24)
    test = emotion_table(6, seed=5)[["id", "text"]].assign(id=[f"t{i}" for i in range(6)])
    for table, i in ((train, 0), (test, 2), (test, 4)):
        table.loc[i, "text"] = " ".join((" ".join(emotion_table(8, seed=i)["text"]).split() * 200)[:5000])
    return train, test


@pytest.fixture
def trusted(monkeypatch):
    """What every call to the hub's loaders said of `trust_remote_code`."""
    said = []
    for auto in (
        transformers.AutoModel,
        transformers.AutoModelForCausalLM,
        transformers.AutoConfig,
        transformers.AutoTokenizer,
    ):

        def spy(*args, _original=auto.from_pretrained, **options):
            said.append(options.get("trust_remote_code"))
            return _original(*args, **options)

        monkeypatch.setattr(auto, "from_pretrained", spy)
    return said


@pytest.mark.parametrize(("file", "changes"), list(cases()))
def test_recipe(file, changes, rows, tiny_model, trusted, tmp_path, monkeypatch):
    """Out of fold, thresholds, submission, reload with the same logits, 4 bits where asked, and open in plain PEFT."""
    recipe = load_recipe(file)
    changes = changes | SMALL
    if recipe.backbone is not None:
        changes |= SHORT | {"backbone.name_or_path": tiny_model(recipe.backbone.name_or_path)}
    if recipe.head.kind == "generate":
        # a tiny vocabulary makes the prompt long; untrained answers hang on the last digit, which batches change
        changes |= {"data.max_length": 256, "backbone.dtype": "float32"}
    recipe = load_recipe(recipe, changes)
    train, test = rows
    run = cross_validate(recipe, train, test, tmp_path / "run")

    oof = pd.read_csv(run.path / "oof_proba.csv", dtype={"id": str})
    assert sorted(oof["id"]) == sorted(train["id"])
    assert np.isfinite(oof[["joy", "anger", "fear"]].to_numpy()).all()
    assert set(json.loads((run.path / "thresholds.json").read_text())["shipped"]) == {"joy", "anger", "fear"}
    submission = pd.read_csv(run.path / "submission.csv", dtype={"id": str})
    assert list(submission["id"]) == list(test["id"])
    assert set(submission[["joy", "anger", "fear"]].to_numpy().flat) <= {0, 1}

    classifier = Classifier.load(run)
    texts, saved = list(test["text"]), np.load(run.fold(1).test_logits)
    np.testing.assert_allclose(classifier._predictor.predict(run.fold(1), texts), saved, rtol=0, atol=1e-6)
    assert np.ptp(saved, axis=0).max() > 1e-3  # texts differ
    if recipe.backbone is None:
        return
    check_base(classifier._predictor.session.model(), recipe)
    monkeypatch.chdir(run.path)
    check_snippet(run, classifier, [texts[2], texts[4]])
    assert trusted and not any(trusted)


def check_base(model, recipe):
    """Every linear layer of the blocks is in 4 bits where the recipe says so, and none where it does not."""
    packed = [name for name, module in model.named_modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    n_adapted = sum(hasattr(module, "lora_A") for module in model.modules())
    if recipe.quantization:
        assert recipe.quantization.load_in_4bit
        assert len(packed) == n_adapted == 14
    else:
        assert not packed
        assert (n_adapted >= 2 * 4) == (recipe.lora is not None)


def check_snippet(run, classifier, texts):
    """The README's code opens the first fold with transformers and PEFT, nothing missing, and gives the same logits."""
    code = (Path("README.md").read_text().partition("```python\n")[2]).partition("```")[0]
    names = {}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        exec(code, names)
    assert not [str(warning.message) for warning in said if "missing" in str(warning.message)]
    session, folder = classifier._predictor.session, run.fold(0)
    found = session.answer(session.load(folder), session.encode(texts), folder.pos_weight(session.n_labels))
    if run.recipe.head.kind == "generate":
        assert [names["answer"](text) for text in texts] == [answer for _, answer, _ in found.written]
        return
    # as long as each other, so that both ways see the very same batch
    # over a base in 16 bits PEFT's own modules compute adapters in fp32, and ours in 16 bits
    rounded = run.recipe.lora is not None and run.info.choices["dtype"] != "float32"
    np.testing.assert_allclose(names["logits"](texts).numpy(), found.logits, rtol=0, atol=2e-2 if rounded else 1e-5)


def test_every_model_is_used():
    """The shared configurations hold the models of the recipes and no others."""
    from benchmarks.configurations import CONFIGURATIONS, PARAMETERS

    loaded = [load_recipe(file) for file in FILES]
    assert {recipe.backbone.name_or_path for recipe in loaded if recipe.backbone} == set(CONFIGURATIONS)
    assert set(PARAMETERS) == set(CONFIGURATIONS)


def test_the_run_folder_has_the_whole_name(rows, tmp_path, monkeypatch):
    """A recipe's name may hold a point: its run is not cut there (`runs/llama-3` for two recipes)."""
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/llama-3.2-1b")
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    with pytest.raises(RunError, match=re.escape(str(folder))):
        cross_validate("llama-3.2-1b", *rows)
