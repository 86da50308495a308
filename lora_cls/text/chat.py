"""The question that an instruction-tuned decoder reads: a prompt inside the tokenizer's own chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lora_cls.errors import BackboneError
from lora_cls.text.tokens import Frame, plain_ids

SEVERAL = """Which of these labels apply to the text? {labels}
Write every label that applies on a line of its own, in this order; if there is none, write: {none}

Text:
{text}"""
ONE = """Which one of these labels applies to the text? {labels}
Write nothing but the label.

Text:
{text}"""
TEXT, ANSWER = "[[lora-cls text]]", "[[lora-cls answer]]"  # stand-ins while the template is rendered


@dataclass(frozen=True)
class Chat:
    """What stands around a text, the model's answer being next; and the token that ends an answer.

    Attributes
    ----------
    before, after : the rendered template on both sides of the text
    end : the special token that ends an assistant's turn
    """

    before: str
    after: str
    end: str

    def frame(self, tokenizer: Any) -> Frame:
        """The tokens around a text. The template spells out every special token, also the first."""
        before = self.before.rstrip(" ")
        return Frame(plain_ids(tokenizer, before), plain_ids(tokenizer, self.after), self.before[len(before) :])

    def end_id(self, tokenizer: Any) -> int:
        return int(tokenizer.convert_tokens_to_ids(self.end))


def render_chat(tokenizer: Any, prompt: str | None, words: Sequence[str], none: str, exclusive: bool) -> Chat:
    """Put the prompt into the tokenizer's chat template, as a user's message.

    Parameters
    ----------
    prompt : with `{text}`, and `{labels}` and `{none}` where they are to be named; None takes the default
    words : of the labels, in order
    none : word for no label
    exclusive : exactly one label per text

    Raises
    ------
    BackboneError
        If the tokenizer has no chat template, if its template changes the message, or if no token ends an answer.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise BackboneError(
            f"{tokenizer.name_or_path}: its tokenizer has no chat template, which head.kind: generate asks through. "
            "Take an instruction-tuned model (its name often ends in -Instruct or -it), or head.kind: label_tokens, "
            "which reads a prompt with any decoder."
        )
    before, _, after = (prompt or (ONE if exclusive else SEVERAL)).partition("{text}")
    before, after = (part.replace("{labels}", ", ".join(words)).replace("{none}", none) for part in (before, after))
    question = {"role": "user", "content": before + TEXT + after}
    # Qwen 3 would think aloud first; templates that do not know the word pass it over
    options = {"tokenize": False, "enable_thinking": False}
    asked = tokenizer.apply_chat_template([question], add_generation_prompt=True, **options)
    answered = tokenizer.apply_chat_template([question, {"role": "assistant", "content": ANSWER}], **options)
    if asked.count(TEXT) != 1 or answered.count(ANSWER) != 1:
        raise BackboneError(
            f"{tokenizer.name_or_path}: its chat template changes or repeats what a message says. "
            "Use head.kind: label_tokens."
        )
    before, _, after = asked.partition(TEXT)
    return Chat(before, after, _end(tokenizer, answered.partition(ANSWER)[2]))


def _end(tokenizer: Any, rest: str) -> str:
    """The special token behind an assistant's message in the template, or the tokenizer's own end."""
    special = set(tokenizer.all_special_ids)
    found = next((i for i in plain_ids(tokenizer, rest) if i in special), tokenizer.eos_token_id)
    if found is None:
        raise BackboneError(f"{tokenizer.name_or_path}: neither its chat template nor its tokenizer ends an answer.")
    return str(tokenizer.convert_ids_to_tokens(int(found)))
