"""All that a kind of head decides. Everything else is the same for all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lora_cls.recipe import Recipe
from lora_cls.text.token_cache import TokenCache
from lora_cls.text.tokens import Frame, Tokens, pad_token_id
from lora_cls.training.rows import Answered, TrainingRows

if TYPE_CHECKING:  # a card asks a head for its snippet: that needs no torch
    import torch
    from torch import nn

    from lora_cls.modeling.classifier import SequenceClassifier
    from lora_cls.modeling.source import Source
    from lora_cls.training.batches import EvalBatches
    from lora_cls.training.losses import LabelFacts
    from lora_cls.training.objective import Objective


@dataclass(frozen=True)
class FoldStart:
    """Where the head of every fold starts, read from the base before any training.

    Attributes
    ----------
    choices : what `run.json` keeps of it
    note : what is said of it
    begin : starts the head of a fold, given its fresh model, the positions of its training rows, and their weights
    """

    choices: dict[str, Any]
    note: str
    begin: Callable[[SequenceClassifier, np.ndarray, np.ndarray], None]


class ModelHead(ABC):
    """How hidden states become scores: the class says what holds for the kind, an object serves one session.

    A fold asks it in this order: `weight`, `read_base`, then, with fresh adapters and a fresh layer, `objective`; and
    `answer` as often as rows are to be scored.

    Parameters
    ----------
    recipe : with a `head` of this kind
    label_names : in the order of the logits
    tokenizer : of the base
    given : `choices` of an earlier start of the same run; empty for a new one

    Attributes
    ----------
    frame : what stands around every piece of text
    answer_tokens : how many tokens an answer behind the text may take
    choices : what `run.json` keeps, so that a later start asks and answers alike
    """

    frame: Frame
    answer_tokens: int = 0

    with_output_layer: ClassVar[bool] = False
    """The base is a causal language model with its output layer, and not the bare one."""
    reuses_prefix: ClassVar[bool] = True
    """What the layers below the lowest adapter say of a text can be computed once and handed out at every pass."""
    continues_prompt: ClassVar[bool] = False
    """There is always a prompt, and the model goes on from its end: no special token closes it."""
    not_exported: ClassVar[str | None] = None
    """Why a mean of the folds' models is not made, to stand behind the run's name; None where it is."""
    training_options: ClassVar[dict[str, Any]] = {}
    """What the model's forward pass is given in a typical training step, beside ids and mask."""
    snippet_template: ClassVar[str] = "snippet.py.j2"
    """The code that opens a fold without lora_cls, in `lora_cls/report/templates/`. This one stands on a bare base, and
    takes `snippet_layer` and `snippet_logits` from the head."""

    def __init__(self, recipe: Recipe, label_names: Sequence[str], tokenizer: Any, given: Mapping[str, Any]) -> None:
        self.recipe, self.label_names, self.tokenizer = recipe, list(label_names), tokenizer
        self.n_labels = len(label_names)
        self.pad_id = pad_token_id(tokenizer)
        self.choices: dict[str, Any] = {}

    # The text

    @abstractmethod
    def encode(self, texts: Sequence[str], cache: TokenCache | None) -> Tokens:
        """Texts as the model reads them."""

    # The model

    @staticmethod
    @abstractmethod
    def attach(base: nn.Module, n_labels: int) -> None:
        """Put on a base the layer in which this kind's saved weights open."""

    @classmethod
    @abstractmethod
    def build(
        cls, base: Any, recipe: Recipe, n_labels: int, dtype: torch.dtype | None = None, trained: bool = True
    ) -> SequenceClassifier:
        """The model around a loaded base.

        Parameters
        ----------
        dtype : see `SequenceClassifier`
        trained : with adapters, or with every weight in fp32; False opens plain weights that only answer
        """

    def place(self, model: SequenceClassifier, source: Source) -> SequenceClassifier:
        """A model that was just built, told where in the frame it reads; most kinds go by the mask alone.

        Raises
        ------
        BackboneError
            If the base cannot be read there.
        """
        return model

    @staticmethod
    @abstractmethod
    def around(recipe: Recipe, label_names: Sequence[str], choices: Mapping[str, Any]) -> tuple[str, str]:
        """What stands before and after every text, but for special tokens that the tokenizer adds; for the snippet."""

    @staticmethod
    def snippet_layer(n_labels: int) -> str:
        """Lines of Python that put on `base` the layer that `attach` does."""
        return ""

    @staticmethod
    def snippet_logits(recipe: Recipe) -> str:
        """Lines of Python that return the logits of a batch by `model.score`, its `hidden` states, and its `mask`."""
        return ""

    # Training

    @abstractmethod
    def weight(self, rows: TrainingRows) -> np.ndarray:
        """Positive or class weights by a fold's training rows, ndarray of shape (n_labels,)."""

    def facts(self, rows: TrainingRows) -> LabelFacts:
        """What the loss knows of each label by a fold's training rows, beside its weight."""
        from lora_cls.training.losses import LabelFacts

        return LabelFacts.of(rows.targets, rows.row_weight, self.recipe.loss, self.label_names)

    @abstractmethod
    def objective(self, rows: TrainingRows, weight: np.ndarray) -> Objective:
        """What a fold is trained on; with `rows.taught` also what teachers said."""

    def read_base(
        self,
        untrained: Callable[[], SequenceClassifier],
        rows: TrainingRows,
        source: Source,
        batches: EvalBatches,
        say: Callable[[str], None],
    ) -> FoldStart | None:
        """Where every fold's head starts; None starts each at small random weights.

        Parameters
        ----------
        untrained : gives the model as it is before training
        rows : all training rows
        """
        return None

    # Answers

    @abstractmethod
    def answer(self, model: Any, tokens: Tokens, batches: EvalBatches) -> Answered:
        """Of every piece of text: logits of shape (n_pieces, n_labels), and what was written.

        Raises
        ------
        TrainingError
            If a logit is not a finite number, or a single piece does not fit into the memory.
        """
