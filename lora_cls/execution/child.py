"""The inside of a process that trains for another one: what it is told, what it tells, and how it ends with it."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

from lora_cls.errors import LoraClsError, words_of

END: dict[str, Any] = {"end": True}
"""The message after which nothing more comes: the process ends when it has done what it was told before."""


class Parent:
    """Who started this process, by messages: a line of JSON each, through standard input and standard output.

    Whatever else is printed goes where standard error goes, into the log. The process ends at once when its standard
    input is closed, as the system does when its parent dies: its files are whole or absent at any moment. Ctrl-C is
    for the parent.

    Parameters
    ----------
    at_end : called before the process ends so
    """

    def __init__(self, at_end: Callable[[], None] = lambda: None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._output = os.dup(1)
        os.dup2(2, 1)
        sys.stdout = sys.stderr
        self._at_end = at_end
        self._said: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self._telling = threading.Lock()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        rest = b""
        with suppress(OSError):
            while more := os.read(0, 1 << 16):  # not sys.stdin's, whose lock would be held as the process ends
                *lines, rest = (rest + more).split(b"\n")
                for line in lines:
                    self._said.put(json.loads(line))
        with suppress(OSError):
            self._at_end()
        os._exit(130)

    def messages(self) -> Iterator[dict[str, Any]]:
        """What the parent says, until it says `END`."""
        while (message := self._said.get()) != END:
            yield message

    def tell(self, **message: Any) -> None:
        """Send a message; none arrives where the parent does not listen any more."""
        line = json.dumps(message).encode() + b"\n"
        with self._telling, suppress(OSError):
            while line:
                line = line[os.write(self._output, line) :]


def work_for_parent(work: Callable[[Mapping[str, Any], Parent], None]) -> None:
    """Do what the parent's first message is about; exit code 2 after a mistake that the user can mend, which the parent
    is told of."""
    parent = Parent()
    try:
        with words_of("shell"):
            work(next(parent.messages()), parent)
    except LoraClsError as error:
        parent.tell(failed=str(error))
        sys.exit(2)
