"""What a recipe's head puts around a text: the tokenizer's special tokens, or a prompt that may name the labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lora_cls.errors import RecipeError, did_you_mean, shorten
from lora_cls.recipe import Head
from lora_cls.text.tokens import Frame, prompt_frame, special_frame

DEFAULT_PROMPT = "Text: {text}\nLabel:"  # naming the labels before made their scores worse: they are copied


def label_words(head: Head, label_names: Sequence[str]) -> list[str]:
    """What each label is called: the words given, or its name with spaces for `_` and `-`.

    Raises
    ------
    RecipeError
        If words are given for a label that there is none of, or a label would have none.
    """
    given = head.label_words or {}
    unknown = sorted(set(given) - set(label_names))
    problems = [
        f"no label '{name}'.{did_you_mean(name, label_names)} Labels: {shorten(label_names)}." for name in unknown
    ]
    words = [" ".join(given.get(name, name).replace("_", " ").replace("-", " ").split()) for name in label_names]
    problems += [
        f"label '{name}' needs words of its own." for name, word in zip(label_names, words, strict=True) if not word
    ]
    if problems:
        raise RecipeError(f"head.label_words: {' '.join(problems)}")
    return words


def head_prompt(head: Head, label_names: Sequence[str]) -> str | None:
    """The prompt around each text, labels filled in; None where the text stands alone."""
    prompt = head.prompt or (DEFAULT_PROMPT if head.kind == "label_tokens" else None)
    # only {labels} is filled: other braces are text
    return prompt and prompt.replace("{labels}", ", ".join(label_words(head, label_names)))


def recipe_frame(tokenizer: Any, head: Head, label_names: Sequence[str]) -> Frame:
    """The token ids around every text: of the head's prompt, or the special tokens alone."""
    prompt = head_prompt(head, label_names)
    if prompt is None:
        return special_frame(tokenizer)
    return prompt_frame(tokenizer, prompt, closed=head.kind == "linear")
