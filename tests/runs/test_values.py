"""A run folder hands out values: every file is read once, and what changes a score writes all that shows it."""

import builtins
import io
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lora_cls import Classifier, RunFolder, blend, calibrate, compare, cross_validate, tune
from lora_cls.errors import DataError, RunError
from lora_cls.recipe import Prediction, Thresholds
from lora_cls.runs import FoldInfo, RunInfo, Scores


@pytest.fixture
def reads(monkeypatch):
    """Counter of the files that are opened for reading, by path."""
    counts = Counter()
    opened, path_open = io.open, Path.open

    def count(file, mode="r", *arguments, **options):
        if isinstance(file, (str, os.PathLike)) and not set(mode) & set("wax+"):
            counts[os.fspath(file)] += 1
        return opened(file, mode, *arguments, **options)

    monkeypatch.setattr(builtins, "open", count)  # pandas and numpy
    monkeypatch.setattr(io, "open", count)  # pathlib
    assert path_open is Path.open
    return counts


@pytest.mark.parametrize("kind", ["tfidf", "llama"])
def test_a_tune_reads_each_file_once(finished, copy_of, reads, kind):
    """Thresholds, scores, submission, card and page come from one reading of each file."""
    path = copy_of(finished(kind)).path
    reads.clear()
    tune(RunFolder(path))
    of_run = {os.path.relpath(file, path): n for file, n in reads.items() if file.startswith(str(path))}
    assert {"folds.csv", "train_labels.csv", "run.json", "fold-00/oof_logits.npy", "fold-00/fold.json"} <= set(of_run)
    # of two the sum is compared first, and then they are read as a user's files are
    assert {file for file, n in of_run.items() if n > 1} <= {"recipe.yaml", "sample_submission.csv"}


def test_python_writes_what_the_command_writes(finished, copy_of):
    """After `tune()` from Python the card and the page show the new score, and not the old one."""
    run = copy_of(finished("tfidf"))
    before = run.results().scores
    after = tune(run, Thresholds(strategy="fixed", default=0.9), Prediction(at_least_one=True))
    old, new = (f"{scores.cross_fitted.macro_f1:.4f}" for scores in (before, after))
    assert old != new
    for file in (run.files.card, run.files.page):
        text = file.read_text(encoding="utf-8")
        assert new in text
        assert f"Macro-F1 {old}" not in text


def test_python_blends_with_card_and_page(finished, copy_of, tmp_path):
    """`blend()` from Python leaves the files of the command, and takes runs as well as paths."""
    run = copy_of(finished("tfidf"))
    other = RunFolder(tmp_path / "copy" / run.path.name).path
    twin = tmp_path / "twin"
    import shutil

    shutil.copytree(other, twin)
    blended = blend([run, twin], tmp_path / "blend")
    assert blended.files.card.is_file()
    assert f"{blended.results().scores.cross_fitted.macro_f1:.4f}" in blended.files.page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("run.json", lambda values: values.pop("choices"), r"run\.json lacks 'choices'"),
        ("run.json", lambda values: values["data"].pop("label_columns"), r"run\.json lacks 'data\.label_columns'"),
        ("metrics.json", lambda values: values["cross_fitted"].update(macro_f1="0.5"), r"cross_fitted\.macro_f1"),
        ("thresholds.json", lambda values: values["shipped"].update(joy=True), r"shipped\.joy.*lora-cls tune"),
        ("thresholds.json", lambda values: values["shipped"].update(joy="0.5"), r"shipped\.joy"),
        ("fold-00/fold.json", lambda values: values.update(pos_weight=["1"]), r"pos_weight\.0.*--resume"),
    ],
)
def test_wrong_values_name_their_field(finished, copy_of, name, change, said):
    """A field that is missing or of another type is named with its file and with what mends it."""
    path = copy_of(finished("tfidf")).path
    values = json.loads((path / name).read_text())
    change(values)
    (path / name).write_text(json.dumps(values))
    with pytest.raises(RunError, match=said):
        RunFolder(path).results(), RunFolder(path).info.choices


def test_records_write_what_they_read(finished):
    """Reading and writing a record gives the same bytes: nothing is added, lost or reordered."""
    run = finished("llama")
    for kind, file in (
        (RunInfo, run.files.info),
        (Scores, run.files.scores),
        (FoldInfo, run.fold(0).info_file),
        (type(run.results().decision), run.files.decision),
    ):
        record = kind.read(file)
        before = file.read_bytes()
        record.write(file)
        assert file.read_bytes() == before


def test_shown_in_a_notebook(finished):
    """A run, its scores and its folds say what they are; HTML escapes what users wrote."""
    run = finished("tfidf")
    scores = run.results().scores
    assert repr(run) == f"RunFolder({str(run.path)!r})"
    assert f"macro_f1={scores.cross_fitted.macro_f1:.4f}" in repr(scores)
    table = scores.per_label()
    assert table["label"].tolist() == run.label_names
    np.testing.assert_array_equal(table["f1"], [row.f1 for row in scores.cross_fitted.per_label])
    assert "<table" in run._repr_html_()
    hostile = scores.cross_fitted.per_label[0].model_copy(update={"label": "<script>"})
    changed = scores.model_copy(
        update={"cross_fitted": scores.cross_fitted.model_copy(update={"per_label": [hostile]})}
    )
    assert "<script>" not in changed._repr_html_()


def test_paths_and_runs_alike(finished, copy_of):
    """Whatever takes a run takes its path, too; a classifier says what it holds."""
    run = copy_of(finished("tfidf"))
    assert tune(str(run.path)) == run.results().scores
    assert calibrate(run.path) == calibrate(run)
    assert repr(Classifier.load(run)) == f"Classifier({str(run.path)!r}, 3 models, labels: fear, joy, anger)"


def test_a_bad_sample_changes_nothing(finished, copy_of):
    """A sample submission that does not fit is refused before any file of the run is written again."""
    run = copy_of(finished("tfidf"))
    run.files.sample_submission.write_text("id,joy\nt00,0\n")
    run.update_info(files={})  # as a run of an earlier version, whose files have no sums
    before = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
    with pytest.raises(DataError, match="missing"):
        tune(run.path, Thresholds(strategy="fixed", default=0.9))
    assert {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()} == before


def test_a_run_hands_out_its_tables(finished, copy_of):
    """Scores, out-of-fold probabilities, test probabilities and the submission are tables that say what files do."""
    run = copy_of(finished("tfidf"))
    assert run.scores == run.results().scores
    assert run.per_label["label"].tolist() == run.label_names
    assert run.per_label["f1"].tolist() == [row.f1 for row in run.scores.cross_fitted.per_label]
    oof = run.out_of_fold()
    assert run.oof.columns.tolist() == ["id", "fold", *run.label_names]
    assert run.oof["id"].tolist() == run.folds["id"].tolist()
    assert run.oof["fold"].tolist() == run.folds["fold"].tolist()
    assert np.array_equal(run.oof[run.label_names].to_numpy(), oof.y_score)
    assert run.test_proba["id"].tolist() == run.test_ids
    submission = run.submission.set_index("id").loc[run.test_ids]  # the sample has another order
    decided = run.task().apply(
        run.test_proba[run.label_names].to_numpy(), np.array(list(run.results().decision.shipped.values()))
    )
    assert np.array_equal(submission[run.label_names].to_numpy(), decided)
    before = run.scores
    tune(run, Thresholds(strategy="fixed", default=0.9))
    assert run.scores != before  # read again, as it was written again


def test_ids_of_a_submission_stay_text(emotion_table, tmp_path):
    """A submission whose ids begin with zeros keeps them."""
    ids = [f"{i:03d}" for i in range(12)]
    test = emotion_table(12, seed=5)[["id", "text"]].assign(id=ids)
    run = cross_validate("tfidf-logreg", emotion_table(45), test, tmp_path / "run", overrides=["cv.n_splits=2"])
    assert run.submission["id"].tolist() == ids
    assert run.test_proba["id"].tolist() == ids


def test_a_run_without_test_rows_has_no_submission(emotion_table, tmp_path):
    """What a run has not is None."""
    run = cross_validate("tfidf-logreg", emotion_table(45), out=tmp_path / "run", overrides=["cv.n_splits=2"])
    assert (run.test_proba, run.submission) == (None, None)


def test_a_run_in_a_notebook(finished, copy_of):
    """A run shows its score, its labels and its page; damage in a file is a sentence there, not a traceback."""
    run = copy_of(finished("tfidf"))
    shown = run._repr_html_()
    for part in (f"{run.scores.cross_fitted.macro_f1:.4f}", *run.label_names, "report.html", "folds finished"):
        assert part in shown
    run.files.scores.write_text("{")
    assert "is damaged" in RunFolder(run.path)._repr_html_()


@pytest.mark.parametrize("run", [None, 3, ["runs/a"]])
def test_what_is_no_run(run):
    """Only a path or a RunFolder is a run; whatever takes one says so."""
    for takes in (tune, calibrate, Classifier.load):
        with pytest.raises(RunError, match=r"given by its path or as a RunFolder\. Got"):
            takes(run)


def test_one_run_is_no_list(finished, tmp_path):
    """A single path is not taken for a list of its letters."""
    for takes in (compare, lambda runs: blend(runs, tmp_path / "blend")):
        with pytest.raises(RunError, match="list of runs"):
            takes(str(finished("tfidf").path))
