"""The n-th file operation fails: for every n until the command passes, as SQLite tests itself.

`Faults` lets one operation on files below a folder fail (a full disk, a broken one) or end the process (`Killed`, after
which no operation does anything any more, as in a process that is gone). `Operations` are the commands; a `Trial` lets
one of them fail at its n-th operation, repeats it, and tells what is not as it should be.
"""

import builtins
import errno
import hashlib
import io
import json
import os
import re
import shutil
import time
from pathlib import Path

import safetensors.numpy
import safetensors.torch
from run_fingerprints import Instant, _for_lora_cls
from safetensors import SafetensorError

from lora_cls import files
from lora_cls.errors import LoraClsError

FAULTS = ("ENOSPC", "EIO", "killed")
MEASURED = (
    "seconds", "started", "peak_memory_bytes", "predict_rows_per_second", "train_rows_per_second",
    "train_tokens_per_second", "last_session_seconds", "reused", "sha256", "files",
)  # fmt: skip
NEVER_TWICE = ("predict", "export", "blend")
"""What refuses a folder that holds it already."""
UNFINISHED = ("state.safetensors", ".creating", ".lock", "metrics.jsonl", "run.json")
"""What has a content of its own while a run is not finished."""


class Killed(BaseException):
    """Nothing catches it."""


class Faults:
    """Within it, the n-th operation below `root` fails by `fault`; with n = 0 none does, and they are counted."""

    def __init__(self, root, n=0, fault="ENOSPC"):
        self.root, self.n, self.fault, self.count, self.hit, self._undo = str(root), n, fault, 0, "", []

    def __enter__(self):
        for module in (builtins, io):
            self._patch(module, "open", lambda file, mode="r", *more, **options: set(mode) & set("wax+"))
        for name in ("mkdir", "unlink", "remove", "rmdir", "rename", "replace"):
            self._patch(os, name, lambda *arguments, **options: True)
        for module in (safetensors.numpy, safetensors.torch):
            self._patch(module, "serialize_file", lambda *arguments, **options: True, place=1)
        return self

    def __exit__(self, *_):
        for module, name, original in self._undo:
            setattr(module, name, original)
        if self.fault == "killed" and self.hit:
            files._in_use.clear()  # the process is gone

    def _patch(self, module, name, counts, place=0):
        original = getattr(module, name)
        self._undo.append((module, name, original))

        def function(*arguments, **options):
            path = arguments[place] if len(arguments) > place else None
            if isinstance(path, (str, os.PathLike)) and counts(*arguments, **options):
                self._step(f"{name} {path}", str(path) if os.path.isabs(path) else None, name)
            return original(*arguments, **options)

        setattr(module, name, function)

    def _step(self, what, path, name):
        if path is not None and not path.startswith(self.root):
            return
        if self.fault == "killed" and self.hit:
            raise Killed
        self.count += 1
        if self.count != self.n:
            return
        self.hit = what
        if self.fault == "killed":
            raise Killed
        code = getattr(errno, self.fault)
        if name == "serialize_file":
            raise SafetensorError(f"Error while serializing: I/O error: {os.strerror(code)} (os error {code})")
        raise OSError(code, os.strerror(code))


def contents(root):
    """Every file below a folder and a hash of what does not differ between two runs of the same."""
    return {str(path.relative_to(root)): _hash(path) for path in sorted(Path(root).rglob("*")) if path.is_file()}


def _hash(path):
    content = path.read_bytes()
    if path.suffix == ".json":
        content = json.dumps(_without(json.loads(content))).encode()
    elif path.suffix == ".jsonl":
        content = json.dumps([_without(json.loads(line)) for line in content.splitlines()]).encode()
    elif path.suffix in (".md", ".html"):  # minutes, rates, and what the last start took
        content = re.sub(rb'<tr><th scope="row">.*?</tr>', b"", content)
        content = re.sub(rb"[\d.,]+|minutes?|seconds?|\bs\b", b"", content)
    return hashlib.sha256(content).hexdigest()


def _without(value):
    if isinstance(value, dict):
        return {key: _without(item) for key, item in value.items() if key not in MEASURED}
    return value


class Operations:
    """The commands: for each the folder that it begins with, and what it does.

    Parameters
    ----------
    root : a folder of this class's own
    table : `make_emotion_table`
    recipe : called with a kind of tiny model, gives its recipe
    """

    names = (
        "run",
        "resume",
        "tune",
        "calibrate",
        "refit",
        "report",
        "predict",
        "compare",
        "export",
        "run bert",
        "cross-fitted",
        "blend",
    )

    def __init__(self, root, table, recipe):
        self.root, self._recipe = root, recipe
        self.train, self.test = table(24), table(6, seed=5)[["id", "text"]]

    def recipe(self, kind):
        from lora_cls.recipe import load_recipe

        if kind == "tfidf":
            return load_recipe({"tfidf": {"min_df": 1}, "cv": {"n_splits": 2}, "thresholds": {"min_positives": 2}})
        if kind == "cross-fitted":  # epochs are kept until all folds are done
            return load_recipe(self._recipe("bert"), {"train.select": "cross_fitted"})
        return load_recipe(self._recipe(kind), {"train.num_train_epochs": 1})

    def _run(self, work, kind="tfidf", name="run", **options):
        from lora_cls.commands.cross_validation import cross_validate

        return cross_validate(self.recipe(kind), self.train, self.test, work / name, resume=True, **options)

    def begin(self, name):
        """The folder that a command begins with, made once."""
        work = self.root / f"before {name}"
        if not work.exists():
            work.mkdir()
            if name == "resume":
                self._run(work, folds=[0])
            elif name == "export":
                self._run(work, "bert")
            elif name not in ("run", "run bert", "cross-fitted"):
                self._run(work)
            if name in ("blend", "compare"):
                shutil.copytree(work / "run", work / "other")
        return work

    def __call__(self, name, work):
        """Do it, in a copy of that folder, on a clock on which all takes a second: pages leave out what takes none."""
        original = time.monotonic
        time.monotonic = _for_lora_cls(original, Instant(1000))
        try:
            self._do(name, work)
        finally:
            time.monotonic = original

    def _do(self, name, work):
        if name in ("run", "resume"):
            self._run(work)
        elif name == "run bert":
            self._run(work, "bert")
        elif name == "cross-fitted":
            self._run(work, name)
        elif name == "tune":
            from lora_cls.commands.tune import recipe_settings, tune
            from lora_cls.runs import RunFolder

            run = RunFolder(work / "run")
            tune(run, *recipe_settings(run.recipe, strategy="global"))
        elif name == "calibrate":
            from lora_cls.commands.calibrate import calibrate

            calibrate(work / "run")
        elif name == "refit":
            from lora_cls.commands.refit import refit

            refit(work / "run", self.train)
        elif name == "report":
            from lora_cls.report.page import write_page
            from lora_cls.runs import RunFolder

            write_page(RunFolder(work / "run"), out=work / "page.html")
        elif name == "predict":
            from lora_cls.commands.predict import predict_file

            predict_file(work / "run", self.test, work / "predicted")
        elif name == "compare":
            from lora_cls.commands.compare import compare
            from lora_cls.report.comparison import write_comparison

            write_comparison(compare([work / "run", work / "other"]), work / "compared")
        elif name == "export":
            from lora_cls.commands.export import export

            export(work / "run", work / "exported")
        else:
            from lora_cls.commands.blend import blend

            blend([work / "run", work / "other"], work / "blended")

    def repeat(self, name, work):
        """Do it again. A blend that is there already gets what its note said of a card or page that failed."""
        if name == "blend" and (work / "blended").is_dir():
            from lora_cls.cli import report

            report(work / "blended")
        else:
            self(name, work)


class Trial:
    """One command, undisturbed once, then disturbed at will.

    Attributes
    ----------
    count : its operations on files
    seconds : how long it takes
    """

    def __init__(self, operations, name):
        self.operations, self.name = operations, name
        self.work = operations.root / "work"
        self.fresh()
        self.before = contents(self.work)
        with Faults(self.work) as faults:
            operations(name, self.work)
        self.count, self.after = faults.count, contents(self.work)
        self.fresh()
        started = time.monotonic()
        operations(name, self.work)
        self.seconds = time.monotonic() - started

    def fresh(self):
        """A copy of the folder that the command begins with."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.operations.begin(self.name), self.work)

    def _all_there(self):
        found = contents(self.work)
        return all(found.get(name) == content for name, content in self.after.items())

    def disturb(self, n, fault):
        """What is wrong after the n-th operation failed and the command was repeated: a sentence each."""
        self.fresh()
        problems = []
        error = None
        with Faults(self.work, n, fault) as faults:
            try:
                self.operations(self.name, self.work)
            except (Exception, Killed) as raised:
                error = raised
        where = f"{self.name}, operation {n} ({faults.hit.replace(str(self.work), '')}), {fault}"
        if error is not None and not isinstance(error, Killed if fault == "killed" else LoraClsError):
            problems.append(f"{where}: {type(error).__name__}: {error}")
        return problems + self.repeated(where)

    def repeated(self, where):
        """What is wrong now that the command was stopped, and after it was repeated."""
        problems = []
        try:
            for name, found in contents(self.work).items():
                torn = found not in (self.before.get(name), self.after.get(name)) and self.name != "cross-fitted"
                kept = "/.pieces-" in name  # named by their sums, and checked when they are read
                if torn and not kept and ".tmp/" not in name and Path(name).name not in UNFINISHED:
                    problems.append(f"{where}: {name} is neither the old nor the new one")
        except ValueError as damaged:
            problems.append(f"{where}: a file cannot be read: {damaged}")
        if self.name in NEVER_TWICE and self._all_there():
            return problems  # refused, since it is done
        try:
            self.operations.repeat(self.name, self.work)
        except Exception as raised:
            return [*problems, f"{where}: repeated, {type(raised).__name__}: {raised}"]
        found = contents(self.work)
        for name in sorted(set(found) | set(self.after)):
            if found.get(name) != self.after.get(name):
                kind = "gone" if name not in found else "litter" if name not in self.after else "different"
                problems.append(f"{where}: repeated, {name} is {kind}")
        left = [str(path.relative_to(self.work)) for path in self.work.rglob("*.tmp")]
        return problems + [f"{where}: repeated, {name} is left" for name in left]
