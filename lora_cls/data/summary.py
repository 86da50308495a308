"""What a dataset looks like, in numbers that fit into JSON."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pandas as pd

from lora_cls.data.dataset import Dataset, text_key


def summarize(train: Dataset, test: Dataset | None = None) -> dict[str, Any]:
    """Describe the training table, and the test table's overlap with it.

    Parameters
    ----------
    train : Dataset
        With labels. Its extra rows are left out.
    test : Dataset or None

    Returns
    -------
    dict
        JSON-able: `train` (rows, labels, label rates, words, duplicates), and `test` or None. Shares are from 0 to 1.
    """
    train = train.subset(~train.extra)
    keys = [text_key(text) for text in train.texts]
    return {
        "train": {
            "rows": len(train),
            "groups": int(pd.Series(train.groups).nunique()),  # faster than np.unique: it grows as the rows do
            "words": _words(train.texts),
            **_label_summary(train),
            "duplicates": _duplicates(train, keys),
        },
        "test": None if test is None else _test_summary(test, set(keys)),
    }


def _words(texts: list[str]) -> dict[str, float]:
    counts = np.array([len(text.split()) for text in texts]) if texts else np.zeros(1)
    return {
        "mean": round(float(counts.mean()), 2),
        "p95": round(float(np.percentile(counts, 95)), 1),
        "max": int(counts.max()),
    }


def _share(count: int, total: int) -> float:
    return round(count / total, 6) if total else 0.0


def _label_summary(train: Dataset) -> dict[str, Any]:
    if train.labels is None:
        return {"labels": [], "rows_without_label": None, "rows_with_several_labels": None}
    per_row = train.labels.sum(axis=1, dtype=np.int64)
    counts = train.labels.sum(axis=0, dtype=np.int64)
    return {
        "labels": [
            {"name": name, "positives": int(count), "prevalence": _share(int(count), len(train))}
            for name, count in zip(train.label_names, counts, strict=True)
        ],
        "rows_without_label": _rows(per_row == 0),
        "rows_with_several_labels": _rows(per_row > 1),
    }


def _rows(mask: np.ndarray) -> dict[str, Any]:
    return {"count": int(mask.sum()), "share": _share(int(mask.sum()), len(mask))}


def _duplicates(train: Dataset, keys: list[str]) -> dict[str, Any]:
    """Texts that stand more than once, and those whose copies disagree on the labels."""
    copies = {key: count for key, count in Counter(keys).items() if count > 1}
    rows_of: dict[str, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        if key in copies:
            rows_of[key].append(i)
    conflicts = [
        rows
        for rows in rows_of.values()
        if train.labels is not None and (train.labels[rows] != train.labels[rows[0]]).any()
    ]
    return {
        "texts": len(copies),
        "extra_rows": sum(copies.values()) - len(copies),
        "conflicting_texts": len(conflicts),
        "conflicting_examples": [[train.ids[i] for i in rows[:5]] for rows in conflicts[:5]],
    }


def _test_summary(test: Dataset, train_keys: set[str]) -> dict[str, Any]:
    keys = [text_key(text) for text in test.texts]
    # Two empty texts are no overlap: there is nothing to have been seen.
    seen = np.array([bool(key) and key in train_keys for key in keys], dtype=bool)
    return {
        "rows": len(test),
        "words": _words(test.texts),
        "empty_texts": sum(not key for key in keys),
        "texts_also_in_train": {**_rows(seen), "examples": [test.ids[i] for i in np.flatnonzero(seen)[:5]]},
    }


def length_summary(texts: list[str]) -> dict[str, Any]:
    """Words per text: mean, median, 95th percentile, maximum, and a histogram of at most about 30 bins.

    `counts[i]` texts have from `i * width` to `(i + 1) * width - 1` words; the last bin also holds the longest percent.
    """
    counts = np.array([len(text.split()) for text in texts], dtype=np.int64)
    width = max(1, int(np.ceil((np.percentile(counts, 99) + 1) / 30)))
    bins = np.minimum(counts // width, int(np.percentile(counts, 99)) // width)
    return {
        "mean": round(float(counts.mean()), 2),
        "median": float(np.median(counts)),
        "p95": float(np.percentile(counts, 95)),
        "max": int(counts.max()),
        "width": width,
        "counts": np.bincount(bins).tolist(),
    }
