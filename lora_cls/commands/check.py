"""`lora-cls check`: recipe, data, folds, token lengths, and what the run would take, before any training."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lora_cls.commands.cross_validation import refuse_blend
from lora_cls.data import TableLike, fold_notes, summarize
from lora_cls.data.folds import chosen_folds, make_folds
from lora_cls.data.tables import Tables
from lora_cls.machine import peak_memory, reset_peak_memory
from lora_cls.recipe import Recipe, load_recipe
from lora_cls.runs.start import Start, find_start
from lora_cls.text.tokens import Tokens, text_notes
from lora_cls.training.factory import ask_fold
from lora_cls.training.progress import Progress
from lora_cls.training.selection import check_selection
from lora_cls.training.teachers import Teachers

if TYPE_CHECKING:
    from lora_cls.training.estimate import Estimate
    from lora_cls.training.session import Session
    from lora_cls.training.transformer import TransformerTrainer


@dataclass(frozen=True)
class Check:
    """What `check` found.

    Attributes
    ----------
    recipe : the checked recipe
    notes : what a user should know, one sentence each
    data : see `lora_cls.data.summarize`
    tokens : per table (`train`, `test`): mean, median, p95 and max tokens per whole text (prompt and special tokens
        included), share of truncated texts, pieces per text, and share of unknown tokens
    memory : what training would take at its peak, in bytes: `device`, the parts of `Memory`, `total`; empty for `tfidf`
    estimate : minutes and memory from a few measured steps; None for `tfidf`, or where nothing was measured
    """

    recipe: Recipe
    notes: list[str]
    data: dict[str, Any]
    tokens: dict[str, dict[str, float]]
    memory: dict[str, Any]
    estimate: Estimate | None = None


def check(
    recipe: str | Path | Recipe,
    train: TableLike | None = None,
    test: TableLike | None = None,
    sample_submission: TableLike | None = None,
    overrides: Sequence[str] = (),
    fold_table: TableLike | None = None,
    *,
    extra_train: TableLike | None = None,
    folds: Sequence[int] | None = None,
    measure: bool = True,
    show: bool | None = None,
    trust_remote_code: bool = False,
) -> Check:
    """Load and check everything that a run would read, and time a few of its steps.

    Parameters
    ----------
    folds : numbers of the folds that the run would train; all where None
    measure : False leaves out the timing: then the backbone's tokenizer and configuration are read, not its weights
    show : what it does meanwhile; where None, in notebooks and at a prompt
    trust_remote_code : see `cross_validate`

    Raises
    ------
    LoraClsError
        For anything the user can mend.
    """
    started = time.monotonic()
    reset_peak_memory()
    recipe = load_recipe(recipe, overrides, trust_remote_code=trust_remote_code or None)
    refuse_blend(recipe)
    tables = Tables(recipe, train, test, sample_submission, extra_train)
    recipe = tables.recipe
    data = tables.train
    assert data.labels is not None
    fold = make_folds(recipe, data, recipe.data.folds if fold_table is None else fold_table)
    numbers = chosen_folds(fold, folds)
    check_selection(recipe, data, fold)
    start = find_start(recipe, data, fold, numbers)
    notes = [*tables.notes, *fold_notes(data.labels, fold, data.label_names, data.groups)]
    notes += start.notes(tables.test) if start is not None else []
    teachers = None
    if recipe.distill is not None:
        teachers = Teachers(recipe, tables, fold, numbers, partial(ask_fold, recipe.engine))
        notes += [*teachers.notes, "what the teachers take to answer is not in the estimate"]
    if recipe.backbone is None:
        return Check(recipe, notes, summarize(data, tables.test), {}, {})
    with Progress(0, show) as progress:
        return _with_backbone(recipe, tables, teachers, fold, numbers, start, notes, measure, started, progress)


def _with_backbone(
    recipe: Recipe,
    tables: Tables,
    teachers: Teachers | None,
    fold: np.ndarray,
    numbers: list[int],
    start: Start | None,
    notes: list[str],
    measure: bool,
    started: float,
    progress: Progress,
) -> Check:
    """What asks the pretrained model: token lengths, memory, minutes."""
    from lora_cls.training.transformer import TransformerLearner

    data = tables.train
    progress.say(f"Reading the tokens of {len(data) + len(tables.test or ()):,} texts.")
    choices = None if start is None else start.choices
    learner = TransformerLearner(recipe, data.label_names, choices, progress=progress)
    trainer = learner.prepare(data, tables.test, teachers)
    aside = time.monotonic()  # from here on `check` does what a run does not
    tokens: dict[str, dict[str, float]] = {}
    for name, read in (("train", trainer.rows.tokens), ("test", trainer.test_tokens)):
        if read is not None:
            notes += text_notes(read, recipe.data, {"train": "training"}.get(name, name))
            tokens[name] = _lengths(read)
    longest = trainer.head.answer_tokens + max(int(lengths["max"]) for lengths in tokens.values())
    memory = _memory(trainer.session, min(recipe.data.max_length, longest))
    estimate: Estimate | None = None
    if measure and (short := _too_large(memory)):
        notes.append(short)
    elif measure:
        progress.say(
            "Loading the model and timing some of its steps: from half a minute to a few, longer where a single step "
            "takes seconds. --no-measure leaves it out."
        )
        adapting = None if recipe.adapt is None else trainer.adaptation_seconds(tables.extra_texts)
        estimate = _measured(trainer, fold, numbers, started + time.monotonic() - aside)
        if adapting is not None:
            estimate = replace(estimate, seconds={"adapt": adapting} | estimate.seconds)
        elif recipe.adapt is not None:
            notes.append("The base that was adapted to these texts is in the cache already.")
    return Check(recipe, notes, summarize(data, tables.test), tokens, memory, estimate)


def _measured(trainer: TransformerTrainer, fold: np.ndarray, numbers: list[int], started: float) -> Estimate:
    """Time a few steps. `started` is when the run would have started that is to be measured from now on."""
    from lora_cls.training.estimate import estimate_run

    trainer.measure()
    load_seconds = time.monotonic() - started - trainer.session.seconds["tokenize"]
    estimate = estimate_run(trainer, fold, numbers, load_seconds)
    return replace(estimate, peak_memory_bytes=peak_memory() or 0)


def _too_large(memory: dict[str, Any]) -> str | None:
    """Why no step is tried: on a CPU a process that takes too much is killed, and others with it."""
    import psutil
    import torch

    from lora_cls.training.batches import release_memory

    release_memory()  # of a GPU: what PyTorch keeps of earlier runs of this process counts as taken
    free = torch.cuda.mem_get_info()[0] if memory["device"] == "cuda" else psutil.virtual_memory().available
    if memory["total"] <= free:
        return None
    return (
        f"Training would take about {memory['total'] / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free here: no "
        "step was tried, and no time is estimated. Lower train.per_device_train_batch_size (and raise "
        "train.gradient_accumulation_steps) or data.max_length, set train.gradient_checkpointing, or quantize the base."
    )


def _memory(session: Session, longest: int) -> dict[str, Any]:
    """The estimate for this machine, at the longest text that there is."""
    from lora_cls.modeling.loading import load_config
    from lora_cls.training.memory import estimate_memory

    device = session.device.type
    config = load_config(session.backbone, session.source)
    kind: Literal["cpu", "cuda"] = "cuda" if device == "cuda" else "cpu"  # Apple's GPUs share the CPU's memory
    estimate = estimate_memory(
        session.recipe, config, dtype=session.dtype, device=kind, n_labels=session.n_labels, length=longest
    )
    return {"device": device, "length": longest} | asdict(estimate) | {"total": estimate.total}


def _lengths(read: Tokens) -> dict[str, float]:
    """Of whole texts, and how much of them is read."""
    lengths = read.whole_lengths
    assert lengths is not None
    return {
        "mean": float(lengths.mean()),
        "median": float(np.median(lengths)),
        "p95": float(np.percentile(lengths, 95)),
        "max": int(lengths.max()),
        "truncated": float(read.truncated.mean()),
        "pieces_per_text": len(read.ids) / read.n_texts,
        "unknown": read.unknown_share,
    }
