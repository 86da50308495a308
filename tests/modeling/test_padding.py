"""Padding never changes an answer: any side, any batch, any token id."""

import numpy as np
import pytest
import torch

from lora_cls.modeling.classifier import pool
from lora_cls.modeling.loading import load_tokenizer
from lora_cls.recipe import Data
from lora_cls.text.tokens import encode, pad, pad_token_id

TEXTS = [
    "happy",
    "angry furious dog house morning letter friend week ticket garden window we they you it was is had came saw",
    "we were scared today about the train",
    "the house",
]
TOLERANCE = 1e-5  # fp32; logits are of size 1


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama", "gemma3", "qwen2", "gpt2"])
@pytest.mark.parametrize("pooling", ["last_token", "mean", "cls"])
def test_padding_side_and_batch_do_not_matter(kind, pooling, tiny_recipe, build, perturb, ask, record_property):
    """A row's logits are the same alone and beside longer rows, padded on the right or, with rotary positions, left."""
    recipe = tiny_recipe(kind, head__pooling=pooling)
    model, tokenizer = perturb(build(recipe)), load_tokenizer(recipe.backbone)
    rows, pad_id = encode(tokenizer, TEXTS, Data(max_length=48)).ids, pad_token_id(tokenizer)
    assert max(map(len, rows)) > 2 * min(map(len, rows))
    alone = np.concatenate([ask(model, [row]) for row in rows])
    if pooling != "cls":  # a decoder's first token is the same for all texts
        assert np.abs(alone[0] - alone[3]).max() > 1e-2
    for side in ("right", "left") if kind in ("llama", "gemma3", "qwen2") else ("right",):
        together = ask(model, rows, side, pad_id)
        record_property(f"largest logit difference, {kind}, {side}", float(np.abs(together - alone).max()))
        np.testing.assert_allclose(together, alone, atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_eos_inside_a_text(kind, tiny_recipe, build, perturb, ask):
    """A text that spells out the eos token, which is also the padding, is read to its last token."""
    recipe = tiny_recipe(kind)
    model, tokenizer = perturb(build(recipe)), load_tokenizer(recipe.backbone)
    pad_id = pad_token_id(tokenizer)
    assert pad_id == tokenizer.eos_token_id
    texts = [f"happy {tokenizer.eos_token} the dog was angry", "the " * 20]
    rows = encode(tokenizer, texts, Data(max_length=48)).ids
    assert pad_id in rows[0][1:-1] and len(rows[1]) > len(rows[0])
    together = ask(model, rows, "right", pad_id)
    with torch.no_grad():
        ids, mask = (torch.from_numpy(array) for array in pad(rows[:1], pad_id))
        hidden = model.base(input_ids=ids, attention_mask=mask).last_hidden_state
        at_end, at_eos = (model.base.score(hidden[:, i]).numpy() for i in (-1, list(rows[0]).index(pad_id) - 1))
    np.testing.assert_allclose(together[:1], at_end, atol=TOLERANCE)
    assert np.abs(together[0] - at_eos).max() > 0.1


def test_pool_by_hand():
    """Every pooling, on both padding sides and for a full row, against numbers computed by hand."""
    hidden = torch.arange(24, dtype=torch.float32).reshape(3, 4, 2)
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]])
    assert pool(hidden, mask, "last_token").tolist() == [[2, 3], [14, 15], [22, 23]]
    assert pool(hidden, mask, "cls").tolist() == [[0, 1], [12, 13], [16, 17]]
    assert pool(hidden, mask, "mean").tolist() == [[1, 2], [13, 14], [19, 20]]


@pytest.mark.parametrize("pooling", ["last_token", "mean", "cls"])
def test_pool_of_half_precision_is_fp32(pooling):
    """The mean of many bf16 vectors is taken in fp32: 1 + 1/256 would be lost in bf16."""
    hidden = torch.ones(1, 256, 1, dtype=torch.bfloat16)
    hidden[0, 0, 0] = 2.0
    pooled = pool(hidden, torch.ones(1, 256, dtype=torch.int64), pooling)
    assert pooled.dtype == torch.float32
    assert pooled.item() == {"last_token": 1.0, "mean": 1 + 1 / 256, "cls": 2.0}[pooling]


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_empty_text(kind, tiny_recipe, build, perturb, ask):
    """A text without a single token, alone or beside others, gets a finite answer that padding does not change."""
    recipe = tiny_recipe(kind)
    model, tokenizer = perturb(build(recipe)), load_tokenizer(recipe.backbone)
    tokens = encode(tokenizer, ["", "the house"], Data(max_length=48))
    assert min(tokens.lengths) >= 1
    alone = ask(model, tokens.ids[:1])
    assert np.isfinite(alone).all()
    np.testing.assert_allclose(ask(model, tokens.ids, pad_id=pad_token_id(tokenizer))[:1], alone, atol=TOLERANCE)


def test_truncation_keeps_the_closing_token(tiny_model):
    """A text that is too long loses its words, not its closing special token; exactly these rows are marked."""
    from lora_cls.recipe import Backbone

    tokenizer = load_tokenizer(Backbone(name_or_path=tiny_model("bert")))
    tokens = encode(tokenizer, ["happy dog " * 20, "happy dog", "dog " * 8, "dog " * 9], Data(max_length=10))
    assert tokens.lengths.tolist() == [10, 4, 10, 10]
    assert tokens.truncated.tolist() == [True, False, False, True]
    assert [row[-1] for row in tokens.ids] == [tokenizer.sep_token_id] * 4
    assert tokens.take([3, 1]).truncated.tolist() == [True, False]
