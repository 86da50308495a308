"""Iterative stratification: the folds of runs made before it was ours, in a time that grows with the table."""

import time

import numpy as np
import pytest
from iterstrat.ml_stratifiers import MultilabelStratifiedKFold

from lora_cls.data.stratification import iterative_stratification


def library_folds(labels, n_splits, random_state):
    splitter = MultilabelStratifiedKFold(n_splits=n_splits, shuffle=True, random_state=random_state)
    fold = np.full(len(labels), -1)
    for number, (_, held_out) in enumerate(splitter.split(np.zeros(len(labels)), labels)):
        fold[held_out] = number
    return fold


def some_labels(n_samples, n_labels, random):
    labels = random.random((n_samples, n_labels)) < random.random(n_labels) * random.choice([0.1, 0.5, 1.0])
    return np.column_stack([labels, ~labels.any(axis=1)])


@pytest.mark.parametrize("seed", range(60))
def test_folds_are_those_of_the_library(seed):
    """Row for row, so that runs started with its folds resume and score as before."""
    random = np.random.default_rng(seed)
    n_splits = int(random.integers(2, 11))
    labels = some_labels(int(random.integers(n_splits, 200)), int(random.integers(1, 12)), random)
    np.testing.assert_array_equal(
        iterative_stratification(labels, n_splits, seed), library_folds(labels, n_splits, seed)
    )


def test_folds_of_many_labels_are_those_of_the_library():
    """With 150 labels and 2,000 rows, a hundred of the labels with a few positives each."""
    random = np.random.default_rng(0)
    labels = random.random((2000, 150)) < np.geomspace(0.3, 0.001, 150)
    labels = np.column_stack([labels, ~labels.any(axis=1)])
    np.testing.assert_array_equal(iterative_stratification(labels, 10, 42), library_folds(labels, 10, 42))


def test_time_grows_with_the_rows():
    """Ten times the rows take about ten times as long (the best of three; wide, as other work may run beside it)."""

    def seconds(n_samples):
        labels = some_labels(n_samples, 10, np.random.default_rng(1))
        taken = []
        for _ in range(3):
            started = time.process_time()
            iterative_stratification(labels, 5, 0)
            taken.append(time.process_time() - started)
        return min(taken)

    assert seconds(20_000) < 30 * seconds(2_000)
