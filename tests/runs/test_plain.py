"""`export --to transformers`: what plain `pipeline` answers, what the folder holds, and what is refused."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from lora_cls.commands import plain
from lora_cls.commands.cross_validation import cross_validate
from lora_cls.commands.export import export
from lora_cls.commands.predict import Classifier
from lora_cls.errors import RunError

ASK = """
import contextlib, json, os, sys
sys.modules["lora_cls"] = None  # any import of it fails

import torch
torch.set_num_threads(1)
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folders, bases, texts = json.loads(sys.stdin.read())
answers = {}
with contextlib.redirect_stdout(sys.stderr):
    for name, (folder, code) in folders.items():
        os.chdir(folder)
        names = {}
        exec(code, names)
        answers[name] = {"labels": names["labels"](texts)}
        if name in bases:
            batch = AutoTokenizer.from_pretrained(".")(texts, padding=True, truncation=True, return_tensors="pt")
            whole = AutoModelForSequenceClassification.from_pretrained(".")
            base = AutoModelForSequenceClassification.from_pretrained(
                bases[name], num_labels=whole.config.num_labels, pad_token_id=whole.config.pad_token_id
            )
            model = PeftModel.from_pretrained(base, "adapter").eval()
            with torch.no_grad():
                answers[name]["logits"] = [m(**batch).logits.tolist() for m in (whole, model)]
print(json.dumps(answers))
"""
KINDS = ("labels", "classes", "one", "first")


@pytest.fixture(scope="module")
def runs(small_recipe, tiny_model, train, tmp_path_factory):
    """Runs in fp32. `labels`: LoRA on a Llama, two folds. Of one fold: `classes`, the same with one class per text;
    `one`, a Gemma 3 behind a prompt, at least one label per text; `first`, a DistilBERT, all weights trained, pooled at
    its first token.
    """
    short = {"train__num_train_epochs": 2, "train__learning_rate": 2e-2}
    names = ["joy", "anger", "fear"]
    classes = train[["id", "text"]].assign(mood=[names[i] for i in train[names].to_numpy().argmax(axis=1)])
    first = tiny_model("distilbert/distilbert-base-uncased")
    recipes = {
        "labels": (small_recipe("llama", **short), train),
        "classes": (small_recipe("llama", **short, data__label_columns=["mood"]), classes),
        "one": (
            small_recipe(
                "gemma3",
                **short,
                head={"kind": "label_tokens"},
                prediction={"at_least_one": True},
                thresholds={"strategy": "fixed", "default": 0.7},
            ),
            train,
        ),
        "first": (
            small_recipe(
                "bert", train__learning_rate=1e-3, backbone__name_or_path=first, lora=None, head__pooling="cls"
            ),
            train,
        ),
    }
    folder = tmp_path_factory.mktemp("plain")
    return {
        name: cross_validate(recipe, table, out=folder / name, folds=None if name == "labels" else [0])
        for name, (recipe, table) in recipes.items()
    }


@pytest.fixture(scope="module")
def folders(runs, tmp_path_factory):
    """Their exports for transformers."""
    root = tmp_path_factory.mktemp("transformers")
    return {name: export(run, root / name, to="transformers") for name, run in runs.items()}


@pytest.fixture(scope="module")
def texts(emotion_table):
    """40 texts, one longer than the models read."""
    return list(emotion_table(40, seed=9)["text"])


@pytest.fixture(scope="module")
def answers(folders, blocks, tiny_model, texts):
    """What the READMEs' code says of the texts, and what plain and PEFT models do, where lora_cls is not."""
    given = {name: (str(folder), blocks(folder)[0]) for name, folder in folders.items()}
    bases = {"labels": tiny_model("llama"), "classes": tiny_model("llama"), "one": tiny_model("gemma3")}
    done = subprocess.run(
        [sys.executable, "-c", ASK], input=json.dumps([given, bases, texts]), capture_output=True, text=True,
        env=os.environ.copy(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_same_labels(runs, answers, texts, tmp_path, kind):
    """The README's code decides as the merged model does at the run's thresholds, and not always alike."""
    expected = Classifier.load(export(runs[kind], tmp_path / "merged", to="merged")).predict_labels(texts)
    found = answers[kind]["labels"]
    assert [found if kind == "classes" else set(found) for found in found] == [
        label if kind == "classes" else set(label) for label in expected
    ]
    assert len({str(found) for found in found}) > 1
    if kind == "one":
        assert min(map(len, found)) == 1


@pytest.mark.parametrize("kind", KINDS[:3])
def test_adapter(folders, answers, kind):
    """The adapter, by PEFT on transformers' class, gives the logits of the whole model."""
    whole, adapted = map(np.array, answers[kind]["logits"])
    np.testing.assert_allclose(adapted, whole, rtol=0, atol=1e-5)
    config = json.loads((folders[kind] / "adapter" / "adapter_config.json").read_text())
    assert (config["modules_to_save"], config["task_type"]) == (["score"], "SEQ_CLS")
    from safetensors import safe_open

    with safe_open(folders[kind] / "adapter" / "adapter_model.safetensors", "pt") as file:
        keys = set(file.keys())
    assert {key for key in keys if "score" in key} == {"base_model.model.score.weight"}
    assert all(key.startswith("base_model.model.model.layers.") for key in keys if "score" not in key)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_folder_says(folders, kind):
    """The configuration names labels, task, class, padding token and precision; nothing names a place of this machine;
    export.json states how near the answers are, and the README what it has no score of."""
    config = json.loads((folders[kind] / "config.json").read_text())
    names = list(config["id2label"].values())
    assert sorted(names) == ["anger", "fear", "joy"]
    assert config["label2id"] == {name: int(i) for i, name in config["id2label"].items()}
    kinds = {"classes": "single_label_classification"}
    assert config["problem_type"] == kinds.get(kind, "multi_label_classification")
    classes = {"one": "Gemma3Text", "first": "DistilBert"}
    assert config["architectures"] == [f"{classes.get(kind, 'Llama')}ForSequenceClassification"]
    assert config["dtype"] == "float32" and isinstance(config["pad_token_id"], int)
    assert json.loads((folders[kind] / "tokenizer_config.json").read_text())["model_max_length"] == 48
    about = json.loads((folders[kind] / "export.json").read_text())
    assert [parity["dtype"] for parity in about["parity"]] == ["float32"]
    assert about["parity"][0]["difference"] < 1e-5 and about["parity"][0]["decisions"] == 0
    offsets = json.loads((folders[kind] / "thresholds.json").read_text())["offsets"].values()
    assert all(offsets) is (kind != "first") and (kind != "first" or not any(offsets))
    readme = (folders[kind] / "README.md").read_text()
    score = "out-of-fold score" if kind == "labels" else "score of its own"
    assert f"**It has no {score}**" in readme and "from those that lora_cls computes in float32" in readme
    assert ("vllm serve" in readme) is (kind != "first") is (folders[kind] / "adapter").is_dir()
    for file in folders[kind].rglob("*"):
        if file.suffix in (".json", ".md", ".jinja"):
            assert not re.search(r"/(tmp|root|home|work)/", file.read_text()), file


def test_one_label(small_recipe, train, tmp_path):
    """task: binary is a class with one label, whose score is a sigmoid; two columns make a text, as the README says."""
    from transformers import pipeline

    table = train.assign(title="A title", toxic=train["joy"])[["id", "title", "text", "toxic"]]
    recipe = small_recipe("qwen2", data__label_columns=["toxic"], data__text_columns=["title", "text"])
    run = cross_validate(recipe, table, out=tmp_path / "run", folds=[0])
    out = export(run, tmp_path / "out", to="transformers")
    found = pipeline("text-classification", model=str(out), top_k=None)(["happy", "afraid"])
    assert [[score["label"] for score in scores] for scores in found] == [["toxic"], ["toxic"]]
    assert 0 < found[0][0]["score"] < 1 and found[0] != found[1]
    assert "A text was made of the columns title, text" in (out / "README.md").read_text()


def test_16_bits_and_4(finished, tmp_path):
    """A run in bf16, and one on a base of 4 bits, are compared in fp32."""
    for kind in ("llama", "gemma3"):
        out = export(finished(kind), tmp_path / kind, to="transformers")
        parity = json.loads((out / "export.json").read_text())["parity"]
        assert parity[0]["dtype"] == "float32" and parity[0]["difference"] < 1e-5
    assert "not quantized" in (out / "README.md").read_text()


def test_on_the_command_line(runs, emotion_table, tmp_path, monkeypatch, capsys):
    """--score compares on the table's texts, too, and prints both; the folder gives way to --overwrite, and only it."""
    from lora_cls import cli

    emotion_table(30, seed=8).to_csv(tmp_path / "labelled.csv", index=False)
    given = ["export", runs["labels"].path, "--out", tmp_path / "out", "--to", "transformers", "--overwrite"]
    for more in ([], ["--score", tmp_path / "labelled.csv"]):
        monkeypatch.setattr(sys, "argv", ["lora-cls", *map(str, [*given, *more])])
        with pytest.raises(SystemExit) as done:
            cli.main()
        assert not done.value.code
    printed = capsys.readouterr().out
    assert "which transformers opens by itself" in printed and "no out-of-fold score" in printed
    assert "Computed in float32, probabilities of 54 texts differ by at most" in printed
    assert "lora-cls predict" not in printed
    about = json.loads((tmp_path / "out" / "export.json").read_text())
    assert [row["model"] for row in about["scores"]] == ["the folds together", "exact mean", "merged"]
    assert "| merged |" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(RunError, match=r"is an export for another program: it has no recipe\.yaml"):
        Classifier.load(tmp_path / "out")
    (tmp_path / "out" / "mine.txt").write_text("kept")
    with pytest.raises(RunError, match=r"also holds mine\.txt"):
        export(runs["labels"], tmp_path / "out", to="transformers", overwrite=True)
    with pytest.raises(RunError, match="exists already"):
        export(runs["labels"], tmp_path / "out", to="transformers")


@pytest.mark.parametrize(
    ("kind", "change", "reason"),
    [
        ("roberta", {}, "RobertaForSequenceClassification puts layers of its own between .*roberta and the labels"),
        ("llama", {"head__pooling": "mean"}, "reads the last token, and this run the mean of all tokens: trained with "
         "--set head.pooling=last_token it would fit"),
        ("llama", {"data__long_text": "chunk"}, "data.long_text: chunk reads more"),
    ],
)  # fmt: skip
def test_refused(small_recipe, train, tmp_path, kind, change, reason):
    """What no class can hold is refused before anything is made, in a sentence that says what to do instead."""
    run = cross_validate(small_recipe(kind, train__num_train_epochs=1, **change), train, out=tmp_path / "run")
    with pytest.raises(RunError, match=reason) as error:
        export(run, tmp_path / "out", to="transformers")
    assert str(error.value).endswith(
        "Export an adapter instead, without --to transformers: its README.md has the code that opens it with "
        "transformers and PEFT."
    )
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_another_answer_is_never_left(finished, runs, tmp_path, monkeypatch):
    """A folder that answers otherwise is not left, nor anything beside it."""
    asked = []

    def wrong(*given):
        asked.append(given)
        return np.full((len(given[1]), 3), 0.5)

    monkeypatch.setattr("lora_cls.modeling.plain_classifier.pipeline_scores", wrong)
    with pytest.raises(RunError, match=r"would answer otherwise than the run's mean model.*Export an adapter instead"):
        export(runs["labels"], tmp_path / "out", to="transformers")
    assert asked and list(tmp_path.iterdir()) == []
    with pytest.raises(RunError, match="with --to merged instead"):
        export(runs["first"], tmp_path / "out", to="transformers")
    with pytest.raises(RunError, match=r"ForSequenceClassification puts layers of its own.*--to merged"):
        export(finished("bert"), tmp_path / "out", to="transformers")
    assert not plain.is_plain(tmp_path)
