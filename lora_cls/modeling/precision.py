"""What this device does well, measured: the precision of the computation, and the kind of attention.

Measured once per machine and kept in the cache folder, so that the same recipe computes the same way every time; frozen
in a run's `run.json` too, so that a resume does wherever the cache is gone.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Collection
from contextlib import suppress

import torch

from lora_cls.errors import BackboneError, WriteError
from lora_cls.files import make_folder, write_json
from lora_cls.machine import cache_folder, cache_note
from lora_cls.modeling.classifier import SequenceClassifier
from lora_cls.recipe import Recipe

# PyTorch's allocators for CPUs and for Apple's GPUs have no error of their own, nor has oneDNN, which asks by itself,
# nor have cuBLAS and cuDNN (CUBLAS_STATUS_ALLOC_FAILED), which ask for what the allocator left
FULL = ("can't allocate memory", "out of memory", "could not create a primitive", "_STATUS_ALLOC_FAILED")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
NO_FP16 = ("gemma2", "gemma3", "gemma3_text", "deberta-v2", "t5", "mt5")  # overflow in fp16
WORTHWHILE = 1.2  # 16-bit must beat 32-bit by this factor on a CPU: below it, exactness is the better bargain


def measured_once(
    key: str, measure: Callable[[], str], answers: Collection[str], said: Callable[[str], None] = lambda _: None
) -> str:
    """The answer of `measure` on this machine: from the cache folder, or measured now and kept there.

    Parameters
    ----------
    answers : all that it may be; another one in the cache is a damage, and measured again
    said : told if it cannot be kept
    """
    file = cache_folder() / "choices.json"
    gpu = f"{torch.cuda.get_device_name()} " if torch.cuda.is_available() else ""
    key = f"{platform.node()} torch {torch.__version__} {torch.backends.cpu.get_cpu_capability()} {gpu}{key}"
    known: object = None
    with suppress(OSError, ValueError, RecursionError):  # nothing measured yet, or a damaged file: measured again
        known = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(known, dict):
        known = {}
    if (answer := known.get(key)) in tuple(answers):
        return str(answer)
    known[key] = measure()
    try:
        make_folder(file.parent)
        if file.is_dir():
            shutil.rmtree(file, ignore_errors=True)
        write_json(file, known)
    except WriteError as error:
        said(cache_note(error))
    return str(known[key])


def default_device() -> torch.device:
    """CUDA, then Apple's MPS, then the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def choose_dtype(
    recipe: Recipe, device: torch.device, model_type: str, said: Callable[[str], None] = lambda _: None
) -> torch.dtype:
    """The precision a recipe asks for, or the measured best for `auto`.

    Parameters
    ----------
    model_type : of the backbone's configuration; some overflow in fp16
    said : told if what is measured cannot be kept

    Raises
    ------
    BackboneError
        If the device cannot train in the precision asked for.
    """
    assert recipe.backbone is not None
    asked = recipe.backbone.dtype
    if asked == "float16" and device.type != "cuda":
        raise BackboneError("backbone.dtype: float16 trains on a CUDA GPU only (with a gradient scaler). Use auto.")
    if asked != "auto":
        return DTYPES[asked]
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16
        return torch.float32 if model_type in NO_FP16 else torch.float16
    if device.type == "cpu":
        return DTYPES[measured_once(f"dtype {torch.get_num_threads()} threads", _best_on_cpu, DTYPES, said)]
    return torch.float32


def _best_on_cpu() -> str:
    return "bfloat16" if _seconds(torch.float32) > WORTHWHILE * _seconds(torch.bfloat16) else "float32"


def _seconds(dtype: torch.dtype) -> float:
    """Shortest time of a matrix product of a transformer layer's size: on a busy machine the median tells the load."""
    a, b = torch.randn(512, 768, dtype=dtype), torch.randn(768, 2048, dtype=dtype)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return min(times)


def faster_attention(model: SequenceClassifier, ids: torch.Tensor, mask: torch.Tensor) -> str:
    """The faster of eager attention and PyTorch's fused one, by training steps on a batch of real rows.

    One that fails is not taken, as where the memory is too small for it. Where both fail it is the fused one, which
    takes less: the first step of training then says what is wrong.
    """
    times: dict[str, list[float]] = {"sdpa": [], "eager": []}
    model.train()
    for _ in range(5):
        for name in list(times):
            try:
                model.base.set_attn_implementation(name)
                started = time.perf_counter()
                model(ids, mask).square().sum().backward()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                times[name].append(time.perf_counter() - started)
            except (ValueError, ImportError, RuntimeError):
                del times[name]
    model.zero_grad(set_to_none=True)
    return min(times, key=lambda name: min(times[name])) if times else "sdpa"


def no_flash_attention(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why `backbone.attn_implementation: flash_attention_2` cannot compute here; None where it can.

    Parameters
    ----------
    dtype : of the computation
    """
    from transformers.utils.import_utils import is_flash_attn_2_available

    if device.type != "cuda":
        return f"it needs a CUDA GPU, and this machine has {device.type}"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return f"it needs a card of compute capability 8.0, and this one has {capability[0]}.{capability[1]}"
    if dtype == torch.float32:
        return "it computes in 16 bits alone, and backbone.dtype is, or came to, float32"
    if not is_flash_attn_2_available():
        return "it needs the package flash-attn, 2.3.3 or later (pip install flash-attn --no-build-isolation)"
    return None


def compute_deterministically() -> None:
    """Have a GPU compute the same bits every time: PyTorch's switch, and what cuBLAS and flash-attn ask for beside it.

    cuBLAS reads its variable when it is first used: in a notebook that computed on the GPU before, PyTorch says so at
    the first product.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("FLASH_ATTENTION_DETERMINISTIC", "1")  # transformers hands it on
    # nothing here reads what it did not write
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # not as a warning alone: PyTorch's memory-efficient attention then goes on as before
    torch.use_deterministic_algorithms(True)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the device, or of the machine, is full."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in FULL)
