"""Learning from teachers: what is learnt, what cannot leak, what a resume keeps, and what is refused."""

import shutil

import numpy as np
import pandas as pd
import pytest

from lora_cls.commands.blend import blend
from lora_cls.commands.check import check
from lora_cls.commands.cross_validation import cross_validate
from lora_cls.commands.refit import refit
from lora_cls.commands.sweep import sweep
from lora_cls.errors import LoraClsError, RecipeError, RunError
from lora_cls.recipe import load_recipe
from lora_cls.runs import RunFolder
from lora_cls.training.factory import make_predictor


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


def test_killed_with_averages_and_an_adapted_base(
    student, teachers, tiny_model, results, train, test, fold_table, tmp_path, monkeypatch
):
    """Averages, teachers and a base trained on the texts at once: stopped twice, the run goes on to the same bytes."""
    import lora_cls.training.loop as loop

    class Stopped(BaseException):
        pass

    save, saved = loop.save_state, []

    def stop(file, *rest):
        save(file, *rest)
        saved.append(file)
        if len(saved) in (1, 4):  # an epoch of fold 0, and one of fold 1
            raise Stopped

    more = {"train__ema_decay": 0.8, "train__average_epochs": 2, "train__num_train_epochs": 3, "lora": {"r": 2}}
    adapt = {"num_train_epochs": 1, "learning_rate": 1e-3}
    recipe = student(teachers, backbone__name_or_path=tiny_model("gemma3"), adapt=adapt, **more)
    whole = cross_validate(recipe, train, test, tmp_path / "whole", fold_table=fold_table)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_state", stop)
        for _ in range(2):
            with pytest.raises(Stopped):
                cross_validate(recipe, train, test, tmp_path / "stopped", fold_table=fold_table, resume=True)
    run = cross_validate(recipe, train, test, tmp_path / "stopped", fold_table=fold_table, resume=True)
    assert results(run) == results(whole)
    assert saved[0].parent.name == "fold-00" and saved[3].parent.name == "fold-01"


def test_changed_teacher(student, teachers, train, test, fold_table, tmp_path):
    """A teacher that was trained anew in between is refused."""
    copies = shutil.copytree(teachers, tmp_path / "teachers")
    cross_validate(student(copies), train, test, tmp_path / "run", fold_table=fold_table, folds=[0])
    other = load_recipe(RunFolder(copies / "llama").recipe, {"train.seed": 7})
    cross_validate(other, train, None, copies / "llama", fold_table=fold_table, overwrite=True)
    with pytest.raises(RunError, match=r"llama: the model of fold 0 is another"):
        cross_validate(student(copies), train, test, tmp_path / "run", resume=True)


def test_what_is_kept(taught, train, test, teachers):
    """Of every fold the answers for its training rows and the test texts, each text once: the mean log-odds of the
    teachers' models of that fold; the card names them."""
    from safetensors.numpy import load_file

    assert taught.info.data.unlabelled_sha256 is None
    train_keys = set(train["text"])
    fresh = [i for i, text in enumerate(test["text"]) if text and text not in train_keys]
    for number in (0, 1):
        folder = taught.fold(number)
        said = load_file(folder.teachers)["logits"]
        n_train = int((taught.folds["fold"] != number).sum())
        assert said.shape == (n_train + len(fresh), 3)
        assert folder.info.train_rows == len(said)
        runs = [RunFolder(teachers / name) for name in ("blend", "llama")]
        scores = [runs[0].fold(number).read_array(runs[0].fold(number).test_logits, (len(test), 3))[fresh]]
        llama = runs[1]
        predictor = make_predictor(llama.recipe, llama.label_names, llama.info.choices)
        logits = predictor.predict(llama.fold(number), [test["text"][i] for i in fresh])
        scores.append(logits - np.log(llama.fold(number).pos_weight(3)))
        np.testing.assert_allclose(said[n_train:], np.mean(scores, axis=0), atol=1e-4)
    card = (taught.path / "README.md").read_text()
    assert "blend, llama; weight 0.5, temperature 2" in card


def test_pseudo_labels(student, teachers, train, test, fold_table, emotion_table, tmp_path):
    """Texts that the teachers are sure of become rows with labels; more of them the lower the bar; without test rows
    and with a table of its own."""
    more = emotion_table(20, seed=9)[["id", "text"]]
    more.loc[3, "text"] = train["text"][0]
    more.to_csv(tmp_path / "more.csv", index=False)
    n_rows = []
    for bar in (0.51, 0.999999):
        distill = {"teachers": [str(teachers / "tfidf")], "hard": bar, "unlabelled": str(tmp_path / "more.csv")}
        recipe = student(teachers, distill=distill, train__num_train_epochs=1)
        out = tmp_path / str(bar)
        run = cross_validate(recipe, train, None, out, fold_table=fold_table, folds=[0])
        n_rows.append(run.fold(0).info.train_rows - int((run.folds["fold"] != 0).sum()))
    assert 0 < n_rows[0] <= 19
    assert n_rows[1] == 0
    more.loc[5, "text"] = "another text"
    more.to_csv(tmp_path / "more.csv", index=False)
    with pytest.raises(RunError, match="unlabelled_sha256"):
        cross_validate(recipe, train, None, out, fold_table=fold_table, resume=True)


def test_check(student, teachers, train, test, fold_table):
    """`check` opens the teachers, and counts the texts without labels among the batches."""
    plain = check(student(teachers, distill=None), train, test, fold_table=fold_table)
    found = check(student(teachers), train, test, fold_table=fold_table)
    assert any(note.startswith("teachers: ") for note in found.notes)
    assert found.estimate is not None and plain.estimate is not None
    with pytest.raises(RunError, match="other folds"):
        check(student(teachers), train, test, fold_table=fold_table.assign(fold=1 - fold_table["fold"]))


def test_one_class_per_row(small_recipe, tfidf_recipe, emotion_table, tmp_path):
    """Classes learn from classes; without any text that has no label."""
    table = emotion_table(36)
    names = np.array(["joy", "anger", "fear"])[table[["joy", "anger", "fear"]].to_numpy().argmax(axis=1)]
    table = table[["id", "text"]].assign(label=names)
    cross_validate(tfidf_recipe(cv__n_splits=2, data__label_columns=["label"]), table, None, tmp_path / "tfidf")
    recipe = load_recipe(
        small_recipe("bert", train__num_train_epochs=1),
        {"data.label_columns": ["label"], "distill": {"teachers": [str(tmp_path / "tfidf")], "weight": 1.0}},
    )
    run = cross_validate(recipe, table, None, tmp_path / "run", fold_table=tmp_path / "tfidf" / "folds.csv", folds=[0])
    assert run.finished_folds == [0]
    assert run.recipe.task == "single_label"


def retrained_in_a_blend(student, folder, train, test, fold_table, **rest):
    recipe = load_recipe(RunFolder(folder / "other").recipe, {"tfidf.C": 9})
    cross_validate(recipe, train, test, folder / "other", fold_table=fold_table, overwrite=True)
    return cross_validate(student(folder), train, test, fold_table=fold_table, **rest)


def of_other_labels(student, folder, train, **rest):
    changed = train.copy()
    changed.loc[3, "joy"] = 1 - changed.loc[3, "joy"]
    return cross_validate(student(folder), changed, **rest)


def of_other_folds(student, folder, train, fold_table, **rest):
    return cross_validate(student(folder), train, fold_table=fold_table.assign(fold=1 - fold_table["fold"]), **rest)


def unfinished(student, folder, train, **rest):
    (folder / "llama" / "fold-01" / "fold.json").unlink()
    return cross_validate(student(folder), train, **rest)


def stacked(student, folder, train, **rest):
    blend([folder / "tfidf", folder / "other"], folder / "stacked", how="stacking")
    return cross_validate(student(folder, distill={"teachers": [str(folder / "stacked")]}), train, **rest)


def within_itself(student, folder, train, out, **rest):
    return cross_validate(student(folder), train, out=folder / "other", overwrite=True, **rest)


def without_texts(student, folder, train, test, **rest):
    return cross_validate(student(folder, distill={"teachers": [str(folder / "tfidf")], "hard": 0.9}), train, **rest)


def of_no_run(student, folder, train, **rest):
    return cross_validate(student(folder, distill={"teachers": [str(folder)]}), train, **rest)


def in_a_search(student, folder, train, fold_table, test, out):
    return sweep(student(folder), train, out=out)


def smoked(student, folder, train, **rest):
    return cross_validate(student(folder), train, smoke=True, **rest)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (of_other_labels, r"llama was trained on another table: other labels in rows row003\.$"),
        (of_other_folds, "rows lie in other folds"),
        (unfinished, r"llama: folds that are to be trained here are not finished there \(1\)"),
        (stacked, "stacked is a blend by stacking, fitted on answers of models that saw the rows"),
        (retrained_in_a_blend, r"blend \(\.\./other\) is not the run that was blended any more"),
        (within_itself, "holds .*, which is to teach"),
        (without_texts, "labels rows without labels, and there are none"),
        (of_no_run, "is no run folder"),
        (in_a_search, "search without teachers"),
        (smoked, "no teacher was trained on"),
    ],
)
def test_refused(how, said, student, teachers, train, test, fold_table, tmp_path):
    """What cannot teach, or would let labels of held-out rows through, is refused before anything is trained."""
    folder = shutil.copytree(teachers, tmp_path / "teachers")
    with pytest.raises(LoraClsError, match=said):
        how(student, folder, train=train, test=test, fold_table=fold_table, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("select", ["cross_fitted", "scored_fold"])
def test_teachers_that_chose_epochs(select, student, teachers, unsummed, train, test, fold_table, tmp_path):
    """Epochs that were chosen on held-out rows carry their labels."""
    folder = shutil.copytree(teachers, tmp_path / "teachers")
    recipe = folder / "llama" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("select: last", f"select: {select}"))
    unsummed(folder / "llama")
    with pytest.raises(RunError, match=f"llama: train.select: {select} chose its epochs on"):
        cross_validate(student(folder), train, test, tmp_path / "run", fold_table=fold_table)


def test_damaged_answers(student, teachers, damage, train, test, fold_table, tmp_path):
    """Answers that were cut off are an error, and never other answers."""
    run = cross_validate(student(teachers), train, test, tmp_path / "run", fold_table=fold_table, folds=[0])
    run.fold(0).info_file.unlink()
    damage(run.fold(0).teachers)
    with pytest.raises(RunError, match=r"teachers\.safetensors is damaged"):
        cross_validate(student(teachers), train, test, tmp_path / "run", resume=True)


def test_no_refit(taught):
    """There is no teacher of all rows."""
    with pytest.raises(RunError, match="learnt from teachers"):
        refit(taught)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"tfidf": {}, "lora": None}, "only a 'backbone' learns from teachers"),
        ({"backbone": {"name_or_path": "x"}, "head": {"kind": "generate"}}, "set distill.hard"),
        ({"backbone": {"name_or_path": "x"}, "distill": {"hard": 0.9, "weight": 0.7}}, "weight: no meaning"),
    ],
)
def test_recipes_that_contradict_themselves(values, said):
    """What has no meaning together is refused when the recipe is loaded."""
    distill = {"teachers": ["runs/teacher"]} | values.get("distill", {})
    with pytest.raises(RecipeError, match=said):
        load_recipe(values | {"distill": distill})
