"""The question that an instruction-tuned decoder reads: a prompt inside the tokenizer's own chat template."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import psutil

from lora_cls.errors import BackboneError, brief
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
# Of a chat template: real ones are some 20,000 characters, write some 2,000, and take a few milliseconds
MOST_CHARACTERS, MOST_SECONDS, MOST_BYTES = 200_000, 5, 256 * 2**20


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
    try:
        with _Bounded(tokenizer.chat_template):
            asked = str(tokenizer.apply_chat_template([question], add_generation_prompt=True, **options))
            said = [question, {"role": "assistant", "content": ANSWER}]
            answered = str(tokenizer.apply_chat_template(said, **options))
        if len(asked) - len(before + after) > MOST_CHARACTERS:
            raise ValueError(f"it writes {len(asked)} characters")
    except Exception as error:  # it is a program of the model's authors, and raises what it likes
        raise BackboneError(
            f"{tokenizer.name_or_path}: its chat template cannot be used: {brief(error)}. Mend chat_template in the "
            "tokenizer's files (chat_template.jinja, tokenizer_config.json), or use head.kind: label_tokens."
        ) from error
    if asked.count(TEXT) != 1 or answered.count(ANSWER) != 1:
        raise BackboneError(
            f"{tokenizer.name_or_path}: its chat template changes or repeats what a message says. "
            "Use head.kind: label_tokens."
        )
    before, _, after = asked.partition(TEXT)
    return Chat(before, after, _end(tokenizer, answered.partition(ANSWER)[2]))


class _Bounded:
    """Ends what runs within it after a few seconds, or once the process has grown much.

    A template is a program, and a few lines of loops within loops never end. Nothing stops a thread from outside on
    every system; the tracing that debuggers use asks before each line of it.
    """

    def __init__(self, template: Any) -> None:
        if len(str(template)) > MOST_CHARACTERS:
            raise ValueError(f"it is {len(str(template))} characters long")

    def __enter__(self) -> None:
        process, self._before = psutil.Process(), sys.gettrace()
        end, most = time.monotonic() + MOST_SECONDS, process.memory_info().rss + MOST_BYTES

        def ask(frame: FrameType, event: str, _: Any) -> Any:
            if time.monotonic() > end:
                raise TimeoutError(f"it does not end within {MOST_SECONDS} seconds")
            if frame.f_code.co_filename == "<template>" and process.memory_info().rss > most:
                raise ValueError(f"it takes more than {MOST_BYTES // 2**20} MiB of memory")
            return ask

        sys.settrace(ask)

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)


def _end(tokenizer: Any, rest: str) -> str:
    """The special token behind an assistant's message in the template, or the tokenizer's own end."""
    special = set(tokenizer.all_special_ids)
    found = next((i for i in plain_ids(tokenizer, rest) if i in special), tokenizer.eos_token_id)
    if found is None:
        raise BackboneError(f"{tokenizer.name_or_path}: neither its chat template nor its tokenizer ends an answer.")
    return str(tokenizer.convert_ids_to_tokens(int(found)))
