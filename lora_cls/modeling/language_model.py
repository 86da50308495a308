"""A base that learns from texts alone: with the output layer that fills in masked tokens, or foretells the next one."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lora_cls.errors import BackboneError
from lora_cls.modeling.loading import load_base
from lora_cls.modeling.quiet import quiet_transformers
from lora_cls.modeling.source import Source
from lora_cls.recipe import Backbone

Aim = Literal["masked", "next_token"]
LOGITS_AT_ONCE = 2**25  # positions times vocabulary whose logits are held at a time: 128 MiB in fp32


def language_aim(config: Any, tokenizer: Any, name: str) -> Aim:
    """What a base learns from texts by its architecture.

    Parameters
    ----------
    config : its `PretrainedConfig`
    name : what messages call it

    Raises
    ------
    BackboneError
        If transformers has no model of this kind with an output layer, or the tokenizer no mask.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    without = "Remove adapt, or take another model"
    if getattr(config, "quantization_config", None) is not None:
        raise BackboneError(f"adapt: {name} is stored quantized: its weights cannot be trained. {without}.")
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:  # before the other: BERT stands in both
        if tokenizer.mask_token_id is None:
            raise BackboneError(
                f"adapt: the tokenizer of {name} has no mask token, which an encoder learns to fill in. {without}."
            )
        return "masked"
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "next_token"
    raise BackboneError(
        f"adapt: transformers has no {config.model_type} model with an output layer over the vocabulary. {without}."
    )


class LanguageModel(nn.Module):
    """A base and its output layer apart, so that only the positions that are asked for meet the vocabulary.

    Attributes
    ----------
    base : the bare transformer, adapters injected where there are any
    whole : transformers' model around it, whose own base is a stand-in that hands out given hidden states
    fresh : whether the output layer came without weights, as with encoders of sentences
    dtype : the precision to compute in under autocast; None is that of the weights
    """

    def __init__(self, base: Any, whole: Any, aim: Aim, fresh: bool, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.base, self.whole, self.aim, self.fresh, self.dtype = base, whole, aim, fresh, dtype
        self._given = _Given()
        setattr(whole, whole.base_model_prefix, self._given)
        # a base in 16 bits is frozen, and adapters compute in that of what they read
        self._base_dtype = dtype if next(base.parameters()).dtype == torch.float32 else None
        self._vocabulary = int(base.config.get_text_config().vocab_size)

    @property
    def own(self) -> list[nn.Parameter]:
        """The output layer's own weights: without those that are the base's, too."""
        of_base = {id(parameter) for parameter in self.base.parameters()}
        return [parameter for parameter in self.whole.parameters() if id(parameter) not in of_base]

    def plain(self) -> Any:
        """transformers' own model again, to be saved: of an encoder the base alone, of a decoder, whose output layer
        heads may read or train, the whole one."""
        setattr(self.whole, self.whole.base_model_prefix, self.base)
        return self.base if self.aim == "masked" else self.whole

    def loss(self, ids: torch.Tensor, mask: torch.Tensor, chosen: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Sum of the cross-entropies at the chosen positions, in fp32.

        Parameters
        ----------
        ids, mask, chosen : Tensor of shape (n_rows, n_tokens); `chosen` is bool
        targets : Tensor of shape (n_chosen,), the tokens to be found there, in the order of the positions
        """
        with self._mixed(ids.device, self._base_dtype):
            hidden = self.base(input_ids=ids, attention_mask=mask).last_hidden_state[chosen]
        size = max(1, LOGITS_AT_ONCE // self._vocabulary)
        parts = list(zip(hidden.split(size), targets.split(size), strict=True))
        if len(parts) == 1 or not torch.is_grad_enabled():
            return torch.stack([self._part(*part) for part in parts]).sum()
        return torch.stack([checkpoint(self._part, *part, use_reentrant=False) for part in parts]).sum()

    def _part(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self._given.hidden = hidden.unsqueeze(0)
        with self._mixed(hidden.device, self.dtype):
            logits = self.whole(input_ids=targets.unsqueeze(0)).logits[0]
        self._given.hidden = None
        return nn.functional.cross_entropy(logits.float(), targets, reduction="sum")

    @staticmethod
    def _mixed(device: torch.device, dtype: torch.dtype | None) -> Any:
        return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


class _Given(nn.Module):
    """Stands in a model for its base, and hands out hidden states that are there already."""

    hidden: torch.Tensor | None = None

    def forward(self, *_: Any, **__: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=self.hidden)


def load_language_model(
    backbone: Backbone,
    source: Source,
    aim: Aim,
    dtype: torch.dtype,
    mixed: torch.dtype | None,
    device: torch.device,
    seed: int,
) -> LanguageModel:
    """A base with its output layer, all of it frozen, in eval mode.

    Encoders of sentences come without the output layer that they were trained with: they get a fresh one, tied to
    their embeddings where the architecture ties it.

    Parameters
    ----------
    dtype : of the weights
    mixed : see `LanguageModel.dtype`
    seed : draws what the files lack

    Raises
    ------
    BackboneError
        If it cannot be opened, or a decoder has no output layer.
    """
    torch.manual_seed(seed)
    attention = backbone.attn_implementation
    if aim == "next_token":
        # a decoder that reads both ways would see the very token that it is to foretell
        backbone = backbone.model_copy(update={"bidirectional": False})
        whole: Any = load_base(backbone, None, dtype, device, source, attention, with_output=True)
        return LanguageModel(getattr(whole, whole.base_model_prefix), whole, aim, False, mixed)
    from transformers import AutoModelForMaskedLM

    base: Any = load_base(backbone, None, dtype, device, source, attention)
    with quiet_transformers():
        whole, loaded = AutoModelForMaskedLM.from_pretrained(
            source.path_or_id, revision=source.revision, config=base.config, dtype=dtype,
            trust_remote_code=backbone.trust_remote_code, output_loading_info=True,
        )  # fmt: skip
    prefix = whole.base_model_prefix
    inputs, outputs = whole.get_input_embeddings(), whole.get_output_embeddings()
    tied = outputs is not None and outputs.weight is inputs.weight
    setattr(whole, prefix, base)
    if tied:
        outputs.weight = base.get_input_embeddings().weight
    whole.to(device).eval().requires_grad_(False)
    fresh = any(not key.startswith(f"{prefix}.") for key in loaded["missing_keys"])
    return LanguageModel(base, whole, aim, fresh, mixed)
