"""Folders of searches, made through Optuna without training anything but one tiny run of the classical baseline."""

import shutil
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pytest

SPACE = {
    "train.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
    "train.num_train_epochs": {"low": 1, "high": 6},
    "train.per_device_train_batch_size": {"choices": [8, 16, 32]},
    "lora.target_modules": {"choices": ["all-linear", "attention"]},
}
START = datetime(2026, 11, 25, 9, 0, 0)


@pytest.fixture(scope="session")
def small_run(tmp_path_factory, emotion_table):
    """A finished run of TF-IDF: three folds, the labels joy, anger, fear."""
    from lora_cls.commands.cross_validation import cross_validate

    recipe = {"tfidf": {"min_df": 1}, "cv": {"n_splits": 3}, "thresholds": {"min_positives": 2}}
    return cross_validate(recipe, emotion_table(45), out=tmp_path_factory.mktemp("small") / "run")


@pytest.fixture(scope="session")
def make_search(small_run):
    """Factory `make_search(path, trials, space=SPACE, label_names=..., **settings)` of a SweepFolder.

    `optuna_space` is the space as Optuna's files hold it, where lists are choices. A trial is a dict: `state`
    (complete, stopped, failed, running), `params`, `score`, `folds`, `fresh`, `f1` (a number per label), and what else
    `Trial` has. Complete trials have a `metrics.json` of these F1; with `f1=None` they have no run folder.
    `fresh=True` makes `small_run` the run on fresh folds.
    """
    from lora_cls.files import make_folder, write_bytes, write_csv
    from lora_cls.recipe import Range, load_recipe
    from lora_cls.runs.folder import recipe_bytes
    from lora_cls.runs.records import Scores
    from lora_cls.search.folder import SweepFiles, SweepFolder, SweepInfo
    from lora_cls.search.optuna_files import load_optuna, open_study

    scores = Scores.read(small_run.files.scores)

    def write_scores(file, names, f1, macro_f1):
        row = scores.cross_fitted.per_label[0]
        rows = [row.model_copy(update={"label": name, "f1": v}) for name, v in zip(names, f1, strict=True)]
        cross_fitted = scores.cross_fitted.model_copy(update={"per_label": rows, "macro_f1": macro_f1})
        scores.model_copy(update={"cross_fitted": cross_fitted}).write(file)

    def distribution(found, given):
        given = Range(**given)
        if given.choices is not None:
            return found.CategoricalDistribution(given.choices)
        if given.low == int(given.low) and given.high == int(given.high):
            return found.IntDistribution(int(given.low), int(given.high), log=given.log)
        return found.FloatDistribution(given.low, given.high, log=given.log)

    def make(
        path,
        trials,
        space=SPACE,
        label_names=("joy", "anger", "fear"),
        recipe="minilm-l6",
        optuna_space=None,
        **settings,
    ):
        optuna, files = load_optuna(), SweepFiles(path)
        make_folder(path)
        base = load_recipe("minilm-l6", {"sweep": {"space": space} | settings})
        write_bytes(files.base, recipe_bytes(base))
        SweepInfo(
            started="2026-11-25T09:00:00", versions={"lora_cls": "0.1.0", "optuna": optuna.__version__},
            recipe_name=recipe, paths={"train": "train.csv"}, columns={}, label_names=list(label_names),
            folds=[0, 1, 2], n_splits=10, rows=2768, train_sha256="0" * 64,
        ).write(files.info)  # fmt: skip
        write_csv(files.folds, pd.DataFrame({"id": ["a"], "fold": [0], "group": [0]}))
        direction = "minimize" if settings.get("objective") == "loss" else "maximize"
        study = open_study(files.journal, direction=direction)
        distributions = {
            name: distribution(optuna.distributions, given) for name, given in (optuna_space or space).items()
        }
        states = {"complete": "COMPLETE", "stopped": "PRUNED", "failed": "FAIL", "running": "RUNNING"}
        for number, trial in enumerate(trials):
            trial = {"state": "complete", "score": None, "folds": {}, "started": number, "minutes": 1.5} | trial
            state, keys = trial["state"], ("reason", "rows_trained", "rows_planned", "attempts", "losses")
            said = {key: trial[key] for key in keys if key in trial} | {"fold_scores": trial["folds"]}
            frozen = optuna.trial.create_trial(
                state=optuna.trial.TrialState[states[state]], params=trial.get("params", {}),
                distributions={name: distributions[name] for name in trial.get("params", {})},
                value=trial["score"] if state == "complete" else None, user_attrs=said,
            )  # fmt: skip
            frozen.datetime_start = START + timedelta(minutes=trial["started"])
            if state != "running":
                frozen.datetime_complete = frozen.datetime_start + timedelta(minutes=trial["minutes"])
            study.add_trial(frozen)
            if state == "complete" and trial.get("f1") is not None:
                make_folder(files.run(number))
                write_scores(files.run(number) / "metrics.json", label_names, trial["f1"], trial["score"])
            if trial.get("fresh"):
                shutil.copytree(small_run.path, files.confirmation(number))
        return SweepFolder(path)

    return make


@pytest.fixture(scope="session")
def some_trials(small_run):
    """Function `some_trials(n, n_labels)`: trials that look like a search's; every fourth is stopped early, trial 5
    failed, the best two are confirmed, the best of them scored 0.02 more than there."""
    top = small_run.scores.cross_fitted.macro_f1 + 0.02

    def make(n=24, n_labels=3, seed=0):
        rng, trials = np.random.default_rng(seed), []
        for i in range(n):
            rate, epochs = 10 ** rng.uniform(-5, -3), int(rng.integers(1, 7))
            batch, target = int(rng.choice([8, 16, 32])), str(rng.choice(["all-linear", "attention"]))
            good = 0.7 - 0.12 * abs(np.log10(rate) + 3.8) - 0.03 * abs(epochs - 4) + 0.02 * (target == "all-linear")
            good += rng.normal(0, 0.008)
            params = dict(zip(SPACE, (rate, epochs, batch, target), strict=True))
            folds = {fold: float(good + rng.normal(0, 0.01)) for fold in range(3)}
            planned = epochs * 3 * 1845
            trial = {"params": params, "attempts": 1, "rows_planned": planned, "rows_trained": planned}
            trial |= {"score": float(good), "folds": folds, "minutes": 0.4 + 0.3 * epochs}
            trial["f1"] = np.clip(good + rng.normal(0, 0.03, n_labels) - np.linspace(0, 0.3, n_labels), 0, 1).tolist()
            if i % 4 == 3:
                reason = f"its mean {good:.4f} over 1 fold lies below the worst fold of the best trial"
                trial |= {"state": "stopped", "folds": {0: folds[0]}, "rows_trained": planned // 3, "reason": reason}
                trial["minutes"] /= 3
            if i == 5:
                trial |= {"state": "failed", "folds": {}, "rows_trained": 100, "reason": "The loss is nan."}
            trials.append(trial)
        done = sorted((trial for trial in trials if "state" not in trial), key=lambda trial: -trial["score"])
        more = top - done[0]["score"] if done else 0.0
        for trial in trials:
            trial["score"] += more
            trial["folds"] = {fold: score + more for fold, score in trial["folds"].items()}
        for trial in done[:2]:
            trial["fresh"] = True
        return trials

    return make
