"""Where a step of training goes, by kind of operation: PyTorch's profiler over our own steps, on one process.

    python -m benchmarks.step_profile --data train.csv --labels joy fear ... [--model smollm2-135m] [--top-layers 0.5]

First so many steps are timed as they are, then as many under the profiler. Its events tell what share each kind of
operation has of the time within operations; what lies between them (Python, autograd's own bookkeeping, PyTorch's
dispatch) is the whole step, without the profiler, less these, as far as the profiler did not slow them down. A table
is written, and beneath it the single operations that take most.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import defaultdict
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cv_speed import LORA, Fold, begin
from benchmarks.machine import commit, machine

PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::linear", "aten::mkldnn_linear")
ATTENTION = ("aten::bmm", "aten::baddbmm", "aten::_softmax", "aten::_softmax_backward_data", "aten::masked_fill")
COPIES = ("aten::copy_", "aten::cat", "aten::index", "aten::clone", "aten::fill_", "aten::zero_", "aten::index_put_")
MATRIX, LOW_RANK, HEAD = "products with the base's weights", "products with LoRA's factors", "head"
KINDS = (MATRIX, LOW_RANK, HEAD, "attention", "copies and casts", "optimizer and clipping", "norms, rotary, activation")


def kind(name: str, shapes: list[list[int]], under: set[str], rank: int, n_labels: int) -> str:
    """The kind of an operation, by its name, the shapes of its inputs, and what it was called from."""
    if "update" in under:
        return "optimizer and clipping"
    if name in PRODUCTS:
        sizes = {size for shape in shapes for size in shape}
        return HEAD if n_labels in sizes else LOW_RANK if rank in sizes else MATRIX
    if name in ATTENTION or "scaled_dot_product" in name or "flash_attention" in name:
        return "attention"
    return "copies and casts" if name in COPIES else "norms, rotary, activation"


def steps(fold: Fold, number: int) -> list[tuple[np.ndarray, int]]:
    """Train on the first batches, the same ones each time; pieces and tokens of each."""
    return [(pieces, fold.step(pieces)) for pieces in islice(fold.batches(), number)]


def profile(fold: Fold, number: int, rank: int, n_labels: int) -> tuple[dict[str, float], dict[str, float], float]:
    """Seconds by kind and by single operation, and of the whole, all under the profiler."""
    from torch.profiler import ProfilerActivity, record_function
    from torch.profiler import profile as profiler

    from lora_cls.training import loop

    update = loop.update

    def marked(*arguments: Any) -> None:
        with record_function("update"):
            update(*arguments)

    loop.update = marked
    with profiler(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        started = time.perf_counter()
        steps(fold, number)
        whole = time.perf_counter() - started
    loop.update = update
    kinds: dict[str, float] = defaultdict(float)
    single: dict[str, float] = defaultdict(float)
    for event in recorded.events():
        if not event.name.startswith("aten::") and not event.name.startswith("triton"):
            continue
        under, parent = set(), event.cpu_parent
        while parent is not None:
            under.add(parent.name)
            parent = parent.cpu_parent
        seconds = event.self_cpu_time_total / 1e6
        found = kind(event.name, event.input_shapes or [], under, rank, n_labels)
        kinds[found] += seconds
        single[f"{event.name} ({found})"] += seconds
    return kinds, single, whole


def main() -> None:
    """Parse, train, write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--labels", nargs="+", required=True)
    parser.add_argument("--text", default="text")
    parser.add_argument("--model", default="smollm2-135m", help="a recipe")
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--set", action="append", default=[], help="key=value, for the recipe")
    parser.add_argument("--results", type=Path, help="a file to add the table to; the terminal without it")
    given = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    fold = begin(LORA, given)
    steps(fold, 4)  # kernels are prepared
    started = time.perf_counter()
    trained = steps(fold, given.steps)
    plain = time.perf_counter() - started
    rank = int(LORA[0].rpartition("=")[2])
    kinds, single, whole = profile(fold, given.steps, rank, len(given.labels))
    rows, tokens = sum(len(pieces) for pieces, _ in trained), sum(n for _, n in trained)
    between = max(0.0, plain - sum(kinds.values()))
    lines = [
        f"## {given.model}" + (f", {', '.join(given.set)}" if given.set else ""),
        "",
        f"{datetime.now(timezone.utc):%Y-%m-%d}, commit {commit()}. {machine()}, {given.threads} thread(s). "
        f"{given.steps} steps of {fold.size} rows, {tokens / rows:.1f} tokens each with padding: "
        f"{1000 * plain / rows:.1f} ms a row, {1000 * whole / rows:.1f} under the profiler; attention "
        f"{fold.trainer.session.choices['attn_implementation']}.",
        "",
        "| kind | ms/row | share |",
        "|---|---|---|",
    ]
    lines += [
        f"| {name} | {1000 * kinds[name] / rows:.2f} | {kinds[name] / plain:.0%} |"
        for name in sorted(kinds, key=lambda name: -kinds[name])
    ]
    lines += [f"| between operations | {1000 * between / rows:.2f} | {between / plain:.0%} |", ""]
    most = sorted(single, key=lambda name: -single[name])[:14]
    lines += ["Most: " + ", ".join(f"{name} {1000 * single[name] / rows:.2f}" for name in most) + ".", ""]
    text = "\n".join(lines)
    if given.results:
        with given.results.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
