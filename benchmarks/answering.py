"""All folds of runs answering many texts, and one text: before and after, in turns.

    python -m benchmarks.answering RUN... --texts test.csv --before CHECKOUT [--folds 10] --out results/answering.md

Every measurement is a process of its own, with the checkout's code on its path: the base is loaded and two texts are
answered first, then all texts (or as many as `--rows`) by so many folds, then one text five times. Seconds are those of
the processor. Answers are compared. A file that stands in `--out` gets a further section.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import commit, machine

ASK = """
import json, sys, time
import numpy as np
import pandas as pd
from lora_cls.commands.predict import Classifier

run, table, rows, folds, out = sys.argv[1:]
texts = pd.read_csv(table, keep_default_na=False)["text"].tolist()[: int(rows)]
classifier = Classifier.load(run)
classifier._folders = classifier._folders[: int(folds)]
classifier._weights = classifier._weights[: int(folds)]
classifier.predict_proba(texts[:2])
started = time.process_time()
proba = classifier.predict_proba(texts)
seconds = time.process_time() - started
alone = []
for text in texts[:5]:
    started = time.process_time()
    classifier.predict_proba(text)
    alone.append(time.process_time() - started)
np.save(out, np.stack([proba, proba >= classifier.thresholds]))
print(json.dumps([len(texts), len(classifier._folders), seconds, sorted(alone)[2]]))
"""


def ask(checkout: Path, run: Path, given: argparse.Namespace, out: Path) -> list[float]:
    """Rows, folds, seconds for all rows, seconds for one text."""
    command = [sys.executable, "-c", ASK, str(run), str(given.texts), str(given.rows), str(given.folds), str(out)]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    done = subprocess.run(command, env=environment, cwd=checkout, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return [float(value) for value in json.loads(done.stdout.splitlines()[-1])]


def measure(run: Path, given: argparse.Namespace, work: Path) -> list[str]:
    """Lines of the table: one per checkout."""
    places = {"before": given.before.resolve(), "after": Path.cwd()}
    found: dict[str, list[list[float]]] = {name: [] for name in places}
    for number in range(given.rounds):
        for name in list(places)[:: 1 if number % 2 == 0 else -1]:
            found[name].append(ask(places[name], run, given, work / f"{name}.npy"))
            print(run.name, name, found[name][-1], flush=True)
    first, then = (np.load(work / f"{name}.npy") for name in places)
    off = np.abs(first[0] - then[0])
    changed = int((first[1] != then[1]).sum())
    lines = []
    base = float(np.median([seconds for *_, seconds, _ in found["before"]]))
    for name, rounds in found.items():
        n_rows, n_folds = rounds[0][:2]
        seconds = [one[2] for one in rounds]
        rates = [n_rows / one for one in seconds]
        alone = float(np.median([one[3] for one in rounds]))
        same = f"{off.mean():.5f}, {off.max():.4f}; {changed} of {first[1].size}" if name == "after" else ""
        lines.append(
            f"| {run.name} | {name} | {n_rows:.0f} x {n_folds:.0f} | {np.median(rates):.1f} ({min(rates):.1f} to "
            f"{max(rates):.1f}) | {n_folds * np.median(rates):.0f} | {base / np.median(seconds):.2f} "
            f"| {1000 * alone:.0f} | {same} |"
        )
    return lines


def main() -> None:
    """Measure, and write a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--texts", required=True, type=Path, help="a CSV with a column text")
    parser.add_argument("--before", required=True, type=Path, help="another checkout")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folds", type=int, default=1000, help="only the first folds answer")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", required=True, type=Path, help="a Markdown file")
    given: Any = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        lines = [line for run in given.runs for line in measure(run, given, Path(work))]
    text = [
        f"{datetime.now(timezone.utc):%Y-%m-%d}, commit {commit()}; {machine()}; {given.rounds} rounds in turns, "
        "one process each, medians and range, seconds of the processor.",
        "",
        "| run | | texts x folds | rows/s by all (range) | rows/s by each | times before | ms for one text by all "
        "| probabilities: mean and greatest difference; decisions that changed |",
        "|---|---|---|---|---|---|---|---|",
        *lines,
        "",
    ]
    with given.out.open("a", encoding="utf-8") as file:
        file.write("\n".join(text) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main()
