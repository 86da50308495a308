"""One model of several: adapters added to their base's weights, and means of whole sets of weights."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from lora_cls.errors import BackboneError, RunError
from lora_cls.runs import RunFolder

if TYPE_CHECKING:
    from torch import nn


def merge_adapters(
    run: RunFolder,
    folder: Path,
    backbone: str | None,
    attach: Callable[[nn.Module, int], None],
    *,
    as_trained: bool = False,
) -> str:
    """Add the exact mean of the updates to the base's weights, in the precision of its files; returns that.

    Parameters
    ----------
    attach : puts the run's kind of head on a base with so many labels
    as_trained : in fp32 whatever the files have; and a base that was trained on quantized is that one, dequantized, so
        that the merged weights are those that the updates were trained on
    """
    import torch
    from peft import PeftModel

    from lora_cls.modeling.adapted import run_source
    from lora_cls.modeling.adapter import save_model
    from lora_cls.modeling.classifier import HEAD, SequenceClassifier
    from lora_cls.modeling.loading import base_fingerprint, load_base, load_tokenizer
    from lora_cls.modeling.precision import DTYPES
    from lora_cls.modeling.updates import mean_adapter

    recipe, choices = run.recipe, run.info.choices
    assert recipe.backbone is not None
    source = run_source(recipe.backbone, choices, run.base_place(backbone), needed=True)
    quantization = recipe.quantization if as_trained else None
    dtype: torch.dtype | Literal["auto"] = DTYPES[choices["dtype"]] if quantization else "auto"
    base: Any = load_base(recipe.backbone, quantization, dtype, torch.device("cpu"), source)
    if as_trained and getattr(base, "hf_quantizer", None) is not None:
        base = base.dequantize()
    if getattr(base.config, "quantization_config", None) is not None:
        raise RunError(f"{source.name} is stored quantized: there are no weights to add to. Export an adapter instead.")
    noted = choices.get("base_sha256")  # of a quantized base's bytes: nothing to compare
    if noted and not recipe.quantization and base_fingerprint(base, DTYPES[choices["dtype"]]) != noted:
        raise BackboneError(
            f"{source.path_or_id} is not the base that this run was trained on: its weights differ. Give the same "
            "model in the same revision with --backbone."
        )
    if as_trained:
        base.float()
    attach(base, len(run.label_names))
    with TemporaryDirectory(dir=folder.parent) as scratch:
        adapter = Path(scratch) / "adapter"
        folds = [run.fold(number) for number in run.finished_folds]
        mean_adapter([fold.weights(fold.adapter) for fold in folds], adapter)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers in a way it deprecates
            model = PeftModel.from_pretrained(base, str(adapter))
        # not safe_merge: that rounds the update to the base's precision before it is added
        merged: Any = model.merge_and_unload(safe_merge=False)
    if not all(torch.isfinite(parameter).all() for parameter in merged.parameters()):
        raise RunError("The merged weights are not all finite numbers. Export an adapter instead.")
    head = getattr(merged, HEAD)
    setattr(merged, HEAD, head.modules_to_save["default"] if hasattr(head, "modules_to_save") else head)
    save_model(SequenceClassifier(merged, recipe.head.pooling), folder)
    load_tokenizer(recipe.backbone, source).save_pretrained(folder)
    return str(merged.dtype).removeprefix("torch.")


def average_weights(run: RunFolder, folder: Path, backbone: str | None) -> str:
    """The mean of fully fine-tuned models, in fp32 as they were trained."""
    from safetensors.torch import save_file

    from lora_cls.modeling.adapted import run_source
    from lora_cls.modeling.adapter import HEAD_FILE
    from lora_cls.modeling.loading import load_tokenizer
    from lora_cls.modeling.updates import mean_weights

    recipe = run.recipe
    assert recipe.backbone is not None
    folds = [run.fold(number) for number in run.finished_folds]
    models = [fold.weights(fold.model) for fold in folds]
    shutil.copytree(models[0], folder)
    for name in ("model.safetensors", HEAD_FILE):
        save_file(mean_weights([model / name for model in models]), folder / name, {"format": "pt"})
    source = run_source(recipe.backbone, run.info.choices, run.base_place(backbone))  # for its tokenizer
    load_tokenizer(recipe.backbone, source).save_pretrained(folder)
    return "float32"
