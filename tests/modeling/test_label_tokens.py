"""A head that starts from the labels' own tokens: its rows, scale and level, what it refuses, and its files."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_cls.commands.cross_validation import cross_validate
from lora_cls.commands.predict import Classifier
from lora_cls.data import load_train
from lora_cls.errors import BackboneError, RecipeError
from lora_cls.modeling.adapter import load_model_weights, save_model, trainable_head
from lora_cls.modeling.label_tokens import (
    LabelTokenHead,
    label_directions,
    label_token_ids,
    output_rows,
)
from lora_cls.modeling.loading import load_base, load_tokenizer
from lora_cls.modeling.source import find_source
from lora_cls.recipe import Head, load_recipe
from lora_cls.runs import FoldFolder
from lora_cls.text.prompts import head_prompt, label_words
from lora_cls.training.heads.label_tokens import LabelTokensHead
from lora_cls.training.losses import pos_weight
from lora_cls.training.transformer import TransformerLearner

CPU = torch.device("cpu")
LABELS = ["joy", "anger", "fear"]


@pytest.fixture(scope="module")
def speaking(tiny_model, tmp_path_factory):
    """`speaking(kind, tied)`: a tiny decoder saved with an output head, tied to its input embedding or its own."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def make(kind="llama", tied=False):
        folder = tmp_path_factory.mktemp(f"{kind}-{tied}")
        torch.manual_seed(1)
        config = AutoModelForCausalLM.from_pretrained(tiny_model(kind)).config
        config.tie_word_embeddings = tied
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(tiny_model(kind)).save_pretrained(folder)
        return folder

    return make


def recipe_of(tiny_recipe, folder, **overrides):
    given = {"head__kind": "label_tokens", "backbone__name_or_path": str(folder)} | overrides
    return tiny_recipe("llama", **given)


def test_directions_by_hand():
    """Mean of each label's token rows, minus the mean over labels; a single label keeps its own."""
    rows = [torch.tensor([[1.0, 0.0], [3.0, 2.0]]), torch.tensor([[0.0, 5.0]])]
    assert label_directions(rows).tolist() == [[1.0, -2.0], [-1.0, 2.0]]
    assert label_directions(rows[1:]).tolist() == [[0.0, 5.0]]


def test_start_by_hand():
    """The mean logit is the prior given, the spread 1, and the order of rows that of the directions."""
    head, rng = LabelTokenHead(4, 3), torch.Generator().manual_seed(0)
    directions, pooled = torch.randn(3, 4, generator=rng), 7 * torch.randn(50, 4, generator=rng)
    prior = torch.tensor([-2.0, 0.5, 1.0])
    head.start(directions, pooled, prior)
    logits = head(pooled)
    torch.testing.assert_close(logits.mean(0), prior, rtol=0, atol=1e-5)
    assert (logits - logits.mean(0)).square().mean().sqrt().item() == pytest.approx(1.0, abs=1e-4)
    raw = pooled @ directions.T
    assert np.corrcoef(logits[:, 1].detach(), raw[:, 1])[0, 1] == pytest.approx(1.0)


def test_saved_as_a_plain_linear_layer():
    """The state of a trained head opens in `nn.Linear` and in a new head, same logits; the scale is trained."""
    head, x = LabelTokenHead(4, 3), torch.randn(5, 4)
    with torch.no_grad():
        head.scale.fill_(2.5)
    state = {key: value.clone() for key, value in head.state_dict().items()}
    assert set(state) == {"weight", "bias"}
    plain, again = torch.nn.Linear(4, 3), LabelTokenHead(4, 3)
    with torch.no_grad():
        again.scale.fill_(9.0)
    plain.load_state_dict(state)
    again.load_state_dict(state)
    torch.testing.assert_close(plain(x), head(x))
    torch.testing.assert_close(again(x), head(x))
    head(x).sum().backward()
    assert head.scale.grad is not None and head.scale.grad.abs() > 0


@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_the_output_embedding(tied, speaking, tiny_recipe):
    """The rows are those of the model's own output head, tied or not, for labels of several tokens too."""
    from transformers import AutoModelForCausalLM

    recipe = recipe_of(tiny_recipe, speaking(tied=tied))
    source = find_source(recipe.backbone.name_or_path)
    tokenizer = load_tokenizer(recipe.backbone)
    ids = label_token_ids(tokenizer, ["joy", "very angry", "fear"])
    assert len(ids[1]) > len(ids[0])
    base = load_base(recipe.backbone, None, torch.float32, CPU)
    expected = (
        AutoModelForCausalLM.from_pretrained(source.path_or_id, dtype=torch.float32).get_output_embeddings().weight
    )
    for found, wanted in zip(output_rows(base, source, ids), ids, strict=True):
        torch.testing.assert_close(found, expected[wanted].detach())


def test_sharded_checkpoint(speaking, tiny_recipe):
    """The output head is found in whichever file the index names."""
    folder = speaking()
    state = load_file(folder / "model.safetensors")
    head = {"lm_head.weight": state.pop("lm_head.weight")}
    save_file(state, folder / "model-1.safetensors", {"format": "pt"})
    save_file(head, folder / "model-2.safetensors", {"format": "pt"})
    (folder / "model.safetensors").unlink()
    where = dict.fromkeys(state, "model-1.safetensors") | {"lm_head.weight": "model-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    recipe = recipe_of(tiny_recipe, folder)
    base = load_base(recipe.backbone, None, torch.float32, CPU)
    (found,) = output_rows(base, find_source(str(folder)), [[5, 7]])
    torch.testing.assert_close(found, head["lm_head.weight"][[5, 7]])


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_encoders_are_refused(kind, tiny_recipe, emotion_table):
    """An encoder does not continue a text."""
    recipe = tiny_recipe(kind, head={"kind": "label_tokens"})
    data = load_train(recipe.data, emotion_table(12))
    with pytest.raises(BackboneError, match=r"needs a decoder.*head\.kind: linear"):
        TransformerLearner(recipe, data.label_names).prepare(data).measure()


def test_a_base_without_output_head_is_refused(tiny_recipe, tiny_model, emotion_table):
    """A decoder saved bare, not tied to its embedding, has nothing to start from."""
    recipe = recipe_of(tiny_recipe, tiny_model("llama"))
    data = load_train(recipe.data, emotion_table(12))
    with pytest.raises(BackboneError, match=r"no output head \(lm_head\.weight\)"):
        TransformerLearner(recipe, data.label_names).prepare(data).measure()


def test_labels_that_cannot_be_told_apart(tiny_model):
    """Two labels with the same tokens, and a label without any, are named together."""
    tokenizer = load_tokenizer(load_recipe({"backbone": {"name_or_path": tiny_model("bert")}}).backbone)
    with pytest.raises(BackboneError, match=r"'Joy' and 'joy' have the same tokens.*head\.label_words"):
        label_token_ids(tokenizer, ["joy", "fear", "Joy"])


def test_words_and_prompts():
    """Names become words; given words win; unknown names and prompts without a place for the text are refused."""
    head = Head(kind="label_tokens", label_words={"tox_sev": "severely toxic"}, prompt="{text} {is} {labels}?")
    names = ["tox_sev", "identity_hate"]
    assert label_words(head, names) == ["severely toxic", "identity hate"]
    assert head_prompt(head, names) == "{text} {is} severely toxic, identity hate?"
    assert head_prompt(Head(), names) is None
    with pytest.raises(RecipeError, match=r"label_words: no label 'tox_sev'\. Did you mean 'tox_sew'"):
        label_words(head, ["tox_sew"])
    with pytest.raises(RecipeError, match=r"(?s)head: .*pooling must be last_token.*\{text\} exactly once"):
        load_recipe(
            {"backbone": {"name_or_path": "x"}, "head": {"kind": "label_tokens", "pooling": "mean", "prompt": "what?"}}
        )


def test_a_fold_starts_at_its_prior(speaking, tiny_recipe, emotion_table):
    """Before training, the mean corrected logit over the fold's rows is their prior log-odds, for 4-bit bases too."""
    recipe = recipe_of(tiny_recipe, speaking(), quantization={"load_in_4bit": True})
    data = load_train(recipe.data, emotion_table(36))
    trainer = TransformerLearner(recipe, data.label_names).prepare(data)
    trainer.measure()
    session = trainer.session
    model = session.fresh_model(0)
    rows = np.arange(24)
    weight = pos_weight(data.labels[rows], recipe.loss)
    trainer.start.begin(model, rows, weight)
    logits = session.answer(model, trainer.rows.tokens.take(rows), weight).logits
    share = (data.labels[rows].sum(0) + 0.5) / 25
    np.testing.assert_allclose(logits.mean(0) - np.log(weight), np.log(share / (1 - share)), atol=1e-4)
    row_weight = np.resize([0.0, 1.0, 3.0], 36)
    classes = LabelTokensHead(load_recipe(recipe, {"task": "single_label"}), LABELS, session.tokenizer, {})
    weighted = replace(trainer.rows, row_weight=row_weight)
    start = classes.read_base(lambda: session.fresh_model(0), weighted, session.source, session.batches, print)
    start.begin(model, rows, weight)
    logits = session.answer(model, trainer.rows.tokens.take(rows), weight).logits
    share = (row_weight[:24] / row_weight[:24].mean() @ data.labels[rows] + 0.5) / 25
    np.testing.assert_allclose(logits.mean(0) - np.log(weight), np.log(share), atol=1e-4)
    found = session.choices["roc_auc_before_training"]
    assert set(found) == set(data.label_names) and all(0 <= value <= 1 for value in found.values())


@pytest.mark.parametrize("lora", [{"r": 4}, None], ids=["LoRA", "full"])
def test_runs_and_reloads(lora, speaking, tiny_recipe, emotion_table, tmp_path):
    """A run from start to end learns its rows; its files hold plain linear heads and give the same answers."""
    recipe = recipe_of(
        tiny_recipe, speaking(), lora=lora, train__num_train_epochs=6, train__learning_rate=1e-2 if lora else 2e-3
    )
    test = emotion_table(12, seed=3)[["id", "text"]]
    run = cross_validate(recipe, emotion_table(60), test, tmp_path / "run")
    losses = [json.loads(line)["loss"] for line in run.fold(0).metrics.read_text().splitlines()]
    assert losses[-1] < 0.7 * losses[0]
    file = run.fold(0).adapter / "adapter_model.safetensors" if lora else run.fold(0).model / "head.safetensors"
    assert {key.rpartition(".")[2] for key in load_file(file) if "score" in key} == {"weight", "bias"}
    logits = TransformerLearner(recipe, LABELS).predict(FoldFolder(run.fold(0).path), list(test["text"]))
    np.testing.assert_allclose(logits, run.test_logits()[0], atol=1e-5)
    assert Classifier.load(run).predict_proba("a happy dog").shape == (3,)
    assert "roc_auc_before_training" in run.info.choices


def test_a_resumed_run_is_the_same(speaking, tiny_recipe, emotion_table, tmp_path):
    """Folds trained in two sessions equal those of one: where a head starts does not depend on what ran before."""
    recipe, table = recipe_of(tiny_recipe, speaking()), emotion_table(30)
    whole = cross_validate(recipe, table, out=tmp_path / "whole")
    cross_validate(recipe, table, out=tmp_path / "parts", folds=[0])
    parts = cross_validate(recipe, table, out=tmp_path / "parts", resume=True)
    for number in (0, 1):
        first, second = (run.fold(number).oof_logits.read_bytes() for run in (whole, parts))
        assert first == second


def test_the_scale_survives_a_reload(speaking, tiny_recipe, tmp_path):
    """A model saved with a scale other than 1 answers the same after loading into a model with yet another."""
    recipe = recipe_of(tiny_recipe, speaking())
    bases = [load_base(recipe.backbone, None, torch.float32, CPU) for _ in range(2)]
    models = [LabelTokensHead.build(base, recipe, 3).eval() for base in bases]
    for model, scale in zip(models, (3.0, 0.1), strict=True):
        with torch.no_grad():
            trainable_head(model).scale.fill_(scale)
    save_model(models[0], tmp_path / "adapter")
    load_model_weights(models[1], tmp_path / "adapter")
    ids = torch.randint(5, 200, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(*(model(ids, torch.ones_like(ids)) for model in models))
