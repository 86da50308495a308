"""Token ids of texts, in pieces that fit a model, and batches of similar length. The tokenizer is handed in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lora_cls.errors import BackboneError, RecipeError
from lora_cls.recipe import Data
from lora_cls.text.token_cache import TokenCache

NOTED_UNKNOWN, MOST_UNKNOWN = 0.01, 0.5  # of a table's tokens: said, refused
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
    whole_lengths : ndarray of shape (n_texts,), int64, or None
        Tokens that every text would have without a limit. None where the pieces were not cut from texts here.
    unknown : ndarray of shape (n_texts,), float64, or None
        Share of every text's own tokens that stand for what the vocabulary lacks; None as above.
    """

    ids: list[np.ndarray]
    text: np.ndarray
    truncated: np.ndarray
    max_length: int | None = None
    whole_lengths: np.ndarray | None = None
    unknown: np.ndarray | None = None

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

    @property
    def unknown_share(self) -> float:
        """Mean share of unknown tokens over the texts."""
        return float(self.unknown.mean()) if self.unknown is not None and len(self.unknown) else 0.0

    def summary(self) -> dict[str, Any]:
        """What is read of the texts, in numbers for JSON; tokens are counted per piece."""
        lengths = self.lengths
        return {
            "mean": round(float(lengths.mean()), 2),
            "max": int(lengths.max()),
            "max_length": self.max_length,
            "truncated": float(self.truncated.mean()),
            "pieces_per_text": round(len(self.ids) / self.n_texts, 3),
        }

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
            None if self.whole_lengths is None else self.whole_lengths[chosen],
            None if self.unknown is None else self.unknown[chosen],
        )

    def pieces(self, chosen: np.ndarray) -> Tokens:
        """The given pieces, in the given order, each as a text of its own."""
        n_pieces = len(chosen)
        ids = [self.ids[piece] for piece in chosen]
        return Tokens(ids, np.arange(n_pieces), np.zeros(n_pieces, dtype=bool), self.max_length)

    def and_more(self, other: Tokens) -> Tokens:
        """These texts, and those of `other` behind them."""
        return Tokens(
            [*self.ids, *other.ids],
            np.concatenate([self.text, other.text + self.n_texts]),
            np.concatenate([self.truncated, other.truncated]),
            self.max_length,
        )

    def batch(self, pieces: np.ndarray, pad_id: int, multiple: int = 4) -> tuple[np.ndarray, np.ndarray]:
        """The given pieces, padded on the right to their longest, rounded up to a multiple (of 4).

        Fewer different shapes keep the memory of prepared CPU kernels small: for tweets, rounding to 1, 2, 4 and 8 left
        6.6 %, 9 %, 14 % and 21 % padding, at peaks of 3.6, 3.3, 3.2 and 3.0 GiB (SmolLM2-135M); the time per row
        hardly differed.
        """
        longest = max(len(self.ids[piece]) for piece in pieces)
        rounded = -(-longest // multiple) * multiple
        if self.max_length is not None:
            rounded = max(longest, min(rounded, self.max_length))  # a model may have no positions beyond
        return pad([self.ids[piece] for piece in pieces], pad_id, length=rounded)


@dataclass(frozen=True)
class Frame:
    """What stands around every piece: a tokenizer's special tokens, or a prompt with them.

    Attributes
    ----------
    before, after : token ids
    lead : the space between a prompt and its text, tokenised with the text: byte-level vocabularies know " happy" as
        one token, and "prompt: " with a space at its end as a rare one
    """

    before: list[int]
    after: list[int]
    lead: str = ""

    def __len__(self) -> int:
        return len(self.before) + len(self.after)


def special_frame(tokenizer: Any) -> Frame:
    """What the tokenizer itself puts around one text, as `[CLS]` and `[SEP]`; nothing for many decoders.

    Raises
    ------
    BackboneError
        If it does not put its special tokens around a text, but changes the text's own.
    """
    whole, plain = list(tokenizer("a")["input_ids"]), plain_ids(tokenizer, "a")
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain and plain:
            return Frame(whole[:start], whole[start + len(plain) :])
    raise BackboneError(
        f"{type(tokenizer).__name__} reads 'a' as the tokens {plain} and as {whole} with its special tokens: these do "
        "not stand around the text, so that pieces of a text cannot be framed by them. Use another tokenizer."
    )


def prompt_frame(tokenizer: Any, prompt: str, closed: bool) -> Frame:
    """The tokens of a prompt around its `{text}`, after the tokenizer's own special tokens.

    `closed` ends with its special tokens too; without them the model continues the prompt.
    """
    special = special_frame(tokenizer)
    before, _, after = prompt.partition("{text}")
    stripped = before.rstrip(" ")
    return Frame(
        [*special.before, *plain_ids(tokenizer, stripped)],
        [*plain_ids(tokenizer, after), *(special.after if closed else [])],
        before[len(stripped) :],
    )


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids without special tokens."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) if text else []


def encode(
    tokenizer: Any,
    texts: Sequence[str],
    data: Data,
    frame: Frame | None = None,
    split_special_tokens: bool = False,
    cache: TokenCache | None = None,
) -> Tokens:
    """Tokenise once, without padding.

    Every piece is framed alike, so that a chunk reads as a text of its own. A text that gives no token at all
    (tokenizers without special tokens) becomes one pad token, since a model must read something to answer. Which side
    the tokenizer itself would truncate or pad plays no part.

    Parameters
    ----------
    data : max_length, and what to do with texts beyond it (long_text, chunk_stride, max_chunks)
    frame : what stands around each piece; the tokenizer's own special tokens where None
    split_special_tokens : a text that spells a special token (`<|im_end|>`) is read as those letters, not as the token
    cache : where the ids of the same texts may be kept from before

    Raises
    ------
    RecipeError
        If nothing of a text would fit between the frame.
    """
    frame = special_frame(tokenizer) if frame is None else frame  # an empty one is false
    room = data.max_length - len(frame)
    stride = data.chunk_stride if data.long_text == "chunk" else 0
    if room <= stride:
        raise RecipeError(
            f"data.max_length is {data.max_length}: prompt and special tokens take {len(frame)} tokens of it"
            f"{f', and chunk_stride {stride}' if stride else ''}. Raise it, or shorten the prompt."
        )
    ids: list[np.ndarray] = []
    text_of: list[int] = []
    truncated, whole = np.zeros(len(texts), dtype=bool), np.zeros(len(texts), dtype=np.int64)
    unknown, unknown_id = np.zeros(len(texts)), unknown_token_id(tokenizer)
    for i, body in enumerate(_bodies(tokenizer, texts, frame.lead, split_special_tokens, cache)):
        pieces, truncated[i] = _pieces(body, room, data)
        whole[i] = max(1, len(frame) + len(body))
        if unknown_id is not None and body:
            unknown[i] = body.count(unknown_id) / len(body)
        for piece in pieces:
            framed = [*frame.before, *piece, *frame.after] or [pad_token_id(tokenizer)]
            ids.append(np.asarray(framed, dtype=np.int64))
            text_of.append(i)
    return Tokens(ids, np.array(text_of, dtype=np.int64), truncated, data.max_length, whole, unknown)


def _bodies(
    tokenizer: Any, texts: Sequence[str], lead: str, split_special_tokens: bool, cache: TokenCache | None
) -> Iterator[list[int]]:
    """Token ids of every whole text, without special tokens; from the cache where they are kept."""
    key = cache.key(tokenizer, texts, lead, str(split_special_tokens)) if cache is not None else None
    known = cache.read(key) if cache is not None and key is not None else None
    if known is not None:
        yield from (found.tolist() for found in known)
        return
    options = {"split_special_tokens": True} if split_special_tokens else {}  # else as the tokenizer itself says
    kept: list[np.ndarray] = []
    for begin, end in _stretches(texts):
        led = [lead + text for text in texts[begin:end]]
        for body in tokenizer(led, add_special_tokens=False, verbose=False, **options)["input_ids"]:
            if key is not None:
                kept.append(np.asarray(body, dtype=np.int32))
            yield body
    if cache is not None and key is not None:
        cache.write(key, kept)


def _stretches(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Begin and end of texts tokenised together: a tokenizer's own result takes some 40 bytes per character."""
    begin = characters = 0
    for i, text in enumerate(texts):
        if i > begin and (i - begin == 1000 or characters + len(text) > 1_000_000):
            yield begin, i
            begin, characters = i, 0
        characters += len(text)
    if len(texts):
        yield begin, len(texts)


def _pieces(body: list[int], room: int, data: Data) -> tuple[list[list[int]], bool]:
    """What is read of one text, at most `room` tokens at a time; and whether anything of it is not.

    Chunks are as few as will do, and of the same length within a token: a rest of three words would answer as loudly as
    the chunks before it.
    """
    if len(body) <= room:
        return [body], False
    if data.long_text == "truncate":
        return [body[:room]], True
    if data.long_text == "head_tail":
        tail = room // 2
        return [body[: room - tail] + body[len(body) - tail :]], True
    stride = data.chunk_stride
    n_chunks = -(-(len(body) - stride) // (room - stride))
    bounds = [i * (len(body) - stride) // n_chunks for i in range(n_chunks + 1)]
    chunks = [body[bounds[i] : bounds[i + 1] + stride] for i in range(n_chunks)]
    if data.max_chunks is None or n_chunks <= data.max_chunks:
        return chunks, False
    kept = np.linspace(0, n_chunks - 1, data.max_chunks).round().astype(int)
    return [chunks[i] for i in kept], True


def long_text_note(tokens: Tokens, data: Data, name: str) -> str | None:
    """What is done with texts that are longer than the model reads, one sentence; None where there are none.

    Parameters
    ----------
    name : whose texts, as "training"
    """
    longer = int((tokens.truncated | (tokens.n_pieces > 1)).sum())
    if not longer:
        return None
    found = f"{longer} of {tokens.n_texts} {name} texts ({longer / tokens.n_texts:.1%}) are longer than " + (
        f"data.max_length {data.max_length}: "
    )
    if data.long_text == "truncate":
        return f"{found}only their start is read (data.long_text truncate; head_tail or chunk reads more)."
    if data.long_text == "head_tail":
        return f"{found}only their start and end are read (data.long_text head_tail; chunk reads all)."
    per_text = len(tokens.ids) / tokens.n_texts
    cut = int(tokens.truncated.sum())
    left_out = f" data.max_chunks {data.max_chunks} leaves parts of {cut} texts unread." if cut else ""
    return (
        f"{found}read in chunks, {len(tokens.ids)} pieces for {tokens.n_texts} texts ({per_text:.2f} per text), which "
        "makes time longer by that factor; batches and rows/s count pieces, the loss and every score count each text "
        f"once.{left_out}"
    )


def text_notes(tokens: Tokens, data: Data, name: str) -> list[str]:
    """What a user should know of how the texts of a table are read; see `long_text_note` and `unknown_note`."""
    return [note for note in (long_text_note(tokens, data, name), unknown_note(tokens, name)) if note]


def unknown_token_id(tokenizer: Any) -> int | None:
    """The token of what a vocabulary lacks; None where that is another special token, too, as in byte-level ones."""
    found = getattr(tokenizer, "unk_token_id", None)
    others = [getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad")]
    return None if found is None or found in others else int(found)


def unknown_note(tokens: Tokens, name: str) -> str | None:
    """How much of some texts the model cannot read, one sentence; None below 1 %.

    Parameters
    ----------
    name : whose texts, as "training"
    """
    share = tokens.unknown_share
    if share < NOTED_UNKNOWN:
        return None
    worst = int((tokens.unknown > MOST_UNKNOWN).sum()) if tokens.unknown is not None else 0
    return (
        f"{share:.0%} of the tokens in the {name} texts are unknown to the model's tokenizer (more than half in "
        f"{worst} of {tokens.n_texts} texts): it was made for another language or script, and cannot tell those words "
        "apart."
    )


def refuse_unknown_script(tokens: Tokens, name: str) -> None:
    """Refuse training texts of which most is unknown.

    Raises
    ------
    BackboneError
        Names the share, and what to take.
    """
    if tokens.unknown_share > MOST_UNKNOWN:
        raise BackboneError(
            f"{unknown_note(tokens, 'training')} {name} would learn from little but lengths. Take a model for the "
            "texts' language: a multilingual one (FacebookAI/xlm-roberta-base, intfloat/multilingual-e5-small), or a "
            "decoder, whose tokens are bytes where words are unknown."
        )


def refuse_unknown_ids(tokens: Tokens, tokenizer: Any, name: str, n_embeddings: int | None) -> None:
    """Refuse texts with a token that was added to the tokenizer and not to the model `name`.

    Raises
    ------
    BackboneError
        Names the token and the text.
    """
    if n_embeddings is None:
        return
    for piece, text in zip(tokens.ids, tokens.text, strict=True):
        highest = int(piece.max())
        if highest >= n_embeddings:
            token = str(tokenizer.convert_ids_to_tokens(highest))[:50]
            raise BackboneError(
                f"Text {text + 1} of {tokens.n_texts} is read with the token {token!r} ({highest}), and {name} has "
                f"embeddings for the tokens 0 to {n_embeddings - 1} only: the token was added to its tokenizer and not "
                "to the model. Take the model's own tokenizer, or save the model with resized embeddings "
                "(model.resize_token_embeddings)."
            )


def pad_token_id(tokenizer: Any, n_embeddings: int | None = None) -> int:
    """An id to fill with, below `n_embeddings`. Which one never matters: padding is masked and never pooled."""
    for name in ("pad_token_id", "eos_token_id", "unk_token_id"):
        value = getattr(tokenizer, name, None)
        if value is not None and (n_embeddings is None or value < n_embeddings):
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
