"""`benchmarks.score_test` states the score of `metrics.json`, whatever the scores of a run were fitted to."""

import numpy as np
import pandas as pd
import pytest

from benchmarks.score_test import decide, score
from lora_cls.commands.blend import blend
from lora_cls.evaluation import macro_f1


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
