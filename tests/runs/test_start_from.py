"""`backbone.start_from`: training begins with another run's weights, never with ones that saw the scored rows."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from lora_cls.commands.cross_validation import cross_validate
from lora_cls.commands.export import export
from lora_cls.commands.refit import refit
from lora_cls.data.folds import make_folds
from lora_cls.data.tables import Tables
from lora_cls.modeling.adapter import saved_weights, trainable_head
from lora_cls.runs import RunFolder
from lora_cls.runs.start import find_start
from lora_cls.training.transformer import TransformerLearner

KINDS = {
    "lora": ("llama", {}),
    "full": ("bert", {"lora": None, "train__learning_rate": 1e-3}),
}


@pytest.fixture(scope="module")
def recipe(small_recipe):
    """Factory `recipe("lora" or "full", **overrides)`: one epoch, two folds."""

    def make(way, **overrides):
        kind, settings = KINDS[way]
        return small_recipe(kind, **{"train__num_train_epochs": 1, **settings, **overrides})

    return make


@pytest.fixture(scope="module")
def other(emotion_table):
    """A table of other texts and another label."""
    table = emotion_table(40, seed=3)
    texts = [f"{text} before" for text in table["text"]]
    return pd.DataFrame(
        {"id": [f"o{i}" for i in range(40)], "text": texts, "calm": table["joy"], "rage": table["anger"]}
    )


@pytest.fixture(scope="module")
def begun(tmp_path_factory, recipe, other):
    """Factory `begun(way)`: a finished run on the other table, with `refit`. Must not be changed."""
    made = {}

    def make(way):
        if way not in made:
            made[way] = cross_validate(recipe(way), other, out=tmp_path_factory.mktemp("start") / way)
            refit(made[way], other)
        return made[way]

    return make


@pytest.fixture
def fresh(train):
    """Factory: the model of a fold as it is before training, by a recipe; the head as it is without a start, too."""

    def make(recipe, fold=0):
        tables = Tables(recipe, train)
        folds = make_folds(tables.recipe, tables.train)
        start = find_start(tables.recipe, tables.train, folds, sorted(set(folds.tolist())))
        choices = None if start is None else start.choices
        learner = TransformerLearner(tables.recipe, tables.train.label_names, choices)
        return learner.session.fresh_model(fold)

    return make


def updates(folder, scale):
    """What an adapter adds to each module, by its name."""
    tensors = {key: value.double() for key, value in load_file(folder / "adapter_model.safetensors").items()}
    return {
        key.removesuffix(".lora_A.weight"): scale * tensors[key.replace("lora_A", "lora_B")] @ tensors[key]
        for key in tensors
        if key.endswith(".lora_A.weight")
    }


def own_updates(model, scale):
    weights = {key: value.detach().double() for key, value in saved_weights(model).items()}
    return {
        key.removesuffix(".lora_A.weight"): scale * weights[key.replace("lora_A", "lora_B")] @ weights[key]
        for key in weights
        if key.endswith(".lora_A.weight")
    }


def test_full_begins_with_the_mean(begun, recipe, fresh):
    """Every weight but the head's is the mean of the folds'; the head is the one of a run without a start."""
    start = begun("full")
    model = fresh(recipe("full", backbone__start_from=str(start.path)))
    folds = [load_file(start.fold(number).model / "model.safetensors") for number in (0, 1)]
    now = saved_weights(model)
    assert not torch.equal(*(fold["encoder.layer.0.output.dense.weight"] for fold in folds))
    for key, value in folds[0].items():
        torch.testing.assert_close(now[key], (value + folds[1][key]) / 2, rtol=1e-6, atol=1e-7)
    plain = fresh(recipe("full"))
    for mine, usual in zip(trainable_head(model).parameters(), trainable_head(plain).parameters(), strict=True):
        assert torch.equal(mine, usual)


@pytest.mark.parametrize(("rank", "alpha", "exact"), [(8, 8, True), (12, 3, True), (4, 8, False)])
def test_adapters_begin_with_the_mean(begun, recipe, fresh, rank, alpha, exact):
    """Two folds of rank 4 fit into rank 8 exactly, whatever the scaling; more ranks can learn; fewer are the best."""
    start = begun("lora")
    model = fresh(recipe("lora", lora__r=rank, lora__lora_alpha=alpha, backbone__start_from=str(start.path)))
    folds = [updates(start.fold(number).adapter, 2.0) for number in (0, 1)]
    now = own_updates(model, alpha / rank)
    assert set(now) == set(folds[0])
    for key, value in now.items():
        mean = (folds[0][key] + folds[1][key]) / 2
        if exact:
            torch.testing.assert_close(value, mean, rtol=1e-5, atol=1e-7)
        else:
            u, s, v = torch.linalg.svd(mean)
            torch.testing.assert_close(value, u[:, :4] * s[:4] @ v[:4], rtol=1e-4, atol=1e-6)
    weights = saved_weights(model)
    assert all(value.detach().abs().sum(1).min() > 0 for key, value in weights.items() if "lora_A" in key)
    plain = fresh(recipe("lora", lora__r=rank, lora__lora_alpha=alpha))
    for mine, usual in zip(trainable_head(model).parameters(), trainable_head(plain).parameters(), strict=True):
        assert torch.equal(mine, usual)


@pytest.mark.parametrize("way", KINDS)
def test_one_model(begun, recipe, fresh, way):
    """`RUN/refit` and `RUN/fold-01` are these models to the last bit."""
    start = begun(way)
    for name, folder in (("refit", start.refit), ("fold-01", start.fold(1))):
        model = fresh(recipe(way, backbone__start_from=str(start.path / name)))
        file = folder.model / "model.safetensors" if way == "full" else folder.adapter / "adapter_model.safetensors"
        now = saved_weights(model)
        saved = {key: value for key, value in load_file(file).items() if "score" not in key}
        assert saved and all(torch.equal(now[key], value) for key, value in saved.items())


def test_exports(begun, recipe, fresh, tmp_path):
    """The exact mean as an adapter is what the run is; merged, full fine-tuning begins with it."""
    start = begun("lora")
    adapter = export(start, tmp_path / "adapter")
    both = [fresh(recipe("lora", lora__r=8, backbone__start_from=str(run.path))) for run in (start, adapter)]
    mine, theirs = (own_updates(model, 1.0) for model in both)
    assert mine.keys() == theirs.keys()
    for key, value in mine.items():
        torch.testing.assert_close(value, theirs[key], rtol=1e-5, atol=1e-7)
    merged = export(start, tmp_path / "merged", to="merged")
    model = fresh(recipe("lora", lora=None, backbone__start_from=str(merged.path)))
    now = saved_weights(model)
    saved = load_file(merged.path / "model" / "model.safetensors")
    assert all(torch.equal(now[key], value.float()) for key, value in saved.items())


@pytest.mark.parametrize("way", KINDS)
def test_a_run_needs_nothing_of_its_start(begun, recipe, train, test, tmp_path, results, way):
    """It is scored and named; stopped, it goes on to the same bytes; with the start gone, it still answers."""
    from lora_cls import Classifier

    started = RunFolder(shutil.copytree(begun(way).path, tmp_path / "started"))
    settings = recipe(way, backbone__start_from=str(started.path))
    run = cross_validate(settings, train, test, tmp_path / "run")
    again = cross_validate(settings, train, test, tmp_path / "again", folds=[1])
    again = cross_validate(settings, train, test, tmp_path / "again", resume=True)
    assert results(again) == results(run)
    plain = cross_validate(recipe(way), train, test, tmp_path / "plain")
    assert results(plain) != results(run)
    noted = run.info.choices["start_from"]
    assert (noted["run"], noted["by_fold"], sorted(noted["models"])) == ("started", False, ["fold-00", "fold-01"])
    assert "start_from" not in plain.info.choices
    assert "the run started (the mean of 2 models)" in run.files.card.read_text()
    before = Classifier.load(run).predict_proba(list(test["text"]))
    shutil.rmtree(started.path)
    assert np.array_equal(Classifier.load(run).predict_proba(list(test["text"])), before)
    cross_validate(settings, train, test, tmp_path / "run", resume=True)  # nothing is left to train
