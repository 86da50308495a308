"""Tuning again from the saved logits: no model, no torch, and back to the same bytes."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from lora_cls.commands.tune import recipe_settings, tune
from lora_cls.errors import RunError
from lora_cls.evaluation import macro_f1
from lora_cls.recipe import Prediction, Thresholds
from lora_cls.runs import RunFolder, Scores

LABELS = ["joy", "anger", "fear"]


def thresholds(run):
    return json.loads((run.path / "thresholds.json").read_text())


def test_needs_no_torch(finished, copy_of):
    """`lora-cls tune` on a run of a transformer imports neither torch nor transformers, and prints the score."""
    run = copy_of(finished("llama"))
    code = (
        "import sys\nfrom lora_cls.cli import main\n"
        f"sys.argv = ['lora-cls', 'tune', {str(run.path)!r}, '--strategy', 'global']\n"
        "try:\n    main()\nexcept SystemExit as error:\n    assert not error.code\n"
        "assert not {'torch', 'transformers', 'peft', 'accelerate'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Macro-F1" in done.stdout
    assert thresholds(run)["settings"]["strategy"] == "global"


@pytest.mark.parametrize("kind", ["tfidf", "llama"])
def test_defaults_restore_the_bytes(finished, copy_of, results, kind):
    """After any other tuning, tuning with the recipe's own settings writes the first files again."""
    run = copy_of(finished(kind))
    tune(run, Thresholds(strategy="fixed", default=0.3), Prediction(combine="vote", at_least_one=True))
    assert results(run) != results(finished(kind))
    scores = tune(run)
    assert results(run) == results(finished(kind))
    assert scores == Scores.read(run.path / "metrics.json")


def test_strategies(finished, copy_of):
    """per_label gives each label its threshold, global one for all, fixed the default."""
    run = copy_of(finished("tfidf"))
    shipped = {}
    for strategy in ("per_label", "global", "fixed"):
        tune(run, Thresholds(strategy=strategy, default=0.4, min_positives=1))
        shipped[strategy] = thresholds(run)["shipped"]
    assert len(set(shipped["per_label"].values())) == 3
    assert len(set(shipped["global"].values())) == 1
    assert set(shipped["fixed"].values()) == {0.4}


@pytest.mark.parametrize("strategy", ["expected_f1", "auto"])
def test_expected_f1_on_the_command_line(finished, copy_of, test, tmp_path, monkeypatch, capsys, strategy):
    """`tune --strategy` says so in every file, and `predict` decides by the one number per label that it wrote."""
    from lora_cls import cli
    from lora_cls.commands.predict import predict_file

    run = copy_of(finished("tfidf"))
    before = thresholds(run)["shipped"]
    monkeypatch.setattr(sys, "argv", ["lora-cls", "tune", str(run.path), "--strategy", strategy])
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert not done.value.code
    assert "on the other folds for expected F1" in " ".join(capsys.readouterr().out.split())
    written = thresholds(run)
    assert written["settings"]["strategy"] == strategy and set(written["folds"]) == {"0", "1", "2"}
    assert all(0 < cut < 1 for cut in written["shipped"].values())
    assert strategy == "auto" or written["shipped"] != before  # whose cuts may fall between the same two rows
    results = RunFolder(run.path).results()
    decided = results.oof.decide(run.task(results.decision), results.decision)
    assert macro_f1(results.oof.y_true, decided) == results.scores.cross_fitted.macro_f1
    assert "for expected F1" in (run.path / "README.md").read_text()
    predict_file(run, test, tmp_path / "all", sample_submission=run.sample_submission)
    assert (tmp_path / "all" / "submission.csv").read_bytes() == (run.path / "submission.csv").read_bytes()
    predict_file(run, test.iloc[:1], tmp_path / "one")  # alone as among others
    one, every = (pd.read_csv(tmp_path / name / "submission.csv") for name in ("one", "all"))
    assert one[LABELS].iloc[0].tolist() == every.set_index("id").loc[one["id"].iloc[0], LABELS].tolist()


def test_min_positives(finished, copy_of, train):
    """A label with too few positives keeps the default; the others are tuned."""
    run = copy_of(finished("tfidf"))
    counts = train[LABELS].sum()
    assert counts.min() < counts.max()
    tune(run, Thresholds(min_positives=int(counts.min()) + 1, default=0.123))
    shipped = thresholds(run)["shipped"]
    assert shipped[counts.idxmin()] == 0.123
    assert shipped[counts.idxmax()] != 0.123


@pytest.mark.parametrize("combine", ["mean_proba", "mean_logit", "vote"])
def test_combine(finished, copy_of, combine):
    """Every way of combining folds gives a submission that follows from its own test_proba.csv."""
    run = copy_of(finished("tfidf"))
    before = (run.path / "oof_proba.csv").read_bytes()
    tune(run, prediction=Prediction(combine=combine))
    scores = pd.read_csv(run.path / "test_proba.csv").set_index("id")
    submission = pd.read_csv(run.path / "submission.csv").set_index("id").loc[scores.index]
    shipped = thresholds(run)["shipped"]
    for name in LABELS:
        cut = 0.5 if combine == "vote" else shipped[name]
        assert (submission[name] == (scores[name] >= cut)).all()
    if combine == "vote":
        assert set(np.round(scores.to_numpy().ravel() * 3, 9)) <= {0, 1, 2, 3}
    assert (run.path / "oof_proba.csv").read_bytes() == before


def test_settings_given_and_kept(finished):
    """What is given replaces the recipe's setting; the rest stays the recipe's."""
    new, prediction = recipe_settings(finished("tfidf").recipe, strategy="global", at_least_one=False, default=None)
    assert new == Thresholds(strategy="global", min_positives=2)
    assert prediction == Prediction()


def test_no_fold_yet(finished, copy_of):
    """A run without a finished fold has nothing to tune and says how to go on."""
    run = copy_of(finished("tfidf"))
    for number in run.fold_numbers:
        run.fold(number).info_file.unlink()
    with pytest.raises(RunError, match=r"no fold is finished yet\. Continue the run with --resume"):
        tune(run)


def test_prediction_remembers_the_tuning(finished, copy_of, test, tmp_path):
    """`predict` decides as the last `tune` did, so that two submissions of one run agree."""
    from lora_cls.commands.predict import predict_file

    run = copy_of(finished("tfidf"))
    tune(run, prediction=Prediction(combine="vote", at_least_one=True))
    predict_file(run, test, tmp_path / "new", sample_submission=run.sample_submission)
    for name in ("test_proba.csv", "submission.csv"):
        assert (tmp_path / "new" / name).read_bytes() == (run.path / name).read_bytes()
