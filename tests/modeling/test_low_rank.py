"""The short way through an adapted layer computes what PEFT's own modules compute, forward and backward."""

import numpy as np
import pytest
import torch
from torch import nn

from lora_cls.modeling.low_rank import _Forward
from lora_cls.training.checkpoint import trainable

BF16 = {"backbone__dtype": "bfloat16"}
CASES = {
    "llama": ("llama", {}),
    "bert, with biases": ("bert", {}),
    "rank-stabilised": ("llama", {"lora__use_rslora": True}),
    "lora dropout": ("llama", {"lora__lora_dropout": 0.3}),
    "gradient checkpointing": ("llama", {"train__gradient_checkpointing": True}),
    "trained biases": ("bert", {"lora__bias": "all"}),
    "some modules": ("llama", {"lora__target_modules": ["q_proj", "down_proj"]}),
    "4-bit": ("llama", {"quantization": {"load_in_4bit": True}}),
    "4-bit, lora dropout": ("llama", {"quantization": {"load_in_4bit": True}, "lora__lora_dropout": 0.3}),
    "bf16": ("llama", BF16),
    "bf16, with biases": ("bert", BF16),
    "4-bit bf16": ("gemma3", BF16 | {"quantization": {"load_in_4bit": True}}),
    "8-bit bf16": ("llama", BF16 | {"quantization": {"load_in_8bit": True}}),
}
KEEPS_PEFTS = {
    "DoRA": ("llama", {"lora__use_dora": True}),
    "biases in adapters": ("llama", {"lora__lora_bias": True}),
    "layers written as convolutions": ("gpt2", {}),
}


def short(model):
    return [module for module in model.modules() if isinstance(getattr(module, "forward", None), _Forward)]


def by_peft(model):
    """Take the short way from every module: the class's own forward is back."""
    for module in short(model):
        del module.forward
    return model


@pytest.mark.parametrize("case", CASES)
def test_computes_what_peft_computes(case, tiny_recipe, build, perturb, random_rows, gradients, difference):
    """Logits and gradients of all that is trained, under the same dropout; PEFT computes bf16's update in fp32."""
    kind, overrides = CASES[case]
    model = perturb(build(tiny_recipe(kind, **overrides)))
    n_adapted = sum(hasattr(module, "lora_A") for module in model.modules())
    assert len(short(model)) == n_adapted > 0
    rows = random_rows([6, 14, 9])
    found = gradients(model, rows)
    assert all(gradient.dtype == torch.float32 and gradient.abs().max() > 0 for gradient in found[1].values())
    assert set(found[1]) == {name for name in trainable(model) if "pooler" not in name}  # which nothing reads
    expected = gradients(by_peft(model), rows)
    assert not short(model)
    assert difference(found, expected) < (5e-2 if "bf16" in case else 1e-5)  # measured: up to 0.033


def test_these_tests_would_see_a_difference(tiny_recipe, build, perturb, random_rows, gradients, difference):
    """One adapter whose update is left out, or doubled, is beyond the tolerance of bf16."""
    model = perturb(build(tiny_recipe("llama")))
    expected = gradients(model, random_rows([6, 14, 9]))
    short(model)[0].scaling["default"] *= 2
    assert difference(gradients(model, random_rows([6, 14, 9])), expected) > 5e-2


@pytest.mark.parametrize("case", KEEPS_PEFTS)
def test_keeps_pefts_own(case, tiny_recipe, build, random_rows, gradients):
    """What is more than A and B keeps PEFT's forward, and is trained whole."""
    kind, overrides = KEEPS_PEFTS[case]
    model = build(tiny_recipe(kind, **overrides))
    assert not short(model)
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            if "lora_B" in name:
                parameter.add_(0.1)
    _, found = gradients(model, random_rows([6, 14, 9]))
    assert set(found) == set(trainable(model))
    assert all(gradient.abs().max() > 0 for gradient in found.values())
    extra = {"DoRA": "magnitude", "biases in adapters": "lora_B.default.bias"}.get(case, "lora_A")
    assert any(extra in name for name in found)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_merged_disabled_and_other_adapters(kind, tiny_recipe, build, perturb, ask, random_rows):
    """PEFT's merging, switching off and a second adapter are seen."""
    from peft import LoraConfig

    model = perturb(build(tiny_recipe(kind)))
    rows = random_rows([6, 14, 9])
    adapted = ask(model, rows)
    with model.backbone.disable_adapter():
        plain = ask(model, rows)
    assert np.abs(adapted - plain).max() > 1e-2
    with torch.no_grad():  # the wrapped head switches off, too: of the adapters alone
        for module in short(model):
            module.enable_adapters(False)
        off = ask(model, rows)
        for module in short(model):
            module.enable_adapters(True)
    assert np.abs(adapted - off).max() > 1e-2
    np.testing.assert_array_equal(ask(model, rows), adapted)
    for module in short(model):
        module.merge()
    np.testing.assert_allclose(ask(model, rows), adapted, rtol=0, atol=1e-4)
    for module in short(model):
        module.unmerge()
    np.testing.assert_allclose(ask(model, rows), adapted, rtol=0, atol=1e-4)

    config = model.backbone.peft_config["default"]
    model.backbone.add_adapter("other", LoraConfig(r=2, target_modules=config.target_modules))
    for module in short(model):
        module.set_adapter("other")  # fresh: it changes nothing yet
    np.testing.assert_allclose(ask(model, rows), off, rtol=0, atol=1e-5)


def test_no_gradient_below_the_lowest_adapter(tiny_recipe, build, random_rows, gradients, monkeypatch):
    """The lowest adapted layer computes no gradient for its input, as nothing below is trained."""
    from lora_cls.modeling import low_rank

    asked = []
    original = low_rank.AdaptedLinears.backward

    def spy(ctx, *grads):
        asked.append(ctx.needs_input_grad[0])
        return original(ctx, *grads)

    monkeypatch.setattr(low_rank.AdaptedLinears, "backward", staticmethod(spy))
    model = build(tiny_recipe("llama", lora__layers_to_transform=[1], lora__target_modules=["q_proj", "o_proj"]))
    gradients(model, random_rows([6, 14]))
    assert sorted(asked) == [False, True]


def test_inputs_of_another_layout_and_precision(tiny_recipe, build, perturb):
    """A slice, a single token and an input of another precision than the weights give what PEFT gives."""
    model = perturb(build(tiny_recipe("bert")))
    module = next(m for m in short(model) if isinstance(m.get_base_layer(), nn.Linear))
    n_in = module.in_features
    x = torch.randn(3, 2 * n_in, 5).transpose(1, 2)[..., ::2]
    assert not x.is_contiguous()
    for given in (x, x[0, 0], x[:0]):
        given = given.detach().requires_grad_(True)
        found = module(given)
        (gradient,) = torch.autograd.grad(found.square().sum(), given)
        expected = module.forward.peft_forward(given)
        (by_hand,) = torch.autograd.grad(expected.square().sum(), given)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient, by_hand, rtol=1e-4, atol=1e-4)
