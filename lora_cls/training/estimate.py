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

from lora_cls.modeling.precision import is_out_of_memory
from lora_cls.runs import FoldFolder
from lora_cls.text.tokens import Tokens, shuffled_batches
from lora_cls.training.averages import WeightAverages
from lora_cls.training.batches import training_memory_error
from lora_cls.training.checkpoint import FoldState, save_state
from lora_cls.training.loop import accumulated_loss, epoch_seed, make_optimizer, update
from lora_cls.training.transformer import TransformerTrainer

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
    trainer: TransformerTrainer, fold: np.ndarray, numbers: Sequence[int], load_seconds: float
) -> Estimate:
    """Time steps of the first fold and count up what all folds take. The trainer is not to be used afterwards.

    Training steps have a learning rate of 0, and take as long as any. An untrained model that writes its labels may
    write more tokens than a trained one: prediction is then estimated too long. What teachers take to answer is not
    counted.

    Parameters
    ----------
    trainer : measured
    fold : ndarray of shape (n_samples,), the fold of every training row, -1 for rows that are only trained on
    numbers : the folds to train
    load_seconds : what comes before the first fold, tokenising left out

    Raises
    ------
    TrainingError
        If the longest batch does not fit into the memory; says what to set.
    """
    started = time.monotonic()
    train, tokens = trainer.recipe.train, trainer.rows.tokens
    rows_of = {
        number: trainer.divide(number, np.flatnonzero(fold != number), np.flatnonzero(fold == number))
        for number in numbers
    }
    steps = _Steps(trainer, numbers[0], rows_of[numbers[0]][0], reload=len(numbers) > 1)
    training, lengths = steps.training(), steps.objective.lengths
    predicting = steps.predicting()
    state_seconds, model_seconds = steps.saving()

    longest = np.array([lengths[rows].max() for rows in steps.batches])
    n_rows = np.array([len(rows) for rows in steps.batches])
    n_steps = -(-len(steps.batches) // train.gradient_accumulation_steps)
    epoch_seconds = training.over(longest, n_rows) + n_steps * median(steps.updates[1:] or steps.updates)
    per_piece = epoch_seconds / len(lengths)
    of_piece = np.split(tokens.lengths, np.cumsum(tokens.n_pieces)[:-1])  # lengths of every text's pieces
    test_lengths = trainer.test_tokens.lengths if trainer.test_tokens is not None else np.zeros(0, dtype=np.int64)
    test = predicting.sorted(test_lengths)
    epochs = train.num_train_epochs
    n_taught = len(trainer.taught_tokens.ids) if trainer.taught_tokens is not None else 0
    seconds = {
        "load": load_seconds + steps.reload_seconds * (len(numbers) - 1),
        "tokenize": trainer.session.seconds["tokenize"],
        "prefix": steps.cache.seconds_to_fill(steps.pieces) if steps.cache is not None else 0.0,
    }
    seconds |= dict.fromkeys(("train", "score", "predict", "save"), 0.0)
    n_predicted = 0
    for number, (train_rows, selection_rows) in rows_of.items():
        held = np.concatenate([of_piece[row] for row in np.flatnonzero(fold == number)])
        chosen = np.concatenate([of_piece[row] for row in selection_rows]) if len(selection_rows) else held[:0]
        n_predicted += len(held) + len(test_lengths)
        seconds["train"] += epochs * per_piece * float(tokens.n_pieces[train_rows].sum() + n_taught)
        seconds["predict"] += predicting.sorted(held) + test
        every_epoch = test + model_seconds if train.select == "cross_fitted" else 0.0
        seconds["score"] += epochs * (predicting.sorted(chosen) + every_epoch)
        seconds["save"] += epochs * state_seconds + model_seconds
    return Estimate(
        seconds=seconds,
        folds=len(numbers),
        epochs=epochs,
        train_rows_per_second=1 / per_piece,
        predict_rows_per_second=n_predicted / seconds["predict"],
        lengths=training.lengths,
        steps=len(steps.updates),
        predictions=predicting.timed,
        measuring_seconds=time.monotonic() - started,
    )


class _Steps:
    """Steps of one fold, to be timed.

    Parameters
    ----------
    rows : the fold's training rows
    reload : whether further folds are to be trained, for which full fine-tuning loads the base again
    """

    def __init__(self, trainer: TransformerTrainer, number: int, rows: np.ndarray, reload: bool) -> None:
        self.trainer, self.session, self.train = trainer, trainer.session, trainer.recipe.train
        self.number = number
        learnt = trainer.longest_lesson(rows)
        self.model, self.objective, self.weight, self.accelerator = trainer.begin_fold(number, rows, learnt)
        self.reload_seconds = 0.0
        if trainer.recipe.lora is None and reload:
            del self.model
            before = time.monotonic()
            self.model, self.objective, self.weight, self.accelerator = trainer.begin_fold(number, rows, learnt)
            self.reload_seconds = time.monotonic() - before
        tokens, test = trainer.rows.tokens, trainer.test_tokens
        taught = trainer.taught_tokens
        self.pieces = [ids for read in (tokens, test, taught) if read is not None for ids in read.ids]
        self.cache, self.own = self.session.prefix_cache(tokens), learnt.tokens.ids
        rng = np.random.default_rng(epoch_seed(self.train.seed, number, 1))
        self.batches = shuffled_batches(self.objective.lengths, self.train.per_device_train_batch_size, rng)
        self.inner = make_optimizer(self.model, trainer.recipe)
        self.optimizer = self.accelerator.prepare(self.inner)
        self.averages = WeightAverages(self.model, self.train, self.train.num_train_epochs)
        self.updates: list[float] = []

    def training(self) -> _Curve:
        """Seconds of training batches; `updates` gets those of the optimizer.

        Raises
        ------
        TrainingError
            If the longest batch does not fit into the memory; says what to set.
        """
        lengths = self.objective.lengths
        try:
            return _measure(self._train, self.batches, lengths, self.train.per_device_train_batch_size, BUDGET)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            where = "measuring before the run"
            raise training_memory_error(self.train, where, int(lengths.max()), error) from error

    def _train(self, rows: np.ndarray) -> float:
        if self.cache is not None:
            self.cache.hold([self.own[row] for row in rows])
        self.model.train()
        before = _now(self.session.device)
        accumulated_loss(self.model, self.objective, [rows], self.accelerator)
        between = _now(self.session.device)
        update(self.optimizer, 0.0, self.train.max_grad_norm, self.accelerator)
        self.averages.after_step(len(self.updates))
        self.updates.append(_now(self.session.device) - between)
        return between - before

    def predicting(self) -> _Curve:
        """Seconds of batches to be answered."""
        lengths, size = np.array([len(ids) for ids in self.pieces]), self.session.batches.size
        order = np.argsort(-lengths, kind="stable")
        batches = [order[i : i + size] for i in range(0, len(order), size)]
        return _measure(self._answer, batches, lengths, size, BUDGET / 2)

    def _answer(self, rows: np.ndarray) -> float:
        pieces = [self.pieces[row] for row in rows]
        if self.cache is not None:
            self.cache.hold(pieces)
        # any pieces will do, as texts of their own
        alone = Tokens(pieces, np.arange(len(rows)), np.zeros(len(rows), bool), self.trainer.rows.tokens.max_length)
        before = _now(self.session.device)
        self.session.answer(self.model, alone, self.weight)
        return _now(self.session.device) - before

    def saving(self) -> tuple[float, float]:
        """Seconds to write the state of an epoch, and what was trained."""
        self.averages.after_epoch(self.train.num_train_epochs)  # so that all are there that the last epoch writes
        with tempfile.TemporaryDirectory() as folder:
            before = time.monotonic()
            file = Path(folder) / "state.safetensors"
            save_state(file, self.model, self.inner, FoldState(), {}, self.averages.kept)
            between = time.monotonic()
            self.session.save(self.model, FoldFolder(Path(folder)))
            return between - before, time.monotonic() - between


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
