"""Why this answer: how much each word of a text speaks for each label, by taking it out (occlusion).

Zeiler and Fergus 2014, "Visualizing and Understanding Convolutional Networks", ECCV; of words in texts: Li, Monroe and
Jurafsky 2016, "Understanding Neural Networks through Representation Erasure", arXiv 1612.08220. It asks the models as
`predict` does, and works for every kind of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import pandas as pd

from lora_cls.evaluation import Task

MOST_PARTS = 200
AT_ONCE = 50  # texts; of 64 and more the lower layers' part would be kept on disk, for texts that nobody asks again
_WRITTEN_WITHOUT_SPACES = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{_WRITTEN_WITHOUT_SPACES}]|[^\s{_WRITTEN_WITHOUT_SPACES}]+")


@dataclass(frozen=True, eq=False)
class Explanation:
    """How much each word of a text speaks for each label.

    Attributes
    ----------
    text : as the models read it
    words : list of str, length n_words; where there are too many, neighbours together
    spans : list of (start, end), where each stands in the text
    label_names : list of str, length n_labels
    y_score : ndarray of shape (n_labels,), probabilities of the whole text
    y_pred : ndarray of shape (n_labels,), int8
    without : ndarray of shape (n_words, n_labels), probabilities of the text without each word
    contributions : ndarray of shape (n_words, n_labels)
        Log-odds (of classes: log-probability) of the text less those without the word: above 0 it speaks for the label.
    """

    text: str
    words: list[str]
    spans: list[tuple[int, int]]
    label_names: list[str]
    y_score: np.ndarray
    y_pred: np.ndarray
    without: np.ndarray
    contributions: np.ndarray

    def table(self) -> pd.DataFrame:
        """A row per word, in the order of the text: its place in `start`, and its contribution to each label."""
        index = pd.MultiIndex.from_tuples(
            [(start, word) for (start, _), word in zip(self.spans, self.words, strict=True)], names=["start", "word"]
        )
        return pd.DataFrame(self.contributions, index=index, columns=self.label_names)

    def strongest(self, label: str, n: int = 5) -> list[tuple[str, float]]:
        """The words with the greatest contributions to a label, for it or against it, and these."""
        values = self.contributions[:, self.label_names.index(label)]
        return [(self.words[i], float(values[i])) for i in np.argsort(-np.abs(values), kind="stable")[:n]]

    def __repr__(self) -> str:
        of = [f"{name} {score:.2f}" for name, score in zip(self.label_names, self.y_score, strict=True)]
        return f"Explanation({len(self.words)} words, {', '.join(of[:10])}{', ...' if len(of) > 10 else ''})"

    def _repr_html_(self) -> str:
        """For notebooks: the text once per label that was decided (or else the most probable), words that speak for it
        in green, against it in red."""
        shown = np.flatnonzero(self.y_pred) if self.y_pred.any() else [int(np.argmax(self.y_score))]
        return "".join(self._html(int(j)) for j in shown)

    def _html(self, j: int) -> str:
        values = self.contributions[:, j]
        most = max(float(np.abs(values).max(initial=0.0)), 1e-9)
        parts, at = [], 0
        for (start, end), value in zip(self.spans, values, strict=True):
            colour = "0,128,0" if value > 0 else "200,0,0"
            shade = f"background:rgba({colour},{0.6 * abs(value) / most:.2f})"
            word = escape(self.text[start:end])
            parts += [escape(self.text[at:start]), f'<span style="{shade}" title="{value:+.2f}">{word}</span>']
            at = end
        name = escape(self.label_names[j])
        return f"<p><b>{name}</b> {self.y_score[j]:.3f}: {''.join(parts)}{escape(self.text[at:])}</p>"


def word_spans(text: str, most: int = MOST_PARTS) -> list[tuple[int, int]]:
    """Where the words of a text stand: what lies between white space, and every Chinese or Japanese character.

    Parameters
    ----------
    most : of more words neighbours are taken together, about equally many

    Examples
    --------
    >>> [("so happy!"[a:b]) for a, b in word_spans("so happy!")]
    ['so', 'happy!']
    >>> word_spans("a b c d", most=2)
    [(0, 3), (4, 7)]
    """
    spans = [found.span() for found in WORD.finditer(text)]
    if len(spans) <= most:
        return spans
    return [(int(part[0][0]), int(part[-1][1])) for part in np.array_split(np.array(spans), most)]


def explain_text(
    text: str,
    ask: Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]],
    task: Task,
    label_names: Sequence[str],
    most_words: int = MOST_PARTS,
) -> Explanation:
    """The explanation of one text, by asking for it without each of its words.

    Parameters
    ----------
    ask : probabilities and decisions of texts, each of shape (n_texts, n_labels)
    """
    spans = word_spans(text, most_words)
    texts = [text, *(_without(text, start, end) for start, end in spans)]
    asked = [ask(texts[first : first + AT_ONCE]) for first in range(0, len(texts), AT_ONCE)]
    y_score = np.concatenate([scores for scores, _ in asked])
    logits = task.link.logits(y_score)
    return Explanation(
        text=text,
        words=[text[start:end] for start, end in spans],
        spans=spans,
        label_names=list(label_names),
        y_score=y_score[0],
        y_pred=asked[0][1][0],
        without=y_score[1:],
        contributions=logits[0] - logits[1:],
    )


def _without(text: str, start: int, end: int) -> str:
    """A text without a part, and without the white space between that and what follows."""
    before, after = text[:start], text[end:]
    return before + (after.lstrip() if not before or before[-1].isspace() else after)
