"""How far a run is, whatever its state; asking changes nothing in its folder."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import yaml

from lora_cls import RunFolder, blend, status, tune
from lora_cls.errors import RunError
from lora_cls.runs.lock import LOCK, locked
from lora_cls.runs.records import ExportInfo, FoldInfo

KILL = """
import os, signal, sys
import lora_cls.training.loop as loop
from lora_cls.cli import main

save, saved = loop.save_state, []

def save_state(file, *rest):
    save(file, *rest)
    saved.append(file)
    if len(saved) == {saves}:
        os.kill(os.getpid(), signal.SIGKILL)

loop.save_state = save_state
sys.argv = ["lora-cls", *{arguments!r}]
main()
"""
HOLD = """
import sys
from pathlib import Path
from lora_cls.runs.lock import locked
with locked(Path(sys.argv[1]), "is trained"):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def run(make_run, problem):
    """A finished run of the classical baseline on three folds, with a score."""
    y_true, fold, logits = problem()
    return make_run("run", logits(2.0), y_true, fold)


@pytest.fixture
def partial(make_run, problem):
    """The same, where fold 2 was never trained."""
    y_true, fold, logits = problem()
    return make_run("partial", logits(2.0), y_true, fold, unfinished=(2,))


@pytest.fixture(scope="module")
def killed(tmp_path_factory, emotion_table, tiny_recipe):
    """Factory `killed(saves)`: a run of two folds of two epochs that was killed -9 as it had saved so many epochs."""
    made = {}

    def make(saves):
        if saves not in made:
            folder = tmp_path_factory.mktemp("killed")
            recipe = tiny_recipe("llama", engine__num_threads=1)
            (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.to_dict()))
            emotion_table(45).to_csv(folder / "train.csv", index=False)
            arguments = ["run", folder / "recipe.yaml", "--train", folder / "train.csv", "--out", folder / "run"]
            code = KILL.format(saves=saves, arguments=list(map(str, arguments)))
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
            assert done.returncode == -signal.SIGKILL, done.stderr
            made[saves] = folder / "run"
        return made[saves]

    return make


@pytest.fixture
def hold():
    """Factory `hold(folder)`: a process that holds the lock of this folder, as one that trains a fold does."""
    held = []

    def start(folder):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        held.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in held:
        process.kill()
        process.wait()


def listing(folder):
    """Everything in a folder: kind, size, rights and time of change, the folder's own included."""
    found = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        about = path.lstat()
        found[str(path)] = (about.st_mode, about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino)
    return found


def command(monkeypatch, capsys, path):
    """Exit code and output of `lora-cls status`."""
    from lora_cls import cli

    monkeypatch.setattr(sys, "argv", ["lora-cls", "status", str(path)])
    code = 0
    try:
        cli.main()
    except SystemExit as error:
        code = error.code
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_finished(run, monkeypatch, capsys):
    """Every fold with its own score; the run's score is the one of `metrics.json`."""
    found = status(run.path)
    assert (found.kind, found.state, found.minutes_left) == ("run", "finished", 0.0)
    assert [(fold.name, fold.state, fold.seconds) for fold in found.folds] == [(n, "finished", 31.5) for n in "012"]
    assert found.folds[0].rows_per_second == pytest.approx(160 / 30)
    scores = run.scores
    assert (found.score.macro_f1, found.score.untuned) == (scores.cross_fitted.macro_f1, scores.untuned.macro_f1)
    assert found.score.noted and found.score.interval == (
        scores.cross_fitted.macro_f1_interval.low,
        scores.cross_fitted.macro_f1_interval.high,
    )
    code, out = command(monkeypatch, capsys, run.path)
    assert code == 0
    assert f"Score: Macro-F1 {scores.cross_fitted.macro_f1:.4f}" in out and "left" not in out


def test_macro_f1_of_a_fold(run):
    """By hand: decided at logit > 0 on the rows that the fold held out."""
    from sklearn.metrics import f1_score

    rows = (run.folds["fold"] == 1).to_numpy()
    expected = f1_score(run.y_true[rows], np.load(run.fold(1).oof_logits) > 0, average="macro")
    assert status(run.path).folds[1].macro_f1 == pytest.approx(expected)


def test_folds_that_are_left(partial, monkeypatch, capsys):
    """Stopped between folds: what is left, and about how long by the folds that are done."""
    found = status(partial.path)
    assert found.state == "stopped"
    assert [fold.state for fold in found.folds] == ["finished", "finished", "stopped"]
    assert found.minutes_left == pytest.approx(31.5 / 60)
    assert found.score.noted and (found.score.rows_scored, found.score.rows) == (160, 240)
    shutil.rmtree(partial.fold(2).path)
    assert [fold.state for fold in status(partial.path).folds] == ["finished", "finished", "not started"]
    code, out = command(monkeypatch, capsys, partial.path)
    assert code == 0
    assert (
        "1 fold is left" in out and "--resume" in out and "About 0.5 minutes left, by the median of 2 finished" in out
    )


def test_score_that_is_not_written_yet(partial):
    """Computed as `tune` would, from the finished folds, and nothing is kept of it."""
    before, known = partial.scores, status(partial.path)
    partial.files.scores.unlink()
    found = status(partial.path)
    assert not found.score.noted and found.score.interval is None
    assert found.score.macro_f1 == known.score.macro_f1 == before.cross_fitted.macro_f1
    assert found.score.untuned == before.untuned.macro_f1
    assert not partial.files.scores.exists()
    assert "as lora-cls tune would" in str(found.score)


def test_score_of_other_folds(run):
    """Where a fold was removed, or finished, since: what `metrics.json` says is not shown for the folds of now."""
    run.fold(2).info_file.unlink()
    found = status(run.path)
    assert not found.score.noted and found.score.rows_scored == 160
    run.reread()
    assert found.score.macro_f1 == tune(run.path).cross_fitted.macro_f1
    assert status(run.path).score.noted


def test_killed_in_a_fold(killed):
    """Which epoch of how many; the lock that the process left is no sign of life."""
    path = killed(3)
    assert (path / "fold-01" / LOCK).is_file()
    found = status(path)
    done, stopped = found.folds
    assert found.state == "stopped"
    assert (done.state, done.epochs, done.n_epochs, done.kept) == ("finished", 2, 2, None)
    assert (stopped.state, stopped.epochs, stopped.n_epochs, stopped.holder) == ("stopped", 1, 2, None)
    assert found.minutes_left == pytest.approx(done.seconds / 2 / 60)
    assert stopped.rows_per_second > 0 and stopped.macro_f1 is None and done.macro_f1 is not None
    assert not found.score.noted and found.score.rows_scored < found.score.rows == 45


def test_killed_in_the_first_fold(killed):
    """Nothing but an epoch to go by: said so."""
    found = status(killed(1))
    assert [(fold.state, fold.epochs) for fold in found.folds] == [("stopped", 1), ("not started", 0)]
    assert found.score is None
    epoch = found.folds[0].seconds
    assert found.minutes_left == pytest.approx(epoch * 3 / 60)
    assert found.basis == "by 1 epoch of training, prediction not counted"


def test_epochs_that_a_resume_goes_on_after(killed, tmp_path):
    """A line of `metrics.jsonl` whose epoch was not saved does not count: the state says what a resume goes on with."""
    path = shutil.copytree(killed(3), tmp_path / "run")
    with (path / "fold-01" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"epoch": 2}) + "\n")
    assert status(path).folds[1].epochs == 1


def test_running(partial, hold, monkeypatch, capsys):
    """Who trains which fold, and since when; the lock stays as it is, and ends with its process however it ends."""
    folder = partial.fold(2).path
    holder = hold(folder)
    before = listing(partial.path)
    found = status(partial.path)
    assert found.state == "running"
    assert [fold.state for fold in found.folds] == ["finished", "finished", "running"]
    assert found.folds[2].holder.startswith(f"process {holder.pid} on ")
    assert 0 < found.minutes_left <= 31.5 / 60
    code, out = command(monkeypatch, capsys, partial.path)
    assert code == 0 and f"Fold 2 is trained by process {holder.pid} on " in out and " since 2" in out
    assert listing(partial.path) == before
    with pytest.raises(RunError, match=f"is trained by process {holder.pid}"), locked(folder, "is trained"):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (folder / LOCK).is_file()
    assert status(partial.path).folds[2].state == "stopped"


def test_several_at_work(make_run, problem, hold):
    """Processes that train folds side by side share what is left, and the longest of them is waited for."""
    y_true, fold, logits = problem(n_folds=6)
    run = make_run("run", logits(2.0), y_true, fold, unfinished=(1, 2, 3, 4, 5))
    first = status(run.path)
    assert first.minutes_left == pytest.approx(5 * 31.5 / 60)
    for number in (1, 2):
        hold(run.fold(number).path)
        os.utime(run.fold(number).path / LOCK)
    found = status(run.path)
    assert found.minutes_left == pytest.approx(first.minutes_left / 2, abs=5 / 60)
    assert "2 processes" in found.basis


def test_looking_stops_nobody(tmp_path):
    """A process that wants a lock while others look at it gets it."""
    (tmp_path / LOCK).write_text("left by a killed process")
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom lora_cls.runs.lock import held_by\n"
        "print('looks', flush=True)\nwhile True:\n    held_by(Path(sys.argv[1]))"
    )
    looking = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        assert all(process.stdout.readline() == "looks\n" for process in looking)
        for _ in range(30):
            (tmp_path / LOCK).touch()
            with locked(tmp_path, "is trained"):
                assert (tmp_path / LOCK).is_file()
    finally:
        for process in looking:
            process.kill()
            process.wait()


def test_written(run, hold, monkeypatch, capsys):
    """While scores and pages are written, that is said."""
    holder = hold(run.path)
    found = status(run.path)
    assert found.state == "running" and found.writer.startswith(f"process {holder.pid} ")
    code, out = command(monkeypatch, capsys, run.path)
    assert code == 0 and f"It is written by process {holder.pid} on " in out


def test_only_begun(tmp_path, hold, monkeypatch, capsys):
    """A folder that a run was stopped in before it was complete, and one that is being made."""
    path = tmp_path / "run"
    path.mkdir()
    (path / ".creating").touch()
    found = status(path)
    assert (found.state, found.folds, found.minutes_left) == ("begun", [], None)
    code, out = command(monkeypatch, capsys, path)
    assert code == 0 and "--resume" in out
    hold(path)
    assert "is being made" in command(monkeypatch, capsys, path)[1]


def test_no_run_folder(tmp_path, monkeypatch, capsys):
    """Exit code 2 and one sentence for anything else."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "left").mkdir()
    (tmp_path / "left" / LOCK).write_text("process 1")
    (tmp_path / "file").touch()
    for name in ("empty", "left", "file", "missing", "x" * 5000):
        code, out = command(monkeypatch, capsys, tmp_path / name)
        assert code == 2 and "no run folder and no folder of a search" in out and "Traceback" not in out


@pytest.mark.parametrize(
    "name",
    ["recipe.yaml", "run.json", "labels.json", "folds.csv", "train_labels.csv", "metrics.json", "thresholds.json",
     "fold-01/fold.json", "fold-01/oof_logits.npy"],
)  # fmt: skip
@pytest.mark.parametrize("how", ["cut", "gone", "noise"])
def test_damage(run, monkeypatch, capsys, name, how):
    """Whatever is damaged is named in a sentence; the rest is shown, and the exit code is 0."""
    if (name, how) in (("recipe.yaml", "gone"), ("metrics.json", "gone"), ("fold-01/fold.json", "gone")):
        pytest.skip("no run folder, no score yet, and no finished fold: not damage")
    file = run.path / name
    content = file.read_bytes()
    file.unlink()
    if how != "gone":
        file.write_bytes(content[: len(content) // 2] if how == "cut" else b"\xff\xfe\x00" + content[::-1])
    before = listing(run.path)
    found = status(run.path)
    assert found.state == "damaged"
    code, out = command(monkeypatch, capsys, run.path)
    assert code == 0
    assert any(name in note for note in found.notes), found.notes
    assert name in out.replace("\n", "") and "Traceback" not in out
    assert listing(run.path) == before
    if name.startswith("fold-01"):
        assert [fold.state for fold in found.folds] == ["finished", "damaged", "finished"]


def test_damaged_state(killed, tmp_path):
    """A training state that cannot be read is named with its remedy; the finished fold is shown all the same."""
    path = shutil.copytree(killed(3), tmp_path / "run")
    state = path / "fold-01" / "state.safetensors"
    content = state.read_bytes()
    for damaged in (content[:100], b"", b"\xff" * 200, content[:8] + b"x" + content[9:]):
        state.write_bytes(damaged)
        found = status(path)
        assert [fold.state for fold in found.folds] == ["finished", "damaged"]
        assert (
            found.notes[0].startswith(f"{state} is damaged") and "Remove it to train the fold again" in found.notes[0]
        )


def test_nothing_is_written(run, partial, killed, hold, tmp_path):
    """Names, sizes and times of the whole tree stay as they are, also in a folder that cannot be written to."""
    litter = run.path / "fold-01" / f".lora_cls-000000-{2**22 + 1}-0.tmp"
    litter.mkdir()
    os.utime(litter, (1, 1))
    copy = shutil.copytree(killed(3), tmp_path / "copy")
    hold(copy / "fold-00")
    for path in (run.path, partial.path, copy):
        for file in path.rglob("*"):
            file.chmod(0o555 if file.is_dir() else 0o444)
        path.chmod(0o555)
        before = listing(path)
        shown = repr(status(path)), status(RunFolder(path))._repr_html_()
        assert all(shown)
        assert listing(path) == before
        for file in [path, *path.rglob("*")]:
            file.chmod(0o755 if file.is_dir() else 0o644)


def test_litter_goes_with_the_next_writing(run):
    """Opening a run removes nothing; what writes into it does."""
    litter = run.path / "fold-01" / ".lora_cls-000000-7-0.tmp"
    litter.mkdir()
    os.utime(litter, (1, 1))
    assert status(RunFolder(run.path)).state == "finished"
    assert litter.is_dir()
    tune(run.path)
    assert not litter.exists()


def test_blend(run, make_run, problem, tmp_path):
    """A blend is a run; its folds have no untuned score, which would be another quantity."""
    y_true, fold, logits = problem()
    other = make_run("other", logits(1.5), y_true, fold)
    found = status(blend([run.path, other.path], tmp_path / "blend"))
    assert (found.kind, found.state, found.minutes_left) == ("blend", "finished", 0.0)
    assert found.about.startswith("blend of 2, mean_logit")
    assert [fold.macro_f1 for fold in found.folds] == [None] * 3
    assert found.score.noted


def test_export(run, monkeypatch, capsys):
    """An export has no folds: what it was made of is said."""
    for folder in run.path.glob("fold-*"):
        shutil.rmtree(folder)
    for name in ("folds.csv", "train_labels.csv", "metrics.json"):
        (run.path / name).unlink()
    values = {"kind": "merged", "run": "mine", "folds": [0, 1, 2], "rank": None, "exact_rank": None}
    values |= {"compression": None, "out_of_fold_score": None, "note": "", "pos_weight": [1.0, 1.0]}
    ExportInfo(**values).write(run.files.export)
    found = status(run.path)
    assert (found.kind, found.state, found.folds, found.score) == ("export", "finished", [], None)
    code, out = command(monkeypatch, capsys, run.path)
    assert code == 0 and "merged of 3 folds of mine, exported" in out
    run.files.export.write_bytes(b"{")
    assert status(run.path).state == "damaged"


def test_refit(run, hold):
    """The model of all rows has a row of its own, running, stopped or finished; no score."""
    folder = run.refit
    assert status(run.path).refit is None
    holder = hold(folder.path)
    found = status(run.path)
    assert (found.state, found.refit.state) == ("running", "running")
    assert f"The model of all rows is trained by process {holder.pid}" in " ".join(found.sentences)
    holder.communicate("\n")
    found = status(run.path)
    assert (found.state, found.refit.state, found.minutes_left) == ("stopped", "stopped", pytest.approx(31.5 / 60))
    assert any("lora-cls refit RUN" in note for note in found.notes)
    folder.write_info(FoldInfo(pos_weight=[1.0, 1.0], seconds={"train": 3.0, "predict": 0.0}, train_rows=240))
    found = status(run.path)
    assert (found.state, found.refit.state, found.refit.macro_f1) == ("finished", "finished", None)
    assert found.cells[-1][:2] == ["all rows", "finished"]


def test_hostile_names(run, monkeypatch, capsys):
    """What a folder or a lock is called does nothing to a terminal or a notebook."""
    path = run.path.rename(run.path.with_name("a\x1b[2J<script>[red]\u202e"))
    files = path / "labels.json"
    about = json.loads(files.read_text())
    assert about["labels"] == ["anger", "joy"]
    with locked(path, "is written"):
        (path / LOCK).write_text("process\x1b]0;x\x07 <b>\n\n\nError: [bold]")
        code, out = command(monkeypatch, capsys, path)
        shown = status(path)._repr_html_()
    assert code == 0
    assert not set("\x1b\x07\u202e") & set(out + shown)
    assert r"a\x1b[2J<script>[red]\u202e" in out and r"process\x1b]0;x\x07 <b> Error: [bold]" in out
    assert "<script>" not in shown and "&lt;b&gt;" in shown


def test_notebook(partial):
    """A table of folds, and the score."""
    found = status(partial)
    assert repr(found).startswith(f"RunStatus({str(partial.path)!r}, stopped, 2 of 3 folds, macro_f1=0.")
    rows = re.findall("<tr>(.*?)</tr>", found._repr_html_())
    assert [re.findall("<td>(.*?)</td>", row)[1:2] for row in rows] == [[], ["finished"], ["finished"], ["stopped"]]
    with pytest.raises(AttributeError):
        found.state = "finished"


def test_no_model_is_loaded(run):
    """Neither torch nor what else takes a second to import."""
    code = (
        "import sys\nfrom lora_cls.cli import main\nsys.argv = ['lora-cls', 'status', sys.argv[1]]\ntry:\n    main()\n"
        "finally:\n    print(sorted({'torch', 'transformers', 'sklearn', 'optuna'} & set(sys.modules)))"
    )
    run.files.scores.unlink()  # so that the score is computed, too
    done = subprocess.run([sys.executable, "-c", code, str(run.path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
