"""A search leaves what it says; killed, stopped, or worked on by several processes, it loses and repeats nothing."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from lora_cls.commands import sweep as module
from lora_cls.commands.blend import blend
from lora_cls.commands.compare import compare
from lora_cls.commands.cross_validation import cross_validate
from lora_cls.commands.sweep import sweep
from lora_cls.errors import RecipeError, RunError
from lora_cls.recipe import load_recipe
from lora_cls.search.folder import SweepFolder

optuna = pytest.importorskip("optuna")
QUICK = ["cv.n_splits=3", "sweep.n_folds=2", "sweep.confirm=1", "sweep.keep_models=1", "tfidf.min_df=1"]
QUICK += ["sweep.stop_folds=false"]  # of two workers it depends on who is first what is tried, and what falls behind


@pytest.fixture(scope="module")
def table(emotion_table):
    return emotion_table(90)


@pytest.fixture(scope="module")
def searched(table, tmp_path_factory):
    """Four trials by two workers, from a DataFrame, a fifth of the rows held out."""
    place = tmp_path_factory.mktemp("sweeps") / "tfidf"
    return sweep("tfidf-logreg", table, out=place, trials=4, workers=2, holdout=0.2, overrides=QUICK, show=False)


def test_trials_are_ordinary_runs_on_the_same_folds(searched):
    trials = searched.trials
    assert [trial.state for trial in trials] == ["complete"] * 4
    assert len({json.dumps(trial.params, sort_keys=True) for trial in trials}) == 4
    folds = [searched.run(trial.number).folds for trial in trials]
    assert all(other.equals(folds[0]) for other in folds)
    for trial in trials:
        run = searched.run(trial.number)
        assert run.finished_folds == searched.info.folds == [0, 1]
        assert run.scores.cross_fitted.macro_f1 == pytest.approx(trial.score)
        assert set(trial.fold_scores) == {0, 1}
        assert trial.rows_trained == trial.rows_planned > 0
    assert trials[0].params["tfidf.C"] == 1.0, "the recipe's own setting comes first"


def test_no_trial_sees_what_is_held_out(searched, table):
    held_out = set(pd.read_csv(searched.files.holdout)["id"])
    assert len(held_out) == pytest.approx(len(table) / 5, abs=2)
    for place in [*searched.files.trials.glob("0*/folds.csv"), *searched.files.confirmed.glob("0*/folds.csv")]:
        seen = set(pd.read_csv(place)["id"])
        assert not seen & held_out
        assert len(seen | held_out) == len(table)
    score = json.loads(searched.files.holdout_score.read_text())
    assert score["rows"] == len(held_out)
    assert score["trial"] == searched.best.number
    assert 0 < score["macro_f1"]["estimate"] <= 1


def test_the_best_is_scored_again_on_other_folds(searched):
    confirmed = searched.confirmation(searched.best.number)
    before = searched.run(searched.best.number)
    assert confirmed.finished_folds == before.finished_folds
    assert sorted(confirmed.folds["id"]) == sorted(before.folds["id"])
    assert (confirmed.folds["fold"] != before.folds["fold"]).any()


def test_the_best_recipe_runs_as_it_is(searched, table, tmp_path):
    """On the search's rows and folds it gives the trial's own answers."""
    recipe, params = load_recipe(searched.files.best), searched.best.params
    assert {f"tfidf.{name}": getattr(recipe.tfidf, name) for name in ("C", "min_df")} == {
        name: params[name] for name in ("tfidf.C", "tfidf.min_df")
    }
    assert recipe.sweep is None
    held_out = set(pd.read_csv(searched.files.holdout)["id"])
    seen = table[~table["id"].isin(held_out)]
    again = cross_validate(
        searched.files.best, seen, out=tmp_path / "run", folds=[0, 1], fold_table=searched.files.folds
    )
    assert np.array_equal(again.out_of_fold().logits, searched.run(searched.best.number).out_of_fold().logits)


def test_trials_compare_and_blend(searched, tmp_path):
    paths = [searched.files.run(trial.number) for trial in searched.ranked()[:2]]
    assert len(compare(paths).runs) == 2
    assert blend(paths, tmp_path / "blend").scores.rows_scored > 0


def test_only_the_best_keep_their_models(searched):
    kept = {place.parents[1].name for place in searched.files.trials.glob("0*/fold-*/model")}
    assert kept == {f"{searched.best.number:04d}"}


def test_the_same_command_has_nothing_to_do(searched, table):
    before = searched.files.journal.read_bytes()
    sweep("tfidf-logreg", table, out=searched.path, trials=4, holdout=0.2, overrides=QUICK, show=False)
    assert searched.files.journal.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"overrides": [*QUICK, "tfidf.min_df=2"]}, "recipe tfidf.min_df: was 1, now 2"),
        ({"overrides": [*QUICK, "sweep.sampler=random"]}, "recipe sweep.sampler: was 'tpe', now 'random'"),
        ({"holdout": 0.5}, "holdout: was 0.2, now 0.5"),
        ({"folds": [0]}, r"folds: was \[0, 1\], now \[0\]"),
        ({"only": ["tfidf.C"]}, "recipe sweep.space"),
    ],
)
def test_another_search_is_refused(searched, table, change, said):
    given = {"holdout": 0.2, "overrides": QUICK} | change
    with pytest.raises(RunError, match=said):
        sweep("tfidf-logreg", table, out=searched.path, trials=4, show=False, **given)


def test_other_rows_are_refused(searched, table):
    with pytest.raises(RunError, match="train_sha256"):
        sweep("tfidf-logreg", table[:-1], out=searched.path, trials=4, holdout=0.2, overrides=QUICK, show=False)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"trials": 0}, "--trials must be at least 1"),
        ({"workers": 0}, "--workers takes a number of processes from 1 on, or auto. Got 0"),
        ({"executor": "slurm"}, "--executor takes local, ray, or ray://HOST:PORT. Got 'slurm'"),
        ({"minutes": 0}, "--minutes above 0"),
        ({"holdout": 0.9}, "at most 0.5. Got 0.9"),
    ],
)
def test_numbers_that_mean_nothing(table, tmp_path, given, said):
    with pytest.raises(RecipeError, match=said):
        sweep("tfidf-logreg", table, out=tmp_path / "new", **given)
    assert not (tmp_path / "new").exists()


def test_a_folder_of_something_else_is_left_alone(table, tmp_path):
    (tmp_path / "thesis.docx").write_bytes(b"years of work")
    with pytest.raises(RunError, match=r"holds thesis\.docx and is no folder of a search"):
        sweep("tfidf-logreg", table, out=tmp_path, overrides=QUICK)


def test_without_optuna(table, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(RecipeError, match=r'pip install "optuna>=5\.0"'):
        sweep("tfidf-logreg", table, out=tmp_path / "new")


def command(table, place, *more):
    """A process of `lora-cls sweep` on a file."""
    file = place.parent / "train.csv"
    if not file.exists():
        table.to_csv(file, index=False)
    arguments = ["sweep", "tfidf-logreg", "--train", str(file), "--out", str(place), "--trials", "4", *more]
    arguments += [part for setting in QUICK for part in ("--set", setting)]
    code = f"import sys; sys.argv = ['lora-cls', *{arguments!r}]\nfrom lora_cls.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.05)


def processes_on(place):
    """Command lines that train a trial of this folder."""
    import psutil

    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if "lora_cls.commands.trial" in line and str(place) in line:
            found.append(line)
    return found


def test_killed_then_three_at_once(table, tmp_path):
    """kill -9 leaves no process behind; three workers started together go on, no trial twice, none lost."""
    place = tmp_path / "sweep"
    first = command(table, place)
    wait_for(lambda: any(place.glob("trials/0001/recipe.yaml")))
    first.send_signal(signal.SIGKILL)
    first.wait()
    wait_for(lambda: not processes_on(place), 15)
    interrupted = SweepFolder(place).trials
    assert interrupted[0].state == "complete"
    started = [command(table, place) for _ in range(3)]
    said = [process.communicate(timeout=240)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], said
    found = SweepFolder(place)
    assert [trial.state for trial in found.trials] == ["complete"] * 4
    assert found.trials[0] == interrupted[0], "a finished trial was trained again"
    assert len({json.dumps(trial.params, sort_keys=True) for trial in found.trials}) == 4
    trained = [line for text in said for line in text.splitlines() if " over 2 folds" in line]
    assert len(trained) == 3
    assert found.confirmation(found.best.number) is not None
    assert not list(place.glob("**/.*.alive")) + list(place.glob("**/*.tmp"))


def test_ctrl_c_sets_a_trial_aside(table, tmp_path):
    place = tmp_path / "sweep"
    process = command(table, place)
    wait_for(lambda: any(place.glob("trials/0000/recipe.yaml")))
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    if process.returncode == -signal.SIGINT or "Stopped." not in said:
        pytest.skip("SIGINT is ignored by processes in the background")
    assert process.returncode == 130
    assert "Traceback" not in said
    wait_for(lambda: not processes_on(place), 5)  # what a trial was about to start goes a moment after it
    assert not list(place.glob("**/.*.alive")), "another start would wait for it"


def test_a_torn_line_is_dropped(table, tmp_path, searched):
    """As a full disk leaves it: what is written behind it would otherwise be lost."""
    from lora_cls.search.optuna_files import drop_torn_line, open_study

    journal = tmp_path / "journal.log"
    whole = searched.files.journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 6, "worker')
    drop_torn_line(journal)
    assert journal.read_bytes() == whole
    assert len(open_study(journal).trials) == 4


def test_a_damaged_journal_is_one_sentence(tmp_path, searched):
    from lora_cls.search.optuna_files import open_study

    journal = tmp_path / "journal.log"
    journal.write_bytes(b"not json\n" + searched.files.journal.read_bytes())
    with pytest.raises(RunError, match="is damaged"):
        open_study(journal)


def test_a_lost_trial_fails_after_three_processes(table, tmp_path, monkeypatch):
    """A setting that takes its process down each time, and with it the worker, does not block the search."""
    place = tmp_path / "sweep"
    sweep("tfidf-logreg", table, out=place, trials=1, overrides=[*QUICK, "sweep.confirm=0"], show=False)
    folder = SweepFolder(place)
    study = module.open_study(folder.files.journal)
    setting = folder.trials[0].params | {"tfidf.C": 2.0}
    study.add_trial(
        optuna.create_trial(
            state=optuna.trial.TrialState.RUNNING, params=setting, user_attrs={"attempts": module.MOST_ATTEMPTS},
            distributions=module.distributions(folder.recipe, folder.settings),
        )
    )  # fmt: skip
    sweep("tfidf-logreg", table, out=place, trials=2, overrides=[*QUICK, "sweep.confirm=0"], show=False)
    assert folder.trials[1].state == "failed"
    assert folder.trials[1].reason == "its process was lost 3 times"


def test_time_that_is_over(table, tmp_path):
    """It ends with what is finished, and goes on later."""
    overrides = [*QUICK, "sweep.confirm=0"]
    started = time.monotonic()
    sweep("tfidf-logreg", table, out=tmp_path / "s", trials=50, minutes=0.1, overrides=overrides, show=False)
    assert time.monotonic() - started < 40
    assert len(SweepFolder(tmp_path / "s").trials) < 50


def test_a_trial_that_diverges_is_a_failed_one(tiny_recipe, emotion_table, tmp_path):
    """It says why, and the search goes on; losses are noted where there are any."""
    space = {"train.learning_rate": {"choices": [1e-3, 1e30]}}
    recipe = tiny_recipe("bert", sweep={"space": space, "confirm": 0}, engine__num_threads=1)
    found = sweep(recipe, emotion_table(45), out=tmp_path / "s", trials=2, folds=[0], show=False)
    good, bad = sorted(found.trials, key=lambda trial: trial.params["train.learning_rate"])
    assert good.state == "complete"
    assert [round(share, 1) for share, _ in good.losses][-1] == 1.0
    assert bad.state == "failed"
    assert "not a finite number (fold 0, epoch 1" in bad.reason
    assert found.best == good


def test_confirming_keeps_the_sample(table, tmp_path):
    """The rows that `cv.random_state` drew are searched on and confirmed on; only the folds are others."""
    overrides = [*QUICK, "data.max_rows=60"]
    found = sweep("tfidf-logreg", table, out=tmp_path / "s", trials=1, overrides=overrides, show=False)
    confirmed = found.confirmation(0)
    assert sorted(confirmed.folds["id"]) == sorted(found.run(0).folds["id"])
    assert len(confirmed.folds) == pytest.approx(60, abs=2)


def test_trials_are_a_group_for_trackers(searched):
    """Each by its number, the run on fresh folds beside it, all in one folder of trackers."""
    recipe = load_recipe(searched.recipe, {"tracking.to": ["tensorboard"]})
    folder = SweepFolder(searched.path)
    folder.__dict__["recipe"] = recipe
    names = [folder.trial_recipe(searched.best, fresh=fresh).tracking.name for fresh in (False, True)]
    assert names == [f"trial {searched.best.number}", f"trial {searched.best.number} on fresh folds"]
    tracking = folder.trial_recipe(searched.best).tracking
    assert tracking.group == "tfidf"
    assert tracking.folder == str(searched.path.absolute() / "tracking")


def test_a_silent_process_is_waited_for_a_minute(table, tmp_path):
    """One that may work on another machine keeps its trial; after `LOST_AFTER` seconds another goes on with it."""
    overrides = [*QUICK, "sweep.confirm=0"]
    place = tmp_path / "s"
    sweep("tfidf-logreg", table, out=place, trials=1, overrides=overrides, show=False)
    folder = SweepFolder(place)
    study = module.open_study(folder.files.journal)
    setting = folder.trials[0].params | {"tfidf.C": 2.0}
    study.add_trial(
        optuna.create_trial(
            state=optuna.trial.TrialState.RUNNING, params=setting, user_attrs={"attempts": 1},
            distributions=module.distributions(folder.recipe, folder.settings),
        )
    )  # fmt: skip
    alive = folder.files.alive(folder.files.run(1))
    alive.touch()
    searching = module.Search(folder, 2, None, module.LocalExecutor(1), module.Progress(0, show=False))
    assert searching._claim() == (None, False), "it may still work"
    os.utime(alive, (time.time() - module.LOST_AFTER - 1,) * 2)
    task, _ = searching._claim()
    assert task.trial.number == 1
    assert folder.trials[1].attempts == 2
    assert searching._claim() == (None, False), "taken"
