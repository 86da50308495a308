"""Trackers hold the figures of `metrics.json`, and whatever becomes of one, the run is what it is without."""

import json
import os
import random
import re
import signal
import struct
import subprocess
import sys
import time

import numpy as np
import pytest

from lora_cls import cross_validate, load_recipe
from lora_cls.errors import LoraClsError, RecipeError
from lora_cls.training import tracking
from lora_cls.training.progress import Listener

STUB = '''
"""A `wandb` that works but for one call: STUB says which, and what happens then."""
import atexit, os, re, sys, time

AT, KIND = os.environ.get("STUB", "nowhere:nothing").split(":")


def at(place):
    print("noise"), print("noise", file=sys.stderr), os.write(1, b'["note", "noise"]\\n')
    if os.environ.get("STUB_LOG"):
        with open(os.environ["STUB_LOG"], "a") as file:
            file.write(place + "\\n")
    if place != AT:
        return
    if KIND == "raises":
        raise RuntimeError("refused with " + os.environ.get("WANDB_API_KEY", "no key"))
    if KIND == "exits":
        sys.exit(3)
    if KIND == "dies":
        os._exit(4)
    if KIND == "full":
        raise OSError(28, "No space left on device")
    if KIND == "sleeps":
        time.sleep(600)
    if KIND == "spins":  # in C, and lets no other thread run
        re.match("(a|aa)+$", "a" * 60 + "b")


class errors:
    class UsageError(Exception):
        pass


class Config:
    def update(self, values, allow_val_change):
        at("config")


class Run:
    dir = "files"

    def define_metric(self, *arguments, **options):
        pass

    def log(self, values, step=None):
        at("table" if "per_label" in values else "log")

    def log_artifact(self, artifact):
        at("artifact")

    def finish(self, exit_code=0):
        at("finish" if exit_code == 0 else "failed")


class Artifact:
    def __init__(self, name, type):
        pass

    def add_file(self, path):
        assert os.path.isfile(path)


def Table(**given):
    return given


def init(**options):
    at("init")
    return Run()


config = Config()
atexit.register(at, "exit")
at("import")
'''
PLACES = ("import", "init", "config", "log", "table", "artifact", "finish")


class Instant(float):
    """A time on a clock on which every interval takes a second."""

    def __sub__(self, other):
        return 1.0 if isinstance(other, Instant) else float(self) - other


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Function `stub("log:raises")` that puts a `wandb` in place which then raises."""
    folder = tmp_path / "stub"
    folder.mkdir()
    (folder / "wandb.py").write_text(STUB)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    return lambda behaviour: monkeypatch.setenv("STUB", behaviour)


@pytest.fixture
def constant(monkeypatch):
    """For `lora_cls` every interval takes a second and every peak is the same, so that files are equal byte by byte."""
    for name in ("monotonic", "perf_counter"):
        real = getattr(time, name)

        def clock(real=real):
            caller = sys._getframe(1).f_globals.get("__name__", "")
            ours = caller.startswith("lora_cls") and not caller.endswith("tracking")
            return Instant(1000) if ours else real()

        monkeypatch.setattr(time, name, clock)
    monkeypatch.setattr("lora_cls.machine._high_water_mark", lambda: 2**30)


@pytest.fixture
def small(tmp_path, emotion_table):
    """Function that makes a small run in `NAME/run`; gives its folder."""

    def make(name, to, recipe=None, **options):
        given = load_recipe(recipe or {"tfidf": {"min_df": 1}, "cv": {"n_splits": 2}}, {"tracking.to": to})
        return cross_validate(given, emotion_table(45), out=tmp_path / name / "run", show=True, **options)

    return make


def contents(run):
    """All files of a run, without what says when it was started, and that it was tracked."""
    found = {}
    for file in sorted(run.path.rglob("*")):
        if file.is_file() and file.name != "recipe.yaml":
            text = re.sub(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(\+00:00|Z)", b"", file.read_bytes())
            if file.name == "run.json":
                values = json.loads(text)
                assert values.pop("sha256") and values["files"].pop("recipe.yaml")
                text = json.dumps(values).encode()
            found[str(file.relative_to(run.path))] = text
    return found


@pytest.mark.parametrize("behaviour", [f"{place}:raises" for place in PLACES])
def test_a_tracker_that_raises(small, stub, constant, capsys, behaviour):
    """Wherever it does, the run has the same bytes, and one note says so."""
    stub(behaviour)
    plain = small("plain", [])
    before = os.environ.copy()
    run = small("tracked", ["wandb"])
    assert contents(run) == contents(plain)
    said = capsys.readouterr()
    assert (said.out + said.err).count("wandb tracks nothing more of this run: RuntimeError: refused with no key") == 1
    assert "noise" not in said.out + said.err
    assert os.environ.copy() == before


@pytest.mark.parametrize(
    ("behaviour", "note"),
    [
        ("log:full", "wandb tracks nothing more of this run: OSError: [Errno 28] No space left on device"),
        ("init:exits", "wandb tracks nothing more of this run: SystemExit: 3"),
        ("log:dies", "wandb tracks nothing more of this run: its process ended by itself, with 4."),
        ("init:sleeps", "wandb did not end within 3 seconds and was cut off"),
        ("log:sleeps", "wandb did not end within 3 seconds and was cut off"),
        ("finish:sleeps", "wandb did not end within 3 seconds and was cut off"),
        ("log:spins", "wandb did not end within 3 seconds and was cut off"),
        ("exit:sleeps", None),
        ("nowhere:nothing", None),
    ],
)
def test_a_tracker_that_does_not_go_on(small, stub, constant, capsys, monkeypatch, behaviour, note):
    """A full disk, the interpreter's exit, a crash, minutes of waiting, in Python, in C and at its very end: the run
    has the same bytes, waits a stated time, once, and says so, once; of what was logged whole nothing is said."""
    monkeypatch.setattr(tracking, "PATIENCE", 3.0 if note and "3 seconds" in note else 15.0)
    stub(behaviour)
    plain = small("plain", [])
    started = time.time()
    run = small("tracked", ["wandb"])
    assert time.time() - started < 60
    assert contents(run) == contents(plain)
    said = capsys.readouterr()
    assert [line[: len(note or "")] for line in said.err.splitlines() if "wandb" in line] == ([note] if note else [])


def test_training_is_the_same(tmp_path, emotion_table, tiny_recipe, stub, constant):
    """Weights, logits and pages of a transformer; no random number of this process is drawn."""
    import torch

    stub("log:raises")
    runs = []
    for to in ([], [], ["wandb"]):  # the first imports what draws a number as it is imported
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        recipe = tiny_recipe("bert", tracking__to=to, train__select="inner")
        runs.append(cross_validate(recipe, emotion_table(45), out=tmp_path / str(len(runs)) / "run"))
        runs.append((random.random(), np.random.rand()))
    assert runs[3] == runs[5]
    assert contents(runs[2]) == contents(runs[4])


@pytest.mark.parametrize("behaviour", ["log:spins", "exit:sleeps"])
def test_the_process_ends(stub, tmp_path, emotion_table, behaviour):
    """The command returns in a stated time, and leaves no process behind."""
    stub(behaviour)
    emotion_table(45).to_csv(tmp_path / "train.csv", index=False)
    code = "from lora_cls.training import tracking; tracking.PATIENCE = 4.0; from lora_cls.cli import main; main()"
    given = ["--set", "tracking.to=[wandb]", "--set", "cv.n_splits=2", "--out", str(tmp_path / "run")]
    command = [sys.executable, "-c", code, "run", "tfidf-logreg", "--train", str(tmp_path / "train.csv"), *given]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "metrics.json").is_file()
    assert "noise" not in done.stdout + done.stderr
    assert processes(str(tmp_path)) == []


def processes(word):
    """Numbers of the trackers' processes with this word in their command line."""
    import psutil

    found = [
        process for process in psutil.process_iter(["cmdline"]) if tracking.START in (process.info["cmdline"] or [])
    ]
    return [process.pid for process in found if any(word in part for part in process.info["cmdline"])]


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_run_that_is_killed(stub, tmp_path, emotion_table, monkeypatch):
    """Its tracker notes that it failed, and ends."""
    stub("nowhere:nothing")
    log = tmp_path / "log"
    monkeypatch.setenv("STUB_LOG", str(log))
    emotion_table(45).to_csv(tmp_path / "train.csv", index=False)
    code = (
        "import os, signal, time\n"
        "from lora_cls import cross_validate\n"
        "from lora_cls.training.progress import Listener\n"
        "class Killer(Listener):\n"
        "    def fold_done(self, *_): time.sleep(1); os.kill(os.getpid(), signal.SIGKILL)\n"
        f"cross_validate('tfidf-logreg', {str(tmp_path / 'train.csv')!r}, out={str(tmp_path / 'run')!r},\n"
        "    overrides=['tracking.to=[wandb]'], listeners=[Killer()])"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == -signal.SIGKILL
    deadline = time.time() + 60
    while processes(str(tmp_path)) and time.time() < deadline:
        time.sleep(0.2)
    assert log.read_text().split()[-2:] == ["failed", "exit"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, LoraClsError("stop")])
def test_a_run_that_is_ended(small, stub, monkeypatch, error):
    """Whoever interrupts it is not kept waiting by a tracker that hangs; what a listener raises reaches the caller."""
    monkeypatch.setattr(tracking, "PATIENCE", 2.0)
    stub("init:sleeps")

    class Ends(Listener):
        def fold_done(self, *_):
            raise error

    started = time.time()
    with pytest.raises((KeyboardInterrupt, LoraClsError)):
        small("ended", ["wandb"], listeners=[Ends()])
    assert time.time() - started < 15
    for process in processes("stub"):
        os.kill(process, signal.SIGTERM)


def test_a_listener_of_ours_that_fails(small, stub, capsys, monkeypatch):
    """A fault of our own side of the wall is a note, too."""
    stub("nowhere:nothing")
    monkeypatch.setattr(tracking, "figures", lambda scores: 1 / 0)
    assert small("run", ["wandb"]).scores.rows_scored == 45
    assert capsys.readouterr().err.count("Nothing more of this run is tracked (ZeroDivisionError: ") == 1


def test_a_key_is_not_shown(small, stub, capsys, monkeypatch):
    """What a library says may quote a key of the environment; it is no part of the note."""
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef" * 2)
    stub("init:raises")
    run = small("run", ["wandb"])
    said = capsys.readouterr().err
    assert "RuntimeError: refused with ***" in said and "0123456789abcdef" not in said
    assert all(b"0123456789abcdef" * 2 not in text for text in contents(run).values())


def test_an_address_with_a_key_is_refused():
    """A project is a name; the message says neither user nor password."""
    for value in ("https://user:secret@host/x", "https://secret@host"):
        with pytest.raises(RecipeError, match=r"tracking.project: .* WANDB_API_KEY") as refused:
            load_recipe("tfidf-logreg", {"tracking.project": value})
        assert "secret" not in str(refused.value)
    for name in ("..", "a/b", "a'b", " a", "a.", ""):
        with pytest.raises(RecipeError, match=r"tracking\.name"):
            load_recipe("tfidf-logreg", {"tracking.name": name})
    with pytest.raises(RecipeError, match=r"tracking\.folder: .* folder of this machine"):
        load_recipe("tfidf-logreg", {"tracking.folder": "s3://key:secret@bucket"})


def test_trackers_that_are_not_installed(small, tmp_path, monkeypatch):
    """All are named at once, with what installs them, before anything is trained; a folder is no package."""
    (tmp_path / "here" / "wandb").mkdir(parents=True)  # where W&B keeps its files beside a script
    monkeypatch.syspath_prepend(tmp_path / "here")
    for name in ("wandb", "mlflow", "tensorboard", "trackio"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "here")])
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if "editable" not in str(finder)])
    with pytest.raises(RecipeError) as refused:
        tracking.check_tracking(load_recipe("tfidf-logreg", {"tracking.to": ["wandb", "mlflow"]}), tmp_path / "run")
    assert str(refused.value) == (
        "tracking.to: wandb and mlflow are not installed. Install with: pip install wandb mlflow; or go without: "
        '--set "tracking.to=[]"'
    )


def test_before_anything_is_trained(small, tmp_path, monkeypatch):
    """What would be refused is refused before the tables are read; files of trackers stay out of the run folder."""
    monkeypatch.setattr(tracking, "_installed", lambda name: False)
    with pytest.raises(RecipeError, match="trackio is not installed"):
        small("run", ["trackio"])
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(tracking, "_installed", lambda name: True)
    recipe = load_recipe("tfidf-logreg", {"tracking.to": ["wandb"]})
    with pytest.raises(RecipeError, match=r"--set tracking\.folder=trackers"):
        tracking.check_tracking(recipe, tmp_path / "tracking")
    tracking.check_tracking(load_recipe(recipe, {"tracking.folder": str(tmp_path)}), tmp_path / "tracking")


# The trackers themselves


@pytest.fixture(scope="module")
def table(emotion_table):
    """Training rows whose labels have names that a page or a table might obey."""
    return emotion_table(45).rename(columns={"joy": "joy | <b>", "fear": "`fear`; a=1"})


@pytest.fixture(scope="module")
def logged(tmp_path_factory, tiny_recipe, table):
    """Function `logged(tracker)`: a run that it has, and the folder of its files; first one fold, then the other."""
    made = {}

    def make(name):
        pytest.importorskip(name)
        if name not in made:
            place = tmp_path_factory.mktemp(name)
            tracked = {"tracking__to": [name], "tracking__project": "tests", "tracking__group": "a group"}
            recipe = tiny_recipe("bert", train__select="inner", data__label_columns=list(table.columns[2:]), **tracked)
            notes = []
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(tracking.Trackers, "say", lambda self, text: notes.append(text))
                cross_validate(recipe, table, out=place / "odd 'name'", folds=[0])
                made[name] = cross_validate(recipe, table, out=place / "odd 'name'", resume=True), place / "tracking"
            assert [note for note in notes if "nobody is logged in" not in note] == []
        return made[name]

    return make


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    """No server of whoever runs the tests is written to."""
    for name in list(os.environ):
        if name.startswith(("WANDB_", "MLFLOW_", "TRACKIO_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", os.devnull)


def figures(run):
    """What a tracker should hold, from the files of the run: of `metrics.json`, and by fold of every epoch."""
    scores = json.loads((run.path / "metrics.json").read_text())
    final = {f"{kind}/macro_f1": scores[kind]["macro_f1"] for kind in ("cross_fitted", "untuned")}
    for kind in ("cross_fitted", "untuned"):
        final |= {f"{kind}/macro_f1_{end}": scores[kind]["macro_f1_interval"][end] for end in ("low", "high")}
        final[f"{kind}/macro_roc_auc"] = scores[kind]["macro_roc_auc"]
    final["tuning_gain"] = scores["tuning_gain"]["estimate"]
    epochs = {}
    for fold in run.finished_folds:
        lines = [json.loads(line) for line in run.fold(fold).metrics.read_text().splitlines()]
        epochs[f"epoch_loss/fold {fold}"] = [(line["step"], line["loss"]) for line in lines]
        scored = [(line["step"], line["selection_macro_f1"]) for line in lines]
        epochs[f"selection_macro_f1/fold {fold}"] = scored
    return final, epochs


def check(run, history):
    """`history(name)` gives steps and values of a figure."""
    final, epochs = figures(run)
    for name, value in final.items():
        assert history(name)[-1] == (2, pytest.approx(value, rel=1e-6)), name
    for name, pairs in epochs.items():
        assert history(name) == [(step, pytest.approx(value, rel=1e-6)) for step, value in pairs]
    for fold in (0, 1):
        steps = [step for step, _ in history(f"loss/fold {fold}")]
        assert steps == sorted(set(steps)) and 1 <= len(steps) <= 10
        assert steps == [step for step, _ in history(f"learning_rate/fold {fold}")]
        assert all(rate > 0 for _, rate in history(f"rows_per_second/fold {fold}"))
    assert [fold for fold, _ in history("folds/macro_f1_untuned")] == [0, 1]


def test_tensorboard(logged):
    """Event files in one folder, also after the resume; figures in the precision that TensorBoard shows."""
    run, folder = logged("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (place,) = (folder / "tensorboard" / "tests" / "a group").iterdir()
    assert place.name.startswith("odd _name_-")
    events = EventAccumulator(str(place))
    events.Reload()
    check(run, lambda name: [(event.step, event.value) for event in events.Scalars(name)])
    table = events.Tensors("per_label/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert r"| joy \| \<b\> |" in table and r"| \`fear\`; a=1 |" in table
    assert "n_splits: 2" in events.Tensors("recipe/text_summary")[-1].tensor_proto.string_val[0].decode()
    from lora_cls.training.tracker_process import _markdown

    assert _markdown("a\n|[x](y)") == r"a \|\[x\]\(y\)"


def test_mlflow(logged):
    """One run in SQLite, with the group, the recipe's fields, and the files."""
    run, folder = logged("mlflow")
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (experiment,) = (found for found in client.search_experiments() if found.name == "tests")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == run.name and found.info.status == "FINISHED"
    assert found.data.tags["group"] == "a group"
    assert found.data.params["train.learning_rate"] == "0.005"
    check(run, lambda name: [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, name)])
    assert found.data.metrics["cross_fitted/macro_f1"] == run.scores.cross_fitted.macro_f1
    files = {file.path for file in client.list_artifacts(found.info.run_id)}
    assert files == {"per_label.csv", "recipe.yaml", "report.html"}
    place = folder / "mlflow-artifacts" / found.info.run_id / "artifacts"
    assert (place / "report.html").read_bytes() == run.files.page.read_bytes()
    assert "joy | <b>" in (place / "per_label.csv").read_text()
    assert not list(run.path.rglob("*mlflow*"))


def wandb_records(file):
    """Records of an offline run: protobuf in LevelDB's log format, behind a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the whole of a record, or its last part
            record = Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def test_wandb(logged, capsys):
    """Offline where nobody is logged in; two files of one run, which is how W&B goes on offline."""
    run, folder = logged("wandb")
    history, ids, artifacts, groups = {}, set(), set(), set()
    for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        for record in wandb_records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                ids.add(record.run.run_id), groups.add((record.run.project, record.run.run_group))
            elif kind == "artifact":
                artifacts.add((record.artifact.type, *sorted(part.path for part in record.artifact.manifest.contents)))
            elif kind == "history":
                item = {item.nested_key[0] or item.key: json.loads(item.value_json) for item in record.history.item}
                for name, value in item.items():
                    history.setdefault(name, []).append((item.get("step"), value))
    assert len(ids) == 1 and groups == {("tests", "a group")}
    check(run, history.__getitem__)
    assert history["cross_fitted/macro_f1"][-1][1] == run.scores.cross_fitted.macro_f1
    assert ("run", "recipe.yaml", "report.html") in artifacts


def test_wandb_without_a_login(tmp_path, emotion_table, capsys, monkeypatch):
    """It says how to send what was kept, and asks nobody; with a key that is set, no file of the tracker holds it."""
    pytest.importorskip("wandb")
    recipe = load_recipe({"tfidf": {"min_df": 1}, "cv": {"n_splits": 2}}, {"tracking.to": ["wandb"]})
    cross_validate(recipe, emotion_table(45), out=tmp_path / "run", show=True)
    assert "wandb: nobody is logged in, so it is logged offline. Send it with: wandb login" in capsys.readouterr().err
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123456789abcdef01234567")
    monkeypatch.setenv("WANDB_MODE", "offline")
    cross_validate(recipe, emotion_table(45), out=tmp_path / "keyed", show=True)
    assert "wandb" not in capsys.readouterr().err
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len([file for file in files if file.suffix == ".wandb"]) == 2
    assert all(os.environ["WANDB_API_KEY"].encode() not in file.read_bytes() for file in files)


def test_trackio(logged):
    """One run in its database, also after the resume."""
    run, folder = logged("trackio")
    import sqlite3

    database = sqlite3.connect(folder / "trackio" / "tests.db")
    rows = database.execute("select step, metrics, run_name from metrics").fetchall()
    history = {}
    for step, metrics, _ in rows:
        for name, value in json.loads(metrics).items():
            history.setdefault(name, []).append((step, value))
    assert len({name for *_, name in rows}) == 1
    check(run, history.__getitem__)
    assert history["per_label"][-1][1]["_value"][0]["label"] == "joy | <b>"
