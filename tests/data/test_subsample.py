"""A stratified subsample: no more rows than asked, the same labels, rare ones kept, groups whole."""

import numpy as np
import pytest

from lora_cls.data import stratified_subsample
from lora_cls.errors import DataError


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    labels = (rng.random((3000, 4)) < [0.5, 0.2, 0.05, 0.002]).astype(np.int8)
    return labels, rng.integers(0, 2500, 3000)


def test_shares_are_kept(rows):
    """Shares of labels and of rows without any are those of the table; a rare label keeps all it has, up to 10."""
    labels, groups = rows
    chosen = stratified_subsample(labels, groups, 300, 7)
    assert len(chosen) == 300
    assert np.all(np.diff(chosen) > 0)
    assert np.abs(labels[chosen][:, :3].mean(0) - labels[:, :3].mean(0)).max() < 0.04
    assert abs((~labels[chosen].any(1)).mean() - (~labels.any(1)).mean()) < 0.04
    assert 4 <= labels[:, 3].sum() <= 10, "the test's own label is rare"
    assert labels[chosen][:, 3].sum() == labels[:, 3].sum()


def test_groups_are_whole(rows):
    """Of every group all rows or none."""
    labels, groups = rows
    chosen = stratified_subsample(labels, groups, 500, 1)
    inside = np.isin(np.arange(3000), chosen)
    assert not set(groups[inside]) & set(groups[~inside])


def test_reproducible(rows):
    """The same seed gives the same rows, another seed others."""
    first, again, other = (stratified_subsample(*rows, 200, seed) for seed in (1, 1, 2))
    assert first.tolist() == again.tolist() != other.tolist()


@pytest.mark.parametrize("n_rows", [1, 4, 7, 50, 2999, 3000, 10_000])
def test_never_more_than_asked(rows, n_rows):
    """The size is a limit that groups of at most a few rows fill."""
    assert min(n_rows, 3000) - 3 <= len(stratified_subsample(*rows, n_rows, 0)) <= n_rows


def test_large_groups():
    """A group larger than the sample is passed over; if all are, the smallest is named."""
    groups = np.repeat([0, 1, 2], [50, 3, 4])
    assert stratified_subsample(np.ones((57, 1)), groups, 6, 0).tolist() in ([50, 51, 52], [53, 54, 55, 56])
    with pytest.raises(DataError, match="max_rows is 2, but the smallest group of rows that stay together has 3"):
        stratified_subsample(np.ones((57, 1)), groups, 2, 0)
