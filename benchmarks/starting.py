"""Seconds until a command says its first line, and what it imports and hashes until then.

    python -m benchmarks.starting train.csv --work DIR [--before CHECKOUT] [--repeats 3] [--commands run predict check]

`run` is `run tfidf-logreg` with 3 folds; `predict` answers one text by that run's models; `check` is `check minilm-l6`
to its end. Each is a process of its own, timed from before Python starts. With --before, the package of another
checkout takes turns with this one. `twice` counts contents of a kilobyte or more whose SHA-256 was computed again.
Prints a Markdown table of medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import commit, machine

CHILD = """
import collections, hashlib, json, os, sys, time
found, seen = {}, collections.Counter()
real = hashlib.sha256
class Counted:
    def __init__(self, content=b"", **more):
        self.own, self.size = real(content, **more), len(content)
    def update(self, content):
        self.own.update(content)
        self.size += memoryview(content).nbytes
    def __getattr__(self, name):
        if name in ("digest", "hexdigest") and self.size >= 1024:
            seen[self.own.digest()] += 1
        return getattr(self.own, name)
hashlib.sha256 = Counted
def note(key):
    found.setdefault(key, [time.time() - float(os.environ["STARTED"]), time.process_time(), len(sys.modules)])
class Noting:
    def __init__(self, stream):
        self.stream = stream
    def write(self, text):
        if text.strip():
            note("first")
        return self.stream.write(text)
    def __getattr__(self, name):
        return getattr(self.stream, name)
sys.stdout, sys.stderr = Noting(sys.stdout), Noting(sys.stderr)
from lora_cls.cli import main
try:
    main()
except SystemExit as error:
    if error.code:
        raise
note("end")
found["twice"] = sum(count - 1 for count in seen.values())
with open(os.environ["FOUND"], "w") as opened:
    json.dump(found, opened)
"""


def timed(checkout: Path, arguments: list[str], work: Path) -> dict[str, Any]:
    """What one process of a checkout's package took."""
    file = work / "found.json"
    more = {"PYTHONPATH": str(checkout), "FOUND": str(file), "STARTED": str(time.time())}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments], env=os.environ | more, cwd=work, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--before", type=Path, help="another checkout")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--commands", nargs="+", default=["run", "predict", "check"])
    given = parser.parse_args()
    work, train = given.work.resolve(), str(given.train.resolve())
    work.mkdir(parents=True, exist_ok=True)
    here = Path(__file__).parents[1]
    checkouts = {"before": given.before.resolve(), "after": here} if given.before else {"after": here}
    run = ["run", "tfidf-logreg", "--train", train, "--out", str(work / "run"), "--overwrite"]
    run += ["--set", "cv.n_splits=3"]
    (work / "one.csv").write_text("id,text\n1,I did not expect this at all!\n")
    predict = ["predict", str(work / "run"), "--input", str(work / "one.csv"), "--out", str(work / "answers")]
    arguments = {
        "run": run,
        "predict": [*predict, "--overwrite"],
        "check": ["check", "minilm-l6", "--train", train],
    }
    timed(here, run, work)  # what `predict` needs; and everything is in the cache of files
    taken: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for _ in range(given.repeats):
        for name in given.commands:
            for which, checkout in checkouts.items():
                taken.setdefault((name, which), []).append(timed(checkout, arguments[name], work))
    print(f"{machine()}; commit {commit()}\n")
    print("| command | package | first line: s | CPU s | modules | end: s | CPU s | hashed twice |")
    print("|---|---|---|---|---|---|---|---|")
    for (name, which), times in taken.items():
        cells = [f"{statistics.median(t[at][k] for t in times):.2f}" for at in ("first", "end") for k in (0, 1)]
        cells.insert(2, str(times[0]["first"][2]))
        print(f"| {name} | {which} | {' | '.join(cells)} | {times[0]['twice']} |")


if __name__ == "__main__":
    main()
