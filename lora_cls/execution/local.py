"""Processes of this machine: one for each GPU, or so many that share the cores."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from lora_cls.execution.child import END
from lora_cls.files import make_folder
from lora_cls.machine import physical_cores

PATIENCE = 10.0
"""Seconds that a process has to end by itself."""
LOST = 1000
"""The code, beyond those of any system, of a process that is gone with the machine or the service that it ran on."""


class LocalProcess:
    """A process of this machine that works for this one; see `lora_cls.execution.child.Parent` for its side.

    Parameters
    ----------
    command : the program and its arguments
    log : what it prints is added there
    environment : variables beside those of this process
    where : what stands before the number of the process in tables and messages
    folder : that it works in; that of this process where None

    Attributes
    ----------
    where : the place and the number of the process, which no other has
    """

    placed = True

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        where: str = "",
        folder: Path | None = None,
    ) -> None:
        make_folder(log.parent)
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output,
                env={**os.environ, **(environment or {})}, cwd=folder,
            )  # fmt: skip
        self.where = f"{where}process {self._process.pid}"
        self._said: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self.log.open("ab") as log, self._process.stdout as output:
            for line in output:
                try:
                    message = json.loads(line)
                    self._said.put(dict(message))
                except (ValueError, TypeError):  # a library that writes past Python's own standard output
                    log.write(line)
                    log.flush()

    @property
    def code(self) -> int | None:
        """The exit code, by convention minus the signal that ended it; None while it runs, or was not heard out."""
        code = self._process.poll()
        return None if code is None or self._listener.is_alive() or not self._said.empty() else code

    def send(self, **message: Any) -> None:
        """A message to the process; lost where it is gone, which `code` tells."""
        assert self._process.stdin is not None
        with suppress(OSError, ValueError):
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def heard(self, seconds: float) -> list[dict[str, Any]]:
        """What the process said since the last call; waits for so long at most."""
        messages: list[dict[str, Any]] = []
        deadline = time.monotonic() + seconds
        while True:
            try:
                wait = 0.0 if messages else max(0.0, deadline - time.monotonic())
                messages.append(self._said.get(timeout=wait) if wait else self._said.get_nowait())
            except Empty:
                return messages

    def end(self) -> None:
        """It ends when it has done what it was told."""
        self.send(**END)

    def stop(self) -> None:
        """End it now, and wait until it is gone."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()  # it ends by itself
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


class LocalExecutor:
    """Processes of this machine. With GPUs each process sees one of them, in turn; several may share one.

    Parameters
    ----------
    gpus : what `CUDA_VISIBLE_DEVICES` calls them; empty for processes on the CPU
    """

    def __init__(self, n_workers: int, gpus: Sequence[str] = ()) -> None:
        self.n_workers, self.gpus = n_workers, list(gpus)
        self.n_threads = max(1, physical_cores() // n_workers) if n_workers > 1 else None

    def start(self, worker: int, command: Sequence[str], log: Path) -> LocalProcess:
        """See `Executor.start`."""
        if not self.gpus:
            return LocalProcess(command, log)
        gpu = self.gpus[worker % len(self.gpus)]
        return LocalProcess(command, log, {"CUDA_VISIBLE_DEVICES": gpu}, f"GPU {gpu}, ")

    def close(self) -> None:
        """Nothing is held."""


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` calls them."""
    import torch  # heavy, and only asked where processes are started

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]


def end_of(code: int, log: Path) -> str:
    """Why a process ended with an exit code, as far as it or its log tells."""
    if code == LOST:
        return "its node, or Ray's process there, was lost"
    if code < 0:
        name = signal.Signals(-code).name
        more = ", as systems do where the memory is full" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{more}"
    with suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if lines:
            return f"{lines[-1].removeprefix('Error: ')[:500]} (all of it in {log})"
    return f"its process ended with code {code}"
