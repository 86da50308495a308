"""Losses and the weights that counter imbalance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from lora_cls.errors import RecipeError, shown
from lora_cls.evaluation import task_of
from lora_cls.recipe import Loss, TaskName


class LabelFacts(NamedTuple):
    """What a loss knows of each label beside its positive weight, arrays or tensors of shape (n_labels,)."""

    share: Any
    """Share of the fold's training rows with the label, see `label_shares`."""
    factor: Any
    """`loss.label_weights`: factors on all of a label's terms."""

    @classmethod
    def of(
        cls, targets: np.ndarray, row_weight: np.ndarray | None, loss: Loss, label_names: Sequence[str]
    ) -> LabelFacts:
        """The facts of a fold, from the rows that train; see `pos_weight` for the arrays."""
        factor = np.array([(loss.label_weights or {}).get(name, 1.0) for name in label_names])
        return cls(label_shares(targets, row_weight), factor)

    def tensors(self, like: torch.Tensor) -> LabelFacts:
        """Both in a tensor's precision and on its device."""
        return LabelFacts(*(torch.as_tensor(values, dtype=like.dtype, device=like.device) for values in self))


def label_shares(targets: np.ndarray, row_weight: np.ndarray | None = None) -> np.ndarray:
    """Share of the rows with each label, ndarray of shape (n_labels,); soft labels and row weights as in `pos_weight`.

    Of n rows it is kept within 1 / (n + 1) and n / (n + 1): a label that no row has, or every row, has finite odds.
    """
    n = len(targets)
    shares = np.average(targets.astype(np.float64), axis=0, weights=row_weight)
    return np.clip(shares, 1 / (n + 1), n / (n + 1))


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

    `loss.name: distribution_balanced` weighs rows by itself, and what is given here only corrects probabilities: see
    `_hidden_weight`.

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
    if loss.name == "distribution_balanced":
        return _hidden_weight(labels, loss, row_weight)
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


def _hidden_weight(labels: np.ndarray, loss: Loss, row_weight: np.ndarray | None) -> np.ndarray:
    """The positive weight that `distribution_balanced` comes to, ndarray of shape (n_labels,): its ideal logit is the
    log-odds plus the log of this.

    Of a label it is the mean rebalanced weight of positives over that of negatives, capped at `loss.max_pos_weight`,
    times exp(nu), by which the loss moves the logit. Exact for lambda 1 and gamma 0 where rows of like texts have like
    weights; else an approximation, which is best near an even chance: lambda above 1 draws low log-odds towards 0.
    """
    targets, share = torch.as_tensor(labels, dtype=torch.float64), torch.as_tensor(label_shares(labels, row_weight))
    of_row = torch.ones(len(labels), 1, dtype=torch.float64)
    if row_weight is not None:
        of_row = torch.as_tensor(row_weight, dtype=torch.float64)[:, None]
    weights = _rebalanced(targets, share, loss)
    positive, negative = of_row * targets, of_row * (1 - targets)
    ratio = (weights * positive).sum(0) / positive.sum(0) * negative.sum(0) / (weights * negative).sum(0)
    ratio = ratio.nan_to_num(nan=1.0).clamp(1 / loss.max_pos_weight, loss.max_pos_weight)  # nan: all rows alike
    return (ratio * torch.exp(-loss.db_kappa * torch.logit(share))).numpy()


def training_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    weight: torch.Tensor,
    loss: Loss,
    row_weight: torch.Tensor | None = None,
    task: TaskName | None = None,
    facts: LabelFacts | None = None,
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
    facts : of the labels; None where the loss needs none and all labels count alike
    """
    form, exclusive = LOSSES[loss.name], task_of(task).exclusive
    smoothing = loss.label_smoothing
    if smoothing:
        targets = targets * (1 - smoothing) + smoothing / (targets.shape[1] if exclusive else 2)
    if exclusive:
        assert form.of_classes is not None  # the recipe refuses it
        of_row = -(weight * targets * form.of_classes(F.log_softmax(logits, dim=1), loss)).sum(1)
    else:
        if facts is None:  # shares that nothing reads, and all labels alike
            facts = LabelFacts(torch.full_like(weight, 0.5), torch.ones_like(weight))
        facts = facts.tensors(logits)
        of_row = (form.of_labels(logits, targets, weight, loss, facts.share) * facts.factor).mean(1)
    return of_row.sum() if row_weight is None else (of_row * row_weight).sum()


def teachers_loss(
    logits: torch.Tensor,
    taught: torch.Tensor,
    weight: torch.Tensor,
    loss: Loss,
    temperature: float,
    row_weight: torch.Tensor | None = None,
    task: TaskName | None = None,
    facts: LabelFacts | None = None,
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
    weight, row_weight, facts : see `training_loss`
    """
    scaled = taught / temperature
    targets = F.softmax(scaled, dim=1) if task_of(task).exclusive else torch.sigmoid(scaled)
    plain = loss.model_copy(update={"name": "bce", "label_smoothing": 0.0})
    at_temperature = training_loss(
        logits / temperature, targets, weight ** (1 / temperature), plain, row_weight, task, facts
    )
    return at_temperature * temperature**2


def _cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor, loss: Loss, share: torch.Tensor
) -> torch.Tensor:
    """As `torch.nn.BCEWithLogitsLoss`."""
    return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weight, reduction="none")


def _focal(
    logits: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor, loss: Loss, share: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy times (1 - p of the truth)^gamma. Lin et al. 2017, "Focal loss for dense object detection"."""
    p, gamma = torch.sigmoid(logits), loss.focal_gamma
    positive, negative = (1 - p) ** gamma * F.logsigmoid(logits), p**gamma * F.logsigmoid(-logits)
    return -(weight * targets * positive + (1 - targets) * negative)


def _asymmetric(
    logits: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor, loss: Loss, share: torch.Tensor
) -> torch.Tensor:
    """Focal with a gamma each for positives and negatives, and the probability of negatives lowered by a margin.

    Ridnik et al. 2021, "Asymmetric loss for multi-label classification".
    """
    p = torch.sigmoid(logits)
    lowered = (p - loss.probability_margin).clamp(min=0)
    positive = (1 - p) ** loss.gamma_positive * F.logsigmoid(logits)
    negative = lowered**loss.gamma_negative * torch.log1p(-lowered.clamp(max=1 - 1e-6))
    return -(weight * targets * positive + (1 - targets) * negative)


def _distribution_balanced(
    logits: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor, loss: Loss, share: torch.Tensor
) -> torch.Tensor:
    """Weights that count which labels occur together, and a loss that pushes negatives less far.

    Wu et al. 2020, "Distribution-balanced loss for multi-label classification in long-tailed datasets": the weight
    r-hat (`_rebalanced`) on both terms, and with x = z - nu, nu = -kappa * b-hat, b-hat = log(share / (1 - share)),
    log(1 + exp(-x)) of positives and log(1 + exp(lambda x)) / lambda of negatives. Times the focal factor
    (1 - p of the truth)^gamma, as Huang et al. 2021, "Balancing methods for multi-label text classification with
    long-tailed class distribution", whose defaults are ours; without their constant factor 1/2. `weight` is not read.
    """
    x, scale, gamma = logits + loss.db_kappa * torch.logit(share), loss.db_lambda, loss.focal_gamma
    positive = torch.sigmoid(-x) ** gamma * F.logsigmoid(x)
    negative = torch.sigmoid(scale * x) ** gamma * F.logsigmoid(-scale * x) / scale
    return -_rebalanced(targets, share, loss) * (targets * positive + (1 - targets) * negative)


def _rebalanced(targets: torch.Tensor, share: torch.Tensor, loss: Loss) -> torch.Tensor:
    """r-hat = alpha + sigmoid(beta * (r - mu)) of Wu et al. 2020, Tensor of shape (n_rows, n_labels).

    r is 1 / share of a label over the sum of 1 / share of the row's labels: how often the row would be drawn for this
    label, of all its draws where every label draws alike often. Of a row without labels it is infinite, and r-hat
    alpha + 1, as in the authors' code.
    """
    drawn = 1 / share
    return loss.db_alpha + torch.sigmoid(loss.db_beta * (drawn / (targets @ drawn)[:, None] - loss.db_mu))


@dataclass(frozen=True)
class LossForm:
    """What a loss computes.

    Attributes
    ----------
    of_labels : terms of shape (n_rows, n_labels) from logits, smoothed targets, positive weights, the settings and the
        labels' shares
    of_classes : what each class's log-probability, of shape (n_rows, n_classes), becomes before it is weighted,
        multiplied by the targets and summed; None for a loss that classes have no form of
    """

    of_labels: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Loss, torch.Tensor], torch.Tensor]
    of_classes: Callable[[torch.Tensor, Loss], torch.Tensor] | None


LOSSES = {
    "bce": LossForm(_cross_entropy, lambda log_p, _: log_p),
    "focal": LossForm(_focal, lambda log_p, loss: (1 - log_p.exp()) ** loss.focal_gamma * log_p),
    "asymmetric": LossForm(_asymmetric, None),
    "distribution_balanced": LossForm(_distribution_balanced, None),
}
"""By `loss.name`; another one is an entry here, and a name in `lora_cls.recipe.Loss`."""


def validation_loss(
    logits: np.ndarray,
    targets: np.ndarray,
    weight: np.ndarray,
    loss: Loss,
    task: TaskName | None = None,
    facts: LabelFacts | None = None,
) -> float:
    """The recipe's loss as a score of held-out rows: their mean, every row once, without label smoothing.

    Positive weights stay, since the model answers under them; smoothing goes, since it would reward doubt.

    Parameters
    ----------
    logits, targets : ndarray of shape (n_rows, n_labels)
    weight : ndarray of shape (n_labels,), as in training
    task : the recipe's
    facts : of the labels, as in training
    """
    found, truth, factors = (torch.as_tensor(values, dtype=torch.float64) for values in (logits, targets, weight))
    plain = loss.model_copy(update={"label_smoothing": 0.0})
    return float(training_loss(found, truth, factors, plain, task=task, facts=facts)) / len(logits)
