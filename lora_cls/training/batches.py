"""Batches for prediction that halve where the memory is full, and what is said of a full memory."""

from __future__ import annotations

import gc
from collections.abc import Callable

import numpy as np
import torch

from lora_cls.errors import TrainingError, memory_full
from lora_cls.modeling.precision import is_out_of_memory
from lora_cls.recipe import Train


class EvalBatches:
    """Batches of rows to predict, longest first; half as many rows from where the memory is full.

    Parameters
    ----------
    size : rows per batch. Halved once, it stays so for later calls too: the memory has not grown
    say : told each time that a smaller size was found to fit
    halves : False where other processes compute the same batch in step with this one: a full memory is an error then
    most_tokens : fewer rows where so many would hold more tokens than this, padding included. None for no such limit

    Attributes
    ----------
    multiple : what the longest row of a batch is rounded up to
    """

    def __init__(
        self,
        size: int,
        say: Callable[[str], None] | None = None,
        halves: bool = True,
        most_tokens: int | None = None,
        multiple: int = 4,
    ) -> None:
        self.most_tokens, self.multiple = most_tokens, multiple
        self.size = self._told = size
        self._halves = halves
        self._say = say or (lambda _: None)

    def each(self, lengths: np.ndarray, answer: Callable[[np.ndarray], None]) -> None:
        """Call `answer` with the positions of every row once, a batch at a time, and again with fewer where it fails.

        Raises
        ------
        TrainingError
            If a single row does not fit; or no batch, where none is halved.
        """
        order, start = np.argsort(-lengths, kind="stable"), 0
        while start < len(order):
            most = self.size
            if self.most_tokens is not None:
                most = min(most, max(1, self.most_tokens // max(1, int(lengths[order[start]]))))
            rows = order[start : start + most]
            error = _full_memory(answer, rows)
            if error is None:
                start += len(rows)
                if self.size < self._told:
                    self._say(
                        f"The memory is full with {self._told} rows at a time: from here on {self.size} are predicted "
                        "at a time (train.per_device_eval_batch_size), with the same answers."
                    )
                    self._told = self.size
                continue
            if len(rows) == 1:
                raise TrainingError(
                    f"The memory is full while a single row of {int(lengths[rows[0]])} tokens is predicted ({error}). "
                    "Make room on this machine, or lower data.max_length or head.prompt in a new run; data.long_text: "
                    "chunk then still reads long texts to their end."
                )
            if not self._halves:
                raise TrainingError(
                    f"The memory is full with {len(rows)} rows predicted at a time ({error}). Continue the run with "
                    f"--resume and --set train.per_device_eval_batch_size={len(rows) // 2}."
                )
            self.size = len(rows) // 2


def _full_memory(answer: Callable[[np.ndarray], None], rows: np.ndarray) -> str | None:
    """Call `answer`; what was said where the memory was full, None where it was not."""
    try:
        answer(rows)
        return None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        said = first_line(error)
    release_memory()  # only here: while the error is handled, its traceback holds what did not fit
    return said


def first_line(error: BaseException) -> str:
    """Of an error's message; its name where there is none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def release_memory() -> None:
    """Give back what nothing holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def training_memory_error(train: Train, where: str, n_tokens: int, error: BaseException) -> TrainingError:
    """What to set where a training step does not fit: the same step in smaller pieces, where there are any.

    Parameters
    ----------
    where : fold, epoch and step
    n_tokens : of the longest row in the batch
    error : what said that the memory is full
    """
    size, accumulate = train.per_device_train_batch_size, train.gradient_accumulation_steps
    more = "" if train.gradient_checkpointing else ", train.gradient_checkpointing=true"
    if size > 1:
        half = size // 2
        steps = -(-size * accumulate // half)
        same = "the same" if half * steps == size * accumulate else "nearly the same"
        advice = (
            f"--set train.per_device_train_batch_size={half} --set train.gradient_accumulation_steps={steps} makes "
            f"{same} steps ({half * steps} rows) with about half the memory for activations. More: a lower "
            f"data.max_length{more}, a quantized base."
        )
    else:
        advice = f"One row is a batch already. Lower data.max_length{more}, or quantize the base."
    here = f" while training ({where}; {size} rows of up to {n_tokens} tokens at a time: {first_line(error)})"
    return TrainingError(memory_full(here, advice))
