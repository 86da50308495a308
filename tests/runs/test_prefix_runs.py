"""Whole runs with adapters in the upper layers only, and on fewer layers: cached or not, again, resumed, reloaded."""

import re
import runpy
import warnings

import numpy as np
import pandas as pd
import pytest

from lora_cls.commands.cross_validation import cross_validate
from lora_cls.commands.predict import Classifier
from lora_cls.modeling.prefix import Prefix
from lora_cls.modeling.prefix_cache import PrefixCache
from lora_cls.report.sentences import short_name

LABELS = ["joy", "anger", "fear"]


class Stopped(BaseException):
    """Stands for a power cut: nothing catches it."""


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A cache folder of this test's own."""
    monkeypatch.setenv("LORA_CLS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prefix"


@pytest.fixture
def computed(monkeypatch):
    """Number of texts in every stretch that the cache computed."""
    original, found = PrefixCache._compute, []

    def spy(cache, stretch):
        found.append(len(stretch.ids))
        return original(cache, stretch)

    monkeypatch.setattr(PrefixCache, "_compute", spy)
    return found


def oof(run):
    return np.concatenate([np.load(run.fold(i).oof_logits) for i in run.finished_folds])


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_cached_or_not(kind, small_recipe, train, test, tmp_path, own_cache, computed, results):
    """Out-of-fold and test logits hardly differ; a second run reads the cache and gives the same bytes; the saved
    folds answer alike."""
    recipe = small_recipe(kind, lora__top_layers=0.5)
    plain = cross_validate(
        small_recipe(kind, lora__top_layers=0.5, engine__prefix_cache=False), train, test, tmp_path / "plain"
    )
    assert not computed and not own_cache.exists()
    run = cross_validate(recipe, train, test, tmp_path / "run")
    n_texts = len({*train["text"], *test["text"]})
    assert sum(computed) == n_texts
    assert own_cache.is_dir()
    np.testing.assert_allclose(oof(run), oof(plain), rtol=1e-4, atol=1e-5)
    for i in (0, 1):
        logits = [np.load(r.fold(i).test_logits) for r in (run, plain)]
        np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-5)
    again = cross_validate(recipe, train, test, tmp_path / "again")
    assert sum(computed) == n_texts
    assert results(again) == results(run)
    classifier = Classifier.load(run)
    expected = pd.read_csv(run.path / "test_proba.csv", dtype={"id": str})[LABELS].to_numpy()
    np.testing.assert_allclose(classifier.predict_proba(list(test["text"])), expected, atol=1e-5)
    assert sum(computed) == n_texts  # a few texts are not worth a file
    many = [f"{text} {i}" for i in range(6) for text in test["text"][1:]]  # the first is too long for its number
    with_cache = classifier.predict_proba(many)
    assert sum(computed) == n_texts + len(many)
    classifier = Classifier.load(run)  # asked for few at a time it computes all layers
    by_few = np.concatenate([classifier.predict_proba(many[i : i + 40]) for i in range(0, len(many), 40)])
    np.testing.assert_allclose(by_few, with_cache, atol=1e-5)


@pytest.mark.parametrize("lost", [False, True])
def test_resumed(lost, small_recipe, train, test, tmp_path, own_cache, results, monkeypatch):
    """Stopped within a fold and resumed to the same bytes, though the cache was lost or damaged in between."""
    import lora_cls.training.loop as loop

    recipe = small_recipe("llama", lora__top_layers=0.5)
    whole = cross_validate(recipe, train, test, tmp_path / "whole" / "run")
    original, count = loop.save_state, []

    def stop(*arguments):
        original(*arguments)
        count.append(1)
        if len(count) == 3:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_state", stop)
        with pytest.raises(Stopped):
            cross_validate(recipe, train, test, tmp_path / "run")
    if lost:
        first, *others = sorted(own_cache.glob("*.safetensors"))
        first.write_bytes(first.read_bytes()[:100])
        for file in others:
            file.unlink()
    assert results(cross_validate(recipe, train, test, tmp_path / "run", resume=True)) == results(whole)


@pytest.mark.parametrize("begun_with", [True, False])
@pytest.mark.parametrize("change", ["setting", "disk"])
def test_resumed_where_the_cache_comes_or_goes(
    begun_with, change, small_recipe, train, test, tmp_path, own_cache, results, monkeypatch
):
    """A run keeps to how it began, to the byte: its setting, or the room on the disk, may change before it goes on."""
    import shutil
    from types import SimpleNamespace

    def settings(cached):
        disk = SimpleNamespace(total=2**40, used=0, free=2**40 if cached else 0)
        if change == "disk":
            monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)
        return small_recipe("llama", lora__top_layers=0.5, engine__prefix_cache=cached or change == "disk")

    whole = cross_validate(settings(begun_with), train, test, tmp_path / "whole" / "run")
    assert whole.info.choices["prefix_cache"] is begun_with
    run = cross_validate(settings(begun_with), train, test, tmp_path / "run", folds=[0])
    for file in own_cache.glob("*.safetensors"):
        file.unlink()
    assert results(cross_validate(settings(not begun_with), train, test, run.path, resume=True)) == results(whole)


def test_a_model_without_stand_ins_runs(small_recipe, train, tmp_path, own_cache, monkeypatch):
    """Where the lower layers cannot be replaced the run goes on without, to the same numbers."""
    from lora_cls.errors import BackboneError

    def refuse(*_):
        raise BackboneError("its layers are not called one after the other.")

    plain = cross_validate(
        small_recipe("llama", lora__top_layers=0.5, engine__prefix_cache=False), train, out=tmp_path / "plain"
    )
    monkeypatch.setattr(Prefix, "find", refuse)
    run = cross_validate(small_recipe("llama", lora__top_layers=0.5), train, out=tmp_path / "run")
    np.testing.assert_array_equal(oof(run), oof(plain))
    assert not own_cache.exists()


DEPTHS = {
    "llama": {"backbone__num_hidden_layers": 1},
    "gemma3, 4-bit": {"backbone__num_hidden_layers": 1, "quantization": {"load_in_4bit": True}},
    "allenai/longformer-base-4096": {"backbone__num_hidden_layers": 1, "backbone__attn_implementation": "auto"},
    "bert, full": {"backbone__num_hidden_layers": 1, "lora": None, "train__learning_rate": 1e-3},
}


@pytest.mark.parametrize("case", DEPTHS)
def test_fewer_layers(case, small_recipe, train, test, tmp_path, own_cache, monkeypatch):
    """A run on one of two layers: its snippet opens what it trained and gives its logits, the folder says what it is,
    and `Classifier.load` answers as the run did."""
    recipe = small_recipe(case.partition(",")[0], **DEPTHS[case])
    run = cross_validate(recipe, train.iloc[:24], test, tmp_path / "run")
    name = recipe.backbone.name_or_path
    card = (run.path / "README.md").read_text()
    assert f"text classifier on the lowest 1 layers of {short_name(name)}" in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    depth = {"num_hidden_layers": 1}
    if "gemma3" in case:
        depth["layer_types"] = ["sliding_attention"]
    if "longformer" in case:
        depth["attention_window"] = [16]
    assert run.info.choices["depth"] == depth
    options = ", ".join(f"{key}={value!r}" for key, value in depth.items())
    if recipe.lora:
        assert options in code
        readme = (run.fold(0).adapter / "README.md").read_text()
        assert f"lowest 1 layers of {name}" in readme
        assert f"AutoModel.from_pretrained({name!r}, {options})" in readme
    monkeypatch.chdir(run.path)
    (tmp_path / "snippet.py").write_text(code)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        names = runpy.run_path(str(tmp_path / "snippet.py"))
    assert not [str(warning.message) for warning in said if "missing" in str(warning.message)]
    classifier = Classifier.load(run)
    texts = [*test["text"].iloc[:3], "happy"]
    expected = classifier._predictor.predict(run.fold(0), texts)
    np.testing.assert_allclose(names["logits"](texts).numpy(), expected, rtol=0, atol=1e-5)
    saved = pd.read_csv(run.path / "test_proba.csv", dtype={"id": str})[LABELS].to_numpy()
    np.testing.assert_allclose(classifier.predict_proba(list(test["text"])), saved, atol=1e-5)


def test_upper_half_of_fewer_layers(small_recipe, tiny_model, train, tmp_path, own_cache, computed):
    """`top_layers` counts the layers that are kept: nothing is below the only one."""
    recipe = small_recipe("llama", backbone__num_hidden_layers=1, lora__top_layers=0.5)
    run = cross_validate(recipe, train.iloc[:24], out=tmp_path / "run")
    assert not computed
    assert len(run.finished_folds) == 2
