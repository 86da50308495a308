"""Every task from the table to the submission: classes from a column of names, delimited labels, one 0/1 column."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

from lora_cls.commands.check import check
from lora_cls.commands.cross_validation import cross_validate
from lora_cls.commands.predict import Classifier, predict_file
from lora_cls.commands.refit import refit
from lora_cls.errors import DataError, RecipeError, RunError
from lora_cls.evaluation import macro_f1
from lora_cls.runs import RunFolder
from lora_cls.terminal import print_check, print_run
from lora_cls.training.factory import make_learner

NAMES = ["joy", "anger", "fear"]
CLASSES = ["anger", "fear", "joy", "none"]


def read(run, name):
    return json.loads((run.path / name).read_text())


def cells(file):
    return pd.read_csv(file, dtype=str, keep_default_na=False)


@pytest.fixture(scope="module")
def moods(train):
    """The training rows with one column `mood`: the first label, or none."""
    return train[["id", "text"]].assign(mood=train[NAMES].assign(none=1).idxmax(axis=1))


@pytest.fixture(scope="module")
def tagged(train):
    """The training rows with one column `tags`: all labels, separated by a bar."""
    tags = ["|".join(name for name in NAMES if row[name]) for _, row in train.iterrows()]
    return train[["id", "text"]].assign(tags=tags)


@pytest.fixture(scope="module", params=["tfidf", "llama"])
def one_class(request, tmp_path_factory, moods, test, tfidf_recipe, small_recipe):
    """A finished run of `single_label`; the task is found in the table."""
    recipe = tfidf_recipe(cv__n_splits=2) if request.param == "tfidf" else small_recipe("llama")
    return cross_validate(recipe, moods, test, tmp_path_factory.mktemp(request.param) / "run")


def test_task_is_stored(one_class):
    """recipe.yaml and labels.json hold the task that was found, the classes and the column."""
    assert one_class.recipe.task == "single_label"
    assert (
        read(one_class, "labels.json").items() >= {"task": "single_label", "labels": CLASSES, "column": "mood"}.items()
    )
    assert RunFolder(one_class.path).label_column == "mood"
    assert (one_class.y_true.sum(axis=1) == 1).all()


def test_probabilities_are_of_the_softmax(one_class):
    """Every row adds up to 1 and is the softmax of the fold's logits without the fold's class weights."""
    scores, fold = pd.read_csv(one_class.path / "oof_proba.csv"), one_class.folds["fold"].to_numpy()
    for number, weight in zip(one_class.fold_numbers, one_class.pos_weights(), strict=True):
        assert len(set(weight)) > 1
        logits = np.load(one_class.fold(number).oof_logits).astype(float)
        expected = softmax(logits - np.log(weight), axis=1)
        np.testing.assert_allclose(scores.loc[fold == number, CLASSES], expected, rtol=1e-12)
    assert np.allclose(pd.read_csv(one_class.path / "test_proba.csv")[CLASSES].sum(axis=1), 1)


def test_scores_follow_from_the_files(one_class, moods):
    """Cross-fitted and untuned macro-F1 and accuracy, computed again by scikit-learn from files and labels."""
    from sklearn.metrics import accuracy_score, f1_score

    metrics, fold = read(one_class, "metrics.json"), one_class.folds["fold"].to_numpy()
    truth, limits = moods["mood"].to_numpy(), read(one_class, "thresholds.json")
    scores = pd.read_csv(one_class.path / "oof_proba.csv")[CLASSES].to_numpy()
    cut = np.array([[limits["folds"][str(k)][name] for name in CLASSES] for k in fold])
    logits = one_class.out_of_fold().logits
    for key, values in (("cross_fitted", scores / cut), ("untuned", logits)):
        chosen = np.array(CLASSES)[values.argmax(axis=1)]
        expected = f1_score(truth, chosen, average="macro", labels=CLASSES, zero_division=0)
        assert metrics[key]["macro_f1"] == pytest.approx(expected, abs=1e-12)
        assert metrics[key]["accuracy"] == pytest.approx(accuracy_score(truth, chosen), abs=1e-12)
    assert metrics["task"] == "single_label"
    assert limits["settings"]["strategy"] == "prior_adjusted"


def test_submission_has_the_training_tables_shape(one_class, test):
    """Without a sample: the id and the column of names; the class is the best of test_proba.csv at the thresholds."""
    submission = cells(one_class.path / "submission.csv")
    assert list(submission.columns) == ["id", "mood"]
    assert list(submission["id"]) == list(test["id"])
    shipped = read(one_class, "thresholds.json")["shipped"]
    scores = pd.read_csv(one_class.path / "test_proba.csv")[CLASSES] / [shipped[name] for name in CLASSES]
    assert list(submission["mood"]) == list(scores.idxmax(axis=1))
    assert sum(read(one_class, "metrics.json")["test"]["positives"].values()) == len(test)


def test_classifier(one_class, test):
    """A loaded run answers as its submission says, for one text and for several, by name and as 0/1."""
    classifier = Classifier.load(one_class)
    texts, expected = list(test["text"]), list(cells(one_class.path / "submission.csv")["mood"])
    assert classifier.predict_labels(texts) == expected
    assert classifier.predict_labels(texts[0]) == expected[0]
    assert [CLASSES[j] for j in classifier.predict(texts).argmax(axis=1)] == expected
    assert (classifier.predict(texts).sum(axis=1) == 1).all()
    np.testing.assert_allclose(classifier.predict_proba(texts).sum(axis=1), 1)


def test_predict_a_file(one_class, test, tmp_path):
    """predict writes the same answers, in the shape of a sample where one is given: one column, or one per class."""
    expected = list(cells(one_class.path / "submission.csv")["mood"])
    assert list(cells(predict_file(one_class, test, tmp_path / "a") / "submission.csv")["mood"]) == expected
    sample = pd.DataFrame({"id": test["id"], "label": "joy"})
    folder = predict_file(one_class, test, tmp_path / "b", sample_submission=sample)
    assert list(cells(folder / "submission.csv")["label"]) == expected
    one_hot = pd.DataFrame({"id": test["id"], **dict.fromkeys(CLASSES[::-1], 0)})
    folder = predict_file(one_class, test, tmp_path / "c", sample_submission=one_hot)
    written = pd.read_csv(folder / "submission.csv")
    assert list(written.columns) == ["id", *CLASSES[::-1]]
    assert list(written[CLASSES].idxmax(axis=1)) == expected
    assert written[CLASSES].sum(axis=1).eq(1).all()


def test_card_and_terminal_say_the_task(one_class, capsys):
    """README and printed table speak of classes, accuracy and softmax."""
    card = (one_class.path / "README.md").read_text()
    accuracy = f"Accuracy {read(one_class, 'metrics.json')['cross_fitted']['accuracy']:.4f}"
    assert "Single-label" in card and accuracy in card
    if one_class.recipe.backbone:
        assert "softmax(logits - log(pos_weight))" in card and "sigmoid" not in card
    print_run(one_class)
    out = capsys.readouterr().out
    assert accuracy in out and "per class" in out


def test_resume_with_the_users_own_recipe(moods, test, tfidf_recipe, small_recipe, tmp_path, results):
    """A recipe without a task resumes the run that found it, and ends with the bytes of one go."""
    for kind, recipe in (("tfidf", tfidf_recipe()), ("llama", small_recipe("llama"))):
        whole = cross_validate(recipe, moods, test, tmp_path / kind / "whole")
        part = cross_validate(recipe, moods, test, tmp_path / kind / "part", folds=[0])
        assert part.finished_folds == [0]
        assert results(cross_validate(recipe, moods, test, part.path, resume=True)) == results(whole)


def test_resume_with_another_task(train, test, tfidf_recipe, tmp_path):
    """0/1 columns that were begun as labels are not continued as classes."""
    table = train.assign(joy=train[NAMES].sum(axis=1).eq(0).astype(int), anger=0, fear=0)
    table["anger"] = 1 - table["joy"]
    run = cross_validate(tfidf_recipe(), table, test, tmp_path / "run", folds=[0])
    with pytest.raises(RunError, match="recipe task: was 'multi_label', now 'single_label'"):
        cross_validate(tfidf_recipe(task="single_label"), table, test, run.path, resume=True)


def test_refit(one_class, moods, test):
    """One model of all rows predicts classes too."""
    refit(one_class, moods)
    labels = Classifier.load(one_class, models="refit").predict_labels(list(test["text"]))
    assert set(labels) <= set(CLASSES) and len(labels) == len(test)


@pytest.mark.parametrize("select", ["inner", "cross_fitted", "scored_fold"])
def test_epochs_are_chosen_by_classes(small_recipe, moods, test, tmp_path, select):
    """Every way of choosing an epoch works with classes."""
    recipe = small_recipe("llama", train__select=select, train__inner_fraction=0.3)
    run = cross_validate(recipe, moods, test, tmp_path / "run")
    for number in run.fold_numbers:
        info = json.loads(run.fold(number).info_file.read_text())
        lines = run.fold(number).metrics.read_text().splitlines()
        scores = info.get("other_folds_macro_f1") or [json.loads(line)["selection_macro_f1"] for line in lines]
        assert info["epoch"] == 1 + int(np.argmax(scores))
        if select == "scored_fold":
            here = run.folds["fold"].to_numpy() == number
            chosen = run.task().untuned(np.load(run.fold(number).oof_logits))
            assert max(scores) == pytest.approx(macro_f1(run.y_true[here], chosen))


@pytest.mark.parametrize("combine", ["mean_logit", "mean_proba", "max"])
def test_chunks_of_classes(small_recipe, moods, test, blocks, tmp_path, monkeypatch, combine):
    """Documents in several chunks get one class each; a reloaded run and the README's snippet answer the same."""
    recipe = small_recipe("bert", data__max_length=12, data__long_text="chunk", data__chunk_combine=combine)
    run = cross_validate(recipe, moods, test, tmp_path / "run")
    proba = run.out_of_fold().y_score
    assert proba.shape == (len(moods), len(CLASSES))
    assert np.allclose(proba.sum(axis=1), 1)
    np.testing.assert_allclose(
        Classifier.load(run).predict_proba(list(test["text"])),
        pd.read_csv(run.path / "test_proba.csv")[CLASSES],
        atol=1e-5,
    )
    code = blocks(run.path)[0]
    names: dict = {}
    monkeypatch.chdir(run.path)
    exec(code, names)
    texts = [text for text in test["text"] if text]
    logits, weight = names["logits"](texts).detach().numpy().astype(float), run.pos_weights()[0]
    learner = make_learner(run.recipe, run.label_names, choices=run.info.choices)
    ours = learner.predict(run.fold(0), texts)
    np.testing.assert_allclose(
        softmax(logits - np.log(weight), axis=1), softmax(ours - np.log(weight), axis=1), atol=1e-5
    )


def test_focal_loss_of_classes(small_recipe, moods, tmp_path):
    """Other losses train: focal with smoothing and a list of class weights."""
    loss = {"name": "focal", "label_smoothing": 0.1, "pos_weight": [1, 2, 3, 4]}
    run = cross_validate(small_recipe("llama", loss=loss, data__label_columns=["mood"]), moods, out=tmp_path / "run")
    assert run.pos_weights().tolist() == [[1, 2, 3, 4]] * 2
    assert np.isfinite(run.out_of_fold().logits).all()


def test_strategies_of_tune(one_class, copy_of, monkeypatch, capsys):
    """`lora-cls tune` takes argmax and prior_adjusted here, and refuses what decides labels one by one."""
    import sys

    from lora_cls import cli

    run = copy_of(one_class)

    def tune(*arguments):
        monkeypatch.setattr(sys, "argv", ["lora-cls", "tune", str(run.path), *arguments])
        with pytest.raises(SystemExit) as done:
            cli.main()
        return done.value.code, capsys.readouterr()

    code, printed = tune("--strategy", "argmax", "--combine", "vote")
    assert not code and "the most probable class" in printed.out
    assert set(read(run, "thresholds.json")["shipped"].values()) == {1.0}
    votes = pd.read_csv(run.path / "test_proba.csv")[CLASSES].to_numpy() * len(run.finished_folds)
    assert np.allclose(votes, votes.round())
    for wrong, field in ((("--strategy", "per_label"), "thresholds.strategy"), (("--at-least-one",), "at_least_one")):
        code, printed = tune(*wrong)
        assert code == 2 and field in printed.err


def test_classes_in_zero_one_columns(train, test, tfidf_recipe, tmp_path):
    """task: single_label with 0/1 columns writes 0/1 columns, exactly one 1 per row."""
    table = train.assign(none=train[NAMES].sum(axis=1).eq(0).astype(int))
    table["anger"] &= 1 - table["joy"]
    table["fear"] &= 1 - (table["joy"] | table["anger"])
    run = cross_validate(tfidf_recipe(task="single_label"), table, test, tmp_path / "run")
    assert (
        read(run, "labels.json").items() >= {"task": "single_label", "labels": [*NAMES, "none"], "column": None}.items()
    )
    submission = pd.read_csv(run.path / "submission.csv")
    assert list(submission.columns) == ["id", *NAMES, "none"]
    assert submission[[*NAMES, "none"]].sum(axis=1).eq(1).all()
    refit(run, table)


def but_for_the_submission(results):
    """Results without the submission, and without its sum in metrics.json."""
    found = {name: content for name, content in results.items() if name != "submission.csv"}
    metrics = json.loads(found["metrics.json"])
    del metrics["files"]["submission.csv"], metrics["sha256"]
    return found | {"metrics.json": metrics}


def test_delimited_labels(tagged, train, test, tfidf_recipe, tmp_path, results):
    """One column of several labels is the same run as 0/1 columns in the same order; the submission joins them."""
    recipe = tfidf_recipe(data__label_delimiter="|")
    run = cross_validate(recipe, tagged, test, tmp_path / "run")
    assert run.recipe.task == "multi_label"
    columns = cross_validate(tfidf_recipe(), train[["id", "text", *sorted(NAMES)]], test, tmp_path / "columns")
    found, same = (but_for_the_submission(results(one)) for one in (run, columns))
    assert found == same
    zero_one = pd.read_csv(columns.path / "submission.csv")
    expected = ["|".join(name for name in sorted(NAMES) if row[name]) for _, row in zero_one.iterrows()]
    submission = cells(run.path / "submission.csv")
    assert list(submission.columns) == ["id", "tags"]
    assert list(submission["tags"]) == expected
    labels = Classifier.load(run).predict_labels(list(test["text"]))
    assert ["|".join(row) for row in labels] == expected
    refit(run, tagged)
    sample = pd.DataFrame({"id": test["id"], **dict.fromkeys(NAMES, 0)})
    again = cross_validate(recipe, tagged, test, tmp_path / "again", sample_submission=sample)
    pd.testing.assert_frame_equal(pd.read_csv(again.path / "submission.csv"), zero_one[["id", *NAMES]])


def test_one_column_for_labels_from_zero_one_columns(train, test, tfidf_recipe, tmp_path):
    """0/1 columns in train and one column in the sample need a delimiter: asked for before training."""
    sample = pd.DataFrame({"id": test["id"], "tags": ""})
    recipe = tfidf_recipe(data__label_columns=NAMES)
    with pytest.raises(DataError, match=r"set data\.label_delimiter"):
        cross_validate(recipe, train, test, tmp_path / "run", sample_submission=sample)
    recipe = tfidf_recipe(data__label_columns=NAMES, data__label_delimiter=" ")
    run = cross_validate(recipe, train, test, tmp_path / "run", sample_submission=sample)
    assert set(" ".join(cells(run.path / "submission.csv")["tags"]).split()) == set(NAMES)


@pytest.mark.parametrize("kind", ["tfidf", "llama"])
def test_binary(kind, train, test, tfidf_recipe, small_recipe, tmp_path, capsys):
    """One 0/1 column is a label like any other; the score is said to be the positive class's F1."""
    recipe = tfidf_recipe() if kind == "tfidf" else small_recipe("llama")
    run = cross_validate(recipe, train[["id", "text", "joy"]], test, tmp_path / "run")
    assert run.recipe.task == "binary"
    submission = pd.read_csv(run.path / "submission.csv")
    assert list(submission.columns) == ["id", "joy"] and set(submission["joy"]) <= {0, 1}
    assert "F1 of the positive class" in (run.path / "README.md").read_text()
    print_run(run)
    assert "F1 of the positive class" in capsys.readouterr().out
    assert Classifier.load(run).predict_labels("so happy, lovely and delighted") in ([], ["joy"])


def test_found_task_against_the_recipe(moods, test, tfidf_recipe, tmp_path):
    """A strategy without meaning for the task that the table says is refused before anything is written."""
    with pytest.raises(RecipeError, match="per_label decides labels one by one"):
        cross_validate(tfidf_recipe(thresholds__strategy="per_label"), moods, test, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_check_and_smoke(moods, test, tfidf_recipe, tmp_path, capsys):
    """`check` prints the task; a smoke run keeps rows of every class."""
    print_check(check(tfidf_recipe(), moods, test))
    out = capsys.readouterr().out
    assert "task: single_label, because mood holds one name per row" in out
    assert "carry no label" not in out
    run = cross_validate(tfidf_recipe(), moods, test, tmp_path / "run", smoke=True)
    assert (run.y_true.sum(axis=0) > 0).all()
    assert set(cells(run.path / "submission.csv")["mood"]) <= set(CLASSES)
