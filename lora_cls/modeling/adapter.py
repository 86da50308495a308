"""LoRA through PEFT, or full fine-tuning: building, resetting, saving and strictly reloading what was trained."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from lora_cls.errors import BackboneError, RecipeError, RunError, did_you_mean, shorten, shown
from lora_cls.files import whole_folder
from lora_cls.modeling.classifier import HEAD, SequenceClassifier, attach_head, linear_layer, reset_head
from lora_cls.modeling.layers import find_layers
from lora_cls.modeling.low_rank import speed_up
from lora_cls.modeling.quiet import quiet_transformers
from lora_cls.recipe import Lora, Recipe, not_a_pattern

HEAD_FILE = "head.safetensors"  # beside a fully fine-tuned model; a LoRA adapter carries the head inside


def target_pattern(base: nn.Module, lora: Lora) -> str:
    """A regular expression for PEFT that matches the modules to adapt.

    PEFT refuses its own `all-linear` together with `layers_to_transform`, and would wrap a pooler that nothing reads;
    a pattern over the transformer blocks says exactly what is meant, and opens in plain PEFT.

    Raises
    ------
    BackboneError
        If a named module or layer does not exist; names the nearest.
    """
    if isinstance(lora.target_modules, str) and lora.target_modules != "all-linear":
        if reason := not_a_pattern(lora.target_modules):
            raise BackboneError(f"lora.target_modules: {shown(lora.target_modules)} is no regular expression: {reason}")
        for name in ("layers_to_transform", "top_layers"):
            if getattr(lora, name) is not None:
                raise BackboneError(
                    f"lora.{name} does nothing beside a regular expression: name the layers in target_modules."
                )
        return lora.target_modules
    path, layers = find_layers(base)
    # over all layers: in hybrid models (LFM 2) some hold attention and others a convolution
    inside = {name: module for layer in layers for name, module in layer.named_modules() if name}
    linear = [name for name, module in inside.items() if _is_linear(module)]
    if lora.target_modules == "all-linear":
        wanted = linear
    else:
        wanted = [name for name in inside if any(name == t or name.endswith(f".{t}") for t in lora.target_modules)]
        leaves = sorted({name.rpartition(".")[2] for name in linear})
        for target in lora.target_modules:
            if not any(name == target or name.endswith(f".{target}") for name in inside):
                raise BackboneError(
                    f"lora.target_modules: no module '{target}' in the layers of {type(base).__name__} "
                    f"(linear modules: {', '.join(leaves)}).{did_you_mean(target, leaves)}"
                )
    indices = lora.layers_to_transform
    if lora.top_layers is not None:
        n_top = max(1, round(lora.top_layers * len(layers)))
        indices = list(range(len(layers) - n_top, len(layers)))
    if indices is None:
        number = r"\d+"
    else:
        outside = [i for i in indices if not 0 <= i < len(layers)]
        if outside or not indices:
            raise BackboneError(f"lora.layers_to_transform: {indices} must name layers from 0 to {len(layers) - 1}.")
        number = f"({'|'.join(map(str, sorted(indices)))})"
    return rf"{re.escape(path)}\.{number}\.({'|'.join(re.escape(name) for name in wanted)})"


def _is_linear(module: nn.Module) -> bool:
    """Linear layers, quantized ones included, and what GPT-2 and SqueezeBERT write as convolutions."""
    pointwise = isinstance(module, nn.Conv1d) and module.kernel_size == (1,)
    return isinstance(module, nn.Linear) or pointwise or type(module).__name__ == "Conv1D"


def build_model(
    base: Any,
    recipe: Recipe,
    n_labels: int,
    dtype: torch.dtype | None = None,
    layer: Callable[[int, int], nn.Module] = linear_layer,
) -> SequenceClassifier:
    """Attach head and adapters to a loaded base.

    With `lora: null` every parameter is trained in fp32; else the base stays frozen as it was loaded, and adapters and
    head are fp32. `dtype`: see `SequenceClassifier`; `layer`: see `attach_head`.
    """
    attach_head(base, n_labels, layer)
    return SequenceClassifier(
        adapt(base, recipe, modules_to_save=[HEAD]), recipe.head.pooling, recipe.head.dropout, dtype
    )


def adapt(base: Any, recipe: Recipe, **settings: Any) -> nn.Module:
    """The base with every parameter trained (`lora: null`), or with fresh adapters.

    Parameters
    ----------
    settings : fields of PEFT's `LoraConfig` that the recipe does not hold (modules_to_save, task_type)
    """
    if recipe.lora is None:
        backbone: nn.Module = base.float().requires_grad_(True)
    else:
        from peft import LoraConfig, get_peft_model

        given = recipe.lora.model_dump(exclude={"layers_to_transform", "top_layers"})
        pattern = target_pattern(base, recipe.lora)
        try:
            config = LoraConfig(**given | {"target_modules": pattern}, **settings)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers in a way it deprecates
                backbone = get_peft_model(base, config)
            speed_up(backbone)
        except ValueError as error:
            raise BackboneError(f"lora: {shown(error, 1000, quoted=False)}") from error
        except Exception as error:  # whatever PEFT's ways to apply its rarer fields come upon
            beyond = {name: value for name, value in given.items() if name not in Lora.model_fields}
            if not beyond:
                raise
            fields = ", ".join(f"lora.{name}: {shown(value)}" for name, value in beyond.items())
            raise RecipeError(
                f"PEFT cannot apply {shown(fields, 600, quoted=False)} to {type(base).__name__}: "
                f"{type(error).__name__}: {shown(error, 600, quoted=False)}. Remove what does not fit this model."
            ) from error
    half = [name for name, p in backbone.named_parameters() if p.requires_grad and p.dtype == torch.float16]
    if half:
        raise BackboneError(
            f"lora trains weights of the base ({shorten(half, 2)}), which are in float16 here, and no gradient scaler "
            "takes gradients in it. Set backbone.dtype: float32, or take out what trains them (lora.bias)."
        )
    if recipe.train.gradient_checkpointing:
        try:
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        except ValueError as error:
            raise BackboneError(f"train.gradient_checkpointing: {error} Set it to false.") from error
    return backbone


def reset_model(model: SequenceClassifier, recipe: Recipe, seed: int) -> None:
    """Fresh adapters and head from a seed, so that K folds share one loaded base.

    Full fine-tuning gets a fresh head only: its base must be loaded again.
    """
    torch.manual_seed(seed)
    if recipe.lora is not None:
        model.restore_initial()  # what PEFT's reset leaves: DoRA's magnitudes, biases of the base
        for module in model.base.modules():
            if hasattr(module, "reset_lora_parameters"):
                module.reset_lora_parameters("default", recipe.lora.init_lora_weights)
    if hasattr(model.base, HEAD):
        reset_head(trainable_head(model))


def trainable_head(model: SequenceClassifier) -> nn.Module:
    """The head that is trained: PEFT keeps the original beside its own copy."""
    head: Any = getattr(model.base, HEAD)
    return head.modules_to_save["default"] if hasattr(head, "modules_to_save") else head


def base_readme(recipe: Recipe, depth: dict[str, Any]) -> str | None:
    """README.md of an adapter to a base that was changed: without a word it would open on the one as it is, too.

    Parameters
    ----------
    depth : see `lora_cls.modeling.loading.depth_options`

    Returns
    -------
    str or None
        None where the base is as it is.
    """
    assert recipe.backbone is not None
    name, title, made, code = recipe.backbone.name_or_path, recipe.backbone.name_or_path, [], ""
    if depth:
        n_layers = depth["num_hidden_layers"]
        title = f"the lowest {n_layers} layers of {name}"
        made.append(
            f"Made with lora_cls by `backbone.num_hidden_layers: {n_layers}`: it belongs to {name} with only its "
            f"lowest {n_layers}\nlayers, 0 to {n_layers - 1}, and the final norm behind them. On the whole model it "
            "also opens, and answers wrongly."
        )
    if recipe.backbone.bidirectional:
        title += " without its causal mask"
        made.append(
            f"Made with lora_cls by `backbone.bidirectional: true`: it belongs to {name} reading both ways.\nOn the "
            "causal model it also opens, and answers wrongly."
        )
        code = "\nbase.config.get_text_config().is_causal = False"
    if not made:
        return None
    options = "".join(f", {key}={value!r}" for key, value in depth.items())
    said = "\n\n".join(made)
    return f"""# LoRA adapter for {title}

{said}

```python
base = AutoModel.from_pretrained({name!r}{options}){code}
```

The README.md of the run, two folders up, has the whole code: precision, head, pooling.
"""


def save_model(model: SequenceClassifier, folder: Path, readme: str | None = None) -> None:
    """Write what was trained, by temporary name and rename.

    With adapters: PEFT's own files (`adapter_config.json`, `adapter_model.safetensors`), head included. Fully
    fine-tuned: the base in Hugging Face's layout, and the head in `head.safetensors`. `readme` is what the folder's
    README.md says.
    """
    with whole_folder(folder, replace=True) as scratch:
        if model.has_adapter:
            backbone: Any = model.backbone
            backbone.save_pretrained(scratch, save_embedding_layers=False)
            (scratch / "README.md").unlink(missing_ok=True)  # PEFT's empty template; the run's own README says more
        else:
            _save_base(model.base, scratch)
        if readme is not None:
            (scratch / "README.md").write_text(readme, encoding="utf-8")


def _save_base(base: Any, folder: Path) -> None:
    """A plain model that opens anywhere without unknown keys, and its head in a file of its own."""
    head: nn.Module | None = getattr(base, HEAD, None)  # none where labels are written as text
    if head is not None:
        delattr(base, HEAD)
    try:
        with quiet_transformers():
            base.save_pretrained(folder)
    finally:
        if head is not None:
            setattr(base, HEAD, head)
    if head is not None:
        save_file({f"{HEAD}.{k}": v.contiguous() for k, v in head.state_dict().items()}, folder / HEAD_FILE)


def load_model_weights(model: SequenceClassifier, folder: Path) -> None:
    """Read back what `save_model` wrote, into a model built by the same recipe.

    Raises
    ------
    RunError
        If a file is missing or damaged, or if any key is missing, unknown or of another shape: never only a warning.
    """
    if model.has_adapter:
        state = _read(folder / "adapter_model.safetensors")
    else:
        head = _read(folder / HEAD_FILE) if hasattr(model.base, HEAD) else {}
        state = _read(folder / "model.safetensors") | head
    put_weights(model, state, folder)


def saved_weights(model: SequenceClassifier) -> dict[str, torch.Tensor]:
    """All that `save_model` writes of a model, by its names there."""
    if not model.has_adapter:
        return dict(model.base.state_dict())
    from peft import get_peft_model_state_dict

    return dict(get_peft_model_state_dict(model.backbone, save_embedding_layers=False))


def put_weights(model: SequenceClassifier, state: dict[str, torch.Tensor], folder: Path) -> None:
    """Put weights into a model, as `load_model_weights` reads them. Raises RunError, which names `folder`, if any key
    is missing, unknown or of another shape."""
    base: Any = model.base
    parameters = _saved_parameters(model)
    expected: dict[str, torch.Tensor] = {**parameters} if parameters else saved_weights(model)
    if not model.has_adapter:
        expected = {k: v for k, v in expected.items() if k in state or not _is_tied(base, k)}
    _check_keys(folder, state, expected)
    if not model.has_adapter:
        base.load_state_dict(state, strict=False)
    elif parameters:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(state[name])
    else:
        from peft import set_peft_model_state_dict

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # base weights count as missing keys there; ours were compared above
            set_peft_model_state_dict(model.backbone, state)


def _saved_parameters(model: SequenceClassifier) -> dict[str, nn.Parameter]:
    """The parameters of a saved adapter by their names there; none where PEFT must put them in itself.

    Looked up once: PEFT walks through all modules for that, which takes longer than to answer for a text.
    """
    if not model.has_adapter:
        return {}
    if model.saved is None:
        plain = [parameter for parameter in model.parameters() if type(parameter.data) is torch.Tensor]
        places = {(parameter.data_ptr(), parameter.shape): parameter for parameter in plain}
        found = {name: places.get((value.data_ptr(), value.shape)) for name, value in saved_weights(model).items()}
        known = {name: parameter for name, parameter in found.items() if parameter is not None}
        model.saved = known if len(known) == len(found) else {}
    return model.saved


def _is_tied(base: Any, key: str) -> bool:
    tied = getattr(base, "all_tied_weights_keys", None) or {}
    return key in tied


def _read(file: Path) -> dict[str, torch.Tensor]:
    if not file.is_file():
        raise RunError(f"{file} is missing: the fold is incomplete or the file was removed. Train the fold again.")
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise RunError(f"{file} is damaged ({error}). Train the fold again, or restore the file.") from error


def _check_keys(folder: Path, state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    missing, unknown = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in sorted(set(state) & set(expected))
        if state[key].shape != expected[key].shape
    ]
    problems = [
        f"{len(found)} {what}: {shorten(found, 4)}"
        for what, found in (("missing keys", missing), ("unknown keys", unknown), ("shapes that differ", shapes))
        if found
    ]
    if problems:
        raise RunError(f"{folder} does not fit this model. " + "; ".join(problems) + ". Is the base another one?")
