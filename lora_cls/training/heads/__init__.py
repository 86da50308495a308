"""Kinds of heads, a file each. A new kind needs its name in `recipe.HeadKind`, its file, and three lines here."""

from lora_cls.recipe import HeadKind
from lora_cls.training.heads.base import ModelHead


def head_type(kind: HeadKind) -> type[ModelHead]:
    """The class of a kind of head, imported on first use."""
    match kind:
        case "linear":
            from lora_cls.training.heads.linear import LinearHead

            return LinearHead
        case "label_tokens":
            from lora_cls.training.heads.label_tokens import LabelTokensHead

            return LabelTokensHead
        case "label_names":
            from lora_cls.training.heads.label_names import LabelNamesHead

            return LabelNamesHead
        case "generate":
            from lora_cls.training.heads.generate import GenerateHead

            return GenerateHead
