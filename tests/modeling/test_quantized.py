"""A quantized base trains as its dequantized twin would, also after an evaluation pass.

On a CPU with AVX512-BF16 bitsandbytes repacks 4-bit weights in place in the first evaluation; every gradient after it
is wrong, without a word. `load_base` switches that off; here is the proof, and the proof that these tests would see it.
"""

import bitsandbytes
import numpy as np
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, has_avx512bf16
from torch import nn

from lora_cls.errors import BackboneError
from lora_cls.modeling.adapter import build_model, reset_model, trainable_head
from lora_cls.modeling.loading import load_base, quantization_config
from lora_cls.modeling.precision import DTYPES
from lora_cls.recipe import Loss, Quantization
from lora_cls.text.tokens import pad
from lora_cls.training.checkpoint import trainable
from lora_cls.training.losses import training_loss

CPU = torch.device("cpu")
CASES = [
    ("llama", "nf4", True, "float32"),
    ("llama", "nf4", True, "bfloat16"),
    ("gemma3", "nf4", False, "bfloat16"),
    ("llama", "fp4", True, "bfloat16"),
    ("bert", "nf4", True, "bfloat16"),  # layers with bias
]


def make_pair(tiny_recipe, kind, quant_type, double, dtype):
    """The 4-bit model, and a dense one whose linear weights are the dequantized ones; same adapters and head."""
    quantization = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": quant_type,
        "bnb_4bit_use_double_quant": double,
    }
    recipe = tiny_recipe(kind, backbone__dtype=dtype, quantization=quantization)
    torch_dtype = DTYPES[dtype]
    quantized = load_base(recipe.backbone, recipe.quantization, torch_dtype, CPU)
    dense = load_base(recipe.backbone, None, torch_dtype, CPU)
    twins = dict(dense.named_modules())
    n_layers = 0
    for name, module in quantized.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            weight = dequantize_4bit(module.weight.data, module.weight.quant_state)
            twins[name].weight.data = weight.to(torch_dtype).reshape(twins[name].weight.shape)
            n_layers += 1
    assert n_layers >= 12
    models = []
    for base in (quantized, dense):
        model = build_model(base, recipe, 3)
        reset_model(model, recipe, 0)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():  # else the gradients of A are all zero
            for name, parameter in trainable(model).items():
                if "lora_B" in name or (name.endswith("weight") and "score" in name):
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        models.append(model)
    return models


def batch():
    rng = np.random.default_rng(0)
    return [torch.from_numpy(array) for array in pad([rng.integers(5, 300, size=n) for n in (6, 14, 9)], 0)]


def logits_of(model):
    ids, mask = batch()
    bf16 = next(model.base.parameters()).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        return model(ids, mask)


def gradients(model):
    model.train()
    model.zero_grad()
    targets = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    training_loss(logits_of(model), targets, torch.ones(3), Loss()).backward()
    return {name: parameter.grad.clone() for name, parameter in trainable(model).items()}


def evaluate(model):
    model.eval()
    with torch.no_grad():
        return logits_of(model)


def relative_error(found, expected):
    """The largest error of any adapter's gradient, relative to that gradient's norm."""
    assert found.keys() == expected.keys()
    return max(
        float((found[name] - expected[name]).norm() / expected[name].norm())
        for name in expected
        if float(expected[name].norm()) > 0
    )


@pytest.mark.parametrize(("kind", "quant_type", "double", "dtype"), CASES)
def test_gradients_are_those_of_the_dense_twin(kind, quant_type, double, dtype, tiny_recipe, record_property):
    """Gradients of adapters and head equal the dense twin's, before an evaluation and, to the bit, after two."""
    quantized, dense = make_pair(tiny_recipe, kind, quant_type, double, dtype)
    before, expected = gradients(quantized), gradients(dense)
    assert all(float(gradient.norm()) > 0 for gradient in expected.values())
    first = evaluate(quantized)
    evaluate(quantized)
    after = gradients(quantized)
    errors = relative_error(before, expected), relative_error(after, expected)
    record_property("largest relative gradient error", errors)
    # In fp32 they agree to rounding; in bf16 the two ways to multiply round differently.
    assert max(errors) < (1e-5 if dtype == "float32" else 0.05)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(evaluate(quantized), first)


@pytest.mark.parametrize(("kind", "quant_type", "double", "dtype"), CASES)
def test_training_and_evaluation_compute_the_same(kind, quant_type, double, dtype, tiny_recipe):
    """Without dropout, logits in training mode equal those in evaluation mode bit for bit, before and after one."""
    quantized, _ = make_pair(tiny_recipe, kind, quant_type, double, dtype)
    quantized.train()
    training = logits_of(quantized).detach()
    assert torch.equal(evaluate(quantized), training)
    quantized.train()
    assert torch.equal(logits_of(quantized).detach(), training)


@pytest.mark.skipif(not has_avx512bf16(), reason="this CPU has no AVX512-BF16, so bitsandbytes never repacks")
def test_these_tests_would_see_the_trap(tiny_recipe):
    """With bitsandbytes' own setting restored, gradients after an evaluation are far from the dense twin's."""
    quantized, dense = make_pair(tiny_recipe, "llama", "nf4", True, "bfloat16")
    layers = [module for module in quantized.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)
    for layer in layers:
        layer.support_avx512bf16_for_cpu = True
    expected = gradients(dense)
    assert relative_error(gradients(quantized), expected) < 0.05
    evaluate(quantized)
    assert relative_error(gradients(quantized), expected) > 0.5


@pytest.mark.parametrize("quantization", [{"load_in_4bit": True}, {"load_in_8bit": True}])
def test_the_head_is_not_quantized(quantization, tiny_recipe, build):
    """Every linear layer of the blocks is quantized, the head is a plain fp32 layer that trains."""
    model = build(tiny_recipe("llama", quantization=quantization, backbone__dtype="bfloat16"))
    kind = bitsandbytes.nn.Linear4bit if "load_in_4bit" in quantization else bitsandbytes.nn.Linear8bitLt
    assert sum(isinstance(module, kind) for module in model.modules()) == 14
    head = trainable_head(model)
    assert type(head) is nn.Linear
    assert head.weight.dtype == torch.float32
    assert head.weight.requires_grad


def test_sizes_that_are_no_multiple_of_a_block(tiny_recipe, build, ask, random_rows, tmp_path):
    """A model whose layers have odd sizes (72 by 100) loads in 4 bits, answers and gets gradients."""
    from transformers import AutoModel, LlamaConfig

    config = LlamaConfig(
        vocab_size=400, hidden_size=72, intermediate_size=100, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    AutoModel.from_config(config).save_pretrained(tmp_path)
    recipe = tiny_recipe("llama", backbone__dtype="bfloat16", quantization={"load_in_4bit": True})
    recipe = recipe.model_copy(update={"backbone": recipe.backbone.model_copy(update={"name_or_path": str(tmp_path)})})
    model = build(recipe)
    assert np.isfinite(ask(model, random_rows([5, 9]))).all()
    found = gradients(model)
    assert all(torch.isfinite(gradient).all() for gradient in found.values())
    assert float(found["backbone.base_model.model.layers.0.mlp.up_proj.lora_B.default.weight"].norm()) > 0


def test_without_bitsandbytes(monkeypatch):
    """Where bitsandbytes is not installed, a sentence says how to get it, or how to do without."""
    monkeypatch.setattr("lora_cls.modeling.loading.find_spec", lambda name: None)
    with pytest.raises(BackboneError, match=r"pip install bitsandbytes, or .*--set quantization=null"):
        quantization_config(Quantization(load_in_4bit=True), torch.float32)
