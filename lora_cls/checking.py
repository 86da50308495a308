"""`lora-cls check`: recipe, data, folds and token lengths, before any training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lora_cls.cross_validation import Tables, make_folds, refuse_blend
from lora_cls.data import Source as Table
from lora_cls.data import fold_notes, summarize
from lora_cls.data.prompts import recipe_frame
from lora_cls.data.tokens import Frame, Tokens, encode, long_text_note
from lora_cls.recipe import Recipe, load_recipe
from lora_cls.training.selection import check_selection


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
    """

    recipe: Recipe
    notes: list[str]
    data: dict[str, Any]
    tokens: dict[str, dict[str, float]]
    memory: dict[str, Any]


def check(
    recipe: str | Path | Recipe,
    train: Table | None = None,
    test: Table | None = None,
    sample_submission: Table | None = None,
    overrides: Sequence[str] = (),
    fold_table: Table | None = None,
    *,
    extra_train: Table | None = None,
) -> Check:
    """Load and check everything that a run would read; the backbone's tokenizer and configuration, not its weights.

    Raises
    ------
    LoraClsError
        For anything the user can mend.
    """
    recipe = load_recipe(recipe, overrides)
    refuse_blend(recipe)
    tables = Tables(recipe, train, test, sample_submission, extra_train)
    recipe = tables.recipe
    data = tables.train
    assert data.labels is not None
    fold = make_folds(recipe, data, recipe.data.folds if fold_table is None else fold_table)
    check_selection(recipe, data, fold)
    notes = [*tables.notes, *fold_notes(data.labels, fold, data.label_names, data.groups)]
    tokens: dict[str, dict[str, float]] = {}
    memory: dict[str, Any] = {}
    if recipe.backbone is not None:
        from lora_cls.modeling.loading import load_tokenizer

        tokenizer = load_tokenizer(recipe.backbone)
        frame, answer = _frame(tokenizer, recipe, data.label_names)
        room = recipe.data.model_copy(update={"max_length": recipe.data.max_length - answer})
        for name, table in (("train", data), ("test", tables.test)):
            if table is not None:
                read = encode(tokenizer, table.texts, room, frame)
                note = long_text_note(read, recipe.data, {"train": "training"}.get(name, name))
                notes += [note] if note else []
                whole = encode(tokenizer, table.texts, recipe.data.model_copy(update={"max_length": 2**62}), frame)
                tokens[name] = _lengths(whole) | {
                    "truncated": float(read.truncated.mean()),
                    "pieces_per_text": len(read.ids) / read.n_texts,
                }
        longest = min(recipe.data.max_length, answer + max(int(lengths["max"]) for lengths in tokens.values()))
        memory = _memory(recipe, len(data.label_names), longest)
    return Check(recipe, notes, summarize(data, tables.test), tokens, memory)


def _frame(tokenizer: Any, recipe: Recipe, label_names: Sequence[str]) -> tuple[Frame, int]:
    """What stands around each text, and the tokens that an answer behind it may take."""
    if recipe.head.kind != "generate":
        return recipe_frame(tokenizer, recipe.head, label_names), 0
    from lora_cls.modeling.answers import answer_format

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
