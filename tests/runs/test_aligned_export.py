"""An export whose scores are mapped to those of the folds together, by texts alone."""

import json
import re
import shutil
import sys

import numpy as np
import pytest

from lora_cls.commands.cross_validation import cross_validate
from lora_cls.commands.export import export
from lora_cls.commands.predict import Classifier
from lora_cls.commands.tune import tune
from lora_cls.errors import DataError, RunError
from lora_cls.evaluation import logit
from lora_cls.runs import RunFolder
from lora_cls.runs.records import ExportInfo


@pytest.fixture(scope="module")
def texts(emotion_table):
    """150 texts, some of them twice, with labels that are all wrong."""
    table = emotion_table(150, seed=11)
    table.loc[149, "text"] = table.loc[0, "text"]
    return table.assign(joy=1, anger=1, fear=1)


@pytest.fixture(scope="module")
def lora_run(small_recipe, train, texts, tmp_path_factory):
    """Two folds that differ, with test rows."""
    recipe = small_recipe("bert", train__num_train_epochs=3, train__learning_rate=2e-2)
    return cross_validate(recipe, train, texts[["id", "text"]], out=tmp_path_factory.mktemp("lora") / "run")


@pytest.fixture(scope="module")
def aligned(lora_run, texts, tmp_path_factory):
    return export(lora_run, tmp_path_factory.mktemp("export") / "aligned", align=texts)


def test_decides_as_many_as_the_folds(lora_run, aligned, texts, tmp_path):
    """At any threshold each label is given to as many of the texts as by the folds together; not without the map."""
    plain = export(lora_run, tmp_path / "plain")
    wanted, before, after = (
        Classifier.load(run).predict_proba(list(texts["text"])) for run in (lora_run, plain, aligned)
    )
    for share in (0.1, 0.5, 0.9):
        limits = np.quantile(wanted, share, axis=0)
        np.testing.assert_allclose((after >= limits).mean(axis=0), 1 - share, atol=0.03)
        assert np.abs((before >= limits).mean(axis=0) - (1 - share)).max() > 0.03
    for j in range(3):  # rows keep their order
        assert (np.diff(after[np.argsort(before[:, j], kind="stable"), j]) >= -1e-12).all()
    assert (plain.path / "thresholds.json").read_bytes() == (aligned.path / "thresholds.json").read_bytes()
    files = {file.relative_to(aligned.path) for file in aligned.path.rglob("*")}
    assert files == {file.relative_to(plain.path) for file in plain.path.rglob("*")}
    assert "score_map" not in json.loads((plain.path / "export.json").read_text())
    assert Classifier.load(plain).fingerprint() != Classifier.load(aligned).fingerprint()


def test_labels_play_no_part(lora_run, aligned, texts, tmp_path):
    """The same map from the texts alone; they count once each, whatever table they stand in."""
    again = export(lora_run, tmp_path / "again", align=[texts[["id", "text"]], texts.assign(id=texts["id"] + "x")])
    maps = [ExportInfo.read(folder.files.export).score_map for folder in (aligned, again)]
    assert maps[0].texts == maps[1].texts == texts["text"].nunique()
    for label in range(3):
        np.testing.assert_allclose(maps[0].x[label], maps[1].x[label], atol=1e-4)
        np.testing.assert_allclose(maps[0].y[label], maps[1].y[label], atol=1e-4)


def test_the_test_rows_answers_are_taken_from_the_run(lora_run, aligned, texts, tmp_path, copy_of):
    """Of the run's own test table the folds are not asked again: their models could be gone for that."""
    shutil.copytree(aligned.path, tmp_path / "mapped")
    asked = []

    def predict_proba(self, rows):
        asked.append(self.n_models)
        return original(self, rows)

    original = Classifier.predict_proba
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classifier, "predict_proba", predict_proba)
        export(lora_run, tmp_path / "own", align=texts[["id", "text"]])
        assert asked == [1]
        export(lora_run, tmp_path / "other", align=texts.iloc[:120])
    assert asked == [1, 2, 1]


def test_votes_are_mapped_to_mean_log_odds(lora_run, texts, tmp_path, copy_of):
    """Shares of votes are no probabilities; thresholds are those of the folds' own scores."""
    run = copy_of(lora_run)
    recipe = run.recipe
    tune(run, recipe.thresholds, recipe.prediction.model_copy(update={"combine": "vote"}))
    exported = export(run, tmp_path / "voted", align=texts)
    folds, y = lora_run.test_scores(), ExportInfo.read(exported.files.export).score_map.y
    together = logit(folds).mean(axis=0)
    np.testing.assert_allclose([knots[-1] for knots in y], together.max(axis=0), atol=1e-4)


def test_a_plain_script_reads_it(aligned, blocks, texts, capsys, monkeypatch):
    """The formula of the README, after its snippet, gives the probabilities that lora_cls gives."""
    monkeypatch.chdir(aligned.path)
    snippet, formula = blocks(aligned.path)[:2]
    names = {}
    exec(snippet, names)
    given = list(texts["text"])[:4]
    capsys.readouterr()
    exec(formula.replace('["a text"]', repr(given)).replace("print(", "found = ("), names)
    np.testing.assert_allclose(names["found"], Classifier.load(aligned).predict_proba(given), atol=1e-5)
    assert "149 texts, whose labels played no part" in (aligned.path / "README.md").read_text()


def test_on_the_command_line_with_scores(lora_run, texts, tmp_path, monkeypatch, capsys):
    """--align may be repeated; the map stays where scores are added, and is said."""
    from lora_cls import cli

    for name, part in (("a", texts[:60]), ("b", texts[60:])):
        part.to_csv(tmp_path / f"{name}.csv", index=False)
    given = ["export", lora_run.path, "--out", tmp_path / "out", "--align", tmp_path / "a.csv", "--align",
             tmp_path / "b.csv", "--score", tmp_path / "b.csv", "--to", "merged"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["lora-cls", *map(str, given)])
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert not done.value.code
    assert "Aligned: its scores are mapped" in capsys.readouterr().out
    about = json.loads((tmp_path / "out" / "export.json").read_text())
    assert about["score_map"]["tables"] == ["a.csv", "b.csv"]
    assert [row["model"] for row in about["scores"]] == ["the folds together", "exact mean", "merged"]
    assert (RunFolder(tmp_path / "out").path / "README.md").read_text().count("whose labels played no part (a.csv")


def test_what_is_refused(lora_run, small_recipe, emotion_table, texts, tmp_path):
    """Too few texts, a table without texts, classes: said before anything is made."""
    for table, error in (
        (texts.iloc[:99], r"At least 100 different texts .* Got 99"),
        (texts[["id", "joy"]], "text"),
    ):
        with pytest.raises(DataError, match=error):
            export(lora_run, tmp_path / "out", align=table)
    names = ["joy", "anger", "fear"]
    train = emotion_table(36)[["id", "text"]].assign(mood=[names[i % 3] for i in range(36)])
    recipe = small_recipe("bert", train__num_train_epochs=1, data__label_columns=["mood"])
    classes = cross_validate(recipe, train, out=tmp_path / "classes")
    with pytest.raises(RunError, match="decided one by one"):
        export(classes, tmp_path / "out", align=texts)
    assert [file.name for file in tmp_path.iterdir()] == ["classes"]


def test_a_damaged_map_is_an_error(aligned, tmp_path):
    """As any change of what is written: no other scores without a word."""
    folder = shutil.copytree(aligned.path, tmp_path / "copy")
    content = (folder / "export.json").read_text()
    (folder / "export.json").write_text(re.sub(r'"texts": 149', '"texts": 148', content))
    with pytest.raises(RunError, match=r"export\.json was changed"):
        Classifier.load(folder)
