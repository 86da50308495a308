"""A smaller training table with about the same labels."""

from __future__ import annotations

import numpy as np

from lora_cls.errors import DataError

KEPT_POSITIVES = 10  # of a rare label, where the sample has room for them


def stratified_subsample(labels: np.ndarray, groups: np.ndarray, n_rows: int, random_state: int) -> np.ndarray:
    """Choose about `n_rows` rows, never more, with about the same share of each label.

    Labels are served from the rarest to the most frequent, rows without any label last, each until it has its share of
    the sample. A rare label gets up to 10 positive rows even where that is more than its share. Groups stay whole.

    Parameters
    ----------
    labels : ndarray of shape (n_samples, n_labels), 0 or 1
    groups : ndarray of shape (n_samples,)
    n_rows : int
    random_state : int
        The same inputs give the same rows.

    Returns
    -------
    ndarray of int64, positions in ascending order

    Raises
    ------
    DataError
        If not even one group is as small as `n_rows`.

    Examples
    --------
    A tenth of the rows; of the label with 20 positives in 200 rows there are ten, not two.

    >>> labels = (np.arange(200) < 20).astype(int)[:, None]
    >>> rows = stratified_subsample(labels, np.arange(200), n_rows=20, random_state=0)
    >>> len(rows), int(labels[rows].sum())
    (20, 10)
    """
    labels = np.asarray(labels)
    if n_rows >= len(labels):
        return np.arange(len(labels))
    names, group_of = np.unique(groups, return_inverse=True)
    group_of = group_of.reshape(-1)
    kinds = np.column_stack([labels, ~labels.astype(bool).any(axis=1)]).astype(np.int64)
    of_group = np.zeros((len(names), kinds.shape[1]), dtype=np.int64)
    np.add.at(of_group, group_of, kinds)
    size = np.bincount(group_of)
    total = of_group.sum(axis=0)
    least = min(KEPT_POSITIVES, n_rows // kinds.shape[1])
    wanted = np.minimum(total, np.maximum(np.ceil(total * n_rows / len(labels)), least))
    order = np.random.default_rng(random_state).permutation(len(names))
    chosen = np.zeros(len(names), dtype=bool)
    served, room = np.zeros(kinds.shape[1], dtype=np.int64), n_rows

    def take(group: int) -> None:
        nonlocal room
        chosen[group] = True
        served[:] += of_group[group]
        room -= int(size[group])

    rare_first = [*np.argsort(total[:-1], kind="stable").tolist(), len(total) - 1]
    for kind in rare_first:
        for group in order[of_group[order, kind] > 0].tolist():
            if served[kind] >= wanted[kind]:
                break
            if not chosen[group] and size[group] <= room:
                take(group)
    for group in order.tolist():  # groups that did not fit, and rounding, may have left room
        if not chosen[group] and size[group] <= room:
            take(group)
    if not chosen.any():
        raise DataError(
            f"data.max_rows is {n_rows}, but the smallest group of rows that stay together has {int(size.min())}."
        )
    return np.flatnonzero(chosen[group_of])
