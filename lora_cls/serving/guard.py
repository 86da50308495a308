"""What stands before the application: who may ask, how much a request may hold, how long it may take to arrive."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from lora_cls.serving.limits import Limits
from lora_cls.serving.metrics import Metrics

Message: TypeAlias = "MutableMapping[str, Any]"
Receive: TypeAlias = "Callable[[], Awaitable[Message]]"
Send: TypeAlias = "Callable[[Message], Awaitable[None]]"
Asgi: TypeAlias = "Callable[[Message, Receive, Send], Awaitable[None]]"

PATHS = ("/", "/healthz", "/readyz", "/metrics", "/openapi.json", "/v1/runs", "/v1/predict")
SECRET = ("/metrics", "/v1/")  # where a token is asked for
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
]


class Guard:
    """Refuses before anything is parsed, reads the body with bounds, and counts.

    Parameters
    ----------
    token : what `Authorization: Bearer` must say; None lets everybody ask
    hosts : names by which the server may be called, None for any. A page elsewhere whose name is made to lead to this
        machine (DNS rebinding) is told from a user by it.
    """

    def __init__(
        self, app: Asgi, limits: Limits, metrics: Metrics, token: str | None, hosts: frozenset[str] | None
    ) -> None:
        self._app, self._limits, self._metrics = app, limits, metrics
        self._token = None if token is None else token.encode()
        self._hosts = hosts

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 499  # the client left

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        try:
            refused = self._refused(scope)
            if refused is None:
                refused, body = await self._read(receive)
            if refused is None:
                await self._app(scope, _replayed(body, receive), noted)
            elif refused[0] != 499:
                await _refuse(noted, *refused)
        finally:
            path = scope["path"] if scope["path"] in PATHS else "other"
            self._metrics.request(path, status, time.monotonic() - started)

    def _refused(self, scope: Message) -> tuple[int, str] | None:
        headers = dict(scope["headers"])
        if self._hosts is not None:
            host = headers.get(b"host", b"").decode("latin-1").lower()
            name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
            if name not in self._hosts:
                return 400, (
                    "This server listens on this machine alone and is called by another name in the header Host. Call "
                    "it by 127.0.0.1 or localhost; behind a proxy, set LORA_CLS_TOKEN."
                )
        if self._token is not None and scope["path"].startswith(SECRET):
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self._token):
                return 401, "This server asks for a token: send it as the header 'Authorization: Bearer TOKEN'."
        size = headers.get(b"content-length", b"")
        if size.isdigit() and int(size) > self._limits.body:
            return 413, self._too_large()
        return None

    def _too_large(self) -> str:
        return f"A request may hold {self._limits.body:,} bytes. Send fewer texts at a time."

    async def _read(self, receive: Receive) -> tuple[tuple[int, str] | None, bytes]:
        """The whole body, or why it is refused: of a client that left, 499."""
        until, parts, size = time.monotonic() + self._limits.reading, [], 0
        while True:
            try:
                message = await asyncio.wait_for(receive(), max(until - time.monotonic(), 0.001))
            except asyncio.TimeoutError:
                return (408, f"The request did not arrive within {self._limits.reading:g} seconds."), b""
            if message["type"] == "http.disconnect":
                return (499, ""), b""
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._limits.body:
                return (413, self._too_large()), b""
            if not message.get("more_body", False):
                return None, b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body in one message, then what comes after it."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _refuse(send: Send, status: int, sentence: str) -> None:
    body = json.dumps({"detail": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 408:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
