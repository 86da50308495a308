"""One model of the folds' models: what it answers, that it opens anywhere, and what is refused."""

import json
import re
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from lora_cls.commands.cross_validation import cross_validate
from lora_cls.commands.export import export
from lora_cls.commands.predict import Classifier, predict_file
from lora_cls.commands.refit import refit
from lora_cls.errors import BackboneError, DataError, RecipeError, RunError
from lora_cls.runs import RunFolder
from lora_cls.training.factory import make_learner

TEXTS = ["so happy and lovely, what a great day with all of my friends in the garden", "afraid"]
LABELS = ["joy", "anger", "fear"]


@pytest.fixture(scope="module")
def lora_run(small_recipe, train, tmp_path_factory):
    """Two folds of fp32 adapters, trained far enough to differ; and the model of all rows."""
    recipe = small_recipe("bert", train__num_train_epochs=3, train__learning_rate=2e-2)
    run = cross_validate(recipe, train, out=tmp_path_factory.mktemp("lora") / "run")
    refit(run, train)
    return run


@pytest.fixture(scope="module")
def exports(lora_run, finished, tmp_path_factory):
    """Factory of exports of finished runs: (kind of run, adapter or merged)."""
    made = {}

    def make(kind, to):
        if (kind, to) not in made:
            run = lora_run if kind == "lora" else finished(kind)
            made[kind, to] = export(run, tmp_path_factory.mktemp("export") / f"{kind}-{to}", to=to)
        return made[kind, to]

    return make


ALL = [("lora", "adapter"), ("lora", "merged"), ("llama", "adapter"), ("llama", "merged"), ("gemma3", "adapter"),
       ("gemma3", "merged"), ("bert", "merged")]  # fmt: skip


def logits(folder, texts=TEXTS):
    """An export's logits, by our own learner."""
    classifier = Classifier.load(folder)
    return classifier._predictor.predict(classifier._folders[0], texts)


def test_equals_the_dense_mean(lora_run, exports):
    """The adapter and the merged model answer as a base to which the mean of the dense updates was added by hand."""
    learner = make_learner(lora_run.recipe, lora_run.label_names, choices=lora_run.info.choices)
    per_fold, deltas, heads = [], {}, []
    for number in lora_run.finished_folds:
        per_fold.append(learner.predict(lora_run.fold(number), TEXTS))
        model = learner.session.model()
        for name, module in model.base.named_modules():
            if hasattr(module, "get_delta_weight"):
                deltas[name] = deltas.get(name, 0) + module.get_delta_weight("default").detach() / 2
        heads.append({k: v.clone() for k, v in model.base.score.modules_to_save["default"].state_dict().items()})
    from lora_cls.modeling.classifier import SequenceClassifier
    from lora_cls.modeling.loading import load_base
    from lora_cls.text.tokens import pad

    base = load_base(lora_run.recipe.backbone, None, torch.float32, torch.device("cpu"))
    for name, delta in deltas.items():
        base.get_submodule(name).weight.add_(delta)
    base.score = torch.nn.Linear(64, 3)
    base.score.load_state_dict({key: (heads[0][key] + heads[1][key]) / 2 for key in heads[0]})
    rows = learner.session.encode(TEXTS).ids
    with torch.no_grad():
        ids, mask = (torch.from_numpy(array) for array in pad(rows, learner.session.head.pad_id, "right"))
        expected = SequenceClassifier(base, "mean").eval()(ids, mask).numpy()
    for to in ("adapter", "merged"):
        np.testing.assert_allclose(logits(exports("lora", to)), expected, rtol=0, atol=2e-5)
    assert np.abs(np.mean(per_fold, axis=0) - expected).max() > 1e-3  # the mean of the models is another one


@pytest.fixture(scope="module")
def snippet_logits(exports, snippet_answers):
    """Logits of two texts by each README's snippet, run in a process that cannot import lora_cls."""
    return snippet_answers({f"{kind}-{to}": exports(kind, to).path for kind, to in ALL}, TEXTS)


@pytest.mark.parametrize(("kind", "to"), ALL)
def test_snippet_gives_the_same_logits(exports, snippet_logits, kind, to):
    """What DIR/README.md prints opens the folder with transformers and PEFT alone, and answers as lora_cls does."""
    tolerance = 1e-2 if kind == "llama" else 1e-5  # llama's base is bf16
    np.testing.assert_allclose(snippet_logits[f"{kind}-{to}"], logits(exports(kind, to)), rtol=0, atol=tolerance)


@pytest.mark.parametrize(("kind", "to"), ALL)
def test_no_score_of_its_own(exports, kind, to):
    """README and export.json say that nothing was scored out of fold."""
    folder = exports(kind, to).path
    assert "**It has no out-of-fold score**: every training row was seen" in (folder / "README.md").read_text()
    about = json.loads((folder / "export.json").read_text())
    assert about["out_of_fold_score"] is None
    assert "no out-of-fold score" in about["note"]


def test_precision_of_the_files(finished, exports):
    """Merged weights keep the precision of the base's files, unquantized, whatever the run computed in."""
    from safetensors import safe_open

    for kind in ("llama", "gemma3"):
        with safe_open(exports(kind, "merged").path / "model" / "model.safetensors", "pt") as file:
            assert {str(file.get_tensor(key).dtype) for key in file.keys()} == {"torch.float32"}  # noqa: SIM118
    # without the rounding of bf16 or of 4 bits it is near to the adapter on the run's base, and not equal to it
    assert np.abs(logits(exports("llama", "merged")) - logits(exports("llama", "adapter"))).max() < 0.1


def test_16_bit_files(small_recipe, train, tmp_path, tiny_model):
    """A base stored in bf16 is merged in bf16, rounded once; opened in it, too."""
    from transformers import AutoModel, AutoTokenizer

    AutoModel.from_pretrained(tiny_model("llama"), dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tiny_model("llama")).save_pretrained(tmp_path / "base")
    recipe = small_recipe("llama", backbone__name_or_path=str(tmp_path / "base"), train__num_train_epochs=1)
    run = cross_validate(recipe, train, out=tmp_path / "run")
    merged, adapter = (export(run, tmp_path / to, to=to) for to in ("merged", "adapter"))
    classifier = Classifier.load(merged)
    classifier.predict(TEXTS)
    assert classifier._predictor.session.model().base.dtype == torch.bfloat16
    np.testing.assert_allclose(logits(merged), logits(adapter), rtol=0, atol=0.1)


def test_thresholds_and_weights(lora_run, exports):
    """Decisions are made at the run's thresholds, on probabilities by the geometric mean of the folds' weights."""
    folder = exports("lora", "adapter")
    classifier = Classifier.load(folder)
    np.testing.assert_array_equal(classifier.thresholds, Classifier.load(lora_run).thresholds)
    weight = np.exp(np.log(lora_run.pos_weights()).mean(axis=0))
    expected = 1 / (1 + np.exp(-(logits(folder) - np.log(weight))))
    np.testing.assert_allclose(classifier.predict_proba(TEXTS), expected, atol=1e-6)


def test_mean_of_full_models(finished, exports):
    """A fully fine-tuned run gives the mean of its weights and heads."""
    from safetensors.torch import load_file

    run, out = finished("bert"), exports("bert", "merged")
    for name in ("model.safetensors", "head.safetensors"):
        states = [load_file(run.fold(number).model / name) for number in (0, 1)]
        for key, value in load_file(out.path / "model" / name).items():
            torch.testing.assert_close(value, (states[0][key] + states[1][key]) / 2)


def test_predict_opens_it_anywhere(exports, test, tmp_path, unsummed):
    """`predict` answers from a copied export; a merged one needs no other files of the base."""
    moved = shutil.copytree(exports("lora", "merged").path, tmp_path / "moved")
    values = (moved / "recipe.yaml").read_text()
    (moved / "recipe.yaml").write_text(re.sub(r"name_or_path: .*", "name_or_path: /nowhere/model", values))
    unsummed(moved)
    folder = predict_file(moved, test, tmp_path / "answers")
    assert list(pd.read_csv(folder / "test_proba.csv")["id"]) == list(test["id"])
    with pytest.raises(RunError, match="no model of all rows"):
        Classifier.load(moved, models="refit")


def test_scores_on_the_command_line(lora_run, emotion_table, tmp_path, monkeypatch, capsys):
    """--score prints and keeps macro-F1 of the folds, the exact mean, the compressed one and refit, as predict's."""
    from lora_cls import cli
    from lora_cls.evaluation import macro_f1

    table = emotion_table(30, seed=8)
    table.to_csv(tmp_path / "labelled.csv", index=False)
    given = ["export", lora_run.path, "--out", tmp_path / "out", "--rank", "3", "--score", tmp_path / "labelled.csv"]
    monkeypatch.setattr(sys, "argv", ["lora-cls", *map(str, given)])
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert not done.value.code
    printed = capsys.readouterr().out
    about = json.loads((tmp_path / "out" / "export.json").read_text())
    assert [(row["model"], row["rank"]) for row in about["scores"]] == [
        ("the folds together", 4), ("exact mean", 8), ("compressed mean", 3), ("refit", 4)
    ]  # fmt: skip
    models = {"the folds together": (lora_run, "folds"), "refit": (lora_run, "refit"),
              "compressed mean": (RunFolder(tmp_path / "out"), "folds")}  # fmt: skip
    for row in about["scores"]:
        assert f"{row['macro_f1']['estimate']:.4f}" in printed
        assert row["macro_f1"]["low"] <= row["macro_f1"]["estimate"] <= row["macro_f1"]["high"]
        assert row["rows_per_second"] > 0
        if row["model"] in models:
            run, which = models[row["model"]]
            y_pred = Classifier.load(run, models=which).predict(list(table["text"]))
            assert row["macro_f1"]["estimate"] == pytest.approx(macro_f1(table[LABELS].to_numpy(), y_pred))
            together = about["scores"][0]["macro_f1"]["estimate"]
            assert row["difference"]["estimate"] == pytest.approx(row["macro_f1"]["estimate"] - together)
    assert "no out-of-fold score" in printed
    assert "| compressed mean | 3 |" in (tmp_path / "out" / "README.md").read_text()
    assert about["compression"]["share"] < 1


def test_classes_in_one_column(small_recipe, emotion_table, tmp_path):
    """single_label: scored on a table of class names, with a class that it lacks."""
    names = ["joy", "anger", "fear"]
    train = emotion_table(36)[["id", "text"]].assign(mood=[names[i % 3] for i in range(36)])
    run = cross_validate(
        small_recipe("bert", train__num_train_epochs=1, data__label_columns=["mood"]), train, out=tmp_path / "run"
    )
    labelled = emotion_table(12, seed=3)[["id", "text"]].assign(mood=[names[i % 2] for i in range(12)])
    out = export(run, tmp_path / "out", score=labelled)
    assert [row["model"] for row in json.loads((out.path / "export.json").read_text())["scores"]] == [
        "the folds together", "exact mean"
    ]  # fmt: skip
    with pytest.raises(DataError, match="row"):
        export(run, tmp_path / "again", score=labelled.assign(mood="envy"))
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"to": "merged", "rank": 4}, "merged weights have no rank"),
        ({"rank": 4, "share": 0.9}, "either --rank or --share"),
        ({"rank": 0}, "at least 1"),
        ({"share": 1.5}, "--share must lie"),
        ({"rank": 9}, "from 1 to 8"),
    ],
)
def test_wrong_settings(lora_run, tmp_path, given, error):
    """Settings that cannot be are refused, and nothing is left behind."""
    with pytest.raises((RecipeError, RunError), match=error):
        export(lora_run, tmp_path / "out", **given)
    assert list(tmp_path.iterdir()) == []


def test_never_overwrites(lora_run, tmp_path):
    """A folder that exists is left as it is, even an empty one."""
    (tmp_path / "out").mkdir()
    with pytest.raises(RunError, match="exists already"):
        export(lora_run, tmp_path / "out")
    assert list(tmp_path.rglob("*")) == [tmp_path / "out"]


def test_runs_without_updates(finished, exports, copy_of, tmp_path):
    """TF-IDF, full fine-tuning asked for an adapter, an export, and a run without a finished fold: each says why."""
    for run, error in (
        (finished("tfidf"), "TF-IDF"),
        (finished("bert"), "--to merged gives the mean"),
        (exports("lora", "adapter"), "an export itself"),
    ):
        with pytest.raises(RunError, match=error):
            export(run, tmp_path / "out")
    with pytest.raises(RunError, match="refit the run that it was made from"):
        refit(exports("lora", "adapter"))
    run = copy_of(finished("llama"))
    for number in (0, 1):
        run.fold(number).info_file.unlink()
    with pytest.raises(RunError, match="no fold is finished"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_models_that_cannot_be_averaged(small_recipe, train, tmp_path):
    """DoRA is refused by name; grouped convolutions give an adapter, and no merged model."""
    dora = small_recipe("bert", train__num_train_epochs=1, lora__use_dora=True)
    with pytest.raises(RunError, match="use_dora: True"):
        export(cross_validate(dora, train, out=tmp_path / "dora"), tmp_path / "out")
    grouped = small_recipe(
        "squeezebert/squeezebert-uncased", train__num_train_epochs=1, backbone__attn_implementation="eager"
    )
    run = cross_validate(grouped, train, out=tmp_path / "grouped")
    with pytest.raises(RunError, match="grouped convolutions"):
        export(run, tmp_path / "out", to="merged")
    assert not (tmp_path / "out").exists()
    assert Classifier.load(export(run, tmp_path / "out")).predict_proba(TEXTS).shape == (2, 3)


def test_writes_labels(small_recipe, train, tmp_path):
    """A model that writes its labels is not averaged."""
    run = cross_validate(small_recipe("chat", train__num_train_epochs=1), train, out=tmp_path / "run")
    with pytest.raises(RunError, match=r"head\.kind: generate"):
        export(run, tmp_path / "out")


def test_another_base(lora_run, tiny_model, tmp_path):
    """Merging into a base of the same shape and other weights is refused."""
    from transformers import AutoModel

    other = AutoModel.from_pretrained(tiny_model("bert"))
    other.encoder.layer[0].attention.self.query.weight.data += 0.1
    shutil.copytree(tiny_model("bert"), tmp_path / "base")
    other.save_pretrained(tmp_path / "base")
    with pytest.raises(BackboneError, match="is not the base that this run was trained on"):
        export(lora_run, tmp_path / "out", to="merged", backbone=str(tmp_path / "base"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


def test_benchmark_continues(lora_run, emotion_table, tmp_path, monkeypatch):
    """benchmarks.export keeps each answer: started again it makes only the report, and the same one."""
    from benchmarks import export as benchmark

    table = tmp_path / "labelled.csv"
    emotion_table(20, seed=8).to_csv(table, index=False)
    given = [lora_run.path, "--labels", table, "--work", tmp_path / "work", "--out", tmp_path / "report.md"]
    monkeypatch.setattr(sys, "argv", ["export", *map(str, given)])
    benchmark.main()
    report = (tmp_path / "report.md").read_text()
    rows = re.findall(r"^\| ([a-z0-9 ]+) \|", report, re.MULTILINE)
    assert rows == ["model", "the folds together", "exact mean", "rank 4", "merged", "refit"]
    monkeypatch.setattr(benchmark, "_answer", None)
    benchmark.main()
    assert (tmp_path / "report.md").read_text() == report
