"""A text in several pieces counts once in the loss."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lora_cls.recipe import load_recipe
from lora_cls.text.tokens import Tokens, shuffled_batches
from lora_cls.training.objective import ClassificationObjective

RECIPE = load_recipe({"backbone": {"name_or_path": "x"}})
TARGETS = np.array([[1, 0], [0, 1], [1, 1]])
WEIGHT = np.array([3.0, 0.5])


class Model(nn.Module):
    """Logits by the first token, and by one weight that has a gradient."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.linspace(-2, 2, 40).reshape(20, 2))

    def forward(self, ids, mask):
        return self.table[ids[:, 0]]


@pytest.fixture
def tokens():
    """A text of three pieces, one of one, one of two; the first token of a piece is its number."""
    rows = [np.array([i] * (i + 2)) for i in range(6)]
    return Tokens(rows, np.array([0, 0, 0, 1, 2, 2]), np.zeros(3, dtype=bool), 16)


def of_piece(model, piece, text):
    """The loss of one piece, by hand: mean over labels of cross-entropy with positive weights."""
    p = torch.sigmoid(model.table[piece]).detach().numpy().astype(float)
    y = TARGETS[text]
    return float((-WEIGHT * y * np.log(p) - (1 - y) * np.log(1 - p)).mean())


@pytest.mark.parametrize("row_weight", [None, np.array([2.0, 0.5, 1.0])])
def test_loss_by_hand(tokens, row_weight):
    """All pieces' loss over their number is the (weighted) mean over texts of the mean over their pieces."""
    model = Model()
    objective = ClassificationObjective(tokens, TARGETS, WEIGHT, RECIPE, 0, row_weight)
    loss, mask = objective.loss(model, np.arange(6))
    texts = [np.mean([of_piece(model, p, t) for p in pieces]) for t, pieces in enumerate([[0, 1, 2], [3], [4, 5]])]
    expected = np.average(texts, weights=row_weight)
    assert float(loss.detach()) / 6 == pytest.approx(expected, rel=1e-5)
    assert mask.sum() == tokens.lengths.sum()
    assert objective.lengths.tolist() == tokens.lengths.tolist()


def test_one_piece_each_is_the_plain_loss(tokens):
    """Where nothing is longer than the model reads, every row counts 1."""
    model, short = Model(), Tokens(tokens.ids[:3], np.arange(3), np.zeros(3, dtype=bool), 16)
    loss, _ = ClassificationObjective(short, TARGETS, WEIGHT, RECIPE, 0).loss(model, np.array([2, 0, 1]))
    plain = F.binary_cross_entropy_with_logits(
        model.table[:3], torch.tensor(TARGETS, dtype=torch.float32), pos_weight=torch.tensor(WEIGHT), reduction="none"
    )
    assert float(loss.detach()) == pytest.approx(float(plain.detach().mean(1).sum()), rel=1e-6)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_batches_of_pieces_add_up(tokens, size):
    """Whatever batches an epoch is cut into, accumulated gradients are those of all pieces at once."""

    def gradient(batches):
        model = Model()
        objective = ClassificationObjective(tokens, TARGETS, WEIGHT, RECIPE, 0)
        for batch in batches:
            (objective.loss(model, batch)[0] / 6).backward()
        return model.table.grad

    parts = shuffled_batches(tokens.lengths, size, np.random.default_rng(size))
    torch.testing.assert_close(gradient(parts), gradient([np.arange(6)]), rtol=1e-5, atol=1e-7)


def test_repeating_a_text_in_more_chunks_does_not_make_it_louder():
    """Two equal texts, one read in four equal pieces and one in one, pull equally."""
    rows = [np.array([1, 1])] * 4 + [np.array([2, 2])]
    tokens = Tokens(rows, np.array([0, 0, 0, 0, 1]), np.zeros(2, dtype=bool), 16)
    model = Model()
    with torch.no_grad():
        model.table[2] = model.table[1]
    objective = ClassificationObjective(tokens, np.array([[1, 0], [1, 0]]), WEIGHT, RECIPE, 0)
    objective.loss(model, np.arange(5))[0].backward()
    torch.testing.assert_close(model.table.grad[1], model.table.grad[2])


def test_texts_without_labels(tokens):
    """Labels count on labelled texts only, teachers on all; both are scaled to a mean of 1 over all pieces."""
    model, n = Model(), 6
    taught = np.array([[0.5, -1.0], [2.0, 0.0], [-0.3, 0.7]])
    recipe = load_recipe(RECIPE, {"distill": {"teachers": ["run"], "weight": 0.25}})
    objective = ClassificationObjective(tokens, TARGETS, WEIGHT, recipe, 0, None, taught, 2)
    loss, _ = objective.loss(model, np.arange(n))
    pieces_of = [[0, 1, 2], [3], [4, 5]]
    labels = np.mean([np.mean([of_piece(model, p, t) for p in pieces_of[t]]) for t in (0, 1)])
    q = 1 / (1 + np.exp(-taught))
    p = torch.sigmoid(model.table).detach().numpy().astype(float)
    soft = (-WEIGHT * q[tokens.text] * np.log(p[:n]) - (1 - q[tokens.text]) * np.log(1 - p[:n])).mean(1)
    teachers = np.mean([soft[pieces].mean() for pieces in pieces_of])
    assert float(loss.detach()) / n == pytest.approx(0.75 * labels + 0.25 * teachers, rel=1e-5)
