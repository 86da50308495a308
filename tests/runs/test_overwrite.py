"""`overwrite=True`: a cell can be run again; only what is ours, and only once the new one stands, gives way."""

import pytest

from lora_cls import RunFolder, blend, cross_validate, export, predict_file
from lora_cls.errors import DataError, LoraClsError, RunError


@pytest.fixture
def again(emotion_table, tmp_path):
    """Function that runs the same cell: a small run in `run`."""

    def call(folder="run", seed=0, **options):
        overrides = ["cv.n_splits=2", f"train.seed={seed}"]
        test = emotion_table(12, seed=5)[["id", "text"]]
        options |= {"overrides": overrides}
        return cross_validate("tfidf-logreg", emotion_table(45), test, tmp_path / folder, **options)

    return call


def files(folder):
    """Every file below a folder, as bytes."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_run_again(again, tmp_path):
    """The second call replaces the first, whole: nothing of it is left, beside it neither."""
    first = again(overwrite=True)
    predict_file(first, first.test_proba.assign(text="a")[["id", "text"]])
    again(seed=7, overwrite=True)
    assert RunFolder(first.path).recipe.train.seed == 7
    assert not first.files.predictions.exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]
    with pytest.raises(RunError, match=r"--resume, replace it with --overwrite, or"):
        again()
    with pytest.raises(RunError, match="give one of them"):
        again(resume=True, overwrite=True)


def test_a_run_that_cannot_start_leaves_the_old_one(again, emotion_table, monkeypatch):
    """A mistake in recipe or data, or a full disk while the new folder is made, costs nothing."""
    run = again()
    before = files(run.path)
    with pytest.raises(LoraClsError):
        cross_validate("tfidf-logreg", emotion_table(45), out=run.path, overrides=["cv.n_splits=99"], overwrite=True)
    with pytest.raises(DataError):
        cross_validate("tfidf-logreg", emotion_table(45)[["id", "text"]], out=run.path, overwrite=True)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lora_cls.runs.folder.recipe_bytes", full)
    with pytest.raises(RunError, match="No space left"):
        again(overwrite=True)
    assert files(run.path) == before


@pytest.mark.parametrize("kind", ["project", "notes", "recipe", "file", "link"])
def test_a_foreign_folder_is_never_replaced(again, tmp_path, kind):
    """A folder with a recipe.yaml and other things in it, an empty run, a file, a link: refused, and unharmed."""
    run = again("other")
    place = tmp_path / "run"
    if kind == "file":
        place.write_text("a file")
    elif kind == "link":
        place.symlink_to(run.path)
    else:
        place.mkdir()
        (place / "recipe.yaml").write_text("tfidf: {}\n")
        if kind == "project":
            (place / ".git").mkdir()
        elif kind == "notes":
            (place / "run.json").write_text("{}")
            (place / "notes.txt").write_text("mine")
    before = files(tmp_path)
    with pytest.raises(RunError, match=r"--out"):
        again(overwrite=True)
    with pytest.raises(RunError, match=r"--out"):
        blend([run, again("third")], place, overwrite=True)
    after = files(tmp_path)
    assert {name: after[name] for name in before} == before


def test_a_blend_again(again, tmp_path):
    """A blend replaces a blend, and never one of its own runs."""
    runs = [again("a"), again("b", seed=3)]
    blend(runs, tmp_path / "both")
    assert blend(runs, tmp_path / "both", "mean_proba", overwrite=True).recipe.blend.how == "mean_proba"
    with pytest.raises(RunError, match="one of the runs that are blended"):
        blend(runs, runs[0].path, overwrite=True)
    assert runs[0].finished_folds == [0, 1]


def test_predictions_again(again, emotion_table, tmp_path):
    """Predictions replace predictions; a run's own submission, and somebody else's, stay."""
    run, table = again(), emotion_table(9, seed=3)[["id", "text"]]
    folder = predict_file(run, table, tmp_path / "new")
    before = files(folder)
    with pytest.raises(RunError, match="--overwrite"):
        predict_file(run, table, folder)
    predict_file(run, table[:4], folder, overwrite=True)
    assert files(folder) != before
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "submission.csv").write_text("id\n")
    for place in (run.path, tmp_path / "theirs"):
        before = files(place)
        with pytest.raises(RunError, match="no prediction wrote"):
            predict_file(run, table, place, overwrite=True)
        assert files(place) == before


def test_an_export_again(finished, tmp_path):
    """An export replaces an export, and nothing else; the run itself neither."""
    run = finished("llama")
    export(run, tmp_path / "one")
    assert export(run, tmp_path / "one", rank=1, overwrite=True).recipe.lora.r == 1
    with pytest.raises(RunError, match="no export"):
        export(run, run.path, overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["one"]
