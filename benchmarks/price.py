"""What each approximate step costs in macro-F1, and saves in minutes: one recipe, its folds and seed, one step changed.

    python -m benchmarks.price --train train.csv --test test.csv [--recipe smollm2-135m] [--out runs/price]
        [--only "top 1/2"] [--set key=value]

The test file carries its labels; only the scoring of finished runs reads them. Every variant is a run of its own in a
process of its own; one that is finished is not trained again, one that was stopped goes on. Writes the table of all
finished runs to `benchmarks/results/price_NAME.md`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from benchmarks.machine import commit, machine
from benchmarks.score_test import Decided, decide
from lora_cls import Recipe, load_recipe, read_table
from lora_cls.evaluation import Interval, bootstrap_difference, macro_f1
from lora_cls.runs import RunFolder

FOUR_BIT = "{load_in_4bit: true, bnb_4bit_quant_type: nf4, bnb_4bit_use_double_quant: true}"
# variant: (what it is compared with, overrides)
VARIANTS: dict[str, tuple[str, list[str]]] = {
    "all layers": ("", []),
    "top 2/3": ("all layers", ["lora.top_layers=0.667"]),
    "top 1/2": ("all layers", ["lora.top_layers=0.5"]),
    "top 1/3": ("all layers", ["lora.top_layers=0.333"]),
    "top 1/4": ("all layers", ["lora.top_layers=0.25"]),
    "top 1/2, twice the learning rate": ("all layers", ["lora.top_layers=0.5", "train.learning_rate={2 lr}"]),
    "top 1/4, twice the learning rate": ("all layers", ["lora.top_layers=0.25", "train.learning_rate={2 lr}"]),
    "depth 2/3": ("all layers", ["backbone.num_hidden_layers={2/3}"]),
    "depth 2/3, top 1/2 of it": ("all layers", ["backbone.num_hidden_layers={2/3}", "lora.top_layers=0.5"]),
    "4-bit, top 1/4": ("top 1/4", ["lora.top_layers=0.25", f"quantization={FOUR_BIT}"]),
    "8-bit, top 1/4": ("top 1/4", ["lora.top_layers=0.25", "quantization={load_in_8bit: true}"]),
    "fp32, top 1/4": ("top 1/4", ["lora.top_layers=0.25", "backbone.dtype=float32"]),
}


def overrides(given: Sequence[str], recipe: Recipe, n_layers: int) -> list[str]:
    """The overrides of a variant, in numbers."""
    values = {"{2/3}": str(round(2 / 3 * n_layers)), "{2 lr}": str(2 * recipe.train.learning_rate)}
    found = list(given)
    for name, value in values.items():
        found = [text.replace(name, value) for text in found]
    return found


def layers_of(recipe: str) -> int:
    """How many layers the recipe's model has."""
    from lora_cls.modeling.loading import load_config
    from lora_cls.modeling.source import find_source

    backbone = load_recipe(recipe).backbone
    assert backbone is not None
    return int(load_config(backbone, find_source(backbone.name_or_path, backbone.revision)).num_hidden_layers)


def train(name: str, given: argparse.Namespace, n_layers: int) -> RunFolder | None:
    """The finished run of a variant; None where it failed."""
    folder = given.out / name.replace(" ", "_").replace("/", "-").replace(",", "")
    if not (folder / "metrics.json").is_file():
        command = [sys.executable, "-m", "lora_cls.cli", "run", given.recipe, "--train", str(given.train), "--test"]
        command += [str(given.test), "--out", str(folder), "--resume"]
        labels = [column for column in read_table(given.train).columns if column in given.labels]
        chosen = [f"data.label_columns=[{', '.join(labels)}]", "cv.n_splits=3", *given.overrides]
        for text in [*chosen, *overrides(VARIANTS[name][1], load_recipe(given.recipe), n_layers)]:
            command += ["--set", text]
        code = subprocess.run(command).returncode
        if code == 130:
            raise KeyboardInterrupt
        if code:
            return None
    return RunFolder(folder)


def row(name: str, run: RunFolder, of: dict[str, Decided], reference: str) -> str:
    """One line of the table."""
    mine, info = of[name], run.info
    test = mine.on_test("mean_logit")
    cells = [
        f"{macro_f1(mine.oof.y_true, mine.y_pred):.4f}",
        f"{macro_f1(mine.oof.y_true, mine.untuned):.4f}",
        f"{macro_f1(mine.y_test, test):.4f}",
    ]
    if reference in of:
        other = of[reference]
        cells += [
            reference,
            _cell(bootstrap_difference(mine.oof.y_true, mine.y_pred, other.y_pred, mine.oof.groups)),
            _cell(bootstrap_difference(mine.oof.y_true, mine.untuned, other.untuned, mine.oof.groups)),
            _cell(bootstrap_difference(mine.y_test, test, other.on_test("mean_logit"), np.arange(len(test)))),
        ]
    else:
        cells += ["-"] * 4
    minutes = sum(info.seconds.values()) / 60
    cells += [f"{minutes:.1f}", f"{(info.peak_memory_bytes or 0) / 2**30:.1f}"]
    return f"| {name} | " + " | ".join(cells) + " |"


def _cell(interval: Interval) -> str:
    return f"{interval.estimate:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"


def main() -> None:
    """Parse, run what is missing, write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--labels", nargs="+", required=True, help="label columns, in both files")
    parser.add_argument("--recipe", default="smollm2-135m")
    parser.add_argument("--out", type=Path, default=Path("runs/price"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--only", action="append", choices=list(VARIANTS))
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    given = parser.parse_args()
    n_layers = layers_of(given.recipe)
    runs: dict[str, RunFolder] = {}
    failed = []
    for name in given.only or VARIANTS:
        run = train(name, given, n_layers)
        if run is None:
            failed.append(name)
        else:
            runs[name] = run
    decided = {name: decide(run, given.test) for name, run in runs.items()}
    versions = next(iter(runs.values())).info.versions
    lines = [
        f"# The price of each step: {given.recipe} on {given.train.stem}, 3 folds",
        "",
        f"{datetime.now(timezone.utc):%Y-%m-%d}, commit {commit()}. {machine()}; "
        + ", ".join(f"{package} {versions[package]}" for package in ("torch", "transformers", "peft", "bitsandbytes"))
        + f". `python -m benchmarks.price --recipe {given.recipe}"
        + "".join(f" --set {text}" for text in given.overrides)
        + "`",
        "",
        "Macro-F1: cross-fitted (thresholds tuned on the other folds), untuned (logit > 0), and on the test rows (mean "
        "logit of the folds). Differences are paired, with a 95 % bootstrap interval over rows; training again "
        "with another seed varies besides. Minutes and GiB are those of the whole run.",
        "",
        "| step | cross-fitted | untuned | test | compared with | cross-fitted | untuned | test | min | GiB |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(row(name, run, decided, VARIANTS[name][0]) for name, run in runs.items()),
        "",
        *([f"FAILED, and missing above: {', '.join(failed)}.", ""] if failed else []),
    ]
    target = given.results / f"price_{given.recipe}.md"
    target.write_text("\n".join(lines), encoding="utf-8")
    print(target)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
