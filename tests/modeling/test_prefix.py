"""The cached hidden state below the lowest adapter stands in for the layers that made it: same answers, same gradients.

Every class of model that a shipped recipe names, and some more, with random weights and four layers; adapters are in
the upper two.
"""

import pytest
import torch
from torch import nn

from benchmarks.configurations import CONFIGURATIONS
from lora_cls.errors import BackboneError
from lora_cls.modeling.classifier import HEAD
from lora_cls.modeling.layers import find_layers
from lora_cls.modeling.prefix import Prefix
from lora_cls.recipe import load_recipe

KINDS = [*sorted({kind for kind, _ in CONFIGURATIONS.values()}), "BloomConfig", "GPT2Config", "MPNetConfig"]
# Without help these count positions from the left edge of the batch, so that a left-padded row is another text to them.
LEFT_EDGE = ("BertConfig", "DistilBertConfig", "SqueezeBertConfig", "GPT2Config")
# Of the norm. In bf16 a text alone and in a batch differ in last digits, which grow through the layers above.
TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-2}
NO_CHECKPOINTING = ("MPNetConfig", "SqueezeBertConfig")
LENGTHS = [6, 21, 14, 9]  # beyond the windows of 8 and 16; padded to 21
FOUR_BIT = {"quantization": {"load_in_4bit": True}}
CASES = {
    **{kind: (kind, {}) for kind in KINDS},
    **{f"{kind} bf16": (kind, {"backbone__dtype": "bfloat16"}) for kind in KINDS},
    **{
        f"{kind} 4-bit": (kind, FOUR_BIT)
        for kind in ("LlamaConfig", "Gemma3TextConfig", "BertConfig", "ModernBertConfig")
    },
    "LlamaConfig 4-bit bf16": ("LlamaConfig", FOUR_BIT | {"backbone__dtype": "bfloat16"}),
    "LlamaConfig 8-bit bf16": (
        "LlamaConfig",
        {"quantization": {"load_in_8bit": True}, "backbone__dtype": "bfloat16"},
    ),
    **{
        f"{kind} of 3 layers": (kind, {"backbone__num_hidden_layers": 3, "lora__top_layers": 0.34})
        for kind in ("LlamaConfig", "Gemma3TextConfig", "LongformerConfig", "ModernBertConfig", "DebertaV2Config")
    },
    **{
        f"{kind}, checkpointed": (kind, {"train__gradient_checkpointing": True})
        for kind in ("LlamaConfig", "BertConfig", "ModernBertConfig")
    },
    "LlamaConfig, eager": ("LlamaConfig", {"backbone__attn_implementation": "eager"}),
    "LlamaConfig, one layer below": ("LlamaConfig", {"lora__top_layers": 0.75}),
    "LlamaConfig, layers by number": (
        "LlamaConfig",
        {"lora__top_layers": None, "lora__layers_to_transform": [2]},
    ),
}


def mask_of(rows, side="right"):
    width = max(map(len, rows))
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for target, row in zip(mask, rows, strict=True):
        target[: len(row)] = True
    return mask if side == "right" else mask.flip(1)


def one_by_one(prefix, rows):
    """Hidden states computed in other batches than those that use them."""
    prefix.model.eval()
    return [prefix.hidden([row])[0] for row in rows]


def pad_id_of(model):
    """What the embedding takes for padding: RoBERTa and its like count positions by it."""
    return model.base.config.pad_token_id or 0


@pytest.mark.parametrize("case", CASES)
def test_same_logits_and_gradients(case, deep_recipe, build, perturb, random_rows, gradients, difference):
    """Cached and uncached agree, right-padded and left-padded; and what is handed out does matter."""
    kind, overrides = CASES[case]
    model = perturb(build(deep_recipe(kind, **overrides)))
    tolerance = TOLERANCE["bfloat16" if "bf16" in case else "float32"]
    rows = random_rows(LENGTHS)
    model.train()
    prefix = Prefix.find(model, rows[:2])
    assert model.training and prefix.n_layers == model.n_frozen_layers == {"LlamaConfig, one layer below": 1}.get(
        case, 2
    )
    known = one_by_one(prefix, rows)
    assert [tuple(row.shape) for row in known] == [(n, 64) for n in LENGTHS]
    right = gradients(model, rows)
    with prefix.stand_in(known, mask_of(rows)):
        cached = gradients(model, rows)
    assert difference(cached, right) < tolerance
    with prefix.stand_in([row * 0 for row in known], mask_of(rows)):
        assert difference(gradients(model, rows), right) > 2 * tolerance
    pad_id = pad_id_of(model)
    with prefix.stand_in(known, mask_of(rows, "left")):
        cached_left = gradients(model, rows, "left", pad_id)
    if kind in LEFT_EDGE:
        assert difference(cached_left, right) < tolerance  # as if padded on the right, which is what they can read
    else:
        assert difference(cached_left, gradients(model, rows, "left", pad_id)) < tolerance
    assert difference(gradients(model, rows), right) == 0  # nothing is left behind


@pytest.mark.parametrize(
    "kind", ["BertConfig", "DebertaV2Config", "DistilBertConfig", "LongformerConfig", "ModernBertConfig"]
)
def test_frozen_layers_drop_nothing(kind, deep_recipe, build, perturb, random_rows, gradients, difference):
    """In training, dropout is off below the lowest adapter and on above it, cached or not: one seed, one loss."""
    model = perturb(build(deep_recipe(kind, dropout=0.3)))
    rows = random_rows(LENGTHS)
    prefix = Prefix.find(model, rows[:2])
    known = one_by_one(prefix, rows)
    plain, again, other = (gradients(model, rows, seed=seed) for seed in (1, 1, 2))
    assert difference(again, plain) == 0
    assert difference(other, plain) > 1e-2
    with prefix.stand_in(known, mask_of(rows)):
        assert difference(gradients(model, rows, seed=1), plain) < TOLERANCE["float32"]
    path, layers = find_layers(model.base)
    for name, module in model.base.named_modules():
        if isinstance(module, nn.Dropout):
            above = any(name.startswith(f"{path}.{i}.") for i in range(2, len(layers)))
            assert module.training == (above or name.startswith(HEAD)), name
    model.eval()
    assert not any(module.training for module in model.modules())


def test_all_layers_with_adapters_all_drop(deep_recipe, build):
    """Where every layer has an adapter, training mode is everywhere, as before."""
    model = build(deep_recipe("BertConfig", dropout=0.3, lora__top_layers=1.0))
    assert model.n_frozen_layers == 0
    model.train()
    assert all(module.training for module in model.base.modules())


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in NO_CHECKPOINTING])
def test_gradient_checkpointing_saves_what_it_should(kind, cached, deep_recipe, build, random_rows, gradients):
    """Layers with adapters run a second time on the way back, though the model around them is in eval mode."""
    model = build(deep_recipe(kind, train__gradient_checkpointing=True))
    rows = random_rows(LENGTHS)
    prefix = Prefix.find(model, rows[:2])
    known = one_by_one(prefix, rows)
    runs = []
    for i, layer in enumerate(find_layers(model.base)[1]):
        inner = next(
            module
            for module in layer.modules()
            if isinstance(module, nn.LayerNorm) or "RMSNorm" in type(module).__name__
        )
        inner.register_forward_hook(lambda *_, i=i: runs.append(i))
    if cached:
        with prefix.stand_in(known, mask_of(rows)):
            gradients(model, rows)
    else:
        gradients(model, rows)
    assert runs.count(2) == runs.count(3) == 2
    assert runs.count(0) == runs.count(1) == (0 if cached else 1)


@pytest.mark.parametrize("kind", NO_CHECKPOINTING)
def test_no_gradient_checkpointing(kind, deep_recipe, build):
    """A model that cannot says so, in the recipe's words."""
    with pytest.raises(BackboneError, match=r"train\.gradient_checkpointing: .* Set it to false"):
        build(deep_recipe(kind, train__gradient_checkpointing=True))


def test_which_layers_are_frozen(deep_recipe, build):
    """Below the lowest adapter; none where embeddings or biases below are trained, or all weights."""

    def frozen(**overrides):
        return build(deep_recipe("BertConfig", **overrides)).n_frozen_layers

    assert frozen() == 2
    assert frozen(lora__top_layers=0.25) == 3
    assert frozen(lora__top_layers=None) == 0
    assert frozen(lora__top_layers=None, lora__layers_to_transform=[3, 1]) == 1
    assert frozen(lora__top_layers=None, lora__target_modules=r"encoder\.layer\.[13]\.attention\.self\.query") == 1
    assert frozen(lora__bias="all") == 0
    assert frozen(lora__bias="lora_only") == 2
    assert build(deep_recipe("BertConfig", lora=None)).n_frozen_layers == 0


@pytest.mark.parametrize(
    ("share", "adapted"),
    [(1.0, [0, 1, 2, 3]), (0.75, [1, 2, 3]), (0.5, [2, 3]), (0.6, [2, 3]), (0.25, [3]), (0.01, [3])],
)
def test_top_layers(share, adapted, deep_recipe, build):
    """That share of the layers, rounded and at least one, from the top."""
    layers = find_layers(build(deep_recipe("LlamaConfig", lora__top_layers=share)).base)[1]
    assert [
        i for i, layer in enumerate(layers) if any("lora_A" in name for name, _ in layer.named_modules())
    ] == adapted


@pytest.mark.parametrize("share", [0, 1.5, -0.5])
def test_top_layers_out_of_range(share, deep_recipe):
    with pytest.raises(Exception, match=r"top_layers"):
        deep_recipe("LlamaConfig", lora__top_layers=share)


def test_top_layers_beside_other_choices(deep_recipe, build):
    """Layers are chosen in one way."""
    with pytest.raises(Exception, match=r"either top_layers or layers_to_transform"):
        deep_recipe("LlamaConfig", lora__layers_to_transform=[1])
    with pytest.raises(BackboneError, match=r"lora\.top_layers does nothing beside a regular expression"):
        build(deep_recipe("LlamaConfig", lora__target_modules=r"layers\.[0-9]\.mlp\.up_proj"))


class Odd(nn.Module):
    """A layer that remembers the first pass's hidden state, as no stand-in could."""

    def __init__(self, layer, store, does):
        super().__init__()
        self.layer = layer
        self.__dict__["store"], self.__dict__["does"] = store, does

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def forward(self, hidden_states, *args, **kwargs):
        found = self.layer(hidden_states, *args, **kwargs)
        if self.does == "write":
            self.store["below"] = hidden_states
        return found + self.store.pop("below", 0) if self.does == "read" else found


def test_a_model_that_looks_around_is_found_out(deep_recipe, build, perturb, random_rows):
    """Upper layers that read more of the lower ones than the hidden state handed on: no stand-in, and the reason."""
    model = perturb(build(deep_recipe("LlamaConfig")))
    layers, store = find_layers(model.base)[1], {}
    for i, does in enumerate(("write", "", "", "read")):
        layers[i] = Odd(layers[i], store, does)
    model.train()
    with pytest.raises(BackboneError, match=r"its answers change by"):
        Prefix.find(model, random_rows([6, 14]))
    assert model.training


def test_texts_as_long_as_the_hidden_state_is_wide(deep_recipe, build, perturb, random_rows, gradients, difference):
    """Which axis holds the tokens is told apart, SqueezeBERT's turned one included, for texts of 64 tokens."""
    for kind in ("SqueezeBertConfig", "BertConfig"):
        model = perturb(build(deep_recipe(kind)))
        rows = random_rows([64, 20])
        prefix = Prefix.find(model, rows)
        assert prefix.form.token_axis == (2 if kind == "SqueezeBertConfig" else 1)
        expected = gradients(model, rows)
        with prefix.stand_in(one_by_one(prefix, rows), mask_of(rows)):
            assert difference(gradients(model, rows), expected) < TOLERANCE["float32"]


def test_recipe_default_is_all_layers():
    """`lora.top_layers` is off unless asked for."""
    assert load_recipe({"backbone": {"name_or_path": "x"}, "lora": {"r": 4}}).lora.top_layers is None
