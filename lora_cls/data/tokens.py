"""Token ids of texts, in pieces that fit a model, and batches of similar length. The tokenizer is handed in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lora_cls.errors import RecipeError
from lora_cls.recipe import Data

MEGABATCH = 50  # batches that are sorted together: short padding, yet other neighbours in every epoch


@dataclass(frozen=True)
class Tokens:
    """Encoded texts: one piece per text, or several where long texts are read in chunks.

    Attributes
    ----------
    ids : list of ndarray of shape (n_tokens,), int64
        Of every piece, special tokens and prompt included.
    text : ndarray of shape (n_pieces,), int64
        Position of the text that each piece belongs to; ascending, so that a text's pieces stand together.
    truncated : ndarray of shape (n_texts,), bool
        Texts of which something was cut off.
    max_length : int or None
        No batch is padded beyond it.
    """

    ids: list[np.ndarray]
    text: np.ndarray
    truncated: np.ndarray
    max_length: int | None = None

    @property
    def n_texts(self) -> int:
        return len(self.truncated)

    @property
    def n_pieces(self) -> np.ndarray:
        """Pieces of every text, ndarray of shape (n_texts,), int64, 1 or more."""
        return np.bincount(self.text, minlength=self.n_texts)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per piece, ndarray of shape (n_pieces,), int64."""
        return np.array([len(piece) for piece in self.ids], dtype=np.int64)

    def take(self, texts: np.ndarray | Sequence[int]) -> Tokens:
        """The given texts with all their pieces, in the given order."""
        chosen = np.asarray(texts, dtype=np.int64)
        ends = np.cumsum(self.n_pieces)
        pieces = [np.arange(ends[i] - n, ends[i]) for i, n in zip(chosen, self.n_pieces[chosen], strict=True)]
        return Tokens(
            [self.ids[piece] for found in pieces for piece in found],
            np.repeat(np.arange(len(chosen)), self.n_pieces[chosen]),
            self.truncated[chosen],
            self.max_length,
        )

    def batch(self, pieces: np.ndarray, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
        """The given pieces, padded on the right to their longest, rounded up to a multiple of 8.

        Few different shapes keep the memory of prepared CPU kernels small and suit a GPU's tensor cores; the CPU time
        was the same.
        """
        longest = max(len(self.ids[piece]) for piece in pieces)
        rounded = -(-longest // 8) * 8
        if self.max_length is not None:
            rounded = max(longest, min(rounded, self.max_length))  # a model may have no positions beyond
        return pad([self.ids[piece] for piece in pieces], pad_id, length=rounded)


@dataclass(frozen=True)
class Frame:
    """Token ids that stand before and after every piece: a tokenizer's special tokens, or a prompt with them."""

    before: list[int]
    after: list[int]

    def __len__(self) -> int:
        return len(self.before) + len(self.after)


def special_frame(tokenizer: Any) -> Frame:
    """What the tokenizer itself puts around one text, as `[CLS]` and `[SEP]`."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    special, ids = encoded["special_tokens_mask"], encoded["input_ids"]
    first = special.index(0)
    last = len(special) - special[::-1].index(0)
    return Frame(list(ids[:first]), list(ids[last:]))


def prompt_frame(tokenizer: Any, prompt: str, closed: bool) -> Frame:
    """The tokens of a prompt around its `{text}`, after the tokenizer's own special tokens.

    `closed` ends with its special tokens too; without them the model continues the prompt.
    """
    special = special_frame(tokenizer)
    before, _, after = prompt.partition("{text}")
    return Frame(
        [*special.before, *plain_ids(tokenizer, before)],
        [*plain_ids(tokenizer, after), *(special.after if closed else [])],
    )


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids without special tokens."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def encode(
    tokenizer: Any, texts: Sequence[str], data: Data, frame: Frame | None = None, split_special_tokens: bool = False
) -> Tokens:
    """Tokenise once, without padding.

    Every piece is framed alike, so that a chunk reads as a text of its own. A text that gives no token at all
    (tokenizers without special tokens) becomes one pad token, since a model must read something to answer.

    Parameters
    ----------
    data : max_length, and what to do with texts beyond it (long_text, chunk_stride, max_chunks)
    frame : what stands around each piece; the tokenizer's own special tokens where None
    split_special_tokens : a text that spells a special token (`<|im_end|>`) is read as those letters, not as the token

    Raises
    ------
    RecipeError
        If nothing of a text would fit between the frame.
    """
    frame = frame or special_frame(tokenizer)
    room = data.max_length - len(frame)
    if room <= data.chunk_stride:
        raise RecipeError(
            f"data.max_length is {data.max_length}: prompt and special tokens take {len(frame)} tokens of it, and "
            f"chunk_stride {data.chunk_stride}. Raise it, or shorten the prompt."
        )
    ids: list[np.ndarray] = []
    text_of: list[int] = []
    truncated = np.zeros(len(texts), dtype=bool)
    options = {"split_special_tokens": True} if split_special_tokens else {}  # else as the tokenizer itself says
    for start in range(0, len(texts), 1000):
        bodies = tokenizer(list(texts[start : start + 1000]), add_special_tokens=False, verbose=False, **options)[
            "input_ids"
        ]
        for i, body in enumerate(bodies, start):
            pieces, truncated[i] = _pieces(body, room, data)
            for piece in pieces:
                whole = [*frame.before, *piece, *frame.after] or [pad_token_id(tokenizer)]
                ids.append(np.asarray(whole, dtype=np.int64))
                text_of.append(i)
    return Tokens(ids, np.array(text_of, dtype=np.int64), truncated, data.max_length)


def _pieces(body: list[int], room: int, data: Data) -> tuple[list[list[int]], bool]:
    """What is read of one text, `room` tokens at a time; and whether anything of it is not."""
    if len(body) <= room:
        return [body], False
    if data.long_text == "truncate":
        return [body[:room]], True
    if data.long_text == "head_tail":
        tail = room // 2
        return [body[: room - tail] + body[len(body) - tail :]], True
    step = room - data.chunk_stride
    starts = list(range(0, len(body) - data.chunk_stride, step))
    kept = starts
    if data.max_chunks is not None and len(starts) > data.max_chunks:
        kept = [starts[i] for i in np.linspace(0, len(starts) - 1, data.max_chunks).round().astype(int)]
    return [body[begin : begin + room] for begin in kept], len(kept) < len(starts)


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
