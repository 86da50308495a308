"""Odd files through whole runs: from a messy table to a submission, and rows that are only trained on."""

import json

import numpy as np
import pandas as pd
import pytest

from lora_cls.commands.check import check
from lora_cls.commands.cross_validation import cross_validate
from lora_cls.commands.predict import predict_file
from lora_cls.commands.refit import refit
from lora_cls.data import read_table
from lora_cls.errors import DataError, RecipeError, RunError
from lora_cls.recipe import load_recipe
from lora_cls.runs import RunFolder

LABELS = ["joy", "anger", "fear"]
ODD = [
    "so happy 😀👩‍👩‍👧",
    "angry\r\nand furious",
    "afraid\rof danger",
    "happy\\nand lovely",
    "line separator, and \u200bzero width\u200d joiner",
    'a "quoted", comma',
    "𝔰𝔠𝔞𝔯𝔢𝔡 é e\u0301",
    "\t tab and blanks  ",
]


def read(run, name):
    return json.loads((run.path / name).read_text())


def cell(value):
    return '"' + str(value).replace('"', '""') + '"'


def write_csv(path, table):
    """A CSV as no tool should write it: a byte order mark, and lines that end now in one way, now in another."""
    lines = [",".join(table.columns), *(",".join(map(cell, row)) for row in table.itertuples(index=False))]
    ends = ["\r\n" if i % 2 else "\n" for i in range(len(lines))]
    path.write_bytes(("\ufeff" + "".join(line + end for line, end in zip(lines, ends, strict=True))).encode())
    return path


@pytest.fixture(scope="module")
def messy(tmp_path_factory, emotion_table):
    """Files train.csv and test.csv with odd texts, ids with leading zeros, and a label that is 0 in all rows."""
    folder = tmp_path_factory.mktemp("messy")
    train = emotion_table(45).assign(never=0, user_name=[f"user {i % 5}" for i in range(45)])
    train["id"] = [f"{i:04d}" for i in range(45)]
    train.loc[10 : 10 + len(ODD) - 1, "text"] = ODD
    test = emotion_table(12, seed=5)[["id", "text"]].assign(user_name="someone else")
    test["id"] = [f"{i:03d}" for i in range(12)]
    test.loc[: len(ODD) - 1, "text"] = [f"{text} test" for text in ODD]
    return write_csv(folder / "train.csv", train), write_csv(folder / "test.csv", test), train, test


@pytest.mark.parametrize("kind", ["tfidf", "bert", "llama"])
def test_messy_files(kind, messy, tfidf_recipe, small_recipe, tmp_path):
    """Every row arrives once and by its id; the label that never occurs scores 0 and breaks nothing."""
    train_file, test_file, train, test = messy
    if kind == "tfidf":
        recipe = tfidf_recipe(data__ignore_columns=["user_name"])
    else:
        recipe = small_recipe(kind, data__ignore_columns=["user_name"], train__num_train_epochs=1)
    run = cross_validate(recipe, train_file, test_file, tmp_path / "run")
    assert run.label_names == [*LABELS, "never"]
    submission = read_table(run.path / "submission.csv")
    assert list(submission["id"]) == list(test["id"])
    assert list(read_table(run.path / "oof_proba.csv")["id"]) == list(train["id"])
    if kind == "tfidf":
        assert submission["never"].eq("0").all()
    scores = {row["label"]: row for row in read(run, "metrics.json")["cross_fitted"]["per_label"]}
    assert (scores["never"]["f1"], scores["never"]["threshold"], scores["never"]["support"]) == (0, 0.5, 0)
    mean = np.mean([row["f1"] for row in scores.values()])
    assert read(run, "metrics.json")["cross_fitted"]["macro_f1"] == pytest.approx(mean)
    again = cross_validate(recipe, read_table(train_file), read_table(test_file), run.path, resume=True)
    assert again.finished_folds == run.finished_folds
    out = predict_file(run, test_file)
    assert (out / "submission.csv").read_bytes() == (run.path / "submission.csv").read_bytes()


def test_nul_and_separators_in_json_lines(tfidf_recipe, messy, tmp_path):
    """JSON may hold NUL, U+2028 and line ends in a text: a row stays one row."""
    _, _, train, test = messy
    texts = [*train["text"][:-2], "happy\x00 nul", "angry \u2028 separator"]
    for name, table in (("train", train.assign(text=texts)), ("test", test)):
        table.to_json(tmp_path / f"{name}.jsonl", orient="records", lines=True, force_ascii=name == "test")
    recipe = tfidf_recipe(data__text_columns=["text"], data__label_columns=LABELS)
    run = cross_validate(recipe, tmp_path / "train.jsonl", tmp_path / "test.jsonl", tmp_path / "run")
    assert len(read_table(run.path / "submission.csv")) == 12
    assert read(run, "metrics.json")["rows_scored"] == 45


def test_unescape_is_part_of_the_run(tfidf_recipe, messy, tmp_path):
    """New texts are read as the training texts were."""
    train_file, test_file, _, _ = messy
    run = cross_validate(
        tfidf_recipe(data__unescape=True, data__ignore_columns=["user_name"]), train_file, test_file, tmp_path / "run"
    )
    out = predict_file(run, test_file)
    assert (out / "test_proba.csv").read_bytes() == (run.path / "test_proba.csv").read_bytes()


# Rows that are only trained on


@pytest.fixture(scope="module")
def extra(train, test, emotion_table):
    """20 extra rows: one has the text of a training row, one that of a test row."""
    table = emotion_table(20, seed=9)[["text", *LABELS]]
    table.loc[1, "text"] = "happy at last"  # as it is made, this row is the same in every table
    table.loc[3, "text"] = train["text"][12]
    table.loc[5, "text"] = test["text"][0]
    return table


def test_extra_rows(tfidf_recipe, train, test, extra, tmp_path):
    """Folds and scored rows are those of a run without extra rows; every fold, and refit, trains on them too."""
    recipe = tfidf_recipe()
    alone = cross_validate(recipe, train, test, tmp_path / "alone")
    run = cross_validate(recipe, train, test, tmp_path / "run", extra_train=extra)
    folds = run.folds
    assert folds["fold"].tolist() == [*alone.folds["fold"], *[-1] * 19]
    assert len(pd.read_csv(run.path / "train_labels.csv")) == 45 + 19
    assert list(pd.read_csv(run.path / "oof_proba.csv")["id"]) == list(train["id"])
    metrics = read(run, "metrics.json")
    assert metrics["rows_scored"] == metrics["rows"] == 45
    assert metrics["n_splits"] == 3
    for number in run.fold_numbers:
        count = (alone.folds["fold"] != number).sum()
        assert read(run, f"fold-{number:02d}/fold.json")["train_rows"] == count + 19
    assert not np.array_equal(np.load(run.fold(0).oof_logits), np.load(alone.fold(0).oof_logits))
    # trained by hand on the other folds' rows and the extra rows: the same answers
    kept = extra.drop(index=3).assign(id=[f"e{i}" for i in range(19)])
    by_hand = pd.concat([train, kept], ignore_index=True)
    table = pd.DataFrame({"id": by_hand["id"], "fold": [*alone.folds["fold"], *[-1] * 19]})
    again = cross_validate(recipe, by_hand, test, tmp_path / "again", fold_table=table)
    assert (again.path / "oof_proba.csv").read_bytes() == (run.path / "oof_proba.csv").read_bytes()
    assert (again.path / "submission.csv").read_bytes() == (run.path / "submission.csv").read_bytes()


def test_extra_rows_are_part_of_the_data(tfidf_recipe, train, test, extra, tmp_path):
    """A resume with other extra rows, or without, is refused; refit finds the file, or says which one is gone."""
    extra.to_csv(tmp_path / "extra.csv", index=False)
    train.to_csv(tmp_path / "train.csv", index=False)
    recipe = tfidf_recipe(data__extra_train=str(tmp_path / "extra.csv"))
    run = cross_validate(recipe, tmp_path / "train.csv", test, tmp_path / "run", folds=[0])
    with pytest.raises(RunError, match=r"extra_train_sha256: was .*, now None"):
        cross_validate(tfidf_recipe(), train, test, run.path, resume=True)
    with pytest.raises(RunError, match="extra_train_sha256") as error:
        cross_validate(recipe, train, test, run.path, resume=True, extra_train=extra.assign(joy=1 - extra["joy"]))
    assert "\n  train_sha256" not in str(error.value)
    run = cross_validate(recipe, train, test, run.path, resume=True)
    assert run.finished_folds == [0, 1, 2]
    assert read(run, "refit/fold.json")["train_rows"] == 45 + 19 if refit(run).finished else False
    (tmp_path / "extra.csv").rename(tmp_path / "moved.csv")
    with pytest.raises(
        RunError, match=r"The data of extra rows of .* was .*extra\.csv: give it again with --extra-train"
    ):
        refit(run)
    assert refit(run, extra_train=tmp_path / "moved.csv").finished
    with pytest.raises(RunError, match="is not the data"):
        refit(run, extra_train=extra.iloc[:-1])


@pytest.mark.parametrize("select", ["last", "inner", "cross_fitted", "scored_fold"])
def test_extra_rows_of_a_transformer(small_recipe, train, test, extra, tmp_path, select):
    """With every way to choose an epoch only the table's own rows are held out and scored."""
    recipe = small_recipe("llama", train__select=select, train__inner_fraction=0.3)
    run = cross_validate(recipe, train, test, tmp_path / "run", extra_train=extra)
    assert read(run, "metrics.json")["rows_scored"] == 45
    for number in run.fold_numbers:
        held_out = int((run.folds["fold"] == number).sum())
        info = read(run, f"fold-{number:02d}/fold.json")
        assert len(np.load(run.fold(number).oof_logits)) == held_out
        assert (info["train_rows"] < 64 - held_out) == (select == "inner")
        assert info["train_rows"] >= 19
    assert refit(run, train, extra_train=extra).finished


# A predefined split, and one fold


@pytest.fixture(scope="module")
def split_train(train):
    parts = np.array(["train", "train", "VAL"])[np.arange(45) % 3]
    parts[40] = parts[7]  # they have the same text
    return train.assign(part=parts, w=[1.0, 2.0, 0.5] * 15)


def test_split(tfidf_recipe, split_train, test, tmp_path):
    """One fold, of the rows that the column names; a score by thresholds from other parts of them; no fold is left."""
    recipe = tfidf_recipe(data__split_column="part", data__weight_column="w")
    run = cross_validate(recipe, split_train, test, tmp_path / "run")
    held_out = split_train["part"].eq("VAL").to_numpy()
    assert run.fold_numbers == run.finished_folds == [0]
    assert (run.folds["fold"] == 0).tolist() == held_out.tolist()
    assert list(pd.read_csv(run.path / "oof_proba.csv")["id"]) == list(split_train["id"][held_out])
    metrics, card = read(run, "metrics.json"), (run.path / "README.md").read_text()
    assert metrics["rows_scored"] == metrics["rows"] == held_out.sum()
    assert metrics["cross_fitted"]["over"] == "parts"
    assert f"on {held_out.sum()} held-out rows, thresholds for each of 5 parts of them" in card
    assert "Partial" not in card
    assert "the one model that was trained" in card
    assert len(pd.read_csv(run.path / "submission.csv")) == len(test)
    with pytest.raises(RecipeError, match="both say which rows are held out"):
        cross_validate(recipe, split_train, test, tmp_path / "b", fold_table=run.folds[["id", "fold"]])
    # the same split from its folds.csv
    again = cross_validate(
        tfidf_recipe(data__weight_column="w", data__ignore_columns=["part"]), split_train, test, tmp_path / "again",
        fold_table=run.path / "folds.csv",
    )  # fmt: skip
    assert (again.path / "oof_proba.csv").read_bytes() == (run.path / "oof_proba.csv").read_bytes()
    assert refit(run, split_train).finished


def test_thresholds_of_one_fold_are_cross_fitted(tfidf_recipe, split_train, tmp_path):
    """The score of a single fold follows from the files: parts by the seed, each decided by the others' thresholds."""
    from lora_cls.data import stratified_folds
    from lora_cls.evaluation import cross_fit_thresholds, macro_f1

    run = cross_validate(tfidf_recipe(data__split_column="part"), split_train, out=tmp_path / "run")
    folds = run.folds[run.folds["fold"] == 0]
    y_true = run.y_true[(run.folds["fold"] == 0).to_numpy()]
    y_score = pd.read_csv(run.path / "oof_proba.csv")[run.label_names].to_numpy()
    part = stratified_folds(y_true, folds["group"].to_numpy(), 5, 42)
    fitted = cross_fit_thresholds(y_true, y_score, part, min_positives=2)
    assert read(run, "metrics.json")["cross_fitted"]["macro_f1"] == pytest.approx(macro_f1(y_true, fitted.y_pred))
    written = read(run, "thresholds.json")["parts"]
    assert [list(written[str(k)].values()) for k in range(5)] == [fitted.thresholds[k].tolist() for k in range(5)]


def test_held_out_rows_of_one_text(tfidf_recipe, train, tmp_path):
    """Rows that all stay together give no interval and no thresholds: refused before training. Two are enough."""
    table = train.assign(part=["test"] * 3 + ["train"] * 42, text=["the same"] * 3 + list(train["text"][3:]))
    recipe = tfidf_recipe(data__split_column="part")
    with pytest.raises(DataError, match="the held-out rows are one row, or stay together"):
        cross_validate(recipe, table, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    table.loc[0, "text"] = "another"
    run = cross_validate(recipe, table, out=tmp_path / "run")
    assert read(run, "metrics.json")["cross_fitted"]["n_parts"] == 2
    folds = pd.DataFrame({"id": train["id"], "fold": [0, *[1 + i % 2 for i in range(44)]]})
    with pytest.raises(RunError, match="Train more folds with --resume"):
        cross_validate(tfidf_recipe(), train, out=tmp_path / "part", fold_table=folds, folds=[0])
    whole = cross_validate(tfidf_recipe(), train, out=tmp_path / "part", fold_table=folds, resume=True)
    assert read(whole, "metrics.json")["rows_scored"] == 45


@pytest.mark.parametrize("select_by", ["macro_f1", "loss", "loss_within_margin"])
@pytest.mark.parametrize("select", ["inner", "scored_fold"])
def test_select_by(small_recipe, split_train, test, tmp_path, select, select_by):
    """The epoch kept is the rule's, from the macro-F1 and the loss that metrics.jsonl records."""
    from lora_cls.training.selection import Score, best_epoch

    recipe = small_recipe(
        "llama", train__select=select, train__select_by=select_by, train__select_margin=0.2, train__num_train_epochs=4,
        train__learning_rate=2e-2, data__split_column="part", data__ignore_columns=["w"], train__inner_fraction=0.25,
    )  # fmt: skip
    run = cross_validate(recipe, split_train, test, tmp_path / "run")
    curve = [json.loads(line) for line in run.fold(0).metrics.read_text().splitlines()]
    scores = [Score(line["selection_macro_f1"], line["selection_loss"]) for line in curve]
    assert len(scores) == 4
    assert read(run, "fold-00/fold.json")["epoch"] == best_epoch(scores, recipe.train)
    assert read(run, "metrics.json")["optimistic"] == (select == "scored_fold")
    if select == "scored_fold":  # the logits written are those of the epoch chosen
        oof = run.out_of_fold()
        rows, logits = oof.rows, oof.logits
        from lora_cls.evaluation import macro_f1

        chosen = scores[best_epoch(scores, recipe.train) - 1]
        assert macro_f1(run.y_true[rows], (logits > 0).astype(int)) == pytest.approx(chosen.macro_f1)


def test_split_that_allows_no_choice(small_recipe, split_train, tmp_path):
    """What cannot be chosen or held back is refused before a run folder exists."""
    recipe = small_recipe("llama", data__split_column="part", data__ignore_columns=["w"])
    with pytest.raises(RecipeError, match="cross_fitted needs other folds"):
        cross_validate(load_recipe(recipe, ["train.select=cross_fitted"]), split_train, out=tmp_path / "run")
    few = [f"train.{field}" for field in ("select=inner", "inner_fraction=0.01")]
    with pytest.raises(DataError, match="holds back one of 100 parts"):
        cross_validate(load_recipe(recipe, few), split_train, out=tmp_path / "run")
    unweighted = split_train.assign(w=split_train["part"].eq("VAL").astype(float))
    weighted = load_recipe(recipe, {"data.weight_column": "w", "data.ignore_columns": []})
    with pytest.raises(DataError, match=r"all rows that fold 0 is trained on weigh 0 in data\.weight_column 'w'"):
        cross_validate(weighted, unweighted, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# A subsample, and what check says


def test_max_rows(tfidf_recipe, train, test, extra, tmp_path):
    """Fewer training rows, all test and extra rows; the same sample at every start, another by another seed."""
    recipe = tfidf_recipe(data__max_rows=30)
    run = cross_validate(recipe, train, test, tmp_path / "run", extra_train=extra)
    assert (run.folds["fold"] >= 0).sum() == 30
    assert (run.folds["fold"] < 0).sum() == 19
    assert len(pd.read_csv(run.path / "submission.csv")) == len(test)
    assert cross_validate(recipe, train, test, run.path, extra_train=extra, resume=True).finished_folds == [0, 1, 2]
    assert refit(run, train, extra_train=extra).finished
    other = cross_validate(load_recipe(recipe, ["cv.random_state=1"]), train, test, tmp_path / "other")
    assert set(other.folds["id"]) != set(run.folds["id"][:30])
    whole = pd.DataFrame({"id": train["id"], "fold": np.arange(45) % 3})
    given = cross_validate(recipe, train, out=tmp_path / "given", fold_table=whole)
    assert len(given.folds) == 30


def test_max_rows_of_a_split(tfidf_recipe, split_train, tmp_path):
    """Both parts of a split give their share."""
    run = cross_validate(
        tfidf_recipe(data__split_column="part", data__ignore_columns=["w"], data__max_rows=30), split_train,
        out=tmp_path / "run",
    )  # fmt: skip
    held_out = int((run.folds["fold"] == 0).sum())
    assert held_out == 30 * split_train["part"].eq("VAL").sum() // 45
    assert 28 <= len(run.folds) <= 30


def test_smoke_of_everything(tfidf_recipe, split_train, test, extra, tmp_path):
    """A smoke run keeps some of either part and some extra rows."""
    many = pd.concat(
        [split_train.assign(id=split_train["id"] + f"-{i}", text=split_train["text"] + f" {i}") for i in range(4)]
    )
    run = cross_validate(
        tfidf_recipe(data__split_column="part", data__weight_column="w"), many, test, tmp_path / "run",
        extra_train=extra, smoke=True,
    )  # fmt: skip
    folds = run.folds["fold"]
    assert len(run.folds) == 96 + 16
    assert (folds == 0).sum() >= 20
    assert (folds < 0).sum() >= 40
    assert len(pd.read_csv(run.path / "submission.csv")) == len(test)


def test_check_says_it(split_train, test, extra):
    """`lora-cls check` names weights, split, sample and extra rows, and counts labels without the extra rows."""
    recipe = load_recipe(
        {"tfidf": {}, "data": {"split_column": "part", "weight_column": "w", "max_rows": 40, "label_columns": LABELS}}
    )
    found = check(recipe, split_train, test, extra_train=extra)
    notes = "\n".join(found.notes)
    for expected in (
        "row weights: 0.5 to 2", "rows are held out by data.split_column 'part'", "of 45 training rows are used",
        "19 extra rows of the DataFrame of extra rows", "left out 1 extra row",
        "of the extra rows 1 also stand in the test table", "row weights: w; split: part",
    ):  # fmt: skip
        assert expected in notes, expected
    assert found.data["train"]["rows"] <= 40
    with pytest.raises(RecipeError, match="cross_fitted needs other folds"):
        check(
            load_recipe(
                {
                    "backbone": {"name_or_path": "x"},
                    "data": recipe.data.model_dump(),
                    "train": {"select": "cross_fitted"},
                }
            ),
            split_train,
            test,
        )


def test_soft_labels_and_weights_end_to_end(small_recipe, tfidf_recipe, train, test, tmp_path):
    """Shares of annotators train, 0/1 scores; both kinds of model."""
    rng = np.random.default_rng(0)
    soft = train.assign(**{name: np.where(train[name] == 1, 0.9, 0.1) for name in LABELS}, w=rng.random(45) + 0.5)
    settings = {"data__soft_labels": True, "data__weight_column": "w"}
    for name, recipe in (("a", tfidf_recipe(**settings)), ("b", small_recipe("bert", **settings))):
        run = cross_validate(recipe, soft, test, tmp_path / name)
        assert isinstance(run, RunFolder)
        np.testing.assert_array_equal(run.y_true, train[LABELS].to_numpy())
        assert read(run, "metrics.json")["cross_fitted"]["macro_f1"] > 0.3
        other = soft.assign(joy=soft["joy"] * 0.99)
        with pytest.raises(RunError, match="train_sha256"):
            cross_validate(recipe, other, test, run.path, resume=True)
