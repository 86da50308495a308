"""What trials are compared by equals what a run states, and what scikit-learn says of a fold alone."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, log_loss

from lora_cls import cross_validate
from lora_cls.search.objective import fold_score, run_score


@pytest.fixture(scope="module")
def run(emotion_table, tmp_path_factory):
    place = tmp_path_factory.mktemp("objective") / "run"
    return cross_validate("tfidf-logreg", emotion_table(90), out=place, overrides=["cv.n_splits=3"])


def test_the_score_of_a_run_is_the_one_that_it_states(run):
    scores = run.scores.cross_fitted
    assert run_score(run, "macro_f1") == pytest.approx(scores.macro_f1, abs=1e-12)
    assert run_score(run, "average_precision") == pytest.approx(scores.macro_average_precision, abs=1e-12)


def test_loss_is_the_log_loss_of_all_labels(run):
    oof = run.out_of_fold()
    wanted = np.mean([log_loss(oof.y_true[:, j], oof.y_score[:, j], labels=[0, 1]) for j in range(3)])
    assert run_score(run, "loss") == pytest.approx(wanted, rel=1e-9)


def test_a_fold_by_itself(run):
    """Its rows alone: thresholds of its other parts, whatever other folds say."""
    oof = run.out_of_fold()
    here = oof.fold == 1
    ranked = np.mean([average_precision_score(oof.y_true[here, j], oof.y_score[here, j]) for j in range(3)])
    assert fold_score(run, 1, "average_precision") == pytest.approx(ranked, abs=1e-12)
    found = fold_score(run, 1, "macro_f1")
    untuned = f1_score(oof.y_true[here], oof.y_score[here] >= 0.5, average="macro")
    assert 0 < found <= 1
    assert found != untuned, "thresholds were not tuned"
    assert found == fold_score(cross_validate_folds(run, [1]), 1, "macro_f1")


def cross_validate_folds(run, folds):
    """The same run as if only these folds were finished."""
    from lora_cls.runs import RunFolder

    class Part(RunFolder):
        @property
        def finished_folds(self):
            return folds

    return Part(run.path)


def test_classes(emotion_table, tmp_path):
    """Of classes the loss is that of the right class."""
    table = emotion_table(60)[["id", "text"]]
    table["genre"] = ["jazz", "rock", "folk"] * 20
    run = cross_validate(
        "tfidf-logreg", table, out=tmp_path / "run", overrides=["cv.n_splits=3", "data.label_columns=[genre]"]
    )
    oof = run.out_of_fold()
    wanted = log_loss(oof.y_true.argmax(axis=1), oof.y_score, labels=range(3))
    assert run_score(run, "loss") == pytest.approx(wanted, rel=1e-6)
    assert run_score(run, "macro_f1") == pytest.approx(run.scores.cross_fitted.macro_f1)


def test_every_metric_may_be_searched_for(run):
    """Thresholds are then tuned for it; a search without an objective takes the recipe's metric."""
    from lora_cls.commands.tune import tune
    from lora_cls.recipe import load_recipe
    from lora_cls.search.space import resolved

    for name in ("micro_f1", "accuracy", "mcc", "samples_jaccard", "roc_auc", "log_loss"):
        scores = tune(run, metric=name).cross_fitted
        assert run_score(run, name) == pytest.approx(scores.metric, abs=1e-12)
        recipe = load_recipe("tfidf-logreg", {"metric": name, "sweep": {}})
        assert resolved(recipe).objective == name
    tune(run)
    assert run_score(run, "log_loss") == pytest.approx(run_score(run, "loss"), rel=1e-9)
