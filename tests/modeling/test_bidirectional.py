"""`backbone.bidirectional`: decoders without their causal mask, in every attention, alone and padded."""

import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModel

from lora_cls.commands.cross_validation import cross_validate
from lora_cls.commands.export import export
from lora_cls.commands.predict import Classifier
from lora_cls.errors import BackboneError, RecipeError
from lora_cls.modeling import probe
from lora_cls.modeling.adapter import build_model
from lora_cls.modeling.loading import load_base
from lora_cls.modeling.prefix import Prefix
from lora_cls.modeling.prefix_cache import PrefixCache
from lora_cls.recipe import load_recipe
from lora_cls.runs import FoldFolder

CPU = torch.device("cpu")
SIZES = {
    "vocab_size": 400, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128, "initializer_range": 0.1, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 2}
HEADS = GROUPED | {"head_dim": 16}
SLIDING = {"sliding_window": 4, "layer_types": ["sliding_attention", "sliding_attention"]}
DECODERS = {
    "Llama": GROUPED,
    "Qwen2": GROUPED,
    "Qwen2, sliding": GROUPED | SLIDING | {"use_sliding_window": True},
    "Qwen3": HEADS,
    "Gemma": HEADS,
    "Gemma2": HEADS | {"query_pre_attn_scalar": 16},
    "Gemma2, sliding": HEADS | {"query_pre_attn_scalar": 16} | SLIDING,
    "Gemma3Text": HEADS | {"query_pre_attn_scalar": 16, "layer_types": ["full_attention"] * 2},
    "Gemma3Text, sliding": HEADS | {"query_pre_attn_scalar": 16} | SLIDING,
    "Mistral": GROUPED | {"sliding_window": None},
    "Mistral, sliding": GROUPED | {"sliding_window": 4},
    "Phi3": GROUPED,
    "GPTNeoX": {},
    "GPT2": {},
    "Olmo2": {},
    "Granite": GROUPED,
}


def config_of(kind):
    return getattr(transformers, f"{kind.partition(',')[0]}Config")(**SIZES | DECODERS.get(kind, {}))


def saved(kind, folder):
    """A random model of a kind in a folder, saved as the causal one that it is."""
    torch.manual_seed(0)
    AutoModel.from_config(config_of(kind)).save_pretrained(folder)
    return folder


def load(folder, attention="auto", **options):
    backbone = load_recipe({"backbone": {"name_or_path": str(folder), "bidirectional": True} | options}).backbone
    return load_base(backbone, None, torch.float32, CPU, attn_implementation=attention)


def hidden(base, ids, mask=None):
    mask = torch.ones_like(ids) if mask is None else mask
    with torch.no_grad():
        return base(input_ids=ids, attention_mask=mask).last_hidden_state


@pytest.mark.parametrize("kind", DECODERS)
def test_every_token_sees_those_behind_it(kind, tmp_path):
    """In eager and fused attention a later token changes an earlier one, within the window of each layer and not
    beyond; a row answers alone as it does padded on either side; and both kinds of attention agree."""
    folder = saved(kind, tmp_path)
    row = torch.randint(5, 400, (1, 12))
    both = torch.cat([torch.nn.functional.pad(row, (0, 5)), torch.randint(5, 400, (1, 17))])
    mask = torch.ones_like(both)
    mask[0, 12:] = 0
    found = {}
    for attention in ("eager",) if kind.startswith("Gemma2") else ("eager", "sdpa"):
        base = load(folder, attention)
        assert base.config._attn_implementation == attention
        found[attention] = hidden(base, row)
        found[f"{attention}, padded"] = hidden(base, both, mask)[:1, :12]
        # two layers of a window of 4: a token sees 8 (or 6, where the window is exclusive) on, and not 9
        reach = 6 if "sliding" in kind else 11
        for ids, at in ((row, 0), (both, 0)):
            real = mask if len(ids) > 1 else torch.ones_like(ids)
            before = hidden(base, ids, real)
            for far in {1, reach}:
                changed = ids.clone()
                changed[0, at + far] = (changed[0, at + far] + 7) % 395 + 5
                assert (hidden(base, changed, real)[0, at] - before[0, at]).abs().max() > 1e-4, (attention, far)
            if "sliding" in kind:
                changed = ids.clone()
                changed[0, at + 9] = (changed[0, at + 9] + 7) % 395 + 5
                assert (hidden(base, changed, real)[0, at] - before[0, at]).abs().max() < 1e-6, attention
            if len(ids) > 1:  # what stands in the padding is not read
                changed = ids.clone()
                changed[0, 12:] = 77
                assert (hidden(base, changed, real)[0, :12] - before[0, :12]).abs().max() < 1e-6, attention
    for values in found.values():
        torch.testing.assert_close(values, found["eager"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["Llama", "Gemma3Text, sliding", "Gemma2"])
def test_attention_stays_as_it_was(kind, tmp_path):
    """To try both kinds of attention leaves the model with its own."""
    before = AutoModel.from_pretrained(saved(kind, tmp_path)).config._attn_implementation
    base = load(tmp_path)
    assert base.config._attn_implementation == before
    with pytest.raises(AssertionError):
        torch.testing.assert_close(
            hidden(base, torch.arange(5, 15)[None]),
            hidden(AutoModel.from_pretrained(tmp_path), torch.arange(5, 15)[None]),
        )


@pytest.mark.parametrize("kind", ["bert", "roberta", "answerdotai/ModernBERT-base", "package:all-mpnet-base-v2"])
def test_encoders_are_refused(kind, tiny_model):
    """They read both ways already."""
    with pytest.raises(BackboneError, match=r"backbone\.bidirectional: .* reads both ways by itself.*remove the field"):
        load(tiny_model(kind))


@pytest.mark.parametrize(
    "config",
    [
        transformers.GPTNeoConfig(
            vocab_size=400, hidden_size=64, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
            max_position_embeddings=128, initializer_range=0.1, bos_token_id=1, eos_token_id=2,
        ),
        transformers.MambaConfig(vocab_size=400, hidden_size=64, num_hidden_layers=2, pad_token_id=0),
    ],
    ids=["GPT Neo, a mask of its own", "Mamba, no mask"],
)  # fmt: skip
def test_where_it_takes_no_effect(config, tmp_path):
    """Found by trying, not by name."""
    AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=r"backbone\.bidirectional: .* still reads one way .*take another model"):
        load(tmp_path)


@pytest.mark.parametrize("padded_only", [True, False])
def test_half_an_effect_is_refused(padded_only, tmp_path, monkeypatch):
    """A model that reads both ways in padded batches only, or alone only, would answer by the texts beside a text."""
    looks = probe.looks_ahead
    monkeypatch.setattr(probe, "looks_ahead", lambda base, n: looks(base, n) and (n > 0) == padded_only)
    with pytest.raises(BackboneError, match="still reads one way"):
        load(saved("Llama", tmp_path))


def test_recipes_that_are_refused():
    """What is written token after token needs the mask."""
    base = {"name_or_path": "x", "bidirectional": True}
    with pytest.raises(RecipeError, match=r"backbone\.bidirectional: head\.kind: generate"):
        load_recipe({"backbone": base, "head": {"kind": "generate"}})
    load_recipe({"backbone": base, "head": {"kind": "label_tokens"}})


def test_identity_knows_it():
    """A resume with another word is refused, as for all that a run follows from."""
    one, other = (
        load_recipe({"backbone": {"name_or_path": "x", "bidirectional": b}}).identity() for b in (False, True)
    )
    assert one != other


def test_hidden_states_are_kept_apart(tiny_recipe, tmp_path):
    """What the lower layers say both ways is never taken for what they say one way."""
    keys = set()
    for both_ways in (False, True):
        recipe = tiny_recipe("llama", backbone__bidirectional=both_ways, lora__top_layers=0.5)
        model = build_model(load_base(recipe.backbone, None, torch.float32, CPU), recipe, 3)
        ids = [np.arange(5, 15), np.arange(7, 12)]
        cache = PrefixCache(Prefix.find(model, ids), 8, 2**30, {}, tmp_path)
        cache._learn_base(ids)
        keys.add(cache._base_key)
    assert len(keys) == 2


RUNS = {
    "LoRA": ("llama", {"lora__top_layers": 0.5, "head__pooling": "mean"}),
    "LoRA, attention measured": ("gemma3", {"backbone__attn_implementation": "auto", "head__pooling": "mean"}),
    "4-bit": ("llama", {"quantization": {"load_in_4bit": True}}),
    "label_tokens": ("gemma3", {"head__kind": "label_tokens"}),
    "fewer layers": ("llama", {"backbone__num_hidden_layers": 1, "head__pooling": "mean"}),
    "full": ("qwen2", {"lora": None, "train__learning_rate": 1e-3, "head__pooling": "mean"}),
}


@pytest.mark.parametrize("case", RUNS)
def test_run(case, tiny_recipe, emotion_table, tmp_path, monkeypatch):
    """A run's snippet, plain PEFT or transformers, answers as the run did; so do `Classifier.load` and both exports,
    whose folders open both ways by themselves."""
    monkeypatch.setenv("LORA_CLS_CACHE", str(tmp_path / "cache"))
    kind, settings = RUNS[case]
    recipe = tiny_recipe(kind, backbone__bidirectional=True, train__num_train_epochs=1, **settings)
    train, texts = emotion_table(24), list(emotion_table(6, seed=3)["text"])
    run = cross_validate(recipe, train, out=tmp_path / "run", show=False)
    classifier = Classifier.load(run)
    expected = classifier._predictor.predict(run.fold(0), texts)
    card = (run.path / "README.md").read_text()
    assert "read both ways" in card
    np.testing.assert_allclose(opened(card, run.path, monkeypatch)(texts).numpy(), expected, rtol=0, atol=1e-4)
    if recipe.lora is not None:
        readme = (run.fold(0).adapter / "README.md").read_text()
        assert "backbone.bidirectional: true" in readme
        assert "\nbase.config.get_text_config().is_causal = False\n" in readme
    causal = Classifier.load(run)
    causal._predictor.session.model().base.config.get_text_config().is_causal = True
    assert np.abs(causal._predictor.predict(run.fold(0), texts) - expected).max() > 1e-4
    for to in ("merged",) if recipe.lora is None else ("adapter", "merged"):
        shipped = export(run, tmp_path / to, to=to)
        answered = Classifier.load(shipped)._predictor.predict(FoldFolder(shipped.path), texts)
        code = (shipped.path / "README.md").read_text()
        np.testing.assert_allclose(opened(code, shipped.path, monkeypatch)(texts).numpy(), answered, rtol=0, atol=1e-4)
        if to == "merged":
            assert json.loads((shipped.path / "model" / "config.json").read_text())["is_causal"] is False
            plain = AutoModel.from_pretrained(shipped.path / "model", dtype=torch.float32)
            ids = torch.arange(5, 13)[None]
            changed = ids.clone()
            changed[0, -1] = 99
            assert (hidden(plain, ids)[0, 0] - hidden(plain, changed)[0, 0]).abs().max() > 1e-4


def opened(card, folder, monkeypatch):
    """`logits` of the snippet of a card, run in its folder."""
    monkeypatch.chdir(folder)
    file = Path(folder) / "snippet_of_test.py"
    file.write_text(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1])
    try:
        return runpy.run_path(str(file))["logits"]
    finally:
        file.unlink()
