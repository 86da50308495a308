"""`benchmarks.score_test` states the score of `metrics.json`, whatever the scores of a run were fitted to."""

import numpy as np
import pandas as pd
import pytest

from benchmarks.score_test import decide, score, true_labels
from lora_cls.commands.blend import blend
from lora_cls.evaluation import macro_f1
from lora_cls.runs import RunFolder


@pytest.fixture
def labels(tmp_path):
    """A file with the truth of the test rows of `make_run`."""
    truth = np.random.default_rng(3).integers(0, 2, size=(40, 2))
    table = pd.DataFrame({"id": [f"t{i}" for i in range(40)], "anger": truth[:, 0], "joy": truth[:, 1]})
    file = tmp_path / "labels.csv"
    table.to_csv(file, index=False)
    return file


@pytest.mark.parametrize("folds", ["three", "one"])
@pytest.mark.parametrize("how", ["stacking", "weights", "mean_logit", None])
def test_same_score(make_run, problem, labels, tmp_path, folds, how):
    """A plain run or a blend, fitted to labels or not, over folds or over parts of a single one."""
    y_true, fold, logits = problem(240)
    fold = fold if folds == "three" else np.where(fold == 1, 0, -1)
    n_folds = len(set(fold[fold >= 0].tolist()))
    test = np.random.default_rng(1).normal(size=(n_folds, 40, 2))
    runs = [make_run(name, logits(noise), y_true, fold, test=test) for name, noise in (("a", 1), ("b", 1.5))]
    run = runs[0] if how is None else blend([one.path for one in runs], tmp_path / "blend", how)
    of, scores = decide(run, labels), run.results().scores
    assert macro_f1(of.oof.y_true, of.y_pred) == scores.cross_fitted.macro_f1
    assert f"{scores.cross_fitted.macro_f1:.4f}" in score(run, labels, ["mean_logit"])[0]


@pytest.mark.parametrize("kind", ["words", "names", "empty cell"])
def test_labels_are_read_as_in_training(make_run, problem, labels, kind):
    """The label file may say what a training table may: true and false, or names in one column; no empty 0/1 cell."""
    y_true, fold, logits = problem(60)
    recipe = {"data": {"label_delimiter": "|"}} if kind == "names" else {}
    run = make_run("a", logits(1), y_true, fold, test=np.zeros((3, 40, 2)), recipe=recipe)
    table = pd.read_csv(labels)
    truth = table[["anger", "joy"]].to_numpy()
    if kind == "names":
        file = run.path / "labels.json"
        file.write_text(file.read_text().replace('"column": null', '"column": "emotion"'))
        named = [" | ".join(np.array(["anger", "joy"])[row == 1]) for row in truth]
        table = pd.DataFrame({"id": table["id"], "emotion": named})
    else:
        table = table.replace({0: "False", 1: "true"})
    if kind == "empty cell":
        table.loc[7, "joy"] = ""
    table.sample(frac=1, random_state=0).to_csv(labels, index=False)
    if kind == "empty cell":
        with pytest.raises(SystemExit, match="labels that are missing"):
            true_labels(RunFolder(run.path), labels)
    else:
        np.testing.assert_array_equal(true_labels(RunFolder(run.path), labels), truth)
