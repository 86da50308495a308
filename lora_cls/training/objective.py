"""What a fold is trained on: a loss for any of its pieces of text."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import nn

from lora_cls.recipe import Recipe
from lora_cls.text.answers import LabelAnswers
from lora_cls.text.tokens import Tokens, pad
from lora_cls.training.losses import LabelFacts, teachers_loss, training_loss


class Objective(Protocol):
    """The training rows of one fold, and the loss of some of them."""

    lengths: np.ndarray
    """Tokens per piece, shape (n_pieces,): pieces of similar length are batched together."""

    def loss(self, model: nn.Module, pieces: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        """The loss of one batch.

        Returns
        -------
        loss : Tensor of shape (), summed over the pieces; divided by their number where a step is complete
        attention_mask : ndarray of shape (n_rows, n_tokens), to count tokens and padding by
        """
        ...


class ClassificationObjective:
    """Labels from logits, with positive or class weights.

    Parameters
    ----------
    tokens : the fold's training texts
    targets : ndarray of shape (n_texts, n_labels), 0 to 1
    weight : ndarray of shape (n_labels,), see `lora_cls.training.losses`
    row_weight : ndarray of shape (n_texts,), 0 or more; None counts every text alike
    taught : ndarray of shape (n_texts, n_labels), teachers' log-odds to learn beside the labels; None without teachers
    n_labelled : with `taught`: only so many texts, the first ones, have labels
    facts : what the loss knows of the labels

    A text in several pieces counts once: each piece by its share. Weights are scaled to a mean of 1 over the pieces,
    so that they change what counts, and not how fast it is learnt. Labels and teachers are scaled so each: however many
    texts have no labels, `distill.weight` is the teachers' share of the loss.
    """

    def __init__(
        self,
        tokens: Tokens,
        targets: np.ndarray,
        weight: np.ndarray,
        recipe: Recipe,
        pad_id: int,
        row_weight: np.ndarray | None = None,
        taught: np.ndarray | None = None,
        n_labelled: int | None = None,
        facts: LabelFacts | None = None,
    ) -> None:
        self.tokens, self.recipe, self.pad_id = tokens, recipe, pad_id
        self.lengths = tokens.lengths
        self.targets = torch.as_tensor(targets[tokens.text], dtype=torch.float32)
        self.weight = torch.as_tensor(weight, dtype=torch.float32)
        self.facts = None if facts is None else facts.tensors(self.weight)
        of_text = np.ones(tokens.n_texts) if row_weight is None else row_weight
        of_piece = (of_text / tokens.n_pieces)[tokens.text]
        labelled = of_piece if n_labelled is None else of_piece * (tokens.text < n_labelled)
        self.piece_weight = torch.as_tensor(labelled / labelled.mean(), dtype=torch.float32)
        self.taught_weight = torch.as_tensor(of_piece / of_piece.mean(), dtype=torch.float32)
        self.taught = None if taught is None else torch.as_tensor(taught[tokens.text], dtype=torch.float32)

    def loss(self, model: nn.Module, pieces: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        """See `Objective.loss`."""
        ids, mask = self.tokens.batch(pieces, self.pad_id)
        logits = model(torch.from_numpy(ids), torch.from_numpy(mask))
        device = logits.device
        targets, of_piece = self.targets[pieces].to(device), self.piece_weight[pieces].to(device)
        weight, recipe = self.weight.to(device), self.recipe
        of_labels = training_loss(logits, targets, weight, recipe.loss, of_piece, recipe.task, self.facts)
        if self.taught is None or recipe.distill is None:
            return of_labels, mask
        taught, of_piece = self.taught[pieces].to(device), self.taught_weight[pieces].to(device)
        share, temperature = recipe.distill.weight, recipe.distill.temperature
        of_teachers = teachers_loss(logits, taught, weight, recipe.loss, temperature, of_piece, recipe.task, self.facts)
        return (1 - share) * of_labels + share * of_teachers, mask


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
