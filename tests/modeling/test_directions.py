"""A decoder with `is_causal: false` in its configuration reads both ways, in every attention and batch.

transformers (5.23) makes the mask by the configuration and hands `is_causal` to the attention; were that to change,
fused attention would read a text one way alone and both ways beside a longer one.
"""

import json
import shutil

import numpy as np
import pytest
import torch

from lora_cls.modeling.loading import load_base
from lora_cls.recipe import Backbone

CPU = torch.device("cpu")
STELLA = "NovaSearch/stella_en_1.5B_v5"


def hidden(folder, attention, ids, mask):
    base = load_base(Backbone(name_or_path=str(folder)), None, torch.float32, CPU, attn_implementation=attention)
    with torch.no_grad():
        return base(input_ids=ids, attention_mask=mask).last_hidden_state


@pytest.fixture(scope="module")
def batch():
    """A row of 9 tokens, alone and padded beside a longer one."""
    rng = np.random.default_rng(0)
    row = torch.from_numpy(rng.integers(5, 200, size=(1, 9)))
    both = torch.cat([torch.cat([row, torch.zeros(1, 4, dtype=torch.long)], 1), torch.randint(5, 200, (1, 13))])
    mask = torch.ones_like(both)
    mask[0, 9:] = 0
    return row, both, mask


def test_stella_reads_both_ways(tiny_model, batch):
    """Eager and fused attention, padded and not, agree; and the first token sees the last."""
    row, both, mask = batch
    found = {}
    for attention in ("eager", "sdpa"):
        found[attention] = hidden(tiny_model(STELLA), attention, row, torch.ones_like(row))
        found[f"{attention}, padded"] = hidden(tiny_model(STELLA), attention, both, mask)[:1, :9]
        changed = row.clone()
        changed[0, -1] += 1
        other = hidden(tiny_model(STELLA), attention, changed, torch.ones_like(row))
        assert (other[0, 0] - found[attention][0, 0]).abs().max() > 1e-3
    for values in found.values():
        torch.testing.assert_close(values, found["eager"], rtol=0, atol=1e-5)


def test_qwen_reads_one_way(tiny_model, batch):
    """Without the word in its configuration a Qwen 2 stays causal."""
    row, _, _ = batch
    changed = row.clone()
    changed[0, -1] += 1
    for attention in ("eager", "sdpa"):
        one, other = (
            hidden(tiny_model("Qwen/Qwen2.5-1.5B"), attention, ids, torch.ones_like(row)) for ids in (row, changed)
        )
        assert torch.equal(one[0, :-1], other[0, :-1])


def test_the_word_decides(tiny_model, batch, tmp_path):
    """The same weights with `is_causal: true` answer otherwise: it is the configuration that is honoured."""
    row, _, _ = batch
    folder = shutil.copytree(tiny_model(STELLA), tmp_path / "causal")
    config = json.loads((folder / "config.json").read_text())
    assert config["is_causal"] is False
    (folder / "config.json").write_text(json.dumps(config | {"is_causal": True}))
    both, one = (hidden(f, "sdpa", row, torch.ones_like(row)) for f in (tiny_model(STELLA), folder))
    assert (both[0, 0] - one[0, 0]).abs().max() > 1e-3
