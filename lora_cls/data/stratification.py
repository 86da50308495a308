"""Iterative stratification: rows with several labels divided so that each part has its share of every label.

The algorithm is that of Sechidis, Tsoumakas and Vlahavas 2011, "On the Stratification of Multi-Label Data" (ECML PKDD,
LNCS 6913). The package iterative-stratification 0.1.9 (Bradberry, BSD 3 clause) has it too, and counts all rows' labels
anew for every label: n_samples x n_labels^2, which with a thousand labels takes minutes. Here every count is kept up to
date instead, and every draw and rounding is that package's, so that the folds are the same (a test compares the two).
"""

from __future__ import annotations

import numpy as np


def iterative_stratification(labels: np.ndarray, n_splits: int, random_state: int) -> np.ndarray:
    """The fold of every row, as `MultilabelStratifiedKFold(n_splits, shuffle=True, random_state=...)` divides them.

    Label by label, the one with the fewest rows left first: each of its rows goes to the fold that lacks most of this
    label; of equals, to the one that lacks most rows; of equals, to one that is drawn.

    Parameters
    ----------
    labels : ndarray of shape (n_samples, n_labels), 0 or 1
        Every row has one label at least.
    n_splits : int
    random_state : int

    Returns
    -------
    ndarray of shape (n_samples,), int64

    Examples
    --------
    >>> labels = np.array([[1, 0], [0, 1], [1, 1]] * 4)
    >>> fold = iterative_stratification(labels, n_splits=2, random_state=0)
    >>> [labels[fold == number].sum(axis=0).tolist() for number in (0, 1)]
    [[4, 4], [4, 4]]
    """
    n_samples, n_labels = labels.shape
    rng = np.random.RandomState(random_state)
    order = np.arange(n_samples)
    rng.shuffle(order)
    row, column = np.nonzero(labels[order])
    starts = np.searchsorted(row, np.arange(n_samples + 1)).tolist()
    labels_of = column.tolist()
    by_label = row[np.argsort(column, kind="stable")]
    left = np.bincount(column, minlength=n_labels)
    ends = np.cumsum(left)
    # As floats, and each taken down by one at a time: what is equal here must be equal there.
    lacking = np.outer([1 / n_splits] * n_splits, left).T.tolist()
    lacking_rows = [1 / n_splits * n_samples] * n_splits
    fold = [-1] * n_samples
    rows_of = [rows.tolist() for rows in np.split(by_label, ends[:-1])]
    remaining = left.copy()
    while remaining.any():
        rarest = np.flatnonzero(remaining == remaining[remaining > 0].min())
        label = int(rarest[rng.choice(len(rarest))]) if len(rarest) > 1 else int(rarest[0])
        of_label, taken = lacking[label], []
        for i in rows_of[label]:
            if fold[i] >= 0:
                continue
            most = max(of_label)
            into = of_label.index(most)
            if of_label.count(most) > 1:
                equal = [k for k, value in enumerate(of_label) if value == most]
                most = max(lacking_rows[k] for k in equal)
                equal = [k for k in equal if lacking_rows[k] == most]
                into = equal[rng.choice(len(equal))] if len(equal) > 1 else equal[0]
            fold[i] = into
            lacking_rows[into] -= 1
            own = labels_of[starts[i] : starts[i + 1]]
            for j in own:
                lacking[j][into] -= 1
            taken += own
        remaining -= np.bincount(taken, minlength=n_labels)
    found = np.empty(n_samples, dtype=np.int64)
    found[order] = fold
    return found
