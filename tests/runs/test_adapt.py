"""A base that is trained on the texts of a run, once for all folds."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from lora_cls import Classifier, cross_validate, export, load_recipe, predict_file, refit
from lora_cls.commands.check import check
from lora_cls.errors import BackboneError, DataError, RecipeError, RunError, TrainingError
from lora_cls.modeling.adapted import ABOUT
from lora_cls.training import adaptation


@pytest.fixture(scope="module")
def masked(tiny_model, tmp_path_factory):
    """The tiny BERT, which comes without an output layer, its tokenizer with a mask."""
    folder = shutil.copytree(tiny_model("bert"), tmp_path_factory.mktemp("masked") / "bert")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.mask_token = "[MASK]"
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def adapting(tiny_recipe, masked):
    """`adapting(**overrides)`: a recipe on that model, two epochs on the texts; `.` is written `__`."""

    def make(**overrides):
        adapt = {"num_train_epochs": 2, "learning_rate": 1e-3, "per_device_train_batch_size": 16}
        own = {"backbone__name_or_path": masked, "train__num_train_epochs": 1, "adapt": adapt}
        return tiny_recipe("bert", **own | overrides)

    return make


@pytest.fixture(scope="module", autouse=True)
def few_steps():
    """A fresh output layer is trained for a few steps only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adaptation, "HEAD_STEPS", 6)
        yield


@pytest.fixture(scope="module")
def run(adapting, train, test, tmp_path_factory):
    """A finished run with LoRA on an adapted base."""
    return cross_validate(adapting(), train, test, tmp_path_factory.mktemp("adapt") / "run")


@pytest.fixture
def fresh_cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv("LORA_CLS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def noted(run):
    return run.info.choices["adapted"]


def bytes_of(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def adapted(run):
    return Path(noted(run)["folder"])


def test_texts_teach_the_base(run, masked):
    """The loss on texts kept aside falls, and the folds stand on other weights than those of the recipe's base."""
    about = noted(run)
    assert about["aim"] == "masked" and about["epochs"] == 2 and len(about["losses"]) == 3
    assert about["losses"][-1] < about["losses"][0]
    assert about["texts"] == 44 + 11 - 1  # one row repeats another, one is empty, and one text stands in both tables
    assert (adapted(run) / "model.safetensors").read_bytes() != Path(masked, "model.safetensors").read_bytes()
    card = (run.path / "README.md").read_text()
    assert "The base was adapted to" in card and str(adapted(run)) in card
    assert run.info.seconds["adapt"] > 0


def test_labels_play_no_part(run, adapting, train, test, tmp_path, fresh_cache):
    """Other labels, in another order of rows, make the same bytes; other texts make others."""
    other = train.sample(frac=1, random_state=0).reset_index(drop=True)
    other[["joy", "anger", "fear"]] = other[["joy", "anger", "fear"]].sample(frac=1, random_state=1).to_numpy()
    again = cross_validate(adapting(), other, test, tmp_path / "labels", folds=[0])
    assert adapted(again).is_relative_to(fresh_cache)
    assert bytes_of(adapted(again)) == bytes_of(adapted(run))
    other.loc[3, "text"] += " happy"
    changed = cross_validate(adapting(), other, test, tmp_path / "texts", folds=[0])
    assert noted(changed)["key"] != noted(run)["key"]
    assert bytes_of(adapted(changed))["model.safetensors"] != bytes_of(adapted(run))["model.safetensors"]


def test_the_cache_is_used_again(run, adapting, train, test, tmp_path, monkeypatch, results):
    """A second run, with another seed of its own, trains no base; with the same seed it answers the same."""
    monkeypatch.setattr(adaptation._Trainer, "train", None)
    again = cross_validate(adapting(), train, test, tmp_path / "again")
    assert results(again) == results(run)
    other = cross_validate(adapting(train__seed=1), train, test, tmp_path / "seed", folds=[0])
    assert noted(other) == noted(run)


def test_snippet_opens_the_adapted_base(run, tmp_path, snippet_answers, test):
    """The snippets of the run's and of an export's README give the models' logits; the export carries the base."""
    shipped = export(run, tmp_path / "shipped")
    assert bytes_of(shipped.path / "base") == bytes_of(adapted(run))
    texts = list(test["text"])
    found = snippet_answers({"run": run.path, "shipped": shipped.path}, texts)
    ours = np.load(run.path / "fold-00" / "test_logits.npy")
    np.testing.assert_allclose(found["run"], ours, atol=1e-5)
    classifier = Classifier.load(shipped)
    mean = classifier._predictor.predict(classifier._folders[0], texts)
    np.testing.assert_allclose(found["shipped"], mean, atol=1e-5)


def test_export_answers_where_no_cache_is(run, tmp_path, fresh_cache, test):
    """What was exported before needs the cache no more; merged weights do not, either."""
    here = [export(run, tmp_path / kind, to=kind) for kind in ("adapter", "merged")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lora_cls.modeling.adapted.find_adapted", lambda noted, place=None: _only(place))
        answers = [Classifier.load(folder).predict_proba(list(test["text"])) for folder in here]
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-4)
    assert "adapted" not in here[1].info.choices


def _only(place):
    return None if place is None or not (Path(place) / ABOUT).is_file() else Path(place)


def test_an_emptied_cache(run, adapting, train, test, tmp_path, fresh_cache, copy_of):
    """Predicting says what to do; a resume makes the same bytes again; texts that changed are refused."""
    lost = copy_of(run)
    before = bytes_of(adapted(run))
    moved = shutil.move(adapted(run), tmp_path / "elsewhere")
    try:
        with pytest.raises(BackboneError, match=r"no longer at .* --resume, or say with --backbone"):
            Classifier.load(lost).predict_proba("happy")
        with pytest.raises(BackboneError, match="no longer at"):
            export(lost, tmp_path / "shipped", to="merged")
        with pytest.raises(RunError, match=r"no longer at .* cannot be made"):
            refit(lost, train)  # without the test texts it would be another base
        elsewhere = Classifier.load(lost, backbone=str(moved)).predict_proba("happy")
        shutil.rmtree(lost.path / "fold-01")
        again = cross_validate(adapting(), train, test, lost.path, resume=True)
        assert bytes_of(fresh_cache / "adapted" / adapted(run).name) == before
        assert (again.path / "fold-01" / "oof_logits.npy").read_bytes() == (
            run.path / "fold-01" / "oof_logits.npy"
        ).read_bytes()
        np.testing.assert_array_equal(Classifier.load(again).predict_proba("happy"), elsewhere)
    finally:
        shutil.move(moved, adapted(run))


def test_a_damaged_base_is_made_again(run, adapting, train, test, tmp_path, fresh_cache, damage):
    """A file that was cut, or changed within its length, is no base."""
    place = fresh_cache / "adapted" / adapted(run).name
    shutil.copytree(adapted(run), place)
    content = bytearray((place / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (place / "model.safetensors").write_bytes(bytes(content))
    cross_validate(adapting(), train, test, tmp_path / "run", folds=[0])
    assert bytes_of(place) == bytes_of(adapted(run))


class Killed(BaseException):
    """Stands for a kill."""


def test_a_stopped_adaptation_goes_on(run, adapting, train, test, tmp_path, fresh_cache, monkeypatch):
    """After its first epoch it is gone on with, to the same bytes; nothing half-done is taken for a base."""
    trained, begun = adaptation._Trainer._epoch, []

    def stopped(self, optimizer, epoch, n_epochs, *title):
        begun.append((epoch, *title))
        if begun[-1] == (2,):
            raise Killed
        return trained(self, optimizer, epoch, n_epochs, *title)

    monkeypatch.setattr(adaptation._Trainer, "_epoch", stopped)
    with pytest.raises(Killed):
        cross_validate(adapting(), train, test, tmp_path / "run", folds=[0])
    assert not (tmp_path / "run").exists() and not (fresh_cache / "adapted" / adapted(run).name).exists()
    monkeypatch.setattr(
        adaptation._Trainer, "_epoch", lambda self, *given: begun.append(given[1]) or trained(self, *given)
    )
    begun.clear()
    again = cross_validate(adapting(), train, test, tmp_path / "run", folds=[0])
    assert begun == [2]
    assert bytes_of(adapted(again)) == bytes_of(adapted(run))
    assert [path.name for path in (fresh_cache / "adapted").iterdir()] == [adapted(run).name]


def test_full_fine_tuning_answers_without_it(adapting, train, test, tmp_path, fresh_cache, snippet_answers):
    """A run that saves whole models needs its adapted base only to train."""
    run = cross_validate(adapting(lora=None, train__learning_rate=1e-3), train, test, tmp_path / "run")
    before = Classifier.load(run).predict_proba(list(test["text"]))
    shutil.rmtree(fresh_cache)
    np.testing.assert_array_equal(Classifier.load(run).predict_proba(list(test["text"])), before)
    found = snippet_answers({"run": run.path}, list(test["text"]))["run"]
    np.testing.assert_allclose(found, np.load(run.path / "fold-00" / "test_logits.npy"), atol=1e-5)


@pytest.mark.parametrize("lora_r", [None, 4])
def test_decoders_foretell_the_next_token(tiny_recipe, train, test, tmp_path, fresh_cache, snippet_answers, lora_r):
    """With every weight, or with adapters on a base in 16 bits; classified by LoRA on it, also quantized."""
    adapt = {"num_train_epochs": 2, "learning_rate": 2e-3, "lora_r": lora_r}
    recipe = tiny_recipe("gemma3", adapt=adapt, backbone__dtype="bfloat16", train__num_train_epochs=1)
    run = cross_validate(recipe, train, test, tmp_path / "run", folds=[0])
    about = noted(run)
    assert about["aim"] == "next_token" and about["losses"][-1] < about["losses"][0]
    found = snippet_answers({"run": run.path}, list(test["text"]))["run"]
    np.testing.assert_allclose(found, np.load(run.path / "fold-00" / "test_logits.npy"), atol=0.05)
    if lora_r:
        recipe = load_recipe(recipe, {"quantization": {"load_in_4bit": True}})
        quantized = cross_validate(recipe, train, test, tmp_path / "quantized", folds=[0])
        assert noted(quantized) == about


def test_more_texts(adapting, train, test, tmp_path, fresh_cache):
    """`adapt.extra_texts` is a file of lines or a table; a resume compares its texts, wherever they lie."""
    lines = tmp_path / "more.txt"
    lines.write_text("a furious letter\n\n  \nthe dog was delighted\r\nmy train again\n")
    run = cross_validate(adapting(adapt__extra_texts=str(lines)), train, test, tmp_path / "run", folds=[0])
    assert noted(run)["texts"] == 54 + 3
    table = tmp_path / "more.csv"
    train.assign(text=["a furious letter", "the dog was delighted", "my train again"] * 15).to_csv(table, index=False)
    other = cross_validate(adapting(adapt__extra_texts=str(table)), train, test, tmp_path / "table", folds=[0])
    assert noted(other)["key"] == noted(run)["key"]
    moved = lines.rename(tmp_path / "moved.txt")
    cross_validate(adapting(adapt__extra_texts=str(moved)), train, test, run.path, folds=[1], resume=True)
    moved.write_text("something else\n")
    with pytest.raises(RunError, match="extra_texts_sha256"):
        cross_validate(adapting(adapt__extra_texts=str(moved)), train, test, run.path, resume=True)
    for content, message in (("", "is empty"), (" \n", "is empty"), (None, "does not exist")):
        moved.unlink(missing_ok=True) if content is None else moved.write_text(content)
        with pytest.raises(DataError, match=message):
            cross_validate(adapting(adapt__extra_texts=str(moved)), train, test, tmp_path / "none")
    train[["id", "joy"]].to_csv(table, index=False)
    with pytest.raises(DataError, match="no column 'text'"):
        cross_validate(adapting(adapt__extra_texts=str(table)), train, test, tmp_path / "none")


def test_predict_and_refit_find_it(run, train, test, tmp_path, copy_of):
    """So do a file to predict and a model of all rows."""
    copy = copy_of(run)
    assert refit(copy, train).finished
    predicted = predict_file(copy, test, tmp_path / "answers")
    assert predicted is not None
    assert Classifier.load(copy, models="refit").predict_proba("happy").shape == (3,)


def test_check_counts_it(adapting, train, test, fresh_cache, tmp_path):
    """`check` times some of its steps and trains no base; where the cache has it, it says so."""
    found = check(adapting(), train, test)
    assert found.estimate.seconds["adapt"] > 0 and not (fresh_cache / "adapted").exists()
    cross_validate(adapting(), train, test, tmp_path / "run", folds=[0])
    found = check(adapting(), train, test)
    assert "adapt" not in found.estimate.seconds and any("in the cache already" in note for note in found.notes)


def test_refused(adapting, tiny_recipe, train, test, tmp_path, fresh_cache):
    """What cannot be adapted is refused before anything is trained."""
    with pytest.raises(RecipeError, match="adapt: tfidf has no base"):
        load_recipe({"tfidf": {}, "adapt": {}})
    with pytest.raises(RecipeError, match=r"adapt.num_train_epoch: no such field. Did you mean 'num_train_epochs'"):
        load_recipe({"backbone": {"name_or_path": "org/model"}, "adapt": {"num_train_epoch": 1}})
    with pytest.raises(BackboneError, match="no mask token"):
        cross_validate(tiny_recipe("bert", adapt={}), train, test, tmp_path / "none")
    with pytest.raises(BackboneError, match="has no output layer"):
        cross_validate(tiny_recipe("llama", adapt={}), train, test, tmp_path / "none")
    with pytest.raises(TrainingError, match="not a finite number while the base is adapted"):
        cross_validate(adapting(adapt__learning_rate=1e18), train, test, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_loss_that_rises_is_told(adapting, train, test, tmp_path, fresh_cache):
    """A base that the texts made worse is used all the same, and the card says that it is."""
    run = cross_validate(
        adapting(adapt__learning_rate=0.5, adapt__num_train_epochs=1), train, test, tmp_path / "run", folds=[0]
    )
    losses = noted(run)["losses"]
    assert losses[-1] > losses[0] and "It rose: lower" in (run.path / "README.md").read_text()


def test_only_the_chosen_positions_meet_the_vocabulary(masked, adapting):
    """The loss is that of transformers' own model at the masked positions, whatever is held at a time."""
    from transformers import AutoModelForMaskedLM

    from lora_cls.modeling import language_model
    from lora_cls.modeling.source import find_source

    cpu = torch.device("cpu")
    backbone = adapting().backbone
    model = language_model.load_language_model(backbone, find_source(masked), "masked", torch.float32, None, cpu, 3)
    assert model.fresh and model.own
    ids = torch.randint(5, 300, (3, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, 9:] = 0
    chosen = (ids % 3 == 0) & (mask == 1)
    torch.manual_seed(3)
    whole = AutoModelForMaskedLM.from_pretrained(masked).eval()
    _, unexpected = whole.load_state_dict(_state(model, whole), strict=False)
    assert not unexpected
    labels = torch.where(chosen, ids, -100)
    expected = whole(input_ids=ids, attention_mask=mask, labels=labels).loss * chosen.sum()
    for at_once in (language_model.LOGITS_AT_ONCE, 5 * model.base.config.vocab_size):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(language_model, "LOGITS_AT_ONCE", at_once)
            model.requires_grad_(True)
            model.zero_grad()
            loss = model.loss(ids, mask, chosen, ids[chosen])
            loss.backward()
        torch.testing.assert_close(loss, expected)
        assert all(parameter.grad is not None for parameter in model.own)


def _state(model, whole):
    """The weights of the model taken apart, by the names of the whole one."""
    prefix = whole.base_model_prefix
    return {f"{prefix}.{name}": value for name, value in model.base.state_dict().items() if "pooler" not in name} | {
        name: value for name, value in model.whole.state_dict().items() if not name.startswith(f"{prefix}.")
    }


def test_what_is_masked(masked, adapting, train):
    """No special token is asked for, one token at least of every text is, and all of them can be the mask."""
    from lora_cls.data import load_train
    from lora_cls.training.transformer import TransformerLearner

    for with_ in ("mixed", "mask"):
        recipe = adapting(adapt__mask_with=with_, adapt__mask_probability=0.3)
        data = load_train(recipe.data, train)
        session = TransformerLearner(recipe, data.label_names).session
        made = adaptation._Adaptation.of(session, recipe.adapt, data.texts)
        trainer = adaptation._Trainer(session, recipe.adapt, made.aim, made.tokens)
        rows = trainer.rows[:30]
        batch = trainer.batch(rows, np.random.default_rng(0))
        plain, _ = made.tokens.batch(rows, trainer.pad_id)
        special = session.tokenizer.all_special_ids
        assert not np.isin(plain[batch.chosen.numpy()], special).any()
        assert (batch.chosen.sum(1) >= 1).all()
        assert (batch.targets.numpy() == plain[batch.chosen.numpy()]).all()
        assert (batch.ids.numpy()[~batch.chosen.numpy()] == plain[~batch.chosen.numpy()]).all()
        stands = batch.ids.numpy()[batch.chosen.numpy()]
        share = (stands == session.tokenizer.mask_token_id).mean()
        assert share == 1 if with_ == "mask" else 0.6 < share < 0.95


def test_json_is_plain(run):
    """What `run.json` says of the base needs no class of ours."""
    about = json.loads((run.path / "run.json").read_text())["choices"]["adapted"]
    assert set(about) >= {"key", "base", "base_sha256", "aim", "texts", "losses", "folder"}
