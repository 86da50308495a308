"""Settings as Optuna's files can hold them: a value that is a list stands as its JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lora_cls.recipe import Sweep

Params = dict[str, Any]
"""A setting: by field of the recipe."""


def coded(value: Any) -> Any:
    """A value as Optuna's files can hold it."""
    return json.dumps(value) if isinstance(value, list) else value


def decoded(params: Mapping[str, Any], settings: Sweep) -> Params:
    """Values for the recipe of what Optuna's files hold."""
    space = settings.space or {}
    lists = {
        field: {coded(choice): choice for choice in given.choices or [] if isinstance(choice, list)}
        for field, given in space.items()
    }
    return {
        field: lists.get(field, {}).get(value, value) if isinstance(value, str) else value
        for field, value in params.items()
    }
