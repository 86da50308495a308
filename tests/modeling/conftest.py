"""What the tests of this folder share: building a classifier, making its weights matter, and asking it."""

import numpy as np
import pytest
import torch

from lora_cls.data.tokens import pad
from lora_cls.modeling.adapter import build_model, reset_model, trainable_head
from lora_cls.modeling.loading import load_base
from lora_cls.modeling.precision import DTYPES
from lora_cls.training.checkpoint import trainable

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def build():
    """`build(recipe, n_labels=3, seed=0)`: a fresh classifier in the recipe's dtype, as a learner makes it."""

    def make(recipe, n_labels=3, seed=0):
        dtype = DTYPES[recipe.backbone.dtype] if recipe.lora else torch.float32
        attention = recipe.backbone.attn_implementation
        base = load_base(recipe.backbone, recipe.quantization, dtype, CPU, attn_implementation=attention)
        model = build_model(base, recipe, n_labels)
        reset_model(model, recipe, seed)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def perturb():
    """`perturb(model, seed=0)`: noise on adapters and a wide head, so that everything shows in the logits."""

    def change(model, seed=0):
        generator = torch.Generator().manual_seed(seed)
        head = {id(parameter) for parameter in trainable_head(model).parameters()}
        with torch.no_grad():
            for parameter in trainable(model).values():
                scale = 0.5 if id(parameter) in head else 0.05
                parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
        return model

    return change


@pytest.fixture(scope="session")
def ask():
    """`ask(model, rows, side="right", pad_id=0)`: logits of one batch of token rows, in the base's precision."""

    def answer(model, rows, side="right", pad_id=0):
        ids, mask = (torch.from_numpy(array) for array in pad(rows, pad_id, side))
        bf16 = next(model.base.parameters()).dtype == torch.bfloat16
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return model(ids, mask).float().numpy()

    return answer


@pytest.fixture(scope="session")
def random_rows():
    """`random_rows(lengths, seed=0)`: token ids between 5 and 300."""

    def make(lengths, seed=0):
        rng = np.random.default_rng(seed)
        return [rng.integers(5, 300, size=n) for n in lengths]

    return make
