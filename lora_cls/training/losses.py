"""Losses and the weights that counter imbalance."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from lora_cls.errors import RecipeError
from lora_cls.recipe import Loss


def pos_weight(labels: np.ndarray, loss: Loss) -> np.ndarray:
    """One positive weight per label, from the rows that train.

    `balanced` is negatives / positives within each label, as in the documentation of
    `torch.nn.BCEWithLogitsLoss`: positives and negatives of a label then weigh the same. Computed weights are capped
    at `loss.max_pos_weight`; a label without positives, whose loss no weight changes, gets 1.

    Parameters
    ----------
    labels : ndarray of shape (n_samples, n_labels), 0 or 1

    Returns
    -------
    ndarray of shape (n_labels,), float64, greater than 0

    Raises
    ------
    RecipeError
        If a given list does not hold one positive number per label.
    """
    n_labels = labels.shape[1]
    if isinstance(loss.pos_weight, list):
        if len(loss.pos_weight) != n_labels or not all(0 < weight < np.inf for weight in loss.pos_weight):
            raise RecipeError(
                f"loss.pos_weight must hold {n_labels} numbers above 0, one per label. Got {loss.pos_weight} instead."
            )
        return np.array(loss.pos_weight, dtype=np.float64)
    positives = labels.sum(axis=0).astype(np.float64)
    balanced = np.where(positives > 0, (len(labels) - positives) / np.maximum(positives, 1), 1.0)
    if loss.pos_weight == "none":
        return np.ones(n_labels)
    weights = np.sqrt(balanced) if loss.pos_weight == "sqrt" else balanced
    # A label without negatives would get weight 0, whose logarithm corrects nothing; cap both ways.
    return np.clip(weights, 1 / loss.max_pos_weight, loss.max_pos_weight)


def bce_loss(logits: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Weighted binary cross-entropy, summed over rows, averaged over labels.

    Summed over rows so that gradient accumulation over batches of different size divides once by all rows of a step.

    Parameters
    ----------
    logits, targets : Tensor of shape (n_rows, n_labels), float32
    weight : Tensor of shape (n_labels,), the positive weights
    """
    return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weight, reduction="sum") / logits.shape[1]
