"""Texts far longer than the model reads, through whole runs: each counts once, and no part of it is in two folds."""

import re

import numpy as np
import pandas as pd
import pytest

from lora_cls.commands.check import check
from lora_cls.commands.cross_validation import cross_validate
from lora_cls.commands.predict import Classifier
from lora_cls.evaluation.links import Sigmoid
from lora_cls.runs import read_array
from lora_cls.training import objective, transformer
from lora_cls.training.loop import predict_logits
from lora_cls.training.objective import ClassificationObjective

LABELS = ["joy", "anger", "fear"]


@pytest.fixture(scope="module")
def documents(emotion_table):
    """20 rows: every third a document of 80 to 400 words; the second has 5,000, the third is empty."""
    table, rng = emotion_table(20, seed=3), np.random.default_rng(0)
    many = emotion_table(120, seed=4)["text"]
    for i in range(0, 20, 3):
        table.loc[i, "text"] = " ".join([table.loc[i, "text"], *rng.choice(many, size=int(rng.integers(8, 40)))])
    table.loc[1, "text"] = " ".join(" ".join(rng.choice(many, size=700)).split()[:5000])
    table.loc[2, "text"] = "."
    assert len(table.loc[1, "text"].split()) == 5000
    return table


@pytest.fixture(scope="module")
def short(small_recipe):
    """`short(kind, mode, **overrides)`: a recipe of one epoch; the 5,000 words are read in no more than 6 chunks."""

    def make(kind, mode, **overrides):
        options = {"data__long_text": mode, "data__max_chunks": 6, "train__num_train_epochs": 1}
        return small_recipe(kind, **options | overrides)

    return make


@pytest.mark.parametrize("mode", ["truncate", "head_tail", "chunk"])
@pytest.mark.parametrize("kind", ["bert", "roberta", "llama", "gemma3", "qwen2", "gpt2"])
def test_5000_words(kind, mode, short, documents, tmp_path):
    """Every kind of model trains on them, answers for each row once, and answers again the same for new texts."""
    run = cross_validate(short(kind, mode), documents, documents[["id", "text"]], tmp_path / "run")
    assert pd.read_csv(run.path / "oof_proba.csv")["id"].tolist() == documents["id"].tolist()
    assert pd.read_csv(run.path / "test_proba.csv")["id"].tolist() == documents["id"].tolist()
    scores = pd.read_csv(run.path / "test_proba.csv")[LABELS].to_numpy()
    assert np.isfinite(scores).all()
    some = [1, 0, 5]
    again = Classifier.load(run).predict_proba([documents["text"][i] for i in some])
    np.testing.assert_allclose(again, scores[some], atol=1e-4)
    chunked = run.info.pieces_per_row is not None
    assert chunked == (mode == "chunk")


def test_5000_words_tfidf(tfidf_recipe, documents, tmp_path):
    """The classical floor reads every text whole."""
    run = cross_validate(tfidf_recipe(), documents, out=tmp_path / "run")
    assert pd.read_csv(run.path / "oof_proba.csv")["id"].tolist() == documents["id"].tolist()


@pytest.fixture(scope="module")
def chunked(short, documents, tmp_path_factory):
    """A run in chunks, and what its objectives were given: per fold the texts' ids by the tokens of their pieces."""
    seen = []

    class Spy(ClassificationObjective):
        def __init__(self, tokens, targets, *rest, **options):
            super().__init__(tokens, targets, *rest, **options)
            seen.append([tuple(row) for row in tokens.ids])

    trainers = []

    def keep(self, *arguments, **options):
        made(self, *arguments, **options)
        trainers.append(self)

    made = transformer.TransformerTrainer.__init__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objective, "ClassificationObjective", Spy)
        patch.setattr(transformer.TransformerTrainer, "__init__", keep)
        folder = tmp_path_factory.mktemp("chunked") / "run"
        run = cross_validate(
            short("llama", "chunk", data__max_chunks=None, data__chunk_stride=4), documents, out=folder
        )
    return run, seen, trainers[0]


def test_no_document_in_two_folds(chunked, documents):
    """All pieces of a document are trained on in the folds that do not hold it out, and none in the fold that does."""
    run, seen, trainer = chunked
    fold = run.folds["fold"].to_numpy()
    tokens = trainer.rows.tokens
    assert (tokens.n_pieces > 1).sum() >= 6 and tokens.n_pieces[1] > 100
    owners = [(tuple(row), int(text)) for row, text in zip(tokens.ids, tokens.text, strict=True)]
    assert len({piece for piece, _ in owners}) == len(set(owners))  # no piece stands in two documents: it tells its own
    for number, pieces in enumerate(seen):
        assert sorted(pieces) == sorted(piece for piece, text in owners if fold[text] != number)
    assert len(seen) == 2 and sorted(set(fold)) == [0, 1]


def test_each_document_is_scored_once(chunked, documents):
    """By the mean log-odds of its pieces, each piece answered by the model that never saw any of it."""
    run, _, trainer = chunked
    assert pd.read_csv(run.path / "oof_proba.csv")["id"].tolist() == documents["id"].tolist()
    fold, tokens, session = run.folds["fold"].to_numpy(), trainer.rows.tokens, trainer.session
    for number in (0, 1):
        rows = np.flatnonzero(fold == number)
        oof = read_array(run.fold(number).oof_logits, (len(rows), 3))
        model = session.load(run.fold(number))
        for i, row in enumerate(rows):
            mine = tokens.take([row])
            pieces = predict_logits(model, mine, batches=session.batches, pad_id=session.head.pad_id)
            np.testing.assert_allclose(oof[i], pieces.mean(axis=0), atol=1e-4)


def test_cost_is_named(chunked, short, documents, capsys):
    """The run and `check` say how many texts are longer, in how many pieces they are read, and that time grows."""
    from lora_cls.terminal import print_check, print_run

    run, seen, trainer = chunked
    per_fold = [len(pieces) for pieces in seen]
    assert run.info.pieces_per_row == pytest.approx(sum(per_fold) / 20, abs=1e-3)  # 2 folds: 20 rows trained on
    print_run(run)
    assert f"{run.info.pieces_per_row:.2f} pieces per row" in (out := capsys.readouterr().out)
    assert re.search(r"\d+ pieces/s", out)
    found = check(short("llama", "chunk", data__max_chunks=None, data__chunk_stride=4), documents)
    n, longer = len(trainer.rows.tokens.ids), int((trainer.rows.tokens.n_pieces > 1).sum())
    note = (
        f"{longer} of 20 training texts ({longer / 20:.1%}) are longer than data.max_length 48: read in chunks, {n} pi"
    )
    assert [note in sentence for sentence in found.notes].count(True) == 1
    assert found.tokens["train"]["max"] > 5000 and found.tokens["train"]["pieces_per_text"] == n / 20
    print_check(found)
    assert note in capsys.readouterr().out
    cut = check(short("llama", "chunk"), documents)
    assert any(re.search(r"max_chunks 6 leaves parts of [1-9]\d* texts unread", sentence) for sentence in cut.notes)
    for mode, words in (("truncate", "only their start is read"), ("head_tail", "only their start and end are read")):
        assert any(words in sentence for sentence in check(short("llama", mode), documents).notes)
    nothing = check(short("llama", "chunk", data__max_length=128), documents[documents["text"].str.len() < 100])
    assert not any("longer than" in sentence for sentence in nothing.notes)


def test_a_text_answers_alike_alone_and_in_company(chunked, documents):
    """A long text's answer does not depend on the texts beside it."""
    run, _, _ = chunked
    classifier = Classifier.load(run)
    texts = [documents["text"][i] for i in (0, 3, 1)]
    np.testing.assert_allclose(classifier.predict_proba(texts)[0], classifier.predict_proba(texts[0]), atol=1e-5)


def test_smoke_of_long_texts(short, documents, tmp_path):
    """A smoke run shortens what is read, and an overlap made for longer pieces does not stop it."""
    overrides = {"data__max_length": 128, "data__chunk_stride": 60, "data__max_chunks": None}
    run = cross_validate(short("llama", "chunk", **overrides), documents, out=tmp_path / "run", smoke=True)
    data = run.recipe.data
    assert (data.max_length, data.chunk_stride, data.max_chunks) == (64, 16, 4)
    assert 1 < run.info.pieces_per_row <= 4


# The snippet of a run's README reads texts as the run does

SNIPPETS = {
    "truncate with a prompt": ("bert", {"head__prompt": "letter from a friend: {text} (happy or not)"}),
    "prompt without space": ("qwen2", {"head__prompt": 'the "letter":\n{text}'}),
    "head_tail": ("llama", {"data__long_text": "head_tail"}),
    "chunk": ("gemma3", {"data__long_text": "chunk", "data__chunk_stride": 5, "data__max_chunks": None}),
    "chunk, some, greatest": ("bert", {"data__long_text": "chunk", "data__chunk_combine": "max"}),
    "chunk, probabilities": (
        "qwen2",
        {"data__long_text": "chunk", "data__chunk_combine": "mean_proba", "head__prompt": "read: {text}"},
    ),
    "label tokens": ("llama", {"head__kind": "label_tokens", "data__long_text": "head_tail"}),
    "label tokens, nothing after the text": (
        "llama",
        {"head__kind": "label_tokens", "head__prompt": "{labels}? {text}"},
    ),
}


def test_snippet_reads_the_same(short, documents, tiny_model, snippet_answers, tmp_path):
    """Logits of long, short and empty texts by each README's snippet, without lora_cls, are the run's own."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    speaking = str(tmp_path / "speaking")  # a llama with an output head
    AutoModelForCausalLM.from_pretrained(tiny_model("llama")).save_pretrained(speaking)
    AutoTokenizer.from_pretrained(tiny_model("llama")).save_pretrained(speaking)
    texts = [*documents["text"][:6], "the dog", ""]
    folders, ours = {}, {}
    for i, (name, (kind, overrides)) in enumerate(SNIPPETS.items()):
        if "head__kind" in overrides:
            overrides = {"backbone__name_or_path": speaking} | overrides
        run = cross_validate(short(kind, "truncate", **overrides), documents, out=tmp_path / str(i), folds=[0])
        folders[name] = run.path
        ours[name] = Classifier.load(run)._predictor.predict(run.fold(0), texts)
    found = snippet_answers(folders, texts)
    assert found.keys() == SNIPPETS.keys()
    for name, answer in found.items():
        np.testing.assert_allclose(answer, ours[name], atol=1e-4, err_msg=name)


def test_snippet_of_a_longformer(small_recipe, documents, tiny_model, blocks, tmp_path):
    """Global attention on the first token, in the run and in its README's snippet."""
    import torch
    from transformers import AutoModel, AutoTokenizer, LongformerConfig

    torch.manual_seed(0)
    AutoTokenizer.from_pretrained(tiny_model("roberta")).save_pretrained(tmp_path / "model")
    config = LongformerConfig(
        vocab_size=400, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=130, attention_window=[16], pad_token_id=1, initializer_range=0.1,
    )  # fmt: skip
    AutoModel.from_config(config).save_pretrained(tmp_path / "model")
    overrides = {
        "head__pooling": "cls",
        "backbone__attn_implementation": "eager",
        "train__num_train_epochs": 1,
        "data__max_length": 100,
    }
    recipe = small_recipe("roberta", backbone__name_or_path=str(tmp_path / "model"), **overrides)
    run = cross_validate(recipe, documents, out=tmp_path / "run", folds=[0])
    code = blocks(run.path)[0]
    texts = [*documents["text"][:4], "the dog"]
    ours = Classifier.load(run)._predictor.predict(run.fold(0), texts)
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(run.path)
        exec(code, names)
        np.testing.assert_allclose(names["logits"](texts).numpy(), ours, atol=1e-5)
        plain = {}
        exec(re.sub(r", global_attention_mask=.*\)\.last", ").last", code), plain)
        assert np.abs(plain["logits"](texts).numpy() - ours).max() > 1e-3  # the comparison can fail


def test_combined_as_the_recipe_says(short, documents, tmp_path):
    """The greatest of the chunks' logits, where the recipe asks for it."""
    run = cross_validate(short("qwen2", "chunk", data__chunk_combine="max"), documents, out=tmp_path / "run", folds=[0])
    predictor = Classifier.load(run)._predictor
    texts = list(documents["text"][:2])
    found, session = predictor.predict(run.fold(0), texts), predictor.session
    tokens = session.encode(texts)
    pieces = predict_logits(session.model(), tokens, batches=session.batches, pad_id=session.head.pad_id)
    assert np.array_equal(found, Sigmoid().combine_pieces(pieces, tokens.text, np.ones(3), "max"))
    assert np.array_equal(found[1], pieces[tokens.text == 1].max(axis=0))
