"""The map that makes an export's scores those of the folds together, fitted to texts whose labels play no part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lora_cls.commands.predict import Classifier
from lora_cls.data import Dataset, TableLike, load_test, read_table
from lora_cls.errors import DataError
from lora_cls.evaluation import fit_score_map
from lora_cls.runs import RunFolder
from lora_cls.runs.records import ScoreMap

LEAST = 100  # texts: with fewer, a label that few of them have would be mapped by a handful


def read_texts(run: RunFolder, tables: Sequence[TableLike]) -> list[Dataset]:
    """The texts of tables with the run's text columns, as `predict` reads them.

    Raises
    ------
    DataError
        For anything wrong with a table, and where there are too few different texts.
    """
    columns = run.info.data.columns()
    found = [
        load_test(run.recipe.data, read_table(table, name="the DataFrame of texts"), train_columns=columns)
        for table in tables
    ]
    n_texts = len({text for rows in found for text in rows.texts})
    if n_texts < LEAST:
        raise DataError(
            f"At least {LEAST} different texts are needed to align an export. Got {n_texts} instead: give further "
            "tables (--align may be repeated), or leave it out."
        )
    return found


def fit_to_folds(
    run: RunFolder, exported: RunFolder, tables: Sequence[Dataset], *, backbone: str | None = None, show: bool | None
) -> ScoreMap:
    """Ask the folds together and the export about the same texts, and map the one's scores to the other's.

    Where the run's folds vote (`prediction.combine: vote`), it is mapped to their mean log-odds, of which a fold's vote
    is one at the same thresholds. The folds are not asked about the run's own test rows: their answers are there.

    Parameters
    ----------
    exported : an export without a map
    backbone, show : see `Classifier.load`
    """
    folds = Classifier.load(run, backbone=backbone, show=show)
    if folds.prediction.combine == "vote":
        folds.prediction = folds.prediction.model_copy(update={"combine": "mean_logit"})
    single, link = Classifier.load(exported, backbone=backbone, show=show), run.task().link
    texts = np.array([text for rows in tables for text in rows.texts], dtype=object)
    wanted = np.concatenate([_folds_together(run, folds, rows) for rows in tables])
    scores = np.concatenate([single.predict_proba(rows) for rows in tables])
    first = np.unique(texts, return_index=True)[1]  # each text counts once
    x, y = fit_score_map(link.logits(scores[first]), link.logits(wanted[first]))
    names = [Path(rows.source).name for rows in tables]
    return ScoreMap(tables=names, texts=len(first), x=x, y=y)


def _folds_together(run: RunFolder, folds: Classifier, rows: Dataset) -> np.ndarray:
    known = run.test_scores() if run.is_test_table(rows) else None
    if known is None:
        return folds.predict_proba(rows)
    return run.task().together(known, folds.thresholds, folds.prediction)[0]
