"""Trackers of a run (TensorBoard, W&B, MLflow, Trackio), behind a wall: whatever becomes of one, the run goes on.

Each tracker lives in a process of its own (`tracker_process`), fed from a bounded queue by a thread of its own. So the
run waits for none while it trains, none of them shares its memory, random numbers, environment or terminal, and one
that hangs can be ended. Nothing of it is written into the run folder.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Full, Queue, SimpleQueue
from typing import Any, TypeVar

from lora_cls.errors import RecipeError, brief, shown
from lora_cls.recipe import Recipe
from lora_cls.runs import RunFolder
from lora_cls.runs.records import Scores
from lora_cls.training.progress import Listener, Progress, fold_title

PATIENCE = 30.0
"""Seconds that all trackers together may take at the end."""
QUEUED = 10_000
"""Messages that wait for a tracker at most: many times what a run sends."""
START = "import sys; sys.path[:] = sys.argv[1:]; from lora_cls.training.tracker_process import main; main()"
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",  # Accelerate would take memory of a GPU
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
}
"""Of the trackers' processes."""

F = TypeVar("F", bound=Callable[..., None])


def check_tracking(recipe: Recipe, path: Path) -> None:
    """Raise RecipeError where a tracker is not installed, or would keep its files in the run folder `path`."""
    tracking = recipe.tracking
    lacking = [name for name in dict.fromkeys(tracking.to) if not _installed(name)]
    if lacking:
        kept = ", ".join(name for name in tracking.to if name not in lacking)
        raise RecipeError(
            f"tracking.to: {' and '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} not installed. Install with: "
            f"pip install {' '.join(lacking)}; or go without: "
            f'--set "tracking.to=[{kept}]"'
        )
    if tracking.to and path.absolute() in (where := tracking_folder(recipe, path), *where.parents):
        raise RecipeError(
            f"Trackers would keep their files in the run folder, in {where}: name another place, as --set "
            "tracking.folder=trackers, or another run folder with --out."
        )


def _installed(package: str) -> bool:
    """Whether a package is there, not imported; W&B's own folder `wandb` beside a script is none."""
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return False
    return found is not None and found.origin is not None


def tracking_folder(recipe: Recipe, path: Path) -> Path:
    """Where the trackers of the run at `path` keep their files."""
    if recipe.tracking.folder is not None:
        return Path(recipe.tracking.folder).expanduser().absolute()
    return path.absolute().parent / "tracking"


@contextmanager
def tracked(recipe: Recipe, progress: Progress) -> Iterator[None]:
    """Within it, trackers are told what `progress` is told, as `tracking` of the recipe says."""
    if not recipe.tracking.to:
        yield
        return
    trackers = Trackers(recipe, progress.say)
    progress.listeners = (trackers, *progress.listeners)  # first: another one may end the run
    try:
        yield
    except Exception:
        trackers.close(False)
        raise
    except BaseException:  # whoever interrupts is not kept waiting: the trackers end by themselves
        trackers.close(False, patience=0, leave=True)
        raise
    trackers.close(True)


def _never_raises(method: F) -> F:
    """What goes wrong here ends the tracking, and not the run."""

    @functools.wraps(method)
    def guarded(self: Trackers, *arguments: Any) -> None:
        try:
            method(self, *arguments)
        except Exception as error:
            for process in self.processes:
                process.kill()
            self.processes = []
            self.say(f"Nothing more of this run is tracked ({type(error).__name__}: {brief(error)}).")

    return guarded  # type: ignore[return-value]


class Trackers(Listener):
    """Tells the trackers of a recipe how its run goes on. No method raises, nor waits, but `close`.

    A value of a fold has the fold in its name (`loss/fold 3`) and the optimizer step within the fold as its step: in
    every tracker the folds of one figure then stand side by side and begin at 0.

    Parameters
    ----------
    say : takes notes, each once
    """

    def __init__(self, recipe: Recipe, say: Callable[[str], None]) -> None:
        self.recipe, self._say = recipe, say
        self.processes: list[TrackerProcess] = []
        self.steps: dict[int, int] = {}

    @_never_raises
    def run_started(self, run: RunFolder) -> None:
        tracking = self.recipe.tracking
        settings = {
            "project": tracking.project,
            "group": tracking.group,
            "name": tracking.name or run.name,
            "id": _identity(run),
            "folder": str(tracking_folder(self.recipe, run.path)),
            "recipe": _flat(self.recipe),
        }
        for name in dict.fromkeys(tracking.to):
            try:
                self.processes.append(TrackerProcess(name, settings))
            except Exception as error:
                self.say(f"{name} tracks nothing: its process does not start ({brief(error)}).")

    @_never_raises
    def loss_seen(self, fold: int, step: int, share: float, loss: float, learning_rate: float) -> None:
        self._log({"loss": loss, "learning_rate": learning_rate}, fold, step)

    @_never_raises
    def epoch_done(self, fold: int, record: dict[str, Any]) -> None:
        names = ("rows_per_second", "selection_macro_f1", "selection_loss")
        values = {"epoch_loss": record["loss"]} | {name: record[name] for name in names if name in record}
        self._log(values, fold, record["step"])

    @_never_raises
    def fold_done(self, run: RunFolder, fold: int, macro_f1: float) -> None:
        self._tell("log", {"folds/macro_f1_untuned": macro_f1}, fold)

    @_never_raises
    def run_done(self, run: RunFolder) -> None:
        scores = run.scores
        step = len(scores.folds_finished)
        self._tell("log", figures(scores), step)
        table = [row.model_dump() for row in scores.cross_fitted.per_label]
        columns = list(table[0])
        self._tell("table", "per_label", columns, [[row[column] for column in columns] for row in table], step)
        found = [file.absolute() for file in (run.files.recipe, run.files.page) if file.is_file()]
        self._tell("files", [str(file) for file in found])

    def _log(self, values: dict[str, float], fold: int, step: int) -> None:
        self._tell("log", {f"{name}/{fold_title(fold)}": value for name, value in values.items()}, step)

    def _tell(self, *message: Any) -> None:
        for process in self.processes:
            process.send(message)
        self._hear()

    def _hear(self) -> None:
        """Say what trackers said, and which of them failed."""
        for process in self.processes:
            while not process.said.empty():
                self.say(f"{process.name}: {process.said.get()}")
            if process.reason is not None and not process.dropped:
                process.dropped = True
                self.say(f"{process.name} tracks nothing more of this run: {process.reason}")

    def say(self, text: str) -> None:
        """A note, without any secret of the environment: what a library says may quote one."""
        for name, value in os.environ.items():
            if len(value) >= 8 and re.search("KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", name.upper()):
                text = text.replace(value, "***")
        with suppress(Exception):
            self._say(text)

    def close(self, succeeded: bool, patience: float | None = None, leave: bool = False) -> None:
        """End all trackers, and wait for them `patience` seconds; those that take longer are cut off.

        Parameters
        ----------
        leave : let them go on without us, a minute at most
        """
        try:
            for process in self.processes:
                process.send(("end", succeeded))
                process.send(None)
            deadline = time.monotonic() + (PATIENCE if patience is None else patience)
            for process in self.processes:
                process.join(deadline)
            self._hear()
        except Exception as error:
            self.say(f"Trackers: {type(error).__name__}: {brief(error)}")
        finally:
            if not leave:
                slow = [process.name for process in self.processes if process.reason is None and not process.done]
                for process in self.processes:
                    process.kill()
                if slow:
                    self.say(
                        f"{' and '.join(slow)} did not end within {PATIENCE:.0f} seconds and was cut off: what it had "
                        "not sent or written by then is lost. The run is whole."
                    )
            self.processes = []


class TrackerProcess:
    """One tracker's process, as the run sees it.

    Attributes
    ----------
    said : notes of it
    done : whether it has ended as it should
    reason : why it ended otherwise; None while it did not
    dropped : whether that was said
    """

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        self.name = name
        self.said: SimpleQueue[str] = SimpleQueue()
        self.done, self.reason = False, None if sys.executable else "this Python does not say where it is."
        self.dropped = False
        self._waiting: Queue[str | None] = Queue(QUEUED)
        self._process = subprocess.Popen(
            [sys.executable, "-c", START, *sys.path],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | ENVIRONMENT,
            bufsize=0, start_new_session=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        threading.Thread(target=self._write, daemon=True).start()
        self.send(settings | {"tracker": name})

    def send(self, message: Any) -> None:
        """Queue a message; None is the last one."""
        if self.reason is not None:
            return
        try:
            self._waiting.put_nowait(None if message is None else json.dumps(message))
        except Full:
            self.reason = "it takes no values."

    def _write(self) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        with suppress(OSError), pipe:  # a process that ended reads no more
            while (line := self._waiting.get()) is not None:
                left = memoryview(line.encode() + b"\n")
                while left:
                    left = left[pipe.write(left) :]

    def _read(self) -> None:
        pipe = self._process.stdout
        assert pipe is not None
        last = b""
        with suppress(OSError):
            for line in iter(pipe.readline, b""):
                try:
                    kind, text = json.loads(line)
                except ValueError:  # what Python itself says before the tracker has the pipe
                    last = line.strip() or last
                    continue
                if kind == "note":
                    self.said.put(text)
                elif kind == "done":
                    self.done = True
                else:
                    self.reason = shown(text, 300, quoted=False)
        if not self.done and self.reason is None:
            code = self._process.wait()
            self.reason = f"its process ended by itself, with {code}. {last.decode(errors='replace')[:300]}".strip()

    def join(self, deadline: float) -> None:
        """Wait until it has ended, or until `deadline`."""
        self._reader.join(max(0.0, deadline - time.monotonic()))

    def kill(self) -> None:
        """End it, if it has not, with all that it started."""
        if self._process.poll() is None:
            with suppress(OSError):
                if hasattr(os, "killpg"):
                    os.killpg(self._process.pid, signal.SIGKILL)
                else:
                    self._process.kill()
            with suppress(subprocess.TimeoutExpired):  # one that waits for a lost disk cannot be killed
                self._process.wait(1.0)


def _identity(run: RunFolder) -> str:
    """What trackers know a run by: the same whenever it is resumed, another one where it is replaced."""
    info, files = run.info, run.files
    parts = [info.started, run.name, *(info.files.get(file.name) for file in (files.recipe, files.folds))]
    return hashlib.sha256(json.dumps([*parts, info.data.train_sha256]).encode()).hexdigest()[:16]


def _flat(recipe: Recipe) -> dict[str, Any]:
    """A recipe's fields by `section.field`; lists and maps as JSON, as their keys may be a user's."""
    flat: dict[str, Any] = {}
    for name, section in recipe.to_dict().items():
        fields = {f"{name}.{field}": value for field, value in section.items()} if isinstance(section, dict) else {}
        flat |= fields or {name: section}
    return {
        name: json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value
        for name, value in flat.items()
    }


def figures(scores: Scores) -> dict[str, float]:
    """The figures of `metrics.json` by the names that trackers show: `cross_fitted/macro_f1`, `..._low`, `..._high`."""
    found: dict[str, float] = {"rows_scored": scores.rows_scored, "optimistic": float(scores.optimistic)}
    for name, part in (("cross_fitted", scores.cross_fitted), ("untuned", scores.untuned)):
        found |= {f"{name}/{key}": value for key, value in part.model_dump().items() if isinstance(value, float)}
        interval = part.macro_f1_interval
        found |= {f"{name}/macro_f1_low": interval.low, f"{name}/macro_f1_high": interval.high}
    if (gain := scores.tuning_gain) is not None:
        found |= {"tuning_gain": gain.estimate, "tuning_gain_low": gain.low, "tuning_gain_high": gain.high}
    return found
