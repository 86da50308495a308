"""Folds of one run that several shells train: in one folder, as a job array does, and in copies put together."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lora_cls import cross_validate

ROOT = Path(__file__).parents[2]
SAME = ("oof_proba.csv", "thresholds.json", "metrics.json")


@pytest.fixture
def shells(tiny_recipe, emotion_table, tmp_path, monkeypatch):
    """Factory `shells(kind, [arguments, ...])`: `lora-cls run` once for each, all at the same time; and the folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    emotion_table(80).to_csv("train.csv", index=False)

    def run(kind, *calls):
        recipe = "tfidf-logreg"
        if kind != "tfidf":
            recipe = "recipe.yaml"
            Path(recipe).write_text(yaml.safe_dump(tiny_recipe(kind).to_dict()))
        command = [sys.executable, "-c", "from lora_cls.cli import main; main()", "run", recipe]
        command += ["--train", "train.csv", "--set", "cv.n_splits=4"]
        started = [
            subprocess.Popen([*command, *call.split()], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for call in calls
        ]
        printed = [process.communicate(timeout=300)[0] for process in started]
        assert [process.returncode for process in started] == [0] * len(started), "\n".join(printed)
        return recipe

    return run


def same(folder, recipe):
    """Whether a run's files are those of one that nobody shared."""
    cross_validate(recipe, "train.csv", out="whole", overrides=["cv.n_splits=4"])
    return [name for name in SAME if (Path(folder) / name).read_bytes() != (Path("whole") / name).read_bytes()] == []


@pytest.mark.parametrize("kind", ["tfidf", "bert"])
def test_a_job_array(shells, kind):
    """One job begins the run; the others go on with it at the same time; whoever ends last has scored all folds."""
    shells(kind, "--out run --folds 0")
    recipe = shells(kind, *(f"--out run --folds {number} --resume" for number in (1, 2, 3)))
    shells(kind, "--out run --resume")
    assert same("run", recipe)


@pytest.mark.parametrize("kind", ["tfidf", "bert"])
def test_two_notebooks(shells, kind):
    """Each trains folds of its own in a run folder of its own; put together they are one run."""
    shells(kind, "--out first --folds 0,1", "--out second --folds 2,3")
    for number in (2, 3):
        shutil.copytree(f"second/fold-{number:02d}", f"first/fold-{number:02d}")
    recipe = shells(kind, "--out first --resume")
    assert same("first", recipe)
