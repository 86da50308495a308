"""The prompt of a recipe's head, and the words that it calls the labels by."""

from __future__ import annotations

from collections.abc import Sequence

from lora_cls.errors import RecipeError, did_you_mean, shorten
from lora_cls.recipe import Head


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
    prompt = head.prompt or head.default_prompt
    # only {labels} is filled: other braces are text
    return prompt and prompt.replace("{labels}", ", ".join(label_words(head, label_names)))
