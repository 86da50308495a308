"""What the page of a run shows: numbers, names and rows from the run folder, as plain values. Loads no model.

Everything is computed from the out-of-fold predictions of the finished folds, so a partial run has a page too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lora_cls.data import Dataset
from lora_cls.data.folds import held_apart
from lora_cls.data.summary import length_summary
from lora_cls.errors import RunError
from lora_cls.evaluation import Decisions, f1_scores, macro_f1
from lora_cls.evaluation.curves import reliability, score_histogram, threshold_counts
from lora_cls.evaluation.mistakes import co_occurrence, confident_mistakes, confusion, label_doubts, taken_for
from lora_cls.report.sentences import (
    COMBINE,
    KINDS,
    PHASES,
    base_name,
    blend_runs,
    blend_ways,
    decided_by,
    gain_sentence,
    lengths_sentence,
    score_sentence,
)
from lora_cls.runs import RunFolder, read_json

N_THRESHOLDS = 16_000
"""Thresholds on the page, all labels together; a slider step each."""
MIN_THRESHOLDS = 150
N_EXAMPLES = 400
"""Rows in the tables of confident mistakes, all labels together; from 3 to 10 per label and kind."""
N_PAIRS, N_PAIR_EXAMPLES, N_DOUBTS = 12, 3, 40
MAX_MATRIX = 40
"""Labels in a matrix of labels against labels; the most frequent ones."""
TEXT_LENGTH = 400


@dataclass(frozen=True, eq=False)
class Predictions:
    """The predicted rows of a run, in the order of its training table.

    Attributes
    ----------
    ids, texts : lists of length n_samples; texts is None where the page is to hold none
    fold : ndarray of shape (n_samples,)
    y_true, y_pred, y_score : ndarrays of shape (n_samples, n_labels)
    """

    names: list[str]
    ids: list[str]
    texts: list[str] | None
    fold: np.ndarray
    y_true: np.ndarray
    y_pred: np.ndarray
    y_score: np.ndarray

    def row(self, i: int, label: int) -> dict[str, Any]:
        """One line of a table of rows, with the probability of `label`."""
        text = None if self.texts is None else self.texts[i]
        return {
            "id": self.ids[i],
            "fold": int(self.fold[i]),
            "score": float(self.y_score[i, label]),
            "true": [self.names[j] for j in np.flatnonzero(self.y_true[i])],
            "decided": [self.names[j] for j in np.flatnonzero(self.y_pred[i])],
            "text": None if text is None else text[:TEXT_LENGTH],
            "cut": text is not None and len(text) > TEXT_LENGTH,
        }


def page_content(run: RunFolder, train: Dataset | None = None) -> dict[str, Any]:
    """Everything that the page of a run shows.

    Parameters
    ----------
    train : the run's training data; with it the page holds texts, without it ids only

    Returns
    -------
    dict
        JSON-able. `figures` is what the page's script draws; the rest is written into the page.

    Raises
    ------
    RunError
        If the run has no scores yet, a file is damaged, or `train` is not its data.
    """
    metrics, kept = read_json(run.path / "metrics.json"), read_json(run.path / "thresholds.json")
    info, recipe, decisions = run.info, run.recipe, run.decisions()
    if train is not None and train.subset(~train.extra).fingerprint() != info["data"]["train_sha256"]:
        raise RunError(f"{train.source} is not the data that {run.path} was trained on.")
    found = _predictions(run, decisions, kept, train)
    classes, n_labels = recipe.task == "single_label", len(found.names)
    scores = metrics["cross_fitted"]
    shipped = np.array([kept["shipped"][name] for name in found.names])
    at_least_one = kept["prediction"]["at_least_one"]
    at_shipped = macro_f1(found.y_true, decisions.apply(found.y_score, shipped, at_least_one))
    folds = [_fold(run, number, found, kept) for number in metrics["folds_finished"]]
    table, groups = run.y_true, run.folds["group"].to_numpy()
    return {
        "name": run.path.resolve().name,
        "task": recipe.task,
        "classes": classes,
        "kind": KINDS[recipe.task or "multi_label"],
        "base": base_name(recipe),
        "texts": train is not None,
        "sentence": score_sentence(metrics),
        "ships": _ships(run, metrics, kept, at_shipped),
        "note": metrics["note"],
        "optimistic": metrics["optimistic"],
        "at_least_one": at_least_one,
        "over": scores["over"],
        "decided_by": decided_by(recipe.task),
        "blend": _blend(run),
        "tiles": _tiles(metrics, at_shipped),
        "labels": [row | {"index": j} for j, row in enumerate(scores["per_label"])],
        "mistakes": [_mistakes(found, j) for j in range(n_labels)],
        "pairs": _pairs(found),
        "doubts": _doubts(found, classes),
        "costs": _costs(info, folds),
        "data": _data(table, groups, info, train),
        "rows": len(found.ids),
        "figures": {
            "task": recipe.task,
            "labels": [_curves(found, j, float(shipped[j])) for j in range(n_labels)],
            "matrices": _matrices(found, classes),
            "folds": folds,
            "pooled": {"macro_f1": scores["macro_f1"], "f1": [row["f1"] for row in scores["per_label"]]},
            "prevalence": (table.mean(axis=0)).round(6).tolist(),
            "labels_per_row": np.bincount(table.sum(axis=1, dtype=np.int64)).tolist(),
            "lengths": length_summary(train.texts) if train is not None else info["data"].get("lengths"),
        },
    }


def _predictions(run: RunFolder, decisions: Decisions, kept: dict[str, Any], train: Dataset | None) -> Predictions:
    rows, y_score = run.oof_proba()
    folds, names = run.folds.iloc[rows], run.label_names
    fold, y_true = folds["fold"].to_numpy(), run.y_true[rows]
    over, part = held_apart(fold, y_true, folds["group"].to_numpy(), run.recipe)
    # the decisions that metrics.json scores: each fold's, or part's, by thresholds of the others
    y_pred = np.empty(y_score.shape, dtype=np.int8)
    for number, thresholds in kept[over].items():
        inside = part == int(number)
        limits = np.array([thresholds[name] for name in names])
        y_pred[inside] = decisions.apply(y_score[inside], limits, kept["prediction"]["at_least_one"])
    texts = None if train is None else [train.texts[i] for i in rows]
    return Predictions(names, folds["id"].tolist(), texts, fold, y_true, y_pred, y_score)


def _tiles(metrics: dict[str, Any], at_shipped: float) -> list[dict[str, Any]]:
    tiles = []
    names = {
        "cross_fitted": f"cross-fitted: {decided_by(metrics['task'])} from the other {metrics['cross_fitted']['over']}"
    }
    for key, name in (names | {"untuned": "untuned"}).items():
        interval = metrics[key]["macro_f1_interval"]
        between = f"95 % {interval['low']:.3f} to {interval['high']:.3f}"
        tiles.append({"name": name, "value": metrics[key]["macro_f1"], "note": between})
    note = "on the rows they were tuned on: flatters"
    return [*tiles, {"name": "at the shipped thresholds", "value": at_shipped, "note": note}]


def _ships(run: RunFolder, metrics: dict[str, Any], kept: dict[str, Any], at_shipped: float) -> str:
    n, combine = len(metrics["folds_finished"]), COMBINE[kept["prediction"]["combine"]]
    one = "the one model" if metrics["n_splits"] == 1 else "the one finished fold's model"
    models = f"the {n} folds' models together ({combine})" if n > 1 else one
    what = decided_by(metrics["task"])
    said = (
        f"What ships is {models}, at {what} tuned on all {metrics['rows_scored']} rows: there they give "
        f"{at_shipped:.4f}, which flatters, as they were tuned on these rows."
    )
    return f"{said} A model of all rows (refit) has no out-of-fold score." if run.refit.finished else said


def _curves(found: Predictions, j: int, shipped: float) -> dict[str, Any]:
    truth, scores = found.y_true[:, j], found.y_score[:, j]
    counts = threshold_counts(truth, scores, max(MIN_THRESHOLDS, N_THRESHOLDS // len(found.names)), [shipped])
    bins, histogram = reliability(truth, scores), score_histogram(truth, scores)
    return {
        "name": found.names[j],
        "support": int(truth.sum()),
        "rows": len(truth),
        "thresholds": counts.thresholds.tolist(),
        "true_positives": counts.true_positives.tolist(),
        "predicted": counts.predicted.tolist(),
        "start": int(np.searchsorted(counts.thresholds, shipped)),
        "cuts": counts.n_cuts,
        "complete": counts.complete,
        "negatives_by_score": histogram[0].tolist(),
        "positives_by_score": histogram[1].tolist(),
        "mean_score": bins.mean_score.round(6).tolist(),
        "share_positive": bins.share_positive.round(6).tolist(),
        "bin_rows": bins.rows.tolist(),
    }


def _matrices(found: Predictions, classes: bool) -> dict[str, Any]:
    support = found.y_true.sum(axis=0)
    largest = np.sort(np.argsort(-support, kind="stable")[:MAX_MATRIX])
    truth, decided = found.y_true[:, largest], found.y_pred[:, largest]
    counts = {
        "labels": largest.tolist(),
        "of": len(found.names),
        "true_rows": support[largest].tolist(),
        "predicted_rows": found.y_pred.sum(axis=0)[largest].tolist(),
    }
    if classes:
        return counts | {"confusion": confusion(truth, decided).tolist()}
    return counts | {"true": co_occurrence(truth).tolist(), "predicted": co_occurrence(decided).tolist()}


def _mistakes(found: Predictions, j: int) -> dict[str, Any]:
    n = int(np.clip(N_EXAMPLES // (2 * len(found.names)), 3, 10))
    truth, decided = found.y_true[:, j], found.y_pred[:, j]
    wrongly, missed = confident_mistakes(truth, decided, found.y_score[:, j], n)
    return {
        "false_positives": [found.row(i, j) for i in wrongly],
        "n_false_positives": int(((decided == 1) & (truth == 0)).sum()),
        "false_negatives": [found.row(i, j) for i in missed],
        "n_false_negatives": int(((decided == 0) & (truth == 1)).sum()),
    }


def _pairs(found: Predictions) -> dict[str, Any]:
    """Labels missed while another was wrongly given, the most frequent pairs, each with its most confident rows."""
    counts = taken_for(found.y_true, found.y_pred)
    order = np.argsort(-counts, axis=None, kind="stable")[:N_PAIRS]
    pairs = []
    for a, b in zip(*np.unravel_index(order, counts.shape), strict=True):
        if counts[a, b]:
            missed = (found.y_true[:, a] == 1) & (found.y_pred[:, a] == 0)
            rows = np.flatnonzero(missed & (found.y_pred[:, b] == 1) & (found.y_true[:, b] == 0))
            rows = rows[np.argsort((found.y_score[:, a] - found.y_score[:, b])[rows], kind="stable")]
            examples = [found.row(i, b) for i in rows[:N_PAIR_EXAMPLES]]
            pairs.append(
                {"missed": found.names[a], "given": found.names[b], "rows": int(counts[a, b]), "examples": examples}
            )
    return {"shown": pairs, "of": int((counts > 0).sum())}


def _doubts(found: Predictions, classes: bool) -> dict[str, Any]:
    doubts = label_doubts(found.y_true, found.y_score, classes=classes)
    shown = []
    for i, j in zip(doubts.rows[:N_DOUBTS], doubts.labels[:N_DOUBTS], strict=True):
        says = "yes" if classes or not found.y_true[i, j] else "no"
        shown.append(found.row(i, j) | {"label": found.names[j], "model": says})
    return {"shown": shown, "of": len(doubts.rows)}


def _fold(run: RunFolder, number: int, found: Predictions, kept: dict[str, Any]) -> dict[str, Any]:
    folder, inside = run.fold(number), found.fold == number
    info = read_json(folder.info)
    thresholds = kept.get("folds", {}).get(str(number))
    return {
        "fold": number,
        "rows": int(inside.sum()),
        "train_rows": info["train_rows"],
        "macro_f1": macro_f1(found.y_true[inside], found.y_pred[inside]),
        "f1": f1_scores(found.y_true[inside], found.y_pred[inside]).round(6).tolist(),
        "support": found.y_true[inside].sum(axis=0).tolist(),
        "thresholds": None if thresholds is None else [thresholds[name] for name in found.names],
        "seconds": info["seconds"],
        "trainable_parameters": info.get("trainable_parameters"),
        "epoch": info.get("epoch"),
        "epochs": _epochs(folder.metrics) if folder.metrics.is_file() else [],
    }


def _epochs(file: Any) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise RunError(f"{file} is damaged: {error}") from None


def _blend(run: RunFolder) -> dict[str, Any] | None:
    """How a blend was chosen, as tables; None for a run of its own."""
    file = run.path / "blend.json"
    if run.recipe.blend is None or not file.is_file():
        return None
    told = read_json(file)
    tables = [{"header": header, "rows": rows} for header, rows in (blend_ways(told), blend_runs(told))]
    return {"sentence": gain_sentence(told), "note": told["note"], "tables": tables}


def _costs(info: dict[str, Any], folds: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Names and values of what the run took, in the order of reading."""
    seconds, machine, data = info["seconds"], info["machine"], info["data"]
    costs = [(PHASES[phase], _duration(value)) for phase, value in seconds.items() if value >= 0.5]
    if "last_session_seconds" in info:
        costs.append(("last session, all of it", _duration(info["last_session_seconds"])))
    if info.get("peak_memory_bytes"):
        costs.append(("peak memory", f"{info['peak_memory_bytes'] / 2**30:.2f} GiB"))
    if "train_rows_per_second" in info:
        unit = "pieces" if "pieces_per_row" in info else "rows"
        costs += [
            (f"{unit} per second, training", f"{info['train_rows_per_second']:,.0f}"),
            ("tokens per second, training", f"{info['train_tokens_per_second']:,.0f}"),
            ("padding", f"{info['padding_share']:.0%}"),
        ]
    if folds and folds[0]["trainable_parameters"] is not None:
        costs.append(("parameters trained, per fold", f"{folds[0]['trainable_parameters']:,}"))
    counts = {"training": data["train_rows"], "extra": data.get("extra_rows"), "test": data["test_rows"]}
    rows = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    where = machine.get("gpu") or f"{machine['processor']}, {machine['platform']}"
    libraries = ", ".join(f"{name} {version}" for name, version in info["versions"].items())
    return [*costs, ("rows", rows), ("started", info["started"]), ("machine", where), ("versions", libraries)]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _data(table: np.ndarray, groups: np.ndarray, info: dict[str, Any], train: Dataset | None) -> list[str]:
    """Sentences on the training table."""
    per_row = table.sum(axis=1)
    extra = info["data"].get("extra_rows")
    said = [f"{len(table):,} training rows{f', {extra:,} of them extra' if extra else ''}, {table.shape[1]} labels."]
    if table.shape[1] > 1 and (per_row != 1).any():
        none, several = int((per_row == 0).sum()), int((per_row > 1).sum())
        said.append(
            f"{none:,} rows ({none / len(table):.1%}) carry no label, {several:,} ({several / len(table):.1%}) several."
        )
    by_group = pd.DataFrame(table).groupby(groups)
    repeated = len(table) - by_group.ngroups
    if repeated:
        disagree = int((by_group.nunique() > 1).any(axis=1).sum())
        said.append(
            f"{repeated:,} rows repeat another one's text or group; of these texts or groups, {disagree:,} carry "
            "labels that differ."
        )
    lengths = length_summary(train.texts) if train is not None else info["data"].get("lengths")
    if lengths:
        said.append(lengths_sentence("Words per text", lengths))
    tokens = info.get("choices", {}).get("tokens")
    if tokens:
        said.append(
            f"Tokens read per text or piece: mean {tokens['mean']:.1f}, longest {tokens['max']}, of at most "
            f"{tokens['max_length']}; {tokens['truncated']:.1%} of the texts lost a part, "
            f"{tokens['pieces_per_text']:.2f} pieces per text."
        )
    return said
