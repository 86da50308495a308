"""Losses and the weights that counter imbalance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from lora_cls.errors import RecipeError, shown
from lora_cls.evaluation import task_of
from lora_cls.recipe import Loss, TaskName


def pos_weight(
    labels: np.ndarray, loss: Loss, row_weight: np.ndarray | None = None, task: TaskName | None = None
) -> np.ndarray:
    """One positive weight per label, from the rows that train; for `single_label` one weight per class.

    `balanced` is negatives / positives within each label, as in the documentation of
    `torch.nn.BCEWithLogitsLoss`: positives and negatives of a label then weigh the same; `sqrt` is its square root.
    `effective_number` takes effective instead of real counts, (1 - beta^n) / (1 - beta): Cui et al. 2019,
    "Class-balanced loss based on effective number of samples". Computed weights are capped at `loss.max_pos_weight`; a
    label without positives, whose loss no weight changes, gets 1.

    Of classes `balanced` is n_samples / (n_classes x rows of the class), as scikit-learn's: every class that occurs
    then weighs the same, and the mean weight of a row is 1. `effective_number` is inverse to effective counts, scaled
    to a sum of n_classes (Cui et al.'s own form).

    Soft labels count by their shares, and rows by their weights (scaled to a mean of 1), as they do in the loss.

    Parameters
    ----------
    labels : ndarray of shape (n_samples, n_labels), 0 to 1
    row_weight : ndarray of shape (n_samples,), 0 or more; None counts every row alike
    task : the recipe's

    Returns
    -------
    ndarray of shape (n_labels,), float64, greater than 0

    Raises
    ------
    RecipeError
        If a given list does not hold one positive number per label.

    Examples
    --------
    Three rows with the label and nine without: weighed three times, the positives count as much as the negatives.

    >>> labels = np.array([[1]] * 3 + [[0]] * 9)
    >>> pos_weight(labels, Loss(pos_weight="balanced")).tolist()
    [3.0]
    >>> pos_weight(labels, Loss(pos_weight="sqrt")).round(3).tolist()
    [1.732]
    """
    n_labels = labels.shape[1]
    if isinstance(loss.pos_weight, list):
        if len(loss.pos_weight) != n_labels or not all(0 < weight < np.inf for weight in loss.pos_weight):
            raise RecipeError(
                f"loss.pos_weight must hold {n_labels} numbers above 0, one per label. Got {shown(loss.pos_weight)} "
                "instead."
            )
        return np.array(loss.pos_weight, dtype=np.float64)
    values = labels.astype(np.float64)
    if row_weight is not None:
        values = values * (row_weight / row_weight.mean())[:, None]
    positives = values.sum(axis=0)
    if task_of(task).exclusive:
        return _class_weight(positives, loss)
    negatives = np.maximum(len(labels) - positives, 0.0)  # weighted sums may miss 0 by their last digit
    occurs = positives > 0
    balanced = np.where(occurs, negatives / np.where(occurs, positives, 1), 1.0)
    if loss.pos_weight == "none":
        return np.ones(n_labels)
    weights = np.sqrt(balanced) if loss.pos_weight == "sqrt" else balanced
    if loss.pos_weight == "effective_number":
        beta = loss.effective_number_beta
        weights = np.where(occurs, (1 - beta**negatives) / np.where(occurs, 1 - beta**positives, 1), 1.0)
    # A label without negatives would get weight 0, whose logarithm corrects nothing; cap both ways.
    return np.clip(weights, 1 / loss.max_pos_weight, loss.max_pos_weight)


def _class_weight(counts: np.ndarray, loss: Loss) -> np.ndarray:
    """Computed weights of classes from their numbers of rows (fractions where rows have weights); 1 for one without."""
    present = counts > 0
    rows = np.where(present, counts, 1.0)
    if loss.pos_weight == "none":
        return np.ones(len(counts))
    if loss.pos_weight == "effective_number":
        beta = loss.effective_number_beta
        weights = np.where(present, (1 - beta) / (1 - beta**rows), 0.0)
        weights *= present.sum() / max(weights.sum(), np.finfo(np.float64).tiny)
    else:
        weights = counts.sum() / (max(present.sum(), 1) * rows)
        weights = np.sqrt(weights) if loss.pos_weight == "sqrt" else weights
    return np.where(present, np.clip(weights, 1 / loss.max_pos_weight, loss.max_pos_weight), 1.0)


def training_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    weight: torch.Tensor,
    loss: Loss,
    row_weight: torch.Tensor | None = None,
    task: TaskName | None = None,
) -> torch.Tensor:
    """The recipe's loss, summed over rows, averaged over labels.

    Summed over rows so that gradient accumulation over batches of different size divides once by all rows of a step.

    Losses and their papers: see the functions of `LOSSES`, each for labels and for classes.

    Label smoothing: Szegedy et al. 2016, "Rethinking the Inception architecture for computer vision".

    `single_label` has the same losses over the softmax: cross-entropy, each class's term times its weight, as
    `torch.nn.CrossEntropyLoss(reduction="sum")`, which takes shares of classes as targets too; and its focal form, each
    term times (1 - p of the class)^gamma.

    The correction of probabilities by the weight is exact for `bce`, and approximate for the others.

    Parameters
    ----------
    logits, targets : Tensor of shape (n_rows, n_labels), float32
        For `single_label` the targets of a row add up to 1.
    weight : Tensor of shape (n_labels,), factors on the positives' terms
    row_weight : Tensor of shape (n_rows,), factors on the rows' losses; None for 1
    """
    form, exclusive = LOSSES[loss.name], task_of(task).exclusive
    smoothing = loss.label_smoothing
    if smoothing:
        targets = targets * (1 - smoothing) + smoothing / (targets.shape[1] if exclusive else 2)
    if exclusive:
        assert form.of_classes is not None  # the recipe refuses it
        of_row = -(weight * targets * form.of_classes(F.log_softmax(logits, dim=1), loss)).sum(1)
    else:
        of_row = form.of_labels(logits, targets, weight, loss).mean(1)
    return of_row.sum() if row_weight is None else (of_row * row_weight).sum()


def teachers_loss(
    logits: torch.Tensor,
    taught: torch.Tensor,
    weight: torch.Tensor,
    loss: Loss,
    temperature: float,
    row_weight: torch.Tensor | None = None,
    task: TaskName | None = None,
) -> torch.Tensor:
    """Cross-entropy to teachers' probabilities, summed over rows, averaged over labels: Hinton et al. 2015, "Distilling
    the knowledge in a neural network".

    Log-odds of both are divided by the temperature T, and the loss is multiplied by T^2, so that its gradients keep
    their size. Of classes this is the Kullback-Leibler divergence, and a constant.

    Teachers' log-odds z are corrected ones, without any weight, and a student that is trained with positive weights w
    must answer z + log w for its own correction to give z back. Positives count w^(1/T) times here: the loss -w^(1/T) q
    log s - (1 - q) log(1 - s), with q = sigmoid(z / T) and s = sigmoid(logit / T), is least at logit / T = z / T +
    (log w) / T, and so for classes. At T = 1 this is the recipe's own weighted cross-entropy, with probabilities in
    place of labels: its minimum with both is where the student says the mean of label and teachers, corrected.

    Parameters
    ----------
    logits : Tensor of shape (n_rows, n_labels), float32
    taught : Tensor of the same shape, the teachers' log-odds, or log-probabilities of classes
    weight, row_weight : see `training_loss`
    """
    scaled = taught / temperature
    targets = F.softmax(scaled, dim=1) if task_of(task).exclusive else torch.sigmoid(scaled)
    plain = loss.model_copy(update={"name": "bce", "label_smoothing": 0.0})
    at_temperature = training_loss(
        logits / temperature, targets, weight ** (1 / temperature), plain, row_weight=row_weight, task=task
    )
    return at_temperature * temperature**2


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor, loss: Loss) -> torch.Tensor:
    """As `torch.nn.BCEWithLogitsLoss`."""
    return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weight, reduction="none")


def _focal(logits: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor, loss: Loss) -> torch.Tensor:
    """Cross-entropy times (1 - p of the truth)^gamma. Lin et al. 2017, "Focal loss for dense object detection"."""
    p, gamma = torch.sigmoid(logits), loss.focal_gamma
    positive, negative = (1 - p) ** gamma * F.logsigmoid(logits), p**gamma * F.logsigmoid(-logits)
    return -(weight * targets * positive + (1 - targets) * negative)


def _asymmetric(logits: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor, loss: Loss) -> torch.Tensor:
    """Focal with a gamma each for positives and negatives, and the probability of negatives lowered by a margin.

    Ridnik et al. 2021, "Asymmetric loss for multi-label classification".
    """
    p = torch.sigmoid(logits)
    lowered = (p - loss.probability_margin).clamp(min=0)
    positive = (1 - p) ** loss.gamma_positive * F.logsigmoid(logits)
    negative = lowered**loss.gamma_negative * torch.log1p(-lowered.clamp(max=1 - 1e-6))
    return -(weight * targets * positive + (1 - targets) * negative)


@dataclass(frozen=True)
class LossForm:
    """What a loss computes.

    Attributes
    ----------
    of_labels : terms of shape (n_rows, n_labels) from logits, smoothed targets, positive weights and the settings
    of_classes : what each class's log-probability, of shape (n_rows, n_classes), becomes before it is weighted,
        multiplied by the targets and summed; None for a loss that classes have no form of
    """

    of_labels: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Loss], torch.Tensor]
    of_classes: Callable[[torch.Tensor, Loss], torch.Tensor] | None


LOSSES = {
    "bce": LossForm(_cross_entropy, lambda log_p, _: log_p),
    "focal": LossForm(_focal, lambda log_p, loss: (1 - log_p.exp()) ** loss.focal_gamma * log_p),
    "asymmetric": LossForm(_asymmetric, None),
}
"""By `loss.name`; another one is an entry here, and a name in `lora_cls.recipe.Loss`."""


def validation_loss(
    logits: np.ndarray, targets: np.ndarray, weight: np.ndarray, loss: Loss, task: TaskName | None = None
) -> float:
    """The recipe's loss as a score of held-out rows: their mean, every row once, without label smoothing.

    Positive weights stay, since the model answers under them; smoothing goes, since it would reward doubt.

    Parameters
    ----------
    logits, targets : ndarray of shape (n_rows, n_labels)
    weight : ndarray of shape (n_labels,), as in training
    task : the recipe's
    """
    found, truth, factors = (torch.as_tensor(values, dtype=torch.float64) for values in (logits, targets, weight))
    plain = loss.model_copy(update={"label_smoothing": 0.0})
    return float(training_loss(found, truth, factors, plain, task=task)) / len(logits)
