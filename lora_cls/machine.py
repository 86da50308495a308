"""What belongs to the machine: cache folder, cores, the memory that a process took, and what is installed."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
from contextlib import suppress
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from lora_cls.errors import WriteError

VERSIONS = (
    "lora_cls",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "scikit-learn",
    "numpy",
    "pandas",
)


def cache_folder() -> Path:
    """`$LORA_CLS_CACHE`, or `lora_cls` in the user's cache folder."""
    if os.environ.get("LORA_CLS_CACHE"):
        return Path(os.environ["LORA_CLS_CACHE"])
    home = Path(os.path.expanduser("~"))  # unlike `Path.home`, without an error where there is none
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "lora_cls"


def cache_note(error: WriteError) -> str:
    """What is said where the cache folder cannot be written: the same for all that lies in it, to be said once."""
    reason = str(error).partition(" cannot be written: ")[2].partition(". ")[0]
    return (
        f"The cache folder {cache_folder()} cannot be written ({reason}): what would be kept there is made anew by "
        "every command. LORA_CLS_CACHE names another folder."
    )


def physical_cores() -> int:
    """Cores this process may use, counting hyper-threads once where the system tells."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable))


def give_back_memory() -> None:
    """Give the system what lies free between tensors that live: glibc keeps it, and a process that works for long takes
    a little more with every new shape of batch."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))


def launched() -> tuple[int, int]:
    """Number of this process among those that a launcher (`accelerate launch`, `torchrun`) started to work as one, and
    how many they are: (0, 1) without a launcher."""
    rank, size = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    return (int(rank), int(size)) if rank.isdecimal() and size.isdecimal() and int(rank) < int(size) else (0, 1)


def reset_peak_memory() -> None:
    """Count the peak from here on. Where the system cannot, a peak no higher than that of before is not told."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        _held[0] = torch.cuda.memory_allocated()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        _before[0] = 0
        return
    _before[0] = _high_water_mark()


def peak_memory() -> int | None:
    """Bytes at the peak since the reset: of the GPU where one is used, else of this process; None where unknown."""
    torch = sys.modules.get("torch")  # loaded by a transformer's learner; nothing else needs it
    # what other models hold since before, as in a notebook, is no use of the GPU
    if torch is not None and torch.cuda.is_initialized() and torch.cuda.max_memory_allocated() > _held[0]:
        return int(torch.cuda.max_memory_allocated())
    peak = _high_water_mark()
    return peak if peak > _before[0] else None


_before = [0]
"""The high-water mark at the last reset, where the system could not take it back."""
_held = [0]
"""Bytes of the GPU's memory that were taken at the last reset."""


def _high_water_mark() -> int:
    with suppress(OSError):
        found = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def surroundings() -> dict[str, Any]:
    """When, by which versions and on which machine something is made; for `run.json`."""
    versions = {"python": platform.python_version()}
    for package in VERSIONS:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    torch = sys.modules.get("torch")
    gpu = torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions,
        "machine": {
            "platform": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "gpu": gpu,
        },
    }
