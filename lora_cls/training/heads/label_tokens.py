"""`head.kind: label_tokens`: a linear layer at the end of a prompt, started from the labels' own output embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lora_cls.evaluation import task_of
from lora_cls.text.prompts import label_words
from lora_cls.training.heads.base import FoldStart
from lora_cls.training.heads.linear import LinearHead
from lora_cls.training.rows import TrainingRows

if TYPE_CHECKING:
    from torch import nn

    from lora_cls.modeling.classifier import SequenceClassifier
    from lora_cls.modeling.source import Source
    from lora_cls.training.batches import EvalBatches


class LabelTokensHead(LinearHead):
    """See `ModelHead`. Saved, it is a plain linear layer."""

    continues_prompt: ClassVar[bool] = True

    @staticmethod
    def layer(hidden_size: int, n_labels: int) -> nn.Module:
        """See `LinearHead.layer`."""
        from lora_cls.modeling.label_tokens import LabelTokenHead

        return LabelTokenHead(hidden_size, n_labels)

    def read_base(
        self,
        untrained: Callable[[], SequenceClassifier],
        rows: TrainingRows,
        source: Source,
        batches: EvalBatches,
        say: Callable[[str], None],
    ) -> FoldStart:
        """See `ModelHead.read_base`: the labels' output embeddings, and what they score a sample of the rows."""
        from lora_cls.modeling.label_tokens import label_directions, label_token_ids, output_rows
        from lora_cls.training.label_start import START_ROWS, LabelStart, read_pooled

        model = untrained()
        ids = label_token_ids(self.tokenizer, label_words(self.recipe.head, self.label_names))
        directions = label_directions(output_rows(model.base, source, ids))
        rng = np.random.default_rng(self.recipe.train.seed)
        sample = np.sort(rng.permutation(rows.tokens.n_texts)[:START_ROWS])
        say(f"Reading {len(sample)} training rows for the labels' starting scores ...")
        pooled = read_pooled(model, rows.tokens.take(sample), batches=batches, pad_id=self.pad_id)
        start = LabelStart(directions, pooled, sample)
        scores = dict(zip(self.label_names, start.roc_auc(rows.labels), strict=True))
        said = ", ".join(f"{name} {'-' if value is None else f'{value:.2f}'}" for name, value in scores.items())

        def begin(model: SequenceClassifier, train_rows: np.ndarray, weight: np.ndarray) -> None:
            start.begin(model, train_rows, rows.targets, weight, task_of(self.recipe.task).link, rows.row_weight)

        note = f"ROC-AUC of the labels' own words before any training (scores, no probabilities): {said}"
        return FoldStart({"roc_auc_before_training": scores}, note, begin)
