"""What was trained is saved whole, opens without lora_cls, and is never loaded in part."""

import re
import warnings
from typing import get_args

import bitsandbytes
import numpy as np
import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel
from transformers.pytorch_utils import Conv1D

from lora_cls.errors import BackboneError, RecipeError, RunError
from lora_cls.modeling.adapter import adapt, build_model, load_model_weights, reset_model, save_model, target_pattern
from lora_cls.modeling.classifier import pool
from lora_cls.modeling.loading import load_base, load_tokenizer
from lora_cls.recipe import Lora, Loss
from lora_cls.report.card import snippet
from lora_cls.runs import RunInfo
from lora_cls.text.tokens import pad
from lora_cls.training.checkpoint import trainable
from lora_cls.training.losses import training_loss

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
CASES = {
    "bert full": ("bert", {"lora": None}),
    "gpt2 full": ("gpt2", {"lora": None}),
    "bert LoRA": ("bert", {}),
    "gpt2 LoRA": ("gpt2", {}),
    "llama bf16 LoRA": ("llama", {"backbone__dtype": "bfloat16"}),
    "gemma3 4-bit LoRA": ("gemma3", {"backbone__dtype": "bfloat16", "quantization": NF4}),
    "llama 8-bit LoRA": ("llama", {"backbone__dtype": "bfloat16", "quantization": {"load_in_8bit": True}}),
}
ADAPTED = [name for name in CASES if "LoRA" in name]


def make_recipe(tiny_recipe, case):
    kind, overrides = CASES[case]
    return tiny_recipe(kind, **overrides)


def weights_file(recipe, folder):
    return folder / ("adapter_model.safetensors" if recipe.lora else "model.safetensors")


def train(model, rows, n_steps=3):
    """A few steps of AdamW, in the precision that the base has."""
    ids, mask = (torch.from_numpy(array) for array in pad(rows, 0))
    targets = torch.tensor([[1.0, 0.0, 1.0]] * (len(rows) - 1) + [[0.0, 1.0, 0.0]])
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=1e-2)
    bf16 = next(model.base.parameters()).dtype == torch.bfloat16
    model.train()
    losses = []
    for _ in range(n_steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(ids, mask)
        loss = training_loss(logits, targets, torch.ones(3), Loss())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    assert losses[-1] < losses[0]


def frozen(model):
    """Bytes of everything that is not trained: base weights, also the quantized ones and their scales."""
    found = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    for name, module in model.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            found |= {f"{name}.{key}": value.clone() for key, value in state.as_dict(packed=True).items()}
        if isinstance(module, bitsandbytes.nn.Linear8bitLt):  # scales move from weight to state at first use
            scales = module.weight.SCB if module.state.SCB is None else module.state.SCB
            found[f"{name}.SCB"] = scales.clone()
    return found


@pytest.mark.parametrize("case", CASES)
def test_reload_gives_the_same_logits(case, tiny_recipe, build, ask, random_rows, tmp_path):
    """A trained model, loaded into a freshly built one with another seed, answers bit for bit the same."""
    recipe, rows = make_recipe(tiny_recipe, case), random_rows([5, 20, 9])
    model = build(recipe, seed=1)
    untrained = ask(model, rows)
    train(model, rows)
    trained = ask(model, rows)
    save_model(model, tmp_path / "saved")
    fresh = build(recipe, seed=2)
    load_model_weights(fresh, tmp_path / "saved")
    np.testing.assert_array_equal(ask(fresh, rows), trained)
    np.testing.assert_array_equal(ask(model, rows), trained)  # saving leaves the model as it was
    assert np.abs(trained - untrained).max() > 0.01


@pytest.mark.parametrize("case", CASES)
def test_opens_without_lora_cls(
    case, tiny_recipe, build, ask, random_rows, tmp_path, monkeypatch, record_property, emotion_table
):
    """The snippet of a run's README (transformers and PEFT only) loads every key without a warning: same logits."""
    recipe, rows = make_recipe(tiny_recipe, case), random_rows([5, 20, 9])
    model = build(recipe)
    train(model, rows)
    folder = tmp_path / "fold-00"
    folder.mkdir()
    save_model(model, folder / ("adapter" if recipe.lora else "model"))
    dtype = recipe.backbone.dtype
    choices = {"dtype": dtype, "device": "cpu", "attn_implementation": "sdpa"}
    code = snippet(recipe, RunInfo.model_construct(choices=choices, backbone_path=None), ["a", "b", "c"], "fold-00")
    monkeypatch.chdir(tmp_path)
    plain = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(code, plain)
    assert "lora_cls" not in code.replace(recipe.backbone.name_or_path, "")
    assert not [str(w.message) for w in caught if "key" in str(w.message).lower()]

    if recipe.lora:
        saved = load_file(folder / "adapter" / "adapter_model.safetensors")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peft_model = plain["PeftModel"].from_pretrained(plain["base"], folder / "adapter")
        loaded = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
        assert sorted(saved) == sorted(loaded)
        assert all(torch.equal(saved[key], loaded[key]) for key in saved)
    ids, mask = (torch.from_numpy(array) for array in pad(rows, 0))
    with torch.no_grad():
        hidden = plain["model"](input_ids=ids, attention_mask=mask).last_hidden_state
    with torch.no_grad():
        logits = plain["model"].score(pool(hidden, mask, recipe.head.pooling)).numpy()
    difference = float(np.abs(logits - ask(model, rows)).max())
    record_property(f"largest logit difference, {case}", difference)
    # PEFT's modules round once more on the way (see `lora_cls.modeling.low_rank`)
    assert difference <= {"float32": 1e-5, "bfloat16": 0.25 if "8-bit" in case else 0.05}[dtype]

    texts = list(emotion_table(3)["text"])  # and its own function, which tokenises and pads as the tokenizer likes
    tokenizer = load_tokenizer(recipe.backbone)
    ours = ask(model, [np.array(i) for i in tokenizer(texts, truncation=True, max_length=48)["input_ids"]])
    tolerance = {"float32": 1e-5, "bfloat16": 0.25 if "8-bit" in case else 0.05}[dtype]
    found = plain["logits"](texts).numpy()
    record_property(f"the same by the snippet's own padding, {case}", float(np.abs(found - ours).max()))
    np.testing.assert_allclose(found, ours, atol=tolerance)


@pytest.mark.parametrize("case", ADAPTED)
def test_only_adapters_and_head_are_trained(case, tiny_recipe, build, ask, random_rows):
    """Training and evaluation leave the frozen base as it was; adapters and head are fp32, the head a plain layer."""
    model, rows = build(make_recipe(tiny_recipe, case)), random_rows([5, 20, 9])
    before = frozen(model)
    train(model, rows)
    ask(model, rows)
    train(model, rows)
    after = frozen(model)
    assert before.keys() == after.keys()
    assert [key for key in before if not torch.equal(before[key], after[key])] == []
    names = trainable(model)
    assert all("lora_" in name or ".score.modules_to_save." in name for name in names)
    assert not [name for name in names if "lora_" in name and ("score" in name or "pooler" in name)]
    assert {parameter.dtype for parameter in names.values()} == {torch.float32}
    head = model.base.score.modules_to_save["default"]
    assert type(head) is nn.Linear


@pytest.mark.parametrize("case", ["bert full", "bert LoRA", "gemma3 4-bit LoRA"])
def test_damaged_files_are_refused(case, tiny_recipe, build, tmp_path):
    """A truncated file, a missing file, a missing or unknown key: an error that names the file or key."""
    recipe = make_recipe(tiny_recipe, case)
    model, folder = build(recipe), tmp_path / "saved"
    save_model(model, folder)
    file = weights_file(recipe, folder)
    whole = file.read_bytes()

    for length in (0, 7, 100, len(whole) - 10):
        file.write_bytes(whole[:length])
        with pytest.raises(RunError, match=f"{re.escape(str(file))} is damaged"):
            load_model_weights(model, folder)
    file.unlink()
    with pytest.raises(RunError, match=f"{re.escape(str(file))} is missing"):
        load_model_weights(model, folder)

    file.write_bytes(whole)
    weights = load_file(file)
    some = next(key for key in sorted(weights) if "layer" in key)
    save_file({key: value for key, value in weights.items() if key != some}, file)
    with pytest.raises(RunError, match=f"1 missing keys: {re.escape(some)}"):
        load_model_weights(model, folder)
    save_file(weights | {"stray.weight": torch.zeros(1)}, file)
    with pytest.raises(RunError, match=r"1 unknown keys: stray\.weight"):
        load_model_weights(model, folder)
    if not recipe.lora:
        file.write_bytes(whole)
        (folder / "head.safetensors").unlink()
        with pytest.raises(RunError, match=r"head\.safetensors is missing"):
            load_model_weights(model, folder)


@pytest.mark.parametrize("case", ["bert full", "llama bf16 LoRA"])
def test_other_number_of_labels_is_refused(case, tiny_recipe, build, tmp_path):
    """Three saved labels do not go into a head of two; the message gives both shapes."""
    recipe = make_recipe(tiny_recipe, case)
    save_model(build(recipe, n_labels=3), tmp_path / "saved")
    with pytest.raises(RunError, match=r"score.*\(3, 64\) instead of \(2, 64\)"):
        load_model_weights(build(recipe, n_labels=2), tmp_path / "saved")


def test_read_into_the_tensors_of_the_moment(tiny_recipe, build, ask, perturb, random_rows, tmp_path):
    """Names are looked up once; what a parameter holds may be another tensor by then. PEFT is not asked again."""
    model, rows = perturb(build(tiny_recipe("llama"))), random_rows([6, 14, 9])
    save_model(model, tmp_path / "saved")
    expected = ask(model, rows)
    load_model_weights(model, tmp_path / "saved")
    assert model.saved
    before = [(parameter, parameter.data.clone()) for parameter in model.saved.values()]
    for parameter, data in before:
        parameter.data = torch.full_like(data, torch.nan)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("peft.get_peft_model_state_dict", None)
        load_model_weights(model, tmp_path / "saved")
    assert all(torch.equal(parameter.data, data) for parameter, data in before)
    np.testing.assert_array_equal(ask(model, rows), expected)


def test_save_replaces_a_folder_whole(tiny_recipe, build, tmp_path):
    """Saving over an older model leaves nothing of it, and no temporary folder beside it."""
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "old.bin").touch()
    save_model(build(tiny_recipe("llama")), tmp_path / "saved")
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors"}


def linear_modules(base):
    """Names of the linear layers of the transformer blocks, found without the code under test."""
    inside = re.compile(r"(encoder\.layer|layers|h)\.\d+\..+")
    return {
        name
        for name, module in base.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and inside.fullmatch(name)
    }


def matched(base, **lora):
    pattern = target_pattern(base, Lora(**lora))
    return {name for name, _ in base.named_modules() if re.fullmatch(pattern, name)}


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama", "gemma3", "qwen2", "gpt2"])
def test_all_linear(kind, tiny_model):
    """`all-linear` is every linear layer of the blocks, and neither pooler nor embeddings; layers can be limited."""
    base = AutoModel.from_pretrained(tiny_model(kind))
    expected = linear_modules(base)
    assert len(expected) == 2 * {"bert": 6, "roberta": 6, "gpt2": 4}.get(kind, 7)
    assert matched(base) == expected
    assert matched(base, layers_to_transform=[1]) == {name for name in expected if ".1." in name or "h.1." in name}


def test_all_linear_where_layers_differ():
    """LFM 2 mixes convolution and attention layers in one list: the linear layers of both kinds get adapters."""
    from transformers import Lfm2Config

    config = Lfm2Config(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, layer_types=["conv", "full_attention"],
    )  # fmt: skip
    base = AutoModel.from_config(config)
    expected = linear_modules(base)
    assert any("self_attn.q_proj" in name for name in expected) and any("conv.in_proj" in name for name in expected)
    assert matched(base) == expected
    assert matched(base, target_modules=["q_proj"]) == {"layers.1.self_attn.q_proj"}


def test_named_targets(tiny_model):
    """A list of names means those modules of every layer; a regular expression goes to PEFT as it is."""
    base = AutoModel.from_pretrained(tiny_model("llama"))
    assert matched(base, target_modules=["q_proj", "mlp.down_proj"]) == {
        f"layers.{i}.{name}" for i in (0, 1) for name in ("self_attn.q_proj", "mlp.down_proj")
    }
    assert target_pattern(base, Lora(target_modules=r".*\.v_proj")) == r".*\.v_proj"


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"target_modules": ["q_porj"]}, "no module 'q_porj'.*Did you mean 'q_proj'"),
        ({"target_modules": ["q_proj", "query"]}, "no module 'query'"),
        ({"target_modules": ["proj"]}, "no module 'proj'"),
        ({"target_modules": r".*\.nothing"}, "target_modules"),
        ({"target_modules": ["self_attn"]}, "LlamaAttention.*not supported"),
        ({"target_modules": "(q_proj"}, r"lora.*\(q_proj"),
        ({"target_modules": []}, "target_modules"),
        ({"layers_to_transform": [0, 2]}, "must name layers from 0 to 1"),
        ({"layers_to_transform": []}, "must name layers from 0 to 1"),
        ({"layers_to_transform": [1], "target_modules": r".*\.q_proj"}, "layers_to_transform"),
        ({"layers_pattern": "layers"}, "lora.*layers_pattern"),
    ],
)
def test_wrong_targets(lora, message, tiny_recipe, tiny_model):
    """Modules and layers that do not exist, or settings that PEFT would drop or refuse, are errors that say so."""
    recipe = tiny_recipe("llama", lora=lora)
    with pytest.raises(BackboneError, match=f"(?s){message}"):
        build_model(AutoModel.from_pretrained(tiny_model("llama")), recipe, 3)


def test_adapters_never_on_the_head(tiny_recipe, tiny_model):
    """A regular expression that matches every linear layer still leaves the head a plain layer."""
    recipe = tiny_recipe("llama", lora={"target_modules": r".*(q_proj|score)"})
    model = build_model(AutoModel.from_pretrained(tiny_model("llama")), recipe, 3)
    assert not [name for name, _ in model.named_modules() if "score" in name and "lora" in name]


def test_a_base_without_a_list_of_layers(tiny_recipe):
    """ALBERT shares one layer, so that its blocks cannot be counted: the error says what to set instead."""
    from transformers import AlbertConfig

    config = AlbertConfig(
        vocab_size=50, embedding_size=16, hidden_size=32, num_attention_heads=4, intermediate_size=64,
        num_hidden_layers=2,
    )  # fmt: skip
    with pytest.raises(BackboneError, match=r"AlbertModel.*lora\.target_modules as a regular expression"):
        build_model(AutoModel.from_config(config), tiny_recipe("bert"), 3)


@pytest.mark.parametrize("init", get_args(Lora.model_fields["init_lora_weights"].annotation))
@pytest.mark.parametrize("base", [{}, {"backbone__dtype": "bfloat16"}, {**CASES["gemma3 4-bit LoRA"][1]}])
def test_reset_starts_from_the_seed_alone(init, base, tiny_recipe, build, perturb, ask, random_rows):
    """Whatever start the recipe names, a reset gives the very weights of a fresh build; another seed gives others."""
    recipe, rows = tiny_recipe("llama", lora={"r": 4, "init_lora_weights": init}, **base), random_rows([5, 9])
    model = build(recipe, seed=3)
    assert {parameter.dtype for parameter in trainable(model).values()} == {torch.float32}
    before, first = {k: v.detach().clone() for k, v in trainable(model).items()}, ask(model, rows)
    perturb(model)
    assert not np.array_equal(ask(model, rows), first)
    reset_model(model, recipe, 3)
    assert all(torch.equal(value, before[key]) for key, value in trainable(model).items())
    np.testing.assert_array_equal(ask(model, rows), first)
    reset_model(model, recipe, 4)
    assert not np.array_equal(ask(model, rows), first)


@pytest.mark.parametrize("extra", [{"use_dora": True}, {"bias": "lora_only"}, {"lora_bias": True}])
def test_reset_reaches_everything_that_trains(extra, tiny_recipe, build, perturb):
    """PEFT fields that add trained parameters (magnitudes, biases): none of them survives into the next fold."""
    recipe = tiny_recipe("bert", lora={"r": 4, **extra})
    model = build(recipe, seed=3)
    before = {name: parameter.detach().clone() for name, parameter in trainable(model).items()}
    perturb(model)
    reset_model(model, recipe, 3)
    assert [name for name, value in trainable(model).items() if not torch.equal(value, before[name])] == []


def test_reset_of_the_head_is_small(tiny_recipe, build, ask, random_rows):
    """First logits are near 0, so that every label starts near a probability of one half."""
    assert np.abs(ask(build(tiny_recipe("llama")), random_rows([5, 9, 30]))).max() < 1.0


@pytest.mark.parametrize(
    "extra",
    [{"layer_replication": [[0, 9]]}, {"trainable_token_indices": [10**6]}],
    ids=lambda extra: next(iter(extra)),
)
def test_peft_field_that_fits_no_such_model(tiny_recipe, extra):
    """What PEFT comes upon while it applies a field of its own is a sentence that names the field."""
    recipe = tiny_recipe("llama", lora={"r": 4, **extra})
    base = load_base(recipe.backbone, None, torch.float32, torch.device("cpu"))
    with pytest.raises(RecipeError, match=rf"lora\.{next(iter(extra))}") as error:
        adapt(base, recipe)
    assert len(str(error.value)) < 2000
