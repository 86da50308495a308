"""The stack of a model's transformer blocks."""

from __future__ import annotations

import re

from torch import nn

from lora_cls.errors import BackboneError


def find_layers(base: nn.Module) -> tuple[str, nn.ModuleList]:
    """The stack of transformer blocks and its dotted name: the one ModuleList as long as the configuration says.

    Raises
    ------
    BackboneError
        If there is none or more than one (ALBERT, for instance, shares one layer).
    """
    n_layers = base.config.get_text_config().num_hidden_layers  # type: ignore[union-attr, operator]
    found = [
        (name, module)
        for name, module in base.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers and len({type(m) for m in module}) == 1
    ]
    if len(found) != 1:
        raise BackboneError(
            f"{type(base).__name__}: cannot tell which module list holds the {n_layers} layers. "
            "Name lora.target_modules as a regular expression."
        )
    return found[0]


def lowest_trained_layer(base: nn.Module, head: str) -> int:
    """Index of the lowest layer that holds a trained parameter: what lies below never changes.

    0 also where something outside the layers is trained (embeddings), or where the layers cannot be told.

    Parameters
    ----------
    head : name of the head's attribute, which is trained and reads the last layer
    """
    try:
        path, layers = find_layers(base)
    except BackboneError:
        return 0
    inside = re.compile(rf"{re.escape(path)}\.(\d+)\.")
    lowest = len(layers) - 1  # where only the head is trained, the last layer stays, to read from
    for name, parameter in base.named_parameters():
        if parameter.requires_grad and not name.startswith(f"{head}."):
            found = inside.match(name)
            if found is None:
                return 0
            lowest = min(lowest, int(found[1]))
    return lowest
