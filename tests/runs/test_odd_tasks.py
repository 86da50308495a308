"""Every task on tables with weights, extra rows, a split, a sample or one fold."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import log_softmax, softmax

from lora_cls.commands.cross_validation import cross_validate
from lora_cls.commands.predict import predict_file
from lora_cls.commands.refit import refit
from lora_cls.data import load_train, stratified_folds
from lora_cls.errors import DataError, RecipeError
from lora_cls.evaluation import macro_f1, task_of
from lora_cls.recipe import load_recipe
from lora_cls.terminal import print_run
from lora_cls.training.losses import pos_weight

NAMES = ["joy", "anger", "fear"]
CLASSES = ["anger", "fear", "joy", "none"]


def read(run, name):
    return json.loads((run.path / name).read_text())


def with_mood(table):
    """One column `mood` instead of the labels: the first of them, or none."""
    return table.drop(columns=NAMES).assign(mood=table[NAMES].assign(none=1).idxmax(axis=1))


def with_tags(table):
    """One column `tags` instead of the labels: all of them, separated by a bar."""
    tags = ["|".join(name for name in NAMES if row[name]) for _, row in table.iterrows()]
    return table.drop(columns=NAMES).assign(tags=tags)


@pytest.fixture(scope="module")
def odd(train):
    """The training rows with a split and weights."""
    parts = np.array(["train", "train", "val"])[np.arange(45) % 3]
    parts[40] = parts[7]  # they have the same text
    return train[["id", "text", *NAMES]].assign(part=parts, w=[1.0, 2.0, 0.5, 0.0, 1.5] * 9)


@pytest.fixture(scope="module")
def more(emotion_table):
    """20 extra rows."""
    table = emotion_table(20, seed=9)[["text", *NAMES]]
    return table.assign(text=[f"{text} also {i}" for i, text in enumerate(table["text"])])


@pytest.fixture(scope="module")
def mood_recipe(tfidf_recipe):
    """Recipes of classes that ignore what a test does not use."""

    def make(*unused, **overrides):
        return tfidf_recipe(data__label_columns=["mood"], data__ignore_columns=list(unused), **overrides)

    return make


def test_classes_with_weights_and_extra_rows(mood_recipe, odd, more, test, tmp_path):
    """Class weights count weighted rows, extra ones too; folds are those of the table alone; every row scores once."""
    moods, extra = with_mood(odd), with_mood(more).assign(w=3.0)
    alone = cross_validate(mood_recipe("part", "w"), moods, test, tmp_path / "alone")
    run = cross_validate(mood_recipe("part", data__weight_column="w"), moods, test, tmp_path / "run", extra_train=extra)
    assert run.recipe.task == "single_label"
    assert run.folds["fold"].tolist() == [*alone.folds["fold"], *[-1] * 20]
    assert (run.y_true.sum(axis=1) == 1).all()
    w, fold = np.append(odd["w"], [3.0] * 20), run.folds["fold"].to_numpy()
    for number, weight in zip(run.fold_numbers, run.pos_weights(), strict=True):
        counts = w[fold != number] @ run.y_true[fold != number]
        assert weight == pytest.approx(counts.sum() / (4 * counts))
    metrics = read(run, "metrics.json")
    assert metrics["rows_scored"] == 45
    assert sum(row["support"] for row in metrics["cross_fitted"]["per_label"]) == 45
    assert metrics["cross_fitted"]["over"] == "folds"
    scores = pd.read_csv(run.path / "oof_proba.csv")
    assert list(scores["id"]) == list(odd["id"])
    assert np.allclose(scores[CLASSES].sum(axis=1), 1)
    out = predict_file(run, test)
    assert (out / "submission.csv").read_bytes() == (run.path / "submission.csv").read_bytes()
    assert refit(run, moods, extra_train=extra).finished
    assert read(run, "refit/fold.json")["train_rows"] == 65


def test_extra_rows_with_other_names(mood_recipe, tfidf_recipe, odd, more, tmp_path):
    """A class or tag that the training table lacks is refused by file, column, row and value; a missing one, too."""
    extra = with_mood(more)
    unknown = extra.assign(mood=["disgust", *extra["mood"][1:]])
    recipe = mood_recipe("part", "w")
    with pytest.raises(DataError) as error:
        cross_validate(recipe, with_mood(odd), out=tmp_path / "run", extra_train=unknown)
    assert "the DataFrame of extra rows" in str(error.value)
    assert "'mood': expected names that the training table has (anger, fear, joy, none)" in str(error.value)
    assert "has 'disgust'" in str(error.value)
    with pytest.raises(DataError, match="1 row with a missing label"):
        cross_validate(
            recipe, with_mood(odd), out=tmp_path / "run", extra_train=extra.assign(mood=["", *extra["mood"][1:]])
        )
    tagged = with_tags(more)
    tags = tfidf_recipe(data__label_columns=["tags"], data__label_delimiter="|", data__ignore_columns=["part", "w"])
    with pytest.raises(DataError, match=r"\(anger, fear, joy\), but row .* has 'joy\|disgust'"):
        cross_validate(tags, with_tags(odd), out=tmp_path / "run", extra_train=tagged.assign(tags=["joy|disgust"] * 20))
    columns = pd.get_dummies(with_mood(odd), columns=["mood"], prefix="", prefix_sep="", dtype=int)
    two = pd.get_dummies(extra, columns=["mood"], prefix="", prefix_sep="", dtype=int).assign(joy=1, fear=1)
    with pytest.raises(DataError, match=r"exactly one 1 per row, but .* with several 1s"):
        load_train(
            load_recipe({"tfidf": {}, "data": {"label_columns": CLASSES}}).data, columns, task="single_label",
            extra_train=two,
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_classes_of_a_split(mood_recipe, odd, test, tmp_path):
    """One fold; a score by class weights of other parts, which follows from the files, and whose words say so."""
    recipe = mood_recipe("w", data__split_column="part")
    run = cross_validate(recipe, with_mood(odd), test, tmp_path / "run")
    held_out = odd["part"].eq("val").to_numpy()
    assert (run.folds["fold"] == 0).tolist() == held_out.tolist()
    metrics, card = read(run, "metrics.json"), (run.path / "README.md").read_text()
    score = metrics["cross_fitted"]
    assert (metrics["task"], metrics["strategy"], score["over"], score["n_parts"]) == (
        "single_label", "prior_adjusted", "parts", 5,
    )  # fmt: skip
    y_true, groups = run.y_true[held_out], run.folds["group"].to_numpy()[held_out]
    y_score = pd.read_csv(run.path / "oof_proba.csv")[CLASSES].to_numpy()
    part = stratified_folds(y_true, groups, 5, recipe.cv.random_state)
    fitted = task_of("single_label", recipe.thresholds).cross_fit(y_true, y_score, part)
    assert score["macro_f1"] == pytest.approx(macro_f1(y_true, fitted.y_pred))
    assert (fitted.y_pred.sum(axis=1) == 1).all()
    assert f"on {held_out.sum()} held-out rows, weights of the classes for each of 5 parts of them tuned on" in card
    assert f"Accuracy {score['accuracy']:.4f}" in card
    assert set(read(run, "thresholds.json")["parts"]) == set("01234")
    print_run(run)
    assert list(pd.read_csv(run.path / "submission.csv").columns) == ["id", "mood"]
    argmax = cross_validate(
        load_recipe(recipe, ["thresholds.strategy=argmax"]), with_mood(odd), out=tmp_path / "argmax"
    )
    metrics = read(argmax, "metrics.json")
    assert "held-out rows, the most probable class;" in (argmax.path / "README.md").read_text()
    assert metrics["cross_fitted"]["over"] == "parts"


def test_classes_of_one_fold(mood_recipe, odd, tmp_path):
    """The first fold is scored across its parts, and with the second one across folds."""
    recipe, moods = mood_recipe("part", "w"), with_mood(odd)
    run = cross_validate(recipe, moods, out=tmp_path / "run", folds=[1])
    assert read(run, "metrics.json")["cross_fitted"]["over"] == "parts"
    assert "Partial: 1 of 3 folds." in (run.path / "README.md").read_text()
    run = cross_validate(recipe, moods, out=run.path, resume=True)
    assert read(run, "metrics.json")["cross_fitted"]["over"] == "folds"


def test_held_out_rows_of_few_classes(mood_recipe, odd, tmp_path):
    """Held-out rows are scored even where no class has five of them, and one has none."""
    moods = with_mood(odd)
    keep = np.zeros(45, dtype=bool)
    for name in CLASSES[:3]:
        keep[np.flatnonzero(moods["mood"] == name)[:2]] = True
    table = moods.assign(part=np.where(keep, "test", "train"), text=[f"{t} {i}" for i, t in enumerate(moods["text"])])
    run = cross_validate(mood_recipe("w", data__split_column="part"), table, out=tmp_path / "run")
    metrics = read(run, "metrics.json")
    assert metrics["rows_scored"] == 6
    assert [row["support"] for row in metrics["cross_fitted"]["per_label"]] == [2, 2, 2, 0]


@pytest.mark.parametrize("column", ["mood", "tags"])
def test_sample_and_smoke(column, tfidf_recipe, odd, more, test, tmp_path):
    """A sample keeps every class and the share of the split; a smoke run goes the whole way."""
    shape = with_mood if column == "mood" else with_tags
    recipe = tfidf_recipe(
        data__label_columns=[column], data__label_delimiter=None if column == "mood" else "|", data__max_rows=30,
        data__split_column="part", data__weight_column="w",
    )  # fmt: skip
    run = cross_validate(recipe, shape(odd), test, tmp_path / "run", extra_train=shape(more))
    own = ~run.folds["id"].str.startswith("extra-").to_numpy()
    assert 28 <= own.sum() <= 30
    assert (run.folds["fold"] == 0).sum() == 30 * odd["part"].eq("val").sum() // 45
    assert run.label_names == (CLASSES if column == "mood" else sorted(NAMES))
    assert (run.y_true[own].sum(axis=0) > 0).all()
    assert run.recipe.task == ("single_label" if column == "mood" else "multi_label")
    smoke = cross_validate(recipe, shape(odd), test, tmp_path / "s", extra_train=shape(more), smoke=True)
    assert len(pd.read_csv(smoke.path / "submission.csv")) == 12
    assert (smoke.folds["fold"] < 0).sum() >= 16


def test_one_binary_column_of_a_split(tfidf_recipe, odd, tmp_path):
    """The sentence names the positive class and the held-out rows."""
    recipe = tfidf_recipe(
        data__label_columns=["joy"], data__split_column="part", data__ignore_columns=["anger", "fear"],
        data__weight_column="w",
    )  # fmt: skip
    run = cross_validate(recipe, odd, out=tmp_path / "run")
    card = (run.path / "README.md").read_text()
    assert "F1 of the positive class" in card
    assert "15 held-out rows, thresholds for each of 5 parts of them tuned on the other parts" in card


def test_classes_of_a_transformer(small_recipe, odd, more, test, tmp_path):
    """Weights, extra rows and epochs chosen by the softmax's loss: what is written down is what was computed."""
    moods, extra = with_mood(odd), with_mood(more)
    recipe = small_recipe(
        "llama", data__label_columns=["mood"], data__split_column="part", data__weight_column="w",
        train__select="scored_fold", train__select_by="loss", train__num_train_epochs=2, train__learning_rate=2e-2,
    )  # fmt: skip
    run = cross_validate(recipe, moods, test, tmp_path / "run", extra_train=extra)
    oof = run.out_of_fold()
    rows, logits = oof.rows, oof.logits
    truth, weight, fold = run.y_true, run.pos_weights()[0], run.folds["fold"].to_numpy()
    w = np.append(odd["w"], [1.0] * 20)[fold < 0]
    assert weight == pytest.approx(pos_weight(truth[fold < 0], recipe.loss, w, "single_label"))
    curve = [json.loads(line) for line in run.fold(0).metrics.read_text().splitlines()]
    kept = curve[read(run, "fold-00/fold.json")["epoch"] - 1]
    assert kept["selection_loss"] == min(line["selection_loss"] for line in curve)
    expected = -(weight * truth[rows] * log_softmax(logits.astype(float), axis=1)).sum(axis=1).mean()
    assert kept["selection_loss"] == pytest.approx(expected, rel=1e-5)
    greatest = np.eye(4, dtype=np.int8)[logits.argmax(axis=1)]
    assert kept["selection_macro_f1"] == pytest.approx(macro_f1(truth[rows], greatest))
    scores = pd.read_csv(run.path / "oof_proba.csv")[CLASSES].to_numpy()
    np.testing.assert_allclose(scores, softmax(logits.astype(float) - np.log(weight), axis=1), rtol=1e-9)
    with pytest.raises(DataError, match=r"trained on only .* rows of its most frequent class"):
        cross_validate(
            load_recipe(recipe, ["train.select=inner", "train.inner_fraction=0.04"]), moods, out=tmp_path / "no"
        )
    assert not (tmp_path / "no").exists()


def test_soft_labels_of_classes_are_refused():
    """Shares and exactly one class contradict each other; so do shares and names between delimiters."""
    with pytest.raises(RecipeError, match=r"data\.soft_labels: task: single_label gives every row exactly one class"):
        load_recipe({"tfidf": {}, "task": "single_label", "data": {"soft_labels": True}})
    with pytest.raises(RecipeError, match=r"data\.soft_labels: .* data\.label_delimiter splits one column"):
        load_recipe({"tfidf": {}, "data": {"soft_labels": True, "label_delimiter": "|"}})
