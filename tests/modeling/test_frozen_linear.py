"""A matrix that does not change: packed or not, its products are the same, and its weight comes back."""

import pytest
import torch

from lora_cls.modeling.frozen_linear import FrozenLinear, packed

SIZES = [(1, 64, 48), (7, 576, 192), (33, 768, 3072), (300, 640, 576)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_products_are_the_same(size, bias):
    """To the last bit without a bias, which oneDNN adds before it rounds; both ways, for rows in any shape."""
    n_rows, n_in, n_out = size
    weight = torch.nn.Parameter(torch.randn(n_out, n_in).bfloat16(), requires_grad=False)
    given = torch.randn(n_out).bfloat16() if bias else None
    short, plain = FrozenLinear(weight, given), FrozenLinear(weight.detach().clone(), given, packs=False)
    if short.packed is None:
        pytest.skip("this PyTorch has no packed weights")
    x, grad = torch.randn(2, n_rows, n_in).bfloat16(), torch.randn(2, n_rows, n_out).bfloat16()
    torch.testing.assert_close(short(x), plain(x), rtol=2**-7 if bias else 0, atol=2**-7 if bias else 0)
    torch.testing.assert_close(short.back(grad), plain.back(grad), rtol=0, atol=0)


def test_the_weight_is_away_until_it_is_restored():
    """One copy of a weight is kept for each way, and none beside them; whoever reads it meanwhile reads no number."""
    values = torch.randn(48, 64).bfloat16()
    weight = torch.nn.Parameter(values.clone(), requires_grad=False)
    layer = FrozenLinear(weight, None)
    if layer.packed is None:
        pytest.skip("this PyTorch has no packed weights")
    layer.back(torch.randn(3, 48).bfloat16())
    assert weight.untyped_storage().nbytes() == 2
    assert weight.shape == values.shape
    assert weight.isnan().all()
    layer.restore()
    assert torch.equal(weight, values)
    layer.restore()
    found = layer.back(torch.ones(1, 48).bfloat16())  # and away again
    assert weight.isnan().all()
    torch.testing.assert_close(found, torch.ones(1, 48).bfloat16() @ values, rtol=0, atol=0)


def test_a_part_of_a_larger_memory_stays():
    """Memory that others hold, too, would not be given back."""
    whole = torch.randn(2, 48, 64).bfloat16()
    layer = FrozenLinear(torch.nn.Parameter(whole[1], requires_grad=False), None)
    layer.back(torch.randn(3, 48).bfloat16())
    layer.restore()
    assert torch.equal(layer.weight, whole[1])


@pytest.mark.parametrize("packs", [True, False])
def test_products_are_no_views(packs):
    """Autograd forbids to write into a view that a function gave, and Longformer does so."""
    layer = FrozenLinear(torch.randn(48, 64).bfloat16(), None, packs)
    with torch.no_grad():
        assert not layer(torch.randn(2, 3, 64).bfloat16())._is_view()


@pytest.mark.parametrize("gone", ["_reorder_linear_weight", "_linear_pointwise"])
def test_without_operators_that_are_not_public(gone, monkeypatch):
    """Another version of PyTorch may lack them, or take other arguments."""

    def refuse(*given):
        raise RuntimeError("unknown operator")

    monkeypatch.setattr(torch.ops.mkldnn, gone, refuse)
    weight = torch.randn(48, 64).bfloat16()
    assert packed(weight) is None
    layer, x = FrozenLinear(weight, None), torch.randn(3, 64).bfloat16()
    assert torch.equal(layer(x), x @ weight.T)
    assert torch.equal(layer.back(torch.ones(1, 48).bfloat16()), torch.ones(1, 48).bfloat16() @ weight)
    layer.restore()


def test_other_precisions_are_not_packed():
    assert packed(torch.randn(8, 8)) is None
