"""Many rows through `lora-cls predict`: rows a second, peak memory against a tenth of the rows; killed and repeated.

    python -m benchmarks.predict_rows RUN TEXTS.csv --rows 1000000 --work DIR [--results FILE]

`TEXTS.csv` holds a column text; its texts are repeated with a number behind them. The larger prediction is also killed
(SIGKILL) after half of its time and repeated, which must end in the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import pandas as pd
import psutil

from benchmarks.machine import commit, machine

ANSWERS = ("test_proba.csv", "submission.csv")


def write_table(texts: list[str], n_rows: int, file: Path) -> Path:
    """A CSV of so many rows, written in pieces."""
    if not file.is_file():
        with file.open("w", encoding="utf-8") as opened:
            opened.write("id,text\n")
            for first in range(0, n_rows, 100_000):
                rows = range(first, min(first + 100_000, n_rows))
                frame = pd.DataFrame({"id": rows, "text": [f"{texts[i % len(texts)]} {i}" for i in rows]})
                frame.to_csv(opened, index=False, header=False, lineterminator="\n")
    return file


def predicted(run: Path, table: Path, out: Path, kill_after: float | None = None) -> tuple[float, float]:
    """Seconds of a prediction and its peak memory (RSS) in GiB; it is killed after so many seconds."""
    command = [sys.executable, "-m", "lora_cls.cli", "predict", str(run), "--input", str(table), "--out", str(out)]
    started, highest = time.monotonic(), 0
    with (out.parent / f"{out.name}.log").open("ab") as log:
        process = psutil.Popen(command, stdout=log, stderr=log)
        while process.poll() is None:
            try:
                highest = max(highest, process.memory_info().rss)
            except psutil.Error:  # it has just ended
                break
            if kill_after is not None and time.monotonic() - started > kill_after:
                process.kill()
            time.sleep(0.1)
        process.wait()
    if process.returncode and kill_after is None:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}: see {log.name}")
    return time.monotonic() - started, highest / 2**30


def sums(folder: Path) -> list[str]:
    """SHA-256 of the answers."""
    return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ANSWERS]


def main() -> None:
    """Measure, and write a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--results", type=Path)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    texts = pd.read_csv(given.texts, keep_default_na=False)["text"].tolist()
    lines = ["| rows | seconds | rows a second | peak GiB |", "|---|---|---|---|"]
    seconds = 0.0
    for n_rows in (given.rows // 10, given.rows):
        out = given.work / f"out-{n_rows}"
        shutil.rmtree(out, ignore_errors=True)
        seconds, gib = predicted(given.run, write_table(texts, n_rows, given.work / f"{n_rows}.csv"), out)
        lines.append(f"| {n_rows:,} | {seconds:.0f} | {n_rows / seconds:,.0f} | {gib:.2f} |")
        print(lines[-1], flush=True)
    again = given.work / "killed"
    shutil.rmtree(again, ignore_errors=True)
    table = given.work / f"{given.rows}.csv"
    predicted(given.run, table, again, kill_after=seconds / 2)
    was_whole = (again / "submission.csv").exists()
    rest, _ = predicted(given.run, table, again)
    same = sums(again) == sums(given.work / f"out-{given.rows}")
    text = "\n".join(
        [
            f"## {given.run.name}, {given.rows:,} rows",
            "",
            f"{datetime.now(timezone.utc):%Y-%m-%d}, commit {commit()}; {machine()}.",
            "",
            *lines,
            "",
            f"Killed after {seconds / 2:.0f} s {'(it had ended) ' if was_whole else ''}and repeated in {rest:.0f} s: "
            + ("the same bytes." if same else "OTHER BYTES."),
            "",
        ]
    )
    print(text)
    if given.results:
        with given.results.open("a", encoding="utf-8") as results:
            results.write(text)
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
