"""The process of one tracker: told line by line what to log, it says what went wrong, and ends.

A tracker's library may hang (also in C, and at the end of the interpreter), exit, write to the terminal, change the
environment, draw random numbers or take seconds to be imported. Here none of that reaches the run; `tracking` is the
other side. Lines are JSON: settings first, then `[method, *arguments]`; the last one is `end`.
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TextIO

ORPHAN_SECONDS = 60.0
"""How long a tracker may take to end when its run is gone."""


class Tracker:
    """One of Accelerate's trackers, with what it lacks: tables, artifacts, and going on with an earlier run.

    Parameters
    ----------
    settings : tracker, project, group, name and id (of the run, the same after a resume), folder, recipe (flat)
    say : takes what the reader of the terminal should know
    """

    def __init__(self, settings: dict[str, Any], say: Any) -> None:
        from accelerate import PartialState

        PartialState(cpu=True)  # Accelerate's trackers ask it whether they are the first process
        self.project, self.group = settings["project"], settings["group"]
        self.name, self.id = settings["name"], settings["id"]
        plain = re.sub(r"[^\w .,+=@()&-]", "_", self.name).strip(" .")
        self.unique_name = f"{plain or 'run'}-{self.id[:8]}"
        self.folder = Path(settings["folder"])
        self.folder.mkdir(parents=True, exist_ok=True)
        self.say = say
        self.fresh = True  # nothing is known of the run yet
        self.tracker = self.start()
        if self.fresh:
            self.tracker.store_init_configuration(settings["recipe"])

    def start(self) -> Any:
        """Accelerate's tracker, started; `self.fresh` is False where it continues a run that it can tell."""
        raise NotImplementedError

    def log(self, values: dict[str, float], step: int) -> None:
        self.tracker.log(values, step=step)

    def table(self, name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        raise NotImplementedError

    def files(self, paths: list[str]) -> None:
        raise NotImplementedError

    def end(self, succeeded: bool) -> None:
        self.tracker.finish()


class TensorBoard(Tracker):
    """Event files in `tensorboard/PROJECT/[GROUP/]NAME-ID`; it holds no files, so the recipe is a text there.

    Figures have single precision: what TensorBoard is started with by default reads over those of double precision.
    """

    def start(self) -> Any:
        from accelerate.tracking import TensorBoardTracker

        place = self.folder / "tensorboard" / self.project / (self.group or "")
        self.fresh = not (place / self.unique_name).exists()
        tracker = TensorBoardTracker(self.unique_name, place)
        tracker.start()
        return tracker

    def table(self, name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        lines = [columns, ["---"] * len(columns), *([_markdown(value) for value in row] for row in rows)]
        self.tracker.log({name: "\n".join(f"| {' | '.join(line)} |" for line in lines)}, step=step)

    def files(self, paths: list[str]) -> None:
        for path in map(Path, paths):
            if path.suffix == ".yaml":
                text = path.read_text(encoding="utf-8")
                self.tracker.log({path.stem: "".join(f"    {line}\n" for line in text.splitlines())})


class WandB(Tracker):
    """A run of its id; offline where nobody is logged in, in place of a question that nobody would answer."""

    def start(self) -> Any:
        import wandb
        from accelerate.tracking import WandBTracker

        quiet = {"console": "off", "silent": True, "disable_git": True, "disable_code": True}
        options: dict[str, Any] = {"name": self.name, "group": self.group, "id": self.id, "resume": "allow"}
        options |= {"settings": quiet}
        if not os.environ.get("WANDB_DIR"):
            options |= {"dir": str(self.folder)}
        tracker = WandBTracker(self.project, **options)
        try:
            tracker.start()
        except wandb.errors.UsageError as error:
            if os.environ.get("WANDB_MODE") or "api key" not in str(error).lower():
                raise
            tracker = WandBTracker(self.project, **options, mode="offline")
            tracker.start()
            place = Path(tracker.tracker.dir).parent
            self.say(f"nobody is logged in, so it is logged offline. Send it with: wandb login && wandb sync '{place}'")
        run = tracker.tracker
        run.define_metric("step")
        run.define_metric("*", step_metric="step")  # its own step only grows, and every fold begins at 0
        return tracker

    def log(self, values: dict[str, float], step: int) -> None:
        self.tracker.log(values | {"step": step})

    def table(self, name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        self.tracker.log_table(name, columns=columns, data=rows)

    def files(self, paths: list[str]) -> None:
        import wandb

        artifact = wandb.Artifact(f"run-{self.id}", type="run")
        for path in paths:
            artifact.add_file(path)
        self.tracker.tracker.log_artifact(artifact)

    def end(self, succeeded: bool) -> None:
        self.tracker.tracker.finish(exit_code=0 if succeeded else 1)


class MLflow(Tracker):
    """A run with the tag `lora_cls.run`, on `mlflow.db` unless MLFLOW_TRACKING_URI says where."""

    def start(self) -> Any:
        import mlflow
        from accelerate.tracking import MLflowTracker
        from filelock import FileLock

        artifacts = None
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            mlflow.set_tracking_uri(f"sqlite:///{(self.folder / 'mlflow.db').as_posix()}")
            artifacts = (self.folder / "mlflow-artifacts").as_uri()
        tracker = MLflowTracker(self.project, run_name=self.name)
        project = tracker.experiment_name  # MLFLOW_EXPERIMENT_NAME comes first
        with FileLock(self.folder / ".mlflow.lock"):  # the first to come makes the tables, and the experiment
            if mlflow.get_experiment_by_name(project) is None:
                mlflow.create_experiment(project, artifact_location=artifacts)
            wanted = f"tags.`lora_cls.run` = '{self.id}'"
            found = mlflow.search_runs(experiment_names=[project], filter_string=wanted, output_format="list")
            if found:
                self.fresh, tracker.run_id = False, tracker.run_id or found[0].info.run_id
            tracker.start()
            mlflow.set_tags({"lora_cls.run": self.id} | ({"group": self.group} if self.group else {}))
        return tracker

    def table(self, name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        import pandas as pd

        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch, f"{name}.csv")
            pd.DataFrame(rows, columns=columns).to_csv(file, index=False)
            self.tracker.log_artifact(str(file))

    def files(self, paths: list[str]) -> None:
        for path in paths:
            self.tracker.log_artifact(path)

    def end(self, succeeded: bool) -> None:
        import mlflow

        mlflow.end_run("FINISHED" if succeeded else "FAILED")


class Trackio(Tracker):
    """A run of its name, which is all that Trackio knows runs by."""

    def start(self) -> Any:
        os.environ.setdefault("TRACKIO_DIR", str(self.folder / "trackio"))  # before it is imported
        from accelerate.tracking import TrackioTracker

        tracker = TrackioTracker(
            self.project, name=self.unique_name, group=self.group, resume="allow", embed=False, auto_log_cpu=False,
            auto_log_gpu=False,
        )  # fmt: skip
        tracker.start()
        return tracker

    def table(self, name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        import pandas as pd
        import trackio

        self.tracker.log({name: trackio.Table(dataframe=pd.DataFrame(rows, columns=columns))}, step=step)

    def files(self, paths: list[str]) -> None:
        for path in paths:
            self.tracker.tracker.log_artifact(path, name=f"{self.id}-{Path(path).name}", type="run")


TRACKERS = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow, "trackio": Trackio}


def _markdown(value: Any) -> str:
    """A value in a cell of a table; labels may be called anything."""
    if not isinstance(value, str):
        return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
    return re.sub(r"([\\`*_{}\[\]<>()#+.!|~-])", r"\\\1", " ".join(value.split()))


def main() -> None:
    """Serve the run that started this process, by its pipes; libraries find the terminal silent, and nobody to ask."""
    lines, answers = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    sys.argv = ["lora-cls"]  # some trackers note the command line
    if hasattr(os, "nice"):
        os.nice(19)  # training comes first

    def say(kind: str, text: str) -> None:
        answers.write(json.dumps([kind, text]) + "\n")
        answers.flush()

    tracker = None
    try:
        messages = _received(lines)
        settings = next(messages)
        tracker = TRACKERS[settings["tracker"]](settings, lambda text: say("note", text))
        ended = False
        for method, *arguments in messages:
            getattr(tracker, method)(*arguments)
            ended = method == "end"
        if not ended:  # the run was killed
            tracker.end(False)
        say("done", "")
    except BaseException as error:  # whatever it is, SystemExit too
        say("failed", f"{type(error).__name__}: {error}")
        with suppress(BaseException):  # what it took before is worth keeping
            if tracker is not None:
                tracker.end(False)
        os._exit(1)  # what waits at the interpreter's end is of no use any more


def _received(lines: TextIO) -> Iterator[Any]:
    """The run's messages, until it has no more. Read beside the tracker, so that a run that is gone is noticed while it
    hangs: it then has a minute left."""
    received: SimpleQueue[str | None] = SimpleQueue()

    def read() -> None:
        for line in lines:
            received.put(line)
        received.put(None)
        faulthandler.dump_traceback_later(ORPHAN_SECONDS, exit=True, file=2)

    threading.Thread(target=read, daemon=True).start()
    while (line := received.get()) is not None:
        yield json.loads(line)
