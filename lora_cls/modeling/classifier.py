"""The model that is trained: a base, a pooled hidden state, and a linear head in fp32."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from lora_cls.modeling.layers import find_layers, lowest_trained_layer
from lora_cls.modeling.low_rank import SharedInput
from lora_cls.modeling.read_places import ReadPlaces

HEAD = "score"  # the head's attribute on the base model: one PEFT folder then carries adapter and head


def pool(hidden: torch.Tensor, attention_mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """One vector per row, by attention mask: right for any padding side, batch size or token id.

    Parameters
    ----------
    hidden : Tensor of shape (n_rows, n_tokens, hidden_size)
    attention_mask : Tensor of shape (n_rows, n_tokens), 1 for real tokens
    pooling : `last_token`, `mean` or `cls` (the first real token)

    Returns
    -------
    Tensor of shape (n_rows, hidden_size), float32
    """
    if pooling == "mean":
        weights = attention_mask.unsqueeze(-1).float()
        return (hidden.float() * weights).sum(1) / weights.sum(1).clamp(min=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), read_places(attention_mask, pooling)].float()


def read_places(attention_mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """The one token of each row that `last_token` and `cls` read, Tensor of shape (n_rows,), int64."""
    if pooling == "last_token":
        return (attention_mask * torch.arange(attention_mask.shape[1], device=attention_mask.device)).argmax(1)
    return attention_mask.argmax(1)


def takes_global_attention(base: nn.Module) -> bool:
    """Whether the model attends within windows, and to all tokens only where it is told to (Longformer)."""
    return "global_attention_mask" in inspect.signature(base.forward).parameters


class SequenceClassifier(nn.Module):
    """A backbone with the head attached to its base model as `score`.

    A model with `global_attention_mask` gets global attention on each row's first real token, as its authors classify
    with it (Beltagy et al. 2020, "Longformer: the long-document transformer").

    Parameters
    ----------
    backbone : the bare transformer, or a PeftModel around it
    pooling : see `pool`
    dropout : on the pooled vector, in training
    dtype : 16-bit precision to compute in under autocast, for fp32 weights that are all trained; None computes in the
        weights' own

    Attributes
    ----------
    n_frozen_layers : int
        Layers below the lowest adapter: never in training mode.
    reuse : callable or None
        Given ids and mask of a batch, a context in which the frozen layers hand out what is known of it
        (`PrefixCache.stand_in`).
    last_layer : ReadPlaces or None
        Where set, the last layer computes its second half for the tokens that are pooled, and no others.
    shared_inputs : list of SharedInput
        Layers that are computed together in training, and whose weights are away meanwhile (`FrozenLinear`).
    saved : dict or None
        Parameters by their names in a saved adapter, once `lora_cls.modeling.adapter` looked them up.
    """

    def __init__(
        self, backbone: nn.Module, pooling: str, dropout: float = 0.0, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self.backbone = backbone
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.global_first = takes_global_attention(self.base)
        self.n_frozen_layers = lowest_trained_layer(self.base, HEAD) if self.has_adapter else 0
        # a plain list: they are the base's already; and found once, as stand-ins may take their place later
        self._trained_layers = list(find_layers(self.base)[1])[self.n_frozen_layers :] if self.n_frozen_layers else []
        self.reuse: Callable[[torch.Tensor, torch.Tensor], AbstractContextManager[None]] | None = None
        self.last_layer: ReadPlaces | None = None
        self.shared_inputs: list[SharedInput] = []
        self.saved: dict[str, nn.Parameter] | None = None
        self._initial = (
            {
                name: parameter.detach().to("cpu", copy=True)
                for name, parameter in self.named_parameters()
                if parameter.requires_grad and not parameter.is_meta  # no data where only memory is estimated
            }
            if self.has_adapter
            else {}
        )

    @property
    def has_adapter(self) -> bool:
        """False for full fine-tuning."""
        return hasattr(self.backbone, "get_base_model")

    @property
    def base(self) -> Any:
        """The transformer itself, adapters injected where there are any."""
        backbone: Any = self.backbone
        return backbone.get_base_model() if self.has_adapter else backbone

    def restore_initial(self) -> None:
        """Put every trained parameter back to its value when the model was built; nothing for full fine-tuning."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name in self._initial:
                    parameter.copy_(self._initial[name])

    def train(self, mode: bool = True) -> SequenceClassifier:
        """Training mode, but for what lies below the lowest adapter: without dropout it says the same every time, and
        can be computed once."""
        if not mode:  # before the mode says so: this may be broken off
            for shared in self.shared_inputs:
                shared.restore()
        super().train(mode)
        if mode and self.n_frozen_layers:
            self.base.eval()
            for layer in self._trained_layers:
                layer.train()
            if hasattr(self.base, HEAD):
                getattr(self.base, HEAD).train()
        return self

    def last_hidden_state(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The base's output, Tensor of shape (n_rows, n_tokens, hidden_size)."""
        options = {}
        if self.global_first:
            first = attention_mask.argmax(1, keepdim=True)
            options["global_attention_mask"] = torch.zeros_like(attention_mask).scatter(1, first, 1)
        # Accelerate's own autocast follows the precision of the last Accelerator made in the process, not the model's
        mixed = torch.autocast(input_ids.device.type, dtype=self.dtype) if self.dtype is not None else nullcontext()
        with mixed:
            hidden: torch.Tensor = self.base(
                input_ids=input_ids, attention_mask=attention_mask, **options
            ).last_hidden_state
        return hidden

    def hidden_states(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The base's output and the mask on the model's device; what is known of the frozen layers is not computed."""
        device = next(self.parameters()).device
        known = self.reuse(input_ids, attention_mask) if self.reuse else nullcontext()
        input_ids, attention_mask = input_ids.to(device), attention_mask.to(device)
        with known:
            return self.last_hidden_state(input_ids, attention_mask), attention_mask

    def pooled(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """What the head reads, Tensor of shape (n_rows, hidden_size), float32, on the model's device."""
        if self.last_layer is None:
            return pool(*self.hidden_states(input_ids, attention_mask), self.pooling)
        with self.last_layer.only(read_places(attention_mask, self.pooling)):
            return pool(*self.hidden_states(input_ids, attention_mask), self.pooling)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Logits, Tensor of shape (n_rows, n_labels), float32, on the model's device; ids and mask best on the CPU."""
        pooled = self.dropout(self.pooled(input_ids, attention_mask))
        with torch.autocast(pooled.device.type, enabled=False):  # the head stays in fp32 whatever the base computes in
            return getattr(self.base, HEAD)(pooled)


def linear_layer(hidden_size: int, n_labels: int) -> nn.Module:
    """The plain head, in fp32."""
    return nn.Linear(hidden_size, n_labels, dtype=torch.float32)


def attach_head(base: nn.Module, n_labels: int, layer: Callable[[int, int], nn.Module] = linear_layer) -> None:
    """Give `base` a fresh head as `base.score`; `layer` makes it, given the hidden size and the number of labels."""
    config: Any = base.config
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    setattr(base, HEAD, layer(text_config.hidden_size, n_labels).to(next(base.parameters()).device))


def reset_head(head: nn.Module) -> None:
    """Small normal weights and zero bias: the first logits are near 0, whatever the scale of the hidden state."""
    for name, parameter in head.named_parameters():
        with torch.no_grad():
            if name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.normal_(0.0, 0.02)
