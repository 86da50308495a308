"""Token ids of texts, and batches of rows of similar length. Numpy only; the tokenizer is handed in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

MEGABATCH = 50  # batches that are sorted together: short padding, yet other neighbours in every epoch


@dataclass(frozen=True)
class Tokens:
    """Encoded texts.

    Attributes
    ----------
    ids : list of ndarray of shape (n_tokens,), int64
        Special tokens included, cut at `max_length`.
    truncated : ndarray of shape (n_samples,), bool
        Rows that lost their end.
    max_length : int or None
        No batch is padded beyond it.
    """

    ids: list[np.ndarray]
    truncated: np.ndarray
    max_length: int | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per row, shape (n_samples,), int64."""
        return np.array([len(row) for row in self.ids], dtype=np.int64)

    def take(self, rows: np.ndarray | Sequence[int]) -> Tokens:
        """The given rows, in the given order."""
        return Tokens(
            [self.ids[row] for row in rows], self.truncated[np.asarray(rows, dtype=np.int64)], self.max_length
        )

    def batch(self, rows: np.ndarray, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
        """The given rows, padded on the right to their longest, rounded up to a multiple of 8.

        Few different shapes keep the memory of prepared CPU kernels small and suit a GPU's tensor cores; the CPU time
        was the same.
        """
        longest = max(len(self.ids[row]) for row in rows)
        rounded = -(-longest // 8) * 8
        if self.max_length is not None:
            rounded = max(longest, min(rounded, self.max_length))  # a model may have no positions beyond
        return pad([self.ids[row] for row in rows], pad_id, length=rounded)


def encode(tokenizer: Any, texts: Sequence[str], max_length: int) -> Tokens:
    """Tokenise once, without padding.

    An empty text that gives no token at all (tokenizers without special tokens) becomes one pad token, since a model
    must read something to answer.
    """
    ids, truncated = [], np.zeros(len(texts), dtype=bool)
    for start in range(0, len(texts), 1000):
        chunk = list(texts[start : start + 1000])
        # One token more than wanted tells truncated rows apart without a second pass.
        longer = tokenizer(chunk, truncation=True, max_length=max_length + 1, padding=False)["input_ids"]
        over = [i for i, row in enumerate(longer) if len(row) > max_length]
        truncated[[start + i for i in over]] = True
        if over:  # cut by the tokenizer itself, so that a closing special token stays
            cut = tokenizer([chunk[i] for i in over], truncation=True, max_length=max_length, padding=False)[
                "input_ids"
            ]
            for i, row in zip(over, cut, strict=True):
                longer[i] = row
        ids += [np.asarray(row or [pad_token_id(tokenizer)], dtype=np.int64) for row in longer]
    return Tokens(ids, truncated, max_length)


def pad_token_id(tokenizer: Any) -> int:
    """An id to fill with. Which one never matters: padded positions are masked and never pooled."""
    for name in ("pad_token_id", "eos_token_id", "unk_token_id"):
        value = getattr(tokenizer, name, None)
        if value is not None:
            return int(value)
    return 0


def pad(
    rows: Sequence[np.ndarray], pad_id: int, side: Literal["left", "right"] = "right", length: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Pad rows to `length`, or to the longest of them.

    Returns
    -------
    input_ids, attention_mask : ndarray of shape (n_rows, length), int64
    """
    longest = length or max(len(row) for row in rows)
    input_ids = np.full((len(rows), longest), pad_id, dtype=np.int64)
    attention_mask = np.zeros((len(rows), longest), dtype=np.int64)
    for i, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        input_ids[i, where] = row
        attention_mask[i, where] = 1
    return input_ids, attention_mask


def shuffled_batches(lengths: np.ndarray, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Every row once, in batches of similar length, in random order.

    Rows are shuffled, sorted by length within stretches of 50 batches, cut into batches, and the batches shuffled.
    """
    order = rng.permutation(len(lengths))
    stretch = batch_size * MEGABATCH
    batches = []
    for start in range(0, len(order), stretch):
        part = order[start : start + stretch]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def sorted_batches(lengths: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Every row once, longest first: a batch too large for the memory fails at once, not after an hour."""
    order = np.argsort(-lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
