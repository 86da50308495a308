"""What a fold is trained on: a loss for any of its pieces of text."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import nn

from lora_cls.recipe import Recipe
from lora_cls.text.tokens import Tokens
from lora_cls.training.losses import training_loss


class Objective(Protocol):
    """The training rows of one fold, and the loss of some of them."""

    lengths: np.ndarray
    """Tokens per piece, shape (n_pieces,): pieces of similar length are batched together."""

    def loss(self, model: nn.Module, pieces: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        """The loss of one batch.

        Returns
        -------
        loss : Tensor of shape (), summed over the pieces; divided by their number where a step is complete
        attention_mask : ndarray of shape (n_rows, n_tokens), to count tokens and padding by
        """
        ...


class ClassificationObjective:
    """Labels from logits, with positive or class weights.

    Parameters
    ----------
    tokens : the fold's training texts
    targets : ndarray of shape (n_texts, n_labels), 0 to 1
    weight : ndarray of shape (n_labels,), see `lora_cls.training.losses`
    row_weight : ndarray of shape (n_texts,), 0 or more; None counts every text alike

    A text in several pieces counts once: each piece by its share. Weights are scaled to a mean of 1 over the pieces,
    so that they change what counts, and not how fast it is learnt.
    """

    def __init__(
        self,
        tokens: Tokens,
        targets: np.ndarray,
        weight: np.ndarray,
        recipe: Recipe,
        pad_id: int,
        row_weight: np.ndarray | None = None,
    ) -> None:
        self.tokens, self.recipe, self.pad_id = tokens, recipe, pad_id
        self.lengths = tokens.lengths
        self.targets = torch.as_tensor(targets[tokens.text], dtype=torch.float32)
        self.weight = torch.as_tensor(weight, dtype=torch.float32)
        of_text = np.ones(tokens.n_texts) if row_weight is None else row_weight
        of_piece = (of_text / tokens.n_pieces)[tokens.text]
        self.piece_weight = torch.as_tensor(of_piece / of_piece.mean(), dtype=torch.float32)

    def loss(self, model: nn.Module, pieces: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        """See `Objective.loss`."""
        ids, mask = self.tokens.batch(pieces, self.pad_id)
        logits = model(torch.from_numpy(ids), torch.from_numpy(mask))
        device = logits.device
        targets, of_piece = self.targets[pieces].to(device), self.piece_weight[pieces].to(device)
        weight, recipe = self.weight.to(device), self.recipe
        return training_loss(logits, targets, weight, recipe.loss, of_piece, recipe.task), mask
