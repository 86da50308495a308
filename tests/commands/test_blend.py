"""Blends: hand-computed values, no label that leaks into its own score, and a run folder like any other."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit

from lora_cls.commands.blend import blend
from lora_cls.commands.compare import compare
from lora_cls.commands.tune import tune
from lora_cls.errors import RecipeError, RunError
from lora_cls.evaluation import apply_blend, fit_blend, task_of
from lora_cls.evaluation.blending import MAX_WEIGHT_ROWS
from lora_cls.evaluation.metric import Metric
from lora_cls.evaluation.tasks import LabelTask
from lora_cls.recipe import Thresholds
from lora_cls.report.sentences import gain_sentence
from lora_cls.runs.records import BlendInfo

LABELS = task_of("multi_label", Thresholds(min_positives=1))
CLASSES = task_of("single_label", Thresholds(min_positives=1))
TWO = np.array([[[0.2, 0.9]], [[0.8, 0.9]]])  # two runs, one row, two labels


def test_means_by_hand():
    """Means of probabilities and of log-odds; of classes, of log-probabilities."""
    np.testing.assert_allclose(apply_blend("mean_proba", LABELS, {}, TWO), [[0.5, 0.9]])
    np.testing.assert_allclose(apply_blend("mean_logit", LABELS, {}, TWO), [[0.5, 0.9]])
    uneven = np.array([[[0.1]], [[0.5]]])  # odds 1/9 and 1: their geometric mean is 1/3
    np.testing.assert_allclose(apply_blend("mean_logit", LABELS, {}, uneven), [[0.25]])
    weighted = apply_blend("weights", LABELS, {"weights": [1.0, 0.0]}, uneven)
    np.testing.assert_allclose(weighted, [[0.1]])
    classes = np.array([[[0.8, 0.2]], [[0.5, 0.5]]])  # square roots of 0.4 and 0.1: 2 to 1
    np.testing.assert_allclose(apply_blend("mean_logit", CLASSES, {}, classes), [[2 / 3, 1 / 3]])


def test_ranks_by_hand():
    """Ranks among the reference, ties in the middle; a row alone is ranked as among others, on any scale."""
    reference = np.array([[[0.1], [0.2], [0.2], [0.9]]])
    ranks = apply_blend("rank_mean", LABELS, {}, reference, reference)
    np.testing.assert_allclose(ranks[:, 0], np.array([1.0, 2.5, 2.5, 4.0]) / 5)  # middle + 1/2, of n + 1
    alone = apply_blend("rank_mean", LABELS, {}, np.array([[[0.2]]]), reference)
    assert alone[0, 0] == ranks[1, 0]
    beyond = apply_blend("rank_mean", LABELS, {}, np.array([[[0.0], [1.0]]]), reference)
    assert 0 < beyond[0, 0] < ranks[0, 0]
    assert ranks[3, 0] < beyond[1, 0] < 1
    np.testing.assert_array_equal(apply_blend("rank_mean", LABELS, {}, reference**3, reference**3), ranks)


def test_weights_find_the_useful_run(problem):
    """A run of noise beside a good one gets next to no weight, and no blend falls below the best single run."""
    y_true, _, logits = problem(400)
    scores = expit(np.array([logits(0.7), np.random.default_rng(5).normal(scale=3, size=y_true.shape)]))
    weights = fit_blend("weights", LABELS, y_true, scores)["weights"]
    assert sum(weights) == pytest.approx(1)
    assert min(weights) >= 0
    assert weights[0] > 0.8


def test_stacking_by_hand():
    """The coefficients are scikit-learn's, moved back from standardised features."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 60, 1)) * [[[3.0]], [[0.5]]] + 1
    y_true = (values.sum(axis=0) + rng.normal(size=(60, 1)) > 1).astype(int)
    scores = expit(values)
    fitted = fit_blend("stacking", LABELS, y_true, scores)
    features = (values[:, :, 0].T - values[:, :, 0].mean(axis=1)) / values[:, :, 0].std(axis=1)
    expected = LogisticRegression(max_iter=1000).fit(features, y_true[:, 0]).predict_proba(features)[:, 1]
    np.testing.assert_allclose(apply_blend("stacking", LABELS, fitted, scores)[:, 0], expected, rtol=1e-6)


def test_stacking_without_positives():
    """A label that never occurs in the rows that fit is improbable, not an error."""
    scores = np.random.default_rng(0).random((2, 10, 2))
    y_true = np.zeros((10, 2), int)
    y_true[:5, 1] = 1
    proba = apply_blend("stacking", LABELS, fit_blend("stacking", LABELS, y_true, scores), scores)
    assert (proba[:, 0] < 0.06).all()
    for present in ([1, 2], [2]):
        scores = CLASSES.link.probabilities(np.random.default_rng(0).normal(size=(2, 10, 3)))
        y_true = np.eye(3, dtype=int)[np.resize(present, 10)]
        classes = apply_blend("stacking", CLASSES, fit_blend("stacking", CLASSES, y_true, scores), scores)
        np.testing.assert_allclose(classes.sum(axis=1), 1)
        assert (classes[:, 0] < 0.1).all()


@pytest.fixture
def three(make_run, problem):
    """Two runs whose errors are independent, and one of pure noise; with test rows."""
    y_true, fold, logits = problem(600)
    rng = np.random.default_rng(9)
    test = rng.normal(size=(3, 3, 8, 2))
    good = [make_run(f"good{i}", logits(1.2), y_true, fold, test=test[i]) for i in range(2)]
    return [*good, make_run("noise", rng.normal(size=y_true.shape), y_true, fold, test=test[2])]


def test_blend_is_a_run_folder(three, tmp_path):
    """Its folder holds what every run's does; tuning again changes no byte; its files follow from each other."""
    run = blend([one.path for one in three[:2]], tmp_path / "blend")
    files = ("metrics.json", "thresholds.json", "oof_proba.csv", "test_proba.csv", "submission.csv")
    before = [(run.path / name).read_bytes() for name in files]
    tune(run)
    assert [(run.path / name).read_bytes() for name in files] == before
    told, metrics = (json.loads((run.path / f"{name}.json").read_text()) for name in ("blend", "metrics"))
    way = next(way for way in told["ways"] if way["how"] == "mean_logit")
    assert way["macro_f1_interval"] == metrics["cross_fitted"]["macro_f1_interval"]
    assert way["gain_over_best"]["low"] > 0
    assert "WARNING" not in gain_sentence(BlendInfo.read(run.files.blend))
    proba = pd.read_csv(run.path / "oof_proba.csv").set_index("id")
    members = [pd.read_csv(one.path / "oof_proba.csv").set_index("id") for one in three[:2]]
    expected = expit(sum(logit(member) for member in members) / 2)
    np.testing.assert_allclose(proba, expected, atol=1e-6)
    test = pd.read_csv(run.path / "test_proba.csv").set_index("id")
    expected = expit(np.mean([one.test_logits() for one in three[:2]], axis=(0, 1)))
    np.testing.assert_allclose(test, expected, atol=1e-6)
    cuts = json.loads((run.path / "thresholds.json").read_text())["shipped"]
    submission = pd.read_csv(run.path / "submission.csv").set_index("id")
    assert ((test >= pd.Series(cuts)).astype(int) == submission).all().all()
    assert run.recipe.blend.runs == ["../good0", "../good1"]
    found = compare([run.path, *(one.path for one in three)])
    assert found.runs[0].name == "blend"
    assert found.runs[0].recipe == "blend of 2, mean_logit"
    assert found.runs[0].cost["train_minutes"] == pytest.approx(3.0)  # two runs of three folds of half a minute


@pytest.mark.parametrize("how", ["mean_proba", "mean_logit", "rank_mean", "weights", "stacking"])
def test_ways_are_written_as_scored(three, tmp_path, how):
    """What `blend.json` says of a way is what the run folder of that way scores."""
    run = blend([one.path for one in three], tmp_path / "blend", how)
    told, metrics = (json.loads((run.path / f"{name}.json").read_text()) for name in ("blend", "metrics"))
    way = next(way for way in told["ways"] if way["how"] == how)
    assert way["macro_f1_interval"] == metrics["cross_fitted"]["macro_f1_interval"]


def test_noise_adds_nothing_and_is_marked(three, tmp_path):
    """A run of noise is named as adding nothing, and a good run beside only noise gains nothing from blending."""
    run = blend([one.path for one in three], tmp_path / "all", "weights")
    adds = {one["name"]: one["adds"] for one in json.loads((run.path / "blend.json").read_text())["runs"]}
    assert adds["noise"]["low"] <= 0
    assert adds["good0"]["low"] > 0
    for how in ("mean_logit", "weights", "stacking"):
        pair = blend([three[0].path, three[2].path], tmp_path / how, how)
        told = BlendInfo.read(pair.files.blend)
        assert told.best_single == "good0"
        assert "WARNING" in gain_sentence(told)


@pytest.mark.parametrize("how", ["weights", "stacking"])
def test_no_label_leaks(make_run, tmp_path, how):
    """Many runs of noise, fitted to labels of noise: a score that had seen its own labels would rise above each run's.

    In sample, stacking on 12 such runs finds much; cross-fitted it must not beat the best of them.
    """
    rng = np.random.default_rng(3)
    y_true, fold = (rng.random((120, 2)) < 0.5).astype(int), np.arange(120) % 3
    runs = [make_run(f"n{i}", rng.normal(size=(120, 2)), y_true, fold) for i in range(6)]
    run = blend([one.path for one in runs], tmp_path / "blend", how)
    told = json.loads((run.path / "blend.json").read_text())
    way = next(way for way in told["ways"] if way["how"] == how)
    assert way["gain_over_best"]["low"] <= 0


def test_a_fold_never_sees_its_own_labels(three, tmp_path, make_run):
    """Turning round the labels of one fold leaves what is fitted for it, and the scores of its rows, as they are."""
    first = blend([one.path for one in three], tmp_path / "before", "stacking")
    y_true, fold = three[0].y_true.copy(), three[0].folds["fold"].to_numpy()
    y_true[fold == 1] = 1 - y_true[fold == 1]
    turned = [make_run(f"turned/{one.path.name}", one.out_of_fold().logits, y_true, fold) for one in three]
    second = blend([one.path for one in turned], tmp_path / "after", "stacking")
    assert first.fold(1).oof_logits.read_bytes() == second.fold(1).oof_logits.read_bytes()
    assert first.fold(0).oof_logits.read_bytes() != second.fold(0).oof_logits.read_bytes()
    # nor do its thresholds, though the others' blended scores are of fits that saw this fold
    before, after = (json.loads((run.path / "thresholds.json").read_text())["folds"] for run in (first, second))
    assert before["1"] == after["1"]
    assert before["0"] != after["0"]


@pytest.mark.parametrize("how", ["mean_logit", "stacking"])
def test_single_fold(make_run, problem, tmp_path, how):
    """Runs of one held-out fold: blended and scored across its parts, and test rows by what all of it fits."""
    y_true, fold, logits = problem(900)
    fold = np.where(fold == 0, 0, -1)
    runs = [make_run(f"run{i}", logits(1.5), y_true, fold, test=np.ones((1, 4, 2)) * i) for i in (1, 2)]
    run = blend([one.path for one in runs], tmp_path / "blend", how)
    told, metrics = (json.loads((run.path / f"{name}.json").read_text()) for name in ("blend", "metrics"))
    way = next(way for way in told["ways"] if way["how"] == how)
    assert metrics["cross_fitted"]["over"] == "parts"
    assert way["macro_f1_interval"] == metrics["cross_fitted"]["macro_f1_interval"]
    assert way["gain_over_best"]["estimate"] > 0
    assert len(pd.read_csv(run.path / "submission.csv")) == 4
    assert compare([run.path, *(one.path for one in runs)]).runs[0].name == "blend"


def test_weights_of_many_rows_are_bounded():
    """What tuning weights takes is bounded, however many rows there are."""
    rng = np.random.default_rng(0)
    y_true = (rng.random((3 * MAX_WEIGHT_ROWS, 3)) < 0.2).astype(int)
    y_score = expit(3 * y_true - 2 + rng.normal(scale=[[[1]], [[2]], [[9]]], size=(3, *y_true.shape)))
    tried = []

    class Counted(LabelTask):
        def tune(self, y_true, y_score):
            tried.append(len(y_true))
            return super().tune(y_true, y_score)

    weights = fit_blend("weights", Counted("multi_label", Thresholds(), Metric()), y_true, y_score)["weights"]
    assert weights[0] > weights[1] > weights[2]
    assert set(tried) == {MAX_WEIGHT_ROWS}
    assert len(tried) <= 60 + 10


def test_other_test_rows(make_run, problem, tmp_path):
    """Runs that answered for other test rows cannot be blended; another order of them is no difference."""
    y_true, fold, logits = problem(60)
    test = np.random.default_rng(0).normal(size=(3, 4, 2))
    first = make_run("first", logits(1), y_true, fold, test=test)
    none = make_run("none", logits(1), y_true, fold)
    other = make_run("other", logits(1), y_true, fold, test=test, test_ids=["t0", "t1", "t2", "x"])
    turned = make_run("turned", logits(1), y_true, fold, test=test[:, ::-1], test_ids=["t3", "t2", "t1", "t0"])
    with pytest.raises(RunError) as error:
        blend([first.path, none.path, other.path], tmp_path / "new")
    assert "none: no test rows were predicted" in str(error.value)
    assert "other: 1 test rows are not in" in str(error.value)
    assert "ids t3" in str(error.value)
    run = blend([first.path, turned.path], tmp_path / "new")
    np.testing.assert_allclose(run.test_logits(), test, atol=1e-5)


def test_refusals(three, tmp_path):
    """An existing folder, and commands that have nothing to train."""
    from lora_cls.commands.cross_validation import cross_validate
    from lora_cls.commands.refit import refit

    paths = [one.path for one in three[:2]]
    with pytest.raises(RunError, match="exists already"):
        blend(paths, paths[0])
    run = blend(paths, tmp_path / "blend")
    for attempt in (lambda: refit(run), lambda: cross_validate(run.files.recipe, out=run.path, resume=True)):
        with pytest.raises(RecipeError, match="nothing to train"):
            attempt()


def test_optimistic_members(make_run, problem, tmp_path):
    """A blend with an optimistic run is optimistic."""
    y_true, fold, logits = problem(60)
    first = make_run("first", logits(1), y_true, fold)
    second = make_run("second", logits(1), y_true, fold, recipe={"train": {"select": "scored_fold"}})
    run = blend([first.path, second.path], tmp_path / "blend")
    assert json.loads((run.path / "metrics.json").read_text())["optimistic"]


def test_classes(make_run, tmp_path):
    """single_label: every way but ranks, each row one class, and probabilities that sum to 1."""
    rng = np.random.default_rng(0)
    y_true = np.eye(3, dtype=int)[rng.choice(3, size=300, p=(0.6, 0.3, 0.1))]
    fold, names = np.arange(300) % 3, ("a", "b", "c")
    recipe = {"task": "single_label"}
    runs = [
        make_run(
            f"run{i}", 2 * y_true + rng.normal(scale=1.2, size=y_true.shape), y_true, fold, names=names, recipe=recipe,
            test=rng.normal(size=(3, 5, 3)),
        )
        for i in range(2)
    ]  # fmt: skip
    paths = [run.path for run in runs]
    with pytest.raises(RecipeError, match="rank_mean ranks rows label by label"):
        blend(paths, tmp_path / "ranks", "rank_mean")
    assert not (tmp_path / "ranks").exists()
    for how in ("mean_proba", "mean_logit", "weights", "stacking"):
        run = blend(paths, tmp_path / how, how)
        told, metrics = (json.loads((run.path / f"{name}.json").read_text()) for name in ("blend", "metrics"))
        assert [way["how"] for way in told["ways"]] == ["mean_proba", "mean_logit", "weights", "stacking"]
        way = next(way for way in told["ways"] if way["how"] == how)
        assert way["macro_f1_interval"] == metrics["cross_fitted"]["macro_f1_interval"]
        assert way["gain_over_best"]["estimate"] > 0
        for name in ("oof_proba", "test_proba"):
            table = pd.read_csv(run.path / f"{name}.csv").set_index("id")
            np.testing.assert_allclose(table.sum(axis=1), 1)
        assert (pd.read_csv(run.path / "submission.csv")[list(names)].sum(axis=1) == 1).all()
