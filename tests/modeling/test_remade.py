"""Activations and norms are computed again on the way back: less is kept, and gradients stay the same to the bit."""

import pytest
import torch
from torch import nn

from lora_cls.modeling.frozen_linear import FrozenLinear
from lora_cls.modeling.low_rank import AdaptedLinears
from lora_cls.modeling.remade import Remade, can_be_remade, origin_of
from lora_cls.modeling.short_steps import shorten_steps


def kept_bytes(run):
    """Bytes of all that a pass keeps for its way back, each memory counted once."""
    found = {}

    def keep(tensor):
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(found.values())


@pytest.fixture
def layer():
    """An activation and an adapted layer: a function of its input, for either way."""
    torch.manual_seed(0)
    w, a, b = torch.randn(6, 64), torch.randn(4, 64, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    plain, remade = nn.GELU(), nn.GELU()
    remade.forward = Remade(remade)

    def read(x, again):
        y = (remade if again else plain)(x)
        return AdaptedLinears.apply(y, origin_of(y), [FrozenLinear(w, None)], [0.5], a, b)[0]

    return read, (a, b)


def test_the_same_gradients_from_less(layer):
    read, factors = layer
    x = torch.randn(5, 7, 64, requires_grad=True)
    grad = torch.randn(5, 7, 6)
    expected = torch.autograd.grad(read(x, False), (x, *factors), grad)
    found = torch.autograd.grad(read(x, True), (x, *factors), grad)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert kept_bytes(lambda: read(x, False)) - kept_bytes(lambda: read(x, True)) == 4 * x.numel()


def test_what_was_written_into_is_kept():
    """A model may change what an activation gave, or what it read, before a layer reads it."""
    module = nn.GELU()
    module.forward = Remade(module)
    x = torch.randn(3, 4)
    y = module(x)
    assert origin_of(y) is not None
    y.mul_(2)
    assert origin_of(y) is None
    y = module(x)
    x.add_(1)
    assert origin_of(y) is None
    assert origin_of(torch.randn(3)) is None
    module.eval()
    assert origin_of(module(x)) is None


@pytest.mark.parametrize(
    ("module", "remade"),
    [(nn.GELU(), True), (nn.LayerNorm(2), True), (nn.ReLU(), False), (nn.Tanh(), False), (nn.Linear(2, 2), False)],
)
def test_which_are_remade(module, remade):
    """ReLU and tanh keep what they gave for their own way back."""
    assert can_be_remade(module) == remade


@pytest.mark.parametrize(("kind", "n"), [("bert", 7), ("llama", 0), ("gemma3", 2)])
def test_models_have_them(kind, n, tiny_recipe, build):
    """An encoder: two norms and an activation in each of two layers, and its embeddings' norm. Gemma has a GELU."""
    model = build(tiny_recipe(kind))
    shorten_steps(model)
    assert sum(isinstance(module.forward, Remade) for module in model.base.modules()) == n
