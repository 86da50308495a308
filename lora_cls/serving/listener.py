"""The application behind its guard, on connections that are closed where nothing comes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from lora_cls.serving.app import make_app
from lora_cls.serving.guard import Guard
from lora_cls.serving.limits import Limits
from lora_cls.serving.metrics import Metrics
from lora_cls.serving.served import Served


def make_server(
    served: dict[str, Served],
    limits: Limits,
    token: str | None,
    hosts: frozenset[str] | None,
    failed: Callable[[BaseException], None],
) -> uvicorn.Server:
    """Uvicorn, ready to run; see `make_app` and `Guard`."""
    metrics = Metrics()
    app = make_app(served, limits, metrics, failed)
    config = uvicorn.Config(
        Guard(app, limits, metrics, token, hosts), http=type("Protocol", (Protocol,), {"seconds": limits.reading}),
        ws="none", lifespan="on", log_level="warning", access_log=False, server_header=False, proxy_headers=False,
        limit_concurrency=limits.connections, timeout_keep_alive=30, timeout_graceful_shutdown=int(limits.seconds) + 1,
    )  # fmt: skip
    return uvicorn.Server(config)


class Protocol(H11Protocol):
    """Uvicorn's, which waits for ever for the first line of a request and for its headers."""

    seconds = 10.0
    _seen: Any = None
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Send what is written at once, and look again in some seconds."""
        # asyncio does so only for sockets that name their protocol: 40 ms of an answer otherwise (Nagle's algorithm)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
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
