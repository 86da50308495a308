"""The memory that training a recipe takes, from the model's configuration alone: no weights are read, none are made.

One training step of the recipe's own model is run on tensors without data (PyTorch's fake tensors), and every byte
that lives at once is counted: what autograd keeps, casts of autocast, attention scores, gradients, in any architecture.
Added by arithmetic is what such a step does not show: packed 4-bit and 8-bit weights, one weight unpacked at a time,
AdamW's moments, and what a process holds before any model.

Measured against it: `benchmarks/results/memory.md`.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lora_cls.errors import BackboneError, brief
from lora_cls.modeling.classifier import SequenceClassifier
from lora_cls.modeling.low_rank import packed_bytes
from lora_cls.modeling.probe import unreadable
from lora_cls.modeling.quiet import quiet_transformers
from lora_cls.recipe import Quantization, Recipe
from lora_cls.training.heads import head_type

# Bytes that a process holds before any model. CPU: torch, transformers, PEFT and bitsandbytes as imported here, fitted
# to measured runs. GPU: a CUDA context with its kernels and workspaces, a usual figure and not measured here.
LIBRARIES = {"cpu": 700 * 2**20, "cuda": 600 * 2**20}
# On a CPU the C library's heap keeps holes where tensors of other sizes lay: measured 1.2 to 2.0 times what lives at
# once, and no more than that where `MALLOC_MMAP_THRESHOLD_` makes it give large tensors back. Not measured for a GPU.
HEAP = {"cpu": 1.7, "cuda": 1.0}


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of training.

    Attributes
    ----------
    parameters : number of parameters of the base model (a count, not bytes)
    base : its weights, packed where quantized; in fp32 for full fine-tuning
    adapters : adapters and head in fp32, with their averages (`train.ema_decay`, `train.average_epochs`)
    optimizer : gradients of what is trained and AdamW's two moments, in fp32
    activations : what one batch of the longest texts adds, holes in a CPU's heap included
    libraries : what the process holds before any model
    """

    parameters: int
    base: int
    adapters: int
    optimizer: int
    activations: int
    libraries: int

    @property
    def total(self) -> int:
        """Sum of the parts."""
        return self.base + self.adapters + self.optimizer + self.activations + self.libraries


def estimate_memory(
    recipe: Recipe,
    config: Any,
    *,
    dtype: torch.dtype,
    device: Literal["cpu", "cuda"] = "cpu",
    n_labels: int = 1,
    length: int | None = None,
) -> Memory:
    """The memory that training a recipe takes.

    Parameters
    ----------
    config : the backbone's configuration, a `PretrainedConfig`
    dtype : precision of the computation, as `choose_dtype` tells
    device : `cpu` or `cuda`. A GPU's step is counted with the operations of a CPU: its autocast keeps norms in fp32 and
        its fused attention other intermediate values, which is not seen here
    length : tokens of the longest text; `data.max_length` where None
    """
    assert recipe.backbone is not None
    head = head_type(recipe.head.kind)
    base = _empty_base(recipe, config, dtype if recipe.lora else torch.float32, head.with_output_layer)
    parameters = sum(parameter.numel() for parameter in base.parameters())
    stored, unpacked = _stored(base, recipe.quantization)
    mixed = None if dtype == torch.float32 else dtype
    with torch.device("meta"):
        model = head.build(base, recipe, n_labels, mixed)
    if recipe.lora is not None and device == "cpu" and recipe.engine.short_steps and not recipe.lora.lora_dropout:
        stored += packed_bytes(model.backbone) // 2  # two copies, in place of one
    trained = 4 * sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    adapters = trained
    if recipe.lora is None:
        adapters -= stored  # the head alone
    elif device == "cpu":
        adapters *= 2  # `SequenceClassifier` keeps the values that every fold starts from, in the CPU's memory
    moving = recipe.train.ema_decay is not None
    mean = recipe.train.average_epochs > 1 and device == "cpu"  # it always lies in the CPU's memory
    adapters += (moving + mean) * trained
    _fill(model)
    rows, n_tokens = recipe.train.per_device_train_batch_size, length or recipe.data.max_length
    if recipe.train.gradient_accumulation_steps > 1:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)  # those of the batch before, waiting
        activations = _step_peak(model, rows, n_tokens, head.training_options)
    else:
        # it ends with the gradients made
        activations = _step_peak(model, rows, n_tokens, head.training_options) - trained
    return Memory(
        parameters=parameters,
        base=stored,
        adapters=adapters,
        optimizer=3 * trained,
        activations=int(HEAP[device] * (max(activations, 0) + unpacked)),
        libraries=LIBRARIES[device],
    )


def _empty_base(recipe: Recipe, config: Any, dtype: torch.dtype, with_output: bool) -> Any:
    """The base model without data; see `load_base` for `with_output`."""
    from transformers import AutoModel, AutoModelForCausalLM

    assert recipe.backbone is not None
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": recipe.backbone.trust_remote_code}
    if recipe.backbone.attn_implementation != "auto":
        # flash attention runs on no tensor without data, and keeps as much as PyTorch's fused one
        flash = recipe.backbone.attn_implementation == "flash_attention_2"
        options["attn_implementation"] = "sdpa" if flash else recipe.backbone.attn_implementation
    auto = AutoModelForCausalLM if with_output else AutoModel
    with quiet_transformers(), torch.device("meta"):
        try:
            base: Any = auto.from_config(config, **options)
        except (ValueError, ImportError) as error:  # an attention that the model or this machine does not have
            raise BackboneError(f"{recipe.backbone.name_or_path} cannot be built: {error}") from error
    base.config.use_cache = False
    _refuse_unreadable(base, recipe.backbone.name_or_path)
    return base.requires_grad_(False)


def _refuse_unreadable(base: Any, name: str) -> None:
    """As `probe_base` does once there are weights: what a model asks for beside a text is found without data, too."""
    ids = torch.zeros(1, 4, dtype=torch.long, device="meta")
    with torch.no_grad(), quiet_transformers():
        try:
            base(input_ids=ids)  # a mask is looked into, which needs data
        except RuntimeError:
            return  # so is something else: the step that is counted will tell
        except Exception as error:
            raise unreadable(name, base, error) from error


def _stored(base: nn.Module, quantization: Quantization | None) -> tuple[int, int]:
    """Bytes of the base's weights as they are kept, and of the largest one that is unpacked for its product."""
    stored, largest = 0, 0
    output, seen = getattr(base, "lm_head", None), set()  # bitsandbytes leaves it; often it is the input embedding
    for module in base.modules():
        linear = type(module) is nn.Linear or type(module).__name__ == "Conv1D"
        packed = quantization is not None and linear and module is not output
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            plain = parameter.numel() * parameter.element_size()
            if packed and name == "weight":
                assert quantization is not None
                stored += _packed(parameter, quantization)
                largest = max(largest, plain)
            else:
                stored += plain
    return stored, largest


def _packed(weight: torch.Tensor, quantization: Quantization) -> int:
    """Bytes of a weight in bitsandbytes' format."""
    n = weight.numel()
    if quantization.load_in_8bit:
        return n + 4 * weight.shape[0]  # one scale in fp32 per output
    blocks = -(-n // 64)  # each with a scale: in fp32, or in 8 bits with one of fp32 per 256
    return -(-n // 2) + (blocks + 4 * -(-blocks // 256) if quantization.bnb_4bit_use_double_quant else 4 * blocks)


def _fill(model: nn.Module) -> None:
    """Put fake tensors, which know device and shape but hold no data, in the place of every parameter and buffer."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                setattr(module, name, nn.Parameter(empty, requires_grad=parameter.requires_grad))
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def _step_peak(model: SequenceClassifier, rows: int, n_tokens: int, options: dict[str, Any]) -> int:
    """Most bytes that live at once, weights aside, in the forward and backward pass of one batch."""
    ids, mask = torch.zeros(rows, n_tokens, dtype=torch.long), torch.ones(rows, n_tokens, dtype=torch.long)
    mask[-1, -1] = 0  # real batches are padded, and their masks are kept
    model.train()
    known = [
        *model.parameters(),
        *model.buffers(),
        *(p.grad for p in model.parameters() if p.grad is not None),
        ids,
        mask,
    ]
    with quiet_transformers(), _Living(known) as living:
        try:
            logits = model(ids, mask, **options)
        except (RuntimeError, IndexError, ValueError) as error:
            raise BackboneError(
                f"data.max_length: {type(model.base).__name__} fails on texts of {n_tokens} tokens ({brief(error)}). "
                "It may have fewer positions: lower it."
            ) from error
        logits.float().square().sum().backward()
    return living.peak


class _Living(TorchDispatchMode):
    """Counts the bytes of tensors made within it, for as long as something holds them.

    Parameters
    ----------
    known : tensors that were there before, whose views are no new memory
    """

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: weakref.WeakKeyDictionary[Any, None] = weakref.WeakKeyDictionary()
        for tensor in known:
            self._seen[tensor.untyped_storage()] = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from torch.utils._pytree import tree_leaves

        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage not in self._seen:  # views share theirs
                    self._seen[storage] = None
                    size = storage.nbytes()
                    self.now += size
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._free, size)
        return made

    def _free(self, size: int) -> None:
        self.now -= size
