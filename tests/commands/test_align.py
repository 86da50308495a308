"""Runs on other rows, folds, labels or tasks are refused, with what differs; another order of rows is no difference."""

import json
import shutil

import numpy as np
import pytest

from lora_cls.commands.blend import blend
from lora_cls.commands.calibrate import calibrate
from lora_cls.commands.compare import compare
from lora_cls.commands.tune import tune
from lora_cls.errors import LoraClsError, RunError
from lora_cls.evaluation import macro_f1
from lora_cls.report.page import write_page
from lora_cls.runs import RunFolder, align


@pytest.fixture
def pair(make_run, problem):
    """Function that makes two runs; keywords change the second."""
    y_true, fold, logits = problem(30)
    first = make_run("first", logits(1), y_true, fold)

    def make(**changes):
        given = {"logits": logits(1), "y_true": y_true, "fold": fold} | changes
        return first, make_run("second", **given)

    return make


def test_order_of_rows_and_labels(make_run, problem):
    """Rows are matched by id and labels by name: a run that is the same in another order says the same."""
    y_true, fold, logits = problem(30)
    values, ids = logits(1), [f"r{i}" for i in range(30)]
    first = make_run("first", values, y_true, fold)
    order = np.random.default_rng(1).permutation(30)
    other = make_run(
        "other", values[order][:, ::-1], y_true[order][:, ::-1], fold[order], ids=[ids[i] for i in order],
        names=("joy", "anger"),
    )  # fmt: skip
    a, b = align([first.path, other.path])
    assert a.oof.ids == b.oof.ids == ids
    np.testing.assert_array_equal(a.oof.y_score, b.oof.y_score)
    np.testing.assert_array_equal(a.oof.logits, values.astype(np.float32))
    np.testing.assert_array_equal(a.y_pred, b.y_pred)
    np.testing.assert_array_equal(b.oof.y_true, y_true)


def test_other_rows(pair):
    """Missing and additional rows are counted and named."""
    first, second = pair(ids=[f"r{i}" for i in range(2, 30)] + ["x1", "x2"])
    with pytest.raises(RunError) as error:
        align([first.path, second.path])
    assert f"{second.path}: 2 of its rows are not in {first.path}: ids x1, x2." in str(error.value)
    assert f"{second.path}: 2 rows of {first.path} are missing: ids r0, r1." in str(error.value)


def test_other_folds(pair):
    """Other folds are counted, the first row that lies elsewhere is named, and the remedy."""
    first, second = pair(fold=np.arange(30) % 5)
    with pytest.raises(RunError, match=r"24 of 30 rows lie in other folds.*5 folds for 3; id r3 in fold 3, there in 0"):
        align([first.path, second.path])
    with pytest.raises(RunError, match=r"--fold-table .*folds\.csv"):
        align([first.path, second.path])


def test_other_labels_of_a_row(pair, problem):
    """The same ids with other labels are other rows."""
    y_true = problem(30)[0].copy()
    y_true[4] = 1 - y_true[4]
    first, second = pair(y_true=y_true)
    with pytest.raises(RunError, match=r"1 rows have other labels than in .*first: ids r4\."):
        align([first.path, second.path])


def test_other_label_names(pair):
    """Labels that only one run has are named."""
    first, second = pair(names=("anger", "fear"))
    with pytest.raises(RunError, match=r"it has fear and lacks joy"):
        align([first.path, second.path])


def test_unfinished_fold(pair):
    """A run with an unfinished fold has no answer for some rows."""
    first, second = pair(unfinished=(2,))
    with pytest.raises(
        RunError, match=r"second: 1 of 3 folds are unfinished that another run has \(\d\); use --resume"
    ):
        align([first.path, second.path])


def test_all_problems_at_once(pair, make_run, problem, tmp_path):
    """Several wrong runs are told in one error."""
    first, second = pair(fold=np.arange(30) % 2)
    y_true, fold, logits = problem(30)
    third = make_run("third", logits(1)[:20], y_true[:20], fold[:20])
    with pytest.raises(RunError) as error:
        align([first.path, second.path, third.path])
    assert "second: " in str(error.value)
    assert "third: 10 rows of" in str(error.value)


def test_missing_and_damaged(pair, damage):
    """No run folder, one run, one run twice, a missing and a damaged file."""
    first, second = pair()
    with pytest.raises(RunError, match="no run folder"):
        align([first.path, first.path / "nothing"])
    with pytest.raises(RunError, match=r"At least two runs are needed\. Got 1"):
        align([first.path])
    with pytest.raises(RunError, match="given twice"):
        align([first.path, second.path, first.path / ".." / "first"])
    damage(second.fold(1).oof_logits)
    with pytest.raises(RunError, match=r"fold-01.oof_logits\.npy is damaged"):
        align([first.path, second.path])
    (second.path / "thresholds.json").unlink()
    with pytest.raises(RunError):
        align([first.path, second.path])


def test_names_differ(make_run, problem):
    """Folders of one name are told apart by their parents."""
    y_true, fold, logits = problem(30)
    a, b = (make_run(f"{part}/run", logits(1), y_true, fold) for part in ("x", "y"))
    assert [member.name for member in align([a.path, b.path])] == ["x/run", "y/run"]


@pytest.fixture
def damage():
    """Function that cuts a file to half its size."""
    return lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_other_task(make_run, problem):
    """Runs of several tasks are not compared, blended or otherwise mixed."""
    y_true, fold, logits = problem(30)
    y_true = np.eye(2, dtype=int)[y_true[:, 0]]
    first = make_run("first", logits(1), y_true, fold)
    second = make_run("second", logits(1), y_true, fold, recipe={"task": "single_label"})
    with pytest.raises(RunError, match=r"second: its task is single_label; that of .*first is multi_label"):
        align([first.path, second.path])


def test_single_fold_and_extra_rows(make_run, problem):
    """One held-out fold is decided by parts of it; rows that are only trained on count nowhere."""
    y_true, fold, logits = problem(300)
    fold = np.where(fold == 0, 0, -1)
    runs = [make_run(name, logits(noise), y_true, fold) for name, noise in (("a", 1), ("b", 2))]
    members = align([run.path for run in runs])
    rows = members[0].oof
    assert rows.over == "parts"
    assert len(rows.ids) == 100
    assert np.unique(rows.part).tolist() == [0, 1, 2, 3, 4]
    score = json.loads((runs[0].path / "metrics.json").read_text())["cross_fitted"]["macro_f1"]
    assert macro_f1(rows.y_true, members[0].y_pred) == score


@pytest.mark.parametrize("how", ["deleted", "{}", "[]", "empty", "half", "short"])
def test_every_file_missing_or_damaged(make_run, problem, tmp_path, how):
    """Whatever is wrong with whichever file of a run: a RunError, or it was not needed; never another exception."""
    y_true, fold, logits = problem(60)
    test = np.zeros((3, 4, 2))
    first, second = (make_run(name, logits(1), y_true, fold, test=test) for name in ("first", "second"))
    commands = (
        lambda run: compare([first.path, run.path]),
        lambda run: blend([first.path, run.path], tmp_path / "blend"),
        calibrate,
        write_page,
        tune,
    )
    whole = {file: file.read_bytes() for file in sorted(second.path.rglob("*")) if file.is_file()}
    refused = 0
    for file, content in whole.items():
        broken = {"deleted": b"", "empty": b"", "half": content[: len(content) // 2]}.get(how, how.encode())
        if how == "short":
            broken = b"".join(content.splitlines(keepends=True)[:-3])
        for command in commands:
            file.write_bytes(broken)
            if how == "deleted":
                file.unlink()
            try:
                command(RunFolder(second.path))
            except LoraClsError:
                refused += 1
            for one, bytes_before in whole.items():
                one.write_bytes(bytes_before)
            shutil.rmtree(tmp_path / "blend", ignore_errors=True)
    assert refused > len(commands)


@pytest.mark.parametrize("name", ["fold", "group", "part", "index", "id_"])
def test_labels_called_like_our_columns(make_run, problem, tmp_path, name):
    """A label may have the name of a column that run folders make up: runs are aligned, compared and blended."""
    y_true, fold, logits = problem(60)
    a, b = (make_run(which, logits(1), y_true, fold, names=(name, "joy")) for which in ("a", "b"))
    assert compare([a.path, b.path]).label_names == [name, "joy"]
    assert blend([a.path, b.path], tmp_path / "blend").label_names == [name, "joy"]
