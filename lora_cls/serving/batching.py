"""Requests that wait, answered together: rows of several clients in one pass, one pass at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from lora_cls.machine import give_back_memory
from lora_cls.serving.served import Row, Served

ROWS = 64  # of a pass: of a larger request, the others are answered in between
GIVES_BACK = 10.0  # seconds after which freed memory goes back to the system
CHARACTERS = 200_000  # of a pass: so many take long to be tokenised, whatever the model reads of them


class TooManyWaitError(Exception):
    """No further request may wait."""


@dataclass(eq=False)
class _Request:
    served: Served
    rows: Sequence[Row]
    future: asyncio.Future[None]
    arrived: float
    left: list[int]  # positions of rows that are to be answered, the longest first
    y_score: np.ndarray
    y_pred: np.ndarray


@dataclass(eq=False)
class _Pass:
    served: Served
    parts: list[tuple[_Request, list[int]]] = field(default_factory=list)

    @property
    def rows(self) -> list[Row]:
        return [request.rows[i] for request, positions in self.parts for i in positions]


def length(row: Row) -> int:
    """Characters of a row."""
    return len(row) if isinstance(row, str) else sum(map(len, row.values()))


class Batcher:
    """One thread that asks the models, and the requests that wait for it.

    A pass takes rows of one run: of every request in turn those of similar length, up to `ROWS`. Where the last pass
    held several requests, the next waits a few milliseconds for as many; a client that is alone never waits.

    Parameters
    ----------
    window : seconds that a request waits for others at most
    most_waiting : requests
    told : called after a pass with its rows, its requests, and its seconds
    """

    def __init__(self, window: float, most_waiting: int, told: Callable[[int, int, float], None]) -> None:
        self._window, self._most_waiting, self._told = window, most_waiting, told
        self._waiting: list[_Request] = []
        self._came = asyncio.Event()
        self._together = 1
        self._gave_back = time.monotonic()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="models")

    @property
    def n_waiting(self) -> int:
        """Requests that are not answered yet."""
        return len(self._waiting)

    async def answer(self, served: Served, rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities and decisions, each of shape (n_rows, n_labels); cancelled, what is left of it is not asked.

        Raises
        ------
        TooManyWaitError
            At once.
        LoraClsError
            What the models say of these rows.
        """
        if len(self._waiting) >= self._most_waiting:
            raise TooManyWaitError
        shape = (len(rows), len(served.label_names))
        order = sorted(range(len(rows)), key=lambda i: -length(rows[i]))
        future = asyncio.get_running_loop().create_future()
        request = _Request(
            served, rows, future, time.monotonic(), order, np.empty(shape), np.empty(shape, dtype=np.int8)
        )
        self._waiting.append(request)
        self._came.set()
        try:
            await future
        finally:
            self._waiting.remove(request)
        return request.y_score, request.y_pred

    async def run(self) -> None:
        """Answer until cancelled."""
        while True:
            await self._some_wait()
            taken = self._take()
            if taken is not None:
                await self._ask(taken)
                await asyncio.sleep(0)  # those who were answered go first

    async def in_thread(self, call: Callable[[], object]) -> None:
        """Call something in the thread of the models."""
        await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def close(self) -> None:
        """End the thread, once it is free."""
        self._thread.shutdown(cancel_futures=True)

    def _open(self) -> list[_Request]:
        return [request for request in self._waiting if request.left and not request.future.done()]

    async def _some_wait(self) -> None:
        while not (found := self._open()):
            self._came.clear()
            await self._came.wait()
        until = found[0].arrived + self._window
        while len(self._open()) < self._together and (left := until - time.monotonic()) > 0:
            self._came.clear()
            try:
                await asyncio.wait_for(self._came.wait(), left)
            except asyncio.TimeoutError:
                return

    def _take(self) -> _Pass | None:
        """The rows of the next pass. A request of which rows are left goes behind the others."""
        found = self._open()
        if not found:
            return None
        taken, rows, characters = _Pass(found[0].served), 0, 0
        for request in found:
            if request.served is not taken.served:
                continue
            positions: list[int] = []
            while request.left and rows < ROWS:
                size = length(request.rows[request.left[0]])
                if rows and characters + size > CHARACTERS:
                    break
                positions.append(request.left.pop(0))
                rows, characters = rows + 1, characters + size
            if positions:
                taken.parts.append((request, positions))
            if request.left and positions:
                self._waiting.remove(request)
                self._waiting.append(request)
        self._together = len(taken.parts)
        return taken

    def _answer(self, taken: _Pass) -> tuple[np.ndarray, np.ndarray]:
        """What the models say, in their thread."""
        found = taken.served.answer(taken.rows)
        if time.monotonic() - self._gave_back > GIVES_BACK:
            give_back_memory()
            self._gave_back = time.monotonic()
        return found

    async def _ask(self, taken: _Pass) -> None:
        loop, started = asyncio.get_running_loop(), time.monotonic()
        try:
            y_score, y_pred = await loop.run_in_executor(self._thread, self._answer, taken)
        except Exception as error:
            if len(taken.parts) > 1:  # whose rows they are is to hear of it, and nobody else
                for part in taken.parts:
                    await self._ask(_Pass(taken.served, [part]))
            elif not taken.parts[0][0].future.done():
                taken.parts[0][0].future.set_exception(error)
            return
        self._told(len(y_score), len(taken.parts), time.monotonic() - started)
        first = 0
        for request, positions in taken.parts:
            request.y_score[positions] = y_score[first : first + len(positions)]
            request.y_pred[positions] = y_pred[first : first + len(positions)]
            first += len(positions)
            if not request.left and not request.future.done():
                request.future.set_result(None)
