"""`backbone.num_hidden_layers`: the model of the lowest layers, as one would cut it by hand."""

import copy

import pytest
import torch
from torch import nn

from benchmarks.configurations import CONFIGURATIONS
from lora_cls.errors import BackboneError, RecipeError
from lora_cls.modeling.layers import find_layers
from lora_cls.modeling.loading import depth_options, load_base, load_config
from lora_cls.modeling.source import find_source
from lora_cls.recipe import load_recipe
from lora_cls.text.tokens import pad

CPU = torch.device("cpu")
KINDS = [*sorted({kind for kind, _ in CONFIGURATIONS.values()}), "BloomConfig", "GPT2Config", "MPNetConfig"]


def load(recipe):
    return load_base(recipe.backbone, recipe.quantization, torch.float32, CPU)


def hidden(base, rows):
    ids, mask = (torch.from_numpy(array) for array in pad(rows, 1))
    with torch.no_grad():
        found = base(input_ids=ids, attention_mask=mask).last_hidden_state
    return found * mask.unsqueeze(-1)


@pytest.mark.parametrize("n_layers", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_as_cut_by_hand(kind, n_layers, deep_recipe, random_rows):
    """The same hidden state as of the whole model whose layers were cut off, for all that lists a value per layer."""
    rows = random_rows([6, 21, 14])
    whole = load(deep_recipe(kind))
    expected_of_all = hidden(whole, rows)
    path, _ = find_layers(whole)
    parent, _, name = path.rpartition(".")
    by_hand = copy.deepcopy(whole)
    setattr(by_hand.get_submodule(parent), name, nn.ModuleList(list(by_hand.get_submodule(path))[:n_layers]))
    by_hand.config.num_hidden_layers = n_layers
    cut = load(deep_recipe(kind, backbone__num_hidden_layers=n_layers))
    assert len(find_layers(cut)[1]) == n_layers == cut.config.num_hidden_layers
    torch.testing.assert_close(hidden(cut, rows), hidden(by_hand, rows), rtol=0, atol=0)
    assert (hidden(cut, rows) - expected_of_all).abs().max() > 1e-2
    assert set(cut.state_dict()) < set(whole.state_dict())


def test_all_layers(deep_recipe, random_rows):
    """As many layers as there are is the whole model."""
    rows = random_rows([6, 21])
    whole, same = (load(deep_recipe("Gemma3TextConfig", backbone__num_hidden_layers=n)) for n in (None, 4))
    assert torch.equal(hidden(whole, rows), hidden(same, rows))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LlamaConfig", {"num_hidden_layers": 3}),
        ("LongformerConfig", {"num_hidden_layers": 3, "attention_window": [16, 16, 8]}),
        ("Gemma3TextConfig", {"num_hidden_layers": 3, "layer_types": ["sliding_attention", "full_attention"] * 2}),
    ],
)
def test_fields_of_the_configuration(kind, options, deep_recipe):
    """What says a value for every layer is cut, too; no field without a wish."""
    if "layer_types" in options:
        options = options | {"layer_types": options["layer_types"][:3]}
    backbone = deep_recipe(kind, backbone__num_hidden_layers=3).backbone
    source = find_source(backbone.name_or_path)
    assert depth_options(backbone, source) == options
    assert load_config(backbone, source).num_hidden_layers == 3
    assert depth_options(deep_recipe(kind).backbone, source) == {}


def test_too_many_layers(deep_recipe):
    """More layers than there are is refused with both numbers."""
    with pytest.raises(BackboneError, match=r"num_hidden_layers is 5, and .* has 4 layers"):
        load(deep_recipe("BertConfig", backbone__num_hidden_layers=5))


def test_none_or_no_number(deep_recipe):
    for value in (0, -1, 1.5):
        with pytest.raises(RecipeError, match=r"num_hidden_layers"):
            deep_recipe("BertConfig", backbone__num_hidden_layers=value)


def test_a_writer_keeps_all_layers(tiny_recipe):
    """The last layer's output is what the output embedding reads."""
    with pytest.raises(RecipeError, match=r"backbone\.num_hidden_layers: head\.kind: generate"):
        tiny_recipe("chat", backbone__num_hidden_layers=1)


def test_a_model_of_more_than_text(tmp_path):
    """A configuration within another is not cut: the message says to keep all layers."""
    from transformers import Gemma3Config, Gemma3TextConfig

    text = Gemma3TextConfig(vocab_size=400, hidden_size=64, num_hidden_layers=2, layer_types=["full_attention"] * 2)
    Gemma3Config(text_config=text.to_dict()).save_pretrained(tmp_path)
    recipe = load_recipe({"backbone": {"name_or_path": str(tmp_path), "num_hidden_layers": 1}})
    with pytest.raises(BackboneError, match=r"more than a text model; keep all its layers"):
        depth_options(recipe.backbone, find_source(str(tmp_path)))


@pytest.mark.parametrize("quantization", [{"load_in_4bit": True}, {"load_in_8bit": True}])
def test_quantized(quantization, deep_recipe, random_rows):
    """A quantized base is cut as well."""
    base = load(deep_recipe("LlamaConfig", backbone__num_hidden_layers=2, quantization=quantization))
    assert len(find_layers(base)[1]) == 2
    assert hidden(base, random_rows([6, 9])).isfinite().all()
