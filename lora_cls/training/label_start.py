"""Where a head of label tokens starts: the labels' own words, read before any training."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lora_cls.evaluation import Link
from lora_cls.modeling.adapter import trainable_head
from lora_cls.modeling.classifier import SequenceClassifier
from lora_cls.text.tokens import Tokens
from lora_cls.training.batches import EvalBatches

START_ROWS = 1024  # enough for a mean and an AUC, and less than a minute's reading


class LabelStart:
    """Scores of the untrained base for a sample of the training rows.

    They are scores, not probabilities: nothing has been fitted to any label yet.

    Parameters
    ----------
    directions : Tensor of shape (n_labels, hidden_size), see `label_directions`
    pooled : Tensor of shape (n_rows, hidden_size), what the head reads of the sampled rows
    rows : ndarray of shape (n_rows,), positions of the sample among the training rows
    """

    def __init__(self, directions: torch.Tensor, pooled: torch.Tensor, rows: np.ndarray) -> None:
        self.directions, self.pooled, self.rows = directions, pooled, rows

    def roc_auc(self, labels: np.ndarray) -> list[float | None]:
        """ROC-AUC of each label's score over the sample; None where only one class is in it."""
        from sklearn.metrics import roc_auc_score

        truth, scores = labels[self.rows], (self.pooled @ self.directions.T).numpy()
        return [
            round(float(roc_auc_score(t, s)), 4) if 0 < t.sum() < len(t) else None
            for t, s in zip(truth.T, scores.T, strict=True)
        ]

    def begin(
        self,
        model: SequenceClassifier,
        train_rows: np.ndarray,
        labels: np.ndarray,
        weight: np.ndarray,
        link: Link,
        row_weight: np.ndarray | None = None,
    ) -> None:
        """Start the head of a fold: its mean logit over the fold's training rows becomes their prior log-odds.

        With positive weights w the ideal logit is the log-odds plus log w, and so is the level to start from; for a
        softmax over classes it is the log of the prior, plus log w.

        Parameters
        ----------
        train_rows : positions of the fold's training rows
        labels : ndarray of shape (n_samples, n_labels), of all training rows; 0 to 1
        weight : ndarray of shape (n_labels,)
        link : the task's
        row_weight : ndarray of shape (n_samples,), of all training rows; None counts every row alike
        """
        mine = np.isin(self.rows, train_rows)
        mine = mine if mine.any() else np.ones(len(mine), dtype=bool)
        of_row = np.ones(len(train_rows)) if row_weight is None else row_weight[train_rows]
        positives = (of_row / of_row.mean()) @ labels[train_rows]
        share = (positives + 0.5) / (len(train_rows) + 1)  # half a row more: 0 and 1 stay finite
        prior = link.logits(share)
        head: Any = trainable_head(model)
        device = head.weight.device
        level = torch.as_tensor(prior + np.log(weight), dtype=torch.float32, device=device)
        head.start(self.directions.to(device), self.pooled[torch.from_numpy(mine)].to(device), level)


def read_pooled(model: SequenceClassifier, tokens: Tokens, *, batches: EvalBatches, pad_id: int) -> torch.Tensor:
    """What the head would read of each text (of its first piece), Tensor of shape (n_texts, hidden_size), float32."""
    first = np.append(0, np.cumsum(tokens.n_pieces)[:-1]) if tokens.n_texts else np.zeros(0, dtype=np.int64)
    found: list[torch.Tensor | None] = [None] * len(first)

    def answer(texts: np.ndarray) -> None:
        ids, mask = tokens.batch(first[texts], pad_id)
        pooled = model.pooled(torch.from_numpy(ids), torch.from_numpy(mask)).cpu()
        for i, row in zip(texts, pooled, strict=True):
            found[i] = row

    model.eval()
    with torch.no_grad():
        batches.each(tokens.lengths[first], answer)
    return torch.stack([row for row in found if row is not None])
