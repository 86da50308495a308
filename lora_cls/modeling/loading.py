"""Loading a base model and its tokenizer, in the precision and quantization that the recipe asks for."""

from __future__ import annotations

import hashlib
import logging
import shlex
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import nn

from lora_cls.errors import BackboneError, brief, shorten
from lora_cls.modeling.probe import check_tokenizer, read_both_ways, refuse_without_tokenizer
from lora_cls.modeling.quiet import quiet_transformers
from lora_cls.modeling.source import Source, find_source
from lora_cls.recipe import Backbone, Quantization

ONE_PER_LAYER = ("layer_types", "mlp_layer_types", "attention_window")  # fields that list a value for every layer


def load_tokenizer(backbone: Backbone, source: Source | None = None) -> Any:
    """The tokenizer of a backbone (a `PreTrainedTokenizerBase`).

    Raises
    ------
    BackboneError
        If it cannot be found or opened, or is not the model's.
    """
    from transformers import AutoTokenizer

    source = source or find_source(backbone.name_or_path, backbone.revision)
    try:
        tokenizer = _from_hub(
            source,
            lambda: AutoTokenizer.from_pretrained(
                source.path_or_id, revision=source.revision, trust_remote_code=backbone.trust_remote_code
            ),
        )
    except BackboneError:
        refuse_without_tokenizer(source)
        raise
    check_tokenizer(tokenizer, source, vocabulary_size(_config(backbone, source, {})))
    return tokenizer


def load_base(
    backbone: Backbone,
    quantization: Quantization | None,
    dtype: torch.dtype | Literal["auto"],
    device: torch.device,
    source: Source | None = None,
    attn_implementation: str | None = None,
    with_output: bool = False,
    sharded: bool = False,
) -> nn.Module:
    """The bare base model (no head) in eval mode on `device`, its parameters frozen.

    `with_output` loads the causal language model around it, which predicts the next token. `dtype` "auto" is that of
    the model's files. `sharded` packs 4-bit weights so that they can be cut (`lora_cls.modeling.sharding`).

    Raises
    ------
    BackboneError
        If it cannot be found or opened, or does not read both ways where it should; says what to install or set.
    """
    from transformers import AutoModel, AutoModelForCausalLM

    loader: Any = AutoModelForCausalLM if with_output else AutoModel
    source = source or find_source(backbone.name_or_path, backbone.revision)
    options: dict[str, Any] = {"dtype": dtype, **depth_options(backbone, source)}
    if attn_implementation and attn_implementation != "auto":
        options["attn_implementation"] = attn_implementation
    if quantization:
        assert isinstance(dtype, torch.dtype)
        config = quantization_config(quantization, dtype)
        if sharded:
            config.bnb_4bit_quant_storage = dtype  # FSDP cuts floating point only: the same bytes under that name
        options |= {"quantization_config": config, "device_map": {"": device}}
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # 8-bit logs a line per layer and step
    with quiet_transformers():
        base: Any
        base, loaded = _from_hub(
            source,
            lambda: loader.from_pretrained(
                source.path_or_id,
                revision=source.revision,
                trust_remote_code=backbone.trust_remote_code,
                output_loading_info=True,
                **options,
            ),
        )
    missing = [key for key in loaded["missing_keys"] if "pooler" not in key]  # nothing reads the pooler
    if with_output and missing == ["lm_head.weight"]:
        raise BackboneError(
            f"{source.name} has no output layer (lm_head), and its configuration does not tie one to the embeddings: "
            "it cannot write. Take the whole causal language model, or head.kind: linear."
        )
    if missing:
        raise BackboneError(
            f"{source.name}: its weights lack {shorten(sorted(missing), 4)}. Random ones would stand in their place: "
            "fetch the model again."
        )
    if quantization:
        _keep_4bit_trainable(base)
    else:
        base.to(device)
    base.config.use_cache = False
    base.eval().requires_grad_(False)
    if backbone.bidirectional:
        read_both_ways(base, source, attn_implementation in (None, "auto"))
    return base


def load_config(backbone: Backbone, source: Source) -> Any:
    """The configuration of a backbone (a `PretrainedConfig`), of as many layers as the recipe keeps."""
    return _config(backbone, source, depth_options(backbone, source))


def vocabulary_size(config: Any) -> int | None:
    """Tokens that a model has embeddings for; None where its configuration does not say (CANINE)."""
    size = getattr(config.get_text_config(), "vocab_size", None)
    return size if isinstance(size, int) else None


def depth_options(backbone: Backbone, source: Source) -> dict[str, Any]:
    """Fields of the configuration that keep the lowest `num_hidden_layers` layers; none where the recipe keeps all.

    Raises
    ------
    BackboneError
        If the model has fewer layers, or keeps its text model's configuration within another.
    """
    wanted = backbone.num_hidden_layers
    if wanted is None:
        return {}
    config = _config(backbone, source, {})
    if config.get_text_config() is not config:
        raise BackboneError(
            f"backbone.num_hidden_layers: {source.name} is more than a text model; keep all its layers."
        )
    depth = getattr(config, "num_hidden_layers", None)
    if not isinstance(depth, int):
        raise BackboneError(f"backbone.num_hidden_layers: {source.name} does not say how many layers it has; keep all.")
    if wanted > depth:
        raise BackboneError(f"backbone.num_hidden_layers is {wanted}, and {source.name} has {depth} layers.")
    options: dict[str, Any] = {"num_hidden_layers": wanted}
    for name in ONE_PER_LAYER:
        value = getattr(config, name, None)
        if isinstance(value, (list, tuple)) and len(value) == depth:
            options[name] = list(value[:wanted])
    return options


def _config(backbone: Backbone, source: Source, options: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    return _from_hub(
        source,
        lambda: AutoConfig.from_pretrained(
            source.path_or_id, revision=source.revision, trust_remote_code=backbone.trust_remote_code, **options
        ),
    )


def base_fingerprint(base: nn.Module, dtype: torch.dtype | None = None) -> str:
    """SHA-256 over the start of every parameter of a base that is not quantized, in the dtype it has, or as `dtype`.

    Tells another base of the same shape (instruction-tuned for plain, another revision) from the one trained on.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(base.named_parameters()):
        if not parameter.is_floating_point() or type(parameter).__name__ == "Params4bit":
            continue  # quantized on another device, the same weights may round to other bytes
        values = parameter.detach().flatten()[:4096].to("cpu", dtype or parameter.dtype).contiguous()
        digest.update(name.encode() + values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def quantization_config(quantization: Quantization, dtype: torch.dtype) -> Any:
    """The recipe's section as transformers' `BitsAndBytesConfig`. Raises BackboneError without bitsandbytes."""
    if find_spec("bitsandbytes") is None:
        raise BackboneError(
            "A quantized base needs one more package. Run: pip install bitsandbytes, or train it unquantized with "
            "--set quantization=null (four times the memory)."
        )
    from transformers import BitsAndBytesConfig

    if quantization.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=quantization.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=dtype,
    )


def _keep_4bit_trainable(base: nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit weights in place during evaluation on CPUs with AVX512-BF16.

    The first forward pass in eval mode would repack them, and every LoRA gradient after it would be silently wrong
    (bitsandbytes 0.50, `Linear4bit.forward`).
    """
    module: Any
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _from_hub(source: Source, load: Any) -> Any:
    """Call `load`, turning the hub's many failures into one sentence that says what to do."""
    try:
        return load()
    except MemoryError:
        raise
    except Exception as error:  # configurations, tokenizers and weights raise whatever damaged bytes lead to
        text = str(error)
        if source.is_local and "trust_remote_code" not in text:
            raise BackboneError(f"{source.name} cannot be opened from {source.path_or_id}: {brief(error)}") from error
        if "gated repo" in text or "awaiting a review" in text:
            raise BackboneError(
                f"{source.name} is gated: accept its licence on its hub page, then run `hf auth login` or set HF_TOKEN."
            ) from error
        if "trust_remote_code" in text:
            raise BackboneError(
                f"{source.name} needs Python code that comes with it. If you trust who wrote it, give "
                "--trust-remote-code (trust_remote_code=True in Python), or, in a recipe of your own, set "
                "backbone.trust_remote_code: true and pin backbone.revision to a commit."
            ) from error
        if "is not a valid model identifier" in text or "is not a local folder" in text:
            raise BackboneError(
                f"The hub has no model '{source.name}' (or it is private: run `hf auth login` or set HF_TOKEN), "
                "and there is no such folder here: a run's base that lies elsewhere is named with --backbone."
            ) from error
        if isinstance(error, OSError):
            raise BackboneError(
                f"{source.name} is neither in the local cache nor can it be fetched (offline?). Fetch it where there "
                f"is a network, with `hf download {shlex.quote(source.name)}`, and copy the folder; set "
                "backbone.name_or_path to the folder (for a run that is trained: --backbone), or unset HF_HUB_OFFLINE."
            ) from error
        raise BackboneError(f"{source.name} cannot be opened: {brief(error)}") from error
