"""Scores on labelled tables: scikit-learn's, with rows that were trained on named, and nothing chosen by them."""

import json
import re
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, f1_score

from lora_cls.commands.blend import blend
from lora_cls.commands.cross_validation import cross_validate
from lora_cls.commands.export import export
from lora_cls.commands.predict import predict_file
from lora_cls.commands.refit import refit
from lora_cls.commands.score import _read_without_labels, score_file
from lora_cls.commands.tune import tune
from lora_cls.data.tables import Tables
from lora_cls.errors import DataError, RunError
from lora_cls.recipe import Thresholds, load_recipe
from lora_cls.runs import Labelled, RunFolder

LABELS = ["joy", "anger", "fear"]


@pytest.fixture
def labelled(emotion_table):
    """30 labelled rows that no run has seen, but for the fourth; with a column that is nobody's, in another order."""
    table = emotion_table(30, seed=9).assign(id=[f"new{i}" for i in range(30)], source="web")
    table.loc[1, "text"] = "happy and new"
    table.loc[3, "text"] = emotion_table(45).loc[7, "text"] + "\n"
    return table[["fear", "source", "text", "joy", "id", "anger"]]


def macro_f1_of(folder, table):
    """scikit-learn's, of a folder's submission."""
    decided = pd.read_csv(folder / "submission.csv", dtype={"id": str}).set_index("id").loc[table["id"]]
    return f1_score(table[LABELS], decided[LABELS], average="macro", zero_division=0)


def test_score_of_a_file(finished, copy_of, labelled, tmp_path):
    """The score is scikit-learn's of `predict`'s submission; a row that was trained on is named; the page shows it."""
    run = copy_of(finished("tfidf"))
    labelled.to_csv(tmp_path / "new.csv", index=False)
    scores = score_file(run, tmp_path / "new.csv")
    folder = predict_file(run, tmp_path / "new.csv", tmp_path / "predicted")
    assert scores.scores.macro_f1 == pytest.approx(macro_f1_of(folder, labelled))
    assert scores.metrics["macro_f1"] == scores.scores.macro_f1 == scores.scores.macro_f1_interval.estimate
    (seen,) = scores.seen
    assert (seen.id, seen.place, seen.training_row) == ("new3", "line 5", "row007")
    left = predict_file(run, labelled.drop(index=3), tmp_path / "left")
    assert scores.unseen.macro_f1 == pytest.approx(macro_f1_of(left, labelled.drop(index=3)))
    own = run.results().scores.cross_fitted.macro_f1
    assert scores.out_of_fold.estimate == own
    gap = scores.minus_out_of_fold
    assert gap.estimate == pytest.approx(scores.unseen.macro_f1 - own) and gap.low < gap.estimate < gap.high
    files = run.path / "scores" / "new"
    assert {file.name for file in files.iterdir()} == {"scores.json", "labels.csv", "rows.csv"}
    rows = pd.read_csv(files / "rows.csv", keep_default_na=False)
    assert rows["training_row"].tolist() == ["row007" if i == 3 else "" for i in range(30)]
    np.testing.assert_allclose(rows[LABELS], pd.read_csv(folder / "test_proba.csv")[LABELS])
    assert pd.read_csv(files / "labels.csv")["label"].tolist() == run.label_names
    page = (run.path / "report.html").read_text()
    assert 'id="tables"' in page and "new3 (line 5, training row row007)" in page
    assert "Scored at other" not in page
    tune(run, Thresholds(strategy="fixed"))
    assert "Scored at other thresholds than the run ships now" in (run.path / "report.html").read_text()


def test_nothing_is_replaced_unasked(finished, copy_of, labelled):
    """Older scores stay without --overwrite, and what is no score stays with it."""
    run = copy_of(finished("tfidf"))
    score_file(run, labelled)
    before = (run.path / "scores" / "table" / "scores.json").read_bytes()
    with pytest.raises(RunError, match="holds scores already: replace them with --overwrite"):
        score_file(run, labelled)
    score_file(run, labelled, overwrite=True)
    assert (run.path / "scores" / "table" / "scores.json").read_bytes() == before
    with pytest.raises(RunError, match="something else than scores, and is not overwritten"):
        score_file(run, labelled, run.path, overwrite=True)


def test_what_is_missing_is_named(finished, labelled, tmp_path):
    """Columns, cells and classes; no folder is left behind."""
    run, out = finished("tfidf"), tmp_path / "out"
    with pytest.raises(DataError, match=r"no label columns 'fear', 'joy'\. Columns: source, text, id, anger"):
        score_file(run, labelled.drop(columns=["joy", "fear"]), out)
    wrong = labelled.astype({"joy": object, "fear": object})
    wrong.loc[2, "joy"], wrong.loc[5, "fear"] = "maybe", None
    with pytest.raises(DataError) as error:
        score_file(run, wrong, out)
    assert "label column 'joy': expected 0 or 1 (or true/false), but row 'new2' (row 2) has 'maybe'." in str(
        error.value
    )
    assert "label column 'fear': nothing stands in row 'new5' (row 5)." in str(error.value)
    with pytest.raises(DataError, match="two different texts"):
        score_file(run, labelled.iloc[:1], out)
    assert not out.exists()


def test_only_rows_that_were_trained_on(finished, train, tmp_path):
    """A score on the training table is stated, and said to flatter; there is nothing to compare."""
    scores = score_file(finished("tfidf"), train, tmp_path / "out")
    assert len(scores.seen) == len(train)
    assert scores.unseen is None and scores.minus_out_of_fold is None


def test_exports_and_refits(finished, copy_of, train, labelled, tmp_path):
    """One model of all folds, or of all rows: the first has no score of its own to compare with, and is told of seen
    texts without the ids of its rows."""
    run = copy_of(finished("bert"))
    exported = export(run, tmp_path / "shipped", to="merged")
    scores = score_file(exported, labelled)
    assert scores.exported and scores.out_of_fold is None
    assert [(row.id, row.training_row) for row in scores.seen] == [("new3", None)]
    refit(run, train)
    scores = score_file(run, labelled, models="refit")
    assert (scores.models, scores.n_models) == ("refit", 1)
    assert scores.minus_out_of_fold is not None
    assert list(run.table_scores()) == ["table-refit"]


def test_blends(finished, tfidf_recipe, train, test, labelled, tmp_path):
    """Texts that any of a blend's runs was trained on are named."""
    runs = [
        cross_validate(tfidf_recipe(tfidf__C=c), train, test, tmp_path / f"run{c}", fold_table=fold_table)
        for c, fold_table in ((1.0, None), (9.0, tmp_path / "run1.0" / "folds.csv"))
    ]
    blended = blend(runs, tmp_path / "blend")
    scores = score_file(blended, labelled)
    assert [row.training_row for row in scores.seen] == ["row007"]
    assert scores.out_of_fold.estimate == blended.results().scores.cross_fitted.macro_f1


@pytest.mark.parametrize("task", ["binary", "single_label"])
def test_other_tasks(task, tfidf_recipe, emotion_table, tmp_path):
    """F1 of the positive class; macro-F1 over classes and accuracy, from a column of names."""
    tables = []
    for seed, n in ((0, 60), (9, 30)):
        table = emotion_table(n, seed)
        genre = np.where(table["fear"] == 1, "fear", np.where(table["joy"] == 1, "joy", "other"))
        tables.append(table[["id", "text"]].assign(**({"joy": table["joy"]} if task == "binary" else {"genre": genre})))
    train, new = tables
    run = cross_validate(tfidf_recipe(task=task, metric="accuracy"), train, train[["id", "text"]], tmp_path / "run")
    scores = score_file(run, new)
    folder = predict_file(run, new[["id", "text"]], tmp_path / "predicted")
    decided, column = pd.read_csv(folder / "submission.csv"), new.columns[2]
    assert scores.metric == "accuracy"
    assert scores.scores.judged.estimate == pytest.approx(accuracy_score(new[column], decided[column]))
    average = {"average": "binary"} if task == "binary" else {"average": "macro"}
    assert scores.scores.macro_f1 == pytest.approx(f1_score(new[column], decided[column], **average))
    own = run.results().scores.cross_fitted.judged.estimate
    assert scores.minus_out_of_fold.estimate == pytest.approx(scores.unseen.judged.estimate - own)  # "happy"
    if task == "single_label":
        with pytest.raises(DataError, match=r"expected names that the training table has \(fear, joy, other\)"):
            score_file(run, new.assign(genre=["jazz", *genre[1:]]), tmp_path / "out")


def test_labels_of_the_test_table(tfidf_recipe, train, labelled, tmp_path, results):
    """Labels that stand in the test table score the finished run and change nothing else: all results are those of a
    run without them. A later `score` of the table loads no model."""
    own = labelled.assign(id=[f"t{i}" for i in range(30)])
    named = {"data__label_columns": LABELS}
    plain = cross_validate(tfidf_recipe(**named), train, own[["id", "text"]], tmp_path / "plain")
    run = cross_validate(tfidf_recipe(**named), train, own, tmp_path / "run")
    assert results(run) == results(plain)
    assert not plain.table_scores()
    (scores,) = run.table_scores().values()
    assert scores.scores.macro_f1 == pytest.approx(macro_f1_of(run.path, own))
    assert [row.id for row in scores.seen] == ["t3"]
    for fold in run.finished_folds:  # no model is needed
        (run.fold(fold).model / "weights.safetensors").unlink()
    again = score_file(run, own.to_csv(tmp_path / "own.csv", index=False) or tmp_path / "own.csv")
    assert again.scores == scores.scores


@pytest.mark.parametrize(("value", "why"), [(0, "no row has any label"), (0.5, "expected 0 or 1")])
def test_placeholders_in_a_test_table(value, why, tfidf_recipe, train, labelled):
    """Label columns of zeros, or of anything that is no label, cost a run nothing and are said to be left."""
    recipe = tfidf_recipe(data__label_columns=LABELS)
    tables = Tables(recipe, train, labelled.assign(**dict.fromkeys(LABELS, value)))
    assert tables.test_labels is None
    (note,) = [note for note in tables.notes if "label columns of the test table are not read" in note]
    assert why in note


def test_labels_in_both_tables_are_named(train, labelled):
    """Where nothing says which columns are labels, nothing is guessed; what the error says to set works."""
    with pytest.raises(DataError, match="used to score the finished run, and for nothing else") as error:
        Tables(load_recipe("tfidf-logreg"), train, labelled)
    (option,) = re.findall(r"--set \"(data\.label_columns=\S+ \S+ \S+)\"", str(error.value))
    tables = Tables(load_recipe("tfidf-logreg", [option]), train, labelled)
    np.testing.assert_array_equal(tables.test_labels, labelled[LABELS])


def test_a_score_that_fails_costs_a_run_nothing(tfidf_recipe, train, labelled, tmp_path, monkeypatch):
    """The labels of a test table are looked at when everything else is written."""
    monkeypatch.setattr("lora_cls.commands.score.score_rows", lambda *given: 1 / 0)
    run = cross_validate(tfidf_recipe(data__label_columns=LABELS), train, labelled, tmp_path / "run")
    assert run.files.submission.is_file() and run.files.page.is_file() and not run.table_scores()


def test_a_run_of_before_texts_were_noted(finished, copy_of, labelled, unsummed):
    """Whose training table is gone: the score is stated, and that seen rows cannot be told."""
    run = copy_of(finished("tfidf"))
    unsummed(run.path)
    run.files.text_hashes.unlink()
    values = json.loads(run.files.info.read_text())
    values["data"]["paths"]["train"] = "DataFrame"
    run.files.info.write_text(json.dumps(values))
    scores = score_file(RunFolder(run.path), labelled)
    assert scores.seen is None and scores.unseen is None
    assert scores.minus_out_of_fold is not None
    assert "trained on cannot be told" in scores.notes[0]


def test_user_names_are_inert(tfidf_recipe, emotion_table, tmp_path):
    """Names of labels, ids and files that mean something in HTML, in a spreadsheet, or to us."""
    hostile = "<img src=x onerror=alert(1)>"
    names = {"joy": hostile, "anger": "id", "fear": "=1+1"}
    train, new = emotion_table(45).rename(columns=names), emotion_table(12, seed=9).rename(columns=names)
    recipe = tfidf_recipe(data__label_columns=list(names.values()), data__id_column="row")
    train, new = (table.set_axis(["row", *table.columns[1:]], axis=1) for table in (train, new))
    run = cross_validate(recipe, train, out=tmp_path / "run")
    new.loc[0, "row"] = f"+{hostile}"
    new.loc[0, "text"] = train["text"][3]
    new.to_csv(tmp_path / "<b>new.csv", index=False)
    score_file(run, tmp_path / "<b>new.csv")
    page = (run.path / "report.html").read_text()
    assert "<img" not in page and "<b>new" not in page
    rows = pd.read_csv(run.path / "scores" / "<b>new" / "rows.csv", keep_default_na=False)
    assert rows.columns.tolist() == ["id_", "true", "decided", "training_row", hostile, "id", "'=1+1"]
    assert rows["id_"][0] == f"'+{hostile}"


def test_texts_that_were_read_without_labels(tfidf_recipe, train, labelled, tmp_path):
    """A student that read the rows with its teachers' answers may have gained by that: it is said."""
    recipe = tfidf_recipe(data__label_columns=LABELS)
    run = cross_validate(recipe, train, labelled, tmp_path / "run")
    assert not next(iter(run.table_scores().values())).notes
    recipe = run.recipe.model_copy(update={"distill": "teachers"})  # all that is asked of it
    run.__dict__["recipe"] = recipe
    assert "had read these texts, without their labels" in _read_without_labels(run, Labelled.read(run, labelled))[0]


def test_scores_of_another_table_stay(tfidf_recipe, train, labelled, tmp_path, results):
    """A run that goes on renews the score of its test rows, and touches no other table's of that name."""
    recipe, out = tfidf_recipe(data__label_columns=LABELS), tmp_path / "run"
    run = cross_validate(recipe, train, labelled, out, folds=[0])
    (partial,) = run.table_scores().values()
    assert partial.n_models == 1
    run = cross_validate(recipe, train, labelled, out, resume=True)
    (whole,) = run.table_scores().values()
    assert whole.n_models == 3 and whole.table_sha256 == partial.table_sha256
    other = score_file(run, labelled.iloc[:20], out / "scores" / "test", overwrite=True)
    run = cross_validate(recipe, train, labelled, out, resume=True)
    assert run.table_scores()["test"] == other


def test_command(finished, copy_of, labelled, tmp_path, monkeypatch, capsys):
    """The table, the sentences and the files are printed; damage in a score is told with what mends it."""
    from lora_cls import cli

    run = copy_of(finished("tfidf"))
    labelled.to_csv(tmp_path / "new.csv", index=False)

    def call(*more):
        monkeypatch.setattr(
            sys, "argv", ["lora-cls", "score", str(run.path), "--input", str(tmp_path / "new.csv"), *more]
        )
        with pytest.raises(SystemExit) as done:
            cli.main()
        return done.value.code, capsys.readouterr()

    code, said = call()
    assert not code
    assert re.search(
        r"Macro-F1 0\.\d{4} \(95 % interval .*\) on 30 rows of new\.csv, by 3 folds' models together", said.out
    )
    assert "WARNING: the run was trained on the texts of 1 of these rows" in said.out
    assert "two independent sets of rows" in said.out
    assert str(run.path / "scores" / "new" / "rows.csv") in said.out
    code, said = call()
    assert code == 2 and "--overwrite" in said.err
    file = run.path / "scores" / "new" / "scores.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"rows": 31}))
    with pytest.raises(
        RunError, match=r"was changed since it was written.*lora-cls score RUN --input FILE --overwrite"
    ):
        run.table_scores()
    assert not call("--overwrite")[0]
