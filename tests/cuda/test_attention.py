"""The kinds of attention say the same, whatever stands beside a text in its batch."""

import numpy as np
import pytest
import torch

from lora_cls.errors import BackboneError
from lora_cls.modeling.precision import faster_attention, no_flash_attention
from lora_cls.training.factory import make_learner

LENGTHS = (3, 40, 17, 9)


@pytest.fixture
def logits(tiny_recipe, needs):
    """Function `logits(kind, attention, dtype)`: of four texts of different length, in one batch and one by one."""
    from lora_cls.text.tokens import pad

    def ask(kind, attention, dtype):
        recipe = tiny_recipe(kind, backbone__attn_implementation=attention, backbone__dtype=dtype)
        needs(recipe)
        session = make_learner(recipe, ["joy", "anger", "fear"]).session
        model = session.fresh_model(0).eval()
        assert next(model.base.parameters()).device.type == session.device.type
        rng = np.random.default_rng(0)
        rows = [rng.integers(5, 300, size=n) for n in LENGTHS]
        batches = [rows, *([row] for row in rows)]
        found = []
        with torch.no_grad():
            for batch in batches:
                ids, mask = (torch.from_numpy(part) for part in pad(batch, session.head.pad_id))
                found.append(model(ids, mask).float().cpu().numpy())
        return found[0], np.concatenate(found[1:])

    return ask


def apart(found, expected):
    """The greatest difference, as a share of the greatest value."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("kind", ["bert", "llama", "gemma3", "gpt2"])
@pytest.mark.parametrize(
    ("attention", "dtype", "bound"),
    [("sdpa", "float32", 1e-4), ("sdpa", "bfloat16", 0.1), ("flash_attention_2", "bfloat16", 0.1),
     ("flash_attention_2", "float16", 0.05)],
)  # fmt: skip
def test_all_kinds_say_the_same(kind, attention, dtype, bound, logits):
    """As eager attention in fp32 does on the same device; and a text in a batch as a text alone."""
    _, expected = logits(kind, "eager", "float32")
    together, alone = logits(kind, attention, dtype)
    assert apart(alone, expected) <= bound
    assert apart(together, expected) <= bound


def test_the_faster_one_is_chosen(tiny_recipe):
    """Both kinds are timed by training steps on the device; no gradient is left behind."""
    session = make_learner(tiny_recipe("llama"), ["joy", "anger", "fear"]).session
    model = session.fresh_model(0)
    ids = torch.arange(5, 85).reshape(4, 20)
    assert faster_attention(model, ids, torch.ones_like(ids)) in ("sdpa", "eager")
    assert all(parameter.grad is None for parameter in model.parameters())


def test_flash_attention_needs_16_bits(tiny_recipe, device):
    """In fp32 it is refused in a sentence, before any model is loaded."""
    assert no_flash_attention(device, torch.float32) is not None
    recipe = tiny_recipe("llama", backbone__attn_implementation="flash_attention_2")
    with pytest.raises(BackboneError, match="flash_attention_2 cannot be taken here"):
        make_learner(recipe, ["joy"])


@pytest.mark.parametrize("kind", ["bert", "gpt2", "roberta"])
def test_too_few_positions(kind, tiny_recipe, device):
    """A `data.max_length` beyond the model's positions is refused by its number, and the device still computes.

    Unchecked, a GPU ends every later call of the process with "device-side assert triggered".
    """
    with pytest.raises(BackboneError, match=r"data\.max_length is 300, but the model has 128 positions"):
        make_learner(tiny_recipe(kind, data__max_length=300), ["joy"]).session.model()
    assert float(torch.ones(3, device=device).sum()) == 3
