r"""Long documents in which one comment carries the label and the others carry none, from a table of comments.

    python -m benchmarks.long_documents goemotions_train.csv --labels gratitude,love,amusement --neutral neutral \
        --out FOLDER
    lora-cls run minilm-l6 --train FOLDER/train.csv --test FOLDER/test.csv --set data.text_columns=[text] \
        --set "data.label_columns=[gratitude,love,amusement]" --set data.long_text=chunk

What makes it matter whether a whole text is read is a label that may be anywhere in it. Each document is one comment
with exactly one of the labels and nothing else, at a random place among comments without a label (only `--neutral` set,
or nothing set where the table has no such column). As many documents as of each label have no labelled comment at all.
Comments are dealt to train and test first, so that no part of a test document stands in a training document. A labelled
comment stands in one document; the others may stand in several (`--reuse`), never twice in one.

Writes `train.csv`, `test.csv` (no labels) and `test_labels.csv`: id, text, place (where the labelled comment begins, as
a share of the document's words; empty where there is none), and the 0/1 columns.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from lora_cls.data import read_table


def make_documents(
    table: pd.DataFrame,
    labels: list[str],
    neutral: str | None,
    n_documents: tuple[int, int],
    n_comments: int,
    reuse: int,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Documents for training and for the test.

    Parameters
    ----------
    table : columns text and 0/1 columns
    labels : those that documents carry; as many documents of each, and of none
    neutral : the column that is set where nothing else is; None where such rows are all zero
    n_documents : of train, of test
    n_comments : comments per document, on average; each has between half and one and a half times as many
    reuse : documents that a comment without a label may stand in

    Returns
    -------
    train, test : DataFrame of id, text, place and labels

    Raises
    ------
    ValueError
        If the table holds too few comments.
    """
    table = table.drop_duplicates("text")
    flags = table.drop(columns=["id", "text"]).astype(float).astype(int)
    alone = flags.sum(axis=1) == 1
    rng = np.random.default_rng(seed)
    empty = alone & (flags[neutral] == 1) if neutral else flags.sum(axis=1) == 0
    signal = {label: rng.permutation(table["text"][alone & (flags[label] == 1)]).tolist() for label in labels}
    fillers = rng.permutation(table["text"][empty])
    cut = round(len(fillers) * n_documents[0] / sum(n_documents))
    tables = []
    for name, n, pool in zip(("train", "test"), n_documents, (fillers[:cut], fillers[cut:]), strict=True):
        stock = [text for _ in range(reuse) for text in rng.permutation(pool)]
        rows = []
        for i in range(n):
            size = int(rng.integers(n_comments // 2, n_comments + n_comments // 2 + 1))
            if size > len(stock):
                raise ValueError(f"{name}: only {len(pool)} comments without a label. Make fewer or shorter documents.")
            parts = list(dict.fromkeys(stock[:size]))
            del stock[:size]
            label, place = [*labels, None][i % (len(labels) + 1)], None
            if label is not None:
                if not signal[label]:
                    raise ValueError(f"{label}: the table holds too few comments with it alone. Make fewer documents.")
                at = int(rng.integers(len(parts) + 1))
                parts.insert(at, signal[label].pop())
                words = [len(part.split()) for part in parts]
                place = round(sum(words[:at]) / sum(words), 3)
            rows.append((f"{name}-{i:04d}", "\n".join(parts), place, *(int(label == other) for other in labels)))
        shuffled = rng.permutation(n)
        tables.append(pd.DataFrame([rows[i] for i in shuffled], columns=["id", "text", "place", *labels]))
    return tables[0], tables[1]


def main() -> None:
    """Parse, make the documents, write them, and say what they are."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("--labels", required=True, help="as anger,joy")
    parser.add_argument("--neutral", help="the column that is set where nothing else is")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--documents", default="720,360", help="of train, of test")
    parser.add_argument("--comments", type=int, default=24, help="per document, on average")
    parser.add_argument("--reuse", type=int, default=3, help="documents that a comment without a label may stand in")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    n_train, n_test = (int(part) for part in given.documents.split(","))
    labels = given.labels.split(",")
    train, test = make_documents(
        read_table(given.table), labels, given.neutral, (n_train, n_test), given.comments, given.reuse, given.seed
    )
    given.out.mkdir(parents=True, exist_ok=True)
    train.to_csv(given.out / "train.csv", index=False)
    test[["id", "text"]].to_csv(given.out / "test.csv", index=False)
    test.to_csv(given.out / "test_labels.csv", index=False)
    for name, documents in (("train", train), ("test", test)):
        words = documents["text"].str.split().str.len()
        print(f"{name}: {len(documents)} documents, words mean {words.mean():.0f}, longest {words.max()}")


if __name__ == "__main__":
    main()
