"""Connections on which nothing comes are closed."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


class Protocol(H11Protocol):
    """Uvicorn's, which waits for ever for the first line of a request and for its headers."""

    seconds = 10.0
    _seen: Any = None
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Look again in some seconds."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(self.seconds, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        """Close what has been without a request since the last look, whatever came of the next one."""
        if self.cycle is None or (self.cycle.response_complete and self.cycle is self._seen):
            self.transport.close()
            return
        self._seen = self.cycle if self.cycle.response_complete else None
        self._timer = self.loop.call_later(self.seconds, self._look)
