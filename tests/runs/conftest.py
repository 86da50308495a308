"""Finished runs that the tests read (and copy before they change them), made once a session."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

RUN_SNIPPETS = """
import contextlib, json, os, sys
sys.modules["lora_cls"] = None  # any import of it fails

import torch
torch.set_num_threads(1)
snippets, texts = json.loads(sys.stdin.read())
answers = {}
with contextlib.redirect_stdout(sys.stderr):
    for name, (folder, code) in snippets.items():
        os.chdir(folder)
        names = {}
        exec(code, names)
        answers[name] = names["logits"](texts).tolist()
print(json.dumps(answers))
"""
RESULTS = ("oof_proba.csv", "thresholds.json", "metrics.json", "test_proba.csv", "submission.csv")


@pytest.fixture(scope="session")
def train(emotion_table):
    """45 training rows; two of them have the same text."""
    table = emotion_table(45)
    table.loc[40, "text"] = table.loc[7, "text"]
    return table


@pytest.fixture(scope="session")
def test(emotion_table):
    """12 test rows without labels; the fifth text is empty."""
    table = emotion_table(12, seed=5)[["id", "text"]].assign(id=[f"t{i:02d}" for i in range(12)])
    table.loc[4, "text"] = ""
    return table


@pytest.fixture(scope="session")
def sample(test, emotion_table):
    """A sample submission with rows and label columns in an order of its own."""
    sample = emotion_table(12)[["fear", "joy", "anger"]].assign(id=list(test["id"]))[["id", "fear", "joy", "anger"]]
    return sample.iloc[::-1].reset_index(drop=True)


@pytest.fixture(scope="session")
def tfidf_recipe():
    """Factory of recipes of the classical baseline; `.` is written `__`."""
    from lora_cls.recipe import load_recipe

    def make(**overrides):
        values = {"tfidf": {"min_df": 1}, "cv": {"n_splits": 3}, "thresholds": {"min_positives": 2}}
        return load_recipe(values, {key.replace("__", "."): value for key, value in overrides.items()})

    return make


@pytest.fixture(scope="session")
def small_recipe(tiny_recipe):
    """`tiny_recipe` on one thread: quick beside other work, and the same bytes in every process."""
    return lambda kind, **overrides: tiny_recipe(kind, **{"engine__num_threads": 1} | overrides)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, train, test, sample, tfidf_recipe, small_recipe):
    """Factory `finished(kind)` of a finished run (a RunFolder that must not be changed).

    `tfidf`: three folds, from files, with a sample submission. `llama`: bf16 base, LoRA. `bert`: full fine-tuning.
    `gemma3`: 4-bit, LoRA, a tokenizer that pads left. The last three: two folds of two epochs, from DataFrames.
    """
    made = {}

    def make(kind):
        if kind in made:
            return made[kind]
        from lora_cls.commands.cross_validation import cross_validate

        folder = tmp_path_factory.mktemp(kind)
        if kind == "tfidf":
            names = {"train": train, "test": test, "sample_submission": sample}
            for name, table in names.items():
                table.to_csv(folder / f"{name}.csv", index=False)
            files = {name: folder / f"{name}.csv" for name in names}
            made[kind] = cross_validate(tfidf_recipe(), out=folder / "run", **files)
        else:
            recipe = {
                "llama": lambda: small_recipe("llama", backbone__dtype="bfloat16"),
                "bert": lambda: small_recipe("bert", lora=None, train__learning_rate=1e-3),
                "gemma3": lambda: small_recipe("gemma3", quantization={"load_in_4bit": True}),
            }[kind]()
            made[kind] = cross_validate(recipe, train, test, folder / "run")
        return made[kind]

    return make


@pytest.fixture(scope="session")
def blocks():
    """Function that gives the Python blocks of a folder's README."""
    return lambda folder: re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)


@pytest.fixture(scope="session")
def snippet_answers(blocks):
    """Function `answers({name: folder}, texts)`: logits by each README's snippet, run where lora_cls is not."""

    def answers(folders, texts):
        snippets = {name: (str(folder), blocks(folder)[0]) for name, folder in folders.items()}
        done = subprocess.run(
            [sys.executable, "-c", RUN_SNIPPETS], input=json.dumps([snippets, texts]), capture_output=True, text=True,
            env=os.environ.copy(),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return {name: np.array(found) for name, found in json.loads(done.stdout.splitlines()[-1]).items()}

    return answers


@pytest.fixture
def copy_of(tmp_path):
    """Function that copies a run folder, for tests that change it; keeps its name."""
    from lora_cls.runs import RunFolder

    def copy(run):
        return RunFolder(shutil.copytree(run.path, tmp_path / "copy" / run.path.name))

    return copy


@pytest.fixture
def unsummed():
    """Function that takes the sums of its files out of a run, so that a test, or an attacker, can change them."""

    def forget(path):
        info = json.loads((path / "run.json").read_text())
        (path / "run.json").write_text(json.dumps(info | {"files": {}, "sha256": None}))

    return forget


@pytest.fixture(scope="session")
def results():
    """Function that reads what a run answers, as bytes: its five result files and every fold's logits."""

    def read(run):
        files = [run.path / name for name in RESULTS]
        files += sorted(run.path.glob("fold-*/*.npy"))
        return {str(file.relative_to(run.path)): file.read_bytes() for file in files if file.is_file()}

    return read


@pytest.fixture
def damage():
    """Function that cuts a file to half its size."""

    def cut(file):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        return file

    return cut
