"""What a figure was measured on: the machine and the commit."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path


def machine() -> str:
    """Processor, cores that this process may use, memory."""
    name, memory = platform.processor() or platform.machine(), ""
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
        memory = f", {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores{memory}"


def commit() -> str:
    """The commit of this checkout, and whether files differ from it."""

    def git(*arguments: str) -> str:
        found = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True)
        return found.stdout.strip()

    return (git("rev-parse", "--short", "HEAD") or "unknown") + (
        " with uncommitted changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    )
