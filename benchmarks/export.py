"""What one model made of the folds' models loses against them, on a labelled test file.

    python -m benchmarks.export RUN... --labels test.csv --work FOLDER --out benchmarks/results/NAME.md
    python -m benchmarks.export RUN... --align train.csv,test.csv --no-ranks ...

For each run: the folds together, the exact mean of their adapters, that at ranks r, 2r and 4r, merged into the base
(of a fully fine-tuned run: the mean of the weights), that aligned to the folds by texts of tables whose labels play
no part (`--align`, which may be repeated), and the model of `lora-cls refit` where there is one. Exports and answers
are kept in the work folder, so that a stopped benchmark goes on where it was.

Seconds are those of the processor, of one process: other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score

from benchmarks.machine import commit, machine
from lora_cls.choices import Models
from lora_cls.commands.export import FOLDS, compare, export
from lora_cls.commands.predict import Classifier
from lora_cls.evaluation import Interval
from lora_cls.files import write_json
from lora_cls.runs import Labelled, RunFolder


def ways(run: RunFolder, align: Sequence[str], ranks: bool) -> list[tuple[str, dict[str, Any] | Models]]:
    """(name, settings of `export`, or which models of the run answer)."""
    found: list[tuple[str, dict[str, Any] | Models]] = [(FOLDS, "folds")]
    lora = run.recipe.lora
    if lora is not None:
        found.append(("exact mean", {}))
        lower = [n * lora.r for n in (1, 2, 4) if ranks and n < len(run.finished_folds)]
        found += [(f"rank {rank}", {"rank": rank}) for rank in lower]
    merged = "merged" if lora else "mean of the weights"
    found.append((merged, {"to": "merged"}))
    for given in align:
        files = given.split(",")
        on = " and ".join(Path(file).stem for file in files)
        found.append((f"{merged}, aligned on {on}", {"to": "merged", "align": files}))
    if run.refit.finished:
        found.append(("refit", "refit"))
    return found


def answers(run: RunFolder, labelled: Labelled, work: Path, align: Sequence[str], ranks: bool) -> list[dict[str, Any]]:
    """Every way's decisions and seconds, from the work folder where they are there."""
    work.mkdir(parents=True, exist_ok=True)
    found = []
    for name, how in ways(run, align, ranks):
        file = work / f"{name.replace(' ', '-')}.json"
        if not file.is_file():
            print(f"{run.path.name}: {name} ...", flush=True)
            folds = np.array(found[0]["y_pred"]) if found else None
            write_json(file, {"model": name} | _answer(run, labelled, work / name.replace(" ", "-"), how, folds))
        found.append(json.loads((file).read_text()))
    return found


def _answer(
    run: RunFolder,
    labelled: Labelled,
    folder: Path,
    how: dict[str, Any] | Models,
    folds: np.ndarray | None,
) -> dict[str, Any]:
    about: dict[str, Any] = {"rank": run.recipe.lora.r if run.recipe.lora else None, "compression": None}
    made = 0.0
    if isinstance(how, str):
        n = len(run.finished_folds) if how == "folds" else 1
        first = run.fold(run.finished_folds[0])
        size = n * _size(first.adapter if run.recipe.lora else first.model)
        classifier = Classifier.load(run, models=how)
    else:
        if not folder.is_dir():
            started = time.process_time()
            export(run, folder, **how)
            made = time.process_time() - started
        about = json.loads((folder / "export.json").read_text())
        size = _size(folder / ("adapter" if about["kind"] == "adapter" else "model"))
        classifier = Classifier.load(folder)
    classifier.predict(labelled.rows.subset([0]))  # loads the base
    started = time.process_time()
    y_score, y_pred = classifier.answer(labelled.rows)
    seconds = time.process_time() - started
    return {
        "rank": about["rank"],
        "compression": about["compression"],
        "bytes": size,
        "made": round(made, 1),
        "seconds": seconds,
        "average_precision": float(average_precision_score(labelled.y_true, y_score)),
        "y_pred": y_pred.tolist(),
        "matched": None if folds is None or run.recipe.task == "single_label" else matched(y_score, folds).tolist(),
    }


def matched(y_score: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
    """Decisions that give each label to as many rows as `y_pred` does, those of the greatest scores: thresholds that
    need no labels."""
    limits = [np.quantile(column, 1 - share) for column, share in zip(y_score.T, y_pred.mean(axis=0), strict=True)]
    return (y_score >= np.array(limits)).astype(np.int8)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def table(found: Sequence[dict[str, Any]], labelled: Labelled) -> list[str]:
    """A Markdown table."""
    scores = compare(
        [(way["model"], way["rank"], np.array(way["y_pred"], dtype=np.int8), way["seconds"]) for way in found], labelled
    )
    at_rates = [way if way["matched"] is None else way | {"y_pred": way["matched"]} for way in found]
    rates = compare(
        [(way["model"], None, np.array(way["y_pred"], dtype=np.int8), way["seconds"]) for way in at_rates], labelled
    )
    lines = [
        "| model | rank | share kept (least of a module) | MB | made in s | macro-F1 (95 %) | minus the folds (95 %) "
        "| at the folds' shares: minus the folds (95 %) | mean AP | s for all rows | rows/s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for way, score, rate in zip(found, scores, rates, strict=True):
        f1, cut = score.macro_f1, way["compression"]
        kept = f"{cut['share']:.1%} ({cut['lowest_share']:.1%})" if cut else ""
        less = _cell(score.difference) if way is not found[0] else ""
        at_shares = _cell(rate.difference) if way["matched"] is not None else ""
        lines.append(
            f"| {score.model} | {score.rank or ''} | {kept} | {way['bytes'] / 1e6:.1f} | {way['made'] or ''} "
            f"| {f1.estimate:.4f} ({f1.low:.4f} to {f1.high:.4f}) | {less} | {at_shares} "
            f"| {way['average_precision']:.4f} | {score.seconds:.1f} | {score.rows_per_second:.0f} |"
        )
    return lines


def _cell(interval: Interval) -> str:
    return f"{interval.estimate:+.4f} ({interval.low:+.4f} to {interval.high:+.4f})"


def section(run: RunFolder, labelled: Labelled, found: Sequence[dict[str, Any]]) -> list[str]:
    """A run's part of the report."""
    recipe, metrics = run.recipe, json.loads((run.path / "metrics.json").read_text())
    method = f"LoRA r={recipe.lora.r}" if recipe.lora else "full fine-tuning"
    base = recipe.backbone.name_or_path if recipe.backbone else ""
    own = metrics["cross_fitted"]["macro_f1"]
    epochs, n_folds = recipe.train.num_train_epochs, len(run.finished_folds)
    return [
        f"## {run.path.name}: {base}, {method}, {epochs} epochs, {n_folds} folds",
        "",
        f"Cross-fitted macro-F1 of the run {own:.4f}; computes in {run.info.choices['dtype']}.",
        "",
        *table(found, labelled),
        "",
    ]


def main() -> None:
    """Parse, answer in every way, and write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--labels", required=True, type=Path)
    parser.add_argument("--align", action="append", default=[], help="tables of texts, between commas")
    parser.add_argument("--no-ranks", action="store_true", help="leave out compressed adapters")
    parser.add_argument("--work", required=True, type=Path, help="where exports and answers are kept")
    parser.add_argument("--out", required=True, type=Path, help="a Markdown file")
    given = parser.parse_args()
    lines: list[str] = []
    n_rows = 0
    for path in given.runs:
        run = RunFolder(path)
        labelled = Labelled.read(run, given.labels)
        n_rows = len(labelled.y_true)
        lines += section(run, labelled, answers(run, labelled, given.work / path.name, given.align, not given.no_ranks))
    versions = json.dumps(RunFolder(given.runs[-1]).info.versions).strip("{}").replace('"', "")
    head = [
        f"# One model of the folds' models, on {given.labels.name}",
        "",
        f"{datetime.now(timezone.utc):%Y-%m-%d}, commit {commit()}. {machine()}. Versions: {versions}.",
        "",
        f"{n_rows} labelled rows that no model saw. Thresholds are each run's own, tuned out of fold on its folds' "
        "models. Intervals are paired bootstrap intervals over groups of identical texts with the models held fixed: "
        "they leave out the variance of training. Mean AP is the mean average precision of the labels, which no "
        "threshold moves; at the folds' shares each label is given to as many rows as the folds together give it, to "
        "tell scores that are shifted from scores that are worse. Seconds are those of the processor (one thread), the "
        "base loaded before, adapters read each time.",
        "",
    ]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text("\n".join([*head, *lines]), encoding="utf-8")
    print(given.out)


if __name__ == "__main__":
    main()
