"""Folds by processes of one thread each against one process of as many threads: minutes of the clock, in turns.

    python -m benchmarks.workers TRAIN [--recipe minilm-l6] [--workers 2] [--pairs 2] [--set train.num_train_epochs=2]
        [--out FOLDER] [--results benchmarks/results/workers.md]

Each run is a whole `lora-cls run`, its start included. Memory is the sum over all processes of what each has for itself
and its share of what they have in common (PSS), at its highest in looks of half a second.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from statistics import median

import psutil

from benchmarks.machine import commit, machine
from lora_cls.runs import RunFolder


def memory(process: psutil.Process) -> float:
    """GiB of a process and all that it started."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().pss
        except psutil.Error:  # it has just ended
            continue
    return total / 2**30


def timed(arguments: list[str], out: Path) -> tuple[float, float]:
    """Minutes of a run, and its memory at the highest in GiB."""
    started, highest = time.monotonic(), 0.0
    command = [sys.executable, "-m", "lora_cls.cli", "run", *arguments, "--out", str(out)]
    with (out.parent / f"{out.name}.log").open("wb") as log:
        process = psutil.Popen(command, stdout=log, stderr=log)
        while process.poll() is None:
            highest = max(highest, memory(process))
            time.sleep(0.5)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}: see {log.name}")
    return (time.monotonic() - started) / 60, highest


def main() -> None:
    """Measure in turns, and write a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("train", type=Path)
    parser.add_argument("--recipe", default="minilm-l6")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--results", type=Path)
    given = parser.parse_args()
    folder = given.out or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    common = [given.recipe, "--train", str(given.train)]
    common += [part for override in given.overrides for part in ("--set", override)]
    ways = {
        f"{given.workers} processes of one thread": ["--workers", str(given.workers), "--set", "engine.num_threads=1"],
        f"one process of {given.workers} threads": ["--set", f"engine.num_threads={given.workers}"],
    }
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    scores: dict[str, float] = {}
    for number in range(given.pairs):
        for i, (way, options) in enumerate(ways.items()):
            out = folder / f"run-{number}-{i}"
            shutil.rmtree(out, ignore_errors=True)
            found[way].append(timed([*common, *options], out))
            scores[way] = RunFolder(out).scores.cross_fitted.macro_f1
            print(f"{way}: {found[way][-1][0]:.2f} min, {found[way][-1][1]:.2f} GiB", flush=True)
    first, second = (median(minutes for minutes, _ in values) for values in found.values())
    rows = [
        f"| {way} | {', '.join(f'{minutes:.2f}' for minutes, _ in values)} | "
        f"{max(gib for _, gib in values):.2f} | {scores[way]:.4f} |"
        for way, values in found.items()
    ]
    text = "\n".join(
        [
            f"# Folds at once: {given.recipe} on {given.train.stem}",
            "",
            f"{datetime.now(timezone.utc):%Y-%m-%d}, commit {commit()}; {machine()}; {', '.join(given.overrides)}. "
            "Whole runs in turns, their start included.",
            "",
            "| way | minutes of the clock | GiB, all processes | cross-fitted macro-F1 |",
            "|---|---|---|---|",
            *rows,
            "",
            f"Processes are {second / first:.2f} times as fast (medians).",
            "",
        ]
    )
    print(text)
    if given.results:
        given.results.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
