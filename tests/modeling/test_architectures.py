"""Architectures beyond those of `tiny_model`: random models of the real classes train, and padding does not matter."""

import pytest
import torch
from transformers import (
    AutoModel,
    DebertaV2Config,
    DistilBertConfig,
    Gemma2Config,
    LongformerConfig,
    ModernBertConfig,
    Qwen3Config,
    SqueezeBertConfig,
)

from lora_cls.modeling.adapter import build_model, reset_model
from lora_cls.modeling.classifier import takes_global_attention
from lora_cls.recipe import load_recipe

SIZES = {
    "vocab_size": 400, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128,
}  # fmt: skip
GROUPS = dict.fromkeys(("q_groups", "k_groups", "v_groups", "intermediate_groups", "output_groups"), 4)
CONFIGS = {
    "distilbert": DistilBertConfig(vocab_size=400, dim=64, hidden_dim=128, n_layers=2, n_heads=4),
    "squeezebert": SqueezeBertConfig(**SIZES, **GROUPS, embedding_size=64, post_attention_groups=1),
    "longformer": LongformerConfig(
        **SIZES | {"max_position_embeddings": 130}, attention_window=[16, 16], pad_token_id=1
    ),
    "deberta": DebertaV2Config(
        **SIZES, relative_attention=True, position_buckets=32, pos_att_type=["p2c", "c2p"], norm_rel_ebd="layer_norm",
        share_att_key=True, position_biased_input=False, type_vocab_size=0,
    ),
    "modernbert": ModernBertConfig(
        **SIZES, local_attention=16, global_attn_every_n_layers=2, pad_token_id=0, bos_token_id=2, eos_token_id=3,
        cls_token_id=2, sep_token_id=3,
    ),
    "gemma2": Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=16, sliding_window=8),
    "qwen3": Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=16),
}  # fmt: skip


@pytest.mark.parametrize("lora", [{"r": 4}, None], ids=["LoRA", "full"])
@pytest.mark.parametrize("name", CONFIGS)
def test_trains_and_pads(name, lora, losses_of_steps):
    """LoRA on all linear layers and full fine-tuning lower the loss; a row answers alone as it does padded."""
    torch.manual_seed(0)
    pooling = "last_token" if name in ("gemma2", "qwen3") else "mean"
    recipe = load_recipe({"backbone": {"name_or_path": "x"}, "head": {"pooling": pooling}, "lora": lora})
    model = build_model(AutoModel.from_config(CONFIGS[name]).requires_grad_(False), recipe, 3).eval()
    reset_model(model, recipe, 0)
    ids, mask = torch.randint(5, 300, (3, 20)), torch.ones(3, 20, dtype=torch.long)
    mask[1, 12:] = 0
    mask[2, 7:] = 0
    targets = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    trained = [p for n, p in model.named_parameters() if p.requires_grad and "score" not in n]  # not the head alone
    losses = losses_of_steps(lambda: model(ids, mask), targets, trained)
    assert losses[-1] < losses[0] - 1e-3
    with torch.no_grad():
        padded = model(ids, mask)
        alone = [model(ids[i : i + 1, : int(n)], mask[i : i + 1, : int(n)]) for i, n in enumerate(mask.sum(1))]
    torch.testing.assert_close(torch.cat(alone), padded, rtol=0, atol=1e-5)


def test_longformer_reads_beyond_its_window():
    """Its first real token attends to all others: with one layer and a window of 16, token 60 changes the answer.

    On the left of it padding, on the right none, or the other way round: the first real token, not the first position.
    """
    torch.manual_seed(0)
    config = LongformerConfig(
        **SIZES | {"max_position_embeddings": 130, "num_hidden_layers": 1}, attention_window=[16], pad_token_id=1,
        initializer_range=0.2,
    )  # fmt: skip
    recipe = load_recipe({"backbone": {"name_or_path": "x"}, "head": {"pooling": "cls"}, "lora": {"r": 4}})
    model = build_model(AutoModel.from_config(config).requires_grad_(False), recipe, 3).eval()
    reset_model(model, recipe, 0)
    ids = torch.randint(5, 300, (1, 64))
    other = ids.clone()
    other[0, 60] = 301

    def change():
        with torch.no_grad():
            mask = torch.ones_like(ids)
            right = (model(ids, mask) - model(other, mask)).abs().max()
            pads = torch.ones(1, 8, dtype=torch.long)
            padded = [torch.cat([pads, row], 1) for row in (ids, other)]
            mask = torch.cat([pads * 0, mask], 1)
            return right, (model(padded[0], mask) - model(padded[1], mask)).abs().max()

    assert model.global_first and min(change()) > 1e-3
    model.global_first = False
    assert max(change()) == 0


def test_only_longformer_takes_global_attention():
    """The other architectures have no such argument, and are not given it."""
    assert [n for n in CONFIGS if takes_global_attention(AutoModel.from_config(CONFIGS[n]))] == ["longformer"]
