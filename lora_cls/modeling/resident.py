"""Models that stay in memory between answers: bases loaded once for all runs on them, and what each fold trained."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from itertools import chain
from pathlib import Path
from weakref import WeakKeyDictionary

import psutil
import torch
from torch import nn

from lora_cls.modeling.classifier import SequenceClassifier


class ResidentModels:
    """What a server keeps: it answers often, and a few texts at a time.

    Reading a fold's weights takes as long as answering for a text or two, and several runs often stand on one base.
    Here a base is loaded once, each run gets modules of its own around the same weights, and folds take turns by
    handing over tensors, not by copying them.

    Parameters
    ----------
    room : bytes for the weights of models that were trained as a whole; beyond it they are read at each answer. Half
        of the memory that is free where None. (Adapters are small, and always kept.)
    """

    def __init__(self, room: int | None = None) -> None:
        self._room = psutil.virtual_memory().available // 2 if room is None else room
        self._bases: dict[Hashable, nn.Module] = {}
        self._trained: dict[Path, list[torch.Tensor]] = {}
        self._inside: WeakKeyDictionary[SequenceClassifier, Path] = WeakKeyDictionary()

    @property
    def n_bases(self) -> int:
        """Bases that were loaded."""
        return len(self._bases)

    def base(self, key: Hashable, load: Callable[[], nn.Module]) -> nn.Module:
        """A base with modules of its own: adapters and heads can be put on it.

        Parameters
        ----------
        key : the same for the same weights
        load : called for a key that is new
        """
        if key not in self._bases:
            self._bases[key] = load()
        return with_same_weights(self._bases[key])

    def put(self, model: SequenceClassifier, place: Path, read: Callable[[], None]) -> None:
        """Put into a model what was trained and lies in `place`.

        Parameters
        ----------
        read : reads it from there, into the tensors that the model has
        """
        if self._inside.get(model) == place:
            return
        self._inside.pop(model, None)  # for the case that it cannot be read
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        kept = self._trained.get(place)
        if kept is None:
            for parameter in trained:  # the tensors that it has are another fold's
                parameter.data = torch.empty_like(parameter.data)
            read()
            size = 0 if model.has_adapter else sum(parameter.nbytes for parameter in trained)
            if size <= self._room:
                self._room -= size
                self._trained[place] = [parameter.data for parameter in trained]
        else:
            for parameter, data in zip(trained, kept, strict=True):
                parameter.data = data
        self._inside[model] = place


def with_same_weights(base: nn.Module) -> nn.Module:
    """A copy of all modules around the very same parameters and buffers."""
    tensors = list(chain(base.parameters(), base.buffers()))
    beside = (value for tensor in tensors for value in vars(tensor).values())  # as bitsandbytes keeps its scales
    shared = [*tensors, *(value for value in beside if not isinstance(value, nn.Module))]
    return copy.deepcopy(base, {id(value): value for value in shared})
