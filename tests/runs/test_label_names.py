"""`head.kind: label_names`: names before the text, each label read at its own."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertConfig, MPNetConfig

from lora_cls.commands.cross_validation import _smoke_settings, cross_validate
from lora_cls.commands.export import export
from lora_cls.commands.predict import Classifier
from lora_cls.errors import BackboneError, RecipeError
from lora_cls.modeling.adapter import reset_model
from lora_cls.modeling.probe import looks_ahead
from lora_cls.recipe import load_recipe
from lora_cls.text.tokens import pad
from lora_cls.training.checkpoint import trainable
from lora_cls.training.factory import make_learner
from lora_cls.training.heads.label_names import LabelNamesHead
from lora_cls.training.memory import estimate_memory

HEAD = {"kind": "label_names", "pooling": "mean", "learning_rate": 1e-2}
NAMES = ["joy", "anger", "fear"]
TEXTS = ["so happy and lovely, what a great day with all of my friends in the garden", "afraid", ""]
ENCODERS = ["bert", "roberta", "microsoft/deberta-v3-base", "answerdotai/ModernBERT-base"]
SPANS = [(1, 2), (2, 5), (5, 6)]


def loaded(path):
    """A random model, from a folder or a configuration."""
    torch.manual_seed(0)
    return AutoModel.from_pretrained(path) if isinstance(path, str) else AutoModel.from_config(path)


def classifier(base, lora=None, seed=0):
    """A classifier on a base, fresh as at the start of a fold, that reads names of 1, 3 and 1 tokens."""
    recipe = load_recipe({"backbone": {"name_or_path": "x"}, "head": HEAD, "lora": lora})
    model = LabelNamesHead.build(base.requires_grad_(False), recipe, 3)
    reset_model(model, recipe, seed)
    model.read_at(SPANS)
    return model.eval()


def rows(lengths, seed=0):
    """Token ids of texts behind the same 7 tokens of names."""
    rng = np.random.default_rng(seed)
    before = rng.integers(5, 120, size=7)
    return [np.concatenate([before, rng.integers(5, 120, size=n)]) for n in lengths]


def ask(model, texts, side="right"):
    ids, mask = (torch.from_numpy(array) for array in pad(texts, model.base.config.pad_token_id, side))
    return model(ids, mask)


@pytest.mark.parametrize("lora", [{"r": 4}, None], ids=["LoRA", "full"])
@pytest.mark.parametrize("kind", [*ENCODERS, "mpnet"])
def test_trains_and_pads(kind, lora, tiny_model, losses_of_steps):
    """What lies below the head lowers the loss; a row answers alone as it does padded, on either side."""
    sizes = {"vocab_size": 400, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    mpnet = MPNetConfig(**sizes, num_attention_heads=4, max_position_embeddings=130, initializer_range=0.1)
    model = classifier(loaded(mpnet if kind == "mpnet" else tiny_model(kind)), lora)
    assert looks_ahead(model.base, 0)
    texts, targets = rows([13, 5, 1]), torch.eye(3)
    below = [p for n, p in trainable(model).items() if ".score." not in n]
    losses = losses_of_steps(lambda: ask(model, texts), targets, below)
    assert losses[-1] < losses[0] - 1e-3
    with torch.no_grad():
        alone = torch.cat([ask(model, [text]) for text in texts])
        assert (alone[0] - alone[1]).abs().max() > 1e-3
        # absolute positions are counted over padding on the left in some models, which no text of ours has
        for side in ("right", "left") if kind in ("microsoft/deberta-v3-base", "roberta", "mpnet") else ("right",):
            torch.testing.assert_close(ask(model, texts, side), alone, rtol=0, atol=1e-5)


def test_scores_by_hand(tiny_model):
    """A label's logit is its own row of the layer times the mean over its name, whatever the other rows say."""
    model, (text,) = classifier(loaded(tiny_model("bert"))), rows([4])
    with torch.no_grad():
        hidden = model.base(input_ids=torch.from_numpy(text)[None]).last_hidden_state[0]
        score = model.base.score
        expected = [hidden[a:b].mean(0) @ score.weight[i] + score.bias[i] for i, (a, b) in enumerate(SPANS)]
        torch.testing.assert_close(ask(model, [text])[0], torch.stack(expected), rtol=0, atol=1e-5)


def test_permuted_labels_give_permuted_answers(tiny_model):
    """Without positions a model sees no order: names and rows in another one give the same score to each label."""
    base = loaded(tiny_model("bert"))
    with torch.no_grad():
        base.embeddings.position_embeddings.weight.zero_()
    model, (text,), order = classifier(base), rows([9]), [2, 0, 1]
    with torch.no_grad():
        before = ask(model, [text])[0]
        names = [text[a:b] for a, b in SPANS]
        moved = np.concatenate([text[:1], *(names[i] for i in order), text[6:]])
        ends = np.cumsum([1, *(len(names[i]) for i in order)]).tolist()
        model.read_at(list(pairwise(ends)))
        score = model.base.score
        score.weight.copy_(score.weight[order].clone())
        after = ask(model, [moved])[0]
    assert (before[order] - before).abs().max() > 1e-2
    torch.testing.assert_close(after, before[order], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ENCODERS)
def test_names_stand_before_every_piece(kind, tiny_model):
    """Long names too; chunks of a long text and an empty one are framed alike, and no piece exceeds max_length."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model(kind))
    names = ["joy", "severely_toxic-letter", "of a friend"]
    data = {"max_length": 80, "long_text": "chunk", "chunk_stride": 4}
    recipe = load_recipe({"backbone": {"name_or_path": "x"}, "head": HEAD, "lora": None, "data": data})
    head = LabelNamesHead(recipe, names, tokenizer, {})
    tokens = head.encode(["the dog was happy " * 60, ""], None)
    assert len(tokens.ids) > 3 and max(tokens.lengths) <= 80
    for ids in tokens.ids:
        said = [tokenizer.decode(ids[begin:end]).strip() for begin, end in head.spans]
        assert said == ["joy", "severely toxic letter", "of a friend"] or "[UNK]" in " ".join(said)
        assert ids[0] == head.frame.before[0] and ids[-1] == head.frame.after[-1]
    assert head.spans[0][0] == 1 and head.spans[1][1] - head.spans[1][0] > 2
    assert tokens.ids[-1].tolist() == [*head.frame.before, *head.frame.after]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, small_recipe, emotion_table):
    """Finished runs of two folds: adapters on half of the layers, and every weight, in chunks, of long names."""
    folder, table = tmp_path_factory.mktemp("names"), emotion_table(30)
    test = emotion_table(8, seed=5)[["id", "text"]]
    words = {"fear": "being afraid of a letter"}
    return {
        "LoRA": cross_validate(
            small_recipe("roberta", head=HEAD, lora__top_layers=0.5), table, test, folder / "lora"
        ),
        "full": cross_validate(
            small_recipe(
                "bert", head=HEAD | {"label_words": words}, lora=None, train__learning_rate=1e-3,
                data={"long_text": "chunk", "max_length": 40, "chunk_stride": 3, "chunk_combine": "mean_proba"},
            ),
            table, test, folder / "full",
        ),
    }  # fmt: skip


def test_snippets_and_loading(runs, snippet_answers, emotion_table, tmp_path):
    """The README's code opens a fold, or an export, without lora_cls and answers as we do; so does what is loaded."""
    texts = [emotion_table(1)["text"][0] * 3, *TEXTS]
    tested = emotion_table(8, seed=5)["text"].tolist()
    folders, ours = {}, {}
    for name, run in runs.items():
        again = Classifier.load(run)
        np.testing.assert_allclose(again.predict_proba(tested), run.test_proba[NAMES], atol=1e-5)
        folders[name], ours[name] = run.path, again._predictor.predict(run.fold(0), texts)
        assert np.abs(ours[name][0] - ours[name][2]).max() > 1e-4
    for name, to in (("LoRA", "adapter"), ("LoRA", "merged"), ("full", "merged")):
        folder = export(runs[name], tmp_path / f"{name}-{to}", to=to).path
        again = Classifier.load(folder)
        folders[f"{name} {to}"], ours[f"{name} {to}"] = folder, again._predictor.predict(again._folders[0], texts)
    for name, found in snippet_answers(folders, texts).items():
        np.testing.assert_allclose(found, ours[name], atol=1e-5, err_msg=name)


def test_the_prefix_is_computed_once(runs, emotion_table, tmp_path):
    """The layers below the lowest adapter hand out what they said of names and text; without that it is the same."""
    whole = runs["LoRA"]
    assert whole.info.choices["prefix_cache"]
    recipe = load_recipe(whole.recipe, {"engine.prefix_cache": False})
    run = cross_validate(recipe, emotion_table(30), out=tmp_path / "run", folds=[0])
    assert not run.info.choices["prefix_cache"]
    np.testing.assert_allclose(np.load(run.fold(0).oof_logits), np.load(whole.fold(0).oof_logits), atol=1e-4)


def test_resumed(runs, emotion_table, results, tmp_path):
    """A run that was left after one fold ends with the same bytes."""
    whole, test = runs["LoRA"], emotion_table(8, seed=5)[["id", "text"]]
    cross_validate(whole.recipe, emotion_table(30), test, tmp_path / "run", folds=[0])
    again = cross_validate(whole.recipe, emotion_table(30), test, tmp_path / "run", resume=True)
    assert results(again) == results(whole)


def test_one_class_per_row(small_recipe, emotion_table, tmp_path):
    """A softmax over the classes' scores."""
    table = emotion_table(24)
    table["mood"] = np.where(table["joy"] == 1, "joy", np.where(table["anger"] == 1, "anger", "neither of them"))
    recipe = small_recipe("bert", head=HEAD, task="single_label", data__label_columns=["mood"])
    run = cross_validate(recipe, table[["id", "text", "mood"]], out=tmp_path / "run", folds=[0])
    proba = Classifier.load(run).predict_proba(TEXTS)
    np.testing.assert_allclose(proba.sum(1), 1, atol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "gemma3", "qwen2", "gpt2"])
def test_a_decoder_is_refused(kind, small_recipe, emotion_table, tmp_path):
    """Before anything is trained, as its names would not see the text."""
    with pytest.raises(BackboneError, match=r"label_names: .* reads from left to right.*linear"):
        cross_validate(small_recipe(kind, head=HEAD), emotion_table(12), out=tmp_path / "run")
    assert not list(tmp_path.glob("run/fold-*"))


def test_too_many_names_are_refused(small_recipe):
    """Where less than half of max_length is left for the text; the length that is advised will do."""
    names = [f"label number {i}" for i in range(28)]
    with pytest.raises(RecipeError, match=r"28 labels take \d+ tokens of it, more than half. Raise it to") as error:
        make_learner(small_recipe("bert", head=HEAD), names)
    wanted = int(str(error.value).partition("Raise it to ")[2].split()[0])
    assert make_learner(small_recipe("bert", head=HEAD, data__max_length=wanted), names)
    with pytest.raises(RecipeError, match=f"data.max_length is {wanted - 1}: "):
        make_learner(small_recipe("bert", head=HEAD, data__max_length=wanted - 1), names)


def test_names_that_a_tokenizer_cannot_tell_apart_are_refused(small_recipe):
    with pytest.raises(BackboneError, match=r"head.kind: label_names: 'JOY' and 'joy' have the same tokens"):
        make_learner(small_recipe("bert", head=HEAD), ["joy", "JOY"])


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ({"pooling": "cls"}, "pooling must be mean, not cls"),
        ({"pooling": "last_token"}, "pooling must be mean, not last_token"),
        ({"prompt": "{text}"}, "prompt has no meaning for kind: label_names"),
    ],
)
def test_settings_without_meaning_are_refused(head, said):
    with pytest.raises(RecipeError, match=said):
        load_recipe({"backbone": {"name_or_path": "x"}, "head": HEAD | head})


def test_a_smoke_run_keeps_room_for_the_names():
    recipe = load_recipe({"backbone": {"name_or_path": "x"}, "head": HEAD, "data": {"max_length": 200}})
    assert _smoke_settings(recipe)["data.max_length"] == 200


@pytest.mark.parametrize("length", [4, 40])
def test_memory_is_estimated(length, tiny_model):
    """Without a tokenizer, and so without the names: for texts shorter than these, too."""
    recipe = load_recipe({"backbone": {"name_or_path": "x"}, "head": HEAD, "lora": None})
    config = AutoConfig.from_pretrained(tiny_model("bert"))
    assert isinstance(config, BertConfig)
    memory = estimate_memory(recipe, config, dtype=torch.float32, n_labels=28, length=length)
    assert memory.activations > 0
