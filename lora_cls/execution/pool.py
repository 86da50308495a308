"""Tasks shared out to processes: each is done once, by whichever is free, and again where its process died."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_cls.errors import RunError
from lora_cls.execution.executor import Executor, Process
from lora_cls.execution.local import end_of

MOST_ATTEMPTS = 3
"""Processes that may begin a task before it counts as failed."""
GLANCE = 0.2
"""Seconds between two looks at whether all is to end."""


def in_threads(n_workers: int, work: Callable[[int], None], ended: threading.Event) -> None:
    """Call `work` with each worker's number, in a thread each, and wait for all; Ctrl-C is heard meanwhile.

    Parameters
    ----------
    ended : set when this returns or is interrupted, so that `work` returns soon
    """
    # events, as Python 3.11 takes a thread for ended whose `join` was interrupted
    idle = [threading.Event() for _ in range(n_workers)]

    def until_idle(worker: int) -> None:
        try:
            work(worker)
        finally:
            idle[worker].set()

    threads = [threading.Thread(target=until_idle, args=(worker,)) for worker in range(n_workers)]
    try:
        for thread in threads:
            thread.start()
        for event in idle:
            while not event.wait(GLANCE):  # in short waits, so that Ctrl-C is heard
                pass
    finally:
        ended.set()
        for thread, event in zip(threads, idle, strict=True):
            if thread.ident is not None:
                event.wait()


class Pool:
    """Processes that each do one task after the other.

    A process is told `job` first and then one task at a time. What it says while it works on one belongs to that task;
    `{"done": ...}` ends it, and `{"failed": "why"}` ends all: a reason that every process would meet.

    Parameters
    ----------
    command : of every process
    job : what every process is told first
    logs : folder of their logs, `worker-0.log` and so on
    title : what a task is called in messages
    task : what a process is told of a task; `{"task": 3}` where None
    heard : told the task, where it is done, and a message
    done : told of a task that is finished, and what was said of it
    say : told of what went wrong and is tried again
    again : what becomes of a task whose process died
    advice : the last sentence of an error
    """

    def __init__(
        self,
        executor: Executor,
        command: Sequence[str],
        job: Mapping[str, Any],
        logs: Path,
        *,
        title: Callable[[int], str],
        heard: Callable[[int, str, dict[str, Any]], None],
        done: Callable[[int, Any], None],
        say: Callable[[str], None],
        task: Callable[[int], dict[str, Any]] | None = None,
        again: str = "It is begun again, from its last finished epoch.",
        advice: str = "What is finished is kept: the same command with --resume goes on.",
    ) -> None:
        self._message = task or (lambda number: {"task": number})
        self.again, self.advice = again, advice
        self.executor, self.command, self.job, self.logs = executor, command, job, logs
        self.title, self.heard, self.done, self.say = title, heard, done, say
        self._waiting: deque[int] = deque()
        self._lost: Counter[int] = Counter()
        self._failures: dict[int, str] = {}
        self._ended = threading.Event()
        self._problems: list[BaseException] = []
        self._lock = threading.RLock()
        self._open = 0  # tasks that are neither finished nor failed

    def run(self, tasks: Sequence[int]) -> None:
        """Do all tasks; returns when they are finished.

        Raises
        ------
        RunError
            If a process says that something cannot be done, which ends all; or, once all else is finished, if a task
            was begun by three processes that died.
        """
        self._waiting.extend(tasks)
        self._open = len(tasks)
        n_workers = min(self.executor.n_workers, len(tasks))
        in_threads(n_workers, self._work, self._ended)
        if self._problems:
            raise self._problems[0]
        if self._failures:
            told = [f"{self.title(task)}: {reason}" for task, reason in sorted(self._failures.items())]
            raise RunError("\n".join([*told, self.advice]))

    def _work(self, worker: int) -> None:
        process: Process | None = None
        try:
            while self._open and not self._ended.is_set():
                if process is None and self._waiting:
                    process = self.executor.start(worker, self.command, self.logs / f"worker-{worker}.log")
                    process.send(**self.job)
                task = self._next() if process is not None and process.placed else None
                if task is None:
                    self._ended.wait(GLANCE)
                elif process is not None and not self._do(process, task):
                    process.stop()
                    process = None
            if process is not None and process.placed and not self._ended.is_set():
                process.end()
                while process.code is None and not self._ended.is_set():
                    process.heard(GLANCE)
        except BaseException as error:
            self._problems.append(error)
            self._ended.set()
        finally:
            if process is not None:
                process.stop()

    def _next(self) -> int | None:
        """A task to do; None where none waits now. One that is lost by another worker may still come."""
        with self._lock:
            return self._waiting.popleft() if self._waiting else None

    def _do(self, process: Process, task: int) -> bool:
        """Have a task done; whether the process can be given another one."""
        process.send(**self._message(task))
        while not self._ended.is_set():
            for message in process.heard(GLANCE):
                if "failed" in message:
                    raise RunError(str(message["failed"]))
                with self._lock:
                    if "done" in message:
                        self._open -= 1
                        self.done(task, message["done"])
                        return True
                    self.heard(task, process.where, message)
            if process.code is not None:
                self._again(task, end_of(process.code, process.log), process.where)
                return False
        return False

    def _again(self, task: int, reason: str, where: str) -> None:
        with self._lock:
            self._lost[task] += 1
            if self._lost[task] < MOST_ATTEMPTS:
                self.say(f"{self.title(task)}, {where}: {reason}. {self.again}")
                self._waiting.appendleft(task)
                return
            self._open -= 1
            self._failures[task] = f"failed {MOST_ATTEMPTS} times, the last time as {reason}"
            self.say(f"{self.title(task)}: {self._failures[task]}.")
