"""`lora-cls check`: recipe, data, folds and token lengths, before any training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lora_cls.cross_validation import Tables, make_folds
from lora_cls.data import Source as Table
from lora_cls.data import fold_notes, summarize
from lora_cls.data.tokens import Tokens, encode
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
    tokens : per table (`train`, `test`): mean, median, p95 and max tokens per text, share of truncated texts
    """

    recipe: Recipe
    notes: list[str]
    data: dict[str, Any]
    tokens: dict[str, dict[str, float]]


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
    """Load and check everything that a run would read; the backbone's tokenizer, but not its weights.

    Raises
    ------
    LoraClsError
        For anything the user can mend.
    """
    recipe = load_recipe(recipe, overrides)
    tables = Tables(recipe, train, test, sample_submission, extra_train)
    data = tables.train
    assert data.labels is not None
    fold = make_folds(recipe, data, recipe.data.folds if fold_table is None else fold_table)
    check_selection(recipe, data, fold)
    notes = [*tables.notes, *fold_notes(data.labels, fold, data.label_names, data.groups)]
    tokens: dict[str, dict[str, float]] = {}
    if recipe.backbone is not None:
        from lora_cls.modeling.loading import load_tokenizer

        tokenizer = load_tokenizer(recipe.backbone)
        for name, table in (("train", data), ("test", tables.test)):
            if table is not None:
                tokens[name] = _lengths(encode(tokenizer, table.texts, recipe.data))
    return Check(recipe, notes, summarize(data, tables.test), tokens)


def _lengths(tokens: Tokens) -> dict[str, float]:
    lengths = tokens.lengths
    return {
        "mean": float(lengths.mean()),
        "median": float(np.median(lengths)),
        "p95": float(np.percentile(lengths, 95)),
        "max": int(lengths.max()),
        "truncated": float(tokens.truncated.mean()),
    }
