"""What a base model is tried on when it is loaded, so that one that cannot be used is refused before any training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lora_cls.errors import BackboneError, brief
from lora_cls.modeling.classifier import SequenceClassifier, pool
from lora_cls.modeling.precision import is_out_of_memory
from lora_cls.modeling.quiet import quiet_transformers
from lora_cls.modeling.source import Source
from lora_cls.text.tokens import pad_token_id

# Files that hold a whole tokenizer by themselves, whatever its class
WHOLE_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tekken.json", "*.tiktoken")
VOCABULARIES = (*WHOLE_TOKENIZERS, "*.model", "vocab*", "*.vocab", "merges.txt")
SHORT, PADDING = 8, 8  # tokens of the text whose answer must not change with padding
MOST_CHANGE = 0.15  # of the greatest value; approximations of attention (YOSO, Nystromformer) and 8 bits stay below
LOOKED_AHEAD = 0.01  # of a hidden state, by another token behind it; 8 bits stay below where none is read
NO_TOKENIZER = "fetch the model's tokenizer again and put its files there, as Tokenizer.save_pretrained writes them."


def refuse_without_tokenizer(source: Source) -> None:
    """Refuse a local folder in which nothing looks like a vocabulary."""
    if source.is_local and not _any(Path(source.path_or_id), VOCABULARIES):
        raise BackboneError(
            f"{source.name}: {source.path_or_id} holds no tokenizer (no tokenizer.json, vocab.txt, *.model): "
            f"{NO_TOKENIZER}"
        )


def check_tokenizer(tokenizer: Any, source: Source, n_embeddings: int | None) -> None:
    """Refuse a tokenizer that is not the model's; give it another pad token where the model has no such embedding.

    transformers makes up a vocabulary of a few special tokens where a folder holds none: every word is unknown then,
    and the scores look possible.

    Parameters
    ----------
    n_embeddings : tokens that the model's configuration speaks of; None where it does not say (CANINE)

    Raises
    ------
    BackboneError
        Names the files that are missing, or both sizes.
    """
    folder, names = Path(source.path_or_id), dict(getattr(tokenizer, "vocab_files_names", None) or {})
    needed = [names[key] for key in ("vocab_file", "merges_file") if key in names] or list(names.values())
    if source.is_local and needed and not _any(folder, WHOLE_TOKENIZERS):
        missing = [name for name in needed if not (folder / name).is_file()]
        if missing:
            raise BackboneError(
                f"{source.name}: its tokenizer ({type(tokenizer).__name__}) needs {' and '.join(needed)}, or "
                f"tokenizer.json, and {folder} lacks {' and '.join(missing)}: {NO_TOKENIZER}"
            )
    if n_embeddings is None:
        return
    if len(tokenizer) < n_embeddings / 2 or tokenizer.vocab_size > n_embeddings:
        raise BackboneError(
            f"{source.name}: its tokenizer knows {len(tokenizer)} tokens, and the model has embeddings for "
            f"{n_embeddings}: they do not belong together. Fetch the model again, with all its files."
        )
    pad_id = pad_token_id(tokenizer)
    if pad_id >= n_embeddings:  # added without an embedding: any other will do
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_token_id(tokenizer, n_embeddings))


def probe_base(
    base: Any, source: Source, n_positions: int, pad_id: int, dtype: torch.dtype | None = None
) -> str | None:
    """Read a text of `n_positions` tokens, and a short one with and without padding.

    Parameters
    ----------
    base : as loaded, without adapters
    n_positions : tokens of the longest text that may come
    pad_id : what batches are filled with
    dtype : see `SequenceClassifier`

    Returns
    -------
    str or None
        What a user should know.

    Raises
    ------
    BackboneError
        If the model cannot read texts alone, has fewer positions (names how many), or lets padding change an answer.
    """
    inner = getattr(base, "base_model", base)  # without the output layer: that of a whole text would fill the memory
    reader = _Reader(SequenceClassifier(inner, "mean", dtype=dtype).eval(), pad_id)
    n_short = min(SHORT, n_positions)
    with torch.no_grad(), quiet_transformers(), _WithinTables():
        try:
            alone = reader.pooled(n_short)
        except Exception as error:  # whatever a model of another kind asks for
            if is_out_of_memory(error):
                raise
            raise unreadable(source.name, base, error) from error
        if reader.fails(n_positions):
            fits, fails = n_short, n_positions
            while fails - fits > 1:
                middle = (fits + fails) // 2
                fits, fails = (fits, middle) if reader.fails(middle) else (middle, fails)
            raise BackboneError(f"data.max_length is {n_positions}, but the model has {fits} positions: lower it.")
        padded = reader.pooled(n_short, min(PADDING, n_positions - n_short))
    off = float((padded - alone).abs().max() / alone.abs().max().clamp(min=1e-6))
    if not off <= MOST_CHANGE:
        raise BackboneError(
            f"{source.name}: {type(inner).__name__} reads padding as text (an answer changes by {off:.0%}), so that "
            "what it says of a text would depend on the texts beside it. Take another model."
        )
    # 4-bit and 8-bit weights are packed in integers
    exact = dtype is None and all(parameter.dtype == torch.float32 for parameter in inner.parameters())
    if exact and off > 1e-3:
        return (
            f"{source.name}: what {type(inner).__name__} says of a text changes by {off:.1%} with padding, and so "
            "depends a little on the texts beside it."
        )
    return None


def read_both_ways(base: Any, source: Source, any_attention: bool) -> None:
    """Take the causal mask from a decoder, by the word that transformers reads in its configuration, and try it out.

    transformers (5.23) makes the masks of full and windowed layers by `is_causal` and hands it to the attention. A
    model with masks of its own may do neither, or only one of the two: it then reads one way, or a text one way alone
    and both ways beside a longer one.

    Parameters
    ----------
    base : as loaded, without adapters
    any_attention : whether eager and fused attention are both tried, as either may be taken later

    Raises
    ------
    BackboneError
        If the model reads both ways by itself (an encoder), or still reads one way.
    """
    config: Any = base.config.get_text_config()
    inner = getattr(base, "base_model", base)
    try:
        if getattr(config, "is_causal", True) and looks_ahead(inner, 0):  # else its own files say it
            raise BackboneError(
                f"backbone.bidirectional: {type(base).__name__} ({source.name}) reads both ways by itself, as encoders "
                "do: remove the field."
            )
        config.is_causal = False
        kept = str(base.config._attn_implementation)
        others = [kind for kind in ("eager", "sdpa") if any_attention and kept in ("eager", "sdpa") and kind != kept]
        for attention in (*others, kept):
            if others and not _attends_by(base, attention):
                continue
            one_way = [n_padded for n_padded in (0, PADDING) if not looks_ahead(inner, n_padded)]
            if one_way:
                beside = ", beside a longer text" if one_way == [PADDING] else ""
                raise BackboneError(
                    f"backbone.bidirectional: {type(base).__name__} ({source.name}) still reads one way without its "
                    f"causal mask (in {attention} attention{beside}): remove the field, or take another model."
                )
    except BackboneError:
        raise
    except Exception as error:  # whatever a model of another kind asks for
        if is_out_of_memory(error):
            raise
        raise unreadable(source.name, base, error) from error


def _attends_by(base: Any, attention: str) -> bool:
    """Set the kind of attention; whether the model has it."""
    try:
        with quiet_transformers():
            base.set_attn_implementation(attention)
    except (ValueError, ImportError):
        return False
    return True


def looks_ahead(base: Any, n_padded: int) -> bool:
    """Whether another last token changes what a model says of those before it."""
    n_embeddings, device = _n_embeddings(base), next(base.parameters()).device
    ids = (torch.arange(1, SHORT + 1) * 7919 % n_embeddings).repeat(2, 1)
    ids[1, -1] = (ids[1, -1] + 11) % n_embeddings
    mask = nn.functional.pad(torch.ones_like(ids), (0, n_padded)).to(device)
    ids = nn.functional.pad(ids, (0, n_padded)).to(device)
    with torch.no_grad(), quiet_transformers():
        # one after the other: in 8 bits the rows of a batch change each other
        one, other = (
            base(input_ids=ids[i : i + 1], attention_mask=mask[i : i + 1]).last_hidden_state[0, : SHORT - 1].float()
            for i in range(2)
        )
    return bool(((one - other).norm(dim=-1) > LOOKED_AHEAD * one.norm(dim=-1)).any())


class _WithinTables(TorchDispatchMode):
    """Within it a place beyond the end of a table is an IndexError on every device: a GPU would only say so later, and
    compute nothing more in this process."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.embedding.default:
            self._check(args[1], len(args[0]))
        elif func in (torch.ops.aten.index_select.default, torch.ops.aten.gather.default):
            self._check(args[2], args[0].shape[args[1]] if args[0].ndim else 1)
        elif func is torch.ops.aten.index.Tensor:
            for axis, index in enumerate(args[1]):
                if index is not None and index.dtype == torch.long:  # masks may take the place of several axes
                    self._check(index, args[0].shape[axis], lowest=-args[0].shape[axis])
                elif index is not None:
                    break
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _check(index: torch.Tensor, size: int, lowest: int = 0) -> None:
        if index.numel() and not (lowest <= int(index.min()) and int(index.max()) < size):
            raise IndexError(f"a place from {int(index.min())} to {int(index.max())} in a table of {size}")


class _Reader:
    """Texts of made-up tokens for a model, and what it makes of them."""

    def __init__(self, model: SequenceClassifier, pad_id: int) -> None:
        self.model, self.pad_id = model, pad_id
        self.device = next(model.parameters()).device
        self.n_embeddings = _n_embeddings(model.base)

    def pooled(self, n_tokens: int, n_padded: int = 0) -> torch.Tensor:
        """The mean over a text of `n_tokens` tokens with as many of padding behind them as asked for."""
        return pool(*self.hidden(self.text(n_tokens), n_padded), "mean")

    def text(self, n_tokens: int) -> torch.Tensor:
        """Token ids, Tensor of shape (n_tokens,)."""
        ids = torch.arange(1, n_tokens + 1) * 7919 % self.n_embeddings
        ids[ids == self.pad_id] = (self.pad_id + 5) % self.n_embeddings  # some models tell padding by its token
        return ids

    def hidden(self, ids: torch.Tensor, n_padded: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """The base's output for one text, with so many tokens of padding behind it, and the mask."""
        mask = nn.functional.pad(torch.ones_like(ids), (0, n_padded))
        ids = nn.functional.pad(ids, (0, n_padded), value=self.pad_id)
        ids, mask = ids.unsqueeze(0).to(self.device), mask.unsqueeze(0).to(self.device)
        return self.model.last_hidden_state(ids, mask), mask

    def fails(self, n_tokens: int) -> bool:
        """Whether the model has no place for so many tokens."""
        try:
            self.pooled(n_tokens)
        except (IndexError, RuntimeError, ValueError, AssertionError) as error:
            if is_out_of_memory(error):
                raise
            return True
        return False


def unreadable(name: str, base: Any, error: Exception) -> BackboneError:
    """What is said of a model that wants more than a text, as T5 does, which writes beside what it reads."""
    return BackboneError(
        f"{name}: {type(base).__name__} cannot be used, as it does not read a text by itself ({brief(error)}). Take an "
        "encoder (BERT and its like) or a decoder (Llama and its like) instead."
    )


def _n_embeddings(base: Any) -> int:
    """Tokens that a model has embeddings for; of one that does without a table (CANINE), some."""
    try:
        return int(base.get_input_embeddings().num_embeddings)
    except (AttributeError, NotImplementedError, TypeError):
        return 1000


def _any(folder: Path, patterns: tuple[str, ...]) -> bool:
    return any(next(folder.glob(pattern), None) is not None for pattern in patterns)
