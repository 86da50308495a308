"""Attention and positions in fewer steps give what models' own functions give, forward and backward."""

import pytest
import torch
from transformers.models.bert import modeling_bert
from transformers.models.gemma3 import modeling_gemma3
from transformers.models.llama import modeling_llama

from lora_cls.modeling.attention import Attend, Rotate
from lora_cls.modeling.short_steps import _rotates_alike, shorten_steps

CLOSE = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2}}


class Module(torch.nn.Module):
    """What `eager_attention_forward` reads of an attention module."""

    def __init__(self, groups):
        super().__init__()
        self.num_key_value_groups = groups


def with_gradients(function, *tensors):
    """Outputs, and gradients of all tensors, for one random gradient."""
    tensors = [tensor.clone().requires_grad_() for tensor in tensors]
    found = function(*tensors)
    found = found if isinstance(found, tuple) else (found,)
    generator = torch.Generator().manual_seed(1)
    sum((y * torch.randn(y.shape, generator=generator).to(y.dtype)).float().sum() for y in found).backward()
    return [*found, *(tensor.grad for tensor in tensors)]


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("module", [modeling_llama, modeling_gemma3, modeling_bert], ids=["llama", "gemma", "bert"])
def test_attention(module, groups, masked, dtype):
    if module is modeling_bert and groups > 1:
        pytest.skip("BERT shares no keys")
    layer = Module(groups).train()
    q = torch.randn(2, 5, 2 * groups, 8, dtype=dtype).transpose(1, 2)  # as a view of a product is
    k, v = (torch.randn(2, 7, 2, 8, dtype=dtype).transpose(1, 2) for _ in range(2))
    mask = None
    if masked:
        mask = torch.zeros(2, 1, 5, 7, dtype=dtype)
        mask[1, :, :, 3:] = torch.finfo(dtype).min
    own = module.eager_attention_forward
    ways = [
        with_gradients(lambda *qkv, way=way: way(layer, *qkv, mask, scaling=0.3, dropout=0.0)[0], q, k, v)
        for way in (Attend(own), own)
    ]
    for found, expected in zip(*ways, strict=True):
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, **CLOSE[dtype])


def test_dropout_of_attention():
    """The way back goes through the mask that was drawn: by differences of the same draw."""
    layer, own = Module(1).train(), modeling_llama.eager_attention_forward
    q, k, v = (torch.randn(1, 2, 4, 8, dtype=torch.float64) for _ in range(3))

    def attend(*qkv):
        torch.manual_seed(5)
        return Attend(own)(layer, *qkv, None, scaling=0.3, dropout=0.4)[0]

    assert not torch.allclose(attend(q, k, v), own(layer, q, k, v, None, scaling=0.3, dropout=0.0)[0])
    assert torch.autograd.gradcheck(attend, tuple(x.requires_grad_() for x in (q, k, v)))
    layer.eval()
    expected = own(layer, q, k, v, None, scaling=0.3, dropout=0.0)[0]
    torch.testing.assert_close(attend(q, k, v), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("more", [{"softcap": 5.0}, {"scaling": None}])
def test_what_computes_more_is_left_to_the_model(more):
    """A cap on scores (Gemma 2), and what is not given."""
    layer, own = Module(2), modeling_gemma3.eager_attention_forward
    layer.head_dim = 8
    q, k, v = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)
    given = {"scaling": 0.3} | more
    assert torch.equal(Attend(own)(layer, q, k, v, None, **given)[0], own(layer, q, k, v, None, **given)[0])


def test_narrow_values_and_trained_masks_are_left_to_the_model():
    """DeepSeek's values are narrower than its keys; a bias that is learnt gets its gradient."""
    layer, own = Module(2), modeling_llama.eager_attention_forward
    q, k, v = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 6)
    found = Attend(own)(layer, q, k, v, None, scaling=0.3)[0]
    assert torch.equal(found, own(layer, q, k, v, None, scaling=0.3)[0])
    bias = torch.zeros(1, 1, 5, 5, requires_grad=True)
    Attend(own)(layer, q, k, torch.randn(1, 2, 5, 8), bias, scaling=0.3)[0].sum().backward()
    assert bias.grad.abs().max() > 0


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("more", [{}, {"unsqueeze_dim": 1}], ids=["llama", "as ModernBERT calls it"])
def test_positions(more, rows, dtype):
    """Without a call of the model's own function, which the short one does not get here."""
    q = torch.randn(2, 5, 4, 8, dtype=dtype).transpose(1, 2)
    k = torch.randn(2, 5, 2, 8, dtype=dtype).transpose(1, 2)
    cos, sin = (torch.randn(rows, 5, 8, dtype=dtype) for _ in range(2))
    own = modeling_llama.apply_rotary_pos_emb
    ways = [with_gradients(lambda *qk, way=way: way(*qk, cos, sin, **more), q, k) for way in (Rotate(None), own)]
    for found, expected in zip(*ways, strict=True):
        torch.testing.assert_close(found, expected, **CLOSE[dtype])


def test_positions_that_are_turned_in_higher_precision_keep_it():
    """ModernBERT's decoder rounds once, at the end."""
    from transformers.models.modernbert_decoder.modeling_modernbert_decoder import apply_rotary_pos_emb

    assert _rotates_alike(modeling_llama.apply_rotary_pos_emb)
    assert not _rotates_alike(apply_rotary_pos_emb)


def test_heads_that_are_turned_in_part_are_left_to_the_model():
    """cos and sin are shorter than a head (Phi 3)."""
    from transformers.models.phi3.modeling_phi3 import apply_rotary_pos_emb

    q, k, cos, sin = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8), torch.randn(1, 5, 6), torch.randn(1, 5, 6)
    for found, expected in zip(
        Rotate(apply_rotary_pos_emb)(q, k, cos, sin), apply_rotary_pos_emb(q, k, cos, sin), strict=True
    ):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["llama", "gemma3", "bert"])
def test_a_whole_model(kind, attention, tiny_recipe, build, perturb, random_rows, gradients, difference, monkeypatch):
    """Logits and all gradients; the functions are called where the model would call its own."""
    from lora_cls.modeling import attention as short

    called = []
    for name in ("GroupedAttention", "Rotated"):
        function = getattr(short, name)
        monkeypatch.setattr(
            function, "apply", lambda *given, name=name, apply=function.apply: called.append(name) or apply(*given)
        )
    model = perturb(build(tiny_recipe(kind, head__pooling="mean")))
    model.base.set_attn_implementation(attention)
    rows = random_rows([6, 14, 9])
    expected = gradients(model, rows)
    assert shorten_steps(model) > 0
    called.clear()
    assert difference(gradients(model, rows), expected) < 1e-5
    assert set(called) == ({"GroupedAttention"} if attention == "eager" else set()) | (
        {"Rotated"} if kind != "bert" else set()
    )


def test_all_trained_under_autocast(tiny_recipe, build, perturb, random_rows, gradients, difference):
    """Weights in fp32 that are computed with in 16 bits: padded rows, whose mask is in fp32, and rows without."""
    model = perturb(build(tiny_recipe("bert", lora=None, head__pooling="mean")))
    model.dtype = torch.bfloat16
    model.base.set_attn_implementation("eager")
    for lengths in ([6, 14, 9], [8, 8]):
        rows = random_rows(lengths)
        expected = gradients(model, rows)
        assert shorten_steps(model) > 0
        assert difference(gradients(model, rows), expected) < 5e-2
        assert sum("forward" in vars(m) for m in model.modules() if type(m).__name__ == "BertSelfAttention") == 2
        for module in model.modules():
            vars(module).pop("forward", None)


def test_another_attention_keeps_its_own(tiny_recipe, build, monkeypatch):
    """A model whose function of that name computes something else is told by the trial."""
    own = modeling_llama.eager_attention_forward

    def attend(*given, **kwargs):
        found, weights = own(*given, **kwargs)
        return found * 1.01, weights

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", attend)
    model = build(tiny_recipe("llama"))
    shorten_steps(model)
    attention = next(module for module in model.modules() if type(module).__name__ == "LlamaAttention")
    functions = attention.forward.__globals__
    assert functions["eager_attention_forward"] is attend
    assert isinstance(functions["apply_rotary_pos_emb"], Rotate)
