"""The metric of a recipe: thresholds, scores and sentences follow it, and runs of before are read as macro-F1."""

import json
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import yaml

from lora_cls.choices import MetricName, ScoreMetric
from lora_cls.commands.blend import blend
from lora_cls.commands.compare import compare
from lora_cls.commands.tune import tune
from lora_cls.data import write_submission
from lora_cls.errors import RecipeError
from lora_cls.evaluation import Metric
from lora_cls.recipe import Prediction, Thresholds, load_recipe
from lora_cls.report.comparison import markdown
from lora_cls.report.content import page_content
from lora_cls.report.sentences import blend_ways, score_sentence
from lora_cls.runs import RunFolder
from lora_cls.runs.records import BlendInfo
from lora_cls.runs.sums import of_values

BETA = {"f_beta": 2.0}


@pytest.fixture
def run(make_run, problem):
    y_true, fold, logits = problem(90)
    return make_run("run", logits(1) - 1, y_true, fold)


@pytest.mark.parametrize("name", get_args(MetricName))
def test_scores_and_thresholds_follow_the_metric(run, name):
    """Name, value and interval stand in metrics.json, beside all that stood there before."""
    plain = run.results()
    scores = tune(run, metric=name, metric_beta=BETA.get(name))
    found, oof = run.results(), run.out_of_fold()
    decided = oof.decide(run.task(found.decision), found.decision)
    metric = Metric(name, BETA.get(name))
    assert scores.of == metric
    assert scores.cross_fitted.metric == pytest.approx(metric.score(oof.y_true, decided, oof.y_score))
    interval = scores.cross_fitted.metric_interval
    assert interval.low <= interval.estimate == scores.cross_fitted.metric <= interval.high
    written = json.loads((run.path / "metrics.json").read_text())
    assert written["metric"] == name and written.get("metric_beta") == BETA.get(name)
    assert written["cross_fitted"]["metric"] == scores.cross_fitted.metric
    assert {"macro_f1", "micro_f1", "exact_match", "macro_roc_auc", "macro_f1_interval"} <= set(written["untuned"])
    assert json.loads((run.path / "thresholds.json").read_text())["metric"] == name
    sentence = score_sentence(scores)
    assert sentence.startswith(run.task(found.decision).metric_name)
    assert f"{scores.cross_fitted.metric:.4f}" in sentence and f"{scores.cross_fitted.macro_f1:.4f}" in sentence
    if name in get_args(ScoreMetric):
        assert found.decision.shipped == plain.decision.shipped
        assert scores.tuning_gain == plain.scores.tuning_gain
    else:
        gain = scores.cross_fitted.metric - scores.untuned.metric
        assert scores.tuning_gain.estimate == pytest.approx(gain)


def test_files_of_before_are_read_as_macro_f1(run):
    """`thresholds.objective` stood in recipe.yaml and thresholds.json; metrics.json had no metric."""
    before = run.results()
    values = yaml.safe_load((run.path / "recipe.yaml").read_text())
    del values["metric"], values["metric_beta"]
    values["thresholds"]["objective"] = "macro_f1"
    (run.path / "recipe.yaml").write_text(yaml.safe_dump(values))
    decision_sha256 = None
    for name in ("thresholds.json", "metrics.json"):
        file = run.path / name
        values = json.loads(file.read_text())
        del values["metric"], values["sha256"]
        if "settings" in values:
            values["settings"]["objective"] = "macro_f1"
        else:
            values["decision_sha256"] = decision_sha256
            for part in ("cross_fitted", "untuned"):
                del values[part]["metric"], values[part]["metric_interval"]
        decision_sha256 = of_values(values)
        file.write_text(json.dumps(values | {"sha256": decision_sha256}))
    old = RunFolder(run.path)
    assert old.recipe == run.recipe
    assert old.results().decision.shipped == before.decision.shipped
    assert score_sentence(old.results().scores) == score_sentence(before.scores)
    assert tune(old).cross_fitted == before.scores.cross_fitted


def test_an_undefined_metric_is_said_to_be_so(make_run):
    """No label has positives and negatives among the rows so far: nothing is made up."""
    y_true, fold = np.ones((12, 1), int), np.arange(12) % 3
    run = make_run("one-sided", np.linspace(-1, 1, 12)[:, None].astype(np.float32), y_true, fold, names=["joy"])
    scores = tune(run, metric="roc_auc")
    assert scores.cross_fitted.metric is None and scores.cross_fitted.metric_interval is None
    assert "Macro ROC-AUC is undefined" in score_sentence(scores)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"metric": "f_beta"}, "metric: f_beta needs metric_beta"),
        ({"metric_beta": 2}, "metric_beta: metric: macro_f1 has none"),
        ({"metric": "samples_jaccard", "task": "single_label"}, "take metric: accuracy"),
        ({"metric": "micro_f1", "thresholds": {"strategy": "auto"}}, "thresholds.strategy: auto looks for"),
        ({"metric": "micro_f1", "task": "single_label"}, "take metric: accuracy"),
        ({"metric": "micro_f1", "task": "binary"}, "task: binary takes macro_f1"),
        ({"metric": "f1"}, "metric: Input should be 'macro_f1'"),
        ({"thresholds": {"objective": "accuracy"}}, "metric: accuracy, beside thresholds"),
    ],
)
def test_what_has_no_meaning_is_refused(values, said):
    """By the recipe, before anything is read."""
    with pytest.raises(RecipeError, match=said):
        load_recipe({"tfidf": {}} | values)


def test_tune_refuses_a_metric_that_does_not_fit(run):
    with pytest.raises(RecipeError, match="f_beta needs metric_beta"):
        tune(run, metric="f_beta")
    with pytest.raises(RecipeError, match="strategy: auto looks for"):
        tune(run, Thresholds(strategy="auto"), metric="mcc")


def test_recipes_of_before_are_read():
    """Also with the field that nothing read."""
    old = load_recipe({"tfidf": {}, "thresholds": {"objective": "macro_f1", "strategy": "global"}})
    assert old == load_recipe({"tfidf": {}, "thresholds": {"strategy": "global"}})
    assert "objective" not in old.to_dict()["thresholds"]


@pytest.mark.parametrize(
    ("sample", "probabilities"),
    [(None, True), ([0, 0, 0, 0], True), ([1, 0, 0, 1], False), (["no", "no", "no", "no"], False), ([0.5] * 4, True)],
)
def test_a_submission_of_a_metric_of_ranks_holds_probabilities(make_run, problem, tmp_path, sample, probabilities):
    """Unless the sample holds decisions; one whose cells are all 0 says nothing."""
    y_true, fold, logits = problem(60)
    test = np.random.default_rng(0).normal(size=(3, 2, 2))
    run = make_run("with-test", logits(1), y_true, fold, test=test)
    before = (run.path / "submission.csv").read_text()
    if sample is not None:
        table = pd.DataFrame({"id": ["t1", "t0"], "joy": sample[:2], "anger": sample[2:]})
        table.to_csv(run.path / "sample_submission.csv", index=False)
        run = RunFolder(run.path)
    tune(run, metric="roc_auc")
    written = pd.read_csv(run.path / "submission.csv").set_index("id").loc[["t0", "t1"], ["anger", "joy"]]
    proba = pd.read_csv(run.path / "test_proba.csv").set_index("id")
    assert np.array_equal(written.to_numpy(), proba.to_numpy()) == probabilities
    tune(run, metric="macro_f1")
    assert sample is not None or (run.path / "submission.csv").read_text() == before


def test_votes_are_no_probabilities(run):
    with pytest.raises(RecipeError, match="vote counts decisions"):
        load_recipe({"tfidf": {}, "metric": "roc_auc", "prediction": {"combine": "vote"}})
    with pytest.raises(RecipeError, match="vote counts decisions"):
        tune(run, prediction=Prediction(combine="vote"), metric="log_loss")


def test_one_column_of_names_becomes_a_column_of_probabilities_per_class(tmp_path):
    """Where no sample says otherwise."""
    path = write_submission(
        tmp_path / "s.csv", ["a"], np.array([[0, 1]]), ["x", "y"], label_column="class",
        y_score=np.array([[0.25, 0.75]]), probabilities=True,
    )  # fmt: skip
    assert path.read_text() == "id,x,y\na,0.25,0.75\n"


def test_a_blend_follows_the_metric_of_its_first_run(make_run, problem, tmp_path):
    """Ways, gains and the best run are told in it; of log loss a gain is less."""
    y_true, fold, logits = problem(60)
    runs = [make_run(name, logits(seed), y_true, fold) for name, seed in (("a", 1), ("b", 2))]
    for run in runs:
        tune(run, metric="log_loss")
    blended = blend(runs, tmp_path / "both", how="weights")
    about = BlendInfo.read(blended.files.blend)
    assert (blended.recipe.metric, about.metric, about.metric_title) == ("log_loss", "log_loss", "log loss")
    losses = {run.name: run.metric for run in about.runs}
    assert about.best_single == min(losses, key=losses.get)
    for way in about.ways:
        gain = losses[about.best_single] - way.metric_interval.estimate
        assert way.gain_over_best.estimate == pytest.approx(gain)
    assert blended.scores.cross_fitted.metric == pytest.approx(about.ways[3].metric_interval.estimate)
    assert "log loss (95 %)" in blend_ways(about)[0]


@pytest.mark.parametrize("name", ["micro_f1", "log_loss"])
def test_comparison_card_and_page_say_the_metric_first(make_run, problem, name):
    """Runs are ordered by it, the best first also where less is better; F1 of each label stays."""
    y_true, fold, logits = problem(60)
    runs = [make_run(run, logits(seed) / divisor, y_true, fold) for run, seed, divisor in (("a", 1, 1), ("b", 2, 40))]
    scores = [tune(run, metric=name) for run in runs]
    values = sorted([one.cross_fitted.metric for one in scores], reverse=name != "log_loss")
    found = compare(runs)
    assert [run.score.estimate for run in found.runs] == pytest.approx(values)
    assert found.runs[1].difference.estimate == pytest.approx(-abs(values[0] - values[1]))
    text, title = markdown(found), Metric(name).title
    assert f"| {title} (95 %) |" in text and f"{title[0].upper()}{title[1:]} against minutes" in text
    assert list(found.table().columns[:5]) == ["run", "recipe", "seed", "optimistic", name]
    assert "thresholds tuned" in found.note or name == "log_loss"
    card = (runs[0].path / "README.md").read_text()
    assert card.index(f"{title[0].upper()}{title[1:]} (out of fold") < card.index("Macro-F1 (out of fold")
    tiles = page_content(runs[0])["tiles"]
    assert tiles[0]["value"] == pytest.approx(scores[0].cross_fitted.metric)
    assert len(tiles) == (1 if name == "log_loss" else 3)
