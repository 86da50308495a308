"""`head.kind: linear`: a fresh linear layer over a pooled hidden state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_cls.recipe import Recipe
from lora_cls.text.prompts import head_prompt
from lora_cls.text.token_cache import TokenCache
from lora_cls.text.tokens import Tokens, encode, prompt_frame, special_frame
from lora_cls.training.heads.base import ModelHead
from lora_cls.training.rows import Answered, TrainingRows

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lora_cls.modeling.classifier import SequenceClassifier
    from lora_cls.training.batches import EvalBatches
    from lora_cls.training.objective import Objective

POOLING = {
    "last_token": """\
index = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)  # the last real token
pooled = hidden[torch.arange(len(hidden)), index].float()""",
    "cls": """\
index = mask.argmax(1)  # the first real token
pooled = hidden[torch.arange(len(hidden)), index].float()""",
    "mean": """\
weights = mask.unsqueeze(-1).float()
pooled = (hidden.float() * weights).sum(1) / weights.sum(1)""",
}


class LinearHead(ModelHead):
    """See `ModelHead`."""

    def __init__(self, recipe: Recipe, label_names: Sequence[str], tokenizer: Any, given: Mapping[str, Any]) -> None:
        super().__init__(recipe, label_names, tokenizer, given)
        prompt = head_prompt(recipe.head, label_names)
        if prompt is None:
            self.frame = special_frame(tokenizer)
        else:
            self.frame = prompt_frame(tokenizer, prompt, closed=not self.continues_prompt)

    def encode(self, texts: Sequence[str], cache: TokenCache | None) -> Tokens:
        """See `ModelHead.encode`."""
        return encode(self.tokenizer, texts, self.recipe.data, self.frame, cache=cache)

    @staticmethod
    def layer(hidden_size: int, n_labels: int) -> nn.Module:
        """The layer that is trained; saved, it opens in a plain linear one."""
        from lora_cls.modeling.classifier import linear_layer

        return linear_layer(hidden_size, n_labels)

    @staticmethod
    def attach(base: nn.Module, n_labels: int) -> None:
        """See `ModelHead.attach`."""
        from lora_cls.modeling.classifier import attach_head

        attach_head(base, n_labels)

    @classmethod
    def build(
        cls, base: Any, recipe: Recipe, n_labels: int, dtype: torch.dtype | None = None, trained: bool = True
    ) -> SequenceClassifier:
        """See `ModelHead.build`."""
        from lora_cls.modeling.adapter import build_model
        from lora_cls.modeling.classifier import SequenceClassifier

        if trained:
            return build_model(base, recipe, n_labels, dtype, cls.layer)
        cls.attach(base, n_labels)
        return SequenceClassifier(base, recipe.head.pooling, dtype=dtype)

    @staticmethod
    def around(recipe: Recipe, label_names: Sequence[str], choices: Mapping[str, Any]) -> tuple[str, str]:
        """See `ModelHead.around`."""
        before, _, after = (head_prompt(recipe.head, label_names) or "{text}").partition("{text}")
        return before, after

    @staticmethod
    def snippet_layer(n_labels: int) -> str:
        """See `ModelHead.snippet_layer`."""
        return f"base.score = torch.nn.Linear(base.config.get_text_config().hidden_size, {n_labels}).to(base.device)"

    @staticmethod
    def snippet_logits(recipe: Recipe) -> str:
        """See `ModelHead.snippet_logits`."""
        return f"{POOLING[recipe.head.pooling]}\nreturn model.score(pooled)"

    def weight(self, rows: TrainingRows) -> np.ndarray:
        """See `ModelHead.weight`."""
        from lora_cls.training.losses import pos_weight

        return pos_weight(rows.targets, self.recipe.loss, rows.row_weight, self.recipe.task)

    def objective(self, rows: TrainingRows, weight: np.ndarray) -> Objective:
        """See `ModelHead.objective`."""
        from lora_cls.training.objective import ClassificationObjective

        return ClassificationObjective(
            rows.tokens,
            rows.targets,
            weight,
            self.recipe,
            self.pad_id,
            rows.row_weight,
            rows.taught,
            rows.n_labelled,
            self.facts(rows),
        )

    def answer(self, model: SequenceClassifier, tokens: Tokens, batches: EvalBatches) -> Answered:
        """See `ModelHead.answer`."""
        from lora_cls.training.loop import predict_logits

        return Answered(predict_logits(model, tokens, batches=batches, pad_id=self.pad_id), [])
