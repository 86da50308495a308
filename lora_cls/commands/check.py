"""`lora-cls check`: recipe, data, folds, token lengths, and what the run would take, before any training."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lora_cls.commands.cross_validation import refuse_blend
from lora_cls.data import TableLike, fold_notes, summarize
from lora_cls.data.folds import chosen_folds, make_folds
from lora_cls.data.tables import Tables
from lora_cls.machine import peak_memory
from lora_cls.recipe import Recipe, load_recipe
from lora_cls.text.prompts import recipe_frame
from lora_cls.text.token_cache import TokenCache
from lora_cls.text.tokens import Frame, Tokens, encode, long_text_note
from lora_cls.training.selection import check_selection

if TYPE_CHECKING:
    from lora_cls.training.estimate import Estimate


@dataclass(frozen=True)
class Check:
    """What `check` found.

    Attributes
    ----------
    recipe : the checked recipe
    notes : what a user should know, one sentence each
    data : see `lora_cls.data.summarize`
    tokens : per table (`train`, `test`): mean, median, p95 and max tokens per whole text (prompt and special tokens
        included), share of truncated texts, and pieces per text
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
) -> Check:
    """Load and check everything that a run would read, and time a few of its steps.

    Parameters
    ----------
    folds : numbers of the folds that the run would train; all where None
    measure : False leaves out the timing: then the backbone's tokenizer and configuration are read, not its weights

    Raises
    ------
    LoraClsError
        For anything the user can mend.
    """
    started = time.monotonic()
    recipe = load_recipe(recipe, overrides)
    refuse_blend(recipe)
    tables = Tables(recipe, train, test, sample_submission, extra_train)
    recipe = tables.recipe
    data = tables.train
    assert data.labels is not None
    fold = make_folds(recipe, data, recipe.data.folds if fold_table is None else fold_table)
    numbers = chosen_folds(fold, folds)
    check_selection(recipe, data, fold)
    notes = [*tables.notes, *fold_notes(data.labels, fold, data.label_names, data.groups)]
    tokens: dict[str, dict[str, float]] = {}
    memory: dict[str, Any] = {}
    estimate: Estimate | None = None
    if recipe.backbone is not None:
        from lora_cls.machine import cache_folder
        from lora_cls.modeling.loading import load_tokenizer

        tokenizer = load_tokenizer(recipe.backbone)
        frame, answer = _frame(tokenizer, recipe, data.label_names)
        cache = TokenCache(cache_folder() / "tokens") if recipe.engine.token_cache else None
        aside = time.monotonic()  # from here on `check` does what a run does not
        room = recipe.data.model_copy(update={"max_length": recipe.data.max_length - answer})
        letters = recipe.head.kind == "generate"  # special tokens spelled in a text are letters there
        for name, table in (("train", data), ("test", tables.test)):
            if table is not None:
                read = encode(tokenizer, table.texts, room, frame, letters, cache)
                note = long_text_note(read, recipe.data, {"train": "training"}.get(name, name))
                notes += [note] if note else []
                endless = recipe.data.model_copy(update={"max_length": 2**62})
                whole = encode(tokenizer, table.texts, endless, frame, letters, cache)
                tokens[name] = _lengths(whole) | {
                    "truncated": float(read.truncated.mean()),
                    "pieces_per_text": len(read.ids) / read.n_texts,
                }
        longest = min(recipe.data.max_length, answer + max(int(lengths["max"]) for lengths in tokens.values()))
        memory = _memory(recipe, len(data.label_names), longest)
        if measure and (short := _too_large(memory)):
            notes.append(short)
        elif measure:
            estimate = _measured(tables, fold, numbers, started + time.monotonic() - aside)
    return Check(recipe, notes, summarize(data, tables.test), tokens, memory, estimate)


def _measured(tables: Tables, fold: np.ndarray, numbers: list[int], started: float) -> Estimate:
    """Time a few steps. `started` is when the run would have started that is to be prepared from now on."""
    from lora_cls.training.estimate import estimate_run
    from lora_cls.training.learner import make_learner

    learner: Any = make_learner(tables.recipe, tables.train.label_names, tables.train, tables.test)
    learner.prepare()
    load_seconds = time.monotonic() - started - learner.seconds["tokenize"]
    found = estimate_run(learner, fold, numbers, load_seconds)
    return replace(found, peak_memory_bytes=peak_memory())


def _too_large(memory: dict[str, Any]) -> str | None:
    """Why no step is tried: on a CPU a process that takes too much is killed, and others with it."""
    import psutil
    import torch

    free = torch.cuda.mem_get_info()[0] if memory["device"] == "cuda" else psutil.virtual_memory().available
    if memory["total"] <= free:
        return None
    return (
        f"Training would take about {memory['total'] / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free here: no "
        "step was tried, and no time is estimated. Lower train.per_device_train_batch_size (and raise "
        "train.gradient_accumulation_steps) or data.max_length, set train.gradient_checkpointing, or quantize the base."
    )


def _frame(tokenizer: Any, recipe: Recipe, label_names: Sequence[str]) -> tuple[Frame, int]:
    """What stands around each text, and the tokens that an answer behind it may take."""
    if recipe.head.kind != "generate":
        return recipe_frame(tokenizer, recipe.head, label_names), 0
    from lora_cls.text.answers import answer_format

    chat, answers = answer_format(tokenizer, recipe, label_names)
    return chat.frame(tokenizer), answers.longest


def _memory(recipe: Recipe, n_labels: int, longest: int) -> dict[str, Any]:
    """The estimate for this machine, at the longest text that there is."""
    from lora_cls.modeling.loading import load_config
    from lora_cls.modeling.memory import estimate_memory
    from lora_cls.modeling.precision import choose_dtype, default_device
    from lora_cls.modeling.source import find_source

    assert recipe.backbone is not None
    device = default_device()
    config = load_config(recipe.backbone, find_source(recipe.backbone.name_or_path, recipe.backbone.revision))
    dtype = choose_dtype(recipe, device, config.model_type)
    kind: Literal["cpu", "cuda"] = "cuda" if device.type == "cuda" else "cpu"  # Apple's GPUs share the CPU's memory
    found = estimate_memory(recipe, config, dtype=dtype, device=kind, n_labels=n_labels, length=longest)
    return {"device": device.type, "length": longest} | asdict(found) | {"total": found.total}


def _lengths(whole: Tokens) -> dict[str, float]:
    lengths = whole.lengths
    return {
        "mean": float(lengths.mean()),
        "median": float(np.median(lengths)),
        "p95": float(np.percentile(lengths, 95)),
        "max": int(lengths.max()),
    }
