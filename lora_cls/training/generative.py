"""Learner for decoders that write the labels: training on the answers' tokens, answers read back and scored."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from lora_cls.data import Dataset
from lora_cls.errors import RecipeError, TrainingError
from lora_cls.files import write_csv
from lora_cls.modeling.classifier import SequenceClassifier
from lora_cls.modeling.loading import load_base
from lora_cls.modeling.writer import LabelWriter, build_writer
from lora_cls.recipe import Recipe
from lora_cls.runs import FoldFolder
from lora_cls.text.answers import Context, LabelAnswers, answer_format
from lora_cls.text.chat import Chat
from lora_cls.text.tokens import Frame, Tokens, encode, pad
from lora_cls.training.objective import Objective
from lora_cls.training.progress import Progress
from lora_cls.training.transformer import TransformerLearner


class AnswerObjective:
    """Cross-entropy on the tokens of the answers, and on nothing before them.

    Parameters
    ----------
    tokens : the fold's training prompts, the answer being next
    targets : ndarray of shape (n_texts, n_labels), 0 or 1
    row_weight : ndarray of shape (n_texts,), 0 or more; None counts every text alike

    A row's loss is the sum over its answer: minus the log-likelihood of its labels. A mean over the answer would count
    "and there is no further label" more in short answers than "and there is a further one" in long ones, and so teach
    too few labels. All losses are divided by the mean number of tokens in an answer, to be of the size of one token's.
    Positive weights have no meaning here: a rare label is one of several words that compete at the same place.
    """

    def __init__(
        self,
        tokens: Tokens,
        targets: np.ndarray,
        answers: LabelAnswers,
        pad_id: int,
        row_weight: np.ndarray | None = None,
    ) -> None:
        of_text = [np.array(answers.ids(np.flatnonzero(row).tolist()), dtype=np.int64) for row in targets]
        self.ids = [np.concatenate([ids, of_text[i]]) for ids, i in zip(tokens.ids, tokens.text, strict=True)]
        self.answer_lengths = np.array([len(of_text[i]) for i in tokens.text], dtype=np.int64)
        self.lengths = np.array([len(ids) for ids in self.ids], dtype=np.int64)
        self.pad_id = pad_id
        weight = np.ones(tokens.n_texts) if row_weight is None else row_weight
        of_piece = (weight / tokens.n_pieces)[tokens.text]
        scale = of_piece.mean() * np.mean([len(answer) for answer in of_text])
        self.piece_weight = torch.as_tensor(of_piece / scale, dtype=torch.float32)

    def loss(self, model: nn.Module, pieces: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        """See `Objective.loss`."""
        device = next(model.parameters()).device
        # few different shapes, as in `Tokens.batch`; the answers of all rows end with the batch
        longest = int(self.lengths[pieces].max())
        ids, mask = pad([self.ids[piece] for piece in pieces], self.pad_id, "left", -(-longest // 8) * 8)
        n_last = int(self.answer_lengths[pieces].max())
        logits = model(torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device), n_last + 1)[:, :-1]
        places = np.arange(n_last)[None, :] >= n_last - self.answer_lengths[pieces][:, None]
        chosen = torch.from_numpy(places).to(device)
        targets = torch.from_numpy(ids[:, -n_last:]).to(device)[chosen]
        losses = nn.functional.cross_entropy(logits[chosen].float(), targets, reduction="none")
        rows = np.nonzero(places)[0]
        return (losses * self.piece_weight[pieces][rows].to(device)).sum(), mask


class GenerativeLearner(TransformerLearner):
    """Fine-tunes an instruction-tuned decoder through its chat template to write the labels; see `TransformerLearner`.

    An answer is decoded greedily, read leniently (`LabelAnswers.parse`) and scored along its labels
    (`LabelAnswers.scores`): logits and all that follows from them are as for any other head. One that cannot be read
    counts as no label, and is counted.
    """

    def __init__(
        self,
        recipe: Recipe,
        label_names: Sequence[str],
        train: Dataset | None = None,
        test: Dataset | None = None,
        choices: dict[str, Any] | None = None,
        backbone: str | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._given_chat = (choices or {}).get("chat")  # whatever a later tokenizer makes of its template
        self._written: list[tuple[int, str, bool]] = []
        super().__init__(recipe, label_names, train, test, choices, backbone, progress)
        self.choices |= {"chat": vars(self.chat), "max_new_tokens": self.answers.longest}

    @property
    def end_ids(self) -> list[int]:
        ends = [self.answers.end_id, self.tokenizer.eos_token_id]
        return [int(end) for end in dict.fromkeys(ends) if end is not None]

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Prompts of the texts. There is room for the longest answer, and no text can speak for the template."""
        data, longest = self.recipe.data, self.answers.longest
        stride = data.chunk_stride if data.long_text == "chunk" else 0
        if data.max_length - len(self.frame) - longest <= stride:
            raise RecipeError(
                f"data.max_length is {data.max_length}: the prompt takes {len(self.frame)} tokens of it, the longest "
                f"answer {longest}{f', and chunk_stride {stride}' if stride else ''}. Raise it, or shorten the prompt."
            )
        room = data.model_copy(update={"max_length": data.max_length - longest})
        return encode(self.tokenizer, texts, room, self.frame, split_special_tokens=True, cache=self.token_cache)

    def _frame(self) -> Frame:
        given = Chat(**self._given_chat) if self._given_chat else None
        self.chat, self.answers = answer_format(self.tokenizer, self.recipe, self.label_names, given)
        return self.chat.frame(self.tokenizer)

    def predict(self, folder: FoldFolder, texts: Sequence[str]) -> np.ndarray:
        """See `Learner.predict`."""
        logits = super().predict(folder, texts)
        unread = sum(not parsed for *_, parsed in self._written)
        self.notes = [f"{unread} of {len(self._written)} answers could not be read as labels"] if unread else []
        return logits

    def _weight(self, rows: np.ndarray) -> np.ndarray:
        return np.ones(self.n_labels)

    def _objective(self, rows: np.ndarray, weight: np.ndarray) -> Objective:
        assert self.train is not None and self.train.labels is not None and self.train_tokens is not None
        tokens, labels = self.train_tokens.take(rows), self.train.labels[rows]
        return AnswerObjective(tokens, labels, self.answers, self.pad_id, self._row_weight(rows))

    def _answer(
        self, model: SequenceClassifier, oof_rows: np.ndarray, weight: np.ndarray, folder: FoldFolder
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Logits as ever, and `answers.csv`: what was written, for those who want to see what went wrong."""
        assert self.train is not None and self.train_tokens is not None
        tables = [("train", self.train_tokens.take(oof_rows), [self.train.ids[row] for row in oof_rows])]
        if self.test is not None and self.test_tokens is not None:
            tables.append(("test", self.test_tokens, self.test.ids))
        logits, rows = [], []
        for table, tokens, ids in tables:
            logits.append(self._logits(model, tokens, weight))
            rows += [(ids[text], table, answer, int(parsed)) for text, answer, parsed in self._written]
        if rows:
            write_csv(folder.answers, pd.DataFrame(rows, columns=["id", "table", "answer", "parsed"]))
        return logits[0], logits[1] if len(logits) > 1 else None

    def _logits(self, model: SequenceClassifier, tokens: Tokens, weight: np.ndarray) -> np.ndarray:
        """Logits of every text, ndarray of shape (n_texts, n_labels), float32; notes every piece's answer."""
        assert isinstance(model, LabelWriter)
        logits = np.empty((len(tokens.ids), self.n_labels), dtype=np.float32)
        written: list[tuple[int, str, bool]] = [(0, "", False)] * len(logits)

        def answer_pieces(pieces: np.ndarray) -> None:
            prompts = [tokens.ids[piece] for piece in pieces]
            paths, known = [], []
            for piece, (ids, steps) in zip(
                pieces,
                model.write(prompts, self.answers.longest, self.end_ids, self.answers.columns, self.pad_id),
                strict=True,
            ):
                answer = self.tokenizer.decode(ids, skip_special_tokens=True)
                path = self.answers.parse(answer)
                paths.append(path or [])
                known.append({tuple(ids[:t]): step for t, step in enumerate(steps)})
                written[piece] = (int(tokens.text[piece]), answer, path is not None)
            logits[pieces] = self._scores(model, prompts, paths, known)

        model.eval()
        self.batches.each(tokens.lengths, answer_pieces)
        if not np.isfinite(logits).all():
            raise TrainingError(
                "The model answers with values that are not finite numbers. Set backbone.dtype: float32."
            )
        self._written = written
        return self.task.link.combine_pieces(logits, tokens.text, weight, self.recipe.data.chunk_combine)

    def _scores(
        self,
        model: LabelWriter,
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

        self.batches.each(np.array([len(row) for row in rows]), score)
        return np.array([self.answers.scores(path, values) for path, values in zip(paths, found, strict=True)])

    def _load(self, dtype: torch.dtype, attention: str) -> nn.Module:
        assert self.recipe.backbone is not None
        return load_base(
            self.recipe.backbone, self.recipe.quantization, dtype, self.device, self.source, attention, with_output=True
        )

    def _build(self, base: nn.Module, mixed: torch.dtype | None) -> LabelWriter:
        return build_writer(base, self.recipe, mixed)
