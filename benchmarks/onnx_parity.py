"""`lora-cls export --to onnx` beside PyTorch: differences, rows per second, file sizes, and the price of 8 bits.

    python -m benchmarks.onnx_parity RUN... --labels test.csv --work FOLDER --out benchmarks/results/NAME.md

For each run: its ONNX exports in fp32 and in 8 bits, and its merged one, which PyTorch computes as the run does.
Exports and what was measured are kept in the work folder, so that a stopped benchmark goes on where it was. `--times N`
measures rows per second with N threads, in turns, of the exports that are there, and writes no table; without it the
table shows what was measured so far.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime
from onnxruntime.quantization import quantize_dynamic

from benchmarks.machine import commit, machine
from lora_cls.commands.export import compare, export, in_8_bits
from lora_cls.commands.predict import Classifier
from lora_cls.files import whole_folder, write_array, write_json
from lora_cls.runs import FoldFolder, FoldInfo, Labelled, RunFolder
from lora_cls.runs.records import ExportInfo
from lora_cls.training.onnx_export import merged_session
from lora_cls.training.onnx_predictor import GRAPH

WAYS = ("merged", "fp32", "int8", "dynamic")
NAMES = {"merged": "PyTorch, {dtype}", "fp32": "ONNX, fp32", "int8": "ONNX, int8", "dynamic": "by `quantize_dynamic`"}
ROWS, TIMED, ROUNDS = 500, 256, 3


def exported(run: RunFolder, work: Path, way: str) -> RunFolder:
    """An export of the run, made where it is not there."""
    folder = work / way
    if not folder.is_dir():
        print(f"{run.path.name}: export {way} ...", flush=True)
        if way == "int8":
            with whole_folder(folder) as scratch:
                in_8_bits(run, exported(run, work, "fp32"), scratch)
        elif way == "dynamic":
            dynamic(exported(run, work, "fp32"), folder)
        else:
            export(run, folder, to="onnx" if way == "fp32" else "merged")
    return RunFolder(folder)


def dynamic(whole: RunFolder, folder: Path) -> None:
    """An export whose graph onnxruntime's own dynamic quantization made: what `--int8` is compared with."""
    with whole_folder(folder) as scratch:
        shutil.copytree(whole.path, scratch, dirs_exist_ok=True, ignore=shutil.ignore_patterns("model.onnx*"))
        quantize_dynamic(whole.path / "model" / GRAPH, scratch / "model" / GRAPH, per_channel=True)
        FoldFolder(scratch).write_info(FoldInfo(pos_weight=FoldFolder(whole.path).info.pos_weight))


def fp32_scores(run: RunFolder, texts: list[str]) -> np.ndarray:
    """Probabilities by PyTorch in fp32, of the same merged weights that the graph has."""
    with TemporaryDirectory() as name:
        session = merged_session(run, Path(name), None)
        model = session.load(FoldFolder(Path(name))).cpu()
        weight = np.exp(np.log(run.pos_weights()).mean(axis=0))
        logits = session.answer(model, session.encode(texts), weight).logits
        return session.task.link.probabilities(logits, weight)


def first_rows(labelled: Labelled, n_rows: int | None) -> Labelled:
    """The first rows of a table; all where None."""
    rows = labelled.rows.subset(np.arange(len(labelled.y_true))[:n_rows])
    return replace(labelled, rows=rows, y_true=labelled.y_true[:n_rows])


def answers(run: RunFolder, labelled: Labelled, work: Path, way: str) -> np.ndarray:
    """Probabilities and decisions of all rows, ndarray of shape (2, n_rows, n_labels), from the work folder where they
    are there."""
    file = work / f"{way}-{len(labelled.y_true)}.npy"
    if not file.is_file():
        print(f"{run.path.name}: {way} answers ...", flush=True)
        write_array(file, np.array(Classifier.load(exported(run, work, way)).answer(labelled.rows)))
    return np.load(file)


def expected(run: RunFolder, labelled: Labelled, work: Path) -> np.ndarray:
    """What PyTorch says of the first rows in fp32, ndarray of shape (ROWS, n_labels)."""
    file = work / "expected.npy"
    if not file.is_file():
        print(f"{run.path.name}: PyTorch in fp32 ...", flush=True)
        write_array(file, fp32_scores(run, labelled.rows.texts[:ROWS]))
    return np.load(file)


def with_threads(run: RunFolder, n: int) -> RunFolder:
    """The run, as if its recipe asked for so many threads."""
    engine = run.recipe.engine.model_copy(update={"num_threads": n})
    run.__dict__["recipe"] = run.recipe.model_copy(update={"engine": engine})
    return run


def times(run: RunFolder, labelled: Labelled, work: Path, n_threads: int) -> None:
    """Rows per second of every way, in turns, all loaded in one process; kept in the work folder."""
    import torch

    file = work / f"times-{n_threads}.json"
    if file.is_file():
        return
    ways = [way for way in WAYS if (work / way).is_dir()]
    opened = {way: Classifier.load(with_threads(RunFolder(work / way), n_threads)) for way in ways}
    rows = labelled.rows.subset(np.arange(TIMED))
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(ROUNDS + 1):
        for way, classifier in opened.items():
            torch.set_num_threads(n_threads)
            started = time.perf_counter()
            classifier.answer(rows)
            if number:  # the first loads and warms up
                rates[way].append(TIMED / (time.perf_counter() - started))
    write_json(file, rates)
    print(f"{run.path.name}, {n_threads} threads: {rates}", flush=True)


def shown_rates(work: Path, way: str, n_threads: int) -> str:
    """Median and range of the rounds."""
    file = work / f"times-{n_threads}.json"
    if not file.is_file():
        return "not measured"
    rates = json.loads(file.read_text()).get(way)
    if rates is None:
        return "not measured"
    return f"{median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f})"


def section(run: RunFolder, labelled: Labelled, work: Path, ways: list[str]) -> list[str]:
    """The table of one run."""
    truth = expected(run, labelled, work)
    found = {way: answers(run, labelled, work, way) for way in ("fp32", *ways)}
    decided = {way: said[1].astype(np.int8) for way, said in found.items()}
    scores = compare([(way, None, y_pred, 1.0) for way, y_pred in decided.items()], labelled)
    by_way = dict(zip(decided, scores, strict=True))
    about = ExportInfo.read(exported(run, work, "fp32").files.export)
    assert about.onnx is not None and run.recipe.backbone is not None
    lines = [
        f"## {run.path.name}: {run.recipe.backbone.name_or_path.rpartition('/')[2]}",
        "",
        f"Macro-F1 on {len(labelled.y_true)} rows. The export itself found a difference of "
        f"{about.onnx.largest_difference:.1e} on its {about.onnx.texts} texts.",
        "",
        f"| | largest difference on {ROWS} rows | decisions unlike fp32 | macro-F1 (95 %) | minus ONNX fp32 (95 %) | "
        "rows/s, 1 thread | rows/s, 2 threads | MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for way in (way for way in WAYS if way in decided):
        folder, score = exported(run, work, way), by_way[way]
        off = np.abs(found[way][0, :ROWS] - truth).max()
        f1, less = score.macro_f1, score.difference
        size = sum(file.stat().st_size for file in (folder.path / "model").iterdir()) / 1e6
        minus = "" if way == "fp32" else f"{less.estimate:+.4f} ({less.low:+.4f} to {less.high:+.4f})"
        lines.append(
            f"| {NAMES[way].format(dtype=run.info.choices['dtype'])} | {off:.1e} | "
            f"{'' if way == 'fp32' else format(float((decided[way] != decided['fp32']).mean()), '.2%')} | "
            f"{f1.estimate:.4f} ({f1.low:.4f} to {f1.high:.4f}) | {minus} | {shown_rates(work, way, 1)} | "
            f"{shown_rates(work, way, 2)} | {size:.0f} |"
        )
    return [*lines, ""]


def main() -> None:
    """Parse, measure, and write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--labels", required=True, type=Path)
    parser.add_argument("--work", required=True, type=Path, help="where exports and answers are kept")
    parser.add_argument("--out", type=Path, help="a Markdown file")
    parser.add_argument("--times", type=int, metavar="THREADS", help="only rows per second, with so many threads")
    parser.add_argument("--rows", type=int, help="only the first of the table")
    parser.add_argument("--ways", nargs="*", default=["merged", "int8", "dynamic"], help="beside ONNX in fp32")
    given = parser.parse_args()
    lines: list[str] = []
    for path in given.runs:
        run, work = RunFolder(path), given.work / path.name
        work.mkdir(parents=True, exist_ok=True)
        labelled = first_rows(Labelled.read(run, given.labels), given.rows)
        if given.times:
            times(run, labelled, work, given.times)
        else:
            lines += section(run, labelled, work, given.ways)
    if given.times or given.out is None:
        return
    versions = json.dumps(RunFolder(given.work / given.runs[-1].name / "fp32").info.versions).strip("{}")
    head = [
        f"# ONNX exports beside PyTorch, on {given.labels.name}",
        "",
        f"{datetime.now(timezone.utc):%Y-%m-%d}, commit {commit()}. {machine()}. onnxruntime "
        f"{onnxruntime.__version__}; runs made with {versions.replace(chr(34), '')}.",
        "",
        f"Largest difference of a probability from PyTorch in fp32 on the same merged weights, over {ROWS} rows and "
        "all labels; PyTorch as the run computes has its weights in the precision of the base's files. Macro-F1 at the "
        "run's shipped thresholds, on labelled rows that no model saw and that chose nothing; paired bootstrap "
        f"intervals over groups of identical texts. Rows per second: median of {ROUNDS} rounds in turns (lowest to "
        f"highest), {TIMED} rows in batches of the recipe's size, tokenisation included. MB: of the folder `model`, "
        "tokenizer included.",
        "",
    ]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text("\n".join([*head, *lines]), encoding="utf-8")
    print(given.out)


if __name__ == "__main__":
    main()
