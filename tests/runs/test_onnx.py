"""ONNX exports: what they answer, that they open without torch and without this package, and what is refused."""

import json
import logging
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from lora_cls.commands.cross_validation import cross_validate
from lora_cls.commands.export import export
from lora_cls.commands.predict import Classifier, predict_file
from lora_cls.commands.score import score_file
from lora_cls.commands.status import status
from lora_cls.errors import RecipeError, RunError
from lora_cls.runs.records import ExportInfo
from lora_cls.training import onnx_export

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

TEXTS = [
    "so happy and lovely, what a great day with all of my friends in the garden " * 6, "afraid", "",
    "furious, angry <s> [SEP] and mad", "Ünïcode 😀 and\nlines",
]  # fmt: skip
BLOCKED = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Blocked())
"""
WITHOUT_TORCH = """
BLOCKED = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "onnx", "onnxscript")
from lora_cls import Classifier, predict_file
folder, texts, table, out = json.loads(sys.stdin.read())
classifier = Classifier.load(folder)
answers = {"proba": classifier.predict_proba(texts).tolist(), "labels": classifier.predict_labels(texts)}
answers["words"] = len(classifier.explain("a happy day").words)
predict_file(folder, table, out, show=False)
print(json.dumps(answers))
"""
WITHOUT_US = """
BLOCKED = ("lora_cls", "torch", "transformers", "peft", "pandas", "scipy", "sklearn", "onnx", "onnxscript")
import contextlib, os
folder, texts, code = json.loads(sys.stdin.read())
os.chdir(folder)
names = {}
with contextlib.redirect_stdout(sys.stderr):
    exec(code, names)
print(json.dumps({"proba": names["probabilities"](texts).tolist(), "labels": names["decide"](texts)}))
"""


def isolated(code, *given):
    """What a process without some packages prints, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED + code], input=json.dumps(given), capture_output=True, text=True,
        env=os.environ.copy(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def exports(finished, tmp_path_factory):
    """Factory of the ONNX exports of finished runs."""
    made = {}

    def make(kind):
        if kind not in made:
            made[kind] = export(finished(kind), tmp_path_factory.mktemp("onnx") / kind, to="onnx")
        return made[kind]

    return make


@pytest.mark.parametrize(
    ("kind", "other", "most"), [("bert", "merged", 1e-5), ("llama", "adapter", 2e-2), ("gemma3", "adapter", 1e-4)]
)
def test_answers_as_another_export(exports, finished, tmp_path, kind, other, most):
    """Fully fine-tuned; adapters that computed in bf16; adapters on a base in 4 bits, which is dequantized."""
    exported = exports(kind)
    about = ExportInfo.read(exported.files.export)
    assert about.onnx.largest_difference < 1e-5
    assert about.name == "ONNX float32"
    expected = Classifier.load(export(finished(kind), tmp_path / "other", to=other)).predict_proba(TEXTS)
    np.testing.assert_allclose(Classifier.load(exported).predict_proba(TEXTS), expected, rtol=0, atol=most)


@pytest.mark.parametrize("kind", ["bert", "gemma3"])
def test_opens_without_torch(exports, test, tmp_path, kind):
    """Classifier and predict_file answer the same where torch and transformers are not installed."""
    exported = exports(kind)
    test.to_csv(tmp_path / "new.csv", index=False)
    found = isolated(WITHOUT_TORCH, str(exported.path), TEXTS, str(tmp_path / "new.csv"), str(tmp_path / "out"))
    classifier = Classifier.load(exported)
    np.testing.assert_allclose(found["proba"], classifier.predict_proba(TEXTS), rtol=0, atol=1e-6)
    assert found["labels"] == classifier.predict_labels(TEXTS)
    assert found["words"] == 3
    here = predict_file(exported, test, tmp_path / "here")
    assert (here / "submission.csv").read_bytes() == (tmp_path / "out" / "submission.csv").read_bytes()


@pytest.fixture(scope="module")
def classes(small_recipe, emotion_table, tmp_path_factory):
    """Names before the text, one class per row, long texts in chunks; exported in 8 bits, and scored."""
    table = emotion_table(45)
    table = pd.DataFrame({"text": table["text"], "mood": np.where(table["joy"] == 1, "joy", "other")})
    recipe = small_recipe(
        "bert", head={"kind": "label_names", "pooling": "mean", "learning_rate": 1e-2}, task="single_label",
        data__label_columns=["mood"], data__max_length=24, data__long_text="chunk", data__chunk_stride=2,
        data__chunk_combine="max", data__max_chunks=3,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("classes")
    run = cross_validate(recipe, table, out=folder / "run")
    labelled = table.assign(text=table["text"] + " once more")
    return export(run, folder / "onnx", to="onnx", int8=True, score=labelled)


@pytest.mark.parametrize("kind", ["bert", "gemma3", "classes"])
def test_script_needs_nothing_of_ours(exports, classes, blocks, kind):
    """What README.md prints answers as lora_cls does, with numpy, onnxruntime and tokenizers; about 40 lines."""
    exported = classes if kind == "classes" else exports(kind)
    code = blocks(exported.path)[0]
    assert len(code.splitlines()) <= 60
    found = isolated(WITHOUT_US, str(exported.path), TEXTS, code)
    classifier = Classifier.load(exported)
    np.testing.assert_allclose(found["proba"], classifier.predict_proba(TEXTS), rtol=0, atol=1e-5)
    assert found["labels"] == classifier.predict_labels(TEXTS)


def test_price_of_8_bits(classes):
    """Scored beside the folds and the graph in fp32, on rows that nothing was chosen by; the README has it."""
    about = ExportInfo.read(classes.files.export)
    assert [way.model for way in about.scores] == ["the folds together", "ONNX float32", "ONNX int8"]
    assert about.onnx.largest_difference < 1e-5 < about.onnx.int8_difference < 0.2
    card = (classes.path / "README.md").read_text()
    assert "What 8 bits cost in macro-F1 stands in the table below" in card
    assert "| ONNX int8 |" in card


def test_one_place_for_what_decides(exports, copy_of, blocks, test):
    """classifier.json stands for labels.json and thresholds.json: a threshold changed there counts for all who read."""
    exported = copy_of(exports("bert"))
    assert not (exported.path / "labels.json").exists()
    assert not (exported.path / "thresholds.json").exists()
    said = json.loads(exported.files.classifier.read_text())
    exported.files.classifier.write_text(json.dumps(said | {"shipped": said["shipped"] | {"joy": 0.0}}))
    with pytest.raises(RunError, match=r"classifier\.json was changed since it was written"):
        Classifier.load(exported)
    del said["sha256"]
    exported.files.classifier.write_text(json.dumps(said | {"shipped": said["shipped"] | {"joy": 0.0}}))
    assert Classifier.load(exported).predict(TEXTS)[:, 0].all()
    found = isolated(WITHOUT_US, str(exported.path), TEXTS, blocks(exported.path)[0])
    assert all("joy" in labels for labels in found["labels"])


def test_is_an_export(exports, emotion_table, small_recipe, train, tmp_path):
    """Scored, described, replaced as other exports are; and nothing to train from."""
    exported = exports("bert")
    scores = score_file(exported, emotion_table(20, seed=3), tmp_path / "scores")
    assert scores.exported
    assert "ONNX float32 of 2 folds" in status(exported.path).about
    with pytest.raises(RunError, match="is an export itself"):
        export(exported, tmp_path / "twice", to="onnx")
    with pytest.raises(RunError, match="is an ONNX export, whose weights can only answer"):
        cross_validate(
            small_recipe("bert", lora=None, backbone__start_from=str(exported.path)), train, out=tmp_path / "r"
        )


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"to": "merged", "int8": True}, "--int8 is for --to onnx. Leave it out with --to merged."),
        ({"to": "onnx", "rank": 4}, "--rank and --share compress an adapter"),
    ],
)
def test_wrong_settings(finished, tmp_path, given, error):
    """Refused before anything is read."""
    with pytest.raises(RecipeError, match=error):
        export(finished("llama"), tmp_path / "out", **given)
    assert not list(tmp_path.iterdir())


def test_missing_packages(finished, tmp_path, monkeypatch):
    """Named, with the command that installs them; by the export before any work, and by what opens one."""
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(RunError, match=r'--to onnx needs onnxscript: pip install "lora_cls\[onnx\]"'):
        export(finished("bert"), tmp_path / "out", to="onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    from lora_cls.training.onnx_predictor import import_runtime

    with pytest.raises(RunError, match=r'opened by onnxruntime and tokenizers .* pip install "lora_cls\[onnx\]"'):
        import_runtime()


def test_quiet(classes):
    """Neither exporter nor quantizer leaves a handler or a level at the logger of the process."""
    assert not [handler for handler in logging.getLogger().handlers if type(handler) is logging.StreamHandler]
    assert logging.root.manager.disable == 0


def test_damage(exports, copy_of):
    """A graph that was changed or is gone is an error, and never another answer."""
    exported = copy_of(exports("bert"))
    graph = exported.path / "model" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1000])
    with pytest.raises(RunError, match=r"model\.onnx is damaged, .* Export the run again"):
        Classifier.load(exported).predict(TEXTS)
    graph.unlink()
    with pytest.raises(RunError, match=r"model\.onnx"):
        Classifier.load(exported).predict(TEXTS)


def test_unlike_the_model(finished, tmp_path, monkeypatch):
    """A graph that answers otherwise than the model is not kept."""
    monkeypatch.setattr(onnx_export, "MOST_DIFFERENCE", -1.0)
    with pytest.raises(RunError, match="The ONNX graph answers otherwise than the model: probabilities differ by up"):
        export(finished("bert"), tmp_path / "out", to="onnx")
    assert not list(tmp_path.iterdir())
