"""Tasks shared out to real processes that do next to nothing: where one dies, fails, or all end."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from lora_cls.errors import RunError
from lora_cls.execution.local import LocalExecutor
from lora_cls.execution.pool import Pool

ROOT = Path(__file__).parents[2]
CHILD = """
import os, signal, sys, time
from pathlib import Path
from lora_cls.execution.child import Parent

parent = Parent()
said = parent.messages()
job = next(said)
for message in said:
    task = message["task"]
    parent.tell(begun=os.getpid())
    if task == job.get("fails"):
        parent.tell(failed="It cannot be done.")
    if task == job.get("dies") and (job["always"] or not Path(job["flag"]).exists()):
        Path(job["flag"]).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(job.get("seconds", 0))
    parent.tell(done=task)
"""
DRIVER = """
import sys
from pathlib import Path
from lora_cls.execution.local import LocalExecutor
from lora_cls.execution.pool import Pool

def heard(task, where, message):
    print(message["begun"], flush=True)

Pool(LocalExecutor(2), [sys.executable, "-c", {child!r}], {{"seconds": 600}}, Path({logs!r}), title=str, heard=heard,
     done=lambda *_: None, say=print).run([0, 1])
"""


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def work(tmp_path):
    """Have tasks 0 to 3 done by two processes; returns what was done, what was said, and who did it."""
    done, said, processes = {}, [], set()

    def run(**job):
        job = {"flag": str(tmp_path / "died"), "always": False, **job}
        Pool(
            LocalExecutor(2), [sys.executable, "-c", CHILD], job, tmp_path / "logs", title=lambda task: f"task {task}",
            heard=lambda task, where, message: processes.add(message["begun"]), done=done.__setitem__, say=said.append,
        ).run([0, 1, 2, 3])  # fmt: skip

    run.done, run.said, run.processes = done, said, processes
    return run


def gone(processes, seconds):
    """Which of them still run after so long at most."""
    ends = time.monotonic() + seconds
    while (left := [p for p in processes if psutil.pid_exists(p)]) and time.monotonic() < ends:
        time.sleep(0.05)
    return left


def test_a_lost_process_is_replaced(work):
    """Its task is done by another one."""
    work(dies=1)
    assert work.done == {task: task for task in range(4)}
    assert len(work.processes) >= 2
    assert [line for line in work.said if line.startswith("task 1") and "SIGKILL" in line]
    assert gone(work.processes, 0) == []


def test_lost_three_times(work):
    """The others are finished before the reason is said."""
    with pytest.raises(RunError, match="task 1: failed 3 times"):
        work(dies=1, always=True)
    assert sorted(work.done) == [0, 2, 3]


def test_what_every_process_would_meet(work):
    """Ends all, and at once."""
    began = time.monotonic()
    with pytest.raises(RunError, match=r"It cannot be done\."):
        work(fails=0, seconds=300)
    assert time.monotonic() - began < 60
    assert gone(work.processes, 0) == []


def test_ctrl_c(work, hears_ctrl_c):
    """Stops all, and nobody stays."""

    def interrupt():
        while len(work.processes) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        work(seconds=300)
    assert gone(work.processes, 0) == []


def test_the_driver_is_killed(tmp_path):
    """Its processes end with it, within seconds."""
    code = DRIVER.format(child=CHILD, logs=str(tmp_path))
    driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    processes = [int(driver.stdout.readline()) for _ in range(2)]
    driver.kill()
    driver.wait()
    driver.stdout.close()
    assert gone(processes, 15) == []
