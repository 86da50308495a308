"""A run by several processes of a launcher, as a user starts it: the run of one process, written once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from lora_cls.cli import app
from lora_cls.commands.cross_validation import cross_validate
from lora_cls.errors import RecipeError
from lora_cls.runs import RunFolder
from lora_cls.training.factory import make_predictor
from lora_cls.training.processes import Processes, processes_of_launch
from lora_cls.yaml_text import write_yaml

ROOT = Path(__file__).parents[2]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
# imported by every Python that is started: notes what a launched process opens for writing, makes and renames
SITECUSTOMIZE = """
import os, sys
if "RANK" in os.environ:
    name = os.path.join(os.path.dirname(__file__), "rank-" + os.environ["RANK"])
    log = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(log, b"pid %d\\n" % os.getpid())
    def note(event, args):
        written = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if (written or event in ("os.mkdir", "os.rename")) and isinstance(args[0], (str, bytes, os.PathLike)):
            os.write(log, os.fsencode(event) + b" " + os.fsencode(args[0]) + b"\\n")
    sys.addaudithook(note)
"""


class Launched:
    """`lora-cls run` by two processes, with what each of them writes noted in `notes`."""

    def __init__(self, launcher, folder, recipe, name, *more):
        self.path, self.notes = folder / name, folder / f"{name}-notes"
        self.notes.mkdir(exist_ok=True)
        for file in self.notes.glob("rank-*"):
            file.unlink()
        (self.notes / "sitecustomize.py").write_text(SITECUSTOMIZE)
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{self.notes}{os.pathsep}{ROOT}"}
        command = [*launcher, "-m", "lora_cls", "run", folder / f"{recipe}.yaml", "--train", folder / "train.csv"]
        command += ["--test", folder / "test.csv", "--out", self.path, *more]
        self.process = subprocess.Popen(
            list(map(str, command)), env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def pid(self, rank):
        return int((self.notes / f"rank-{rank}").read_text().split()[1])

    def written(self, rank):
        """What a process opened for writing, made or renamed within the run folder."""
        lines = (self.notes / f"rank-{rank}").read_text().splitlines()
        return [line for line in lines if str(self.path) in line]

    def trained(self):
        """Wait until the first fold has finished an epoch, but not all."""
        state, deadline = self.path / "fold-00" / "state.safetensors", time.monotonic() + 120
        while not state.is_file():
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not (self.path / "fold-01" / "fold.json").exists()

    def ended(self):
        """What was said, once all processes are gone; they have a minute for that."""
        children = [process.pid for process in psutil.Process(self.process.pid).children(recursive=True)]
        said = self.process.communicate(timeout=60)[0]
        assert not any(psutil.pid_exists(pid) for pid in [*children, self.pid(0), self.pid(1)])
        return said

    def finished(self):
        said = self.process.communicate(timeout=300)[0]
        assert self.process.returncode == 0, said
        return said


@pytest.fixture(scope="module")
def folder(tmp_path_factory, emotion_table, test, small_recipe):
    """Tables and recipes: 25 training rows a fold make three steps of 8, 8 and 9 rows, the last batch a single one."""
    folder = tmp_path_factory.mktemp("launch")
    emotion_table(50).to_csv(folder / "train.csv", index=False)
    test.to_csv(folder / "test.csv", index=False)
    few = {"train__num_train_epochs": 3, "train__ema_decay": 0.9, "train__average_epochs": 2}
    recipes = {
        "bert": small_recipe("bert", **few, train__per_device_train_batch_size=4, train__gradient_accumulation_steps=2),
        "llama": small_recipe("llama", **few),
    }
    for name, recipe in recipes.items():
        (folder / f"{name}.yaml").write_text(write_yaml(recipe.to_dict()))
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    """Factory `alone(recipe)` of the run of one process."""
    made = {}

    def make(recipe):
        if recipe not in made:
            tables = (folder / f"{table}.csv" for table in ("train", "test"))
            made[recipe] = cross_validate(folder / f"{recipe}.yaml", *tables, folder / f"alone-{recipe}")
        return made[recipe]

    return make


@pytest.fixture(scope="module")
def together(folder):
    """The run of two processes, each with the whole base."""
    launched = Launched([*ACCELERATE, ROOT / "recipes/accelerate/ddp.yaml"], folder, "bert", "together")
    launched.said = launched.finished()
    return launched


def losses(run, fold):
    lines = (run / f"fold-{fold:02d}" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def assert_same(one, other):
    """Loss curves, adapters and answers within 1e-5.

    AdamW divides a gradient by its own size: a weight whose gradient is next to zero takes a step in the direction of
    its last digits. One weight of a thousand may differ so.
    """
    for fold in (0, 1):
        assert losses(one, fold) == pytest.approx(losses(other, fold), abs=1e-5)
        files = [path / f"fold-{fold:02d}" / "adapter" / "adapter_model.safetensors" for path in (one, other)]
        mine, theirs = map(load_file, files)
        assert set(mine) == set(theirs)
        off = np.concatenate([(mine[name] - theirs[name]).abs().flatten().numpy() for name in mine])
        assert (off > 1e-5).mean() <= 1e-3 and off.max() < 1e-3
        for table in ("oof", "test"):
            arrays = [np.load(path / f"fold-{fold:02d}" / f"{table}_logits.npy") for path in (one, other)]
            np.testing.assert_allclose(*arrays, atol=1e-4)


def adapters(run):
    files = sorted(run.glob("fold-*/adapter/adapter_model.safetensors"))
    assert len(files) == 2
    return [file.read_bytes() for file in files]


def test_same_as_one_process(alone, together):
    """Two processes make the steps of one: same number, same losses, same adapters, same counts."""
    one = alone("bert")
    assert_same(one.path, together.path)
    run = RunFolder(together.path)
    assert run.finished_folds == [0, 1]
    assert run.info.choices["processes"] == 2 and "processes" not in one.info.choices
    for fold in (0, 1):
        mine, theirs = (each.fold(fold).info.processed for each in (run, one))
        assert (mine.rows, mine.tokens) == (theirs.rows, theirs.tokens)
    assert run.scores.cross_fitted.macro_f1 == pytest.approx(one.scores.cross_fitted.macro_f1, abs=0.05)


def test_one_writes_and_speaks(together):
    """The second process makes, opens for writing and renames nothing in the run folder, and prints nothing."""
    assert any("fold-00" in line for line in together.written(0))
    assert together.written(1) == []
    assert together.said.count("fold 0: epoch 1/3") == 1
    assert together.said.count(str(together.path / "metrics.json")) == 1


def test_stopped_and_resumed(folder, together):
    """Ctrl-C ends all processes; two others go on, and write the very bytes of the run that was not stopped."""
    launched = Launched(TORCHRUN, folder, "bert", "stopped")
    launched.trained()
    launched.process.send_signal(signal.SIGINT)
    said = launched.ended()
    assert launched.process.returncode != 0
    assert "continue" in said
    Launched(TORCHRUN, folder, "bert", "stopped", "--resume").finished()
    assert adapters(launched.path) == adapters(together.path)


def test_one_dies_and_another_number_resumes(folder, alone):
    """With one process all end. One alone goes on, says that the last digits differ, and ends where it always does."""
    launched = Launched(TORCHRUN, folder, "bert", "died")
    launched.trained()
    os.kill(launched.pid(1), signal.SIGKILL)
    launched.ended()
    assert launched.process.returncode != 0
    command = ["-m", "lora_cls", "run", folder / "bert.yaml", "--train", folder / "train.csv", "--test"]
    done = subprocess.run(
        [sys.executable, *command, folder / "test.csv", "--out", launched.path, "--resume"],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "was started by 2 processes, and goes on with 1" in done.stderr
    assert_same(alone("bert").path, launched.path)


def test_sharded_base(folder, alone, snippet_answers):
    """A base spread over two processes trains as a whole one; its adapters open in plain PEFT, and answer alike."""
    launched = Launched([*ACCELERATE, ROOT / "recipes/accelerate/fsdp2.yaml"], folder, "llama", "sharded")
    launched.finished()
    assert_same(alone("llama").path, launched.path)
    assert launched.written(1) == []
    run = RunFolder(launched.path)
    assert run.info.choices["sharded"]
    texts = ["happy and smiling", "afraid of the dog again"]
    ours = make_predictor(run.recipe, run.label_names, run.info.choices, run.base_place())
    plain = snippet_answers({"sharded": run.path}, texts)["sharded"]
    np.testing.assert_allclose(plain, ours.predict(run.fold(0), texts), atol=1e-5)


# What is refused


@pytest.mark.parametrize(("rank", "said"), [("0", "--workers"), ("1", "")])
def test_predict_is_refused(monkeypatch, rank, said):
    """Only `run` takes several processes; the first one says so."""
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = CliRunner().invoke(app, ["predict", "run", "--input", "new.csv"])
    assert result.exit_code != 0
    assert said in str(result.exception)


@pytest.mark.parametrize(
    ("kind", "overrides", "said"),
    [
        ("bert", {"lora": None}, "every weight is trained"),
        ("llama", {"quantization": {"load_in_8bit": True}}, "8 bits"),
        ("chat", {}, "head.kind: generate"),
        ("bert", {"adapt": {}}, "adapt trains it first"),
    ],
)
def test_not_sharded(tiny_recipe, kind, overrides, said):
    """What needs a whole base on one device is refused where it is to be spread, and only there."""
    recipe = tiny_recipe(kind, **overrides)
    Processes(0, 2).check(recipe, alone=True)
    with pytest.raises(RecipeError, match=said):
        Processes(0, 2, sharded=True).check(recipe, alone=True)


def test_not_launched(tfidf_recipe, tiny_recipe):
    """TF-IDF and workers need no launcher; all that is wrong is said at once. One process is refused nothing."""
    with pytest.raises(RecipeError, match=r"TF-IDF.*\n.*--workers"):
        Processes(0, 2).check(tfidf_recipe(), alone=False)
    Processes().check(tfidf_recipe(), alone=False)


def test_one_process_of_a_launcher(monkeypatch):
    """A launcher of one process is none."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert processes_of_launch().size == 1
