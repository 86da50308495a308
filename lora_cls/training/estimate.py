"""How long a run takes: a few of its own training steps and predictions, timed, and counted up over its batches."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch

from lora_cls.runs import FoldFolder
from lora_cls.text.tokens import Tokens, shuffled_batches
from lora_cls.training.batches import is_out_of_memory, training_memory_error
from lora_cls.training.checkpoint import FoldState, save_state
from lora_cls.training.loop import accumulated_loss, epoch_seed, make_optimizer, update
from lora_cls.training.selection import hold_back
from lora_cls.training.transformer import TransformerLearner

QUANTILES = (1.0, 0.9, 0.5, 0.05)  # of the batches by length; the longest first: it tells at once whether all fit
ROUNDS = 5  # of all measured batches; the first one prepares kernels and is left out
BUDGET = 8.0  # seconds for training steps, and half of it for predictions; one round is made whatever it takes


@dataclass(frozen=True)
class Estimate:
    """What a run would take.

    Attributes
    ----------
    seconds : by phase, as in `run.json`: load, tokenize, prefix, train, score, predict, save
    folds, epochs : what they are for
    train_rows_per_second, predict_rows_per_second : pieces, where long texts are read in chunks
    lengths : tokens of the longest text in each measured training batch
    steps, predictions : how many training steps and prediction batches were timed
    measuring_seconds : spent on measuring
    peak_memory_bytes : after the measured steps; a whole run takes this much or more
    """

    seconds: dict[str, float]
    folds: int
    epochs: int
    train_rows_per_second: float
    predict_rows_per_second: float
    lengths: list[int]
    steps: int
    predictions: int
    measuring_seconds: float
    peak_memory_bytes: int = 0

    @property
    def total(self) -> float:
        """Seconds of all phases."""
        return sum(self.seconds.values())


class _Curve:
    """Seconds of a batch by its longest text, between measured points; batches of fewer rows by their share."""

    def __init__(self, points: dict[int, list[float]], size: int) -> None:
        self.size = size
        self.lengths = sorted(points)
        self.timed = sum(map(len, points.values()))
        # the first time of a shape includes the preparation of its kernels
        self.seconds = [median(points[length][1:] or points[length]) for length in self.lengths]

    def over(self, lengths: np.ndarray, rows: np.ndarray) -> float:
        """Sum over batches, given the longest text and the rows of each."""
        return float((np.interp(lengths, self.lengths, self.seconds) * rows / self.size).sum())

    def sorted(self, lengths: np.ndarray) -> float:
        """Sum over pieces of these lengths, in batches of similar length."""
        descending = np.sort(lengths)[::-1]
        starts = np.arange(0, len(lengths), self.size)
        return self.over(descending[starts], np.minimum(self.size, len(lengths) - starts))


def estimate_run(
    learner: TransformerLearner, fold: np.ndarray, numbers: Sequence[int], load_seconds: float
) -> Estimate:
    """Time steps of the first fold and count up what all folds take. The learner is not to be used afterwards.

    Training steps have a learning rate of 0, and take as long as any. An untrained model that writes its labels may
    write more tokens than a trained one: prediction is then estimated too long.

    Parameters
    ----------
    learner : prepared
    fold : ndarray of shape (n_samples,), the fold of every training row, -1 for rows that are only trained on
    numbers : the folds to train
    load_seconds : what comes before the first fold, tokenising left out

    Raises
    ------
    TrainingError
        If the longest batch does not fit into the memory; says what to set.
    """
    started = time.monotonic()
    train, tokens = learner.recipe.train, learner.train_tokens
    assert tokens is not None and learner.train is not None
    rows_of = {number: _train_rows(learner, fold, number) for number in numbers}
    first, _ = rows_of[numbers[0]]
    model, objective, weight, accelerator = learner.begin_fold(numbers[0], first)
    reload = 0.0
    if learner.recipe.lora is None and len(numbers) > 1:  # every further fold loads the base again
        del model
        before = time.monotonic()
        model, objective, weight, accelerator = learner.begin_fold(numbers[0], first)
        reload = time.monotonic() - before

    pieces = [*tokens.ids, *(learner.test_tokens.ids if learner.test_tokens is not None else [])]
    piece_lengths = np.array([len(ids) for ids in pieces])
    cache, own = learner.open_prefix_cache(tokens), tokens.take(first).ids
    lengths, size = objective.lengths, train.per_device_train_batch_size
    batches = shuffled_batches(lengths, size, np.random.default_rng(epoch_seed(train.seed, numbers[0], 1)))
    inner = make_optimizer(model, learner.recipe)
    optimizer = accelerator.prepare(inner)
    updates: list[float] = []

    def step(rows: np.ndarray) -> float:
        if cache is not None:
            cache.hold([own[row] for row in rows])
        model.train()
        before = _now(learner.device)
        accumulated_loss(model, objective, [rows], accelerator)
        between = _now(learner.device)
        update(optimizer, 0.0, train.max_grad_norm, accelerator)
        updates.append(_now(learner.device) - between)
        return between - before

    try:
        training = _measure(step, batches, lengths, size, BUDGET)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise training_memory_error(train, "measuring before the run", int(lengths.max()), error) from error

    eval_size = learner.batches.size
    order = np.argsort(-piece_lengths, kind="stable")
    eval_batches = [order[i : i + eval_size] for i in range(0, len(order), eval_size)]

    def answer(rows: np.ndarray) -> float:
        if cache is not None:
            cache.hold([pieces[row] for row in rows])
        # any pieces will do, as texts of their own
        alone = Tokens(
            [pieces[row] for row in rows], np.arange(len(rows)), np.zeros(len(rows), bool), tokens.max_length
        )
        before = _now(learner.device)
        learner._logits(model, alone, weight)
        return _now(learner.device) - before

    predicting = _measure(answer, eval_batches, piece_lengths, eval_size, BUDGET / 2)
    with tempfile.TemporaryDirectory() as folder:
        before = time.monotonic()
        save_state(Path(folder) / "state.safetensors", model, inner, FoldState(), {})
        state_seconds = time.monotonic() - before
        before = time.monotonic()
        learner._save(model, FoldFolder(Path(folder)))
        model_seconds = time.monotonic() - before

    longest = np.array([lengths[rows].max() for rows in batches])
    n_rows = np.array([len(rows) for rows in batches])
    n_steps = -(-len(batches) // train.gradient_accumulation_steps)
    epoch_seconds = training.over(longest, n_rows) + n_steps * median(updates[1:] or updates)
    per_piece = epoch_seconds / len(lengths)
    of_piece = np.split(tokens.lengths, np.cumsum(tokens.n_pieces)[:-1])  # lengths of every text's pieces
    test = predicting.sorted(learner.test_tokens.lengths) if learner.test_tokens is not None else 0.0
    epochs, select = train.num_train_epochs, train.select
    seconds = {"load": load_seconds + reload * (len(numbers) - 1), "tokenize": learner.seconds["tokenize"]}
    seconds["prefix"] = cache.seconds_to_fill(pieces) if cache is not None else 0.0
    seconds |= dict.fromkeys(("train", "score", "predict", "save"), 0.0)
    n_predicted = 0
    for number, (train_rows, selection_rows) in rows_of.items():
        held = np.concatenate([of_piece[row] for row in np.flatnonzero(fold == number)])
        chosen = np.concatenate([of_piece[row] for row in selection_rows]) if len(selection_rows) else held[:0]
        n_predicted += len(held) + (len(learner.test_tokens.ids) if learner.test_tokens is not None else 0)
        seconds["train"] += epochs * per_piece * float(tokens.n_pieces[train_rows].sum())
        seconds["predict"] += predicting.sorted(held) + test
        every_epoch = test + model_seconds if select == "cross_fitted" else 0.0
        seconds["score"] += epochs * (predicting.sorted(chosen) + every_epoch)
        seconds["save"] += epochs * state_seconds + model_seconds
    return Estimate(
        seconds=seconds,
        folds=len(numbers),
        epochs=epochs,
        train_rows_per_second=1 / per_piece,
        predict_rows_per_second=n_predicted / seconds["predict"],
        lengths=training.lengths,
        steps=len(updates),
        predictions=predicting.timed,
        measuring_seconds=time.monotonic() - started,
    )


def _train_rows(learner: TransformerLearner, fold: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that a fold is trained on, and those that every epoch is scored on to choose among epochs."""
    assert learner.train is not None
    rows, held, select = np.flatnonzero(fold != number), np.flatnonzero(fold == number), learner.recipe.train.select
    if select == "inner":
        return hold_back(learner.recipe, learner.train, rows, number)
    return rows, held if select in ("scored_fold", "cross_fitted") else held[:0]


def _measure(
    run: Callable[[np.ndarray], float], batches: Sequence[np.ndarray], lengths: np.ndarray, size: int, budget: float
) -> _Curve:
    """Times of batches from short to long, in rounds, until the budget is spent; each of them once at least."""
    full = [rows for rows in batches if len(rows) == size] or list(batches)
    full.sort(key=lambda rows: int(lengths[rows].max()))
    chosen: dict[int, np.ndarray] = {}
    for quantile in QUANTILES:
        rows = full[round(quantile * (len(full) - 1))]
        chosen.setdefault(int(lengths[rows].max()), rows)
    points: dict[int, list[float]] = {length: [] for length in chosen}
    started = time.monotonic()
    for turn in range(ROUNDS):
        for length, rows in chosen.items():
            if turn and time.monotonic() - started > budget:
                break
            points[length].append(run(rows) * size / len(rows))
    return _Curve(points, size)


def _now(device: torch.device) -> float:
    """The time when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
