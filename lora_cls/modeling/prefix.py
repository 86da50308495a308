"""The layers below the lowest adapter: what they say of a text never changes, so it need be computed only once.

Their place is taken, for one forward pass, by stand-ins that hand out the hidden state computed before. The list of
layers keeps its length and the model its own code (masks, positions, per-layer settings), so that this works for any
model whose layers take the hidden state as their first argument; where it does not, `Prefix.find` says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from lora_cls.errors import BackboneError
from lora_cls.modeling.classifier import HEAD, SequenceClassifier, pool
from lora_cls.modeling.layers import find_layers
from lora_cls.modeling.precision import is_out_of_memory
from lora_cls.text.tokens import pad

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}  # of the greatest value


class _Reached(Exception):  # noqa: N818 - not an error
    """The first layer above the prefix is reached: nothing more is to be computed."""


class _StandIn(nn.Module):
    """In place of a layer; shows the layer's own attributes, which some models read (ModernBERT: `attention_type`)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.__dict__["layer"] = layer  # no submodule: it must not be counted, moved or trained twice

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["layer"], name)


class _Note(_StandIn):
    """Runs the layer and keeps its output."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.__dict__["output"] = output = self.layer(*args, **kwargs)
        return output


class _Stop(_StandIn):
    """Keeps what comes in, and ends the pass."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.__dict__["hidden"] = hidden_states
        raise _Reached


class _Pass(_StandIn):
    """Hands on what comes in, in the form of a layer's output."""

    def __init__(self, layer: nn.Module, form: Form) -> None:
        super().__init__(layer)
        self.__dict__["form"] = form

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.form.wrap(hidden_states)


class _Supply(_Pass):
    """Hands out known hidden states, zeros at padding, on whichever side that stands."""

    def __init__(self, layer: nn.Module, form: Form, rows: Sequence[torch.Tensor], mask: torch.Tensor) -> None:
        super().__init__(layer, form)
        self.__dict__["rows"], self.__dict__["mask"] = rows, mask

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        form, rows = self.form, self.rows
        shape = list(hidden_states.shape)
        n_tokens = shape[form.token_axis]  # some models pad further on the right, inside (Longformer)
        padded = torch.zeros(len(rows), n_tokens, rows[0].shape[1], dtype=rows[0].dtype)
        padded[:, : self.mask.shape[1]][self.mask] = torch.cat(list(rows))
        return form.wrap(form.turn(padded.to(hidden_states.device, non_blocking=True)))


class Form:
    """How a model's layers hand their hidden state on.

    Parameters
    ----------
    output : of a layer: a tensor, a tuple beginning with it, or a mapping
    token_axis : 1 for (n_rows, n_tokens, hidden_size), 2 for (n_rows, hidden_size, n_tokens)
    """

    def __init__(self, output: Any, token_axis: int) -> None:
        self.token_axis = token_axis
        self.length = len(output) if isinstance(output, tuple) else None
        self.keys = list(output) if isinstance(output, dict) else None

    def wrap(self, hidden: torch.Tensor) -> Any:
        """The hidden state as a layer would return it."""
        if self.length is not None:
            return (hidden, *[None] * (self.length - 1))
        if self.keys is not None:
            return {key: hidden if i == 0 else None for i, key in enumerate(self.keys)}
        return hidden

    def turn(self, hidden: torch.Tensor) -> torch.Tensor:
        """Between (n_rows, n_tokens, hidden_size) and the model's own order of axes."""
        return hidden if self.token_axis == 1 else hidden.transpose(1, 2).contiguous()


class Prefix:
    """The layers of a model below its lowest adapter.

    Parameters
    ----------
    model : with adapters; see `Prefix.find`
    n_layers : how many layers the prefix has, 1 or more
    form : see `Form`
    """

    def __init__(self, model: SequenceClassifier, n_layers: int, form: Form) -> None:
        self.model, self.n_layers, self.form = model, n_layers, form
        self.layers = find_layers(model.base)[1]

    @classmethod
    def find(cls, model: SequenceClassifier, ids: Sequence[np.ndarray]) -> Prefix:
        """The prefix of a model whose lowest layers are not trained, tried out on a few texts.

        Parameters
        ----------
        ids : list of ndarray of shape (n_tokens,), token ids of some texts

        Raises
        ------
        BackboneError
            If the model with stand-ins does not compute what it computes without them; it must then do without.
        """
        n_layers = model.n_frozen_layers
        config: Any = model.base.config
        hidden_size = config.get_text_config().hidden_size
        # which axis holds the tokens can only be told where their number is another than the hidden size
        few = [row[:-1] if len(row) == hidden_size else row for row in ids]
        input_ids, mask = _padded(few)
        prefix = cls(model, n_layers, Form(torch.empty(0), 1))
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                output, hidden = prefix._below(input_ids, mask)
                axes = [axis for axis in (1, 2) if hidden.ndim == 3 and hidden.shape[3 - axis] == hidden_size]
                if not axes:
                    raise BackboneError(f"its layers are given a tensor of shape {tuple(hidden.shape)}.")
                prefix.form = Form(output, axes[0])
                rows = prefix.hidden(few)
                device = next(model.parameters()).device
                plain = model.last_hidden_state(input_ids.to(device), mask.to(device))
                with prefix.stand_in(rows, mask.bool()):
                    stood_in = model.last_hidden_state(input_ids.to(device), mask.to(device))
        except (TypeError, ValueError, KeyError, AttributeError, IndexError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            # whatever a model of foreign code does with a layer that is none
            raise BackboneError(f"{type(error).__name__}: {error}") from error
        finally:
            model.train(was_training)
        plain, stood_in = (pool(hidden, mask.to(hidden.device), model.pooling) for hidden in (plain, stood_in))
        off = float((plain - stood_in).abs().max() / plain.abs().max().clamp(min=1e-6))
        if not off <= TOLERANCE.get(rows[0].dtype, 1e-4):
            raise BackboneError(f"its answers change by {off:.2g}.")
        return prefix

    def hidden(self, ids: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """What enters the first layer above the prefix, for a batch of texts.

        Returns
        -------
        list of Tensor of shape (n_tokens, hidden_size), on the CPU, in the model's own dtype
        """
        input_ids, mask = _padded(ids)
        with torch.no_grad():
            _, hidden = self._below(input_ids, mask)
        hidden = self.form.turn(hidden).cpu()
        return [row[: len(piece)] for row, piece in zip(hidden, ids, strict=True)]

    @contextmanager
    def stand_in(self, rows: Sequence[torch.Tensor], mask: torch.Tensor) -> Iterator[None]:
        """Within it, the model takes these hidden states (see `hidden`) instead of computing the prefix.

        Parameters
        ----------
        rows : hidden states of the batch's texts
        mask : Tensor of shape (n_rows, n_tokens), bool, on the CPU: where in the batch they stand
        """
        stand_ins: list[nn.Module] = [_Pass(layer, self.form) for layer in list(self.layers)[: self.n_layers - 1]]
        stand_ins.append(_Supply(self.layers[self.n_layers - 1], self.form, rows, mask))
        with self._replaced(dict(enumerate(stand_ins))):
            yield

    def _below(self, input_ids: torch.Tensor, mask: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """Output of the prefix's last layer, and what the layer above it is given."""
        device = next(self.model.parameters()).device
        last, stop = _Note(self.layers[self.n_layers - 1]), _Stop(self.layers[self.n_layers])
        with self._replaced({self.n_layers - 1: last, self.n_layers: stop}):
            try:
                self.model.last_hidden_state(input_ids.to(device), mask.to(device))
            except _Reached:
                return last.output, stop.hidden
        raise BackboneError("its layers are not called one after the other.")

    @contextmanager
    def _replaced(self, modules: dict[int, nn.Module]) -> Iterator[None]:
        before = {i: self.layers[i] for i in modules}
        try:
            for i, module in modules.items():
                self.layers[i] = module
            yield
        finally:
            for i, module in before.items():
                self.layers[i] = module

    def state(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and values of all that the prefix computes with: embeddings and its layers."""
        base = self.model.base
        path = find_layers(base)[0]
        above = tuple(f"{path}.{i}." for i in range(self.n_layers, len(self.layers)))
        for name, value in sorted(base.state_dict().items()):
            if isinstance(value, torch.Tensor) and not name.startswith((*above, f"{HEAD}.")):
                yield name, value


def _padded(ids: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    input_ids, mask = pad(ids, 0)
    return torch.from_numpy(input_ids), torch.from_numpy(mask)
