"""What is said at once where there is no cluster to work on."""

import socket
import sys
import time
from types import SimpleNamespace

import pytest

from lora_cls.errors import RecipeError
from lora_cls.execution.cluster import connect


@pytest.fixture
def without_ray(monkeypatch):
    """A Ray that is installed and was not asked yet."""
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False))


def test_missing_extra(monkeypatch):
    """How to install it."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RecipeError, match=r'needs Ray, which is not installed: pip install "lora_cls\[ray\]"'):
        connect("ray")


def test_nobody_listens(without_ray):
    """Within seconds, where Ray itself would try for minutes."""
    with socket.socket() as taken:  # bound, and not listening
        taken.bind(("127.0.0.1", 0))
        address = f"ray://127.0.0.1:{taken.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(RecipeError, match=f"No Ray cluster answers at {address}"):
            connect(address)
    assert time.monotonic() - began < 6


@pytest.mark.parametrize("address", ["ray://", "ray://head", "ray://head:port"])
def test_no_address(address, without_ray):
    with pytest.raises(RecipeError, match="named as ray://HOST:PORT"):
        connect(address)
