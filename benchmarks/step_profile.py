"""Where a step of training goes, by kind of operation: each operation of our own steps timed by itself, on one process.

    python -m benchmarks.step_profile --data train.csv --labels joy fear ... [--model smollm2-135m]

First so many steps are timed as they are, then as many with a clock around each of PyTorch's operations (a
`TorchDispatchMode`). What lies between operations (Python, autograd's own bookkeeping, PyTorch's dispatch) is the whole
step as it is, less these. PyTorch's profiler is not used: beside it operations that make large tensors took up to 20
times as long as they take, and the sum of all was above the whole. A table is written, and beneath it the single
operations that take most.
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
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.cv_speed import LORA, Fold, begin
from benchmarks.machine import commit, machine

PACKED = "_linear_pointwise"  # by a weight that oneDNN has packed: the base's alone
PRODUCTS = ("mm", "addmm", "addmm_")
ATTENTION = ("bmm", "baddbmm", "_softmax", "_softmax_backward_data", "masked_fill")
COPIES = ("copy_", "_to_copy", "cat", "index", "clone", "fill_", "zero_", "index_put_", "select_backward")
MATRIX, LOW_RANK, HEAD = "products with the base's weights", "products with LoRA's factors", "head"
KINDS = (MATRIX, LOW_RANK, HEAD, "attention", "copies and casts", "optimizer and clipping", "norms, rotary, activation")


def kind(name: str, shapes: list[list[int]], updates: bool, rank: int, n_labels: int) -> str:
    """The kind of an operation, by its name, the shapes of its inputs, and whether the optimizer calls it."""
    if updates:
        return "optimizer and clipping"
    if name == PACKED:
        return MATRIX
    if name in PRODUCTS:
        sizes = {size for shape in shapes for size in shape}
        return HEAD if n_labels in sizes else LOW_RANK if sizes & {rank, 2 * rank, 3 * rank} else MATRIX
    if name in ATTENTION or "scaled_dot_product" in name or "flash_attention" in name:
        return "attention"
    return "copies and casts" if name in COPIES else "norms, rotary, activation"


class Clock(TorchDispatchMode):
    """Seconds of operations, by kind and one by one."""

    def __init__(self, rank: int, n_labels: int) -> None:
        super().__init__()
        self.rank, self.n_labels = rank, n_labels
        self.updates = False
        self.kinds: dict[str, float] = defaultdict(float)
        self.single: dict[str, float] = defaultdict(float)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        started = time.perf_counter()
        found = function(*args, **(kwargs or {}))
        seconds = time.perf_counter() - started
        name = function._schema.name.partition("::")[2]
        shapes = [list(given.shape) for given in args if isinstance(given, torch.Tensor)]
        of = kind(name, shapes, self.updates, self.rank, self.n_labels)
        self.kinds[of] += seconds
        self.single[f"{name} ({of})"] += seconds
        return found


def steps(fold: Fold, number: int) -> list[tuple[np.ndarray, int]]:
    """Train on the first batches, the same ones each time; pieces and tokens of each."""
    return [(pieces, fold.step(pieces)) for pieces in islice(fold.batches(), number)]


def profile(fold: Fold, number: int, rank: int, n_labels: int) -> tuple[dict[str, float], dict[str, float], float]:
    """Seconds by kind and by single operation, and of the whole, all beside the clock."""
    from lora_cls.training import loop

    update, clock = loop.update, Clock(rank, n_labels)

    def marked(*arguments: Any) -> None:
        clock.updates = True
        update(*arguments)
        clock.updates = False

    loop.update = marked
    with clock:
        started = time.perf_counter()
        steps(fold, number)
        whole = time.perf_counter() - started
    loop.update = update
    return clock.kinds, clock.single, whole


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
        f"{1000 * plain / rows:.1f} ms a row, {1000 * whole / rows:.1f} beside the clock; attention "
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
