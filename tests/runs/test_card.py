"""The README of a run: its snippet loads a fold with transformers and PEFT alone, and answers as we do."""

import ast
import json

import numpy as np
import pytest

from lora_cls.recipe import load_recipe
from lora_cls.report.card import snippet
from lora_cls.report.sentences import base_name, describe, score_sentence
from lora_cls.runs import RunInfo

TEXTS = ["so happy and lovely, what a great day with all of my friends in the garden", "afraid"]
KINDS = ["bert", "llama", "gemma3"]


@pytest.fixture(scope="module")
def snippet_logits(finished, snippet_answers):
    """Logits of two texts by each README's snippet, run in a process that cannot import lora_cls."""
    return snippet_answers({kind: finished(kind).path for kind in KINDS}, TEXTS)


# fp32, but llama's base is bf16: there PEFT's own modules compute adapters in fp32, and ours in bf16.
@pytest.mark.parametrize(("kind", "tolerance"), [("bert", 1e-6), ("gemma3", 1e-5), ("llama", 2e-2)])
def test_snippet_gives_the_same_logits(finished, snippet_logits, kind, tolerance):
    """The snippet's logits of a long and a short text, padded together, are those of our own learner."""
    from lora_cls.training.factory import make_learner

    run = finished(kind)
    learner = make_learner(run.recipe, run.label_names, choices=run.info.choices)
    ours = learner.predict(run.fold(0), TEXTS)
    difference = np.abs(snippet_logits[kind] - ours).max()
    print(f"largest difference of {kind}: {difference:.2e}")
    assert difference <= tolerance


@pytest.mark.parametrize("kind", KINDS)
def test_snippet_prints(finished, blocks, kind):
    """Every Python block of a README compiles, and none of the first needs lora_cls."""
    first, second = blocks(finished(kind).path)
    compile(second, "README.md", "exec")
    assert "lora_cls" not in first
    assert "from lora_cls import Classifier" in second


def test_second_snippet(finished, blocks, monkeypatch, capsys):
    """The README's lines with Classifier run in the run folder as printed."""
    run = finished("tfidf")
    monkeypatch.chdir(run.path)
    (code,) = blocks(run.path)
    exec(code, {})
    proba, labels = capsys.readouterr().out.splitlines()
    assert len(proba.strip("[] ").split()) == 3
    assert labels.startswith("[[")


@pytest.mark.parametrize("revision", ["v1.0-é", 'v1"\n, x=\\"', "refs/'1'"])
def test_no_value_ends_its_string(revision):
    """Whatever stands in a recipe stays a string in the code: the base is opened at that revision, and nothing else."""
    recipe = load_recipe({"backbone": {"name_or_path": "base"}, "lora": {"r": 4}})
    # a recipe that is loaded holds no such revision; the snippet does not rely on it
    odd = recipe.backbone.model_copy(update={"revision": revision})
    recipe = recipe.model_copy(update={"backbone": odd})
    choices = {"dtype": "float32", "attn_implementation": "sdpa"}
    code = snippet(recipe, RunInfo.model_construct(choices=choices, backbone_path=None), ["joy"], "fold-00")
    given = [
        {option.arg: option.value.value for option in call.keywords if isinstance(option.value, ast.Constant)}
        for call in ast.walk(ast.parse(code))
        if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "from_pretrained" and call.keywords
    ]
    assert given == [{"revision": revision}, {"revision": revision, "attn_implementation": "sdpa"}]


@pytest.mark.parametrize("kind", ["tfidf", *KINDS])
def test_card_says_the_score(finished, kind):
    """The card holds the score of metrics.json, its interval, what the interval leaves out, and every label."""
    run = finished(kind)
    metrics = json.loads((run.path / "metrics.json").read_text())
    text = (run.path / "README.md").read_text()
    assert score_sentence(run.results().scores) in text
    assert f"Macro-F1 {metrics['cross_fitted']['macro_f1']:.4f} (95 % interval" in text
    assert "leave out the variance of training" in text
    for row in metrics["cross_fitted"]["per_label"]:
        assert f"| {row['label']} | {row['support']} | {row['threshold']:.3f} |" in text


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_adapter_opens_anywhere(finished, kind):
    """adapter/ holds plain PEFT files with the head inside and no frozen weights."""
    from safetensors import safe_open

    folder = finished(kind).fold(0).adapter
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    with safe_open(folder / "adapter_model.safetensors", "np") as file:
        names = list(file.keys())
    assert any("score" in name for name in names)
    assert all("lora_" in name or "score" in name for name in names)


def test_card_says_what_the_folder_holds(finished):
    """Vocabularies of TF-IDF are pieces of the training texts, and paths are told: said before a folder is shared."""
    assert "hold words and pieces of the training texts" in (finished("tfidf").path / "README.md").read_text()
    text = (finished("bert").path / "README.md").read_text()
    assert "`run.json`, `recipe.yaml`, the snippet above" in text
    assert "pieces of the training texts" not in text


@pytest.mark.parametrize("path", ["/home/me/models/tiny", "~/models/tiny", r"C:\Users\me\tiny"])
def test_a_path_is_told_by_its_last_part(path):
    """Where a base lies on a machine is nobody's business in prose; a hub's name stands in full."""
    for told, name in ((path, "tiny"), ("org/tiny", "org/tiny")):
        recipe = load_recipe({"backbone": {"name_or_path": told}, "lora": {"r": 4}})
        assert base_name(recipe) == name
        assert describe(recipe).startswith(f"{name}, LoRA")
