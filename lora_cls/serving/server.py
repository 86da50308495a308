"""`lora-cls serve`: opens what is served, listens, and stops without leaving anybody unanswered."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_cls.choices import Models
from lora_cls.errors import RecipeError, RunError, brief
from lora_cls.serving.limits import Limits

if TYPE_CHECKING:
    from lora_cls.modeling.resident import ResidentModels

TOKEN = "LORA_CLS_TOKEN"
SHAPES = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
"""How many products oneDNN keeps code for, 1,024 where nothing is said: one for each shape of a batch, some 0.2 MB."""
HERE = frozenset({"127.0.0.1", "localhost", "[::1]"})


def serve(
    runs: Sequence[str | Path],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Limits | None = None,
    backbone: str | None = None,
    models: Models = "folds",
    abstain_below_precision: float | None = None,
    trust_remote_code: bool = False,
    outside_runs: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Answer over HTTP with runs, exports and blends until SIGTERM or SIGINT (Ctrl-C) comes.

    A token in the environment variable `LORA_CLS_TOKEN` is asked of everybody, but for the page and the two paths that
    say whether the server is alive and ready. Requests that wait when the signal comes are answered.

    Parameters
    ----------
    runs : folders, or NAME=FOLDER; a request names one where there are several
    host : an address of this machine; others than 127.0.0.1 let other machines ask
    port : 0 takes one that is free
    backbone, models, trust_remote_code, outside_runs : see `Classifier.load`
    abstain_below_precision : as 0.9; labels whose yes or no would be right less often abstain
    say : told the address, and what is worth knowing

    Raises
    ------
    RecipeError
        For a name, an address or a token that will not do, and where FastAPI, Uvicorn or prometheus-client is missing.
    LoraClsError
        For anything wrong with a run or its base model; of weights that cannot be read, once it listens.
    """
    try:
        from lora_cls.serving.listener import make_server
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("lora_cls"):
            raise
        raise RecipeError(
            f'lora-cls serve needs one more package ({error.name}): pip install "lora_cls[serve]"'
        ) from None
    from lora_cls.serving.served import named_places, open_run

    os.environ.setdefault(SHAPES, "256")  # read when the first product is computed
    limits, token = limits or Limits(), _token()
    served = {
        name: open_run(
            name, place, _resident, backbone=backbone, models=models, abstain_below_precision=abstain_below_precision,
            trust_remote_code=trust_remote_code, outside_runs=outside_runs,
        )
        for name, place in named_places([str(run) for run in runs]).items()
    }  # fmt: skip
    listening = _listen(host, port)
    address = _address(listening)
    local = listening.getsockname()[0] in ("127.0.0.1", "::1")
    errors: list[BaseException] = []

    def failed(error: BaseException) -> None:
        errors.append(error)
        server.should_exit = True

    def stop(*_: Any) -> None:
        server.should_exit = True

    hosts = HERE | {host.lower()} if local and token is None else None
    server = make_server(served, limits, token, hosts, failed)
    # Uvicorn gives a signal on to whom it would have come to, when all are answered
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    if not local and token is None:
        say(f"Other machines can ask this server, and nothing keeps anybody from it: set {TOKEN} to ask for a token.")
    for run in served.values():
        say(f"{run.name}: {run.models}")
    say(f"{address}  (POST {address}/v1/predict; Ctrl-C stops)")
    try:
        server.run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if errors:
        raise errors[0]
    say("Stopped; nobody waits.")


@cache
def _resident() -> ResidentModels:
    from lora_cls.modeling.resident import ResidentModels

    return ResidentModels()


def _token() -> str | None:
    token = os.environ.get(TOKEN)
    if token is None:
        return None
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise RecipeError(f"{TOKEN} must hold printable ASCII characters without spaces; unset, no token is asked for.")
    return token


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(place[:2], family=family, backlog=2048)
    except (OSError, OverflowError, UnicodeError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or brief(error)
        raise RunError(f"{host}:{port} cannot be listened on: {why}. Choose another --port or --host.") from None


def _address(listening: Any) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
