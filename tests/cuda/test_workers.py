"""Two workers share one GPU: `lora-cls run RECIPE --workers 2`."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import yaml

from lora_cls.runs import RunFolder

MAIN = "from lora_cls.cli import main; main()"


def lora_cls(*arguments):
    """The command line in a process of its own, without colours and with wide lines."""
    return subprocess.run(
        [sys.executable, "-c", MAIN, *map(str, arguments)], capture_output=True, text=True,
        env=os.environ | {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def workers():
    """Skips where this version has no such option."""
    if "--workers" not in lora_cls("run", "--help").stdout:
        pytest.skip("`lora-cls run --help` has no --workers")


def test_two_on_one_gpu(workers, tiny_recipe, train, test, tmp_path, device):
    """All folds are there, trained on the GPU, and say what one process says; to the byte where a CPU stands for it."""
    recipe = tiny_recipe("llama", cv__n_splits=4, backbone__dtype="float32", engine__deterministic=True)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.to_dict()))
    train.to_csv(tmp_path / "train.csv", index=False)
    test.to_csv(tmp_path / "test.csv", index=False)
    files = ["--train", tmp_path / "train.csv", "--test", tmp_path / "test.csv"]
    runs = []
    for name, more in (("one", []), ("two", ["--workers", 2])):
        done = lora_cls("run", tmp_path / "recipe.yaml", *files, "--out", tmp_path / name, *more)
        assert done.returncode == 0, done.stderr
        runs.append(RunFolder(tmp_path / name))
    one, two = runs
    assert two.finished_folds == [0, 1, 2, 3]
    assert two.info.choices["device"] == device.type
    for fold in range(4):
        found, expected = (np.load(run.fold(fold).oof_logits) for run in (two, one))
        np.testing.assert_array_equal(found, expected)
    assert list(pd.read_csv(two.path / "submission.csv")) == list(pd.read_csv(one.path / "submission.csv"))
