"""The estimate of a run: by a clock of our own, over its real batches, in every way of training."""

import math

import numpy as np
import pytest
import torch

from lora_cls.commands.check import check
from lora_cls.data import load_train
from lora_cls.data.folds import make_folds
from lora_cls.errors import RecipeError, TrainingError
from lora_cls.terminal import print_check
from lora_cls.text.tokens import shuffled_batches
from lora_cls.training import estimate
from lora_cls.training.checkpoint import snapshot
from lora_cls.training.estimate import _Curve, _measure, estimate_run
from lora_cls.training.factory import make_learner
from lora_cls.training.loop import epoch_seed
from lora_cls.training.transformer import TransformerTrainer


def padded(lengths):
    return -(-int(max(lengths)) // 4) * 4


@pytest.fixture
def prepared(emotion_table):
    """Function that gives a trainer that has measured, and the folds of its 60 rows."""

    def make(recipe):
        data = load_train(recipe.data, emotion_table(60), emotion_table(9, seed=3)[["id", "text"]])
        recipe = recipe.model_copy(update={"task": "multi_label"})
        test = load_train(recipe.data, emotion_table(9, seed=3))
        trainer = make_learner(recipe, data.label_names).prepare(data, test)
        trainer.measure()
        return trainer, make_folds(recipe, data)

    return make


def test_curve_by_hand():
    """Between measured lengths by straight lines; an incomplete batch by its share of rows; the first time left out."""
    curve = _Curve({16: [9.0, 2.0, 2.2, 2.1], 8: [1.0], 32: [7.0, 5.0]}, size=4)
    assert curve.lengths == [8, 16, 32]
    assert curve.seconds == [1.0, 2.1, 5.0]
    assert curve.over(np.array([24, 8, 99]), np.array([4, 2, 4])) == pytest.approx((2.1 + 5) / 2 + 0.5 + 5)
    assert curve.sorted(np.array([8, 32, 8, 32, 32, 32, 8])) == pytest.approx(5 + 0.75)
    assert curve.sorted(np.array([], dtype=int)) == 0


def test_measures_the_longest_first():
    """What cannot fit shows at once, and batches from short to long are asked in rounds."""
    lengths = np.sort(np.random.default_rng(0).integers(4, 80, size=400))
    batches, asked = [np.arange(i, i + 8) for i in range(0, 400, 8)], []

    def run(rows):
        asked.append(padded(lengths[rows]))
        return 0.01 * asked[-1]

    curve = _measure(run, batches, lengths, 8, budget=60)
    first = asked[: len(curve.lengths)]
    assert first == sorted(first, reverse=True)
    assert first[0] == padded(lengths)
    assert asked == first * estimate.ROUNDS
    assert len(_measure(run, batches, lengths, 8, budget=-1).lengths) == len(first)  # one round, whatever it takes


def test_averages_are_measured(tiny_recipe, prepared, monkeypatch):
    """Where weights are averaged, every timed step takes its weights in, and all averages are written as at the end."""
    recipe = tiny_recipe("llama", train__ema_decay=0.9, train__average_epochs=2)
    trainer, fold = prepared(recipe)
    steps, written, save = [], [], estimate.save_state

    def take_in(self, step):
        steps.append(step)

    def save_state(*arguments):
        written.append(arguments[-1])
        save(*arguments)

    monkeypatch.setattr(estimate, "BUDGET", -1.0)  # one round
    monkeypatch.setattr(estimate.WeightAverages, "after_step", take_in)
    monkeypatch.setattr(estimate, "save_state", save_state)
    found = estimate_run(trainer, fold, [0, 1], load_seconds=0.0)
    assert len(steps) == found.steps > 0
    assert [sorted(averages) for averages in written] == [["mean", "moving"]]


def test_counts_up_real_batches(tiny_recipe, prepared, monkeypatch):
    """With steps that take a known time, the estimate is that time over the batches of all folds and epochs."""
    recipe = tiny_recipe("llama", cv__n_splits=3, train__num_train_epochs=4, train__gradient_accumulation_steps=2)
    trainer, fold = prepared(recipe)
    clock, plain = [0.0], estimate.accumulated_loss
    answered = trainer.session.answer

    def loss(model, objective, group, accelerator):
        found = plain(model, objective, group, accelerator)
        clock[0] += 1e-3 * sum(mask.size for mask in found[1])
        return found

    def answer(model, tokens, weight):
        clock[0] += 1e-4 * len(tokens.ids) * padded(tokens.lengths)
        return answered(model, tokens, weight)

    def update(*arguments):
        clock[0] += 0.5

    monkeypatch.setattr(estimate, "_now", lambda device: clock[0])
    monkeypatch.setattr(estimate, "accumulated_loss", loss)
    monkeypatch.setattr(estimate, "update", update)
    monkeypatch.setattr(trainer.session, "answer", answer)
    found = estimate_run(trainer, fold, [0, 1, 2], load_seconds=7.0)

    train, predict = 0.0, 0.0
    for number in range(3):
        lengths = trainer.rows.tokens.lengths[fold != number]
        for epoch in range(1, 5):
            batches = shuffled_batches(lengths, 8, np.random.default_rng(epoch_seed(42, number, epoch)))
            train += 1e-3 * sum(len(rows) * padded(lengths[rows]) for rows in batches)
            train += 0.5 * math.ceil(len(batches) / 2)
        for held in (trainer.rows.tokens.lengths[fold == number], trainer.test_tokens.lengths):
            descending = np.sort(held)[::-1]
            parts = [descending[i : i + 32] for i in range(0, len(held), 32)]
            predict += 1e-4 * sum(len(part) * padded(part) for part in parts)
    assert found.seconds["train"] == pytest.approx(train, rel=0.1)
    assert found.seconds["predict"] == pytest.approx(predict, rel=0.25)  # batches of a few rows, rounded up to 8 tokens
    assert found.seconds["load"] == 7.0
    assert found.seconds["score"] == 0.0
    assert found.train_rows_per_second == pytest.approx(3 * 40 * 4 / found.seconds["train"], rel=0.01)
    assert (found.folds, found.epochs) == (3, 4)
    assert found.total == pytest.approx(sum(found.seconds.values()))


@pytest.mark.parametrize("overrides", [{}, {"lora": None}], ids=["LoRA", "full"])
def test_measuring_trains_nothing(tiny_recipe, prepared, overrides):
    """The measured steps leave every weight as it was."""
    recipe = tiny_recipe("bert", **overrides)
    (trainer, fold), (untouched, _) = prepared(recipe), prepared(recipe)
    estimate_run(trainer, fold, [0, 1], 0.0)
    expected = snapshot(untouched.begin_fold(0, np.flatnonzero(fold != 0))[0])
    for name, weights in snapshot(trainer.session.model()).items():
        torch.testing.assert_close(weights, expected[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize(
    ("kind", "overrides", "scored"),
    [
        ("llama", {"train__select": "inner"}, True),
        ("bert", {"train__select": "cross_fitted", "lora": None}, True),
        ("bert", {"train__select": "scored_fold"}, True),
        ("chat", {}, False),
        ("gemma3", {"head": {"kind": "label_tokens", "prompt": "{text} label:"}}, False),
        ("gemma3", {"quantization": {"load_in_4bit": True}}, False),
        ("llama", {"lora": {"r": 4, "top_layers": 0.5}}, False),
        ("bert", {"data__max_length": 12, "data__long_text": "chunk"}, False),
    ],
)
def test_every_way(tiny_recipe, prepared, kind, overrides, scored):
    """Heads, ways to choose an epoch, quantized bases and chunks: every phase that the run has takes time."""
    trainer, fold = prepared(tiny_recipe(kind, **overrides))
    found = estimate_run(trainer, fold, [0, 1], 1.0)
    assert set(found.seconds) == {"load", "tokenize", "prefix", "train", "score", "predict", "save"}
    assert (found.seconds["prefix"] > 0) == ("top_layers" in str(overrides))
    assert all(found.seconds[phase] > 0 for phase in ("load", "train", "predict", "save"))
    assert (found.seconds["score"] > 0) == scored
    assert found.steps >= len(found.lengths) >= 1
    assert math.isfinite(found.total)


def test_check_says_it(tiny_recipe, emotion_table, capsys):
    """Minutes in all and by phase, what was measured, and for which folds; not for the classical baseline."""
    found = check(tiny_recipe("llama"), emotion_table(40), folds=[1])
    assert found.estimate.folds == 1
    assert found.estimate.peak_memory_bytes > 2**27
    print_check(found)
    out = capsys.readouterr().out
    assert "The run takes about " in out
    assert "(1 fold of 2 epochs)" in out
    assert "rows/s over all batches" in out
    assert check(tiny_recipe("llama"), emotion_table(40), measure=False).estimate is None
    with pytest.raises(RecipeError, match="there is no fold 5"):
        check(tiny_recipe("llama"), emotion_table(40), folds=[5])


def test_batch_that_does_not_fit(tiny_recipe, emotion_table, monkeypatch):
    """Where the longest batch fills the memory, the error says so before the run, and what to set."""

    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(estimate, "accumulated_loss", full)
    with pytest.raises(TrainingError, match=r"measuring before the run.*per_device_train_batch_size=4"):
        check(tiny_recipe("llama"), emotion_table(40))


def test_model_that_is_too_large(tiny_recipe, emotion_table, monkeypatch):
    """Nothing is loaded where the memory would not do."""
    import psutil

    class Free:
        available = 2**20

    def load(self):
        raise AssertionError("loaded")

    monkeypatch.setattr(psutil, "virtual_memory", Free)
    monkeypatch.setattr(TransformerTrainer, "measure", load)
    found = check(tiny_recipe("llama"), emotion_table(40))
    assert found.estimate is None
    assert any("0.0 GiB are free here: no step was tried" in note for note in found.notes)
