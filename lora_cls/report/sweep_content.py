"""What a search came to, as plain values: for its page, its table and the terminal. Loads no model.

A search in progress has a page too; a trial whose run folder is missing or damaged lacks its scores per label, no more.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

from lora_cls.errors import LoraClsError, brief, shorten, visible
from lora_cls.evaluation import task_of
from lora_cls.report.sentences import interval_text, settings_rows
from lora_cls.runs.folder import RunFiles
from lora_cls.runs.records import LabelScores, Scores
from lora_cls.search.folder import HoldoutScore, SweepFolder, Trial, TrialState
from lora_cls.search.objective import run_score
from lora_cls.search.optuna_files import load_optuna, open_study

STATES: dict[TrialState, str] = {
    "complete": "complete",
    "stopped": "stopped early",
    "failed": "failed",
    "running": "running",
}
MIN_IMPORTANCE = 10
"""Complete trials below which no importance is stated."""
MIN_CORRELATION = 5


@dataclass(frozen=True)
class SearchedField:
    """A field of the recipe that trials differ in.

    Attributes
    ----------
    choices : what it may be, in the order of the recipe; None where it goes from `low` to `high`
    log : whether equal ratios count alike
    """

    name: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    choices: tuple[Any, ...] | None = None

    @property
    def numeric(self) -> bool:
        """Whether its values have an order of their own."""
        return self.choices is None or all(map(is_number, self.choices))

    def place(self, value: Any) -> float | None:
        """Where a value stands on the field's axis: itself, or its place among the choices; None for no value of it."""
        if self.choices is None:
            return float(value) if is_number(value) else None
        keys = [_key(choice) for choice in self.choices]
        return keys.index(_key(value)) if _key(value) in keys else None


def is_number(value: Any) -> bool:
    """Whether a value of a field is a number that an axis can hold."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _key(value: Any) -> str:
    return json.dumps(value, default=str)


def field_text(value: Any, digits: int = 6) -> str:
    """A value of a field as recipes write it, numbers with so many digits."""
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def searched_fields(sweep: SweepFolder, trials: Sequence[Trial]) -> list[SearchedField]:
    """The fields of the search's space; and those that trials have beside it, by the values that they took."""
    space = sweep.settings.space or {}
    fields = []
    for name, given in space.items():
        if given.low is not None and given.high is not None:
            fields.append(SearchedField(name, given.low, given.high, given.log))
        else:
            fields.append(SearchedField(name, choices=tuple(given.choices or [])))
    beside = dict.fromkeys(name for trial in trials for name in trial.params if name not in space)
    for name in beside:
        values = {_key(trial.params[name]): trial.params[name] for trial in trials if name in trial.params}
        if all(map(is_number, values.values())):
            fields.append(SearchedField(name, min(values.values()), max(values.values())))
        else:
            fields.append(SearchedField(name, choices=tuple(values.values())))
    return fields


@dataclass(frozen=True)
class SweepSummary:
    """A search in numbers.

    Attributes
    ----------
    ranked : complete trials, the best first
    fresh : scores on fresh folds, by the number of the trial
    flattered : by how much the search's scores are better than those on fresh folds, mean over `fresh`
    minutes : all trials together
    rows_planned : of complete and stopped trials; None of learners that go through rows in no epochs
    rows_saved, folds_saved : that stopped trials did not train
    minutes_saved : at each stopped trial's own pace: an estimate
    holdout : the best trial on rows that no trial saw
    """

    objective: str
    maximized: bool
    trials: list[Trial]
    ranked: list[Trial]
    fresh: dict[int, float]
    flattered: float | None
    minutes: float
    rows_planned: int | None
    rows_saved: int | None
    folds_saved: int
    minutes_saved: float
    holdout: HoldoutScore | None

    @property
    def best(self) -> Trial | None:
        """The trial of the best score in the search."""
        return self.ranked[0] if self.ranked else None

    def count(self, state: TrialState) -> int:
        """Trials in a state."""
        return sum(trial.state == state for trial in self.trials)


def summarize(sweep: SweepFolder) -> SweepSummary:
    """What a search came to so far. Raises RunError if the folder's journal or recipe cannot be read."""
    trials = sweep.trials
    ranked = sweep.ranked(trials)
    fresh = _fresh_scores(sweep, ranked)
    sign = 1 if sweep.maximized else -1
    gaps = [
        sign * (trial.score - fresh[trial.number])
        for trial in ranked
        if trial.score is not None and trial.number in fresh
    ]
    stopped = [trial for trial in trials if trial.state == "stopped"]
    planned = [
        (trial, trial.rows_planned, trial.rows_trained)
        for trial in trials
        if trial.state in ("complete", "stopped") and trial.rows_planned and trial.rows_trained is not None
    ]
    n_folds = len(sweep.info.folds)
    return SweepSummary(
        objective=objective_title(sweep),
        maximized=sweep.maximized,
        trials=trials,
        ranked=ranked,
        fresh=fresh,
        flattered=sum(gaps) / len(gaps) if gaps else None,
        minutes=sum(trial.seconds or 0.0 for trial in trials) / 60,
        rows_planned=sum(of for _, of, _ in planned) if planned else None,
        rows_saved=sum(of - done for trial, of, done in planned if trial.state == "stopped") if planned else None,
        folds_saved=sum(max(0, n_folds - len(trial.fold_scores)) for trial in stopped),
        minutes_saved=sum(_seconds_saved(trial, n_folds) for trial in stopped) / 60,
        holdout=_holdout(sweep, ranked),
    )


def objective_title(sweep: SweepFolder) -> str:
    """What trials are compared by, in words."""
    if sweep.objective in ("loss", "average_precision"):
        return {"loss": "log loss", "average_precision": "mean average precision"}[sweep.objective]
    recipe = sweep.recipe
    return task_of(recipe.task, None, sweep.objective, recipe.metric_beta).metric.title  # type: ignore[arg-type]


def _fresh_scores(sweep: SweepFolder, ranked: Sequence[Trial]) -> dict[int, float]:
    """By number, of the trials that were scored again; one whose folder is damaged is left out."""
    found = {}
    for trial in ranked:
        try:
            run = sweep.confirmation(trial.number)
            score = None if run is None else run_score(run, sweep.objective)
        except (LoraClsError, OSError):
            continue
        if score is not None and math.isfinite(score):
            found[trial.number] = score
    return found


def _holdout(sweep: SweepFolder, ranked: Sequence[Trial]) -> HoldoutScore | None:
    try:
        found = HoldoutScore.read(sweep.files.holdout_score)
    except (LoraClsError, OSError):  # as where none was asked for
        return None
    return found if ranked and found.trial == ranked[0].number else None


def _seconds_saved(trial: Trial, n_folds: int) -> float:
    """What a stopped trial's remaining training would have taken at the pace of what it did."""
    if trial.rows_planned and trial.rows_trained:
        done = trial.rows_trained / trial.rows_planned
    else:
        done = len(trial.fold_scores) / n_folds
    return (trial.seconds or 0.0) * (1 / done - 1) if done else 0.0


def sweep_sentences(sweep: SweepFolder, found: SweepSummary) -> list[str]:
    """A search in words: how far it is, its best trial, the score to state, and what stopping early saved."""
    counts = ", ".join(f"{n} {STATES[state]}" for state in STATES if (n := found.count(state)))
    of_all = f": {counts}; {found.minutes:.1f} minutes, all trials together" if counts else ""
    said = [f"{_trials(len(found.trials))}{of_all}."]
    best = found.best
    if best is None or best.score is None:
        return [*said, "No trial is complete yet."]
    done, folds = len(found.ranked), shorten(sorted(sweep.info.folds), 10)
    extreme = "greatest" if found.maximized else "least"
    said.append(
        f"Trial {best.number} is the best: {found.objective} {best.score:.4f} over "
        f"{f'the folds {folds}' if len(sweep.info.folds) > 1 else f'fold {folds}'}."
    )
    if best.number in found.fresh:
        said.append(f"On fresh folds it scores {found.fresh[best.number]:.4f}: this is the score to state.")
    elif done > 1:
        said.append(f"It is the {extreme} of {done} scores, which flatters; it was not scored on fresh folds.")
    if (held_out := found.holdout) is not None:
        between = interval_text(held_out.macro_f1)
        said.append(f"On {held_out.rows:,} rows that no trial saw, its models of fresh folds have macro-F1 {between}.")
    if found.flattered is not None:
        n = len(found.fresh)
        mean = f"{_trials(n)} scored again on fresh folds: " + ("on average " if n > 1 else "")
        by = f"{abs(found.flattered):.4f}"
        said.append(
            f"{mean}{by} worse there than in the search. By so much it flattered itself."
            if found.flattered > 0
            else f"{mean}{by} better there than in the search. It did not flatter itself on these folds."
        )
    if saved := saved_sentence(found):
        said.append(saved)
    return said


def saved_sentence(found: SweepSummary) -> str:
    """What early stops saved, in words; empty where there were none."""
    if not found.count("stopped"):
        return ""
    minutes = f"about {found.minutes_saved:.1f} minutes (an estimate, at each stopped trial's own pace)"
    if found.rows_planned is None or found.rows_saved is None:
        folds = "1 fold" if found.folds_saved == 1 else f"{found.folds_saved} folds"
        return f"Early stops saved {folds} of training, {minutes}."
    return (
        f"Early stops saved {found.rows_saved:,} of {found.rows_planned:,} rows of training "
        f"({found.rows_saved / found.rows_planned:.0%}), {minutes}."
    )


def _trials(n: int) -> str:
    return "1 trial" if n == 1 else f"{n:,} trials"


def spearman(x: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Rank correlation of one array with every column of a table; nan where either does not vary.

    Parameters
    ----------
    x, table : ndarrays of shape (n,) and (n, m)

    Returns
    -------
    ndarray of shape (m,)

    Examples
    --------
    >>> spearman(np.array([1.0, 2.0, 4.0]), np.array([[0.1, 3.0], [0.3, 2.0], [0.9, 1.0]]))
    array([ 1., -1.])
    """
    a = rankdata(x) - (len(x) + 1) / 2
    b = rankdata(table, axis=0) - (len(x) + 1) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a @ b) / np.sqrt((a @ a) * (b * b).sum(axis=0))


def sweep_content(sweep: SweepFolder) -> dict[str, Any]:
    """Everything that the page of a search shows.

    Returns
    -------
    dict
        JSON-able. `figures` is what the page's script draws; the rest is written into the page.

    Raises
    ------
    RunError
        If the journal, `sweep.json` or `base.yaml` cannot be read.
    """
    found = summarize(sweep)
    fields = searched_fields(sweep, found.trials)
    labels = _label_scores(sweep, found.ranked)
    importance, no_importance = _importance(sweep, found)
    started = min((trial.started for trial in found.trials if trial.started), default=None)
    return {
        "name": visible(sweep.path.resolve().name),
        "recipe_name": sweep.info.recipe_name,
        "objective": found.objective,
        "better": "greater" if found.maximized else "less",
        "sentences": sweep_sentences(sweep, found),
        "running": found.count("running"),
        "tiles": _tiles(found),
        "fields": [field.name for field in fields],
        "folds": list(sweep.info.folds),
        "trials": [_row(trial, fields, found) for trial in found.trials],
        "importance": importance,
        "no_importance": no_importance,
        "correlations": _correlations(fields, found),
        "labels": labels.table(fields, found),
        "numeric": [field.name for field in fields if field.numeric],
        "unread": labels.unread,
        "confirmed": sorted(found.fresh),
        "space": [(field.name, _range_text(field)) for field in fields],
        "settings": _settings(sweep),
        "recipe": settings_rows(sweep.recipe),
        "figures": {
            "objective": found.objective,
            "maximized": found.maximized,
            "best": None if found.best is None else found.best.number,
            "fields": [_axis(field) for field in fields],
            "trials": {
                "number": [trial.number for trial in found.trials],
                "state": [list(STATES).index(trial.state) for trial in found.trials],
                "score": [_finite(trial.score) for trial in found.trials],
                "mean": [_finite(trial.mean) for trial in found.trials],
                "fresh": [_finite(found.fresh.get(trial.number)) for trial in found.trials],
                "ended": [
                    None
                    if trial.ended is None or started is None
                    else round((trial.ended - started).total_seconds() / 60, 3)
                    for trial in found.trials
                ],
                "minutes": [None if trial.seconds is None else round(trial.seconds / 60, 3) for trial in found.trials],
                "rows": [trial.rows_trained for trial in found.trials],
            },
            "values": [[field.place(trial.params.get(field.name)) for trial in found.trials] for field in fields],
            "importance": importance,
            "labels": labels.figure(),
        },
    }


def _finite(value: float | None, digits: int = 6) -> float | None:
    return round(value, digits) if value is not None and math.isfinite(value) else None


def _tiles(found: SweepSummary) -> list[dict[str, str]]:
    best, tiles = found.best, []
    if best is not None and best.score is not None:
        tiles.append(
            {
                "value": f"{best.score:.4f}",
                "name": f"{found.objective}, trial {best.number}",
                "note": f"the best of {len(found.ranked)} in the search"
                if len(found.ranked) > 1
                else "the only complete one",
            }
        )
        if best.number in found.fresh:
            note = f"trial {best.number} trained again: the score to state"
            tiles.append({"value": f"{found.fresh[best.number]:.4f}", "name": "on fresh folds", "note": note})
    if found.holdout is not None:
        note = f"macro-F1 of trial {found.holdout.trial} there, trained on fresh folds"
        name = f"on {found.holdout.rows:,} rows that no trial saw"
        tiles.append({"value": f"{found.holdout.macro_f1.estimate:.4f}", "name": name, "note": note})
    if found.flattered is not None:
        note = f"search better than fresh folds, mean of {_trials(len(found.fresh))}"
        tiles.append({"value": f"{found.flattered:+.4f}", "name": "the search flattered itself by", "note": note})
    counts = ", ".join(f"{n} {STATES[state]}" for state in STATES if (n := found.count(state)))
    tiles.append(
        {
            "value": f"{len(found.trials):,}",
            "name": "trial" if len(found.trials) == 1 else "trials",
            "note": counts or "none yet",
        }
    )
    tiles.append({"value": f"{found.minutes:.1f}", "name": "minutes", "note": "all trials together"})
    if found.rows_saved and found.rows_planned:
        note = f"{found.rows_saved / found.rows_planned:.0%} of those planned; about {found.minutes_saved:.1f} minutes"
        tiles.append({"value": f"{found.rows_saved:,}", "name": "rows of training saved by early stops", "note": note})
    return tiles


def _row(trial: Trial, fields: Sequence[SearchedField], found: SweepSummary) -> dict[str, Any]:
    """A line of the table of trials."""
    values = []
    for field in fields:
        if field.name not in trial.params:
            values.append({"text": None, "number": field.numeric, "sort": ""})
            continue
        value = trial.params[field.name]
        text = field_text(value)
        values.append({"text": text, "number": field.numeric, "sort": value if is_number(value) else text})
    return {
        "number": trial.number,
        "state": STATES[trial.state],
        "score": _finite(trial.score),
        "mean": _finite(trial.mean),
        "fresh": _finite(found.fresh.get(trial.number)),
        "values": values,
        "rows": trial.rows_trained,
        "planned": trial.rows_planned,
        "minutes": None if trial.seconds is None else trial.seconds / 60,
        "retries": max(0, trial.attempts - 1),
        "reason": trial.reason,
        "best": found.best is not None and trial.number == found.best.number,
    }


def _axis(field: SearchedField) -> dict[str, Any]:
    choices = None if field.choices is None else [field_text(choice) for choice in field.choices]
    return {"name": field.name, "low": field.low, "high": field.high, "log": field.log, "choices": choices}


def _range_text(field: SearchedField) -> str:
    if field.choices is not None:
        return "one of " + ", ".join(map(field_text, field.choices))
    return f"{field.low:g} to {field.high:g}{', by ratio' if field.log else ''}"


def _importance(sweep: SweepFolder, found: SweepSummary) -> tuple[list[tuple[str, float]] | None, str]:
    """Optuna's PED-ANOVA: pairs of field and share, the most important first; else why there are none."""
    done = len(found.ranked)
    if done < MIN_IMPORTANCE:
        return None, f"Stated from {MIN_IMPORTANCE} complete trials on; there are {done}."
    if len({trial.score for trial in found.ranked}) < 2:
        return None, "All complete trials have the same score."
    importance = load_optuna().importance
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the evaluator is experimental
            shares = importance.get_param_importances(
                open_study(sweep.files.journal), evaluator=importance.PedAnovaImportanceEvaluator()
            )
    except Exception as error:  # whatever Optuna says of trials that differ in their fields
        return None, f"Optuna cannot state it ({brief(error)})."
    pairs = [(name, float(share)) for name, share in shares.items() if math.isfinite(share)]
    return (pairs, "") if pairs else (None, "No field took more than one value.")


def _numbers(field: SearchedField, trials: Sequence[Trial]) -> np.ndarray:
    """Values of a numeric field, nan where a trial has none."""
    values = (trial.params.get(field.name) for trial in trials)
    return np.array([value if is_number(value) else np.nan for value in values], dtype=float)


def _correlations(fields: Sequence[SearchedField], found: SweepSummary) -> list[dict[str, Any]]:
    """Of each numeric field its rank correlation with the score, over the complete trials that have a value."""
    scores = np.array([trial.score for trial in found.ranked], dtype=float)
    rows = []
    for field in fields:
        if not field.numeric:
            continue
        values = _numbers(field, found.ranked)
        used = np.isfinite(values) & np.isfinite(scores)
        n, value = int(used.sum()), None
        if n >= MIN_CORRELATION:
            value = _finite(float(spearman(values[used], scores[used, None])[0]), 4)
        rows.append({"field": field.name, "value": value, "n": n})
    return rows


@dataclass(frozen=True)
class LabelTable:
    """Scores of every label in the complete trials that could be read.

    Attributes
    ----------
    trials : in the order of their numbers
    f1, average_precision : ndarrays of shape (n_trials, n_labels); nan where undefined
    unread : trials without, and why the first of them has none
    """

    names: list[str]
    trials: list[Trial]
    f1: np.ndarray
    average_precision: np.ndarray
    unread: str

    def figure(self) -> dict[str, Any]:
        """For the page's script."""
        tables = {"f1": self.f1, "average_precision": self.average_precision}
        packed = {name: [_packed(row) for row in table] for name, table in tables.items()}
        return {"names": self.names, "trials": [trial.number for trial in self.trials]} | packed

    def table(self, fields: Sequence[SearchedField], found: SweepSummary) -> list[dict[str, Any]]:
        """A line per label: F1 in the best trial and over all, and its rank correlation with each numeric field."""
        if not self.trials:
            return []
        numbers = [trial.number for trial in self.trials]
        best = numbers.index(found.best.number) if found.best is not None and found.best.number in numbers else None
        correlations = [self._correlations(field) for field in fields if field.numeric]
        return [
            {
                "label": name,
                "best": None if best is None else _finite(self.f1[best, j]),
                "median": _finite(np.median(self.f1[:, j])),
                "low": _finite(self.f1[:, j].min()),
                "high": _finite(self.f1[:, j].max()),
                "average_precision": None if best is None else _finite(self.average_precision[best, j]),
                "correlations": [_finite(values[j], 4) for values in correlations],
            }
            for j, name in enumerate(self.names)
        ]

    def _correlations(self, field: SearchedField) -> np.ndarray:
        values = _numbers(field, self.trials)
        used = np.isfinite(values)
        if used.sum() < MIN_CORRELATION:
            return np.full(len(self.names), np.nan)
        return spearman(values[used], self.f1[used])


def _packed(row: np.ndarray) -> str:
    """Numbers from 0 to 1 in two characters each: thousandths in base 36; `..` where undefined."""
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    thousandths = (round(float(value) * 1000) if np.isfinite(value) else None for value in row)
    return "".join(".." if n is None else digits[n // 36] + digits[n % 36] for n in thousandths)


def _label_scores(sweep: SweepFolder, ranked: Sequence[Trial]) -> LabelTable:
    names = list(sweep.info.label_names)
    trials, rows, missing, why = [], [], [], ""
    for trial in sorted(ranked, key=lambda trial: trial.number):
        try:
            scores = Scores.read(RunFiles(sweep.files.run(trial.number)).scores)
            by_name = {row.label: row for row in scores.cross_fitted.per_label}
            rows.append([by_name[name] for name in names])
            trials.append(trial)
        except (LoraClsError, OSError, KeyError) as error:
            missing.append(trial.number)
            why = why or (f"no scores of label {error}" if isinstance(error, KeyError) else brief(error))
    unread = f"Scores per label could not be read of trials {shorten(missing, 10)}: {why}" if missing else ""
    return LabelTable(
        names, trials, _table(rows, "f1", len(names)), _table(rows, "average_precision", len(names)), unread
    )


def _table(rows: Sequence[Sequence[LabelScores]], key: str, n_labels: int) -> np.ndarray:
    values = [[getattr(row, key) for row in scores] for scores in rows]
    return np.array(values, dtype=float).reshape(len(rows), n_labels)


def _settings(sweep: SweepFolder) -> list[tuple[str, str]]:
    info, settings = sweep.info, sweep.settings
    stops = [word for word, on in (("by folds", settings.stop_folds), ("by losses", settings.stop_losses)) if on]
    held_out = "none" if info.holdout is None else f"{info.holdout:.0%} of the rows, which no trial sees"
    return [
        ("recipe", info.recipe_name),
        ("objective", objective_title(sweep)),
        ("sampler", f"{settings.sampler}, random_state {settings.random_state}"),
        ("folds of each trial", f"{shorten(info.folds, 20)} of {info.n_splits}"),
        ("early stops", " and ".join(stops) or "none"),
        ("confirmed on fresh folds", f"the best {settings.confirm}" if settings.confirm else "none"),
        ("held out", held_out),
        ("rows", f"{info.rows:,}"),
        ("started", info.started),
        ("versions", ", ".join(f"{name} {version}" for name, version in info.versions.items())),
    ]
