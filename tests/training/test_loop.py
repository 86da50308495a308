"""The loop of one fold: what is random derives from the seed, the fold and the epoch, and from nothing else."""

import gc
import json
import math
import weakref

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

from lora_cls.data import load_train
from lora_cls.errors import LoraClsError, RecipeError, RunError, TrainingError
from lora_cls.evaluation.probabilities import corrected_probabilities
from lora_cls.modeling.adapter import build_model, reset_model, trainable_head
from lora_cls.modeling.loading import load_base, load_tokenizer
from lora_cls.recipe import Data, load_recipe
from lora_cls.runs import FoldFolder
from lora_cls.text.tokens import encode, pad_token_id, shuffled_batches
from lora_cls.training.batches import EvalBatches
from lora_cls.training.checkpoint import load_state, snapshot, trainable
from lora_cls.training.loop import epoch_seed, make_accelerator, parameter_groups, predict_logits, schedule, train_fold
from lora_cls.training.losses import pos_weight, validation_loss
from lora_cls.training.objective import ClassificationObjective
from lora_cls.training.progress import Progress
from lora_cls.training.selection import Score
from lora_cls.training.session import SHORT_STEPS
from lora_cls.training.transformer import TransformerLearner

CPU = torch.device("cpu")


class Setup:
    """A fresh model and the rows that train it."""

    def __init__(self, recipe, table, folder):
        self.recipe, self.folder = recipe, folder
        self.model = build_model(load_base(recipe.backbone, None, torch.float32, CPU), recipe, 3)
        reset_model(self.model, recipe, 0)
        tokenizer = load_tokenizer(recipe.backbone)
        self.pad_id = pad_token_id(tokenizer)
        self.tokens = encode(tokenizer, list(table["text"]), recipe.data)
        self.labels = table[["joy", "anger", "fear"]].to_numpy(copy=True)
        self.accelerator = make_accelerator(torch.float32, CPU)
        self.state_file, self.metrics_file = folder / "state.safetensors", folder / "metrics.jsonl"

    def train(self, fold=1, progress=None, **options):
        objective = ClassificationObjective(
            self.tokens, self.labels, np.array([1.0, 2.0, 3.0]), self.recipe, self.pad_id
        )
        return train_fold(
            self.model, self.recipe, objective, fold=fold, accelerator=self.accelerator, state_file=self.state_file,
            metrics_file=self.metrics_file, progress=progress or Progress(0, show=False), **options,
        )  # fmt: skip

    @property
    def records(self):
        return [json.loads(line) for line in self.metrics_file.read_text().splitlines()]

    def logits(self):
        return predict_logits(self.model, self.tokens, batches=EvalBatches(8), pad_id=self.pad_id)


@pytest.fixture
def setup(tiny_recipe, emotion_table, tmp_path):
    """`setup(kind, name, **overrides)`: a `Setup` in a folder of its own, on 24 rows."""

    def make(kind="llama", name="a", **overrides):
        (tmp_path / name).mkdir(exist_ok=True)
        return Setup(tiny_recipe(kind, **overrides), emotion_table(24), tmp_path / name)

    return make


# Schedule, seeds, batches


def test_schedule_by_hand():
    """Warm-up rises to 1, the decay ends just above 0, and a constant stays."""
    linear = [schedule("linear", step, 10, 2) for step in range(10)]
    assert linear == pytest.approx([0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125])
    cosine = [schedule("cosine", step, 10, 2) for step in range(10)]
    assert cosine == pytest.approx([0.5, 1.0] + [0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(8)])
    assert [schedule("constant", step, 4, 2) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]
    assert [schedule("linear", step, 1, 0) for step in range(1)] == [1.0]


def test_schedule_in_training(setup):
    """The rate that a step really used is the schedule's, over all epochs and with the head's own peak."""
    rates = []

    class Watch(Progress):
        def step(self, loss=None):
            rates.append(sorted({group["lr"] for group in optimizer.param_groups}))

    run = setup(train__warmup_ratio=0.3, train__lr_scheduler_type="linear")
    made = torch.optim.AdamW.__init__
    optimizer = None

    def remember(self, *args, **options):
        nonlocal optimizer
        optimizer = self
        made(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "__init__", remember)
        run.train(progress=Watch(0, show=False))
    factors = [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]  # 3 steps an epoch, 2 epochs, 2 of warm-up
    assert rates == [pytest.approx([5e-3 * factor, 1e-2 * factor]) for factor in factors]
    assert [record["step"] for record in run.records] == [3, 6]


def test_epoch_seeds_differ():
    """Every run seed, fold (also the model of all rows, -1) and epoch draws other numbers, always the same ones."""
    seeds = [epoch_seed(seed, fold, epoch) for seed in (0, 42) for fold in (-1, 0, 1, 9) for epoch in (0, 1, 2, 3)]
    assert len(set(seeds)) == len(seeds)
    assert seeds == [epoch_seed(seed, fold, epoch) for seed in (0, 42) for fold in (-1, 0, 1, 9) for epoch in range(4)]


def test_negative_seed(tiny_recipe):
    """numpy takes no negative seeds: refused as the recipe is read, not in the first fold."""
    with pytest.raises(RecipeError, match=r"train\.seed"):
        tiny_recipe("llama", train__seed=-1)


def test_shuffled_batches():
    """Every row once, by the generator alone, other batches in another epoch, and far less padding than at random."""
    lengths = np.random.default_rng(0).integers(3, 120, size=1003)
    batches = shuffled_batches(lengths, 8, np.random.default_rng(5))
    assert sorted(np.concatenate(batches)) == list(range(1003))
    assert sorted(map(len, batches)) == [3] + [8] * 125
    again = shuffled_batches(lengths, 8, np.random.default_rng(5))
    assert all(np.array_equal(one, other) for one, other in zip(batches, again, strict=True))
    other = shuffled_batches(lengths, 8, np.random.default_rng(6))
    assert {frozenset(batch) for batch in batches}.isdisjoint({frozenset(batch) for batch in other})

    def padding(batches):
        return sum(lengths[batch].max() * len(batch) for batch in batches) / lengths.sum() - 1

    order = np.random.default_rng(1).permutation(1003)
    assert padding(batches) < 0.1 < 0.5 < padding([order[i : i + 8] for i in range(0, 1003, 8)])
    means = [lengths[batch].mean() for batch in batches]  # no epoch that runs from short to long
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


def test_row_order(setup):
    """Answers come back in the order of the rows, though the longest are asked first; none of none."""
    run = setup()
    logits = run.logits()
    shuffled = run.tokens.take([5, 3, 20])
    found = predict_logits(run.model, shuffled, batches=EvalBatches(8), pad_id=run.pad_id)
    np.testing.assert_allclose(found, logits[[5, 3, 20]], atol=1e-5)
    none = predict_logits(run.model, run.tokens.take([]), batches=EvalBatches(8), pad_id=0)
    assert none.shape == (0, 3) and none.dtype == np.float32


# Learning


FAST = {"lora": {"r": 8, "lora_alpha": 32}, "train__learning_rate": 1e-2, "head__learning_rate": 3e-2}


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        ("bert", {"lora": None, "train__learning_rate": 2e-3}),
        ("llama", FAST),
        ("gemma3", {**FAST, "quantization": {"load_in_4bit": True}, "backbone__dtype": "bfloat16"}),
    ],
)
def test_learns_keywords(kind, overrides, tiny_recipe, emotion_table, tmp_path):
    """Full fine-tuning, LoRA and QLoRA rank rows never trained on by keywords; the saved model answers the same."""
    recipe = tiny_recipe(kind, train__num_train_epochs=6, head__pooling="mean", **overrides)
    data = load_train(recipe.data, emotion_table(120))
    learner = TransformerLearner(recipe, data.label_names)
    result = learner.prepare(data).fit_fold(0, np.arange(90), np.arange(90, 120), FoldFolder(tmp_path / "fold-00"))
    assert roc_auc_score(data.labels[90:], result.oof_logits) > 0.85
    reloaded = learner.predict(FoldFolder(tmp_path / "fold-00"), data.texts[90:])
    np.testing.assert_array_equal(reloaded, result.oof_logits)


def test_head_learning_rate_is_the_heads_alone(setup):
    """Adapters move by `train.learning_rate` and the head by its own: AdamW's first step is as long as the rate."""
    run = setup(
        head__learning_rate=1e-2, train__learning_rate=1e-4, train__warmup_ratio=0, train__num_train_epochs=1,
        train__per_device_train_batch_size=24, train__lr_scheduler_type="constant", train__weight_decay=0.1,
    )  # fmt: skip
    head = {id(parameter) for parameter in trainable_head(run.model).parameters()}
    rates = {id(p): group["lr"] for group in parameter_groups(run.model, run.recipe) for p in group["params"]}
    assert len(rates) == len(trainable(run.model)) > len(head) == 2
    assert {rates[i] for i in head} == {1e-2}
    assert {rate for i, rate in rates.items() if i not in head} == {1e-4}
    before = snapshot(run.model)
    run.train()
    moved = {name: float((value - before[name]).abs().max()) for name, value in snapshot(run.model).items()}
    assert all(moved[name] == pytest.approx(1e-2, rel=0.05) for name in moved if ".score." in name)
    assert all(moved[name] <= 1.2e-4 for name in moved if ".score." not in name)
    assert any(moved[name] > 0.5e-4 for name in moved if "lora_B" in name)


def test_no_weight_decay_on_biases_and_norms(setup):
    """Weight decay is for matrices only."""
    run = setup("bert", lora=None, train__weight_decay=0.1, head__learning_rate=None)
    decay = {id(p): g["weight_decay"] for g in parameter_groups(run.model, run.recipe) for p in g["params"]}
    for name, parameter in trainable(run.model).items():
        assert decay[id(parameter)] == (0.0 if "LayerNorm" in name or name.endswith("bias") else 0.1), name


def test_gradient_checkpointing(setup):
    """With checkpointing the adapters train as without it: same losses, same weights to rounding."""
    plain, less_memory = setup(name="plain"), setup(name="ckpt", train__gradient_checkpointing=True)
    assert less_memory.model.base.is_gradient_checkpointing
    before = snapshot(less_memory.model)
    plain.train()
    less_memory.train()
    after = snapshot(less_memory.model)
    assert all(not torch.equal(after[name], before[name]) for name in after)
    assert [r["loss"] for r in less_memory.records] == pytest.approx([r["loss"] for r in plain.records], abs=1e-5)
    for name, value in snapshot(plain.model).items():
        torch.testing.assert_close(after[name], value, rtol=1e-3, atol=1e-5)


# Failing


def test_loss_that_becomes_nan(setup):
    """A learning rate that explodes stops the fold with fold, epoch and step, and keeps the finished epochs."""
    run = setup(train__learning_rate=1e30, train__warmup_ratio=0, train__max_grad_norm=1e9)
    with pytest.raises(TrainingError, match=r"not a finite number \(fold 3, epoch 1, step [23]\).*1e\+30"):
        run.train(fold=3)
    assert not run.state_file.exists()


def test_loss_that_is_nan_in_a_later_epoch(setup):
    """The state of the epoch before stays on disk; the model of all rows is called by its name."""
    run = setup()

    def poison(epoch):
        if epoch == 2:
            raise AssertionError("epoch 2 must not finish")
        return {}

    class Poison(Progress):
        def epoch(self, name, epoch, n_epochs, n_steps):
            if epoch == 2:
                with torch.no_grad():
                    trainable_head(run.model).weight.fill_(float("nan"))

    with pytest.raises(TrainingError, match=r"\(all rows, epoch 2, step 1\)"):
        run.train(fold=-1, progress=Poison(0, show=False), after_epoch=poison)
    assert run.state_file.is_file()
    assert [record["epoch"] for record in run.records] == [1]


def test_answers_that_are_not_finite(setup):
    """NaN logits are never written down as predictions."""
    run = setup()
    with torch.no_grad():
        trainable_head(run.model).bias[1] = float("nan")
    with pytest.raises(TrainingError, match="not finite"):
        run.logits()


# Resuming


class KilledError(Exception):
    pass


class Kill(Progress):
    """Stops training in the middle of an epoch."""

    def __init__(self, at_epoch, at_step):
        super().__init__(0, show=False)
        self.now, self.steps, self.at = 0, 0, (at_epoch, at_step)

    def epoch(self, name, epoch, n_epochs, n_steps):
        self.now, self.steps = epoch, 0

    def step(self, loss=None):
        self.steps += 1
        if (self.now, self.steps) == self.at:
            raise KilledError


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [("llama", {"lora": {"r": 4, "lora_dropout": 0.2}, "head__dropout": 0.1}), ("bert", {"lora": None})],
)
def test_resume_is_bit_identical(kind, overrides, setup):
    """Killed in the middle of epoch 3 and continued: the weights of a run that was never stopped, to the bit."""
    whole = setup(kind, "whole", train__num_train_epochs=3, **overrides)
    expected = whole.train()
    stopped = setup(kind, "stopped", train__num_train_epochs=3, **overrides)
    with pytest.raises(KilledError):
        stopped.train(progress=Kill(3, 2))
    continued = setup(kind, "stopped", train__num_train_epochs=3, **overrides)
    torch.manual_seed(999)  # whatever happened in between
    state = continued.train()
    found, weights = snapshot(continued.model), snapshot(whole.model)
    assert [name for name in weights if not torch.equal(found[name], weights[name])] == []
    np.testing.assert_array_equal(continued.logits(), whole.logits())
    keys = ("epoch", "step", "loss", "learning_rate")
    assert [[r[k] for k in keys] for r in continued.records] == [[r[k] for k in keys] for r in whole.records]
    assert (state.epoch, state.rows, state.tokens) == (expected.epoch, expected.rows, expected.tokens) == (
        3, 72, expected.tokens,
    )  # fmt: skip


def test_metrics_of_an_epoch_that_was_not_saved(setup):
    """Killed between the metrics of epoch 2 and its state, a line half written: each epoch has one line in the end."""
    whole = setup(name="whole")
    whole.train()
    run = setup()
    with pytest.raises(KilledError):
        run.train(progress=Kill(2, 3))
    with run.metrics_file.open("a") as file:
        file.write(json.dumps({**run.records[0], "epoch": 2, "loss": 99.0}) + '\n{"epoch": 3, "lo')
    setup().train()
    assert [record["epoch"] for record in run.records] == [1, 2]
    assert [record["loss"] for record in run.records] == [record["loss"] for record in whole.records]


def test_nothing_is_trained_twice(setup):
    """Continuing a finished fold changes no weight."""
    run = setup()
    run.train()
    before = snapshot(run.model)
    again = setup()
    again.train()
    assert all(torch.equal(value, before[name]) for name, value in snapshot(again.model).items())
    assert [record["epoch"] for record in again.records] == [1, 2]


def test_the_best_epoch_is_put_back_after_a_resume(setup):
    """Where scores choose, the weights of the best epoch return, though it was trained before the kill."""
    scores = {1: 0.9, 2: 0.5, 3: 0.7}
    run = setup(train__num_train_epochs=3)
    kept = {}

    def score_of(run, calls):
        def score():
            calls.append(0)
            epoch = len(run.records) + 1 if run.metrics_file.exists() else 1
            kept.setdefault(epoch, snapshot(run.model))
            return Score(scores[epoch], 1.0)

        return score

    with pytest.raises(KilledError):
        run.train(progress=Kill(2, 3), score=score_of(run, []))
    continued, calls = setup(train__num_train_epochs=3), []
    state = continued.train(score=score_of(continued, calls))
    assert (state.best_epoch, state.epoch) == (1, 3)
    assert state.scores == [Score(scores[epoch], 1.0) for epoch in (1, 2, 3)]
    assert len(calls) == 2
    found = snapshot(continued.model)
    assert all(torch.equal(found[name], kept[1][name]) for name in found)
    assert not all(torch.equal(found[name], kept[3][name]) for name in found)
    assert [record["selection_macro_f1"] for record in continued.records] == [0.9, 0.5, 0.7]
    assert [record["selection_loss"] for record in continued.records] == [1.0, 1.0, 1.0]


# Epoch 1 leads until epoch 4 moves the margin beyond it; epoch 2 waits for that; epoch 3 never can win.
SCRIPT = [Score(0.50, 0.3), Score(0.55, 0.4), Score(0.52, 0.9), Score(0.62, 0.8)]


@pytest.mark.parametrize("killed_in", [2, 3, 4])
def test_snapshots_that_may_still_win_survive_a_kill(setup, killed_in):
    """`loss_within_margin`: the weights put back were not the best when they were saved, and a kill does not lose them;
    the state file of a killed and continued run is that of a run in one go, to the byte."""
    options = {
        "train__num_train_epochs": 4, "train__select": "inner", "train__select_by": "loss_within_margin",
        "train__select_margin": 0.1,
    }  # fmt: skip
    kept = {}

    def score_of(run):
        def score():
            epoch = len(run.records) + 1 if run.metrics_file.exists() else 1
            kept.setdefault(epoch, snapshot(run.model))
            return SCRIPT[epoch - 1]

        return score

    whole = setup(name="whole", **options)
    whole.train(score=score_of(whole))
    stopped = setup(name="stopped", **options)
    with pytest.raises(KilledError):
        stopped.train(score=score_of(stopped), progress=Kill(killed_in, 2))
    continued = setup(name="stopped", **options)
    state = continued.train(score=score_of(continued))
    assert state.best_epoch == 2
    assert state.scores == SCRIPT
    found = snapshot(continued.model)
    assert all(torch.equal(found[name], kept[2][name]) for name in found)
    assert not all(torch.equal(found[name], kept[4][name]) for name in found)
    tensors = [load_file(run.state_file) for run in (whole, continued)]
    assert {name.split("/")[1] for name in tensors[0] if name.startswith("epoch/")} == {"2", "4"}
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


class Watched(Progress):
    """Notes the trained weights before training and after every step."""

    def __init__(self, model):
        super().__init__(0, show=False)
        self.model, self.seen = model, [snapshot(model)]

    def step(self, loss=None):
        self.seen.append(snapshot(self.model))


def test_averages_by_hand(setup):
    """The kept weights are the moving average of every step's, its decay rising to that of the recipe; the mean of the
    last epochs' ends; and with both the mean of the averages. Training itself is the same with all of them."""
    plain = setup(name="plain", train__num_train_epochs=3)
    watch = Watched(plain.model)
    plain.train(progress=watch)
    steps, name = watch.seen, next(iter(watch.seen[0]))
    assert len(steps) == 10  # 3 a epoch
    moving = [steps[0][name].double()]
    for i, weights in enumerate(steps[1:]):
        decay = min(0.3, (1 + i) / (10 + i))
        moving.append(decay * moving[-1] + (1 - decay) * weights[name].double())
    expected = {
        "moving": ({"train__ema_decay": 0.3}, moving[-1]),
        "mean": ({"train__average_epochs": 2}, (steps[6][name].double() + steps[9][name].double()) / 2),
        "both": ({"train__ema_decay": 0.3, "train__average_epochs": 3}, (moving[3] + moving[6] + moving[9]) / 3),
    }
    for which, (settings, average) in expected.items():
        run = setup(name=which, train__num_train_epochs=3, **settings)
        again = Watched(run.model)
        run.train(progress=again)
        assert all(torch.equal(one[name], other[name]) for one, other in zip(again.seen, steps, strict=True))
        kept = snapshot(run.model)[name]
        torch.testing.assert_close(kept.double(), average, rtol=1e-5, atol=1e-7)
        assert not torch.equal(kept, steps[-1][name])


def test_epochs_are_scored_by_their_average(setup):
    """What `select: inner` scores, keeps and puts back is the moving average, and training goes on from the raw
    weights."""
    run, scored = setup(train__select="inner", train__ema_decay=0.9, train__num_train_epochs=3), []
    watch = Watched(run.model)

    def score():
        scored.append(snapshot(run.model))
        return Score(0.5 if len(scored) == 2 else 0.1, 1.0)

    state = run.train(progress=watch, score=score)
    plain = setup(name="plain", train__num_train_epochs=3)
    alone = Watched(plain.model)
    plain.train(progress=alone)
    assert state.best_epoch == 2
    kept = snapshot(run.model)
    for name in kept:
        assert torch.equal(kept[name], scored[1][name])
        assert torch.equal(watch.seen[-1][name], alone.seen[-1][name])
    assert not all(torch.equal(scored[1][name], watch.seen[6][name]) for name in scored[1])


def test_averages_of_a_killed_fold(setup):
    """A fold killed in any epoch ends with the averages, and the state, of one that never stopped."""
    settings = {"train__ema_decay": 0.9, "train__average_epochs": 2, "train__num_train_epochs": 3}
    whole = setup(name="whole", **settings)
    whole.train()
    expected, tensors = snapshot(whole.model), load_file(whole.state_file)
    assert {name.split("/")[1] for name in tensors if name.startswith("average/")} == {"moving", "mean"}
    for epoch in (1, 2, 3):
        run = setup(name=f"killed-{epoch}", **settings)
        with pytest.raises(KilledError):
            run.train(progress=Kill(epoch, 1))
        continued = setup(name=f"killed-{epoch}", **settings)
        continued.train()
        found = snapshot(continued.model)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        state = load_file(continued.state_file)
        assert state.keys() == tensors.keys()
        assert all(torch.equal(state[name], tensors[name]) for name in tensors)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_optimizer_state_returns_to_its_device(setup):
    """A fused AdamW on a GPU keeps its step counters there: after a resume they are where they were."""
    run = setup()
    run.model.cuda()
    run.accelerator = make_accelerator(torch.float32, torch.device("cuda"))
    with pytest.raises(KilledError):
        run.train(progress=Kill(2, 2))
    continued = setup()
    continued.model.cuda()
    continued.accelerator = make_accelerator(torch.float32, torch.device("cuda"))
    assert continued.train().epoch == 2
    optimizer = torch.optim.AdamW(trainable(continued.model).values(), fused=True)
    load_state(continued.state_file, continued.model, optimizer)
    assert {value.device.type for state in optimizer.state.values() for value in state.values()} == {"cuda"}


def test_damaged_state_is_refused(setup):
    """A truncated or foreign state file is an error that says what to remove."""
    run = setup()
    run.train()
    whole = run.state_file.read_bytes()
    for content in (b"", whole[:50], whole[: len(whole) // 2], whole[:-5]):
        run.state_file.write_bytes(content)
        with pytest.raises(RunError, match=r"state\.safetensors is damaged.*Remove it"):
            setup().train()


@pytest.mark.parametrize(
    "overrides", [{"lora": {"r": 8}}, {"lora": {"r": 4}}, {"lora": {"r": 4, "target_modules": ["q_proj"]}}]
)
def test_state_of_another_model_is_refused(overrides, setup):
    """A state of other adapters is never loaded in part, nor stretched from rank 1 to rank 4 by broadcasting."""
    setup(lora={"r": 1 if overrides["lora"] == {"r": 4} else 4}).train()
    with pytest.raises(RunError, match="damaged or belongs to another model"):
        setup(**overrides).train()


# Folds


def two_folds(recipe, data, folder, only_second, test=None):
    learner = TransformerLearner(recipe, data.label_names)
    trainer, rows = learner.prepare(data, test), np.arange(len(data))
    results = {}
    for fold in (1,) if only_second else (0, 1):
        name = FoldFolder(folder / f"fold-{fold:02d}")
        results[fold] = trainer.fit_fold(fold, rows[rows % 2 != fold], rows[rows % 2 == fold], name)
    return learner, results


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        ("llama", {"lora": {"r": 4, "lora_dropout": 0.1}}),
        ("bert", {"lora": None}),
        ("bert", {"lora": {"r": 4, "use_dora": True}}),
        ("bert", {"lora": {"r": 4, "bias": "lora_only"}}),
        ("gemma3", {"quantization": {"load_in_4bit": True}, "backbone__dtype": "bfloat16"}),
    ],
)
def test_a_fold_does_not_depend_on_the_folds_before(kind, overrides, tiny_recipe, emotion_table, tmp_path):
    """Fold 1 alone answers bit for bit as fold 1 after fold 0."""
    recipe = tiny_recipe(kind, **overrides)
    data = load_train(recipe.data, emotion_table(24))
    _, alone = two_folds(recipe, data, tmp_path / "alone", only_second=True, test=data)
    _, after = two_folds(recipe, data, tmp_path / "after", only_second=False, test=data)
    np.testing.assert_array_equal(alone[1].oof_logits, after[1].oof_logits)
    np.testing.assert_array_equal(alone[1].test_logits, after[1].test_logits)
    assert not np.array_equal(after[0].test_logits, after[1].test_logits)


def test_predicting_between_folds_changes_nothing(tiny_recipe, emotion_table, tmp_path):
    """Answers asked of fold 0 again after fold 1 was trained are still fold 0's."""
    recipe = tiny_recipe("llama")
    data = load_train(recipe.data, emotion_table(24))
    learner, results = two_folds(recipe, data, tmp_path, only_second=False)
    texts = [data.texts[i] for i in range(0, 24, 2)]
    np.testing.assert_array_equal(learner.predict(FoldFolder(tmp_path / "fold-00"), texts), results[0].oof_logits)


@pytest.mark.parametrize(("kind", "overrides"), [("llama", {}), ("bert", {"lora": None})])
def test_training_after_predicting_starts_afresh(kind, overrides, tiny_recipe, emotion_table, tmp_path):
    """A learner that first answered with fold 0's weights trains fold 1 as one that never loaded them."""
    recipe = tiny_recipe(kind, **overrides)
    data = load_train(recipe.data, emotion_table(24))
    _, results = two_folds(recipe, data, tmp_path / "first", only_second=False)
    learner = TransformerLearner(recipe, data.label_names)
    learner.predict(FoldFolder(tmp_path / "first" / "fold-00"), data.texts[:2])
    rows = np.arange(24)
    again = learner.prepare(data).fit_fold(1, rows[rows % 2 == 0], rows[rows % 2 == 1], FoldFolder(tmp_path / "again"))
    np.testing.assert_array_equal(again.oof_logits, results[1].oof_logits)


def test_memory_of_a_finished_fold_is_freed(tiny_recipe, emotion_table, tmp_path):
    """Full fine-tuning of K folds holds one model and one optimizer, not K of each."""
    recipe = tiny_recipe("bert", lora=None, train__num_train_epochs=1)
    data = load_train(recipe.data, emotion_table(12))
    trainer = TransformerLearner(recipe, data.label_names).prepare(data)
    rows = np.arange(12)
    trainer.fit_fold(0, rows[:6], rows[6:], FoldFolder(tmp_path / "fold-00"))
    first = weakref.ref(trainer.session.model().base.embeddings.word_embeddings.weight)
    trainer.fit_fold(1, rows[6:], rows[:6], FoldFolder(tmp_path / "fold-01"))
    gc.collect()
    assert first() is None


def test_attention_is_measured_once_and_kept(tiny_recipe, emotion_table, tmp_path):
    """`auto` picks eager or sdpa on real rows; the choice is noted for a resume, and measuring leaves no trace."""
    recipe = tiny_recipe("llama", backbone__attn_implementation="auto", train__num_train_epochs=1)
    data = load_train(recipe.data, emotion_table(12))
    rows = np.arange(12)
    learner = TransformerLearner(recipe, data.label_names)
    assert "attn_implementation" not in learner.choices
    result = learner.prepare(data).fit_fold(0, rows[:6], rows[6:], FoldFolder(tmp_path / "a"))
    choice = learner.choices["attn_implementation"]
    assert choice in ("eager", "sdpa")
    assert learner.session.model().base.config._attn_implementation == choice
    resumed = TransformerLearner(recipe, data.label_names, learner.choices)
    again = resumed.prepare(data).fit_fold(0, rows[:6], rows[6:], FoldFolder(tmp_path / "b"))
    np.testing.assert_array_equal(again.oof_logits, result.oof_logits)


def test_a_run_keeps_to_its_short_steps(tiny_recipe, emotion_table, tmp_path):
    """A new run notes them; one stopped goes on to the same bytes; one of before goes on without them."""
    recipe = tiny_recipe("bert", lora={"r": 4}, head__pooling="cls", train__num_train_epochs=2)
    data = load_train(recipe.data, emotion_table(12))
    rows = np.arange(12)

    def train(name, recipe=recipe, choices=None, n_epochs=None):
        learner = TransformerLearner(recipe, data.label_names, choices)
        folder = FoldFolder(tmp_path / name)
        result = learner.prepare(data).fit_fold(0, rows[:6], rows[6:], folder, n_epochs)
        return learner, result.oof_logits

    learner, whole = train("whole")
    assert learner.choices["short_steps"] == SHORT_STEPS
    assert learner.session.model().last_layer is not None
    train("stopped", n_epochs=1)
    np.testing.assert_array_equal(train("stopped", choices=learner.choices)[1], whole)
    before = {name: value for name, value in learner.choices.items() if name != "short_steps"}
    old, as_before = train("before", choices=before)
    assert "short_steps" not in old.choices
    assert old.session.model().last_layer is None
    without = load_recipe(recipe, {"engine.short_steps": False})
    np.testing.assert_array_equal(train("without", without)[1], as_before)


def test_cross_fitted_keeps_every_epoch(tiny_recipe, emotion_table, tmp_path):
    """With `select: cross_fitted` every epoch's model and answers are kept; the last is that of `last`."""
    recipe = tiny_recipe("llama", train__select="cross_fitted")
    data = load_train(recipe.data, emotion_table(12))
    rows, folder = np.arange(12), FoldFolder(tmp_path / "fold-00")
    learner = TransformerLearner(recipe, data.label_names)
    result = learner.prepare(data, data).fit_fold(0, rows[:8], rows[8:], folder)
    by_epoch = [np.load(folder.epoch(epoch).oof_logits) for epoch in (1, 2)]
    np.testing.assert_array_equal(by_epoch[1], result.oof_logits)
    assert not np.array_equal(by_epoch[0], by_epoch[1])
    texts = [data.texts[i] for i in rows[8:]]
    np.testing.assert_array_equal(learner.predict(folder.epoch(1), texts), by_epoch[0])
    assert np.load(folder.epoch(1).test_logits).shape == (12, 3)


def test_inner_selection_never_sees_the_scored_rows(tiny_recipe, emotion_table, tmp_path):
    """`select: inner` holds back training rows: labels of the out-of-fold rows change nothing, and no group is cut."""
    recipe = tiny_recipe("llama", train__select="inner", train__inner_fraction=0.25)
    table = emotion_table(24)
    table.loc[4:7, "text"] = "angry and afraid of the same words"
    table.loc[4:7, ["joy", "anger", "fear"]] = [0, 1, 1]
    rows = np.arange(24)
    logits = []
    for name in ("a", "b"):
        data = load_train(recipe.data, table)
        trainer = TransformerLearner(recipe, data.label_names).prepare(data)
        result = trainer.fit_fold(0, rows[:18], rows[18:], FoldFolder(tmp_path / name))
        assert 8 <= result.info["train_rows"] < 18
        logits.append(result.oof_logits)
        table.loc[18:, ["joy", "anger", "fear"]] = 1 - table.loc[18:, ["joy", "anger", "fear"]]
    np.testing.assert_array_equal(*logits)


def test_half_precision_needs_a_gpu(tiny_recipe, emotion_table):
    """float16 on a CPU is refused with the setting to change."""
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("for CPUs")
    recipe = tiny_recipe("llama", backbone__dtype="float16")
    data = load_train(recipe.data, emotion_table(12))
    with pytest.raises(LoraClsError, match=r"backbone\.dtype: float16.*Use auto"):
        TransformerLearner(recipe, data.label_names)


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2"])
def test_texts_that_fill_every_position(kind, setup):
    """Texts cut at the last position of a model train and answer; padding to round lengths never goes beyond it."""
    run = setup(kind, data__max_length=128, train__num_train_epochs=1, train__per_device_train_batch_size=24)
    tokenizer = load_tokenizer(run.recipe.backbone)
    run.tokens = encode(tokenizer, ["happy " * 300] * 2 + ["dog"] * 22, run.recipe.data)
    run.train()
    assert run.tokens.lengths.max() == 128
    shorter = encode(tokenizer, ["happy " * 300, "dog"], Data(max_length=125))
    ids, mask = shorter.batch(np.array([0, 1]), run.pad_id)
    assert ids.shape == (2, 125) and mask.sum(1).tolist() == shorter.lengths.tolist() and mask[:, 0].tolist() == [1, 1]
    assert np.isfinite(run.logits()).all()


@pytest.mark.parametrize("column", ["text", "joy"])
def test_rows_of_weight_0_teach_nothing(column, tiny_recipe, emotion_table, tmp_path):
    """Row weights reach the loss and the positive weights: what a row of weight 0 holds changes no logit."""
    recipe = tiny_recipe("bert", data__weight_column="w", train__num_train_epochs=1)
    table = emotion_table(24).assign(w=[0.0] * 4 + [1.0, 2.0] * 10)
    other = table.copy()
    # as many tokens as before, so that the same rows meet in a batch
    other.loc[:3, column] = (
        table.loc[:3, "text"].str.replace("the", "dog") if column == "text" else 1 - table["joy"][:4]
    )
    unweighted = recipe.model_copy(update={"data": recipe.data.model_copy(update={"weight_column": None})})
    logits = []
    for name, frame, settings in (
        ("a", table, recipe),
        ("b", other, recipe),
        ("c", table.drop(columns="w"), unweighted),
    ):
        data = load_train(settings.data, frame)
        result = (
            TransformerLearner(settings, data.label_names)
            .prepare(data)
            .fit_fold(0, np.arange(16), np.arange(16, 24), FoldFolder(tmp_path / name))
        )
        logits.append((result.oof_logits, result.pos_weight))
    assert column != "text" or not other["text"].equals(table["text"])
    np.testing.assert_array_equal(logits[0][0], logits[1][0])
    np.testing.assert_array_equal(logits[0][1], logits[1][1])
    assert not np.array_equal(logits[0][0], logits[2][0])


def test_soft_labels_are_learnt(tiny_recipe, emotion_table, tmp_path):
    """Targets of 0.2 and 0.8 pull probabilities there; 0 and 1 would push them to the ends."""
    recipe = tiny_recipe("bert", data__soft_labels=True, train__num_train_epochs=30, data__label_columns=["joy"])
    table = emotion_table(24)
    table = table.assign(joy=np.where(table["joy"] == 1, 0.8, 0.2))
    data = load_train(recipe.data, table)
    trainer = TransformerLearner(recipe, data.label_names).prepare(data)
    rows = np.arange(24)
    result = trainer.fit_fold(0, rows, rows, FoldFolder(tmp_path / "a"))
    share = float(data.targets.mean())
    np.testing.assert_allclose(result.pos_weight, (1 - share) / share, rtol=1e-6)
    proba = corrected_probabilities(result.oof_logits, result.pos_weight)
    np.testing.assert_allclose(proba, data.targets, atol=0.1)


def test_inner_selection_holds_back_no_extra_row(tiny_recipe, emotion_table, tmp_path, monkeypatch):
    """Extra rows are trained on by every fold, and no epoch is compared on them."""
    import lora_cls.training.transformer as module

    recipe = tiny_recipe("llama", train__select="inner", train__inner_fraction=0.4, train__num_train_epochs=1)
    data = load_train(recipe.data, emotion_table(20), extra_train=emotion_table(30, seed=3))
    trainer = TransformerLearner(recipe, data.label_names).prepare(data)
    seen = []

    def watch(logits, targets, *rest):
        seen.append(targets)
        return validation_loss(logits, targets, *rest)

    monkeypatch.setattr(module, "validation_loss", watch)
    extra = np.flatnonzero(data.extra)
    result = trainer.fit_fold(0, np.concatenate([np.arange(12), extra]), np.arange(12, 20), FoldFolder(tmp_path / "a"))
    assert [len(targets) for targets in seen] == [result.info["train_rows"] * -1 + 12 + len(extra)]
    assert len(seen[0]) <= 12


def test_loss_by_the_training_rows_labels(tiny_recipe, emotion_table, tmp_path, monkeypatch):
    """A loss that counts labels counts those of the rows that train, also where it scores an epoch on held-back ones;
    what it hides in probabilities is kept as the fold's weight."""
    import lora_cls.training.transformer as module

    balanced = {"name": "distribution_balanced", "pos_weight": "none", "label_weights": {"joy": 2}}
    recipe = tiny_recipe("llama", loss=balanced, train__select="scored_fold", train__num_train_epochs=1)
    data = load_train(recipe.data, emotion_table(30))
    trainer, seen = TransformerLearner(recipe, data.label_names).prepare(data), []

    def watch(*given):
        seen.append(given)
        return validation_loss(*given)

    monkeypatch.setattr(module, "validation_loss", watch)
    result = trainer.fit_fold(0, np.arange(20), np.arange(20, 30), FoldFolder(tmp_path / "a"))
    [(logits, targets, weight, loss, _, facts)] = seen
    assert facts.share == pytest.approx(data.labels[:20].mean(0))
    assert facts.factor.tolist() == [2, 1, 1]
    assert result.pos_weight == pytest.approx(pos_weight(data.labels[:20], recipe.loss))
    assert validation_loss(logits, targets, weight, loss, None, facts) != validation_loss(logits, targets, weight, loss)


def test_memory_full_in_training(setup, monkeypatch):
    """A step that does not fit ends the run with the settings that would, and leaves the recipe as it is."""
    run, calls = setup(), []

    def loss(self, model, pieces):
        calls.append(len(pieces))
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, model, pieces)

    plain = ClassificationObjective.loss
    monkeypatch.setattr(ClassificationObjective, "loss", loss)
    with pytest.raises(TrainingError, match=r"fold 1, epoch 1, step 3; 8 rows of up to .*batch_size=4.*steps=2"):
        run.train()
