"""Weights of another run as the beginning of training: the mean of its models, with a fresh head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lora_cls.errors import RunError, shorten
from lora_cls.modeling.adapter import put_weights, saved_weights
from lora_cls.modeling.classifier import HEAD, SequenceClassifier
from lora_cls.modeling.updates import Adapters, Update, beyond_updates, mean_weights, scaling
from lora_cls.recipe import Lora, Recipe


def begin_with(model: SequenceClassifier, recipe: Recipe, theirs: Recipe, folders: Sequence[Path]) -> float:
    """Put the mean of other models into a fresh one; its head stays as it is.

    Adapters begin with the exact mean of the updates where their rank holds it, or else with its best approximation of
    that rank (`lora_cls.modeling.updates`). A higher rank keeps its own fresh A beyond, whose B is 0: that changes
    nothing yet, and can learn.

    Parameters
    ----------
    model : just reset
    recipe, theirs : of the model, and of the others
    folders : adapters, or folders of whole models

    Returns
    -------
    float
        The share of the mean's squared Frobenius norm that is kept; 1 where it is exact.

    Raises
    ------
    RunError
        If they have other modules or shapes, are damaged, or adapters that are not products of two matrices.
    """
    fresh = saved_weights(model)
    if recipe.lora is None or theirs.lora is None:
        head = {key: value for key, value in fresh.items() if key.startswith(f"{HEAD}.")}
        put_weights(model, mean_weights([folder / "model.safetensors" for folder in folders]) | head, folders[0])
        return 1.0
    _check_plain(folders[0], recipe.lora, theirs.lora)
    backbone: Any = model.backbone
    config = backbone.peft_config["default"].to_dict()
    began: dict[str, torch.Tensor] = {}
    kept, whole = 0.0, 0.0
    with Adapters(folders) as adapters:
        pairs = list(adapters.pairs())
        given = {key for _, *keys in pairs for key in keys}
        if other := sorted(given ^ {key for key in fresh if ".lora_" in key}):
            raise RunError(
                f"backbone.start_from: {folders[0]} adapts other modules than this recipe ({shorten(other, 4)}). Give "
                "both the same lora.target_modules and layers."
            )
        for module, key_a, key_b in pairs:
            a, b = fresh[key_a], fresh[key_b]
            if (tuple(a.shape[1:]), tuple(b.shape[2:])) != adapters.shapes(key_a, key_b):
                raise RunError(f"backbone.start_from: {module} has another shape in {folders[0]}: another base.")
            mean = adapters.mean(key_a, key_b, module)
            began[key_a], began[key_b], update = _within(mean, a, b, scaling(config, module, len(a)))
            kept, whole = kept + update.squared_norm(), whole + mean.squared_norm()
    put_weights(model, fresh | began, folders[0])
    return kept / whole if whole else 1.0


def _within(mean: Update, a: torch.Tensor, b: torch.Tensor, factor: float) -> tuple[torch.Tensor, torch.Tensor, Update]:
    """A and B of an update, in the shapes of fresh ones, that PEFT multiplies by `factor`; and the update that they
    are."""
    update, rank, n_blocks = mean, len(a), len(mean.a)
    if mean.rank > rank:
        update = mean.decomposed()[0].at_rank(rank)
        root = math.sqrt(factor)  # A and B of one size in themselves, as the optimizer sees them
        update = Update(update.a / root, update.b * root)
    own_a = a.double().cpu().reshape(n_blocks, rank // n_blocks, -1)
    n = update.a.shape[1]
    new_a = torch.cat([update.a, own_a[:, n:]], 1)
    new_b = torch.nn.functional.pad(update.b / factor, (0, rank // n_blocks - n))
    return new_a.reshape(a.shape).float(), new_b.reshape(b.shape).float(), update


def _check_plain(folder: Path, *adapters: Lora) -> None:
    for lora in adapters:
        if others := beyond_updates(lora):
            raise RunError(
                f"backbone.start_from: {folder}, or this recipe, has lora with {others}: such updates are not (only) "
                "products of two matrices, and no training begins with them. Export that run merged, and start a full "
                "fine-tuning from it (lora: null)."
            )
