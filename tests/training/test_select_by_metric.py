"""The choice of epochs follows the recipe's metric: on rows held back, or on other folds."""

import json

import pytest

from lora_cls import cross_validate


@pytest.mark.parametrize("select", ["inner", "cross_fitted"])
def test_epochs_are_chosen_by_the_metric(select, emotion_table, tiny_recipe, tmp_path):
    """Log loss, of which less is better, is kept turned; the greatest is taken, the first of equals."""
    by = {"train__select_by": "metric", "train__inner_fraction": 0.3} if select == "inner" else {}
    recipe = tiny_recipe(
        "bert", metric="log_loss", train__select=select, train__num_train_epochs=2, cv__n_splits=2, **by
    )
    run = cross_validate(recipe, emotion_table(45), out=tmp_path / "run")
    for number in run.fold_numbers:
        folder = run.fold(number)
        if select == "inner":
            lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
            values = [line["selection_metric"] for line in lines]
        else:
            values = folder.info.other_folds_metric
            assert folder.info.other_folds_macro_f1 is None
        assert len(values) == 2 and max(values) < 0
        assert folder.info.epoch == values.index(max(values)) + 1
    assert run.scores.metric == "log_loss"
