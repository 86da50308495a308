"""A head that starts from what the base already knows: the output embeddings of the labels' own words.

A language model that has read "... Label:" gives the next token a logit, the product of its last hidden state and the
token's output embedding. Those rows, read at the same place, are a classifier before any training.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lora_cls.errors import BackboneError
from lora_cls.modeling.source import Source
from lora_cls.text.tokens import plain_ids

LM_HEAD = "lm_head.weight"


class LabelTokenHead(nn.Linear):
    """A linear layer with a learnable scale on its logits; saved as the plain linear layer that it equals."""

    def __init__(self, hidden_size: int, n_labels: int) -> None:
        super().__init__(hidden_size, n_labels, dtype=torch.float32)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Logits, Tensor of shape (n_rows, n_labels)."""
        return self.scale * nn.functional.linear(pooled, self.weight) + self.bias

    def start(self, directions: torch.Tensor, pooled: torch.Tensor, prior: torch.Tensor) -> None:
        """Start from the labels' directions, on the scale and at the level of the training rows.

        Parameters
        ----------
        directions : Tensor of shape (n_labels, hidden_size)
        pooled : Tensor of shape (n_rows, hidden_size), what the head reads of training rows before any training
        prior : Tensor of shape (n_labels,), the mean logit to begin with
        """
        logits = pooled @ directions.T
        with torch.no_grad():
            self.weight.copy_(directions)
            self.scale.copy_(1 / (logits - logits.mean(0)).square().mean().sqrt().clamp(min=1e-6))
            self.bias.copy_(prior - self.scale * logits.mean(0))

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        del destination[f"{prefix}scale"]
        destination[f"{prefix}weight"] = (self.weight * self.scale).detach()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        if f"{prefix}weight" in state_dict:  # the scale is in there
            state_dict = {**state_dict, f"{prefix}scale": torch.ones_like(self.scale)}
        super()._load_from_state_dict(state_dict, prefix, *args)


def label_token_ids(tokenizer: Any, words: Sequence[str], kind: str = "label_tokens") -> list[list[int]]:
    """Token ids of every label as it would stand in a text: after a space. `kind` is the head's, for the error.

    Raises
    ------
    BackboneError
        If two labels have the same tokens, or one has none: no head could tell them apart.
    """
    ids = [plain_ids(tokenizer, f" {word}") for word in words]
    problems = [f"'{word}' has no tokens" for word, found in zip(words, ids, strict=True) if not found]
    for i, found in enumerate(ids):
        same = [words[j] for j in range(i) if ids[j] == found]
        problems += [f"'{words[i]}' and '{same[0]}' have the same tokens" for _ in same[:1]]
    if problems:
        raise BackboneError(
            f"head.kind: {kind}: {'; '.join(problems)} in this tokenizer. Give other words in head.label_words, "
            "or use head.kind: linear."
        )
    return ids


def label_directions(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean output embedding of each label's tokens, minus the mean over labels.

    Parameters
    ----------
    rows : per label a Tensor of shape (n_tokens, hidden_size)

    Returns
    -------
    Tensor of shape (n_labels, hidden_size), float32; for a single label the mean is not taken away
    """
    means = torch.stack([found.float().mean(0) for found in rows])
    return means - means.mean(0) if len(means) > 1 else means


def output_rows(base: Any, source: Source, token_ids: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Rows of a base's output embedding, per label a Tensor of shape (n_tokens, hidden_size), float32, on the CPU.

    Tied to the input embedding, or read from the checkpoint's `lm_head.weight`, of which nothing else is loaded.

    Raises
    ------
    BackboneError
        If the base is no language model, or its checkpoint holds no output head.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED

    config = base.config.get_text_config()
    if config.model_type not in CAUSAL or config.model_type in MASKED:
        raise BackboneError(
            f"head.kind: label_tokens needs a decoder that continues a text; {source.name} is a {config.model_type} "
            "model. Use head.kind: linear."
        )
    if config.tie_word_embeddings:
        weight = base.get_input_embeddings().weight
        return [weight[torch.tensor(list(ids), device=weight.device)].detach().float().cpu() for ids in token_ids]
    return [_checkpoint_rows(source, ids) for ids in token_ids]


def _checkpoint_rows(source: Source, ids: Sequence[int]) -> torch.Tensor:
    from safetensors import safe_open

    file = _checkpoint_file(source)
    if file is not None:
        with safe_open(file, framework="pt") as opened:
            if LM_HEAD in opened.keys():  # noqa: SIM118 (no iteration of its own)
                rows = opened.get_slice(LM_HEAD)
                return torch.cat([rows[i : i + 1] for i in ids]).float()
    raise BackboneError(
        f"head.kind: label_tokens: {source.name} has no output head ({LM_HEAD}) in its safetensors files, so "
        "its labels have no output embeddings. Use head.kind: linear, or a model saved for text generation."
    )


def _checkpoint_file(source: Source) -> Path | None:
    """The safetensors file of a checkpoint that holds the output head, or its only one."""
    from transformers.utils.hub import cached_file

    def found(name: str) -> Path | None:
        try:
            return Path(str(cached_file(source.path_or_id, name, revision=source.revision)))
        except OSError:  # no such file in the folder or repository
            return None

    index = found("model.safetensors.index.json")
    if index is None:
        return found("model.safetensors")
    name = json.loads(index.read_text(encoding="utf-8"))["weight_map"].get(LM_HEAD)
    return None if name is None else found(name)
