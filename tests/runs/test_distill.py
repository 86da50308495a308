"""Learning from teachers: what is learnt, what cannot leak, what a resume keeps, and what is refused."""

import shutil

import numpy as np
import pandas as pd
import pytest

from lora_cls.commands.blend import blend
from lora_cls.commands.cross_validation import cross_validate
from lora_cls.errors import RunError
from lora_cls.recipe import load_recipe
from lora_cls.runs import RunFolder


@pytest.fixture(scope="module")
def fold_table(train):
    """Two folds of the training rows; the rows that share a text lie in the same."""
    fold = np.arange(len(train)) % 2
    fold[40] = fold[7]
    return pd.DataFrame({"id": train["id"], "fold": fold})


@pytest.fixture(scope="module")
def teach(tfidf_recipe, small_recipe, fold_table, test):
    """Function `teach(train, folder)`: a blend of a TF-IDF run and an adapter, as a teacher."""

    def make(train, folder):
        cross_validate(tfidf_recipe(cv__n_splits=2), train, test, folder / "tfidf", fold_table=fold_table)
        cross_validate(small_recipe("llama"), train, None, folder / "llama", fold_table=fold_table)
        cross_validate(tfidf_recipe(tfidf__C=3, cv__n_splits=2), train, test, folder / "other", fold_table=fold_table)
        blend([folder / "tfidf", folder / "other"], folder / "blend")
        return folder

    return make


@pytest.fixture(scope="module")
def teachers(teach, train, tmp_path_factory):
    """Folder of teachers on the training rows: `tfidf`, `llama`, `other`, and `blend` of the first and the last."""
    return teach(train, tmp_path_factory.mktemp("teachers"))


@pytest.fixture(scope="module")
def student(small_recipe):
    """Factory `student(folder, **overrides)` of recipes: full fine-tuning, taught by a folder's `blend` and `llama`."""

    def make(folder, **overrides):
        distill = {"teachers": [str(folder / "blend"), str(folder / "llama")], "temperature": 2.0}
        recipe = small_recipe("bert", lora=None, train__learning_rate=1e-3, distill=distill)
        return load_recipe(recipe, {key.replace("__", "."): value for key, value in overrides.items()})

    return make


@pytest.fixture(scope="module")
def taught(student, teachers, train, test, fold_table, tmp_path_factory):
    """A finished student (not to be changed)."""
    out = tmp_path_factory.mktemp("student") / "run"
    return cross_validate(student(teachers), train, test, out, fold_table=fold_table)


def test_no_leak(teach, student, taught, train, test, fold_table, tmp_path):
    """Random labels of a fold's rows, teachers and student made anew: its models answer to the same byte, the others'
    do not."""
    held_out = (fold_table["fold"] == 0).to_numpy()
    changed = train.copy()
    labels = ["joy", "anger", "fear"]
    changed.loc[held_out, labels] = np.random.default_rng(3).integers(0, 2, (held_out.sum(), len(labels)))
    changed.loc[40, labels] = changed.loc[7, labels]
    folder = teach(changed, tmp_path)
    run = cross_validate(student(folder), changed, test, tmp_path / "run", fold_table=fold_table)
    for name in ("oof_logits", "test_logits"):
        before, now = (np.load(getattr(one.fold(0), name)) for one in (taught, run))
        assert before.tobytes() == now.tobytes()
        before, now = (np.load(getattr(one.fold(1), name)) for one in (taught, run))
        assert (before != now).any(), "random labels of another fold's training rows changed nothing"
    assert taught.fold(0).teachers.read_bytes() == run.fold(0).teachers.read_bytes()


def test_resume(student, taught, teachers, results, train, test, fold_table, tmp_path, monkeypatch):
    """Stopped after an epoch, a student goes on to the same bytes, and asks nobody again; finished, it needs none."""
    import lora_cls.training.loop as loop

    class Stopped(BaseException):
        pass

    save = loop.save_state

    def stop(file, *rest):
        save(file, *rest)
        raise Stopped

    copies = shutil.copytree(teachers, tmp_path / "teachers")
    arguments = (student(copies), train, test, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_state", stop)
        with pytest.raises(Stopped):
            cross_validate(*arguments, fold_table=fold_table)
    assert RunFolder(tmp_path / "run").fold(0).teachers.is_file()
    with monkeypatch.context() as patch:
        patch.setattr("lora_cls.training.factory.make_predictor", None)
        with pytest.raises(TypeError):  # fold 1 has nobody to ask
            cross_validate(*arguments, resume=True)
    run = cross_validate(*arguments, resume=True)
    assert results(run) == results(taught)
    shutil.rmtree(copies)
    again = cross_validate(*arguments, resume=True)
    assert results(again) == results(taught)


def test_changed_teacher(student, teachers, train, test, fold_table, tmp_path):
    """A teacher that was trained anew in between is refused."""
    copies = shutil.copytree(teachers, tmp_path / "teachers")
    cross_validate(student(copies), train, test, tmp_path / "run", fold_table=fold_table, folds=[0])
    other = load_recipe(RunFolder(copies / "llama").recipe, {"train.seed": 7})
    cross_validate(other, train, None, copies / "llama", fold_table=fold_table, overwrite=True)
    with pytest.raises(RunError, match=r"llama: the model of fold 0 is another"):
        cross_validate(student(copies), train, test, tmp_path / "run", resume=True)
