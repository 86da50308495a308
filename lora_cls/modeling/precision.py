"""What this device does well, measured: the precision of the computation and the number of threads.

The choices are frozen in a run's `run.json`, so that a resumed run computes with the same ones.
"""

from __future__ import annotations

import os
import time
from statistics import median

import torch

from lora_cls.errors import BackboneError
from lora_cls.recipe import Recipe

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
WORTHWHILE = 1.2  # 16-bit must beat 32-bit by this factor on a CPU: below it, exactness is the better bargain


def physical_cores() -> int:
    """Cores this process may use, counting hyper-threads once where the system tells."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        import psutil

        return max(1, min(usable, psutil.cpu_count(logical=False) or usable))
    except ImportError:
        return usable


def default_device() -> torch.device:
    """CUDA, then Apple's MPS, then the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def choose_dtype(recipe: Recipe, device: torch.device) -> torch.dtype:
    """The precision a recipe asks for, or the measured best for `auto`.

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
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu" and _seconds(torch.float32) > WORTHWHILE * _seconds(torch.bfloat16):
        return torch.bfloat16
    return torch.float32


def _seconds(dtype: torch.dtype) -> float:
    """Median time of a matrix product of a transformer layer's size, on the CPU."""
    a, b = torch.randn(512, 768, dtype=dtype), torch.randn(768, 2048, dtype=dtype)
    times = []
    for _ in range(9):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return median(times[2:])
