"""The table of tasks that other processes do."""

import io

import pytest
from rich.console import Console
from rich.progress import Progress as Bars

from lora_cls.training import task_table
from lora_cls.training.task_table import TaskTable


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(task_table.time, "monotonic", lambda: now[0])
    return now


def shown(table):
    console = Console(file=io.StringIO(), width=100)
    console.print(table._shown())
    return [line.split() for line in console.file.getvalue().splitlines()]


def test_rows_say_how_far_each_task_is(clock):
    """Minutes left count from when a task was first heard of, so that one that was gone on with is not told wrongly."""
    table = TaskTable(["fold 0", "fold 1", "fold 2"], Bars(console=Console(file=io.StringIO())))
    table.heard("fold 0", "process 7", {"step": 3, "share": 0.5, "loss": 0.75, "learning_rate": 0.1})
    clock[0] += 60
    record = {"epoch": 3, "loss": 0.5, "rows_per_second": 42.4}
    table.heard("fold 0", "process 7", {"record": record, "n_epochs": 4})
    table.heard("fold 1", "GPU 1", {"step": 1, "share": 0.25, "loss": 0.9, "learning_rate": 0.1})
    lines = shown(table)
    assert lines[1] == ["fold", "0", "process", "7", "3/4", "75%", "0.5000", "42", "1.0"]
    assert lines[2] == ["fold", "1", "GPU", "1", "25%", "0.9000", "begun"]
    assert lines[3] == ["fold", "2", "waits"]
    assert " ".join(lines[4]) == "0 of 3 done, 1.0 min, about 2.0 min left"
    table.done("fold 0", "macro-F1 0.7000")
    assert shown(table)[1][-2:] == ["macro-F1", "0.7000"]
    assert " ".join(shown(table)[4]).startswith("1 of 3 done, 1.0 min")


def test_a_task_that_moves_counts_anew(clock):
    table = TaskTable(["fold 0"], Bars(console=Console(file=io.StringIO())))
    table.heard("fold 0", "process 7", {"step": 3, "share": 0.5, "loss": 0.75, "learning_rate": 0.1})
    clock[0] += 600  # that process died, and another one goes on from the last finished epoch
    table.heard("fold 0", "process 8", {"step": 2, "share": 0.25, "loss": 0.8, "learning_rate": 0.1})
    clock[0] += 60
    table.heard("fold 0", "process 8", {"step": 3, "share": 0.5, "loss": 0.7, "learning_rate": 0.1})
    assert shown(table)[1][-1] == "2.0"
