"""Chat templates are programs of the model's authors: whatever they do, asking through one ends soon, in a sentence."""

import sys
import time

import pytest

from lora_cls.errors import BackboneError
from lora_cls.modeling.loading import load_tokenizer
from lora_cls.recipe import Backbone
from lora_cls.text import chat
from lora_cls.text.chat import render_chat

LOOP = "{% for i in range(99999) %}"
END = "{% endfor %}"
BAD = {
    "loops without end": (LOOP * 5 + END * 5, "does not end within"),
    "loops that write": (LOOP * 5 + "x" + END * 5, "does not end within|MiB of memory"),
    "text that doubles": (
        "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s }}",
        "does not end within|MiB of memory",
    ),
    "huge text": ("{{ 'x' * 3000000 }}{{ messages[0]['content'] }}", "writes 3000"),
    "huge template": ("{# " + "x" * 300_000 + " #}{{ messages[0]['content'] }}", "300"),
    "raises": ("{{ raise_exception('System role not supported') }}", "System role not supported"),
    "no template": ("{% for m in messages %}", "endfor"),
    "unknown name": ("{{ messages[0].content.nothing.at_all }}", "nothing"),
    "no filter": ("{{ messages | no_such_filter }}", "no_such_filter"),
    "divides by zero": ("{{ 1 / 0 }}", "zero"),
    "range too long": ("{% for i in range(10 ** 12) %}x{% endfor %}", "[Rr]ange"),
}


@pytest.mark.parametrize("case", BAD)
def test_templates_that_fail(case, tiny_model, monkeypatch):
    """Refused within seconds, naming what the template did and what to take instead."""
    monkeypatch.setattr(chat, "MOST_SECONDS", 1)
    tokenizer = load_tokenizer(Backbone(name_or_path=tiny_model("chat")))
    tokenizer.chat_template, said = BAD[case]
    started, tracing = time.monotonic(), sys.gettrace()
    with pytest.raises(BackboneError, match=rf"its chat template cannot be used: .*({said}).*label_tokens") as caught:
        render_chat(tokenizer, None, ["joy", "anger"], "none", exclusive=False)
    assert time.monotonic() - started < 20
    assert len(str(caught.value)) < 2000
    assert sys.gettrace() is tracing


def test_a_prompt_may_be_long(tiny_model):
    """What the user says is not held against the template."""
    tokenizer = load_tokenizer(Backbone(name_or_path=tiny_model("chat")))
    found = render_chat(tokenizer, "x" * 300_000 + "{text}", ["joy"], "none", exclusive=False)
    assert len(found.before) > 300_000
