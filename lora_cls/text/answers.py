"""How labels are written as an answer, read back from one, and scored by the probabilities of its tokens."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from lora_cls.errors import RecipeError
from lora_cls.evaluation import task_of
from lora_cls.recipe import Recipe
from lora_cls.text.chat import Chat, render_chat
from lora_cls.text.prompts import label_words

NONE_WORDS = ("none", "no label", "nothing")
NEAR = 0.85  # similarity from which a misspelt label is still that label
Context = tuple[int, ...]


def none_word(words: Sequence[str]) -> str:
    """The word for no label: `none`, unless a label is called so."""
    taken = {_plain(word) for word in words}
    return next(word for word in (*NONE_WORDS, "none of the labels") if word not in taken)


def answer_format(
    tokenizer: Any, recipe: Recipe, label_names: Sequence[str], chat: Chat | None = None
) -> tuple[Chat, LabelAnswers]:
    """How a recipe with `head.kind: generate` asks and is answered.

    Parameters
    ----------
    chat : as it was when a run was started; rendered from the tokenizer's template where None
    """
    words, exclusive = label_words(recipe.head, label_names), task_of(recipe.task).exclusive
    chat = chat or render_chat(tokenizer, recipe.head.prompt, words, none_word(words), exclusive)
    return chat, LabelAnswers(tokenizer, words, chat.end_id(tokenizer), exclusive)


class LabelAnswers:
    """Answers with one label per line in a fixed order, or `none`, and then the end of the turn.

    Parameters
    ----------
    tokenizer : that of the model which answers
    words : of the labels, in order
    end_id : the token that ends an answer
    exclusive : exactly one label per answer, and no `none`

    Every line is tokenised by itself and the token ids are joined, so that what follows a label never changes the
    label's own tokens, and the state after it is the same whether the model wrote it or we did.

    Raises
    ------
    RecipeError
        If the lines of two labels are the same tokens, or the one begins with the other.
    """

    def __init__(self, tokenizer: Any, words: Sequence[str], end_id: int, exclusive: bool = False) -> None:
        self.words, self.end_id, self.exclusive = list(words), end_id, exclusive
        self.none = none_word(words)
        lines = [*self.words] if exclusive else [*self.words, self.none]
        self.lines: list[Context] = [
            tuple(tokenizer(f"{line}\n", add_special_tokens=False, split_special_tokens=True)["input_ids"])
            for line in lines
        ]
        for i, line in enumerate(self.lines):
            for j, other in enumerate(self.lines):
                if i != j and line == other[: len(line)]:
                    raise RecipeError(
                        f"Labels {lines[i]!r} and {lines[j]!r} are written with the same tokens: a model cannot tell "
                        "them apart. Give one of them other words with head.label_words."
                    )
        # tokens until a line differs from all others
        self.depths = [
            1 + max((_common(line, other) for j, other in enumerate(self.lines) if j != i), default=0)
            for i, line in enumerate(self.lines)
        ]
        used = {line[d] for line, depth in zip(self.lines, self.depths, strict=True) for d in range(depth)}
        self.columns = np.array(sorted(used | {end_id}), dtype=np.int64)
        """Ids of the tokens whose probabilities decide between answers."""
        self._at = {int(token): i for i, token in enumerate(self.columns)}
        self._known = {_plain(word): j for j, word in enumerate(self.words)}
        if len(self._known) < len(self.words) or "" in self._known:
            raise RecipeError(
                "Two labels have the same words but for case or marks, or one has marks only. Tell them apart with "
                "head.label_words."
            )

    @property
    def n_labels(self) -> int:
        return len(self.words)

    @property
    def longest(self) -> int:
        """Tokens of the longest possible answer, its end included."""
        lengths = [len(line) for line in self.lines]
        several = 0 if self.exclusive else sum(lengths[: self.n_labels])
        return max(several, *lengths) + 1

    def ids(self, path: Sequence[int], end: bool = True) -> Context:
        """Token ids of the answer that names the labels of `path` (ascending); `none` where there is none."""
        lines = [self.lines[j] for j in path] or ([] if self.exclusive else [self.lines[-1]])
        return (*(token for line in lines for token in line), *([self.end_id] if end else []))

    def parse(self, answer: str) -> list[int] | None:
        """The labels that an answer names, in order; None if it names none and does not say so either.

        Case, marks, bullets, numbers before a label, the order and repetitions do not matter; labels may stand on
        lines or be separated by commas, semicolons, slashes or "and"; a misspelling is forgiven where it is near
        to one label and to no other. A sentence is not searched for labels: "not anger" is not anger.
        """
        found: list[int] = []
        said_none = False
        for part in self._parts(answer):
            if part in self._known:
                found.append(self._known[part])
            elif part in (*NONE_WORDS, self.none, "no labels", "none of them", "n a"):
                said_none = True
            else:
                near = self._nearest(part)
                found += [] if near is None else [near]
        if self.exclusive:
            return found[:1] or None
        return sorted(set(found)) if found or said_none else None

    def _parts(self, answer: str) -> Iterator[str]:
        """Normalised pieces of an answer, the largest that are a label's words."""
        for line in re.split(r"[\n\r]+", answer):
            line = re.sub(r"^\s*(\d+\s*[.):]|[-*•·])\s+", "", line)
            for piece in [line] if _plain(line) in self._known else re.split(r"[,;/|&]", line):
                piece = piece if _plain(piece) in self._known else piece.rpartition(":")[2]  # "Labels: joy"
                for word in [piece] if _plain(piece) in self._known else re.split(r"\band\b", piece, flags=re.I):
                    if _plain(word):
                        yield _plain(word)

    def _nearest(self, part: str) -> int | None:
        digits = re.findall(r"\d+", part)
        ratios = sorted(
            (
                (SequenceMatcher(None, part, word).ratio(), j)
                for word, j in self._known.items()
                if re.findall(r"\d+", word) == digits  # "class 3" is no misspelling of "class 2"
            ),
            reverse=True,
        )
        if not ratios or ratios[0][0] < NEAR or (len(ratios) > 1 and ratios[1][0] == ratios[0][0]):
            return None
        return ratios[0][1]

    def states(self, path: Sequence[int]) -> list[tuple[Context, range]]:
        """Where decisions are made along a path.

        Returns
        -------
        list of (context, candidates)
            `context`: token ids of the answer so far. `candidates`: the labels that could be next.
        """
        if self.exclusive:
            return [((), range(self.n_labels))]
        starts = [0, *(j + 1 for j in path)]
        return [
            (self.ids(path[:i], end=False) if i else (), range(start, self.n_labels)) for i, start in enumerate(starts)
        ]

    def contexts(self, path: Sequence[int]) -> list[Context]:
        """All points of an answer at which the next token's probabilities are needed to score `path`: each state,
        and where candidates begin with the same tokens, the points within them up to which they agree."""
        needed: set[Context] = set()
        for context, candidates in self.states(path):
            lines = [*candidates, *([self.n_labels] if not self.exclusive and not context else [])]
            needed.add(context)
            needed |= {(*context, *self.lines[j][:d]) for j in lines for d in range(1, self.depths[j])}
        return sorted(needed)

    def scores(self, path: Sequence[int], log_proba: Mapping[Context, np.ndarray]) -> np.ndarray:
        """Logits of all labels along a path.

        At a state, label j is compared with being skipped: P(j) / (P(j) + P(a later label) + P(the end)), where the
        end at the first state is `none`. Every label is compared at the state in which it was written or passed over;
        so the probabilities of all sets of labels sum to 1. `exclusive`: log-probabilities of the labels among
        themselves.

        Parameters
        ----------
        log_proba : log-probabilities of the tokens `columns` at each of `contexts(path)`

        Returns
        -------
        ndarray of shape (n_labels,), float32
        """
        logits = np.empty(self.n_labels)
        for context, candidates in self.states(path):
            labels = [self._log_proba(j, context, log_proba) for j in candidates]
            if self.exclusive:
                return np.asarray(labels - np.logaddexp.reduce(labels), dtype=np.float32)
            rest = float(log_proba[context][self._at[self.end_id]])
            if not context:  # an answer that ends at once names no label either
                rest = float(np.logaddexp(rest, self._log_proba(self.n_labels, context, log_proba)))
            for j, value in zip(reversed(candidates), reversed(labels), strict=True):
                logits[j] = value - rest  # those after the label written here are compared again at the next state
                rest = float(np.logaddexp(rest, value))
        return logits.astype(np.float32)

    def _log_proba(self, line: int, context: Context, log_proba: Mapping[Context, np.ndarray]) -> float:
        """Of a line, until it is unlike all others."""
        tokens = self.lines[line]
        return sum(float(log_proba[context + tokens[:d]][self._at[tokens[d]]]) for d in range(self.depths[line]))


def _plain(text: str) -> str:
    """Lower case, letters and digits only, single spaces."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in folded).split())


def _common(a: Context, b: Context) -> int:
    """Length of the common start."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
