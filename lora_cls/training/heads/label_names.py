"""`head.kind: label_names`: the labels' names stand before the text, and each label is scored at its own name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from lora_cls.errors import BackboneError, RecipeError
from lora_cls.recipe import Recipe
from lora_cls.text.prompts import label_words
from lora_cls.text.tokens import Frame, plain_ids
from lora_cls.training.heads.linear import LinearHead

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lora_cls.modeling.classifier import SequenceClassifier
    from lora_cls.modeling.label_names import LabelNamesClassifier
    from lora_cls.modeling.source import Source

NAMES_END = "?"  # behind the last name, as in SpanEmo


class LabelNamesHead(LinearHead):
    """See `ModelHead`. A text is read as `[CLS] joy anger fear? [SEP] text [SEP]`; saved, it is a plain linear layer.

    The names come first, so that no long text cuts them and they stand at the same places in every piece. They are
    ended as the tokenizer ends a text. Some tokenizers put more between two texts, and other token types on the second;
    models differ in what they know of that, and of a text's own end all of them know.

    Attributes
    ----------
    spans : begin and end of each label's name, in tokens from the first one
    """

    snippet_template: ClassVar[str] = "snippet_label_names.py.j2"

    def __init__(self, recipe: Recipe, label_names: Sequence[str], tokenizer: Any, given: Mapping[str, Any]) -> None:
        from lora_cls.modeling.label_tokens import label_token_ids

        super().__init__(recipe, label_names, tokenizer, given)
        special = self.frame
        names = label_token_ids(tokenizer, label_words(recipe.head, label_names), recipe.head.kind)
        ends = list(accumulate(map(len, names), initial=len(special.before)))
        self.spans = list(pairwise(ends))
        before = [*special.before, *chain(*names), *plain_ids(tokenizer, NAMES_END), *special.after]
        self.frame = Frame(before, special.after)
        if (longest := recipe.data.max_length) < 2 * len(before):
            raise RecipeError(
                f"data.max_length is {longest}: the names of the {self.n_labels} labels take {len(before)} tokens of "
                f"it, more than half. Raise it to {2 * len(before)} or more, or give shorter words in head.label_words."
            )

    @staticmethod
    def layer(hidden_size: int, n_labels: int) -> nn.Module:
        """See `LinearHead.layer`."""
        from lora_cls.modeling.label_names import LabelRows

        return LabelRows(hidden_size, n_labels)

    @staticmethod
    def attach(base: nn.Module, n_labels: int) -> None:
        """See `ModelHead.attach`."""
        from lora_cls.modeling.classifier import attach_head

        attach_head(base, n_labels, LabelNamesHead.layer)

    @classmethod
    def build(
        cls, base: Any, recipe: Recipe, n_labels: int, dtype: torch.dtype | None = None, trained: bool = True
    ) -> LabelNamesClassifier:
        """See `ModelHead.build`."""
        from lora_cls.modeling.adapter import adapt
        from lora_cls.modeling.classifier import HEAD
        from lora_cls.modeling.label_names import LabelNamesClassifier

        cls.attach(base, n_labels)
        backbone = adapt(base, recipe, modules_to_save=[HEAD]) if trained else base
        return LabelNamesClassifier(backbone, recipe.head.pooling, recipe.head.dropout, dtype, n_labels=n_labels)

    def place(self, model: SequenceClassifier, source: Source) -> SequenceClassifier:
        """See `ModelHead.place`."""
        from lora_cls.modeling.label_names import LabelNamesClassifier
        from lora_cls.modeling.probe import looks_ahead

        assert isinstance(model, LabelNamesClassifier)
        if not looks_ahead(model.base, 0):
            raise BackboneError(
                f"head.kind: label_names: {source.name} reads from left to right, so that the labels' names, which "
                "stand before the text, would know nothing of it. Take an encoder, set "
                "backbone.bidirectional: true, or take head.kind: linear."
            )
        model.read_at(self.spans)
        return model

    @staticmethod
    def snippet_names(recipe: Recipe, label_names: Sequence[str]) -> list[str]:
        """The labels' names as they are tokenised, for the snippet, which finds their places again."""
        return [f" {word}" for word in label_words(recipe.head, label_names)]

    @staticmethod
    def snippet_logits(recipe: Recipe) -> str:
        """See `ModelHead.snippet_logits`."""
        return """\
pooled = torch.stack([hidden[:, begin:end].float().mean(1) for begin, end in spans], 1)
return model.score(pooled).diagonal(dim1=1, dim2=2)  # each label's own row of the layer"""
