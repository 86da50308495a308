"""Recipes over the same folds of the same data, compared: encoders, decoders, and the classical floor.

    python -m benchmarks.encoder_vs_decoder --data train.csv [test.csv] [--recipes tfidf-logreg minilm-l6 gemma-3-270m]
        [--out runs/encoder_vs_decoder] [--results benchmarks/results] [--set cv.n_splits=3] [--labels test.csv]
        [--workers 2] [--executor ray]

`--data` may be a folder that holds train.csv and, perhaps, test.csv. Each recipe runs in a process of its own, so that
its peak memory is its own, with the folds of the first. What was stopped continues with the same command: finished
runs are not trained again. A recipe that fails is named in the result, and the others go on. `--labels` scores the
test rows, too. `--workers` and `--executor` are those of `lora-cls run`: the folds of one recipe after the other are
shared out.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from benchmarks.machine import commit, machine
from benchmarks.score_test import score
from lora_cls.commands.compare import compare
from lora_cls.errors import DataError, LoraClsError
from lora_cls.report.comparison import figure, markdown
from lora_cls.runs import RunFolder

RECIPES = ("tfidf-logreg", "minilm-l6", "gemma-3-270m", "smollm2-135m")
PACKAGES = ("python", "lora_cls", "torch", "transformers", "peft", "bitsandbytes", "scikit-learn")


def tables(given: Sequence[Path]) -> tuple[Path, Path | None]:
    """Training and test table from a folder or one or two files."""
    if len(given) == 1 and given[0].is_dir():
        train, test = given[0] / "train.csv", given[0] / "test.csv"
        if not train.is_file():
            raise DataError(f"{given[0]} holds no train.csv: name the files, as in --data my_train.csv my_test.csv.")
        return train, test if test.is_file() else None
    if len(given) > 2:
        raise DataError(f"--data takes a folder, or a training table and a test table. Got {len(given)} files instead.")
    return given[0], given[1] if len(given) > 1 else None


def finished(path: Path) -> bool:
    """Whether every fold of a run is done, and scored."""
    if not (path / "recipe.yaml").is_file() or not (path / "metrics.json").is_file():
        return False
    run = RunFolder(path)
    return run.finished_folds == run.fold_numbers


def train_all(
    recipes: Sequence[str], train: Path, test: Path | None, out: Path, options: Sequence[str]
) -> tuple[list[Path], list[str]]:
    """Folders of the finished runs, and recipes that failed; `options` are those of `lora-cls run`."""
    done: list[Path] = []
    failed: list[str] = []
    for recipe in recipes:
        folder = out / Path(recipe).stem
        if not finished(folder):
            command = [sys.executable, "-m", "lora_cls.cli", "run", recipe, "--train", str(train), "--out", str(folder)]
            command += ["--test", str(test)] if test else []
            command += ["--fold-table", str(done[0] / "folds.csv")] if done else []
            code = subprocess.run([*command, *options, "--resume"]).returncode  # also starts what was never begun
            if code == 130:
                raise KeyboardInterrupt
            if code or not finished(folder):
                failed.append(recipe)
                continue
        done.append(folder)
    return done, failed


def report(runs: Sequence[Path], train: Path, failed: Sequence[str], picture: str, labels: Path | None) -> str:
    """The result file: what was measured where, the comparison, and scores on the test rows."""
    infos = [RunFolder(path).info for path in runs]
    versions = infos[0].versions
    gpus = sorted({info.machine.gpu for info in infos if info.machine.gpu})
    started = sorted(info.started[:10] for info in infos)
    days = started[0] if started[0] == started[-1] else f"{started[0]} to {started[-1]}"
    lines = [
        f"# Encoders, decoders and the classical floor on {train.stem}",
        "",
        f"Compared on {datetime.now(timezone.utc):%Y-%m-%d} at commit {commit()}; runs started {days}. "
        f"{machine()}{', ' + ', '.join(gpus) if gpus else ', no GPU'}; "
        + ", ".join(f"{name} {versions[name]}" for name in PACKAGES if name in versions)
        + ".",
        "",
    ]
    lines += [f"FAILED, and missing below: {', '.join(failed)}.", ""] if failed else []
    lines += [markdown(compare(runs), picture)]
    if labels is not None:
        lines += [
            "## On the test rows, which no run saw",
            "",
            "| run | cross-fitted macro-F1 | folds combined by | test macro-F1 | test minus cross-fitted | min | GiB |",
            "|---|---|---|---|---|---|---|",
            *(line for path in runs for line in score(RunFolder(path), labels, ["mean_logit"])),
            "",
        ]
    return "\n".join(lines)


def main() -> None:
    """Parse, run what is missing, compare, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", nargs="+", type=Path, required=True)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--out", type=Path, default=Path("runs/encoder_vs_decoder"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--workers", default="1")
    parser.add_argument("--executor", default="local")
    given = parser.parse_args()
    options = [part for override in given.overrides for part in ("--set", override)]
    options += ["--workers", given.workers, "--executor", given.executor]
    try:
        train, test = tables(given.data)
        runs, failed = train_all(given.recipes, train, test, given.out, options)
        if len(runs) < 2:
            print(f"Fewer than two recipes finished; failed: {', '.join(failed) or 'none'}.", file=sys.stderr)
            sys.exit(1)
        name = f"encoder_vs_decoder_{train.stem}"
        given.results.mkdir(parents=True, exist_ok=True)
        (given.results / f"{name}.svg").write_text(figure(compare(runs)), encoding="utf-8")
        target = given.results / f"{name}.md"
        target.write_text(report(runs, train, failed, f"{name}.svg", given.labels), encoding="utf-8")
        print(target)
        sys.exit(1 if failed else 0)
    except LoraClsError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nStopped. The same command continues.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
