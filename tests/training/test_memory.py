"""The estimate of memory against models that are really built, and steps that really run."""

import pytest
import torch
from transformers import AutoConfig, AutoModel

from benchmarks.configurations import PARAMETERS, configuration
from lora_cls.modeling.adapter import build_model
from lora_cls.modeling.loading import load_base
from lora_cls.recipe import load_recipe
from lora_cls.training.checkpoint import trainable
from lora_cls.training.memory import HEAP, LIBRARIES, estimate_memory

CPU = torch.device("cpu")
NF4 = {"load_in_4bit": True}


def estimated(recipe, dtype=torch.float32, device="cuda", **options):
    config = AutoConfig.from_pretrained(recipe.backbone.name_or_path)
    return estimate_memory(recipe, config, dtype=dtype, device=device, n_labels=3, **options)


def size(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("kind", ["bert", "llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("lora", [{"r": 4}, None], ids=["LoRA", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_by_count(kind, lora, dtype, tiny_recipe, tiny_model):
    """Base, adapters and optimizer are, to the byte, those of the built model."""
    recipe = tiny_recipe(kind, lora=lora)
    base = AutoModel.from_pretrained(tiny_model(kind), dtype=dtype if lora else torch.float32).requires_grad_(False)
    found = estimated(recipe, dtype)
    assert found.parameters == sum(p.numel() for p in base.parameters())
    assert found.base == size(base.parameters())
    trained = trainable(build_model(base, recipe, 3)).values()
    assert found.base * (lora is None) + found.adapters == size(trained)
    assert found.optimizer == 3 * size(trained)
    parts = (found.base, found.adapters, found.optimizer, found.activations, LIBRARIES["cuda"])
    assert found.total == sum(parts)


@pytest.mark.parametrize(
    "quantization",
    [NF4, NF4 | {"bnb_4bit_use_double_quant": False}, {"load_in_8bit": True}],
    ids=["nf4 double", "nf4", "int8"],
)
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_packed_weights_by_count(quantization, kind, tiny_recipe):
    """A quantized base takes what bitsandbytes really keeps: packed weights and their scales."""
    recipe = tiny_recipe(kind, quantization=quantization)
    base = load_base(recipe.backbone, recipe.quantization, torch.bfloat16, CPU)
    held = size(base.parameters())
    for module in base.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            held += size([state.absmax, state.state2.absmax] if state.nested else [state.absmax])
        elif "load_in_8bit" in quantization and hasattr(getattr(module, "weight", None), "SCB"):
            held += 4 * module.weight.shape[0]
    assert estimated(recipe, torch.bfloat16).base == pytest.approx(held, rel=1e-3)


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_sizes(name):
    """The configurations of the shipped recipes' models add up to their published numbers of parameters."""
    with torch.device("meta"):
        base = AutoModel.from_config(configuration(name))
    assert sum(p.numel() for p in base.parameters()) / 1e6 == pytest.approx(PARAMETERS[name], rel=0.01)


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_activations_by_saved_tensors(kind, attention, tiny_recipe, tiny_model):
    """At least what autograd keeps in a real forward pass, and not much more."""
    recipe = tiny_recipe(kind, backbone__attn_implementation=attention)
    base = AutoModel.from_pretrained(tiny_model(kind), attn_implementation=attention).requires_grad_(False)
    model = build_model(base, recipe, 3).train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # held, so that no address comes twice
        return tensor

    mask = torch.ones(8, 48, dtype=torch.long)
    mask[-1, -1] = 0
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(torch.zeros(8, 48, dtype=torch.long), mask)
    held = sum(storage.nbytes() for storage in kept.values())
    assert held <= estimated(recipe).activations <= 1.4 * held


def test_what_activations_depend_on(tiny_recipe):
    """They grow with batch and length, with eager attention faster than length, and shrink by checkpointing."""
    small = estimated(tiny_recipe("llama"), length=64).activations
    assert estimated(tiny_recipe("llama", train__per_device_train_batch_size=16), length=64).activations > 1.8 * small
    assert 1.8 * small < estimated(tiny_recipe("llama"), length=128).activations < 4 * small
    eager, long = (
        estimated(tiny_recipe("llama", backbone__attn_implementation="eager"), length=n).activations for n in (64, 128)
    )
    assert eager > small
    assert long > 2.2 * eager
    many = {"train__gradient_checkpointing": True}
    assert estimated(tiny_recipe("llama", **many), length=64).activations < 0.7 * small
    assert estimated(tiny_recipe("llama"), length=64, device="cpu").activations == int(HEAP["cpu"] * small)


def test_averages_are_counted(tiny_recipe):
    """One more copy of what is trained for the moving average, and one for the mean, which never lies on a GPU."""
    for lora in ({"r": 4}, None):
        plain = tiny_recipe("bert", lora=lora)
        trained = estimated(plain).optimizer // 3
        for device in ("cpu", "cuda"):
            before = estimated(plain, device=device, length=8).total
            moving = {"train.ema_decay": 0.9}
            assert estimated(load_recipe(plain, moving), device=device, length=8).total == before + trained
            both = load_recipe(plain, moving | {"train.average_epochs": 2})
            extra = 2 * trained if device == "cpu" else trained
            assert estimated(both, device=device, length=8).total == before + extra


def test_accumulated_gradients(tiny_recipe):
    """Where gradients wait for the next batch they are there beside its activations."""
    recipe = tiny_recipe("bert", lora=None)
    one, several = (
        estimated(load_recipe(recipe, {"train.gradient_accumulation_steps": n, "data.max_length": 8})) for n in (1, 2)
    )
    assert several.total > one.total
