"""Several finished runs as one: combined out of fold, scored like any run, and kept as a run folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from lora_cls.commands.align import AlignedRun, Rows, align
from lora_cls.commands.tune import cross_fit, tune
from lora_cls.errors import RecipeError, RunError, shorten
from lora_cls.evaluation import Decisions, apply_blend, bootstrap_difference, bootstrap_macro_f1, fit_blend, macro_f1
from lora_cls.files import write_array, write_json
from lora_cls.machine import surroundings
from lora_cls.recipe import BlendHow, Recipe, load_recipe
from lora_cls.runs import RunFolder, read_json

NOTE = (
    "For every fold, what a way learns (weights, regressions) and the thresholds come from the other folds' rows. "
    "Choosing the runs and the way by these scores is tuning too, and no fold is held back from it: the more is tried, "
    "the more the best of it flatters."
)


def blend(paths: Sequence[str | Path], out: str | Path, how: BlendHow = "mean_logit") -> RunFolder:
    """Combine finished runs on the same rows and folds into a new run folder.

    A fold of the blend is the runs' models of that fold together, in a way that was fitted on the other folds' rows.
    So `tune`, `compare`, reports and `predict` treat it like any run. A single fold's rows are blended part by part, as
    `tune` decides them, and new texts by what all of them fit. `blend.json` holds the score of every way, each one's
    paired gain over the best single run, and what the chosen blend loses without each of its runs.

    Parameters
    ----------
    paths : two run folders or more
    out : the new run folder
    how : the way that is written

    Raises
    ------
    RunError
        If the runs have no common rows and folds, or other test rows, or `out` exists; names every difference.
    RecipeError
        If the way has no meaning for the task.
    """
    out = Path(out)
    rows, members = align(paths)
    recipe = _recipe(members, out, how)
    RunFolder.refuse_existing(out)  # before minutes of fitting
    decisions = members[0].decisions
    y_score = np.array([member.y_score for member in members])
    test = _test_proba(members)
    told, written = compare_ways(rows, members, decisions, y_score, how)
    first = members[0].run
    info = surroundings() | {
        "data": first.info["data"],
        "choices": {},
        "backbone_path": None,
        "seconds": {
            phase: round(sum(member.run.info["seconds"][phase] for member in members), 1)
            for phase in ("train", "predict")
        },
        "peak_memory_bytes": max(member.run.info.get("peak_memory_bytes", 0) for member in members),
    }
    run = RunFolder.create_like(out, recipe, info, first)
    place = {value: i for i, value in enumerate(rows.ids)}
    held_out = np.array([place.get(value, -1) for value in run.folds["id"]])
    for number in run.fold_numbers:
        # the fit for a fold is of the other folds; of a single one there are none, and new texts get that of all parts
        fitted = written.fits[number] if rows.over == "folds" else fit_blend(how, decisions, rows.y_true, y_score)
        order = held_out[(run.folds["fold"] == number).to_numpy()]  # of this fold, in the folder's order
        folder = run.fold(number)
        folder.path.mkdir()
        write_array(folder.oof_logits, written.logits[order])
        if test is not None:
            of_fold = test[:, first.fold_numbers.index(number)]
            write_array(
                folder.test_logits,
                blended_logits(decisions, apply_blend(how, decisions, fitted, of_fold, y_score)),
            )
        write_json(folder.info, _fold_info(members, number, fitted, len(rows.label_names)))
    if written.fitted_logits is not None:
        write_array(run.fitted_logits, written.fitted_logits[:, held_out[held_out >= 0]])
    write_json(out / "blend.json", told)
    tune(run)
    return run


def blended_logits(decisions: Decisions, proba: np.ndarray) -> np.ndarray:
    """Blended probabilities as a fold's logits, without any weight: ndarray of float32 of the same shape."""
    return decisions.logits(proba).astype(np.float32)


@dataclass(frozen=True, eq=False)
class CrossFitted:
    """Runs blended in one way, each fold's (or part's) rows as fitted on the others'.

    Attributes
    ----------
    logits : ndarray of float32 of shape (n_samples, n_labels), as a run folder stores them
    fits : what `fit_blend` found on the other folds' rows, by fold
    fitted_logits : all rows by each of the fits, ndarray of float32 of shape (n_folds, n_samples, n_labels); None for a
        way that learns nothing from labels
    """

    logits: np.ndarray
    fits: dict[int, dict[str, Any]]
    fitted_logits: np.ndarray | None


def cross_fitted_blend(how: BlendHow, decisions: Decisions, rows: Rows, y_score: np.ndarray) -> CrossFitted:
    """The runs as one.

    Parameters
    ----------
    y_score : ndarray of shape (n_runs, n_samples, n_labels)
    """
    logits, fits, fitted_logits = np.empty(rows.y_true.shape, dtype=np.float32), {}, []
    for number in np.unique(rows.part).tolist():
        inside = rows.part == number
        fits[number] = fit_blend(how, decisions, rows.y_true[~inside], y_score[:, ~inside])
        every = blended_logits(decisions, apply_blend(how, decisions, fits[number], y_score, y_score))
        logits[inside] = every[inside]
        if not fits[number]:  # nothing was learnt: the same for every fold
            return CrossFitted(every, {k: {} for k in np.unique(rows.part).tolist()}, None)
        fitted_logits.append(every)
    return CrossFitted(logits, fits, np.array(fitted_logits))


def compare_ways(
    rows: Rows, members: Sequence[AlignedRun], decisions: Decisions, y_score: np.ndarray, how: BlendHow
) -> tuple[dict[str, Any], CrossFitted]:
    """Scores of all ways, and of the chosen one without each run: plain values for `blend.json`; and the chosen one."""
    at_least_one, no_weight = members[0].at_least_one, np.ones(len(rows.label_names))
    singles = [member.cross_fitted(rows) for member in members]
    scores = [macro_f1(rows.y_true, y_pred) for y_pred in singles]
    best = int(np.argmax(scores))

    def decided(blended: CrossFitted) -> np.ndarray:
        # through the precision that is stored, so that the decisions are those of the run folder
        fitted = blended.fitted_logits
        fitted_proba = None if fitted is None else decisions.probabilities(fitted, no_weight)
        proba = decisions.probabilities(blended.logits, no_weight)
        return cross_fit(decisions, rows.y_true, proba, rows.part, at_least_one, fitted_proba).y_pred

    written = cross_fitted_blend(how, decisions, rows, y_score)
    chosen = decided(written)
    ways: list[dict[str, Any]] = []
    for way in get_args(BlendHow):
        if way == "rank_mean" and members[0].run.recipe.task == "single_label":
            continue
        y_pred = chosen if way == how else decided(cross_fitted_blend(way, decisions, rows, y_score))
        gain = bootstrap_difference(rows.y_true, y_pred, singles[best], rows.groups)
        score = bootstrap_macro_f1(rows.y_true, y_pred, rows.groups)
        ways.append({"how": way, "macro_f1_interval": asdict(score), "gain_over_best": asdict(gain)})
    runs = []
    for i, member in enumerate(members):
        others = [j for j in range(len(members)) if j != i]
        if len(others) > 1:
            without = decided(cross_fitted_blend(how, decisions, rows, y_score[others]))
        else:
            without = singles[others[0]]
        added = bootstrap_difference(rows.y_true, chosen, without, rows.groups)
        runs.append({"name": member.name, "macro_f1": scores[i], "adds": asdict(added)})
    told = {"how": how, "best_single": members[best].name, "runs": runs, "ways": ways, "note": NOTE}
    return told, written


def _recipe(members: Sequence[AlignedRun], out: Path, how: BlendHow) -> Recipe:
    """The blend's recipe: how its rows are read and decided is the first run's."""
    recipe = members[0].run.recipe
    optimistic = any(member.run.recipe.train.select == "scored_fold" for member in members)
    values = {name: getattr(recipe, name).model_dump(mode="json") for name in ("data", "cv")} | {
        "task": recipe.task,
        "blend": {
            "runs": [os.path.relpath(member.run.path.resolve(), out.resolve()) for member in members],
            "how": how,
        },
        "train": {"select": "scored_fold" if optimistic else "last"},
        "thresholds": members[0].decisions.settings.model_dump(mode="json"),
        "prediction": {"at_least_one": members[0].at_least_one},
    }
    try:
        return load_recipe(values)
    except RecipeError as error:
        raise RecipeError(f"These runs cannot be blended like this: {error}") from None


def _test_proba(members: Sequence[AlignedRun]) -> np.ndarray | None:
    """Test probabilities of the runs' folds, ndarray of shape (n_runs, n_folds, n_test, n_labels); None without."""
    ids = [member.run.test_ids for member in members]
    if all(found is None for found in ids):
        return None
    first, problems = ids[0], []
    for member, found in zip(members, ids, strict=True):
        if found is None or first is None:
            if found is None:
                problems.append(f"{member.run.path}: no test rows were predicted.")
            continue
        extra = [value for value in found if value not in set(first)]
        missing = [value for value in first if value not in set(found)]
        name = members[0].run.path
        if extra:
            problems.append(f"{member.run.path}: {len(extra)} test rows are not in {name}: ids {shorten(extra, 5)}.")
        if missing:
            problems.append(
                f"{member.run.path}: {len(missing)} test rows of {name} are missing: ids {shorten(missing, 5)}."
            )
    if problems:
        raise RunError(
            "These runs have no common test rows:\n" + "\n".join(f"  {line}" for line in problems) + "\n"
            "Blend runs on the same test file, or runs without any."
        )
    assert first is not None
    result = []
    for member, found in zip(members, ids, strict=True):
        assert found is not None
        place = {value: i for i, value in enumerate(found)}
        logits = member.run.test_logits()
        assert logits is not None
        logits = logits[:, [place[value] for value in first]][:, :, member.labels]
        result.append(member.decisions.probabilities(logits, member.weights[:, None, :]))
    return np.array(result)


def _fold_info(members: Sequence[AlignedRun], number: int, fitted: dict[str, Any], n_labels: int) -> dict[str, Any]:
    """`fold.json`: what was fitted, and what the runs' folds cost together."""
    found = [read_json(member.run.fold(number).info) for member in members]
    return {
        "pos_weight": [1.0] * n_labels,
        "blend": fitted,
        "train_rows": found[0]["train_rows"],
        "seconds": {phase: round(sum(info["seconds"][phase] for info in found), 3) for phase in ("train", "predict")},
        "trainable_parameters": sum(info["trainable_parameters"] for info in found),
    }
