"""`report.html`: what it says is what scikit-learn computes, what users wrote is text, and it loads nothing.

`test_page_in_a_browser.py` opens it.
"""

import hashlib
import json
import re
from html.parser import HTMLParser
from importlib import resources

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import confusion_matrix, f1_score, precision_score, recall_score

from lora_cls.cli import app
from lora_cls.commands.cross_validation import cross_validate
from lora_cls.errors import DataError, RunError
from lora_cls.report.content import page_content, spreadsheet
from lora_cls.report.page import render, write_page
from lora_cls.report.sentences import score_sentence
from lora_cls.runs import FoldInfo, RunFolder, RunInfo, training_data

HOSTILE = [
    "<script>window.harmed = 1</script>",
    '"><img src=x onerror="window.harmed = 1">',
    "\u202egnorw ot tfel\u2067 &amp; </script><!-- \u2028 \x07",
]


class Page(HTMLParser):
    """Elements, attributes and texts of a page, and everything that it would load."""

    VOID = ("meta", "link", "input", "br", "img")

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.texts, self.scripts, self.data = [], [], [], [], ""
        self.feed(html)
        assert not self.open, f"not closed: {self.open}"
        self.figures = json.loads(self.data)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        if tag not in self.VOID:
            self.open.append((tag, attributes))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1][0] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        tag, attributes = self.open[-1] if self.open else ("", {})
        if tag == "script" and attributes.get("type") == "application/json":
            self.data += data
        elif tag == "script":
            self.scripts.append(data)
        elif tag != "style":
            self.texts.append(data)

    def count(self, tag):
        return sum(found == tag for found, _ in self.elements)


def page(run):
    return Page((run.path / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def hostile_table(emotion_table):
    """45 rows whose ids, texts and label names are attacks."""
    table = emotion_table(45).rename(columns=dict(zip(("joy", "anger", "fear"), HOSTILE, strict=True)))
    table["text"] = [f"{text} {HOSTILE[i % 3]}" for i, text in enumerate(table["text"])]
    return table.assign(id=[f"<b onclick=x()>{i}</b>" for i in range(len(table))])


@pytest.fixture(scope="session")
def hostile_run(tmp_path_factory, hostile_table, tfidf_recipe):
    """A run of `hostile_table`, in a folder with a hostile name, and its page with texts."""
    recipe = tfidf_recipe(data__label_columns=HOSTILE)
    run = cross_validate(recipe, hostile_table, out=tmp_path_factory.mktemp("hostile") / "<i>run & co")
    write_page(run, training_data(run, hostile_table))
    return run


@pytest.mark.parametrize("kind", ["tfidf", "bert", "llama"])
def test_written_at_the_end_of_a_run(finished, kind):
    """The page stands in the run folder and holds the score sentence, every label, and no text of the data."""
    run = finished(kind)
    found, scores = page(run), run.results().scores
    assert score_sentence(scores) in found.text
    assert f"{scores.cross_fitted.macro_f1:.4f}" in found.text
    for name in run.label_names:
        assert name in found.texts
    assert "texts stay out" in found.text
    assert ("training loss" in found.text.lower()) == (kind != "tfidf")
    losses = [epoch["loss"] for fold in found.figures["folds"] for epoch in fold["epochs"]]
    assert len(losses) == (0 if kind == "tfidf" else 4)


def test_texts_only_where_asked_for(finished, copy_of, train):
    """Without the training table no text is in the page; with it the texts of the mistakes are."""
    run = copy_of(finished("tfidf"))
    texts = [str(text) for text in train["text"] if len(str(text)) > 20]
    before = (run.path / "report.html").read_text()
    assert not [text for text in texts if text in before]
    write_page(run, training_data(run, train))
    after = page(run).text
    assert [text for text in texts if text in after]
    assert "holds texts" in after


def test_every_slider_stop_is_scikit_learns(finished):
    """F1, precision and recall follow from the page's counts at every threshold, as scikit-learn computes them."""
    run = finished("tfidf")
    oof = run.out_of_fold()
    rows, y_score = oof.rows, oof.y_score
    y_true, shipped = run.y_true[rows], json.loads((run.path / "thresholds.json").read_text())["shipped"]
    for j, label in enumerate(page(run).figures["labels"]):
        assert label["name"] == run.label_names[j]
        assert label["thresholds"][label["start"]] == shipped[label["name"]]
        assert label["complete"]
        for t, tp, predicted in zip(label["thresholds"], label["true_positives"], label["predicted"], strict=True):
            y_pred = y_score[:, j] >= t
            f1 = 2 * tp / (predicted + label["support"])
            assert f1 == pytest.approx(f1_score(y_true[:, j], y_pred, zero_division=0), abs=1e-12)
            precision = precision_score(y_true[:, j], y_pred, zero_division=0)
            assert tp / max(predicted, 1) == pytest.approx(precision, abs=1e-12)
            assert tp / label["support"] == pytest.approx(recall_score(y_true[:, j], y_pred), abs=1e-12)


def test_decisions_are_those_that_are_scored(finished):
    """Fold scores, mistakes and pairs come from the cross-fitted decisions of metrics.json."""
    run = finished("tfidf")
    content, metrics = page_content(run), json.loads((run.path / "metrics.json").read_text())["cross_fitted"]
    for row, mistakes in zip(metrics["per_label"], content["mistakes"], strict=True):
        tp = round(row["recall"] * row["support"])
        assert mistakes["n_false_negatives"] == row["support"] - tp
        predicted = tp / row["precision"] if row["precision"] else mistakes["n_false_positives"]
        assert mistakes["n_false_positives"] == round(predicted - tp)
    folds = content["figures"]["folds"]
    assert [fold["rows"] for fold in folds] == np.bincount(run.folds["fold"]).tolist()


def test_hostile_values_are_text(hostile_run, hostile_table):
    """Names, ids and texts that are markup add no element, no attribute and no script, and can be read as written."""
    found = page(hostile_run)
    assert found.count("script") == 4  # the data, two libraries, ours
    assert len(found.scripts) == 3
    assert found.count("img") == found.count("b") == found.count("i") == 0
    assert not [name for _, attributes in found.elements for name in attributes if name.startswith("on")]
    assert HOSTILE[0] in found.texts
    assert HOSTILE[1] in found.texts
    assert [label["name"] for label in found.figures["labels"]][:2] == HOSTILE[:2]
    assert hostile_table["id"][0].startswith("<b") and any(text.startswith("<b onclick") for text in found.texts)
    raw = (hostile_run.path / "report.html").read_bytes()
    assert b"\x07" not in raw  # a control character is shown as a replacement
    assert "<" not in found.data
    assert "\u2028" not in found.data


def test_marks_of_writing_direction_are_isolated(hostile_run):
    """Every place that shows a user's value is a `bdi`, which ends what the value begins."""

    class Isolated(Page):
        def handle_data(self, data):
            super().handle_data(data)
            if "\u202e" in data and self.open[-1][0] not in ("script", "bdi"):
                outside.append((self.open[-1], data))

    outside = []
    Isolated((hostile_run.path / "report.html").read_text(encoding="utf-8"))
    # the sentence of the score holds no names; the title of the window is the folder's name
    assert not outside


@pytest.mark.parametrize("kind", ["tfidf", "llama"])
def test_loads_nothing(finished, kind):
    """No element fetches anything, and the policy lets only the scripts run whose digests it names."""
    found = page(finished(kind))
    loading = ("src", "srcset", "data", "action", "poster", "background", "formaction")
    for tag, attributes in found.elements:
        assert not [name for name in loading if name in attributes], tag
        assert attributes.get("href", "#").startswith(("#", "data:,")), tag
    styles = re.findall(r"<style>(.*?)</style>", (finished(kind).path / "report.html").read_text(), re.DOTALL)
    assert not [style for style in styles if "url(" in style or "@import" in style]
    policy = next(a["content"] for tag, a in found.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';")
    assert policy.count("'sha256-") == 3
    assert "unsafe-inline" not in policy.partition("script-src")[2]


@pytest.mark.parametrize("name", ["d3", "plot"])
def test_libraries_are_as_published(name):
    """The scripts of others are the files that their README names, unchanged, and come with their licences."""
    folder = resources.files("lora_cls.report") / "assets" / "vendor"
    digest = hashlib.sha256((folder / f"{name}.min.js").read_bytes()).hexdigest()
    assert digest in (folder / "README.md").read_text()
    assert "permission notice appear in all copies" in (folder / f"{name}.LICENSE").read_text()


def test_single_label(emotion_table, tfidf_recipe, tmp_path):
    """Classes: the confusion matrix of the decisions, weights instead of thresholds, no sliders."""
    table = emotion_table(45)
    rng = np.random.default_rng(0)
    names = np.array(["joy", "anger", "fear"])
    table["mood"] = names[table[names].to_numpy().argmax(axis=1)]
    table.loc[rng.choice(45, 6, replace=False), "mood"] = "fear"
    run = cross_validate(
        tfidf_recipe(data__label_columns=["mood"]), table[["id", "text", "mood"]], out=tmp_path / "run"
    )
    content, found = page_content(run), page(run)
    assert found.count("input") == 0
    matrix = np.array(found.figures["matrices"]["confusion"])
    assert matrix.sum() == 45
    metrics = json.loads((run.path / "metrics.json").read_text())
    assert np.trace(matrix) / 45 == pytest.approx(metrics["cross_fitted"]["accuracy"])
    assert matrix.sum(axis=1).tolist() == run.y_true.sum(axis=0).tolist()
    order = [pair["rows"] for pair in content["pairs"]["shown"]]
    assert sorted(order, reverse=True) == order == sorted(matrix[~np.eye(3, dtype=bool)], reverse=True)[: len(order)]
    oof = run.out_of_fold()
    rows, y_score = oof.rows, oof.y_score
    kept = json.loads((run.path / "thresholds.json").read_text())["folds"]
    fold = run.folds["fold"].to_numpy()[rows]
    weights = np.array([[kept[str(k)][name] for name in run.label_names] for k in fold])
    decided, truth = (y_score / weights).argmax(axis=1), run.y_true[rows].argmax(axis=1)
    assert (confusion_matrix(truth, decided, labels=[0, 1, 2]) == matrix).all()


@pytest.mark.parametrize("folds", [[1], [0, 2]])
def test_partial_runs(tfidf_recipe, train, tmp_path, folds):
    """A page of the folds so far; one fold alone has no cross-fitted decisions."""
    run = cross_validate(tfidf_recipe(), train, out=tmp_path / "run", folds=folds)
    found = page(run)
    assert f"Partial: {len(folds)} of 3 folds." in found.text
    assert [fold["fold"] for fold in found.figures["folds"]] == folds
    assert ("of the other parts of these rows" in found.text) == (len(folds) == 1)
    assert ("that decide each fold" in found.text) == (len(folds) == 2)


def test_one_label_and_a_label_without_rows(tfidf_recipe, train, tmp_path):
    """Binary runs, and labels that no row has, have pages."""
    run = cross_validate(tfidf_recipe(data__label_columns=["joy"], task="binary"), train, out=tmp_path / "one")
    assert "There is one label only" in page(run).text
    table = train.assign(never=0)
    run = cross_validate(tfidf_recipe(data__label_columns=["joy", "anger", "never"]), table, out=tmp_path / "never")
    label = page(run).figures["labels"][2]
    assert label["support"] == 0
    assert set(label["true_positives"]) == {0}


def test_large_parts_are_sampled_and_say_so(tmp_path):
    """6,000 rows with 28 labels: a small page that says how many thresholds, rows and pairs it leaves out."""
    rng = np.random.default_rng(0)
    names = [f"label {j}" for j in range(28)]
    y_true = (rng.random((6000, 28)) < 0.1).astype(np.int8)
    run = folder_of(tmp_path / "run", names, y_true, rng.normal(3 * y_true - 3, 1.5))
    file = write_page(run)
    found = page(run)
    assert file.stat().st_size < 3e6
    assert "would decide differently. Figures are exact at every stop." in found.text
    assert re.search(r"\(7 of \d{2,}\)", found.text)
    assert "Shown are the 40 surest." in found.text
    assert "the 12 most frequent of 756 pairs" in found.text


def folder_of(path, names, y_true, logits):
    """A finished run folder of two folds with the given out-of-fold logits, without any training."""
    from lora_cls.commands.tune import tune
    from lora_cls.data.dataset import Dataset
    from lora_cls.files import write_array
    from lora_cls.recipe import load_recipe

    n = len(y_true)
    ids = [f"r{i}" for i in range(n)]
    data = Dataset(ids, [f"text {i}" for i in range(n)], y_true, names, np.arange(n))
    recipe = load_recipe({"tfidf": {}, "cv": {"n_splits": 2}, "task": "multi_label"})
    fold = np.arange(n) % 2
    columns = {"id_column": "id", "test_id_column": "id", "text_columns": ["text"], "label_columns": names}
    table = columns | {"paths": {}, "train_rows": n, "test_rows": None, "train_sha256": data.fingerprint()}
    info = {
        "started": "", "versions": {}, "machine": {"processor": "", "platform": ""}, "data": table, "choices": {},
        "seconds": {"train": 1.0, "predict": 1.0}, "peak_memory_bytes": 0,
    }  # fmt: skip
    run = RunFolder.create(path, recipe, data, fold, RunInfo.model_validate(info))
    for number in (0, 1):
        folder = run.fold(number)
        folder.path.mkdir()
        write_array(folder.oof_logits, logits[fold == number].astype(np.float32))
        seconds = {"train": 1.0, "predict": 1.0}
        folder.write_info(FoldInfo(pos_weight=[1.0] * len(names), train_rows=n // 2, seconds=seconds))
    tune(run)
    return run


def test_report_command(finished, copy_of, train, tmp_path, monkeypatch, capsys):
    """`report RUN` writes the page again; `--train` puts texts into it, `--out` puts it elsewhere."""
    from typer.testing import CliRunner

    run = copy_of(finished("tfidf"))
    table = tmp_path / "train.csv"
    train.to_csv(table, index=False)
    before = (run.path / "report.html").read_bytes()
    (run.path / "report.html").unlink()
    done = CliRunner().invoke(app, ["report", str(run.path)])
    assert done.exit_code == 0, done.output
    assert str(run.path / "report.html") in done.output
    assert (run.path / "report.html").read_bytes() == before
    elsewhere = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["report", str(run.path), "--train", str(table), "--out", str(elsewhere)])
    assert done.exit_code == 0, done.output
    assert "holds texts" in Page(elsewhere.read_text()).text
    assert (run.path / "report.html").read_bytes() == before


def test_other_data_is_refused(finished, train):
    """Texts of another table would stand beside the wrong ids."""
    other = train.assign(text=list(train["text"])[::-1])
    with pytest.raises(RunError, match=r"is not the data that .* was trained on"):
        training_data(finished("tfidf"), other)


def test_run_without_scores(finished, copy_of):
    """A run whose scores are missing says so."""
    run = copy_of(finished("tfidf"))
    (run.path / "metrics.json").unlink()
    with pytest.raises(RunError, match=r"metrics\.json is missing"):
        page_content(run)


def test_tuning_again_writes_the_page_again(finished, copy_of):
    """`lora-cls tune` changes thresholds, and with them the page."""
    from typer.testing import CliRunner

    run = copy_of(finished("tfidf"))
    done = CliRunner().invoke(app, ["tune", str(run.path), "--strategy", "fixed", "--default", "0.123"])
    assert done.exit_code == 0, done.output
    assert [label["thresholds"][label["start"]] for label in page(run).figures["labels"]] == [0.123] * 3


def test_card_metadata(finished):
    """The README's header loads as a model card with the library, tags and scores."""
    from huggingface_hub import ModelCard

    for kind, library in (("tfidf", "sklearn"), ("bert", "transformers"), ("llama", "peft")):
        run = finished(kind)
        card = ModelCard((run.path / "README.md").read_text())
        data, metrics = card.data, json.loads((run.path / "metrics.json").read_text())
        assert data.library_name == library
        assert data.pipeline_tag == "text-classification"
        assert ("lora" in data.tags) == (library == "peft")
        assert data.base_model is None  # a local folder is nobody else's
        assert str(run.path) not in card.content.partition("\n---\n")[0]
        assert data.eval_results[0].metric_value == pytest.approx(metrics["cross_fitted"]["macro_f1"], abs=1e-6)
        assert card.text.lstrip().startswith(f"# {run.path.name}")


def test_card_names_a_base_of_the_hub(finished, copy_of):
    """A base that was loaded by its hub id is named."""
    from lora_cls.report.card import card_data

    run = copy_of(finished("llama"))
    file = run.path / "recipe.yaml"
    file.write_text(re.sub(r"name_or_path: .*", "name_or_path: google/gemma-2-2b", file.read_text()))
    run.update_info(backbone_path="google/gemma-2-2b", files={})
    assert card_data(run, run.results().scores).base_model == "google/gemma-2-2b"


def test_same_page_from_the_same_run(finished):
    """Nothing of the moment of writing is in the page."""
    run = finished("bert")
    assert render(page_content(run)) == (run.path / "report.html").read_text(encoding="utf-8")
    assert pd.read_csv(run.path / "oof_proba.csv").shape[0] == page_content(run)["rows"]


def test_a_report_that_fails_costs_no_run(tfidf_recipe, train, tmp_path, monkeypatch, capsys):
    """Whatever goes wrong in drawing the page or the card, the run is finished; `report` shows the error."""
    from typer.testing import CliRunner

    def fail(*_):
        raise ZeroDivisionError("a fault of the page")

    with monkeypatch.context() as broken:
        broken.setattr("lora_cls.report.page.page_content", fail)
        broken.setattr("lora_cls.report.page.write_card", fail)
        run = cross_validate(tfidf_recipe(), train, out=tmp_path / "run", show=True)
        said = capsys.readouterr().err
        for name in ("report.html", "README.md"):
            assert f"{name} could not be written (ZeroDivisionError: a fault of the page)" in " ".join(said.split())
            assert not (run.path / name).exists()
        assert json.loads((run.path / "metrics.json").read_text())["cross_fitted"]["macro_f1"] > 0
        assert isinstance(CliRunner().invoke(app, ["report", str(run.path)]).exception, ZeroDivisionError)
    assert CliRunner().invoke(app, ["report", str(run.path)]).exit_code == 0
    assert (run.path / "README.md").is_file()
    assert score_sentence(run.results().scores) in page(run).text


def test_an_old_page_does_not_outlive_its_scores(finished, copy_of, monkeypatch):
    """`tune` whose page fails removes the page of the scores before."""
    from typer.testing import CliRunner

    run = copy_of(finished("tfidf"))

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("lora_cls.report.page.page_content", fail)
    done = CliRunner().invoke(app, ["tune", str(run.path), "--strategy", "fixed"])
    assert done.exit_code == 0, done.output
    assert not (run.path / "report.html").exists()


def test_split_and_extra_rows(emotion_table, tfidf_recipe, tmp_path):
    """One scored fold is decided by its parts, and rows that are only trained on have no place among the mistakes."""
    table = emotion_table(120).assign(part=["train", "valid"] * 60)
    recipe = tfidf_recipe(data__split_column="part")
    extra = emotion_table(30)
    extra = extra.assign(id=[f"x{i}" for i in range(30)], text=[f"{text} again" for text in extra["text"]])
    run = cross_validate(recipe, table, extra_train=extra, out=tmp_path / "run")
    content, metrics = page_content(run), json.loads((run.path / "metrics.json").read_text())
    assert metrics["cross_fitted"]["over"] == "parts"
    assert content["rows"] == 60
    assert content["figures"]["folds"][0]["macro_f1"] == pytest.approx(metrics["cross_fitted"]["macro_f1"])
    for row, mistakes in zip(metrics["cross_fitted"]["per_label"], content["mistakes"], strict=True):
        assert mistakes["n_false_negatives"] == row["support"] - round(row["recall"] * row["support"])
    found = page(run).text
    assert "of the other parts of these rows" in found
    assert "150 training rows, 30 of them extra" in found
    assert "What ships is the one model" in found
    write_page(run, training_data(run, table, extra))
    assert "holds texts" in page(run).text


def test_a_page_that_cannot_be_written(finished, tmp_path):
    """A folder that is not there is named."""
    with pytest.raises(RunError, match=r"page\.html cannot be written"):
        write_page(finished("tfidf"), out=tmp_path / "nowhere" / "page.html")


def test_the_wrong_table_is_named(tfidf_recipe, train, test, tmp_path):
    """A table that is not the run's is named itself, not the run's, nor one of extra rows beside it."""
    table = train[["id", "text"]].assign(mood=np.where(train["joy"] == 1, "joy", "other"))
    extra = table[:4].assign(id=list("abcd"), text=[f"happy {i}" for i in range(4)])
    for name, rows in {"train": table, "extra": extra, "wrong": table.assign(mood=["x", "y", "z"] * 15)}.items():
        rows.to_csv(tmp_path / f"{name}.csv", index=False)
    recipe = tfidf_recipe(data__label_columns=["mood"])
    run = cross_validate(
        recipe, tmp_path / "train.csv", out=tmp_path / "run", extra_train=tmp_path / "extra.csv"
    )  # fmt: skip
    with pytest.raises(RunError, match=r"wrong\.csv is not the data that"):
        training_data(run, str(tmp_path / "wrong.csv"))
    with pytest.raises(DataError, match=r"wrogn\.csv does not exist .* Did you mean 'wrong\.csv'"):
        training_data(run, str(tmp_path / "wrogn.csv"))


def test_settings_and_test_rows_are_on_the_page(finished):
    """What was trained, and how many test rows each label was given beside its share in training."""
    run = finished("llama")
    text = Page(run.files.page.read_text(encoding="utf-8")).text
    lora, train = run.recipe.lora, run.recipe.train
    for part in (
        f"r {lora.r}, alpha {lora.lora_alpha:g}", "all-linear", f"{train.learning_rate:g}, {train.lr_scheduler_type}",
        f"epochs {train.num_train_epochs}, kept: last", f"batch {train.per_device_train_batch_size} texts a step",
        f"seed {train.seed}", f"folds {run.recipe.cv.n_splits}",
    ):  # fmt: skip
        assert part in text
    test = page_content(run)["test"]
    assert test["rows"] == len(run.test_ids)
    for j, (name, row) in enumerate(zip(run.label_names, test["labels"], strict=True)):
        assert row["positives"] == run.submission[name].sum()
        assert row["train"] == pytest.approx(run.y_true[:, j].mean())
    assert f"{len(run.test_ids)} rows without known labels" in text


def test_mistakes_and_doubts_as_tables(finished, copy_of):
    """Beside the page: every mistake of every label once, every label in doubt, and texts only where asked for."""
    run = copy_of(finished("tfidf"))
    write_page(run)
    results = run.results()
    oof, decided = results.oof, results.oof.decide(run.task(), results.decision)
    table = pd.read_csv(run.files.mistakes, dtype={"id": str})
    wrong = {(i, j) for i, j in zip(*np.nonzero(decided != oof.y_true), strict=True)}
    place = {value: i for i, value in enumerate(oof.ids)}
    told = [(place[row["id"]], oof.label_names.index(row["label"])) for row in table.to_dict("records")]
    assert len(told) == len(wrong) and set(told) == wrong
    for (i, j), kind in zip(told, table["mistake"], strict=True):
        assert kind == ("missed" if oof.y_true[i, j] else "wrongly given")
    doubts = run.task().doubts(oof.y_true, oof.y_score)
    assert pd.read_csv(run.files.doubts, dtype={"id": str})["id"].tolist() == [oof.ids[i] for i in doubts.rows]
    assert "text" not in table


def test_cells_of_a_spreadsheet_are_no_formulas():
    """What a spreadsheet would run begins with an apostrophe; numbers and other texts stay as they are."""
    rows = [
        {"id": cell, "fold": 0, "probability": -1.0} for cell in ("=1+1", "@a", "-2+3", "+cmd", "-5", "+1.5", "a=b")
    ]
    table = spreadsheet(rows, ["id", "fold", "probability"])
    assert table["id"].tolist() == ["'=1+1", "'@a", "'-2+3", "'+cmd", "-5", "+1.5", "a=b"]
    assert table["probability"].tolist() == [-1.0] * 7


def test_another_page_leaves_tables_of_other_names_alone(finished, copy_of, tmp_path):
    """`--out page.html` writes page.mistakes.csv, and not over somebody's mistakes.csv."""
    (tmp_path / "mistakes.csv").write_text("mine")
    write_page(copy_of(finished("tfidf")), out=tmp_path / "page.html")
    assert (tmp_path / "mistakes.csv").read_text() == "mine"
    assert (tmp_path / "page.mistakes.csv").is_file() and (tmp_path / "page.doubts.csv").is_file()
