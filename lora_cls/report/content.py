"""What the page of a run shows: numbers, names and rows from the run folder, as plain values. Loads no model.

Everything is computed from the out-of-fold predictions of the finished folds, so a partial run has a page too.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lora_cls.data import Dataset
from lora_cls.data.summary import length_summary
from lora_cls.errors import RunError
from lora_cls.evaluation import Task, f1_scores, macro_f1, task_of
from lora_cls.evaluation.curves import reliability, score_histogram, threshold_counts
from lora_cls.evaluation.mistakes import co_occurrence, confident_mistakes, confusion, taken_for
from lora_cls.report.sentences import (
    COMBINE,
    PHASES,
    base_name,
    blend_runs,
    blend_ways,
    gain_sentence,
    lengths_sentence,
    other_metrics,
    score_sentence,
    settings_rows,
    share_of_test,
    start_sentence,
    table_score_sentences,
)
from lora_cls.runs import Decision, FoldFolder, OutOfFold, Results, RunFolder, RunInfo, Scores
from lora_cls.runs.io import read_bytes
from lora_cls.runs.records import BlendInfo

N_THRESHOLDS = 16_000
"""Thresholds on the page, all labels together; a slider step each."""
MIN_THRESHOLDS = 150
N_EXAMPLES = 400
"""Rows in the tables of confident mistakes, all labels together; from 3 to 10 per label and kind."""
N_PAIRS, N_PAIR_EXAMPLES, N_DOUBTS = 12, 3, 40
MAX_MATRIX = 40
"""Labels in a matrix of labels against labels; the most frequent ones."""
TEXT_LENGTH = 400
FORMULA = re.compile(r"[=@\t\r]|[+-](?!\d+(\.\d+)?$)")
"""How a cell begins that spreadsheets take for a formula; a plain number is none."""


@dataclass(frozen=True, eq=False)
class Shown:
    """The rows that the page shows, and how they are decided.

    Attributes
    ----------
    oof : the predicted rows
    y_pred : ndarray of shape (n_samples, n_labels), int8
    texts : list of str of length n_samples; None where the page is to hold none
    """

    oof: OutOfFold
    y_pred: np.ndarray
    texts: list[str] | None

    def names(self, chosen: np.ndarray) -> list[str]:
        """Labels that are 1 in a row."""
        return [self.oof.label_names[j] for j in np.flatnonzero(chosen)]

    def row(self, i: int, label: int) -> dict[str, Any]:
        """One line of a table of rows, with the probability of `label`."""
        text = None if self.texts is None else self.texts[i]
        return {
            "id": self.oof.ids[i],
            "fold": int(self.oof.fold[i]),
            "score": float(self.oof.y_score[i, label]),
            "true": self.names(self.oof.y_true[i]),
            "decided": self.names(self.y_pred[i]),
            "text": None if text is None else text[:TEXT_LENGTH],
            "cut": text is not None and len(text) > TEXT_LENGTH,
        }

    def sheet(self, rows: np.ndarray, labels: np.ndarray, **first: np.ndarray) -> pd.DataFrame:
        """A spreadsheet with a line per row and label, its probability and the whole text; `first` are columns before.

        Rows with the same labels share one text of their names: there may be many times as many lines as rows.
        """
        oof = self.oof
        columns = first | {
            "id": np.array([plain_cell(name) for name in oof.ids], dtype=object)[rows],
            "fold": oof.fold[rows],
            "probability": oof.y_score[rows, labels],
            "true": self._joined(oof.y_true)[rows],
            "decided": self._joined(self.y_pred)[rows],
        }
        if self.texts is not None:
            columns["text"] = np.array([plain_cell(text) for text in self.texts], dtype=object)[rows]
        # with their own types, or pandas would look at every text to find one
        return pd.DataFrame({name: pd.Series(values, dtype=values.dtype) for name, values in columns.items()})

    def _joined(self, chosen: np.ndarray) -> np.ndarray:
        """The names of every row's labels, ndarray of shape (n_samples,), of str."""
        packed: np.ndarray = np.packbits(chosen, axis=1)
        if packed.shape[1] <= 8:  # as one number, which sorts ten times as fast
            packed = np.pad(packed, ((0, 0), (0, 8 - packed.shape[1]))).view(np.uint64).ravel()
        _, first, of_row = np.unique(packed, axis=0, return_index=True, return_inverse=True)
        names = [plain_cell(" | ".join(self.names(pattern))) for pattern in chosen[first]]
        return np.array(names, dtype=object)[of_row.reshape(-1)]


def shown_rows(run: RunFolder, results: Results, train: Dataset | None = None) -> Shown:
    """The predicted rows of a run as they were decided; raises RunError if `train` is not the run's data."""
    if train is not None and train.subset(~train.extra).fingerprint() != run.info.data.train_sha256:
        raise RunError(f"{train.source} is not the data that {run.path} was trained on.")
    texts = None if train is None else [train.texts[i] for i in results.oof.rows]
    return Shown(results.oof, results.oof.decide(run.task(), results.decision), texts)


def page_content(run: RunFolder, train: Dataset | None = None, results: Results | None = None) -> dict[str, Any]:
    """Everything that the page of a run shows.

    Parameters
    ----------
    train : the run's training data; with it the page holds texts, without it ids only
    results : of the run, where they are at hand

    Returns
    -------
    dict
        JSON-able. `figures` is what the page's script draws; the rest is written into the page.

    Raises
    ------
    RunError
        If the run has no scores yet, a file is damaged, or `train` is not its data.
    """
    results = results or run.results()
    oof, decision, scores = results.oof, results.decision, results.scores
    info, recipe, task = run.info, run.recipe, run.task(decision)
    shown = shown_rows(run, results, train)
    classes, n_labels = task.exclusive, len(oof.label_names)
    per_label = scores.cross_fitted.per_label
    start = start_sentence(info)
    shipped = np.array([decision.shipped[name] for name in oof.label_names])
    at_least_one = decision.prediction.at_least_one
    at_shipped = None
    if not task.metric.of_scores:
        at_shipped = task.metric.score(oof.y_true, task.apply(oof.y_score, shipped, at_least_one), oof.y_score)
    folds = [_fold(run.fold(number), number, shown, decision) for number in scores.folds_finished]
    lengths = length_summary(train.texts) if train is not None else info.data.lengths
    return {
        "name": run.name,
        "task": recipe.task,
        "classes": classes,
        "kind": task.title,
        "noun": task.noun,
        "nouns": task.nouns,
        "count": task.count,
        "base": base_name(recipe),
        "texts": train is not None,
        "sentence": score_sentence(scores),
        "ships": _ships(run, scores, decision, at_shipped),
        "note": scores.note,
        "optimistic": scores.optimistic,
        "at_least_one": at_least_one,
        "over": scores.cross_fitted.over,
        "decided_by": task.thresholds_word,
        "blend": _blend(run),
        "tiles": _tiles(scores, at_shipped),
        "labels": [row.model_dump() | {"index": j} for j, row in enumerate(per_label)],
        "mistakes": [_mistakes(shown, j) for j in range(n_labels)],
        "pairs": _pairs(shown),
        "doubts": _doubts(shown, task),
        "settings": [*settings_rows(recipe), *([("start", start)] if start is not None else [])],
        "test": share_of_test(run, scores),
        "tables": _tables(run, decision),
        "costs": _costs(info, folds),
        "data": _data(run, lengths),
        "rows": len(oof),
        "figures": {
            "task": recipe.task,
            "labels": [_curves(oof, j, float(shipped[j])) for j in range(n_labels)],
            "matrices": _matrices(shown, classes),
            "folds": folds,
            "pooled": {"macro_f1": scores.cross_fitted.macro_f1, "f1": [row.f1 for row in per_label]},
            "prevalence": (run.y_true.mean(axis=0)).round(6).tolist(),
            "labels_per_row": np.bincount(run.y_true.sum(axis=1, dtype=np.int64)).tolist(),
            "lengths": lengths,
        },
    }


def _tiles(scores: Scores, at_shipped: float | None) -> list[dict[str, Any]]:
    what, tiles = task_of(scores.task).thresholds_word, []
    for name, of_way in (
        (f"cross-fitted: {what} from the other {scores.cross_fitted.over}", scores.cross_fitted),
        ("untuned", scores.untuned),
    ):
        interval = of_way.judged
        if interval is None or (at_shipped is None and of_way is scores.untuned):
            continue  # undefined; or of scores, which are the same untuned
        name = name if at_shipped is not None else f"{scores.of.title}, out of fold"
        between = f"95 % {interval.low:.3f} to {interval.high:.3f}"
        tiles.append({"name": name, "value": interval.estimate, "note": between})
    if at_shipped is None:
        return tiles
    note = "on the rows they were tuned on: flatters"
    return [*tiles, {"name": "at the shipped thresholds", "value": at_shipped, "note": note}]


def _ships(run: RunFolder, scores: Scores, decision: Decision, at_shipped: float | None) -> str:
    n, combine = len(scores.folds_finished), COMBINE[decision.prediction.combine]
    one = "the one model" if scores.n_splits == 1 else "the one finished fold's model"
    models = f"the {n} folds' models together ({combine})" if n > 1 else one
    what = task_of(scores.task).thresholds_word
    ships = f"What ships is {models}, at {what} tuned on all {scores.rows_scored} rows"
    if at_shipped is None:
        ships += f" for {scores.of.for_thresholds.title}; the metric is of their probabilities."
    else:
        ships += f": there they give {at_shipped:.4f}, which flatters, as they were tuned on these rows."
    return f"{ships} A model of all rows (refit) has no out-of-fold score." if run.refit.finished else ships


def _curves(oof: OutOfFold, j: int, shipped: float) -> dict[str, Any]:
    truth, scores = oof.y_true[:, j], oof.y_score[:, j]
    counts = threshold_counts(truth, scores, max(MIN_THRESHOLDS, N_THRESHOLDS // len(oof.label_names)), [shipped])
    bins, histogram = reliability(truth, scores), score_histogram(truth, scores)
    return {
        "name": oof.label_names[j],
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


def _matrices(shown: Shown, classes: bool) -> dict[str, Any]:
    support = shown.oof.y_true.sum(axis=0)
    largest = np.sort(np.argsort(-support, kind="stable")[:MAX_MATRIX])
    truth, decided = shown.oof.y_true[:, largest], shown.y_pred[:, largest]
    counts = {
        "labels": largest.tolist(),
        "of": len(shown.oof.label_names),
        "true_rows": support[largest].tolist(),
        "predicted_rows": shown.y_pred.sum(axis=0)[largest].tolist(),
    }
    if classes:
        return counts | {"confusion": confusion(truth, decided).tolist()}
    return counts | {"true": co_occurrence(truth).tolist(), "predicted": co_occurrence(decided).tolist()}


def _mistakes(shown: Shown, j: int) -> dict[str, Any]:
    n = int(np.clip(N_EXAMPLES // (2 * len(shown.oof.label_names)), 3, 10))
    truth, decided = shown.oof.y_true[:, j], shown.y_pred[:, j]
    wrongly, missed = confident_mistakes(truth, decided, shown.oof.y_score[:, j], n)
    return {
        "false_positives": [shown.row(i, j) for i in wrongly],
        "n_false_positives": int(((decided == 1) & (truth == 0)).sum()),
        "false_negatives": [shown.row(i, j) for i in missed],
        "n_false_negatives": int(((decided == 0) & (truth == 1)).sum()),
    }


def mistakes_table(run: RunFolder, results: Results, train: Dataset | None = None) -> pd.DataFrame:
    """All mistakes of a run, label by label, the most confident first; columns as in the page, for a spreadsheet."""
    shown = shown_rows(run, results, train)
    oof = shown.oof
    names = np.array([plain_cell(name) for name in oof.label_names], dtype=object)
    found: list[tuple[np.ndarray, int, str]] = []
    for j in range(len(names)):
        wrongly, missed = confident_mistakes(oof.y_true[:, j], shown.y_pred[:, j], oof.y_score[:, j], len(oof))
        found += [(wrongly, j, "wrongly given"), (missed, j, "missed")]
    counts = [len(rows) for rows, _, _ in found]
    labels = np.repeat([j for _, j, _ in found], counts)
    kinds = np.repeat(np.array([kind for _, _, kind in found], dtype=object), counts)
    return shown.sheet(np.concatenate([rows for rows, _, _ in found]), labels, label=names[labels], mistake=kinds)


def doubts_table(run: RunFolder, results: Results, train: Dataset | None = None) -> pd.DataFrame:
    """All labels in doubt, the most doubtful first; columns as in the page, for a spreadsheet."""
    shown = shown_rows(run, results, train)
    doubts = run.task().doubts(shown.oof.y_true, shown.oof.y_score)
    names = np.array([plain_cell(name) for name in shown.oof.label_names], dtype=object)
    says = np.array(["yes", "no"], dtype=object)[shown.oof.y_true[doubts.rows, doubts.labels]]
    return shown.sheet(doubts.rows, doubts.labels, label=names[doubts.labels], model_says=says)


def plain_cell(value: Any) -> Any:
    """A cell that no spreadsheet runs: a text that it would take for a formula begins with an apostrophe."""
    return f"'{value}" if isinstance(value, str) and FORMULA.match(value) else value


def spreadsheet(rows: list[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    """Texts that a spreadsheet would run as formulas begin with an apostrophe, which makes them text there."""
    cells = [[plain_cell(row.get(name)) for name in columns] for row in rows]
    # as objects: a column of whole numbers with a gap stays one of whole numbers
    return pd.DataFrame(cells, columns=[plain_cell(name) for name in columns], dtype=object)


def _pairs(shown: Shown) -> dict[str, Any]:
    """Labels missed while another was wrongly given, the most frequent pairs, each with its most confident rows."""
    counts = taken_for(shown.oof.y_true, shown.y_pred)
    order = np.argsort(-counts, axis=None, kind="stable")[:N_PAIRS]
    pairs = []
    for a, b in zip(*np.unravel_index(order, counts.shape), strict=True):
        if counts[a, b]:
            missed = (shown.oof.y_true[:, a] == 1) & (shown.y_pred[:, a] == 0)
            rows = np.flatnonzero(missed & (shown.y_pred[:, b] == 1) & (shown.oof.y_true[:, b] == 0))
            rows = rows[np.argsort((shown.oof.y_score[:, a] - shown.oof.y_score[:, b])[rows], kind="stable")]
            examples = [shown.row(i, b) for i in rows[:N_PAIR_EXAMPLES]]
            pairs.append(
                {
                    "missed": shown.oof.label_names[a],
                    "given": shown.oof.label_names[b],
                    "rows": int(counts[a, b]),
                    "examples": examples,
                }
            )
    return {"shown": pairs, "of": int((counts > 0).sum())}


def _doubts(shown: Shown, task: Task) -> dict[str, Any]:
    doubts = task.doubts(shown.oof.y_true, shown.oof.y_score)
    rows = []
    for i, j in zip(doubts.rows[:N_DOUBTS], doubts.labels[:N_DOUBTS], strict=True):
        says = "no" if shown.oof.y_true[i, j] else "yes"
        rows.append(shown.row(i, j) | {"label": shown.oof.label_names[j], "model": says})
    return {"shown": rows, "of": len(doubts.rows)}


def _fold(folder: FoldFolder, number: int, shown: Shown, decision: Decision) -> dict[str, Any]:
    info, inside = folder.info, shown.oof.fold == number
    truth, decided = shown.oof.y_true[inside], shown.y_pred[inside]
    thresholds = decision.folds and decision.folds.get(number)
    return {
        "fold": number,
        "rows": int(inside.sum()),
        "train_rows": info.train_rows,
        "macro_f1": macro_f1(truth, decided),
        "f1": f1_scores(truth, decided).round(6).tolist(),
        "support": truth.sum(axis=0).tolist(),
        "thresholds": [thresholds[name] for name in shown.oof.label_names] if thresholds else None,
        "seconds": info.seconds,
        "trainable_parameters": info.trainable_parameters,
        "epoch": info.epoch,
        "epochs": _epochs(folder) if folder.has(folder.metrics) else [],
    }


def _epochs(folder: FoldFolder) -> list[dict[str, Any]]:
    file = folder.metrics
    content = read_bytes(file, folder.noted(file), folder.remedy(file))
    try:
        return [json.loads(line) for line in content.decode().splitlines()]
    except ValueError as error:
        raise RunError(f"{file} is damaged: {error}") from None


def _blend(run: RunFolder) -> dict[str, Any] | None:
    """How a blend was chosen, as tables; None for a run of its own."""
    if run.recipe.blend is None or not run.files.blend.is_file():
        return None
    about = BlendInfo.read(run.files.blend)
    tables = [{"header": header, "rows": rows} for header, rows in (blend_ways(about), blend_runs(about))]
    return {"sentence": gain_sentence(about), "note": about.note, "tables": tables}


def _tables(run: RunFolder, decision: Decision) -> list[dict[str, Any]]:
    """What the run came to on labelled tables."""
    return [
        {
            "name": name,
            "sentences": table_score_sentences(scores),
            "labels": [row.model_dump() for row in scores.scores.per_label],
            "metrics": other_metrics(scores),
            "stale": scores.decision_sha256 != decision.sha256,
        }
        for name, scores in run.table_scores().items()
    ]


def _costs(info: RunInfo, folds: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Names and values of what the run took, in the order of reading."""
    costs = [(PHASES[phase], _duration(value)) for phase, value in info.seconds.items() if value >= 0.5]
    if info.last_session_seconds is not None:
        costs.append(("last session, all of it", _duration(info.last_session_seconds)))
    if info.peak_memory_bytes:
        costs.append(("peak memory", f"{info.peak_memory_bytes / 2**30:.2f} GiB"))
    if info.train_rows_per_second is not None:
        unit = "rows" if info.pieces_per_row is None else "pieces"
        costs += [
            (f"{unit} per second, training", f"{info.train_rows_per_second:,.0f}"),
            ("tokens per second, training", f"{info.train_tokens_per_second:,.0f}"),
            ("padding", f"{info.padding_share:.0%}"),
        ]
    if folds and folds[0]["trainable_parameters"] is not None:
        costs.append(("parameters trained, per fold", f"{folds[0]['trainable_parameters']:,}"))
    counts = {"training": info.data.train_rows, "extra": info.data.extra_rows, "test": info.data.test_rows}
    rows = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    where = info.machine.gpu or f"{info.machine.processor}, {info.machine.platform}"
    libraries = ", ".join(f"{name} {version}" for name, version in info.versions.items())
    return [*costs, ("rows", rows), ("started", info.started), ("machine", where), ("versions", libraries)]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _data(run: RunFolder, lengths: dict[str, Any] | None) -> list[str]:
    """Sentences on the training table."""
    table, groups, info = run.y_true, run.folds["group"].to_numpy(), run.info
    per_row = table.sum(axis=1)
    extra = info.data.extra_rows
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
    if lengths:
        said.append(lengths_sentence("Words per text", lengths))
    tokens = info.choices.get("tokens")
    if tokens:
        said.append(
            f"Tokens read per text or piece: mean {tokens['mean']:.1f}, longest {tokens['max']}, of at most "
            f"{tokens['max_length']}; {tokens['truncated']:.1%} of the texts lost a part, "
            f"{tokens['pieces_per_text']:.2f} pieces per text."
        )
    return said
