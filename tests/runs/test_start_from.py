"""`backbone.start_from`: training begins with another run's weights, never with ones that saw the scored rows."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_cls.commands.cross_validation import cross_validate
from lora_cls.commands.export import export
from lora_cls.commands.refit import refit
from lora_cls.data.folds import make_folds
from lora_cls.data.tables import Tables
from lora_cls.errors import RecipeError, RunError
from lora_cls.modeling.adapter import saved_weights, trainable_head
from lora_cls.recipe import load_recipe
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

    def make(recipe, fold=0, table=train):
        tables = Tables(recipe, table)
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


class Stopped(BaseException):
    """Stands for a power cut: nothing catches it."""


@pytest.mark.parametrize("way", KINDS)
def test_a_run_needs_nothing_of_its_start(begun, recipe, train, test, tmp_path, results, monkeypatch, way):
    """It is scored and named; stopped, it goes on to the same bytes; with the start gone, it still answers."""
    from lora_cls import Classifier
    from lora_cls.training import loop

    started = RunFolder(shutil.copytree(begun(way).path, tmp_path / "started"))
    settings = recipe(way, backbone__start_from=str(started.path), train__num_train_epochs=2)
    run = cross_validate(settings, train, test, tmp_path / "run")
    save = loop.save_state

    def stop(*arguments):
        save(*arguments)
        raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(loop, "save_state", stop)
        with pytest.raises(Stopped):
            cross_validate(settings, train, test, tmp_path / "again")
    (tmp_path / "started").rename(tmp_path / "moved")
    with pytest.raises(RunError, match=r"there is no run folder or export at .*started\. Say where it lies"):
        cross_validate(settings, train, test, tmp_path / "again", resume=True)
    moved = load_recipe(settings, {"backbone.start_from": str(tmp_path / "moved")})
    again = cross_validate(moved, train, test, tmp_path / "again", resume=True)
    assert results(again) == results(run)
    noted = run.info.choices["start_from"]
    assert (noted["run"], noted["by_fold"], sorted(noted["models"])) == ("started", False, ["fold-00", "fold-01"])
    assert "the run started (the mean of 2 models)" in run.files.card.read_text()
    assert "the run started (the mean of 2 models)" in run.files.page.read_text()
    before = Classifier.load(run).predict_proba(list(test["text"]))
    shutil.rmtree(tmp_path / "moved")
    assert np.array_equal(Classifier.load(run).predict_proba(list(test["text"])), before)
    cross_validate(settings, train, test, tmp_path / "run", resume=True)  # nothing is left to train


def test_resume_of_another_start(begun, recipe, train, tmp_path):
    """Other weights in the same place are refused, in a run and in its `refit`; so is a run with no start."""
    started = RunFolder(shutil.copytree(begun("lora").path, tmp_path / "started"))
    settings = recipe("lora", backbone__start_from=str(started.path))
    run = cross_validate(settings, train, out=tmp_path / "run", folds=[0])
    with pytest.raises(RunError, match="start_from: was True, now False"):
        cross_validate(recipe("lora"), train, out=run.path, resume=True)
    for name in ("adapter", "fold.json"):
        place = started.path / "fold-00" / name
        shutil.rmtree(place) if place.is_dir() else place.unlink()
        other = begun("lora").refit.path / name
        (shutil.copytree if other.is_dir() else shutil.copy)(other, place)
    assert not RunFolder(run.path).fold(1).finished
    for go_on in (
        lambda: cross_validate(settings, train, out=run.path, resume=True),
        lambda: refit(run.path, train),
    ):
        with pytest.raises(RunError, match="not what this run was started from: the weights of fold-00 are others"):
            go_on()
    assert not (run.path / "fold-01").exists()


# What the start has seen


def begin(recipe, train, fold_table=None, folds=None):
    """The start of a run on a table, as `cross_validate` finds it; no model is loaded."""
    tables = Tables(recipe, train)
    fold = make_folds(tables.recipe, tables.train, fold_table)
    numbers = sorted({int(number) for number in fold if number >= 0}) if folds is None else folds
    return find_start(tables.recipe, tables.train, fold, numbers)


@pytest.mark.parametrize("spelling", ["{}", "  {}\r\n", "{}\u0301"])
def test_a_planted_text_is_found(begun, recipe, train, other, tmp_path, spelling):
    """By the product's text key: outer white space, line ends and composition do not count; the row is named, and
    nothing is written."""
    start = begun("lora")
    planted = train.copy()
    planted.loc[7, "text"] = planted.loc[40, "text"] = spelling.format(other["text"][3])
    if spelling.endswith("\u0301"):  # another text
        assert not begin(recipe("lora", backbone__start_from=str(start.path)), planted).by_fold
        return
    for name in ("", "refit", "fold-00", "fold-01"):
        path = start.path / name
        fold = int(start.folds["fold"][3])
        settings = recipe("lora", backbone__start_from=str(path))
        if name == f"fold-{fold:02d}":  # which never saw that row
            assert begin(settings, planted).models.keys() == {name}
            continue
        with pytest.raises(RunError, match=r"the texts of 2 rows .*row007, row040.*Remove these rows"):
            cross_validate(settings, planted, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert begin(recipe("lora", backbone__start_from=str(start.path)), train).models.keys() == {"fold-00", "fold-01"}


def test_rows_that_are_only_trained_on_may_meet(begun, recipe, train, other, tmp_path):
    """Extra rows are never scored; test rows get a note."""
    settings = recipe("lora", backbone__start_from=str(begun("lora").path))
    renamed = other.rename(columns={"calm": "joy", "rage": "anger"}).assign(fear=0)
    tables = Tables(settings, train, other[["id", "text"]].head(5), extra=renamed)
    start = find_start(tables.recipe, tables.train, make_folds(tables.recipe, tables.train), [0, 1])
    assert "5 of 5 test rows have a text" in " ".join(start.notes(tables.test))


def test_same_rows_and_folds(begun, recipe, train, other, fresh, tmp_path):
    """Then each fold begins with its own: with other folds, or a fold that is not finished, it is refused."""
    start = begun("lora")
    settings = recipe("lora", backbone__start_from=str(start.path))
    found = begin(settings, other)
    assert found.by_fold and [f.path.name for f in found.of_fold(1)] == ["fold-01"] and len(found.of_fold(-1)) == 2
    for number in (0, 1):
        now = saved_weights(fresh(settings, number, other))
        saved = load_file(start.fold(number).adapter / "adapter_model.safetensors")
        assert all(torch.equal(now[key], value) for key, value in saved.items() if "score" not in key)
    shuffled = other.sample(frac=1, random_state=0)
    assert begin(settings, shuffled, start.files.folds).by_fold
    with pytest.raises(RunError, match=r"give this run the folds of that one, --set data\.folds="):
        begin(load_recipe(settings, {"cv.random_state": 1}), other)
    run = cross_validate(settings, other, out=tmp_path / "run", folds=[1])
    assert run.info.choices["start_from"]["by_fold"]
    assert "Each fold began with the weights of the same fold" in run.files.card.read_text()
    part = RunFolder(shutil.copytree(start.path, tmp_path / "part"))
    part.fold(0).info_file.unlink()
    settings = recipe("lora", backbone__start_from=str(part.path))
    with pytest.raises(RunError, match="whose fold-00 must be finished first"):
        begin(settings, other)
    assert begin(settings, other, folds=[1]).by_fold
    assert begin(settings, train).models.keys() == {"fold-01"}  # the one that is finished, for all folds
    chained = recipe("lora", backbone__start_from=str(run.path))
    assert begin(chained, other, folds=[1]).by_fold  # the texts of both runs are kept apart by the same folds


def test_scored_fold_has_seen_what_it_chose_by(begun, recipe, other, tmp_path):
    """An epoch that was chosen on the held-out rows knows them."""
    chosen = cross_validate(recipe("lora", train__select="scored_fold"), other, out=tmp_path / "chosen")
    with pytest.raises(RunError, match="and a score on them would be too high"):
        begin(recipe("lora", backbone__start_from=str(chosen.path)), other)


def test_what_the_starts_start_saw(begun, recipe, train, other, tmp_path):
    """A chain of runs keeps away from the texts of all of them; so does an export of it."""
    second = cross_validate(
        recipe("lora", backbone__start_from=str(begun("lora").path)), train, out=tmp_path / "second"
    )
    exported = export(second, tmp_path / "export")
    third = train.assign(text=[f"{text} after" for text in train["text"]])
    third.loc[3, "text"] = other["text"][5]
    for path in (second.path, exported.path):
        settings = recipe("lora", backbone__start_from=str(path))
        with pytest.raises(RunError, match="row003"):
            begin(settings, third)
        begin(settings, third.drop(index=3))


def forget(run):
    """What an earlier version wrote of a run."""
    file = run.files.text_hashes
    file.unlink()
    info = json.loads(run.files.info.read_text())
    del info["files"][file.name]
    run.files.info.write_text(json.dumps(info | {"sha256": None}))


def test_a_run_of_before(recipe, train, other, tmp_path):
    """Without hashes the training table is read again, checked by its sum; where that is gone, a sentence says so."""
    table = tmp_path / "other.csv"
    other.to_csv(table, index=False)
    run = cross_validate(recipe("lora"), table, out=tmp_path / "before")
    settings = recipe("lora", backbone__start_from=str(run.path))
    planted = train.copy()
    planted.loc[7, "text"] = other["text"][3]
    expected = begin(settings, train).seen_by_any
    forget(run)
    run = RunFolder(run.path)
    exported = export(run, tmp_path / "export")
    assert not exported.files.text_hashes.exists()
    for path in (run.path, exported.path):
        settings = recipe("lora", backbone__start_from=str(path))
        assert np.array_equal(begin(settings, train).seen_by_any, expected)
        with pytest.raises(RunError, match="row007"):
            begin(settings, planted)
    other.tail(39).to_csv(table, index=False)
    with pytest.raises(RunError, match=r"is not the data that .* was trained on"):
        begin(settings, train)
    table.unlink()
    with pytest.raises(RunError, match="does not say which texts it was trained on"):
        begin(settings, train)


# What cannot be started from


def test_no_start(begun, finished, recipe, small_recipe, train, tmp_path):
    """Refused before anything is loaded, each by a sentence."""
    unfinished = RunFolder(shutil.copytree(begun("lora").path, tmp_path / "unfinished"))
    for number in (0, 1):
        unfinished.fold(number).info_file.unlink()
    lora, full = str(begun("lora").path), str(begun("full").path)
    cases = [
        (recipe("lora", backbone__start_from=str(tmp_path)), "there is no run folder or export at"),
        (recipe("lora", backbone__start_from=str(unfinished.path)), "no fold is finished yet"),
        (recipe("lora", backbone__start_from=f"{unfinished.path}/fold-01"), "fold-01 has no finished model"),
        (recipe("lora", backbone__start_from=f"{finished('llama').path}/refit"), "Train it with: lora-cls refit"),
        (recipe("lora", backbone__start_from=str(finished("tfidf").path)), "is a run of TF-IDF"),
        (recipe("full", backbone__start_from=lora), "Merge them first"),
        (recipe("lora", backbone__start_from=full), "set lora to null"),
        (recipe("lora", quantization={"load_in_4bit": True}, backbone__start_from=lora), "quantized otherwise"),
        (recipe("lora", backbone__num_hidden_layers=1, backbone__start_from=lora), "keeps all layers"),
    ]
    for settings, message in cases:
        with pytest.raises(RunError, match=message):
            begin(settings, train)
    with pytest.raises(RecipeError, match=r"head\.kind: label_tokens has words of the plain base"):
        small_recipe("llama", head__kind="label_tokens", head__prompt=None, backbone__start_from=lora)


@pytest.mark.parametrize("way", KINDS)
def test_damaged_weights(begun, recipe, train, damage, tmp_path, way):
    """No run folder is made of them."""
    start = RunFolder(shutil.copytree(begun(way).path, tmp_path / "start"))
    folder = start.fold(1)
    damage(folder.model / "model.safetensors" if way == "full" else folder.adapter / "adapter_model.safetensors")
    with pytest.raises(RunError, match=r"fold-01.* is damaged"):
        cross_validate(recipe(way, backbone__start_from=str(start.path)), train, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_base(begun, recipe, small_recipe, train, tmp_path):
    """Of the same shape with other weights, of another architecture, and of other adapted modules."""
    start = begun("lora")
    settings = recipe("lora", backbone__start_from=str(start.path))
    place = tmp_path / "base"
    shutil.copytree(settings.backbone.name_or_path, place)
    weights = load_file(place / "model.safetensors")
    save_file({key: value + 0.01 for key, value in weights.items()}, place / "model.safetensors", {"format": "pt"})
    cases = [
        (load_recipe(settings, {"backbone.name_or_path": str(place)}), "was trained on another base"),
        (load_recipe(settings, {"lora.target_modules": ["q_proj"]}), "adapts other modules than this recipe"),
        (load_recipe(settings, {"lora.use_dora": True}), "use_dora: True"),
        (small_recipe("qwen2", backbone__start_from=str(start.path)), "was trained on another base"),
    ]
    for other, message in cases:
        with pytest.raises(RunError, match=message):
            cross_validate(other, train, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_precision(begun, recipe, train):
    """The base is compared in the precision that it was noted in."""
    settings = recipe("lora", backbone__dtype="bfloat16", backbone__start_from=str(begun("lora").path))
    tables = Tables(settings, train)
    start = begin(settings, train)
    learner = TransformerLearner(tables.recipe, tables.train.label_names, start.choices)
    learner.session.check_start()


# Everywhere else


def test_upper_layers(recipe, train, test, other, tmp_path, results):
    """What lies below the adapters is the plain base's, and is computed once; without the cache the answers agree."""
    start = cross_validate(recipe("lora", lora__top_layers=0.5), other, out=tmp_path / "start")
    runs = []
    for cached in (True, False):
        overrides = {"lora__top_layers": 0.5, "engine__prefix_cache": cached, "backbone__start_from": str(start.path)}
        runs.append(cross_validate(recipe("lora", **overrides), train, test, tmp_path / f"run-{cached}"))
    assert runs[0].info.choices["prefix_cache"] is True
    np.testing.assert_allclose(runs[0].oof.iloc[:, 2:], runs[1].oof.iloc[:, 2:], atol=1e-4)


def test_command_line(begun, recipe, train, test, tmp_path, monkeypatch, capsys):
    """`run`, `check` and `sweep`, with a path from the working directory."""
    import yaml

    from lora_cls.cli import main

    shutil.copytree(begun("lora").path, tmp_path / "runs" / "ge")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe("lora").to_dict()))
    train.to_csv(tmp_path / "train.csv", index=False)
    monkeypatch.chdir(tmp_path)
    given = ["recipe.yaml", "--train", "train.csv", "--set", "backbone.start_from=runs/ge"]

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["lora-cls", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, capsys.readouterr()

    code, told = call("check", *given)
    assert code in (0, None), told.err
    assert "begins with the mean of 2 models of ge" in told.out + told.err
    code, told = call("run", *given, "--out", "runs/new")
    assert code in (0, None), told.err
    assert RunFolder("runs/new").info.choices["start_from"]["run"] == "ge"


def test_search(begun, recipe, train, other, tmp_path):
    """A search begins as a run does: it notes the weights, holds out nothing that they saw, and has no fresh folds for
    models that belong to folds."""
    from lora_cls.search.plan import Given, make_plan

    start = begun("lora")
    settings = recipe("lora", backbone__start_from=str(start.path), sweep={"n_folds": 2, "confirm": 1})
    said = []

    def plan(table, holdout=None):
        return make_plan("search", settings, Given(table, None, None, None, None), None, holdout, said.append)

    apart = plan(train, 0.3)
    assert apart.fresh is not None and sorted(apart.info.start_from["models"]) == ["fold-00", "fold-01"]
    planted = train.copy()
    planted.loc[planted["id"] == apart.held_out[0], "text"] = other["text"][3]
    with pytest.raises(RunError, match=f"{apart.held_out[0]}.* Search without --holdout"):
        plan(planted, 0.3)
    assert plan(other).fresh is None
    assert "no trial is scored again" in said[-1]
