"""`head.kind: generate`: no layer of our own; a decoder writes the labels, and is asked how probable each one was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lora_cls.errors import RecipeError
from lora_cls.recipe import Recipe
from lora_cls.text.answers import Context, answer_format
from lora_cls.text.chat import Chat
from lora_cls.text.token_cache import TokenCache
from lora_cls.text.tokens import Tokens, encode
from lora_cls.training.heads.base import ModelHead
from lora_cls.training.rows import Answered, TrainingRows

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lora_cls.modeling.writer import LabelWriter
    from lora_cls.training.batches import EvalBatches
    from lora_cls.training.objective import Objective


class GenerateHead(ModelHead):
    """See `ModelHead`. An instruction-tuned decoder learns to write the labels through its chat template.

    An answer is decoded greedily, read leniently (`LabelAnswers.parse`) and scored along its labels
    (`LabelAnswers.scores`): logits and all that follows from them are as for any other head. One that cannot be read
    counts as no label, and is counted.
    """

    with_output_layer: ClassVar[bool] = True
    reuses_prefix: ClassVar[bool] = False
    continues_prompt: ClassVar[bool] = True
    not_exported: ClassVar[str | None] = "writes its labels (head.kind: generate)"
    training_options: ClassVar[dict[str, Any]] = {"n_last": 16}  # each token of an answer scores the whole vocabulary
    snippet_template: ClassVar[str] = "snippet_generate.py.j2"

    def __init__(self, recipe: Recipe, label_names: Sequence[str], tokenizer: Any, given: Mapping[str, Any]) -> None:
        super().__init__(recipe, label_names, tokenizer, given)
        frozen = Chat(**given["chat"]) if "chat" in given else None  # whatever a later tokenizer makes of its template
        self.chat, self.answers = answer_format(tokenizer, recipe, label_names, frozen)
        self.frame, self.answer_tokens = self.chat.frame(tokenizer), self.answers.longest
        self.choices = {"chat": vars(self.chat), "max_new_tokens": self.answers.longest}

    @property
    def end_ids(self) -> list[int]:
        """Tokens after any of which an answer is over."""
        ends = [self.answers.end_id, self.tokenizer.eos_token_id]
        return [int(end) for end in dict.fromkeys(ends) if end is not None]

    def encode(self, texts: Sequence[str], cache: TokenCache | None) -> Tokens:
        """Prompts of the texts. There is room for the longest answer, and no text can speak for the template."""
        data, longest = self.recipe.data, self.answers.longest
        stride = data.chunk_stride if data.long_text == "chunk" else 0
        if data.max_length - len(self.frame) - longest <= stride:
            raise RecipeError(
                f"data.max_length is {data.max_length}: the prompt takes {len(self.frame)} tokens of it, the longest "
                f"answer {longest}{f', and chunk_stride {stride}' if stride else ''}. Raise it, or shorten the prompt."
            )
        room = data.model_copy(update={"max_length": data.max_length - longest})
        return encode(self.tokenizer, texts, room, self.frame, split_special_tokens=True, cache=cache)

    @staticmethod
    def attach(base: nn.Module, n_labels: int) -> None:
        """See `ModelHead.attach`: the output layer is the base's own."""

    @classmethod
    def build(
        cls, base: Any, recipe: Recipe, n_labels: int, dtype: torch.dtype | None = None, trained: bool = True
    ) -> LabelWriter:
        """See `ModelHead.build`."""
        from lora_cls.modeling.writer import build_writer

        return build_writer(base, recipe, dtype)

    @staticmethod
    def around(recipe: Recipe, label_names: Sequence[str], choices: Mapping[str, Any]) -> tuple[str, str]:
        """See `ModelHead.around`: the whole template, special tokens spelt out."""
        return choices["chat"]["before"], choices["chat"]["after"]

    def weight(self, rows: TrainingRows) -> np.ndarray:
        """See `ModelHead.weight`: there are none, as words compete at the same place."""
        return np.ones(self.n_labels)

    def objective(self, rows: TrainingRows, weight: np.ndarray) -> Objective:
        """See `ModelHead.objective`."""
        from lora_cls.training.objective import AnswerObjective

        return AnswerObjective(rows.tokens, rows.labels, self.answers, self.pad_id, rows.row_weight)

    def answer(self, model: LabelWriter, tokens: Tokens, batches: EvalBatches) -> Answered:
        """See `ModelHead.answer`."""
        from lora_cls.training.loop import refuse_not_finite

        logits = np.empty((len(tokens.ids), self.n_labels), dtype=np.float32)
        written: list[tuple[int, str, bool]] = [(0, "", False)] * len(logits)

        def answer_pieces(pieces: np.ndarray) -> None:
            prompts = [tokens.ids[piece] for piece in pieces]
            answers = model.write(prompts, self.answers.longest, self.end_ids, self.answers.columns, self.pad_id)
            paths, known = [], []
            for piece, (ids, steps) in zip(pieces, answers, strict=True):
                answer = self.tokenizer.decode(ids, skip_special_tokens=True)
                path = self.answers.parse(answer)
                paths.append(path or [])
                known.append({tuple(ids[:t]): step for t, step in enumerate(steps)})
                written[piece] = (int(tokens.text[piece]), answer, path is not None)
            logits[pieces] = self.scores(model, batches, prompts, paths, known)

        model.eval()
        batches.each(tokens.lengths, answer_pieces)
        refuse_not_finite(logits)
        return Answered(logits, written)

    def scores(
        self,
        model: LabelWriter,
        batches: EvalBatches,
        prompts: list[np.ndarray],
        paths: list[list[int]],
        found: list[dict[Context, np.ndarray]],
    ) -> np.ndarray:
        """Logits of the labels along each prompt's path, ndarray of shape (n_prompts, n_labels), float32.

        `found` holds the log-probabilities noted while the answers were written. They are all that is needed unless an
        answer was written in another way than ours, or labels begin with the same tokens: what is missing is computed,
        one row for all points that its tokens pass through.
        """
        jobs = []
        for i, path in enumerate(paths):
            # sorted: what continues a context follows it
            contexts = [context for context in self.answers.contexts(path) if context not in found[i]]
            ends = [a for a, b in pairwise(contexts) if b[: len(a)] != a] + contexts[-1:]
            jobs += [(i, context) for context in ends]
        rows = [np.concatenate([prompts[i], np.array(context, dtype=np.int64)]) for i, context in jobs]

        def score(batch: np.ndarray) -> None:
            n_last = 1 + max(len(jobs[b][1]) for b in batch)
            values = model.log_proba([rows[b] for b in batch], n_last, self.answers.columns, self.pad_id)
            for b, value in zip(batch, values, strict=True):
                i, context = jobs[b]
                for length in range(len(context) + 1):
                    found[i][context[:length]] = value[n_last - 1 - len(context) + length]

        batches.each(np.array([len(row) for row in rows]), score)
        return np.array([self.answers.scores(path, values) for path, values in zip(paths, found, strict=True)])
