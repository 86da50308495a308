"""From one plain run to the best blend: every step alone against its base, out of fold and on a labelled test file.

    python -m benchmarks.ladder STEPS.yaml --train train.csv --test test.csv --out runs/ladder [--jobs 2] [--only NAME]
        [--given NAME=RUN] [--results benchmarks/results/ladder_NAME.md]

A file of steps is a list; `benchmarks/ladder_brighter.yaml` is one. A step has a `name` and one of

- `recipe`: a shipped recipe or a file, with `set` (a map of recipe fields); or no recipe, and that of its `base` with
  `set` on top;
- `blend`: names of other steps, with `how`;
- `tune`: words for `lora-cls tune`, on a copy of its `base`'s folder.

`base` names the step that it is compared with. In `set`, `{NAME}` stands for the folder of another step, or of a run
given by `--given`. All steps have the folds of the first. The test table's
labels (0/1 columns that the training table has, too) are taken off before anything is
trained; they score submissions, and choose nothing.

What was stopped continues with the same command: a finished step is not trained again, and a step that failed is tried
again. `--only` does some of the steps; the table holds every step that has ended, failures with their reason.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.encoder_vs_decoder import PACKAGES, finished
from benchmarks.machine import commit, machine
from benchmarks.score_test import Decided, decide
from lora_cls.data import read_table
from lora_cls.evaluation import (
    Interval,
    bootstrap_difference,
    bootstrap_macro_f1,
    bootstrap_unpaired_difference,
)
from lora_cls.files import write_csv
from lora_cls.runs import RunFolder


@dataclass
class Step:
    """One rung; see the head of this file."""

    name: str
    base: str | None = None
    recipe: str | None = None
    set: dict[str, Any] = field(default_factory=dict)
    blend: list[str] = field(default_factory=list)
    how: str = "mean_logit"
    tune: list[str] = field(default_factory=list)
    note: str = ""


class Ladder:
    """The steps of one file, and the folder that their runs lie in."""

    def __init__(self, steps: Sequence[Step], train: Path, test: Path, out: Path, given: Mapping[str, Path]) -> None:
        self.steps = {step.name: step for step in steps}
        self.train, self.labels, self.out, self.given = train, test, out, dict(given)
        out.mkdir(parents=True, exist_ok=True)
        self.test = out / "test.csv"
        known = read_table(train)
        table = read_table(test)
        plain = [name for name in table if name not in known or known[name].nunique() > 2]
        write_csv(self.test, table[plain])

    def folder(self, name: str) -> Path:
        """Of a step, or of a run that is given."""
        return self.given[name] if name in self.given else self.out / name

    def needs(self, step: Step) -> list[str]:
        """Other steps that must have ended before."""
        named = [name for name in self.steps if f"{{{name}}}" in json.dumps(step.set)]
        return [*named, *step.blend, *([step.base] if step.tune and step.base else [])]

    def settings(self, step: Step) -> tuple[str, dict[str, Any]]:
        """The recipe of a step and all that is set on it, its bases' included."""
        if step.recipe is not None:
            return step.recipe, step.set
        assert step.base is not None, f"{step.name}: a step needs recipe, base, blend or tune."
        recipe, below = self.settings(self.steps[step.base])
        return recipe, below | step.set

    def command(self, step: Step) -> list[str]:
        """What `lora-cls` is called with."""
        target = str(self.folder(step.name))
        if step.blend:
            return ["blend", *(str(self.folder(name)) for name in step.blend), "--how", step.how, "--out", target]
        if step.tune:
            return ["tune", target, *step.tune]
        recipe, values = self.settings(step)
        command = ["run", recipe, "--train", str(self.train), "--test", str(self.test), "--out", target, "--resume"]
        first = self.folder(next(iter(self.steps))) / "folds.csv"
        command += ["--fold-table", str(first)] if first.is_file() and step.name != next(iter(self.steps)) else []
        for key, value in values.items():
            text = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
            for name in [*self.steps, *self.given]:
                text = text.replace(f"{{{name}}}", str(self.folder(name)))
            command += ["--set", f"{key}={text}"]
        return command

    def done(self, step: Step) -> bool:
        """Whether nothing is left to do."""
        marks = self.folder(step.name) / "metrics.json", self.out / f"{step.name}.tuned"
        return marks[1].is_file() if step.tune else marks[0].is_file() and finished(marks[0].parent)

    def ended(self, name: str) -> bool:
        """Whether a step, or a run that is given, can be used by others."""
        return name in self.given or self.done(self.steps[name])

    def do(self, step: Step) -> None:
        """Train, blend or tune one step; a failure leaves its reason in NAME.failed."""
        failure, log = self.out / f"{step.name}.failed", self.out / f"{step.name}.log"
        failure.unlink(missing_ok=True)
        if step.tune and step.base is not None:
            shutil.rmtree(self.folder(step.name), ignore_errors=True)
            shutil.copytree(self.folder(step.base), self.folder(step.name))
        if step.blend:
            shutil.rmtree(self.folder(step.name), ignore_errors=True)
        command = [sys.executable, "-m", "lora_cls.cli", *self.command(step)]
        with log.open("w", encoding="utf-8") as file:
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=os.environ).returncode
        if code:
            failure.write_text(log.read_text(encoding="utf-8").strip()[-600:], encoding="utf-8")
        elif step.tune:
            (self.out / f"{step.name}.tuned").touch()
        print(f"{step.name}: {'FAILED, see ' + str(log) if code else 'done'}", flush=True)

    def climb(self, only: Sequence[str], jobs: int) -> None:
        """Do what is left, several steps side by side where none waits for another."""
        left = [step for step in self.steps.values() if (not only or step.name in only) and not self.done(step)]
        first = next(iter(self.steps.values()))
        if first in left:  # the others take its folds
            self.do(first)
            left.remove(first)
        with ThreadPoolExecutor(jobs) as pool:
            while left:
                ready = [step for step in left if all(map(self.ended, self.needs(step)))]
                for step in left if not ready else ():
                    (self.out / f"{step.name}.failed").write_text(
                        "A step that it needs has not ended.", encoding="utf-8"
                    )
                if not ready:
                    return
                list(pool.map(self.do, ready))
                left = [step for step in left if step not in ready]

    # The table

    def table(self) -> list[str]:
        """Markdown: a row for every step that has ended."""
        lines = [
            "| step | base | cross-fitted macro-F1 | minus base | test macro-F1 | minus base | test minus cross-fitted "
            "| training minutes |",
            "|---|---|---|---|---|---|---|---|",
        ]
        decided: dict[str, tuple[Decided, np.ndarray]] = {}
        for step in self.steps.values():
            failure = self.out / f"{step.name}.failed"
            if not self.done(step):
                reason = (
                    failure.read_text(encoding="utf-8").splitlines()[-1].strip() if failure.is_file() else "not run"
                )
                lines.append(f"| {step.name} | {step.base or ''} | {reason[:200].replace('|', '/')} | | | | | |")
                continue
            run = RunFolder(self.folder(step.name))
            of = decide(run, self.labels)
            decided[step.name] = of, of.on_test(run.results().decision.prediction.combine)
            lines.append(self._row(step, run, *decided[step.name], decided.get(step.base or "")))
        return lines

    def _row(
        self, step: Step, run: RunFolder, of: Decided, on_test: np.ndarray, base: tuple[Decided, np.ndarray] | None
    ) -> str:
        singly = np.arange(len(of.y_test))
        gain = test_gain = ""
        if base is not None:
            before, base_on_test = base
            test_gain = _cell(bootstrap_difference(of.y_test, on_test, base_on_test, singly), "+")
            if np.array_equal(before.oof.y_true, of.oof.y_true):  # the same rows, in the same order
                gain = _cell(bootstrap_difference(of.oof.y_true, of.y_pred, before.y_pred, of.oof.groups), "+")
        own, test = (
            bootstrap_macro_f1(of.oof.y_true, of.y_pred, of.oof.groups),
            bootstrap_macro_f1(of.y_test, on_test, singly),
        )
        gap = bootstrap_unpaired_difference(of.y_test, on_test, singly, of.oof.y_true, of.y_pred, of.oof.groups)
        minutes = 0.0 if step.blend or step.tune else sum(
            run.fold(number).info.seconds.get("train", 0.0) for number in run.finished_folds
        ) / 60  # fmt: skip
        cells = [
            step.name,
            step.base or "",
            _cell(own),
            gain,
            _cell(test),
            test_gain,
            _cell(gap, "+"),
            f"{minutes:.1f}",
        ]
        return f"| {' | '.join(cells)} |"

    def report(self, name: str) -> str:
        """The result file."""
        lines = [
            f"# Step by step: {name}",
            "",
            f"{datetime.now(timezone.utc):%Y-%m-%d}, commit {commit()}; {machine()}; "
            + ", ".join(f"{package} {version}" for package, version in self._versions().items())
            + ". Intervals are 95 % bootstrap intervals, paired where of differences, models held fixed. Minutes are "
            "of training alone, one thread each, with another run and tests beside it.",
            "",
            *self.table(),
            "",
            "## The steps",
            "",
        ]
        lines += [f"- **{step.name}**: {self._words(step)}" for step in self.steps.values()]
        return "\n".join(lines) + "\n"

    def _words(self, step: Step) -> str:
        if step.blend:
            words = f"{step.how} of {', '.join(step.blend)}"
        elif step.tune:
            words = f"{step.base}, `lora-cls tune {' '.join(step.tune)}`"
        else:
            start = f"recipe `{step.recipe}`" if step.recipe else str(step.base)
            words = ", ".join([start, *(f"`{key}={json.dumps(value)}`" for key, value in step.set.items())])
        return f"{words}. {step.note}" if step.note else words

    def _versions(self) -> dict[str, str]:
        for step in self.steps.values():
            if self.done(step):
                versions = RunFolder(self.folder(step.name)).info.versions
                return {name: versions[name] for name in PACKAGES if name in versions}
        return {}


def _cell(interval: Interval, sign: str = "") -> str:
    return f"{interval.estimate:{sign}.4f} [{interval.low:{sign}.4f}, {interval.high:{sign}.4f}]"


def main() -> None:
    """Parse, do what is left, write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("steps", type=Path)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True, help="with its labels")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--given", nargs="*", default=[], metavar="NAME=RUN")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--table", action="store_true", help="train nothing, write the table of what has ended")
    given = parser.parse_args()
    steps = [Step(**step) for step in yaml.safe_load(given.steps.read_text(encoding="utf-8"))]
    runs = {name: Path(path) for name, path in (pair.split("=", 1) for pair in given.given)}
    ladder = Ladder(steps, given.train, given.test, given.out, runs)
    if not given.table:
        ladder.climb(given.only, given.jobs)
    text = ladder.report(given.train.stem)
    if given.results:
        given.results.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
