"""A run that was killed goes on to the bytes of one that was not, and what is kept on disk changes nothing."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import yaml

from lora_cls.data import load_train
from lora_cls.runs import RunFolder
from lora_cls.training.factory import make_learner

RUN = """
import os, signal, sys
import lora_cls.training.loop as loop
from lora_cls.cli import main

save, saved = loop.save_state, []

def save_state(file, *rest):
    save(file, *rest)
    saved.append(file)
    if len(saved) == {kill_after}:
        os.kill(os.getpid(), signal.SIGKILL)

loop.save_state = save_state
sys.argv = ["lora-cls", *{arguments!r}]
main()
"""
WAYS = {
    "LoRA, bf16": ("llama", {"backbone__dtype": "bfloat16", "lora__lora_dropout": 0.1}),
    "LoRA, fp16": ("llama", {"backbone__dtype": "float16", "lora__lora_dropout": 0.1}),
    "full, bf16": ("bert", {"backbone__dtype": "bfloat16", "lora": None, "train__learning_rate": 1e-3}),
    "full, fp16": ("bert", {"backbone__dtype": "float16", "lora": None, "train__learning_rate": 1e-3}),
    "nf4": ("gemma3", {"backbone__dtype": "bfloat16", "quantization": {"load_in_4bit": True}}),
    "upper layers": ("llama", {"lora__top_layers": 0.5, "train__ema_decay": 0.9}),
}


@pytest.fixture
def command(train, test, tmp_path, device):
    """Function `command(recipe, out, *more, kill_after=0)`: `lora-cls run` in a process of its own."""
    train.to_csv(tmp_path / "train.csv", index=False)
    test.to_csv(tmp_path / "test.csv", index=False)

    def run(recipe, out, *more, kill_after=0):
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.to_dict()))
        files = ["--train", tmp_path / "train.csv", "--test", tmp_path / "test.csv", "--out", tmp_path / out]
        arguments = [str(part) for part in ("run", tmp_path / "recipe.yaml", *files, *more)]
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if device.type == "cpu" else {}
        code = RUN.format(kill_after=kill_after, arguments=arguments)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | hidden)
        assert done.returncode == (-signal.SIGKILL if kill_after else 0), done.stderr
        return RunFolder(tmp_path / out)

    return run


def results(run):
    """What a run answers, as bytes."""
    files = [run.path / name for name in ("oof_proba.csv", "thresholds.json", "test_proba.csv", "submission.csv")]
    return {str(f.relative_to(run.path)): f.read_bytes() for f in (*files, *sorted(run.path.glob("fold-*/*.npy")))}


@pytest.mark.parametrize("way", WAYS)
def test_killed(way, tiny_recipe, needs, command, device):
    """With `engine.deterministic`: kill -9 after three of four epochs, then --resume, and every answer is the same."""
    kind, changes = WAYS[way]
    recipe = tiny_recipe(kind, engine__deterministic=True, **changes)
    needs(recipe)
    if device.type == "cpu" and recipe.backbone.dtype == "float16":
        pytest.skip("float16 trains on a GPU alone")
    expected = results(command(recipe, "undisturbed"))
    stopped = command(recipe, "killed", kill_after=3)
    assert stopped.finished_folds == [0] and stopped.fold(1).state.is_file()
    assert results(command(recipe, "killed", "--resume")) == expected


def test_killed_as_it_is(tiny_recipe, command, record_property):
    """Without it the answers are at least nearly the same; whether they are so to the byte is recorded."""
    recipe = tiny_recipe("llama", backbone__dtype="float32")
    expected = command(recipe, "undisturbed")
    command(recipe, "killed", kill_after=3)
    found = command(recipe, "killed", "--resume")
    record_property("the same bytes without engine.deterministic", results(found) == results(expected))
    np.testing.assert_allclose(np.load(found.fold(1).oof_logits), np.load(expected.fold(1).oof_logits), atol=0.05)


def test_twice(tiny_recipe, command):
    """Two runs of one recipe, with `engine.deterministic`, in processes of their own, give the same bytes."""
    recipe = tiny_recipe("bert", engine__deterministic=True)
    assert results(command(recipe, "one")) == results(command(recipe, "other"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_prefix_cache(dtype, tiny_recipe, needs, train):
    """Hidden states that were kept stand for the layers below, and a second session reads them from the disk."""
    recipe = tiny_recipe("llama", lora__top_layers=0.5, backbone__dtype=dtype, train__per_device_eval_batch_size=8)
    needs(recipe)
    data = load_train(recipe.data, train.assign(text=[f"{dtype} {text}" for text in train["text"]]))
    found = []
    for _ in range(2):
        trainer = make_learner(recipe, data.label_names).prepare(data)
        session, tokens = trainer.session, trainer.rows.tokens
        model, weight = session.fresh_model(0), np.ones(3)
        plain = session.answer(model, tokens, weight).logits
        cache = session.prefix_cache(tokens)
        cache.fill(tokens)
        found.append((cache.used, session.answer(model, tokens, weight).logits))
        np.testing.assert_allclose(found[-1][1], plain, atol=1e-4 if dtype == "float32" else 0.05)
    (first, one), (second, other) = found
    assert first.computed > 0 and second.computed == 0 and second.reused == first.computed
    np.testing.assert_array_equal(one, other)
