"""Whatever is wrong with a recipe, a table or a folder: exit code 2, a message that names it, and nothing written."""

import hashlib
import sys
from pathlib import Path

import pytest

LABELS = ["joy", "anger", "fear"]


@pytest.fixture
def files(tmp_path, emotion_table, monkeypatch):
    """A folder with good tables, as the working directory."""
    table = emotion_table(36)
    table.to_csv(tmp_path / "train.csv", index=False)
    test = emotion_table(8, seed=1).assign(id=[f"t{i}" for i in range(8)])
    test[["id", "text"]].to_csv(tmp_path / "test.csv", index=False)
    test[["id", *LABELS]].to_csv(tmp_path / "sample.csv", index=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(monkeypatch, capsys):
    """Function that calls `lora-cls run tfidf-logreg` and returns exit code and stderr."""

    def call(*arguments, train="train.csv", recipe="tfidf-logreg"):
        from lora_cls import cli

        given = ["lora-cls", "run", recipe, "--train", train, "--out", "out", "--set", "cv.n_splits=3", *arguments]
        monkeypatch.setattr(sys, "argv", given)
        code = 0
        try:
            cli.main()
        except SystemExit as error:
            code = error.code
        return code, capsys.readouterr().err

    return call


def content(folder):
    """Every file below a folder with the checksum of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


def refused(run, files, *arguments, **options):
    """The message of a run that must be refused before it writes anything."""
    before = content(files)
    code, err = run(*arguments, **options)
    assert code == 2, err
    assert "Traceback" not in err
    assert "Error: " in err
    assert content(files) == before, "something was written"
    return err


def test_good_tables_run(run, files):
    """The tables that the tests below spoil are good to start with."""
    code, err = run("--test", "test.csv", "--sample-submission", "sample.csv")
    assert code == 0, err
    assert (files / "out" / "submission.csv").is_file()


def test_unknown_recipe_field(run, files):
    """A recipe field that does not exist is named with the nearest that does."""
    assert "train.epochz: no such field." in refused(run, files, "--set", "train.epochz=3")
    assert "Did you mean 'num_train_epochs'?" in refused(run, files, "--set", "train.train_epochs=3")


@pytest.mark.parametrize("field", ["data.text_columns=[tweet]", "data.label_columns=[joy, angr]", "data.id_column=ids"])
def test_missing_column(run, files, field):
    """A column that the table lacks is named with the field that asks for it."""
    err = refused(run, files, "--set", field)
    assert f"({field.split('=')[0]})" in err
    assert "no column '" in err


def spoil(files, old, new):
    """Replace text in train.csv once."""
    text = (files / "train.csv").read_text()
    assert old in text
    (files / "train.csv").write_text(text.replace(old, new, 1))


def test_label_value_2(run, files):
    """A label that is neither 0 nor 1 is named with row and column."""
    text = (files / "train.csv").read_text().splitlines()
    text[6] = text[6].rsplit(",", 1)[0] + ",2"
    (files / "train.csv").write_text("\n".join(text) + "\n")
    err = refused(run, files, "--set", f"data.label_columns=[{', '.join(LABELS)}]")
    assert "label column 'fear'" in err
    assert "'row005' (line 7) has '2'" in err


def test_empty_text(run, files):
    """An empty training text is named by id and line, with the way out."""
    spoil(files, "happy,1,0,0", " ,1,0,0")
    err = refused(run, files)
    assert "'row001' (line 3)" in err
    assert "data.on_missing: drop" in err


def test_missing_label(run, files):
    """A missing label is named, not read as 0."""
    spoil(files, "happy,1,0,0", "happy,1,,0")
    assert "(of anger): 'row001' (line 3)" in refused(run, files)


def test_repeated_id(run, files):
    """An id that stands twice is named with both lines."""
    spoil(files, "row002", "row001")
    assert "'row001' (line 3, line 4)" in refused(run, files)


def test_all_mistakes_of_a_table(run, files):
    """Several mistakes of one table come in one error."""
    spoil(files, "happy,1,0,0", ",1,,0")
    spoil(files, "row003", "row002")
    err = refused(run, files)
    assert "3 problems" in err


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"id,text,joy\n", "has no rows"),
        ("id,text,joy\n1,déjà vu,1\n2,no,0\n".encode("latin-1"), "is not UTF-8 text"),
        (b"id,text,joy\n1,one,two,1\n", "line 2 has 4 fields, but the header has 3"),
    ],
)
def test_unreadable_file(run, files, data, words):
    """An empty file, a header alone, another encoding or a ragged row is refused by name."""
    (files / "bad.csv").write_bytes(data)
    err = refused(run, files, train="bad.csv")
    assert "bad.csv" in err
    assert words in err


def test_file_that_does_not_exist(run, files):
    """A mistyped file name gets the nearest in its folder."""
    assert "Did you mean 'train.csv'?" in refused(run, files, train="trian.csv")


def test_sample_submission_with_other_ids(run, files):
    """A sample submission of another test set is refused before training, naming the ids."""
    text = (files / "sample.csv").read_text().replace("t3,", "x3,")
    (files / "sample.csv").write_text(text)
    err = refused(run, files, "--test", "test.csv", "--sample-submission", "sample.csv")
    assert "1 ids of the test table are missing: t3." in err
    assert "1 ids are not in the test table: x3." in err


def test_existing_run(run, files):
    """A finished run is never overwritten without --resume; the message offers both ways on."""
    assert run()[0] == 0
    err = refused(run, files, "--set", "tfidf.C=2")
    assert "--resume" in err
    assert "--out" in err


def test_existing_folder_of_something_else(run, files):
    """A folder that holds other files is refused, with and without --resume."""
    (files / "out").mkdir()
    (files / "out" / "thesis.tex").write_text("years of work")
    assert "exists already" in refused(run, files)
    assert "no run folder" in refused(run, files, "--resume")


def test_existing_empty_folder_is_used(run, files):
    """An empty folder, as `mktemp -d` makes it, is a fine place for a run."""
    (files / "out").mkdir()
    code, err = run()
    assert code == 0, err
    assert (files / "out" / "metrics.json").is_file()


def test_folder_that_cannot_be_made(run, files):
    """A run folder below a file is refused in a sentence."""
    (files / "out").write_text("a file")
    assert "out" in refused(run, files, "--out", "out/deeper")


@pytest.mark.parametrize(("folds", "words"), [("0,7", "there is no fold 7"), ("-1", "there is no fold -1")])
def test_unknown_fold(run, files, folds, words):
    """A fold that does not exist is refused with the folds there are."""
    err = refused(run, files, "--folds", folds)
    assert words in err
    assert "folds 0 to 2" in err


@pytest.mark.parametrize("folds", ["a,b", "0-2", "", "0,"])
def test_folds_that_are_no_numbers(run, files, folds):
    """--folds takes numbers and says so."""
    assert f"--folds takes numbers such as 0,1. Got '{folds}' instead." in refused(run, files, "--folds", folds)


def test_more_folds_than_rows(run, files):
    """More folds than texts is refused with the number that fits."""
    assert "Set cv.n_splits to 36 or less" in refused(run, files, "--set", "cv.n_splits=50")


def test_no_training_table(run, files, monkeypatch):
    """A run without a training table says how to give one."""
    from lora_cls.commands.cross_validation import cross_validate
    from lora_cls.errors import RecipeError

    with pytest.raises(RecipeError, match="give --train FILE"):
        cross_validate("tfidf-logreg", out="out")


def test_texts_without_terms(run, files):
    """Texts in which no word occurs twice, as in a script without spaces, still get a model or a sentence."""
    rows = [f"r{i},{''.join(chr(0x4E00 + 40 * i + j) for j in range(12))},{i % 2}" for i in range(12)]
    (files / "train.csv").write_text("id,text,joy\n" + "\n".join(rows) + "\n", encoding="utf-8")
    code, err = run()
    assert code in (0, 2)
    assert "Traceback" not in err


def test_model_that_does_not_exist(run, files):
    """A backbone folder that is not there is refused before a run folder is made."""
    err = refused(run, files, "--set", "backbone.name_or_path=/no/such/model", "--set", "tfidf=null")
    assert "No folder at /no/such/model" in err


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("loss.pos_weight=[1, 2]", "loss.pos_weight must hold 3 numbers"),
        ("lora.target_modules=[q_prj]", "Did you mean 'q_proj'?"),
        ("lora.layers_to_transform=[7]", "must name layers from 0 to 1"),
    ],
)
def test_recipe_that_does_not_fit_data_or_model(run, files, tiny_model, override, words):
    """A setting that only data or model show to be wrong is refused before a run folder is made, so that the mended
    command runs."""
    (files / "r.yaml").write_text(f"backbone: {{name_or_path: '{tiny_model('llama')}', dtype: float32}}\n")
    assert words in refused(run, files, "--set", override, recipe="r.yaml")


@pytest.mark.parametrize("command", ["predict", "refit", "tune"])
def test_folder_that_is_no_run(monkeypatch, capsys, files, command):
    """Commands on a folder that is no run say so and write nothing."""
    from lora_cls import cli

    before = content(files)
    monkeypatch.setattr(sys, "argv", ["lora-cls", command, ".", *(["--input", "test.csv"] * (command == "predict"))])
    with pytest.raises(SystemExit) as error:
        cli.main()
    assert error.value.code == 2
    assert "is no run folder: it has no recipe.yaml" in capsys.readouterr().err
    assert content(files) == before
