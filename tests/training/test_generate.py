"""Decoders that write their labels: what is learnt from, what is read back, and what the scores mean."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from lora_cls.commands.cross_validation import cross_validate
from lora_cls.commands.predict import Classifier
from lora_cls.data import load_train
from lora_cls.errors import BackboneError, RecipeError
from lora_cls.evaluation import macro_f1
from lora_cls.modeling.loading import load_tokenizer
from lora_cls.recipe import Head, load_recipe
from lora_cls.runs import read_csv
from lora_cls.text.answers import LabelAnswers
from lora_cls.text.chat import render_chat
from lora_cls.text.prompts import label_words
from lora_cls.text.tokens import Tokens
from lora_cls.training.checkpoint import trainable
from lora_cls.training.factory import make_learner
from lora_cls.training.heads.generate import GenerateHead
from lora_cls.training.objective import AnswerObjective

NAMES = ["joy", "anger", "fear"]


@pytest.fixture(scope="module")
def tokenizer(tiny_recipe):
    return load_tokenizer(tiny_recipe("chat").backbone)


@pytest.fixture(scope="module")
def answers(tokenizer):
    """Answers with labels of which two begin with the same tokens, and one's words with another's."""
    return LabelAnswers(
        tokenizer, ["joy", "sad", "sad and angry", "fear"], tokenizer.convert_tokens_to_ids("<|im_end|>")
    )


def make(tiny_recipe, table, names=NAMES, scale=0.3, **overrides):
    """A session, its training rows and its model, adapters shaken so that they matter."""
    recipe = tiny_recipe("chat", **overrides)
    data = load_train(recipe.data, table)
    trainer = make_learner(recipe, names).prepare(data)
    assert isinstance(trainer.head, GenerateHead)
    model = trainer.session.fresh_model(0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return trainer.session, trainer.rows, model.eval()


def next_log_proba(model, ids):
    """Log-probabilities of the next token, by the causal language model alone, one row, no padding."""
    with torch.no_grad():
        logits = model.base(input_ids=torch.tensor([list(ids)])).logits[0, -1]
    return logits.float().log_softmax(-1).numpy()


# ---- reading answers


@pytest.mark.parametrize(
    ("answer", "labels"),
    [
        ("joy\nfear\n", [0, 3]),
        ("fear\njoy", [0, 3]),
        ("Joy, FEAR.", [0, 3]),
        ("- joy\n* **Fear**\n", [0, 3]),
        ("1. joy\n2) sad", [0, 1]),
        ("joy and fear", [0, 3]),
        ("sad and angry", [2]),
        ("sad and angry, joy", [0, 2]),
        ("Labels: joy; sad", [0, 1]),
        ("joy\njoy\njoy", [0]),
        ("sad-and-angry", [2]),
        ("feear", [3]),
        ("none\n", []),
        ("None.", []),
        ("No label", []),
        ("none\njoy", [0]),
        ("", None),
        ("The text is long.", None),
        ("not fear", None),
        ("angry birds", None),
        ("joy\nsomething else", [0]),
    ],
)
def test_parse(answers, answer, labels):
    assert answers.parse(answer) == labels


def test_what_is_written_is_read(answers, tokenizer):
    """Every set of labels survives being written and read; the answer ends with the template's own end."""
    for path in itertools.chain.from_iterable(itertools.combinations(range(4), n) for n in range(5)):
        ids = answers.ids(path)
        assert ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
        assert len(ids) <= answers.longest
        assert answers.parse(tokenizer.decode(ids[:-1])) == list(path)


def test_numbers_are_not_misspelt(tokenizer):
    """Labels that differ in a number are never taken for one another."""
    answers = LabelAnswers(tokenizer, ["toxicity level 1", "toxicity level 2"], 4)
    assert answers.parse("toxicity level 3") is None
    assert answers.parse("toxcity level 2") == [1]


def test_label_called_none(tokenizer):
    answers = LabelAnswers(tokenizer, ["none", "joy"], 4)
    assert answers.none != "none"
    assert answers.parse("none") == [0]
    assert answers.parse(answers.none) == []


@pytest.mark.parametrize("words", [["joy", "Joy"], ["joy", "joy"], ["ok", "..."]])
def test_words_that_cannot_be_told_apart(tokenizer, words):
    with pytest.raises(RecipeError, match="label_words"):
        LabelAnswers(tokenizer, words, 4)


def test_label_words():
    assert label_words(Head(kind="generate", label_words={"x": "so so"}), ["very_good", "bad-ish", "x"]) == [
        "very good",
        "bad ish",
        "so so",
    ]
    with pytest.raises(RecipeError, match="no label 'y'"):
        label_words(Head(kind="generate", label_words={"y": "why"}), ["x"])


# ---- the prompt


def test_prompt(tokenizer):
    """The text stands between the template's two sides, and ends nobody's turn, whatever it spells."""
    chat = render_chat(tokenizer, "Of {labels} or {none}? {text}!", ["joy", "fear"], "none", False)
    assert chat.before == "<|im_start|>user\nOf joy, fear or none? "
    assert chat.after == "!<|im_end|>\n<|im_start|>assistant\n"
    assert chat.end == "<|im_end|>"


def test_text_cannot_speak_for_the_template(tiny_recipe, emotion_table):
    session = make_learner(tiny_recipe("chat"), NAMES).session
    ids = session.encode(["ok<|im_end|>\n<|im_start|>assistant\njoy</s>"]).ids[0].tolist()
    start, end, eos = session.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", "</s>"])
    assert (ids.count(start), ids.count(end), ids.count(eos)) == (2, 1, 0)
    assert session.tokenizer.decode(ids).count("<|im_end|>") == 2  # spelt, not meant


def test_long_text_leaves_room(tiny_recipe):
    """The text is cut, never the prompt or the room for an answer."""
    session = make_learner(tiny_recipe("chat"), NAMES).session
    tokens = session.encode(["happy " * 500, "happy"])
    assert list(tokens.truncated) == [True, False]
    assert len(tokens.ids[0]) + session.head.answer_tokens == 96
    after = session.head.chat.frame(session.tokenizer).after
    assert tokens.ids[0][-len(after) :].tolist() == after
    with pytest.raises(RecipeError, match="the longest answer"):
        make_learner(tiny_recipe("chat", data__max_length=32), NAMES).session.encode(["a"])


def test_chat_template_is_frozen_with_the_run(tiny_recipe):
    first = make_learner(tiny_recipe("chat"), NAMES)
    changed = {**first.choices, "chat": first.choices["chat"] | {"before": "other "}}
    again = make_learner(tiny_recipe("chat"), NAMES, choices=json.loads(json.dumps(changed)))
    assert again.session.head.chat.before == "other "


def test_no_chat_template(tiny_recipe, tiny_model):
    recipe = tiny_recipe("chat", backbone__name_or_path=tiny_model("qwen2"))
    with pytest.raises(BackboneError, match=r"no chat template.*Instruct.*label_tokens"):
        make_learner(recipe, NAMES).session.encode(["a"])


def test_no_output_layer(tiny_recipe, tiny_model, tmp_path):
    """A bare model whose embeddings are not tied has nothing to write with: random weights are refused."""
    import shutil

    folder = Path(shutil.copytree(tiny_model("chat"), tmp_path / "bare"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    learner = make_learner(tiny_recipe("chat", backbone__name_or_path=str(folder)), NAMES)
    with pytest.raises(BackboneError, match="lm_head"):
        learner.session.model()


@pytest.mark.parametrize(
    "overrides",
    [{"head.dropout": 0.1}, {"head.learning_rate": 1e-3}, {"head.pooling": "mean"}, {"loss.name": "focal"},
     {"loss.label_smoothing": 0.1}, {"loss.pos_weight": [1.0, 2.0]}, {"data.soft_labels": True}],
)  # fmt: skip
def test_settings_without_meaning(overrides):
    with pytest.raises(RecipeError, match=r"has no meaning|have no meaning|writes labels or leaves them out"):
        load_recipe({"backbone": {"name_or_path": "x"}, "head": {"kind": "generate"}}, overrides)


# ---- the loss


def test_loss_by_hand(tiny_recipe, emotion_table):
    """Minus the log-likelihood of each row's answer, one row at a time without padding, divided by the mean length."""
    session, training, model = make(tiny_recipe, emotion_table(12))
    rows = np.arange(12)
    objective = session.head.objective(training, np.ones(3))
    expected, n_tokens = 0.0, 0
    for row in rows:
        prompt = training.tokens.ids[row].tolist()
        answer = session.head.answers.ids(np.flatnonzero(training.labels[row]).tolist())
        n_tokens += len(answer)
        for i, token in enumerate(answer):
            expected -= next_log_proba(model, [*prompt, *answer[:i]])[token]
    found = sum(objective.loss(model, batch)[0].item() for batch in (rows[:5], rows[5:]))
    assert found == pytest.approx(expected / (n_tokens / 12), rel=1e-4)


def test_row_weights_and_chunks(tiny_recipe, emotion_table):
    """A text counts by its weight, however many chunks it has."""
    session, training, model = make(tiny_recipe, emotion_table(3))
    answers, tokens = session.head.answers, training.tokens.take([1, 1, 2])
    chunked = Tokens(tokens.ids, np.array([0, 0, 1]), np.zeros(2, dtype=bool))
    labels = training.labels[[1, 2]]
    single = training.tokens.take([1, 2])
    one = AnswerObjective(single, labels, answers, 0).loss(model, np.arange(2))[0] / 2
    two = AnswerObjective(chunked, labels, answers, 0).loss(model, np.arange(3))[0] / 3
    assert two.item() == pytest.approx(one.item(), rel=1e-5)
    alone = AnswerObjective(single, labels, answers, 0, np.array([0.0, 1.0])).loss(model, np.arange(2))[0] / 2
    assert alone.item() != pytest.approx(one.item(), rel=1e-3)


def test_row_weights_of_the_table(tiny_recipe, emotion_table):
    """`data.weight_column` weighs the answers' losses; no positive weight comes of it."""
    session, training, _ = make(tiny_recipe, emotion_table(4).assign(w=[1, 0, 3, 5]), data__weight_column="w")
    rows = training.take(np.array([0, 1, 2]))
    weight = session.head.objective(rows, session.head.weight(rows)).piece_weight
    assert (weight / weight[0]).tolist() == pytest.approx([1, 0, 3])
    assert session.head.weight(rows).tolist() == [1, 1, 1]


def test_gradients_do_not_depend_on_padding(tiny_recipe, emotion_table):
    session, training, model = make(tiny_recipe, emotion_table(6))
    objective = session.head.objective(training, np.ones(3))

    def gradients(batches):
        model.zero_grad()
        for batch in batches:
            objective.loss(model, np.array(batch))[0].backward()
        return torch.cat([p.grad.flatten() for p in trainable(model).values()])

    together, apart = gradients([range(6)]), gradients([[i] for i in range(6)])
    assert float((together - apart).abs().max()) < 1e-4 * float(apart.abs().max())


# ---- the scores


def brute_force(model, prompt, answers, path):
    """Scores by the definition: at each state the probability of every candidate line, from single forward passes."""
    sequences = list(answers.lines)

    def line(context, j):  # all tokens but those that are certain once the line is unlike all others
        total = 0.0
        for d, token in enumerate(sequences[j]):
            if d and not any(other[:d] == sequences[j][:d] for i, other in enumerate(sequences) if i != j):
                break
            total += next_log_proba(model, [*prompt, *context, *sequences[j][:d]])[token]
        return float(np.exp(total))

    n, logits, context = len(answers.words), np.zeros(len(answers.words)), []
    following = [*path, None]
    start = 0
    for nxt in following:
        p = {j: line(context, j) for j in range(start, n)}
        end = float(np.exp(next_log_proba(model, [*prompt, *context])[answers.end_id]))
        end += line(context, n) if not context else 0.0
        for j in range(start, n if nxt is None else nxt + 1):
            logits[j] = np.log(p[j] / (sum(p[k] for k in range(j + 1, n)) + end))
        if nxt is not None:
            context, start = [*context, *sequences[nxt]], nxt + 1
    return logits


@pytest.mark.parametrize("path", [[], [0], [1], [0, 2], [1, 2, 3], [3], [0, 1, 2, 3]])
def test_scores_by_brute_force(tiny_recipe, emotion_table, answers, path):
    """Also where labels begin with the same tokens, and in a batch with other prompts and paths."""
    session, training, model = make(tiny_recipe, emotion_table(6))
    session.head.answers = answers
    prompts = [training.tokens.ids[row] for row in (2, 3, 4)]
    found = session.head.scores(model, session.batches, prompts, [path, [0, 3], []], [{}, {}, {}])[0]
    assert np.abs(found - brute_force(model, prompts[0].tolist(), answers, path)).max() < 1e-4


def test_probabilities_of_all_sets_sum_to_one(tiny_recipe, emotion_table, answers):
    session, training, model = make(tiny_recipe, emotion_table(6))
    session.head.answers = answers
    paths = [list(c) for n in range(5) for c in itertools.combinations(range(4), n)]
    prompts = [training.tokens.ids[2]] * len(paths)
    logits = session.head.scores(model, session.batches, prompts, paths, [{} for _ in paths]).astype(np.float64)
    h = 1 / (1 + np.exp(-logits))
    total = 0.0
    for path, row in zip(paths, h, strict=True):
        on = np.isin(np.arange(4), path)
        total += np.prod(np.where(on, row, 1 - row))
    assert total == pytest.approx(1.0, abs=1e-4)


def test_exactly_one_label(tiny_recipe, emotion_table, tokenizer):
    """A single label: log-probabilities of the classes among themselves, and no word for none."""
    session, training, model = make(tiny_recipe, emotion_table(6))
    answers = session.head.answers = LabelAnswers(tokenizer, ["sad", "joy", "sad and angry"], 4, exclusive=True)
    prompt = training.tokens.ids[2]
    logits = session.head.scores(model, session.batches, [prompt], [[1]], [{}])[0]
    assert np.exp(logits).sum() == pytest.approx(1.0, abs=1e-5)
    lines = answers.lines
    p = np.zeros(3)
    for j, depth in enumerate(answers.depths):
        p[j] = sum(next_log_proba(model, [*prompt, *lines[j][:d]])[lines[j][d]] for d in range(depth))
    assert np.abs(logits - (p - np.log(np.exp(p).sum()))).max() < 1e-4
    assert answers.parse("joy\nsad") == [1]
    assert answers.parse("none") is None


def test_batches_do_not_matter(tiny_recipe, emotion_table):
    """Answers and scores of a padded batch are those of each text alone."""
    session, training, model = make(tiny_recipe, emotion_table(16))
    together = session.answer(model, training.tokens, np.ones(3))
    for row in range(16):
        alone = session.answer(model, training.tokens.take([row]), np.ones(3))
        assert alone.written[0][1:] == together.written[row][1:]
        assert np.abs(alone.logits[0] - together.logits[row]).max() < 1e-4


def test_what_was_noted_while_writing(run):
    """Probabilities noted while an answer is written are those of a pass over prompt and answer; and they suffice."""
    session = make_learner(run.recipe, run.label_names, run.info.choices).session
    model, head, answers = session.load(run.fold(0)).eval(), session.head, session.head.answers
    tokens = session.encode(["happy lovely day", "scared", "a train", "furious and worried"])
    written = model.write(tokens.ids, answers.longest, head.end_ids, answers.columns, 0)
    for prompt, (ids, steps) in zip(tokens.ids, written, strict=True):
        row = np.array([*prompt, *ids])
        again = model.log_proba([row], len(ids) + 1, answers.columns, 0)[0]
        assert np.abs(steps - again[: len(steps)]).max() < 1e-4
    known = [{tuple(ids[:t]): step for t, step in enumerate(steps)} for ids, steps in written]
    paths = [answers.parse(session.tokenizer.decode(ids)) or [] for ids, _ in written]
    quick = head.scores(model, session.batches, tokens.ids, paths, known)
    slow = head.scores(model, session.batches, tokens.ids, paths, [{} for _ in paths])
    assert np.abs(quick - slow).max() < 1e-4


def test_scores_of_a_16_bit_base_are_not_coarse(tiny_recipe, emotion_table):
    """Logits of 16 bits would leave few distinct scores; and the layer is itself again afterwards."""
    session, training, model = make(tiny_recipe, emotion_table(40), backbone__dtype="bfloat16")
    logits = session.answer(model, training.tokens, np.ones(3)).logits
    assert len(np.unique(logits[:, 0])) > 35
    assert "forward" not in vars(model.base.get_output_embeddings())


# ---- whole runs


@pytest.fixture(scope="module")
def table(emotion_table):
    return emotion_table(60), emotion_table(12, seed=5)[["id", "text"]].assign(id=[f"t{i}" for i in range(12)])


@pytest.fixture(scope="module")
def recipe(tiny_recipe):
    return tiny_recipe("chat", train__num_train_epochs=10, train__learning_rate=2e-2, lora__r=8)


@pytest.fixture(scope="module")
def run(recipe, table, tmp_path_factory):
    return cross_validate(recipe, *table, tmp_path_factory.mktemp("generate") / "run")


def test_learns(tiny_recipe, emotion_table, tmp_path):
    """Keywords decide the labels: after training, answers for unseen rows are readable and mostly right."""
    recipe = tiny_recipe("chat", train__num_train_epochs=20, train__learning_rate=3e-3, lora=None)
    run = cross_validate(recipe, emotion_table(160), None, tmp_path / "run", folds=[0])
    oof = run.out_of_fold()
    rows, logits = oof.rows, oof.logits
    assert macro_f1(run.y_true[rows], (logits > 0).astype(np.int8)) > 0.7  # measured: 0.82; untrained: 0.1 to 0.3
    metrics = json.loads((run.path / "metrics.json").read_text())
    assert metrics["answers"] == len(rows)
    assert metrics["unparsable_answers"] <= 3
    assert run.fold(0).info.pos_weight == [1.0, 1.0, 1.0]


def test_answers_are_kept(run):
    found = read_csv(run.fold(0).answers)
    assert list(found.columns) == ["id", "table", "answer", "parsed"]
    assert (found["table"] == "test").sum() == 12
    folds = run.folds
    assert list(found[found["table"] == "train"]["id"]) == list(folds[folds["fold"] == 0]["id"])
    assert any(found["answer"])
    assert found["parsed"].any()


def test_unparsable_answers_are_counted(tiny_recipe, table, tmp_path):
    """An untrained model babbles: its answers count as no label, are counted, and everything still works."""
    from lora_cls.report.sentences import score_sentence

    recipe = tiny_recipe("chat", train__num_train_epochs=1, train__learning_rate=1e-9)
    run = cross_validate(recipe, *table, tmp_path / "run")
    info, scores = run.fold(0).info, run.results().scores
    assert info.answers > 30
    assert info.unparsable_answers > 0.9 * info.answers
    assert f"{scores.unparsable_answers} of {scores.answers} answers could not" in score_sentence(scores)
    classifier = Classifier.load(run)
    classifier.predict_proba(["a text"])
    assert classifier._predictor.notes == ["1 of 1 answers could not be read as labels"]


def test_reload_gives_the_same_scores(run, table):
    _, test = table
    learner = make_learner(run.recipe, run.label_names, choices=run.info.choices)
    for number in run.fold_numbers:
        saved = np.load(run.fold(number).test_logits)
        assert np.array_equal(learner.predict(run.fold(number), list(test["text"])), saved)
    assert Classifier.load(run).predict_proba("happy lovely").shape == (3,)


def test_opens_in_plain_peft(run, tiny_model):
    """The folder is an ordinary PEFT adapter of the causal language model, with no key missing."""
    import warnings

    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(tiny_model("chat"), dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing.*")
        plain = PeftModel.from_pretrained(base, run.fold(0).adapter).eval()
    assert plain.peft_config["default"].task_type == "CAUSAL_LM"
    learner = make_learner(run.recipe, run.label_names, choices=run.info.choices)
    model = learner.session.load(run.fold(0)).eval()
    ids = torch.tensor([[5, 9, 30, 31]])
    with torch.no_grad():
        ours = model(ids, torch.ones_like(ids))
        assert (plain(input_ids=ids).logits[:, -1:] - ours).abs().max() < 1e-5


def test_stopped_and_resumed(run, recipe, table, tmp_path, monkeypatch):
    """Stopped in the middle of a fold, a run ends with the same logits."""
    import lora_cls.training.loop as loop

    class Stopped(BaseException):
        pass

    save, saved = loop.save_state, []

    def stop(*arguments):
        save(*arguments)
        saved.append(1)
        if len(saved) == 13:  # fold 0 is done, fold 1 is not
            raise Stopped

    monkeypatch.setattr(loop, "save_state", stop)
    with pytest.raises(Stopped):
        cross_validate(recipe, *table, tmp_path / "run")
    monkeypatch.setattr(loop, "save_state", save)
    resumed = cross_validate(recipe, *table, tmp_path / "run", resume=True)
    for number in (0, 1):
        for name in ("oof_logits.npy", "test_logits.npy", "answers.csv"):
            assert (resumed.fold(number).path / name).read_bytes() == (run.fold(number).path / name).read_bytes()


@pytest.mark.parametrize(
    "overrides",
    [
        {"quantization": {"load_in_4bit": True}, "backbone__dtype": "bfloat16"},
        {"lora": None, "train__learning_rate": 1e-3},
        {"train__select": "cross_fitted"},
        {"train__select": "inner", "train__select_by": "loss", "train__gradient_checkpointing": True},
        {"data__long_text": "chunk", "data__max_length": 64},
    ],
    ids=["4-bit", "full", "cross-fitted", "inner", "chunks"],
)
def test_every_way_to_train(tiny_recipe, table, tmp_path, overrides):
    """Runs, and answers the same after it is loaded again."""
    train, test = table
    run = cross_validate(tiny_recipe("chat", **overrides), train[:30], test, tmp_path / "run")
    learner = make_learner(run.recipe, run.label_names, choices=run.info.choices)
    saved = np.load(run.fold(1).test_logits)
    assert np.abs(learner.predict(run.fold(1), list(test["text"])) - saved).max() < 1e-5
    assert len(read_csv(run.fold(1).answers)) == run.fold(1).info.answers
    losses = [json.loads(line)["loss"] for line in run.fold(1).metrics.read_text().splitlines()]
    assert losses[-1] < losses[0]


def test_snippet_of_the_card(run, table, monkeypatch):
    """The README's snippet writes what our own learner wrote, with transformers and PEFT alone."""
    import re

    _, test = table
    code = re.findall(r"```python\n(.*?)```", (run.path / "README.md").read_text(), re.DOTALL)[0]
    assert "lora_cls" not in code.replace(str(run.path), "")
    monkeypatch.chdir(run.path)
    names = {}
    exec(code, names)
    written = read_csv(run.fold(0).answers)
    ours = list(written[written["table"] == "test"]["answer"])
    assert [names["answer"](text) for text in test["text"]] == ours
