"""Prediction goes on with smaller batches where the memory is full; training says what to set."""

import numpy as np
import pytest
import torch

from lora_cls.errors import TrainingError
from lora_cls.modeling.precision import is_out_of_memory
from lora_cls.recipe import Train
from lora_cls.text.tokens import Tokens
from lora_cls.training.batches import EvalBatches, training_memory_error
from lora_cls.training.loop import predict_logits

LENGTHS = np.array([3, 9, 1, 9, 4, 2, 7])
FULL = {
    "GPU": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "CPU": lambda: torch.empty(2**60),  # the real error of the real allocator
    "Apple": lambda: RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    "oneDNN": lambda: RuntimeError("could not create a primitive"),
    "Python": lambda: MemoryError(),
}


class Fake(torch.nn.Module):
    """Answers the sum of a row's ids and its length, and runs out of memory above so many rows or tokens a row."""

    def __init__(self, error="GPU", rows=100, tokens=100):
        super().__init__()
        self.base = torch.nn.Module()
        self.base.score = torch.nn.Linear(1, 2)
        self.error, self.rows, self.tokens, self.asked = error, rows, tokens, []

    def forward(self, ids, mask):
        self.asked.append(len(ids))
        if len(ids) > self.rows or int(mask.sum(1).max()) > self.tokens:
            raise FULL[self.error]()
        return torch.stack([(ids * mask).sum(1), mask.sum(1)], 1).float()


def tokens(lengths=LENGTHS):
    ids = [np.arange(1, n + 1, dtype=np.int64) + i for i, n in enumerate(lengths)]
    return Tokens(ids, np.arange(len(ids)), np.zeros(len(ids), dtype=bool))


def test_longest_first_and_every_row_once():
    """A batch too large for the memory fails at once, not after an hour."""
    asked = []
    EvalBatches(2).each(LENGTHS[:5], lambda rows: asked.append(rows.tolist()))
    assert asked == [[1, 3], [4, 0], [2]]


@pytest.mark.parametrize("error", FULL)
def test_halves_and_goes_on(error):
    """The same answers in the same order, from the first batch that fits on with its size, told once."""
    expected = predict_logits(Fake(), tokens(), batches=EvalBatches(6), pad_id=0)
    said, model = [], Fake(error, rows=2)
    batches = EvalBatches(6, said.append)
    np.testing.assert_array_equal(predict_logits(model, tokens(), batches=batches, pad_id=0), expected)
    assert model.asked == [6, 3, 1, 1, 1, 1, 1, 1, 1]
    assert len(said) == 1
    assert "6 rows at a time: from here on 1 are" in said[0]
    predict_logits(model, tokens(), batches=batches, pad_id=0)  # as the next fold does
    assert model.asked[9:] == [1] * 7
    assert len(said) == 1


def test_halves_in_the_middle():
    """Rows that are answered stay so; only what is left is asked again."""
    asked = []

    def answer(rows):
        asked.append(rows.tolist())
        if len(asked) == 2:
            raise MemoryError

    EvalBatches(4).each(np.array([5, 5, 5, 5, 4, 4, 4, 4]), answer)
    assert asked == [[0, 1, 2, 3], [4, 5, 6, 7], [4, 5], [6, 7]]


def test_one_row_that_does_not_fit():
    """The error says how long the row is and what to lower."""
    with pytest.raises(TrainingError, match=r"single row of 9 tokens.*CUDA out of memory.*lower data\.max_length"):
        predict_logits(Fake(tokens=8), tokens(), batches=EvalBatches(4), pad_id=0)


def test_other_errors_pass():
    """Only a full memory is met with smaller batches."""
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))

    def answer(rows):
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        EvalBatches(4).each(LENGTHS, answer)


@pytest.mark.parametrize(
    ("size", "accumulate", "found"),
    [
        (16, 1, "per_device_train_batch_size=8 --set train.gradient_accumulation_steps=2 makes the same steps"),
        (8, 4, "per_device_train_batch_size=4 --set train.gradient_accumulation_steps=8 makes the same steps"),
        (5, 1, "per_device_train_batch_size=2 --set train.gradient_accumulation_steps=3 makes nearly the same steps"),
        (1, 8, "One row is a batch already. Lower data.max_length, train.gradient_checkpointing=true"),
    ],
)
def test_what_training_should_set(size, accumulate, found):
    """The advice keeps the rows per step."""
    train = Train(per_device_train_batch_size=size, gradient_accumulation_steps=accumulate)
    said = str(training_memory_error(train, "fold 0, epoch 1, step 3", 77, MemoryError()))
    assert found in said
    assert f"fold 0, epoch 1, step 3; {size} rows of up to 77 tokens" in said


def test_batches_of_few_tokens():
    """Long rows come fewer at a time, each alone where it is longer than allowed; short ones as many as the size."""
    asked = []
    lengths = np.array([3, 9, 3, 3, 20, 3, 5, 3])
    EvalBatches(3, most_tokens=10).each(lengths, lambda rows: asked.append(rows.tolist()))
    assert asked == [[4], [1], [6, 0], [2, 3, 5], [7]]


def test_lengths_that_are_not_rounded_up():
    """The same answers, with less padding."""
    shapes = []

    class Noted(Fake):
        def __call__(self, ids, mask):
            shapes.append(tuple(ids.shape))
            return super().__call__(ids, mask)

    rounded, exact = (predict_logits(Noted(), tokens(), batches=EvalBatches(4, multiple=n), pad_id=0) for n in (4, 1))
    np.testing.assert_array_equal(rounded, exact)
    assert {n for _, n in shapes} - set(range(4, 40, 4))
