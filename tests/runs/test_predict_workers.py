"""Tables that other processes answer: the same files as by this process alone."""

import os
import signal
import sys

import pytest

from lora_cls.commands import answers as module
from lora_cls.commands import predict
from lora_cls.commands.blend import blend as make_blend
from lora_cls.commands.cross_validation import cross_validate
from lora_cls.commands.predict import predict_file
from lora_cls.errors import RecipeError, RunError
from lora_cls.execution.local import LocalExecutor

DIE_ONCE = """
import os, signal
from pathlib import Path
from lora_cls.commands.predict import Classifier
from lora_cls.commands.predict_worker import main

logits = Classifier.logits

def die(self, *rest):
    found = logits(self, *rest)
    if not Path({flag!r}).exists():
        Path({flag!r}).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return found

Classifier.logits = die
main()
"""


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """As the tests' own process has it."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


def files(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("kind", ["tfidf", "gemma3"])
def test_same_files(kind, finished, test, tmp_path):
    """A table of one piece is shared out by models; logs and pieces are gone afterwards."""
    alone = predict_file(finished(kind), test, tmp_path / "alone")
    assert files(predict_file(finished(kind), test, tmp_path / "shared", workers=2)) == files(alone)
    assert sorted(files(alone)) == ["submission.csv", "test_proba.csv"]


def test_a_blend(finished, train, test, sample, tfidf_recipe, tmp_path):
    """Its runs answer within the processes."""
    other = cross_validate(tfidf_recipe(), train, test, tmp_path / "other", sample_submission=sample)
    blend = make_blend([finished("tfidf"), other], tmp_path / "blend")
    alone = predict_file(blend, test, tmp_path / "alone", outside_runs=True)
    shared = predict_file(blend, test, tmp_path / "shared", workers=2, outside_runs=True)
    assert files(shared) == files(alone)


def test_a_process_dies(finished, test, tmp_path, monkeypatch, capsys):
    """Its piece is begun again, in several pieces; who answered before is not asked again."""
    monkeypatch.setattr(predict, "ROWS_PER_PIECE", 5)
    alone = predict_file(finished("tfidf"), test, tmp_path / "alone")
    script = DIE_ONCE.format(flag=str(tmp_path / "flag"))
    monkeypatch.setattr(module, "COMMAND", [sys.executable, "-c", script])
    shared = predict_file(finished("tfidf"), test, tmp_path / "shared", workers=2, show=True)
    assert files(shared) == files(alone)
    said = capsys.readouterr().err
    assert "ended by SIGKILL" in said and "It is begun again." in said
    assert f"{len(test)} of {len(test)} rows answered" in said


def test_all_processes_die(finished, test, tmp_path, monkeypatch):
    """After three tries it ends with the reason; what others answered is kept, and the same call goes on."""
    command = module.COMMAND
    monkeypatch.setattr(module, "COMMAND", [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    with pytest.raises(RunError, match="failed 3 times") as caught:
        predict_file(finished("tfidf"), test, tmp_path / "out", workers=2)
    assert "the same command goes on" in str(caught.value) and "--resume" not in str(caught.value)
    assert not (tmp_path / "out" / "submission.csv").exists()
    monkeypatch.setattr(module, "COMMAND", command)
    alone = predict_file(finished("tfidf"), test, tmp_path / "alone")
    assert files(predict_file(finished("tfidf"), test, tmp_path / "out")) == files(alone)


def test_a_damaged_model(finished, copy_of, test, tmp_path):
    """What every process would meet ends all at once, with its sentence."""
    run = copy_of(finished("gemma3"))
    adapter = next(run.path.rglob("adapter_model.safetensors"))
    adapter.write_bytes(adapter.read_bytes()[:-100])
    with pytest.raises(RunError, match="adapter_model"):
        predict_file(run, test, tmp_path / "out", workers=2)


@pytest.mark.parametrize(
    ("given", "named"),
    [({"workers": 0}, "--workers"), ({"executor": "dask"}, "--executor"), ({"workers": "two"}, "auto")],
)
def test_refused(given, named, finished, test, tmp_path):
    """Before anything is read."""
    with pytest.raises(RecipeError, match=named):
        predict_file(finished("tfidf"), test, tmp_path / "out", **given)


def test_parts():
    """As many tasks as asked for, as far as there are models."""
    assert len(module.parts_of([(0, list(range(10)))], 4)) == 4
    assert module.parts_of([(0, [0, 1]), (1, [1])], 8) == [(0, [0]), (0, [1]), (1, [1])]
    assert module.parts_of([], 4) == []


def test_nothing_is_left(finished, test, tmp_path, monkeypatch, hears_ctrl_c):
    """Ctrl-C ends the processes, too."""
    started = []
    start = LocalExecutor.start

    def noted(self, *rest):
        process = start(self, *rest)
        started.append(process)
        if len(started) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return process

    monkeypatch.setattr(LocalExecutor, "start", noted)
    with pytest.raises(KeyboardInterrupt):
        predict_file(finished("tfidf"), test, tmp_path / "out", workers=2)
    assert all(process._process.poll() is not None for process in started)
