"""How far a search is: trials by state, who works on which, the best so far; asking changes nothing."""

import os
import re
import subprocess
import sys
import time

import pytest

optuna = pytest.importorskip("optuna")

from lora_cls import cross_validate, load_recipe, status  # noqa: E402
from lora_cls.evaluation import Interval  # noqa: E402
from lora_cls.search.folder import LOST_AFTER, HoldoutScore, SweepFiles, SweepFolder  # noqa: E402
from lora_cls.search.optuna_files import open_study  # noqa: E402
from lora_cls.search.plan import Given, make_plan  # noqa: E402
from lora_cls.search.space import distributions, resolved  # noqa: E402

STATES = optuna.trial.TrialState


@pytest.fixture
def sweep(tmp_path, emotion_table):
    """A search of TF-IDF's C, on folds 0 and 1 of three, as `lora-cls sweep` begins one; its two best are confirmed."""
    emotion_table(45).to_csv(tmp_path / "train.csv", index=False)
    values = {"tfidf": {"min_df": 1}, "cv": {"n_splits": 3}, "thresholds": {"min_positives": 2}}
    space = {"tfidf.C": {"low": 0.1, "high": 10.0, "log": True}}
    recipe = load_recipe(values | {"sweep": {"space": space, "n_folds": 2, "confirm": 2}})
    recipe = recipe.model_copy(update={"sweep": resolved(recipe)})
    given = Given(str(tmp_path / "train.csv"), None, None, None, None)
    make_plan("mine", recipe, given, None, None, lambda _: None).create(tmp_path / "sweep", lambda _: None)
    return SweepFolder(tmp_path / "sweep")


@pytest.fixture
def add(sweep):
    """Function that adds a trial to the journal, through Optuna."""

    def write(state, c, value=None, **said):
        open_study(sweep.files.journal).add_trial(
            optuna.create_trial(
                state=state, params={"tfidf.C": c}, value=value, user_attrs=said,
                distributions=distributions(sweep.recipe, sweep.settings),
            )
        )  # fmt: skip

    return write


@pytest.fixture
def train(sweep):
    """Function that trains folds of a trial as a search does."""

    def run(place, folds, table):
        return cross_validate(
            load_recipe(sweep.recipe, {"sweep": None, "tfidf.C": 2.0}), sweep.info.paths["train"], out=place,
            folds=folds, fold_table=table, resume=True,
        )  # fmt: skip

    return run


def listing(folder):
    return {
        str(path): (about.st_mode, about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino)
        for path in [folder, *sorted(folder.rglob("*"))]
        if (about := path.lstat())
    }


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


def test_begun(sweep, monkeypatch, capsys):
    """Before the first trial."""
    found = status(sweep.path)
    assert (found.state, found.counts, found.best, found.trial_minutes) == ("stopped", {}, None, None)
    code, out = command(monkeypatch, capsys, sweep.path)
    assert code == 0 and "search from mine, 2 of 3 folds each; 0 trials." in out


def test_states(sweep, add, train, monkeypatch, capsys):
    """Trials by state, the best of them with its fields, what was saved, and why trials failed."""
    add(STATES.COMPLETE, 1.0, 0.5, fold_scores={"0": 0.4, "1": 0.6})
    add(STATES.COMPLETE, 2.0, 0.75, fold_scores={"0": 0.7, "1": 0.8})
    add(STATES.PRUNED, 0.2, rows_trained=30, rows_planned=120, reason="its mean lies below")
    add(STATES.FAIL, 9.0, reason="The memory is full: the setting needs more than there is.")
    add(STATES.FAIL, 8.0)
    add(STATES.RUNNING, 3.0, attempts=1)
    add(STATES.RUNNING, 4.0, attempts=1)
    add(STATES.RUNNING, 5.0, attempts=1)
    train(sweep.files.run(5), [0], sweep.files.folds)
    SweepFiles.alive(sweep.files.run(5)).touch()
    SweepFiles.alive(sweep.files.run(6)).touch()
    long_ago = time.time() - LOST_AFTER - 40
    os.utime(SweepFiles.alive(sweep.files.run(6)), (long_ago, long_ago))
    before = listing(sweep.path)
    found = status(sweep.path)
    assert found.state == "running"
    assert found.counts == {"complete": 2, "stopped": 1, "failed": 2, "running": 3}
    assert (found.best.number, found.best.score, found.best.params) == (1, 0.75, {"tfidf.C": 2.0})
    assert [one.at_work for one in found.running] == [True, False, False]
    assert [fold.state for fold in found.running[0].folds] == ["finished", "not started"]
    assert found.running[1].silent_for == pytest.approx(LOST_AFTER + 40, abs=20) and found.running[2].silent_for is None
    assert (found.rows_trained, found.rows_planned) == (30, 120)
    assert [trial.reason for trial in found.failed] == [
        "The memory is full: the setting needs more than there is.", None,
    ]  # fmt: skip
    code, out = command(monkeypatch, capsys, sweep.path)
    assert code == 0
    assert "8 trials: 2 complete, 1 stopped, 2 failed, 3 running." in out
    assert "Best so far: trial 1, macro_f1 0.7500 with tfidf.C: 2." in out
    assert "30 of 120 rows: 75% of their training was saved" in out
    flat = " ".join(re.sub("[│┃]", " ", out).split())
    assert "1 of 2 finished" in flat and "its process is gone" in flat and "set aside" in flat
    assert "The memory is full" in flat and "not noted" in flat
    assert listing(sweep.path) == before


def test_confirmed(sweep, add, train, monkeypatch, capsys):
    """The score of fresh folds beside the trial's own, and what is still to be done."""
    for number, score in enumerate((0.5, 0.9, 0.8)):
        add(STATES.COMPLETE, 1.0 + number, score, fold_scores={"0": score, "1": score})
    assert (status(sweep.path).state, status(sweep.path).to_confirm) == ("stopped", 2)
    run = train(sweep.files.confirmation(1), [0, 1], sweep.files.fresh)
    begun = train(sweep.files.confirmation(2), [0], sweep.files.fresh)
    begun.files.scores.unlink()
    SweepFiles.alive(sweep.files.confirmation(2)).touch()
    before = listing(sweep.path)
    found = status(sweep.path)
    assert (found.state, found.to_confirm) == ("running", 1)
    assert [one.trial.number for one in found.confirmed] == [1, 2]
    assert found.confirmed[0].score.macro_f1 == run.scores.cross_fitted.macro_f1
    assert [fold.state for fold in found.confirmed[1].folds] == ["finished", "not started"]
    code, out = command(monkeypatch, capsys, sweep.path)
    assert code == 0
    assert f"Trial 1 on fresh folds (2 of 2 finished): Macro-F1 {run.scores.cross_fitted.macro_f1:.4f} (95 %" in out
    assert "In the search: macro_f1 0.9000." in out and "Trial 2 on fresh folds (1 of 2 finished, heard of" in out
    assert listing(sweep.path) == before
    SweepFiles.alive(sweep.files.confirmation(2)).unlink()
    train(sweep.files.confirmation(2), [0, 1], sweep.files.fresh)
    HoldoutScore(trial=1, rows=9, macro_f1=Interval(0.7, 0.6, 0.8, 0.95, 9, 9)).write(sweep.files.holdout_score)
    found = status(sweep)
    assert (found.state, found.to_confirm) == ("finished", 0)
    assert "on 9 rows that no trial saw: macro-F1 0.7000 (95 % interval 0.6000 to 0.8000)" in " ".join(found.sentences)


@pytest.mark.parametrize("name", ["sweep.json", "base.yaml", "journal.log"])
@pytest.mark.parametrize("how", ["cut", "noise", "gone"])
def test_damage(sweep, add, monkeypatch, capsys, name, how):
    """A damaged file is named in a sentence; the exit code is 0."""
    if (name, how) == ("sweep.json", "gone"):
        pytest.skip("no folder of a search")
    add(STATES.COMPLETE, 1.0, 0.5)
    file = sweep.path / name
    content = file.read_bytes()
    middle = len(content) // 2
    file.unlink()
    if how != "gone":
        file.write_bytes(content[:middle] if how == "cut" else content[:middle] + b"\xff{\x00\n" + content[middle:])
    before = listing(sweep.path)
    found = status(sweep.path)
    code, out = command(monkeypatch, capsys, sweep.path)
    assert code == 0 and "Traceback" not in out
    if (name, how) != ("journal.log", "cut"):  # whose torn end is left out, as by the next start
        assert found.state == "damaged"
        assert name in "".join(found.notes) and name in out.replace("\n", "")
    assert listing(sweep.path) == before


def test_hostile_values(sweep, add, monkeypatch, capsys):
    """What a journal holds of others' words does nothing to a terminal or a notebook."""
    add(STATES.FAIL, 1.0, reason="\x1b]0;x\x07[red]<script>\nError\u202e" + "y" * 5000)
    code, out = command(monkeypatch, capsys, sweep.path)
    shown = status(sweep.path)._repr_html_()
    assert code == 0
    assert not set("\x1b\x07\u202e") & set(out + shown)
    assert "<script>" not in shown and "[red]" in out and len(out) < 5000
    assert repr(status(sweep.path)).endswith("stopped, 1 failed)")


def test_values_of_another_kind(sweep, add, monkeypatch, capsys):
    """Attributes of a trial that hold something else than a search writes are damage, said in a sentence."""
    add(STATES.COMPLETE, 1.0, 0.5, fold_scores=["x"], losses=3)
    code, out = command(monkeypatch, capsys, sweep.path)
    assert code == 0 and "journal.log is damaged" in out


def test_torch_is_not_imported(sweep, add):
    """Of a search, too."""
    add(STATES.COMPLETE, 1.0, 0.5)
    code = (
        "import sys\nfrom lora_cls.cli import main\nsys.argv = ['lora-cls', 'status', sys.argv[1]]\ntry:\n    main()\n"
        "finally:\n    print(sorted({'torch', 'transformers', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(sweep.path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
