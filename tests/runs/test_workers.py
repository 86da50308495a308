"""Folds that other processes train: the same files as by this process alone, whatever becomes of the processes."""

import os
import sys

import pytest

from lora_cls.commands import fold_training
from lora_cls.commands.cross_validation import cross_validate
from lora_cls.errors import DataError, RecipeError, RunError
from lora_cls.runs import RunFolder
from lora_cls.training.progress import Listener

DIE_ONCE = """
import os, signal
from pathlib import Path
import lora_cls.training.loop as loop
from lora_cls.commands.fold_worker import main

save = loop.save_state

def save_state(file, *rest):
    save(file, *rest)
    if not Path({flag!r}).exists():
        Path({flag!r}).touch()
        os.kill(os.getpid(), signal.SIGKILL)

loop.save_state = save_state
main()
"""
DIE_OF_FOLD_1 = """
import os, signal
from lora_cls.commands import fold_worker

train_fold = fold_worker.train_fold

def die_of_fold_1(run, trainer, number, **rest):
    return os.kill(os.getpid(), signal.SIGKILL) if number == 1 else train_fold(run, trainer, number, **rest)

fold_worker.train_fold = die_of_fold_1
fold_worker.main()
"""


class Heard(Listener):
    """What a tracker is told."""

    def __init__(self):
        self.epochs, self.folds, self.losses = [], {}, []

    def epoch_done(self, fold, record):
        self.epochs.append((fold, record["epoch"]))

    def loss_seen(self, fold, step, share, loss, learning_rate):
        self.losses.append((fold, step))

    def fold_done(self, run, fold, macro_f1):
        self.folds[fold] = macro_f1


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """As the tests' own process has it."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


def llama(small_recipe):
    return small_recipe("llama", backbone__dtype="bfloat16")


def test_same_files(finished, train, test, sample, tfidf_recipe, results, tmp_path):
    """From DataFrames, which are handed over as files and do not stay."""
    run = cross_validate(tfidf_recipe(), train, test, tmp_path / "run", sample_submission=sample, workers=2)
    assert results(run) == results(finished("tfidf"))
    assert len(list(run.files.logs.glob("worker-*.log"))) == 2
    assert not list(run.path.rglob("*.tmp")), "tables that were handed over"
    assert run.info.seconds["load"] > 0


def test_a_process_that_dies(finished, train, test, small_recipe, results, monkeypatch, tmp_path):
    """Another one goes on from the last finished epoch; trackers hear of every fold."""
    code = DIE_ONCE.format(flag=str(tmp_path / "died"))
    monkeypatch.setattr(fold_training, "COMMAND", [sys.executable, "-c", code])
    heard = Heard()
    run = cross_validate(llama(small_recipe), train, test, tmp_path / "run", workers=2, listeners=[heard])
    assert (tmp_path / "died").exists()
    assert results(run) == results(finished("llama"))
    assert len(heard.folds) == len(run.fold_numbers)
    assert {fold for fold, _ in heard.losses} == set(run.fold_numbers)
    assert len(heard.epochs) >= 3, "of four one may be lost with its process"


def test_a_fold_that_fails_three_times(finished, train, test, small_recipe, results, monkeypatch, tmp_path):
    """The reason is said, what is finished stays, and the run can be gone on with."""
    recipe = llama(small_recipe)
    with monkeypatch.context() as patch:
        patch.setattr(fold_training, "COMMAND", [sys.executable, "-c", DIE_OF_FOLD_1])
        with pytest.raises(RunError, match=r"fold 1: failed 3 times, .* SIGKILL(.|\n)* with --resume goes on"):
            cross_validate(recipe, train, test, tmp_path / "run", workers=2)
    assert RunFolder(tmp_path / "run").finished_folds == [0]
    run = cross_validate(recipe, train, test, tmp_path / "run", resume=True)
    assert results(run) == results(finished("llama"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"workers": 0}, "from 1 on, or auto. Got 0"),
        ({"workers": "many"}, "from 1 on, or auto. Got 'many'"),
        ({"executor": "slurm"}, "takes local, ray, or ray://HOST:PORT. Got 'slurm'"),
    ],
)
def test_what_is_refused(given, said, train, tfidf_recipe, tmp_path):
    with pytest.raises(RecipeError, match=said):
        cross_validate(tfidf_recipe(), train, out=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_a_dataframe_with_its_ids_in_the_index(finished, train, test, sample, tfidf_recipe, results, tmp_path):
    """As `read_csv(..., index_col="id")` makes it."""
    tables = (train.set_index("id"), test.set_index("id"))
    run = cross_validate(tfidf_recipe(), *tables, tmp_path / "run", sample_submission=sample, workers=2)
    assert results(run) == results(finished("tfidf"))


def test_a_dataframe_that_no_file_can_hold(train, tfidf_recipe, tmp_path):
    """Said in a sentence."""
    odd = train.assign(note=[object() for _ in range(len(train))])
    with pytest.raises(DataError, match="cannot be handed to other processes"):
        cross_validate(tfidf_recipe(), odd, out=tmp_path / "run", workers=2)
