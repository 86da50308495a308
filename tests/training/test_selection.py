"""Which epoch is kept, by scripted scores; and ways to choose that the data does not allow."""

import numpy as np
import pytest

from lora_cls.data import load_train
from lora_cls.errors import DataError, RecipeError
from lora_cls.recipe import Train, load_recipe
from lora_cls.training.selection import Score, best_epoch, check_selection, hold_back, may_win


def settings(select_by, margin=0.01):
    return Train(select="inner", select_by=select_by, select_margin=margin)


# (macro-F1, loss) per epoch: the usual course, in which the loss rises while macro-F1 still creeps up
COURSE = [Score(0.40, 0.50), Score(0.60, 0.30), Score(0.655, 0.32), Score(0.66, 0.40), Score(0.65, 0.55)]


@pytest.mark.parametrize(
    ("select_by", "margin", "expected"),
    [
        ("macro_f1", 0.01, 4),
        ("loss", 0.01, 2),
        ("loss_within_margin", 0.0, 4),
        ("loss_within_margin", 0.005, 3),
        ("loss_within_margin", 0.01, 3),
        ("loss_within_margin", 0.06, 2),
        ("loss_within_margin", 0.9, 2),
    ],
)
def test_rules_by_hand(select_by, margin, expected):
    """The greatest macro-F1, the lowest loss, and the lowest loss of those near the best, the border included."""
    assert best_epoch(COURSE, settings(select_by, margin + 1e-12)) == expected


def test_equals():
    """Of equal epochs the earlier; at equal loss within the margin the greater macro-F1."""
    same = [Score(0.5, 0.4)] * 3
    assert [best_epoch(same, settings(by)) for by in ("macro_f1", "loss", "loss_within_margin")] == [1, 1, 1]
    assert best_epoch([Score(0.5, 0.4), Score(0.505, 0.4)], settings("loss_within_margin")) == 2


@pytest.mark.parametrize("select_by", ["macro_f1", "loss", "loss_within_margin"])
def test_the_winner_was_always_kept(select_by):
    """Whatever scores come, the epoch chosen in the end is among those kept since its own; and no more
    are kept than the rule needs."""
    rng = np.random.default_rng(0)
    most = 0
    for _ in range(300):
        scores = [Score(*(float(v) for v in pair)) for pair in rng.integers(0, 8, (7, 2)) / 10]
        train = settings(select_by, float(rng.choice([0.0, 0.1, 0.25])))
        winner = best_epoch(scores, train)
        for epoch in range(winner, len(scores) + 1):
            assert winner in may_win(scores[:epoch], train)
        most = max(most, *(len(may_win(scores[:epoch], train)) for epoch in range(1, 8)))
    assert (most > 1) == (select_by == "loss_within_margin")


def test_every_kept_epoch_may_win():
    """Each epoch that is kept wins in some continuation: nothing is kept in vain."""
    rng = np.random.default_rng(1)
    for _ in range(100):
        scores = [Score(*(float(v) for v in pair)) for pair in rng.random((6, 2))]
        train = settings("loss_within_margin", 0.2)
        winners = {best_epoch(scores, train)}
        for best in np.linspace(0, 1.2, 400):  # one more epoch, that only moves the margin
            winners.add(best_epoch([*scores, Score(float(best), 9.0)], train))
        assert may_win(scores, train) <= winners


def test_select_by_without_a_choice():
    """select_by where nothing is compared is a mistake, not a wish that is passed over."""
    for select in ("last", "cross_fitted"):
        with pytest.raises(RecipeError, match=f"select_by: loss has no meaning for select: {select}"):
            load_recipe({"backbone": {"name_or_path": "x"}, "train": {"select": select, "select_by": "loss"}})


def test_what_the_folds_do_not_allow(emotion_table):
    """Too few groups to hold some back, and other folds that are not there, are said before training."""
    values = {"backbone": {"name_or_path": "x"}, "train": {"select": "inner", "inner_fraction": 0.1}}
    recipe = load_recipe(values)
    data = load_train(recipe.data, emotion_table(12), extra_train=emotion_table(40, seed=2))
    fold = np.where(data.extra, -1, np.arange(len(data)) % 2)
    with pytest.raises(DataError, match=r"one of 10 parts .* fold 0 is trained on only 6 groups"):
        check_selection(recipe, data, fold)
    check_selection(load_recipe(recipe, ["train.inner_fraction=0.2"]), data, fold)
    check_selection(load_recipe({"tfidf": {}, "train": values["train"]}), data, fold)
    one = np.where(data.extra | (np.arange(len(data)) < 6), -1, 0)
    with pytest.raises(RecipeError, match="cross_fitted needs other folds"):
        check_selection(load_recipe(recipe, ["train.select=cross_fitted"]), data, one)


def test_hold_back(emotion_table):
    """The slice is of the fold's own rows, about as large as asked, and leaves all others to training."""
    recipe = load_recipe({"backbone": {"name_or_path": "x"}, "train": {"select": "inner", "inner_fraction": 0.25}})
    data = load_train(recipe.data, emotion_table(40), extra_train=emotion_table(20, seed=2))
    rows = np.flatnonzero(np.arange(len(data)) >= 8)
    train, held = hold_back(recipe, data, rows, 0)
    assert sorted([*train, *held]) == rows.tolist()
    assert not data.extra[held].any()
    assert 6 <= len(held) <= 10


def test_hold_back_by_class(emotion_table):
    """Of classes each gives its share; where none has rows enough, that is said before training."""
    recipe = load_recipe(
        {
            "task": "single_label",
            "backbone": {"name_or_path": "x"},
            "train": {"select": "inner", "inner_fraction": 0.25},
            "data": {"label_columns": ["c"]},
        }
    )
    table = emotion_table(40)[["id", "text"]].assign(c=["a", "b", "b", "b"] * 10, text=[f"text {i}" for i in range(40)])
    data = load_train(recipe.data, table, task="single_label")
    _, held = hold_back(recipe, data, np.arange(40), 0)
    assert data.labels[held].sum(axis=0).tolist() in ([2, 8], [3, 7], [2, 7], [3, 8])
    few = load_train(recipe.data, table.assign(c=[f"c{i % 20}" for i in range(40)]), task="single_label")
    with pytest.raises(DataError, match="only 1 rows of its most frequent class"):
        check_selection(recipe, few, np.arange(40) // 20)


def test_metric_is_compared_by_what_is_better():
    """`select_by: metric`: the greatest gain, the first of equals, whatever macro-F1 and loss say."""
    scores = [Score(0.9, 0.1, -0.7), Score(0.1, 0.9, -0.3), Score(0.5, 0.5, -0.3)]
    assert best_epoch(scores, settings("metric")) == 2
    assert may_win(scores, settings("metric")) == {2}
