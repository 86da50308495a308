"""What is measured on a machine, and what a recipe may ask of it."""

import json

import pytest
import torch

from lora_cls.errors import BackboneError, TrainingError
from lora_cls.modeling import precision
from lora_cls.modeling.adapter import build_model, reset_model
from lora_cls.modeling.precision import choose_dtype, measured_once
from lora_cls.recipe import load_recipe
from lora_cls.training.transformer import TransformerLearner

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def recipe(dtype="auto"):
    return load_recipe({"backbone": {"name_or_path": "x", "dtype": dtype}})


def test_measured_once(monkeypatch, tmp_path):
    """A second run on the machine takes the first one's answer, so both compute the same; damage is measured anew."""
    monkeypatch.setenv("LORA_CLS_CACHE", str(tmp_path))
    both = ("eager", "sdpa")
    assert measured_once("a", lambda: "eager", both) == "eager"
    assert measured_once("a", lambda: "sdpa", both) == "eager"
    assert measured_once("b", lambda: "sdpa", both) == "sdpa"
    assert len(json.loads((tmp_path / "choices.json").read_text())) == 2


@pytest.mark.parametrize(
    "damage",
    [
        b"", b"{", b"[]", b"null", b"7", b'"text"', b'[["a", "b"]]', b"\xff\xfe", b"[" * 100_000, b"\x00" * 100,
        {"key": "other"}, {"key": 3}, {"key": ["eager"]}, {"key": None}, {"key": {}}, "folder",
    ],
)  # fmt: skip
def test_damaged_choices_are_measured_again(monkeypatch, tmp_path, damage):
    """Whatever `choices.json` became, it is measured anew, once."""
    monkeypatch.setenv("LORA_CLS_CACHE", str(tmp_path))
    file = tmp_path / "choices.json"
    measured_once("a", lambda: "eager", ("eager", "sdpa"))
    if isinstance(damage, dict):
        (key,) = json.loads(file.read_text())
        file.write_text(json.dumps({key: damage["key"]}))
    elif damage == "folder":
        file.unlink()
        (file / "in it").mkdir(parents=True)
    else:
        file.write_bytes(damage)
    said = []
    assert measured_once("a", lambda: "sdpa", ("eager", "sdpa"), said.append) == "sdpa"
    assert measured_once("a", lambda: "eager", ("eager", "sdpa"), said.append) == "sdpa"
    assert said == []


@pytest.mark.parametrize("place", ["file", "file/below", "x" * 300])
def test_choices_that_cannot_be_kept(monkeypatch, tmp_path, place):
    """Measured, said, and no error."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORA_CLS_CACHE", str(tmp_path / place))
    said = []
    assert measured_once("a", lambda: "sdpa", ("eager", "sdpa"), said.append) == "sdpa"
    assert len(said) == 1 and "LORA_CLS_CACHE names another folder" in said[0]


def test_auto_on_gpus(monkeypatch):
    """A GPU without bf16 computes in fp16, except for models that overflow in it."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    assert choose_dtype(recipe(), CUDA, "llama") == torch.float16
    assert choose_dtype(recipe(), CUDA, "gemma3_text") == torch.float32
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert choose_dtype(recipe(), CUDA, "gemma3_text") == torch.bfloat16


@pytest.mark.parametrize(("fp32", "expected"), [(1.0, torch.float32), (2.0, torch.bfloat16)])
def test_auto_on_cpus(monkeypatch, tmp_path, fp32, expected):
    """A CPU takes bf16 only where it is faster by more than noise."""
    monkeypatch.setenv("LORA_CLS_CACHE", str(tmp_path))
    monkeypatch.setattr(precision, "_seconds", lambda dtype: fp32 if dtype == torch.float32 else 0.9)
    assert choose_dtype(recipe(), CPU, "bert") == expected


def test_fp16_needs_a_gpu():
    """fp16 without a gradient scaler would train to zeros: refused on a CPU, with what to write instead."""
    with pytest.raises(BackboneError, match=r"CUDA GPU only.*Use auto"):
        choose_dtype(recipe("float16"), CPU, "bert")


def test_precision_is_the_models_own(tiny_recipe, tiny_model):
    """A second model in another precision, as when runs are blended, leaves the first one's answers alone."""
    from transformers import AutoModel

    ids = torch.arange(5, 25).reshape(2, 10)
    models = {}
    for dtype in (torch.bfloat16, None):
        base = AutoModel.from_pretrained(tiny_model("llama"))
        recipe = tiny_recipe("llama", lora=None)
        models[dtype] = build_model(base, recipe, 3, dtype).eval()
        reset_model(models[dtype], recipe, 0)
    with torch.no_grad():
        mixed, full = (models[dtype](ids, torch.ones_like(ids)) for dtype in (torch.bfloat16, None))
    assert mixed.dtype == full.dtype == torch.float32
    assert 0 < (mixed - full).abs().max() < 0.1


def test_another_device(tiny_recipe, emotion_table):
    """A run started on a GPU is not continued on a CPU in silence; its models still answer there, fp16 ones in fp32."""
    from lora_cls.data import load_train

    given = {"device": "cuda", "num_threads": 1, "dtype": "float16", "attn_implementation": "sdpa"}
    small = tiny_recipe("llama")
    data = load_train(small.data, emotion_table(12))
    with pytest.raises(TrainingError, match="started on cuda"):
        TransformerLearner(small, data.label_names, given).prepare(data)
    learner = TransformerLearner(small, data.label_names, given | {"base_sha256": "x"})
    assert learner.session.dtype == torch.float32
