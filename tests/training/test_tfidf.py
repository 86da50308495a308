"""The classical floor: saved without a pickle, reloaded exactly, and finite whatever the labels."""

import numpy as np
import pandas as pd
import pytest

from lora_cls.data import load_train
from lora_cls.errors import RunError
from lora_cls.evaluation.probabilities import corrected_probabilities
from lora_cls.recipe import load_recipe
from lora_cls.runs import FoldFolder
from lora_cls.training.factory import make_learner


@pytest.fixture
def fitted(emotion_table, tmp_path):
    """`fitted(change=None, **tfidf)`: learner, data, result and folder of a fold of 40 training rows and 20 others."""

    def make(change=None, **tfidf):
        recipe = load_recipe({"tfidf": tfidf})
        table = emotion_table(60)
        if change is not None:
            change(table)
        data = load_train(recipe.data, table)
        folder = FoldFolder(tmp_path / "f")
        learner = make_learner(recipe, data.label_names)
        trainer = learner.prepare(data, data.subset(range(5)))
        return learner, data, trainer.fit_fold(0, np.arange(40), np.arange(40, 60), folder), folder

    return make


def test_learns_keywords(fitted):
    """Labels that keywords decide are found in rows never trained on."""
    _, data, result, _ = fitted()
    assert result.oof_logits.shape == (20, 3) and result.test_logits.shape == (5, 3)
    assert result.oof_logits.dtype == np.float32
    assert ((result.oof_logits > 0) == data.labels[40:]).mean() > 0.9


def test_reloaded_logits_are_the_same(fitted):
    """Another learner, which never saw the data, answers bit for bit the same from the saved files."""
    learner, data, result, folder = fitted()
    fresh = make_learner(learner.recipe, data.label_names)
    np.testing.assert_array_equal(fresh.predict(folder, data.texts[40:]), result.oof_logits)
    assert {file.name for file in folder.model.iterdir()} == {"vocabulary.json", "weights.safetensors"}


def test_saved_features_are_scikit_learns(fitted):
    """Vocabulary and weights from the files give the features of vectorizers fitted anew."""
    from scipy.sparse import hstack

    from lora_cls.training.tfidf import _load, _vectorizers

    learner, data, result, folder = fitted(sublinear_tf=False, min_df=1)
    _, coef, intercept = _load(folder.model, learner.settings)
    fitted_anew = [v.fit(data.texts[:40]) for v in _vectorizers(learner.settings)]
    features = hstack([v.transform(data.texts[40:]) for v in fitted_anew]).tocsr()
    np.testing.assert_allclose(features @ coef.T + intercept, result.oof_logits, rtol=1e-5, atol=1e-6)


def test_labels_that_never_vary(fitted):
    """A label that is all 0, or all 1, in the training rows gets finite logits of that sign, and probabilities."""

    def change(table):
        table.loc[:39, "joy"] = 0
        table.loc[:39, "fear"] = 1

    _, _, result, _ = fitted(change)
    assert np.isfinite(result.oof_logits).all()
    assert (result.oof_logits[:, 0] < -5).all() and (result.oof_logits[:, 2] > 5).all()
    assert (result.pos_weight > 0).all()
    proba = corrected_probabilities(result.oof_logits, result.pos_weight)
    assert np.isfinite(proba).all() and (proba[:, 0] < 0.01).all() and (proba[:, 2] > 0.99).all()


def test_balanced_shift_is_recorded(fitted):
    """`pos_weight` is negatives / positives of the training rows where classes are balanced, else 1."""
    _, data, result, _ = fitted()
    positives = data.labels[:40].sum(axis=0)
    assert result.pos_weight.tolist() == ((40 - positives) / positives).tolist()
    _, _, result, _ = fitted(class_weight=None)
    assert result.pos_weight.tolist() == [1.0, 1.0, 1.0]


def test_empty_and_unknown_texts(fitted):
    """No text, an empty text and a text of unknown signs: an empty answer, and finite ones."""
    learner, _, _, folder = fitted()
    assert learner.predict(folder, []).shape == (0, 3)
    assert np.isfinite(learner.predict(folder, ["", "\u4e16\u754c"])).all()


def test_damaged_files(fitted):
    """Missing or damaged files are an error that names the folder."""
    learner, _, _, folder = fitted()
    for name in ("vocabulary.json", "weights.safetensors"):
        whole = (folder.model / name).read_bytes()
        (folder.model / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(RunError, match=r"model is missing or damaged"):
            learner.predict(folder, ["happy"])
        (folder.model / name).unlink()
        with pytest.raises(RunError, match=r"model is missing or damaged"):
            learner.predict(folder, ["happy"])
        (folder.model / name).write_bytes(whole)


def test_vocabulary_that_does_not_fit_the_weights(fitted):
    """A vocabulary of another fold is refused, not multiplied with the wrong columns."""
    import json

    learner, _, _, folder = fitted()
    file = folder.model / "vocabulary.json"
    terms = json.loads(file.read_text(encoding="utf-8"))
    terms["char"] = terms["char"][:-1]
    file.write_text(json.dumps(terms), encoding="utf-8")
    with pytest.raises(RunError):
        learner.predict(folder, ["happy"])


def test_texts_without_a_word(emotion_table, tmp_path):
    """Training texts that leave no term at all are an error that says so, not a traceback of scikit-learn."""
    from lora_cls.errors import LoraClsError

    recipe = load_recipe({"tfidf": {"min_df": 2}})
    table = emotion_table(12)
    table["text"] = ["?" * (i + 1) for i in range(12)]
    data = load_train(recipe.data, table)
    trainer = make_learner(recipe, data.label_names).prepare(data)
    with pytest.raises(LoraClsError, match="word n-grams"):
        trainer.fit_fold(0, np.arange(8), np.arange(8, 12), FoldFolder(tmp_path / "f"))


def classes_of(table):
    """One class per row: the first label, or none."""
    return table[["joy", "anger", "fear"]].assign(none=1).idxmax(axis=1)


@pytest.fixture
def fitted_classes(emotion_table, tmp_path):
    """As `fitted`, for one class per row of a column of names; `change` changes that column."""

    def make(change=None, **tfidf):
        recipe = load_recipe({"tfidf": tfidf, "task": "single_label"})
        table = emotion_table(60)
        table = table[["id", "text"]].assign(mood=classes_of(table))
        if change is not None:
            change(table)
        data = load_train(recipe.data.model_copy(update={"label_columns": ["mood"]}), table, task="single_label")
        folder = FoldFolder(tmp_path / "f")
        learner = make_learner(recipe, data.label_names)
        trainer = learner.prepare(data, data.subset(range(5)))
        return learner, data, trainer.fit_fold(0, np.arange(40), np.arange(40, 60), folder), folder

    return make


def test_classes_are_scikit_learns(fitted_classes):
    """Logits, weights and the reloaded model are those of one multinomial regression with balanced classes."""
    from scipy.sparse import hstack
    from scipy.special import softmax
    from sklearn.linear_model import LogisticRegression
    from sklearn.utils.class_weight import compute_class_weight

    from lora_cls.training.tfidf import _load

    learner, data, result, folder = fitted_classes()
    y = data.labels.argmax(axis=1)
    vectorizers, _, _ = _load(folder.model, learner.settings)
    features = hstack([v.transform(data.texts) for v in vectorizers]).tocsr()
    model = LogisticRegression(class_weight="balanced", max_iter=1000).fit(features[:40], y[:40])
    expected = model.predict_proba(features[40:])
    np.testing.assert_allclose(softmax(result.oof_logits, axis=1), expected, atol=1e-6)
    assert (result.oof_logits.argmax(axis=1) == y[40:]).mean() > 0.5  # of four classes; some texts hold two
    assert result.pos_weight == pytest.approx(compute_class_weight("balanced", classes=np.arange(4), y=y[:40]))
    fresh = make_learner(learner.recipe, data.label_names)
    np.testing.assert_array_equal(fresh.predict(folder, data.texts[40:]), result.oof_logits)
    _, _, plain, _ = fitted_classes(class_weight=None)
    assert plain.pos_weight.tolist() == [1.0] * 4


def test_weighted_classes(emotion_table, tmp_path):
    """A row of weight 2 teaches what two rows do; equal weights teach nothing else; a class of weight 0 is absent."""
    table = emotion_table(60)
    table = table[["text"]].assign(mood=classes_of(table), w=1)

    def fit(rows, name, weighted=True, C=1.0):
        data = {"label_columns": ["mood"]} | ({"weight_column": "w"} if weighted else {"ignore_columns": ["w"]})
        recipe = load_recipe({"tfidf": {"min_df": 1, "C": C}, "task": "single_label", "data": data})
        loaded = load_train(recipe.data, rows, task="single_label")
        trainer, n = make_learner(recipe, loaded.label_names).prepare(loaded), len(rows) - 20
        result = trainer.fit_fold(0, np.arange(n), np.arange(n, n + 20), FoldFolder(tmp_path / name))
        return result.oof_logits, result.pos_weight

    plain, plain_weight = fit(table, "plain", weighted=False)
    equal, equal_weight = fit(table.assign(w=7), "equal")
    np.testing.assert_allclose(equal, plain, atol=1e-4)
    assert equal_weight == pytest.approx(plain_weight)
    # all twice, so that the vocabulary's frequencies stay: one table by weight, the other by rows
    copies = pd.concat([table.iloc[:40]] * 2 + [table.iloc[40:]], ignore_index=True)
    halves = copies.assign(w=[0.5] * 40 + [1.5] * 40 + [1] * 20)
    np.testing.assert_allclose(fit(halves, "halves")[0], fit(copies, "copies", weighted=False)[0], atol=1e-3)
    silent = table.assign(w=np.where(table["mood"] == "fear", 0, 1))
    logits, weight = fit(silent, "silent")
    fear = sorted(set(table["mood"])).index("fear")
    assert (logits[:, fear] == -20).all() and weight[fear] == 1
    counts = table["mood"][:40].value_counts().drop("fear").sort_index().to_numpy()
    # scaled to a mean of 1 over all rows, so that what is left weighs as much as all did
    assert np.delete(weight, fear) == pytest.approx(counts.sum() / (3 * counts))


def test_two_classes_and_one(fitted_classes):
    """scikit-learn keeps one row for two classes: here both have logits. Absent classes are improbable, yet finite."""

    def two(table):
        table["mood"] = np.where(table["mood"] == "joy", "joy", "other")

    def late(table):
        two(table)
        table.loc[50:, "mood"] = "late"

    def alone(table):
        table.loc[:39, "mood"], table.loc[50:, "mood"] = "other", "late"

    _, data, result, _ = fitted_classes(two)
    assert result.oof_logits.shape == (20, 2)
    assert (result.oof_logits.argmax(axis=1) == data.labels[40:].argmax(axis=1)).mean() > 0.8
    _, data, result, _ = fitted_classes(late)
    assert data.label_names == ["joy", "late", "other"]
    assert (result.oof_logits[:, 1] < -5).all() and np.isfinite(result.oof_logits).all()
    assert result.pos_weight[1] == 1
    _, data, result, _ = fitted_classes(alone)
    assert (result.oof_logits.argmax(axis=1) == data.label_names.index("other")).all()
    assert np.isfinite(result.oof_logits).all() and (result.pos_weight > 0).all()


def scores(recipe, table, folder, rows=40):
    """Logits of the last 20 rows of a table, trained on the rows before them; and the fold's positive weights."""
    data = load_train(recipe.data, table)
    result = (
        make_learner(recipe, data.label_names)
        .prepare(data)
        .fit_fold(0, np.arange(len(table) - 20), np.arange(len(table) - 20, len(table)), FoldFolder(folder))
    )
    return result.oof_logits, result.pos_weight


@pytest.mark.parametrize("class_weight", ["balanced", None])
def test_row_weights(class_weight, emotion_table, tmp_path):
    """Equal weights, and weights of 1 for some rows only, give what the same rows give without weights; weights only
    matter by their ratio."""
    table = emotion_table(60).drop(columns="id")
    settings = {"tfidf": {"class_weight": class_weight, "min_df": 1}}
    plain, weighted = load_recipe(settings), load_recipe({**settings, "data": {"weight_column": "w"}})
    expected = scores(plain, table, tmp_path / "a")
    found = scores(weighted, table.assign(w=3), tmp_path / "b")
    np.testing.assert_allclose(found[0], expected[0], atol=1e-3)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-9)
    # the second table's first ten rows count nothing; their words stand in the vocabulary of both
    silent = table.assign(w=[0] * 10 + [2] * 50)
    relabelled = silent.copy()
    relabelled.loc[:9, ["joy", "anger", "fear"]] = 1 - silent.loc[:9, ["joy", "anger", "fear"]]
    first, second = (scores(weighted, frame, tmp_path / name) for name, frame in (("c", silent), ("d", relabelled)))
    np.testing.assert_array_equal(first[0], second[0])
    assert not np.allclose(first[0], expected[0], atol=1e-3)


def test_soft_labels(emotion_table, tmp_path):
    """A label of 0.25 teaches what four copies of the row teach, one of them positive."""
    table = emotion_table(60).drop(columns="id")
    soft = table.assign(joy=np.where(np.arange(60) % 4 == 0, 0.25, table["joy"].astype(float)))
    copies = soft.iloc[:40].loc[soft.index[:40].repeat(4)].reset_index(drop=True)
    part = np.tile([1, 0, 0, 0], 40)
    copies["joy"] = np.where(copies["joy"] == 0.25, part, copies["joy"]).astype(int)
    copies = pd.concat([copies, table.iloc[40:]], ignore_index=True)
    names = {"data": {"label_columns": ["joy"]}}
    found = scores(
        load_recipe({"tfidf": {"min_df": 1}, "data": {"label_columns": ["joy"], "soft_labels": True}}),
        soft,
        tmp_path / "a",
    )
    # four times the rows are four times the loss beside the penalty
    expected = scores(load_recipe({"tfidf": {"min_df": 1, "C": 0.25}} | names), copies, tmp_path / "b")
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)
    assert np.corrcoef(found[0].ravel(), expected[0].ravel())[0, 1] > 0.999


def test_label_that_is_0_in_all_rows_that_count(emotion_table, tmp_path):
    """Positives that weigh nothing are no positives: the label is answered by its prior, and stays finite."""
    table = emotion_table(60).assign(rare=[1] * 5 + [0] * 55, w=[0] * 5 + [1] * 55)
    recipe = load_recipe({"tfidf": {}, "data": {"weight_column": "w", "label_columns": ["joy", "rare"]}})
    logits, weight = scores(recipe, table, tmp_path / "a")
    assert (logits[:, 1] == -20).all()
    assert weight[1] == 1
