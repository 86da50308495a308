"""Cross-validation: every row predicted once by a model that never saw it, and files that say the same thing."""

import json

import numpy as np
import pandas as pd
import pytest

from lora_cls.commands.cross_validation import cross_validate
from lora_cls.data import load_train
from lora_cls.errors import DataError, RunError
from lora_cls.evaluation import apply_thresholds, macro_f1
from lora_cls.evaluation.probabilities import corrected_probabilities
from lora_cls.recipe import load_recipe
from lora_cls.runs import FoldFolder, RunFolder

LABELS = ["joy", "anger", "fear"]
KINDS = ["tfidf", "llama", "bert", "gemma3"]


def read(run, name):
    return json.loads((run.path / name).read_text())


def proba(run, name="oof_proba.csv"):
    return pd.read_csv(run.path / name, dtype={"id": str})


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_once(finished, kind, train, test):
    """Every training and every test row has one row of probabilities, in the order of its table."""
    run = finished(kind)
    for name, table in (("oof_proba.csv", train), ("test_proba.csv", test)):
        scores = proba(run, name)
        assert list(scores["id"]) == list(table["id"])
        names = ["fear", "joy", "anger"] if kind == "tfidf" else LABELS  # as in the sample submission
        assert list(scores.columns) == ["id", *names]
        assert scores[LABELS].gt(0).all(axis=None)
        assert scores[LABELS].lt(1).all(axis=None)
    folds = run.folds
    assert sorted(folds["id"]) == sorted(train["id"])
    for number in run.fold_numbers:
        assert len(np.load(run.fold(number).oof_logits)) == (folds["fold"] == number).sum()


def test_tfidf_never_saw_its_rows(finished, tfidf_recipe, train, tmp_path):
    """Training on the other folds by hand gives the same logits: nothing of the held-out rows went in."""
    from lora_cls.training.tfidf import TfidfLearner

    run = finished("tfidf")
    data = load_train(load_recipe(run.recipe, {"data.label_columns": run.label_names}).data, train)
    fold = run.folds["fold"].to_numpy()
    rows, held_out = np.flatnonzero(fold != 1), np.flatnonzero(fold == 1)
    learner = TfidfLearner(tfidf_recipe(), data.label_names)
    again = FoldFolder(tmp_path / "again")
    learner.prepare(data.subset(rows)).fit_fold(0, np.arange(len(rows)), np.arange(0), again)
    logits = learner.predict(again, [data.texts[row] for row in held_out])
    np.testing.assert_array_equal(logits, np.load(run.fold(1).oof_logits))


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_transformer_never_saw_its_rows(small_recipe, train, tmp_path, kind):
    """Turning over the labels and changing the texts of one fold's rows does not change what is predicted for the
    rest of that fold: its model was trained without them."""
    recipe = small_recipe(kind, train__num_train_epochs=1, **({"lora": None} if kind == "bert" else {}))
    folds = pd.DataFrame({"id": train["id"], "fold": [i % 2 for i in range(len(train))]})
    changed = train.copy()
    spoiled = folds["fold"].eq(1) & (np.arange(len(train)) > 20)
    changed.loc[spoiled, LABELS] = 1 - changed.loc[spoiled, LABELS]
    runs = [
        cross_validate(recipe, table, out=tmp_path / str(i), fold_table=folds)
        for i, table in enumerate((train, changed))
    ]
    kept = ~spoiled[folds["fold"] == 1].to_numpy()
    before, after = (np.load(run.fold(1).oof_logits) for run in runs)
    np.testing.assert_array_equal(before[kept], after[kept])
    assert not np.array_equal(np.load(runs[0].fold(0).oof_logits), np.load(runs[1].fold(0).oof_logits))


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_follow_from_the_files(finished, kind, train):
    """The headline score can be computed again from oof_proba.csv, the folds' thresholds and the labels alone."""
    run = finished(kind)
    scores, names, fold = proba(run), run.label_names, run.folds["fold"].to_numpy()
    limits = read(run, "thresholds.json")["folds"]
    y_true = train[names].to_numpy()
    y_pred = np.zeros_like(y_true)
    for number in run.fold_numbers:
        cut = [limits[str(number)][name] for name in names]
        y_pred[fold == number] = apply_thresholds(scores.loc[fold == number, names].to_numpy(), cut)
    metrics = read(run, "metrics.json")
    assert metrics["cross_fitted"]["macro_f1"] == pytest.approx(macro_f1(y_true, y_pred), abs=1e-12)
    interval = metrics["cross_fitted"]["macro_f1_interval"]
    assert interval["low"] <= metrics["cross_fitted"]["macro_f1"] <= interval["high"]
    assert metrics["rows_scored"] == metrics["rows"] == len(train)
    assert not metrics["optimistic"]


@pytest.mark.parametrize("kind", KINDS)
def test_untuned_score(finished, kind, train):
    """The untuned score is logit > 0 on the saved logits, as notebooks report it."""
    run = finished(kind)
    logits = run.out_of_fold().logits
    score = macro_f1(train[run.label_names].to_numpy(), (logits > 0).astype(int))
    assert read(run, "metrics.json")["untuned"]["macro_f1"] == pytest.approx(score, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_undo_the_weights(finished, kind):
    """Written probabilities are the logits shifted back by the fold's own positive weights."""
    run = finished(kind)
    scores, fold = proba(run), run.folds["fold"].to_numpy()
    for number, weight in zip(run.fold_numbers, run.pos_weights(), strict=True):
        expected = corrected_probabilities(np.load(run.fold(number).oof_logits), weight)
        np.testing.assert_array_equal(scores.loc[fold == number, run.label_names].to_numpy(), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_submission_follows_from_the_files(finished, kind, test):
    """The shipped thresholds on test_proba.csv give submission.csv, one row per test row."""
    run = finished(kind)
    shipped = read(run, "thresholds.json")["shipped"]
    scores = proba(run, "test_proba.csv").set_index("id")
    submission = pd.read_csv(run.path / "submission.csv", dtype={"id": str}).set_index("id")
    assert sorted(submission.index) == sorted(test["id"])
    for name in LABELS:
        expected = (scores[name] >= shipped[name]).astype(int)
        assert submission[name].to_dict() == expected.to_dict()
    assert read(run, "metrics.json")["test"]["positives"] == submission[run.label_names].sum().to_dict()


def test_submission_follows_the_sample(finished, sample):
    """A submission copies the sample's header and its rows' order."""
    submission = pd.read_csv(finished("tfidf").path / "submission.csv", dtype={"id": str})
    assert list(submission.columns) == list(sample.columns)
    assert list(submission["id"]) == list(sample["id"])


def test_identical_texts_share_a_fold(finished):
    """Two rows of one text are never on both sides of a split."""
    for kind in KINDS:
        folds = finished(kind).folds.set_index("id")["fold"]
        assert folds["row007"] == folds["row040"]


def test_at_least_one(tfidf_recipe, train, test, tmp_path):
    """With prediction.at_least_one every test row gets a label, the empty text too; without it some get none."""
    strict = {"thresholds__strategy": "fixed", "thresholds__default": 0.99}
    runs = [
        cross_validate(tfidf_recipe(prediction__at_least_one=on, **strict), train, test, tmp_path / str(on))
        for on in (False, True)
    ]
    bare, full = (pd.read_csv(run.path / "submission.csv")[LABELS].sum(axis=1) for run in runs)
    assert bare.eq(0).any()
    assert full.eq(1).all()
    assert read(runs[0], "metrics.json")["cross_fitted"]["macro_f1"] == 0
    assert read(runs[1], "metrics.json")["cross_fitted"]["macro_f1"] > 0


@pytest.mark.parametrize("kind", ["tfidf", "llama"])
def test_same_recipe_twice(finished, kind, train, test, sample, tmp_path, results):
    """The same recipe and data give the same bytes, even into a run folder of another process's choosing."""
    run = finished(kind)
    again = cross_validate(
        run.recipe, train, test, tmp_path / "again", sample_submission=sample if kind == "tfidf" else None
    )
    assert results(again) == results(run)


def test_folds_now_and_later(finished, train, test, sample, tmp_path, results):
    """--folds 0,1 scores what is there and says that it is partial; --resume then gives the bytes of one go."""
    run = finished("tfidf")
    part = cross_validate(
        run.recipe, train, test, tmp_path / "run", sample_submission=sample, folds=[0, 1], overrides=()
    )
    assert part.finished_folds == [0, 1]
    metrics = read(part, "metrics.json")
    fold = part.folds["fold"].to_numpy()
    assert metrics["folds_finished"] == [0, 1]
    assert metrics["rows_scored"] == len(proba(part)) == (fold != 2).sum()
    assert "Partial: 2 of 3 folds." in (part.path / "README.md").read_text()
    whole = cross_validate(run.recipe, train, test, tmp_path / "run", sample_submission=sample, resume=True)
    assert results(whole) == results(run)
    # the card's metadata names the table, which was a DataFrame here and a file there
    cards = [(one.path / "README.md").read_text(encoding="utf-8").split("\n---\n", 1)[1] for one in (whole, run)]
    assert cards[0] == cards[1]


def test_one_fold(tfidf_recipe, train, test, tmp_path):
    """A single fold is scored by thresholds from other parts of its rows; with more folds, from the other folds."""
    run = cross_validate(tfidf_recipe(), train, test, tmp_path / "run", folds=[1])
    scores = read(run, "metrics.json")["cross_fitted"]
    assert (scores["over"], scores["n_parts"]) == ("parts", 5)
    assert list(read(run, "thresholds.json")["parts"]) == ["0", "1", "2", "3", "4"]
    assert len(pd.read_csv(run.path / "submission.csv")) == len(test)
    sentence = "thresholds for each of 5 parts of them tuned on the other parts"
    card = (run.path / "README.md").read_text()
    assert sentence in card
    assert "Partial: 1 of 3 folds." in card
    run = cross_validate(tfidf_recipe(), train, test, tmp_path / "run", resume=True)
    assert (read(run, "metrics.json")["cross_fitted"]["over"], sentence in (run.path / "README.md").read_text()) == (
        "folds", False,
    )  # fmt: skip


def test_folds_named_twice(tfidf_recipe, train, tmp_path, monkeypatch):
    """A fold that is named twice is trained once."""
    from lora_cls.training.tfidf import TfidfTrainer

    trained, fit = [], TfidfTrainer.fit_fold
    monkeypatch.setattr(TfidfTrainer, "fit_fold", lambda self, k, *rest: trained.append(k) or fit(self, k, *rest))
    cross_validate(tfidf_recipe(), train, out=tmp_path / "run", folds=[1, 1, 0])
    assert sorted(trained) == [0, 1]


def test_fold_table(tfidf_recipe, train, tmp_path):
    """Given folds are used as they are, in whatever order the table lists them."""
    folds = pd.DataFrame({"id": train["id"], "fold": [i % 4 for i in range(len(train))]}).iloc[::-1]
    folds.to_csv(tmp_path / "folds.csv", index=False)
    recipe = tfidf_recipe(data__folds=str(tmp_path / "folds.csv"))
    run = cross_validate(recipe, train, out=tmp_path / "run")
    assert run.fold_numbers == [0, 1, 2, 3]
    assert run.folds["fold"].tolist() == [i % 4 for i in range(len(train))]
    again = cross_validate(tfidf_recipe(), train, out=tmp_path / "again", fold_table=folds)
    assert (again.path / "oof_proba.csv").read_bytes() == (run.path / "oof_proba.csv").read_bytes()
    other = folds.assign(fold=folds["fold"].to_numpy()[::-1])
    with pytest.raises(RunError, match="started with other folds"):
        cross_validate(recipe, train, out=tmp_path / "run", fold_table=other, resume=True)


def test_no_test_table(tfidf_recipe, train, tmp_path):
    """Without test rows there is a score but no submission."""
    run = cross_validate(tfidf_recipe(), train, out=tmp_path / "run")
    assert (run.path / "metrics.json").is_file()
    assert not (run.path / "submission.csv").exists()
    assert not (run.path / "test_proba.csv").exists()


def test_files_and_tables_are_the_same(finished, train, test, sample, tfidf_recipe, tmp_path, results):
    """DataFrames give the bytes that their files give."""
    run = cross_validate(tfidf_recipe(), train, test, tmp_path / "run", sample_submission=sample)
    assert results(run) == results(finished("tfidf"))
    assert run.info.data.paths["train"] == "DataFrame"


def test_ids_stay_texts(tfidf_recipe, train, test, tmp_path):
    """Ids such as 007 and NA come through every file unchanged."""
    ids = ["007", "NA", "1e3", *[f"{i:03d}" for i in range(100, 109)]]
    test = test.assign(id=ids)
    train = train.assign(id=["000", "nan", "None", *train["id"][3:]])
    run = cross_validate(tfidf_recipe(), train, test, tmp_path / "run")
    for name, expected in (("submission.csv", ids), ("test_proba.csv", ids), ("oof_proba.csv", list(train["id"]))):
        lines = (run.path / name).read_text().splitlines()[1:]
        assert [line.split(",")[0] for line in lines] == expected
    assert cross_validate(tfidf_recipe(), train, test, tmp_path / "run", resume=True).test_ids == ids


def test_label_that_never_or_always_occurs(tfidf_recipe, train, test, tmp_path):
    """A label without positives, and one without negatives, get a score of 0 and of 1 and break nothing."""
    run = cross_validate(
        tfidf_recipe(data__label_columns=[*LABELS, "never", "always"]),
        train.assign(never=0, always=1), test, tmp_path / "run",
    )  # fmt: skip
    rows = {row["label"]: row for row in read(run, "metrics.json")["cross_fitted"]["per_label"]}
    assert rows["never"]["f1"] == 0
    assert rows["always"]["f1"] == 1
    assert rows["never"]["roc_auc"] is rows["always"]["roc_auc"] is None
    submission = pd.read_csv(run.path / "submission.csv")
    assert submission["never"].eq(0).all()
    assert submission["always"].eq(1).all()


@pytest.mark.parametrize("select", ["inner", "cross_fitted", "scored_fold"])
def test_select(small_recipe, train, test, tmp_path, select):
    """Every way of choosing an epoch runs through and leaves no scratch; only the flattering one is marked."""
    recipe = small_recipe("llama", train__select=select, train__num_train_epochs=3, train__learning_rate=2e-2)
    run = cross_validate(recipe, train, test, tmp_path / "run")
    metrics, card = read(run, "metrics.json"), (run.path / "README.md").read_text()
    assert metrics["optimistic"] == (select == "scored_fold")
    assert ("OPTIMISTIC" in card) == (select == "scored_fold")
    info = [json.loads(run.fold(number).info_file.read_text()) for number in run.fold_numbers]
    curves = [
        [json.loads(line) for line in run.fold(number).metrics.read_text().splitlines()] for number in run.fold_numbers
    ]
    for number, found, curve in zip(run.fold_numbers, info, curves, strict=True):
        assert 1 <= found["epoch"] <= 3
        assert [line["epoch"] for line in curve] == [1, 2, 3]
        held_out = (run.folds["fold"] == number).sum()
        if select == "inner":
            assert found["train_rows"] < len(train) - held_out
        else:
            assert found["train_rows"] == len(train) - held_out
        if select != "cross_fitted":
            scores = [line["selection_macro_f1"] for line in curve]
            assert found["epoch"] == 1 + int(np.argmax(scores))
    left = [path.name for path in run.path.rglob("*") if path.name.startswith((".", "epoch-", "state", "tmp"))]
    assert left == []


def test_epoch_chosen_by_the_other_folds(small_recipe, train, test, tmp_path, monkeypatch):
    """`cross_fitted` keeps, for each fold, the answers and the adapter of the epoch that is best on the other folds."""
    import lora_cls.commands.cross_validation as module

    before = {}

    def look(run):
        for number in run.fold_numbers:
            for epoch in (1, 2, 3):
                kept = run.fold(number).epoch(epoch)
                weights = (kept.adapter / "adapter_model.safetensors").read_bytes()
                before[number, epoch] = (kept.oof_logits.read_bytes(), kept.test_logits.read_bytes(), weights)
        choose(run)

    choose = module.choose_epochs
    monkeypatch.setattr(module, "choose_epochs", look)
    recipe = small_recipe("llama", train__select="cross_fitted", train__num_train_epochs=3, train__learning_rate=2e-2)
    run = cross_validate(recipe, train, test, tmp_path / "run")
    assert len(before) == 6
    for number in run.fold_numbers:
        folder, info = run.fold(number), json.loads(run.fold(number).info_file.read_text())
        scores = info["other_folds_macro_f1"]
        assert info["epoch"] == 1 + int(np.argmax(scores))
        weights = (folder.adapter / "adapter_model.safetensors").read_bytes()
        assert (folder.oof_logits.read_bytes(), folder.test_logits.read_bytes(), weights) == before[
            number, info["epoch"]
        ]


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("llama", {"use_dora": True}),
        ("bert", {"bias": "all"}),
        ("bert", {"bias": "lora_only"}),
        ("bert", {"lora_bias": True}),
        ("llama", {"use_rslora": True}),
        ("llama", {"init_lora_weights": "gaussian"}),
        ("llama", {"rank_pattern": {"q_proj": 2}}),
    ],
)
def test_folds_do_not_leak_into_each_other(small_recipe, train, tmp_path, kind, extra):
    """With any LoRA variant fold 1 trained after fold 0 equals fold 1 trained alone: nothing is carried over. Read back
    from disk, it answers the same."""
    from lora_cls.training.factory import make_learner

    recipe = small_recipe(kind, train__num_train_epochs=1, **{f"lora__{key}": value for key, value in extra.items()})
    both = cross_validate(recipe, train, out=tmp_path / "both")
    alone = cross_validate(recipe, train, out=tmp_path / "alone", folds=[1])
    logits = np.load(both.fold(1).oof_logits)
    np.testing.assert_array_equal(logits, np.load(alone.fold(1).oof_logits))
    learner = make_learner(both.recipe, both.label_names, choices=both.info.choices)
    texts = train["text"][(both.folds["fold"] == 1).to_numpy()].tolist()
    learner.predict(both.fold(0), texts)
    np.testing.assert_allclose(learner.predict(both.fold(1), texts), logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["tfidf", "llama"])
def test_smoke(kind, tfidf_recipe, small_recipe, train, test, sample, tmp_path):
    """A smoke run goes the whole way on its own folder, and leaves the place of the real run free."""
    recipe = tfidf_recipe() if kind == "tfidf" else small_recipe("llama", train__num_train_epochs=3)
    run = cross_validate(recipe, train, test, tmp_path / "run", sample_submission=sample, smoke=True)
    assert run.path.name.startswith("run-smoke-")
    assert run.fold_numbers == [0, 1]
    assert run.recipe.train.num_train_epochs == 1
    assert len(pd.read_csv(run.path / "submission.csv")) == len(test)
    assert not (tmp_path / "run").exists()


def test_run_in_the_existing_folder_is_refused(finished, train, results):
    """An existing run is not overwritten from Python either."""
    run = finished("tfidf")
    before = results(run)
    with pytest.raises(RunError, match="replace it with --overwrite"):
        cross_validate(run.recipe, train, out=run.path)
    assert results(run) == before


def test_empty_folder_is_used(tfidf_recipe, train, tmp_path):
    """An empty folder, such as a temporary one, becomes the run folder."""
    assert cross_validate(tfidf_recipe(), train, out=tmp_path).finished_folds == [0, 1, 2]


def test_inputs_are_not_changed(tfidf_recipe, train, test, sample, tmp_path):
    """DataFrames handed in are the same afterwards."""
    given = [table.copy() for table in (train, test, sample)]
    cross_validate(tfidf_recipe(), given[0], given[1], tmp_path / "run", sample_submission=given[2])
    for before, after in zip((train, test, sample), given, strict=True):
        pd.testing.assert_frame_equal(before, after)


def test_sample_of_another_test(tfidf_recipe, train, test, sample, tmp_path):
    """A sample submission that does not fit the test table is refused before training."""
    with pytest.raises(DataError, match="ids of the test table are missing"):
        cross_validate(tfidf_recipe(), train, test, tmp_path / "run", sample_submission=sample[:-1])
    assert not (tmp_path / "run").exists()


def test_no_scratch_files(finished):
    """A finished run holds no temporary files and no training state."""
    for kind in KINDS:
        names = [path.name for path in finished(kind).path.rglob("*")]
        assert [name for name in names if name.startswith(".") or name.endswith(".tmp") or "state" in name] == []


def test_folder_opens_again(finished):
    """A run folder moved as a whole opens with everything in it."""
    for kind in KINDS:
        run = RunFolder(str(finished(kind).path))
        assert run.recipe == finished(kind).recipe
        assert run.finished_folds == run.fold_numbers
