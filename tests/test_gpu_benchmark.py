"""The benchmark of a GPU, as far as a machine without one can run it."""

import argparse
import os
import subprocess
import sys

import pytest
import yaml

from benchmarks import gpu


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """Function `bench(*arguments)` that calls the benchmark on the CPU; returns what it wrote."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))

    def call(*arguments):
        given = ["gpu", "--device", "cpu", "--quick", "--threads", "1", "--results", tmp_path / "results", *arguments]
        monkeypatch.setattr(sys, "argv", [str(part) for part in given])
        gpu.main()
        return (tmp_path / "results" / "gpu_cpu.md").read_text(encoding="utf-8")

    return call


def test_all_parts(bench, tiny_recipe, tmp_path):
    """Every table has its figures, the file says that it is of a CPU, and where an attention fails, why."""
    recipe = tiny_recipe("bert", data__max_length=128)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe.to_dict()))
    text = bench("--models", tmp_path / "tiny.yaml")
    assert "no figure here says anything of a GPU" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    for begin in (
        "| good practice | float32 |",
        "| LoRA | float32 |",
        "| `tiny` | LoRA | 8 x 128 |",
        "| `tiny` | float32 |",
    ):
        (found,) = [line for line in rows if line.startswith(begin)]
        assert "failed" not in found, text
    assert any(line.startswith("| sdpa, padded, with a mask | ") and "failed" not in line for line in rows)
    assert any(line.startswith("| flash-attn, no padding | failed: ") for line in rows)
    assert "Failed:" not in text


def test_a_part_that_fails(tmp_path):
    """It is written with the last line that it said, or its time, and the rest goes on."""
    given = argparse.Namespace(device="cpu", minutes=1, rows=8, rounds=1)
    one = gpu.Bench(given, tmp_path)

    def fails(seconds, said):
        said.write("a warning\nError: No folder at nowhere.\n")
        said.flush()
        raise gpu.Failed("exit code 2")

    def waits(seconds, said):
        raise subprocess.TimeoutExpired("x", seconds)

    assert one.attempt("first", fails) == "failed: Error: No folder at nowhere."
    assert one.attempt("second", waits).startswith("failed: ran over its ")
    assert one.attempt("third", lambda seconds, said: {"rate": 1.0}) == {"rate": 1.0}
    assert [failure.partition(":")[0] for failure in one.failures] == ["first", "second"]


def test_no_time(bench):
    """What the time does not suffice for is written as not run."""
    text = bench("--minutes", "0.01")
    assert "not run: the time was up" in text
    assert "failed" not in text


def test_a_cpu_writes_no_result(monkeypatch, capsys):
    """Without a folder of its own a CPU's figures are refused."""
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "--device cpu needs --results" in capsys.readouterr().err
