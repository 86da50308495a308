"""Seconds and memory of every step around training, by the size of the table: what grows faster than linearly?

    python -m benchmarks.large_tables train.csv --sizes 100000x28 1000000x28 50000x1000 --work DIR [--steps read folds]

The rows of the training file are repeated with a suffix to their ids and texts, so that texts differ; where more labels
are asked for than it has, all are made up, from frequent to rare. No model is trained: out-of-fold logits are made up,
too, and go with the labels. Every step runs in a process of its own; its peak is that of the whole process, beside
which stands what it held before the step began (libraries and the step's inputs). `result` is the start of a SHA-256 of
what the step gave, by which two versions of the package can be compared. Seconds of the CPU, beside those of the
clock, hardly depend on what else runs. Prints a Markdown table; a step that takes
longer than --timeout has a row that says so.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.machine import commit, machine
from lora_cls.commands.tune import score
from lora_cls.data import fold_notes, text_hashes
from lora_cls.data.dataset import Dataset, load_train
from lora_cls.data.folds import stratified_folds
from lora_cls.data.summary import summarize
from lora_cls.data.table import read_table
from lora_cls.files import write_array
from lora_cls.machine import peak_memory, reset_peak_memory, surroundings
from lora_cls.recipe import load_recipe
from lora_cls.report.content import doubts_table, mistakes_table, page_content
from lora_cls.report.page import render, write_page
from lora_cls.runs import FoldInfo, RunFolder, RunInfo
from lora_cls.runs.records import DataInfo

N_SPLITS = 10


def make_table(source: Path, n_rows: int, n_labels: int, file: Path) -> None:
    """Write a table of so many rows and labels, the same for the same numbers."""
    with source.open(newline="", encoding="utf-8") as opened:
        header, *rows = csv.reader(opened)
    made_up = n_labels > len(header) - 2
    names = [f"label-{j}" for j in range(n_labels)] if made_up else header[2 : 2 + n_labels]
    share = np.geomspace(0.1, 20 / n_rows, n_labels)
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerow([*header[:2], *names])
        for i in range(n_rows):
            copy, at = divmod(i, len(rows))
            row = rows[at]
            labels: list[Any] = row[2 : 2 + n_labels]
            if made_up:
                labels = (np.random.default_rng(i).random(n_labels) < share).astype(np.int8).tolist()
            suffix = f" {copy}" if copy else ""
            writer.writerow([row[0] + suffix.replace(" ", "-"), row[1] + suffix, *labels])


class Inputs:
    """What a step needs of those before it, kept in a folder."""

    def __init__(self, work: Path) -> None:
        self.work, self.table = work, work / "train.csv"
        self.recipe = load_recipe("tfidf-logreg", {"data.train": str(self.table), "cv.n_splits": N_SPLITS})

    def keep(self, data: Dataset) -> None:
        """Write a dataset so that it can be had again without the cost of reading its table."""
        arrays = {"labels": data.labels, "groups": data.groups}
        for name, values in arrays.items():
            assert values is not None
            np.save(self.work / f"{name}.npy", values)
        lists = {"ids": data.ids, "texts": data.texts, "names": data.label_names}
        for name, texts in lists.items():
            (self.work / f"{name}.json").write_text(json.dumps(texts))

    def array(self, name: str) -> Any:
        return np.load(self.work / f"{name}.npy")

    def texts(self, name: str) -> Any:
        return json.loads((self.work / f"{name}.json").read_text())

    @property
    def dataset(self) -> Dataset:
        return Dataset(
            self.texts("ids"), self.texts("texts"), self.array("labels"), self.texts("names"), self.array("groups")
        )

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.work / "run")


def read(inputs: Inputs) -> Callable[[], Any]:
    """`read_table`: the file as a DataFrame."""
    return lambda: str(read_table(str(inputs.table)).shape)


def load(inputs: Inputs) -> Callable[[], Any]:
    """`load_train`: the same, columns found, labels parsed, groups of equal texts."""

    def step() -> Any:
        data = load_train(inputs.recipe.data)
        inputs.keep(data)
        return data.groups, data.labels

    return step


def check(inputs: Inputs) -> Callable[[], Any]:
    """`summarize`: what `check` says of the rows."""
    data = inputs.dataset
    return lambda: json.dumps(summarize(data))


def folds(inputs: Inputs) -> Callable[[], Any]:
    """`stratified_folds`, and the notes on them."""
    labels, groups, names = inputs.array("labels"), inputs.array("groups"), inputs.texts("names")

    def step() -> Any:
        fold = stratified_folds(labels, groups, N_SPLITS)
        np.save(inputs.work / "fold.npy", fold)
        return fold, "\n".join(fold_notes(labels, fold, names, groups))

    return step


def fingerprints(inputs: Inputs) -> Callable[[], Any]:
    """Of the dataset, and the hashes of its texts."""
    data = inputs.dataset
    return lambda: (data.fingerprint(), text_hashes(data.texts))


def create(inputs: Inputs) -> Callable[[], Any]:
    """`RunFolder.create`: `folds.csv`, `train_labels.csv`, `text_hashes.npy`; and made-up logits (a second or two)."""
    data, fold = inputs.dataset, inputs.array("fold")
    about = DataInfo(
        paths={"train": "train.csv"},
        id_column="id",
        test_id_column=None,
        text_columns=["text"],
        label_columns=data.label_names,
        train_rows=len(data),
        extra_rows=0,
        test_rows=None,
        train_sha256=data.fingerprint(),
        test_sha256=None,
    )
    info = RunInfo(**(surroundings() | {"started": ""}), data=about, choices={})

    def step() -> Any:
        assert data.labels is not None
        run = RunFolder.create(inputs.work / "run", inputs.recipe, data, fold, info, overwrite=True)
        for number in range(N_SPLITS):
            folder, labels = run.fold(number), data.labels[fold == number]
            noise = np.random.default_rng(number).standard_normal(labels.shape, dtype=np.float32)
            folder.path.mkdir()
            write_array(folder.oof_logits, noise + np.float32(4) * labels - np.float32(3))
            folder.write_info(FoldInfo(pos_weight=[1.0] * len(data.label_names), seconds={"train": 1, "predict": 1}))
        return run.files.folds.read_bytes(), run.files.train_labels.read_bytes()

    return step


def out_of_fold(inputs: Inputs) -> Callable[[], Any]:
    """`RunFolder.out_of_fold`: the run folder's tables and logits, read and compared with their SHA-256."""
    return lambda: inputs.run.out_of_fold().y_score


def thresholds(inputs: Inputs) -> Callable[[], Any]:
    """Thresholds on all rows, and cross-fitted over the folds."""
    run = inputs.run
    oof, task = run.out_of_fold(), run.task()

    def step() -> Any:
        return task.tune(oof.y_true, oof.y_score), oof.cross_fit(task, False).y_pred

    return step


def tune(inputs: Inputs) -> Callable[[], Any]:
    """`score`: reading, thresholds, all scores with their intervals, `oof_proba.csv`, `metrics.json`."""

    def step() -> Any:
        run = inputs.run
        score(run)
        return tuple(f.read_bytes() for f in (run.files.oof_proba, run.files.decision, run.files.scores))

    return step


def page(inputs: Inputs) -> Callable[[], Any]:
    """What `report.html` shows, and the page."""
    run = inputs.run
    results = run.results()
    return lambda: render(page_content(run, None, results))


def mistakes(inputs: Inputs) -> Callable[[], Any]:
    """`mistakes.csv` and `doubts.csv`, as tables."""
    run = inputs.run
    results = run.results()
    return lambda: str((mistakes_table(run, results).shape, doubts_table(run, results).shape))


def report(inputs: Inputs) -> Callable[[], Any]:
    """`write_page`: the page with `mistakes.csv` and `doubts.csv`, from the run folder."""

    def step() -> Any:
        run = inputs.run
        write_page(run)
        return tuple(f.read_bytes() for f in (run.files.page, run.files.mistakes, run.files.doubts))

    return step


STEPS = (read, load, check, folds, fingerprints, create, out_of_fold, thresholds, tune, page, mistakes, report)


def digest(result: Any) -> str:
    """The start of a SHA-256 of texts, bytes and arrays."""
    found = hashlib.sha256()
    for part in result if isinstance(result, tuple) else (result,):
        if isinstance(part, str):
            part = re.sub(r"run-[0-9a-f-]+", "", part).encode()
        found.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes())
    return found.hexdigest()[:12]


def measure(name: str, work: Path, profile: bool) -> dict[str, Any]:
    """One step in this process."""
    step = next(step for step in STEPS if step.__name__ == name)(Inputs(work))
    before = psutil.Process().memory_info().rss
    reset_peak_memory()
    started, cpu = time.monotonic(), time.process_time()
    if profile:
        import cProfile
        import pstats

        profiler = cProfile.Profile()
        result = profiler.runcall(step)
        pstats.Stats(profiler, stream=sys.stderr).sort_stats("cumulative").print_stats(25)
    else:
        result = step()
    seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    return {"seconds": seconds, "cpu": cpu, "peak": peak_memory(), "before": before, "result": digest(result)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--sizes", nargs="+", default=["100000x28", "1000000x28", "50000x1000"])
    parser.add_argument("--steps", nargs="+", default=[step.__name__ for step in STEPS])
    parser.add_argument("--work", type=Path, required=True, help="a folder for the tables and run folders")
    parser.add_argument("--timeout", type=float, default=600)
    parser.add_argument("--profile", action="store_true", help="also print where the time goes, to standard error")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        print(json.dumps(measure(given.one, given.work, given.profile)))
        return
    print(f"{machine()}; commit {commit()}\n")
    print("| table | step | seconds | CPU seconds | GiB at the peak | GiB before | result |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for size in given.sizes:
        n_rows, n_labels = map(int, size.split("x"))
        work = given.work / size
        work.mkdir(parents=True, exist_ok=True)
        if not (work / "train.csv").is_file():
            make_table(given.source, n_rows, n_labels, work / "train.csv")
        for name in given.steps:
            command = [sys.executable, "-m", "benchmarks.large_tables", str(given.source), "--one", name]
            command += ["--work", str(work), *(["--profile"] if given.profile else [])]
            try:
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=given.timeout)
                found = json.loads(done.stdout.splitlines()[-1]) if not done.returncode else None
            except subprocess.TimeoutExpired:
                print(f"| {size} | {name} | more than {given.timeout:g} | | | | |", flush=True)
                continue
            if found is None:
                print(f"| {size} | {name} | failed ({done.returncode}) | | | | |", flush=True)
                continue
            peak, before = (found[key] / 2**30 for key in ("peak", "before"))
            took = f"{found['seconds']:.2f} | {found['cpu']:.2f}"
            print(f"| {size} | {name} | {took} | {peak:.2f} | {before:.2f} | {found['result']} |", flush=True)


if __name__ == "__main__":
    main()
