"""The memory of every shipped recipe, estimated; and of the packaged models, measured beside the estimate.

    python -m benchmarks.memory            # the table of estimates; loads nothing
    python -m benchmarks.memory --measure  # trains a few batches of each packaged model, each in a process of its own

Measured is the peak of a process that trains on synthetic texts all longer than `data.max_length`, with the learner
that `lora-cls run` uses. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.configurations import configuration
from benchmarks.cv_speed import peak
from lora_cls.recipe import Recipe, load_recipe, shipped_recipes

GIB = 2**30
N_LABELS = 6
FULL = {"lora": None, "train.learning_rate": 5e-5}
LORA = {"lora": {"r": 16, "lora_alpha": 32}}
# recipe, what is changed in it
MEASURED: list[tuple[str, str, dict[str, Any]]] = [
    ("minilm-l6", "full fine-tuning", FULL),
    ("minilm-l6", "LoRA", LORA),
    ("gemma-3-270m", "nf4, LoRA", {}),
    ("smollm2-135m", "LoRA", {}),
]


def estimate(recipe: Recipe, device: str, dtype: str) -> Any:
    """A recipe's estimate by `benchmarks.configurations`."""
    import torch

    from lora_cls.training.memory import estimate_memory

    assert recipe.backbone is not None
    config = configuration(recipe.backbone.name_or_path)
    return estimate_memory(recipe, config, dtype=getattr(torch, dtype), device=device, n_labels=N_LABELS)


def estimates() -> list[str]:
    """Rows of the table of shipped recipes."""
    lines = [
        "| recipe | parameters (M) | method | batch x tokens | base | adapters, head | gradients, AdamW | activations "
        "| total GiB on a GPU | total GiB on a CPU |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in shipped_recipes():
        recipe = load_recipe(name)
        if recipe.backbone is None:
            continue
        gpu, cpu = (estimate(recipe, device, "bfloat16") for device in ("cuda", "cpu"))
        base = "4-bit" if recipe.quantization else "bf16" if recipe.lora else "fp32"
        method = f"LoRA r={recipe.lora.r}, {base}" if recipe.lora else "full fine-tuning"
        method += ", checkpointing" if recipe.train.gradient_checkpointing else ""
        parts = (gpu.base, gpu.adapters, gpu.optimizer, gpu.activations)
        cells = " | ".join(f"{part / GIB:.2f}" for part in parts)
        size = f"{recipe.train.per_device_train_batch_size} x {recipe.data.max_length}"
        lines.append(
            f"| `{name}` | {gpu.parameters / 1e6:.0f} | {method} | {size} | {cells} | {gpu.total / GIB:.1f} "
            f"| {cpu.total / GIB:.1f} |"
        )
    return lines


def measurements(dtype: str, attention: str) -> list[str]:
    """Rows of the table of packaged models, measured."""
    lines = [
        "| recipe | method | batch x tokens | estimated GiB | measured GiB | estimated / measured |",
        "|---|---|---|---|---|---|",
    ]
    for name, method, changes in MEASURED:
        for rows in (8, 16):
            for length in (64, 128):
                settings = {
                    "data.max_length": length, "train.per_device_train_batch_size": rows, "backbone.dtype": dtype,
                    "train.num_train_epochs": 1, "engine.num_threads": 1, "backbone.attn_implementation": attention,
                    "train.per_device_eval_batch_size": rows,
                }  # fmt: skip
                recipe = load_recipe(name, changes | settings)
                expected = estimate(recipe, "cpu", dtype).total
                done = subprocess.run(
                    [sys.executable, "-m", "benchmarks.memory", "--one", json.dumps(recipe.to_dict())],
                    capture_output=True, text=True, check=True, env=os.environ.copy(),
                )  # fmt: skip
                found = int(done.stdout.split()[-1])
                lines.append(
                    f"| `{name}` | {method} | {rows} x {length} | {expected / GIB:.2f} | {found / GIB:.2f} "
                    f"| {expected / found:.2f} |"
                )
                print(lines[-1], file=sys.stderr, flush=True)
    return lines


def measure(recipe: Recipe) -> int:
    """Bytes at the peak after a few steps on texts that are all cut: of this process, or allocated on its GPU."""
    import numpy as np
    import pandas as pd

    from lora_cls.data import load_train
    from lora_cls.runs import FoldFolder
    from lora_cls.training.transformer import TransformerLearner

    n = 5 * recipe.train.per_device_train_batch_size
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {"id": np.arange(n), "text": [" ".join(map(str, rng.integers(0, 9999, 200))) for _ in range(n)]}
    )
    for j in range(N_LABELS):
        table[f"label{j}"] = (np.arange(n) + j) % 2
    names = [f"label{j}" for j in range(N_LABELS)]
    data = load_train(recipe.data.model_copy(update={"label_columns": names}), table)
    trainer = TransformerLearner(recipe, names).prepare(data)
    trainer.measure()
    with tempfile.TemporaryDirectory() as folder:
        trainer.fit_fold(0, np.arange(n), np.arange(n)[:8], FoldFolder(Path(folder) / "fold"))
    return peak()


def main() -> None:
    """Parse, and print the tables asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--dtype", default="bfloat16", help="of the measured runs")
    parser.add_argument("--attention", default="sdpa", help="of the measured runs")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(measure(load_recipe(json.loads(given.one))))
    else:
        print("\n".join(measurements(given.dtype, given.attention) if given.measure else estimates()))


if __name__ == "__main__":
    main()
