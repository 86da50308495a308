"""Averaged weights: what is evaluated and saved in the place of the weights that are trained.

`train.ema_decay` keeps an exponential moving average, `train.average_epochs` the mean of the last epochs' ends; with
both it is the mean of what the moving average was at these ends. Training itself goes on from the raw weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from lora_cls.recipe import Train
from lora_cls.training.checkpoint import Weights, restore, trainable


def decay_at(step: int, decay: float) -> float:
    """The decay of the moving average at a step, counted from 0: min(decay, (1 + step) / (10 + step)).

    The warm-up is that of TensorFlow's `tf.train.ExponentialMovingAverage` (its `num_updates`): without it an average
    of 0.999 would for the first thousand steps be mostly the weights before training.
    """
    return min(decay, (1 + step) / (10 + step))


class WeightAverages:
    """The averages of one fold, started at the model's weights.

    Polyak and Juditsky 1992, "Acceleration of stochastic approximation by averaging"; for transformers' checkpoints
    Vaswani et al. 2017, "Attention is all you need" (section 6.1).

    Parameters
    ----------
    model : as it is before training
    train : its `ema_decay` and `average_epochs`
    n_epochs : how many will be trained

    Attributes
    ----------
    kept : the averages by name, `moving` (on the model's device) and `mean` (on the CPU, as it is needed once an
        epoch), each with all trained weights: what a state file holds; empty where nothing is averaged
    """

    def __init__(self, model: nn.Module, train: Train, n_epochs: int) -> None:
        self.model, self.decay = model, train.ema_decay
        self.first = n_epochs - train.average_epochs + 1 if train.average_epochs > 1 else None
        self.kept: dict[str, Weights] = {}
        self._weights = trainable(model)
        if self.decay is not None:
            self.kept["moving"] = {name: weight.detach().clone() for name, weight in self._weights.items()}

    def resume(self, found: Mapping[str, Weights]) -> None:
        """Go on from the averages of a state file, by name."""
        for name, tensors in found.items():
            if name in self.kept:
                for key, tensor in tensors.items():
                    self.kept[name][key].copy_(tensor)
            else:
                self.kept[name] = dict(tensors)

    def after_step(self, step: int) -> None:
        """Take in the weights after an optimizer step, counted from 0."""
        if self.decay is not None:
            with torch.no_grad():  # as `torch.optim.swa_utils.get_ema_multi_avg_fn`, in place, with a decay that rises
                torch._foreach_lerp_(
                    list(self.kept["moving"].values()), list(self._weights.values()), 1 - decay_at(step, self.decay)
                )

    def after_epoch(self, epoch: int) -> None:
        """Take in the weights that an epoch ends with, counted from 1."""
        if self.first is None or epoch < self.first:
            return
        ends = self.kept.get("moving", self._weights)
        if "mean" not in self.kept:
            self.kept["mean"] = {name: end.detach().to("cpu", copy=True) for name, end in ends.items()}
        else:
            for name, mean in self.kept["mean"].items():
                mean.lerp_(ends[name].detach().cpu(), 1 / (epoch - self.first + 1))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it the model has the moving average for its weights, where there is one."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        with torch.no_grad():
            for name, average in self.kept.get("moving", {}).items():
                raw = self._weights[name].detach().clone()
                self._weights[name].copy_(average)
                average.copy_(raw)

    def finish(self) -> None:
        """Put what is to be saved into the model, once all epochs are trained."""
        final = self.kept.get("mean") or self.kept.get("moving")
        if final is not None:
            restore(self.model, final)
