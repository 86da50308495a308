"""Adapters merged into copies of the weights while texts are answered: the same answers, and nothing left behind."""

import numpy as np
import pytest
import torch

from lora_cls.modeling.merged_updates import MergedUpdates
from lora_cls.text.tokens import pad

CASES = {
    "llama": ("llama", {}),
    "bert, with biases": ("bert", {}),
    "rank-stabilised": ("llama", {"lora__use_rslora": True}),
    "some modules": ("llama", {"lora__target_modules": ["q_proj", "down_proj"]}),
    "bf16": ("llama", {"backbone__dtype": "bfloat16"}),
}
LEFT_ALONE = {
    "DoRA": ("llama", {"lora__use_dora": True}),
    "4-bit": ("llama", {"quantization": {"load_in_4bit": True}}),
    "layers written as convolutions": ("gpt2", {}),
    "trained biases": ("bert", {"lora__bias": "all"}),
}


def logits(model, rows):
    with torch.no_grad():
        return model(*map(torch.from_numpy, pad(rows, 0))).numpy()


@pytest.mark.parametrize("case", CASES)
def test_answers_as_with_adapters(case, tiny_recipe, build, perturb, random_rows):
    """In fp32 to the last digits; in bf16 the sum is rounded once more."""
    kind, overrides = CASES[case]
    model = perturb(build(tiny_recipe(kind, **overrides))).eval()
    rows = random_rows([6, 14, 9])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected, merging = logits(model, rows), MergedUpdates(model.backbone)
    assert merging.fits
    with merging.merged():
        found = logits(model, rows)
    tolerance = 0.05 if case == "bf16" else 1e-5
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()
    np.testing.assert_array_equal(logits(model, rows), expected)  # the adapters' own way again, and no weight moved
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_other_adapters_in_the_same_room(tiny_recipe, build, perturb, random_rows):
    """The next fold's adapters are merged anew, into the same memory."""
    model = perturb(build(tiny_recipe("llama"))).eval()
    rows, merging = random_rows([6, 14, 9]), MergedUpdates(model.backbone)
    with merging.merged():
        first = logits(model, rows)
    places = [weight.data_ptr() for weight in merging._weights]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.mul_(-3)
    with merging.merged():
        second = logits(model, rows)
    np.testing.assert_allclose(second, logits(model, rows), atol=1e-5)
    assert np.abs(second - first).max() > 1e-3
    assert [weight.data_ptr() for weight in merging._weights] == places


def test_an_error_within_leaves_the_model_as_it_was(tiny_recipe, build, perturb, random_rows):
    model = perturb(build(tiny_recipe("llama"))).eval()
    rows = random_rows([6, 14, 9])
    expected = logits(model, rows)
    with pytest.raises(KeyError), MergedUpdates(model.backbone).merged():
        raise KeyError
    np.testing.assert_array_equal(logits(model, rows), expected)


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_others_keep_their_own_way(case, tiny_recipe, build):
    """What is no plain matrix with a plain update has nothing to merge."""
    kind, overrides = LEFT_ALONE[case]
    assert not MergedUpdates(build(tiny_recipe(kind, **overrides)).backbone).fits


def test_not_where_memory_lacks(tiny_recipe, build, monkeypatch):
    """Three times the weights must be free."""
    import psutil

    model = build(tiny_recipe("llama"))
    size = sum(module.base_layer.weight.nbytes for module in MergedUpdates(model.backbone)._modules)
    free = type("Free", (), {"available": 3 * size})()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    assert MergedUpdates(model.backbone).fits
    free.available -= 1
    assert not MergedUpdates(model.backbone).fits


@pytest.mark.parametrize("gone", ["_reorder_linear_weight", "_linear_pointwise"])
def test_without_operators_that_are_not_public(gone, tiny_recipe, build, perturb, random_rows, monkeypatch):
    """Another version of PyTorch may lack them, or take other arguments: the plain product answers alike."""
    model = perturb(build(tiny_recipe("llama", backbone__dtype="bfloat16"))).eval()
    rows, merging = random_rows([6, 14, 9]), MergedUpdates(model.backbone)
    with merging.merged():
        expected = logits(model, rows)

    def refuse(*given):
        raise RuntimeError("unknown operator")

    monkeypatch.setattr(torch.ops.mkldnn, gone, refuse)
    with merging.merged():
        assert all(module.forward.packed is None for module in merging._modules)
        np.testing.assert_allclose(logits(model, rows), expected, atol=0.05 * np.abs(expected).max())
