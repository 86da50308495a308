"""Several finished runs as one: combined out of fold, scored like any run, and kept as a run folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lora_cls.choices import BlendHow
from lora_cls.commands.tune import tune
from lora_cls.errors import RecipeError, RunError, shorten
from lora_cls.evaluation import (
    Answers,
    Interval,
    Task,
    apply_blend,
    bootstrap_macro_f1,
    bootstrap_metric,
    bootstrap_metric_difference,
    fit_blend,
    macro_f1,
)
from lora_cls.files import make_folder, whole_folder, write_array
from lora_cls.machine import surroundings
from lora_cls.recipe import Recipe, load_recipe
from lora_cls.runs import AlignedRun, FoldInfo, OutOfFold, RunFolder, RunInfo, align
from lora_cls.runs.records import BlendedRun, BlendInfo, BlendWay
from lora_cls.runs.sums import sums

NOTE = (
    "For every fold, what a way learns (weights, regressions) and the thresholds come from the other folds' rows. "
    "Choosing the runs and the way by these scores is tuning too, and no fold is held back from it: the more is tried, "
    "the more the best of it flatters."
)


def blend(
    paths: Sequence[str | Path | RunFolder],
    out: str | Path,
    how: BlendHow = "mean_logit",
    *,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> RunFolder:
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
    overwrite : replace a run folder in `out`, which must not be one of the runs
    say : see `tune`

    Raises
    ------
    RunError
        If the runs have no common rows and folds, or other test rows, or `out` exists; names every difference.
    RecipeError
        If the way has no meaning for the task.

    Examples
    --------
    >>> run = blend(["runs/tfidf", "runs/lora"], "runs/both", how="mean_proba")
    >>> proba = [RunFolder(path).out_of_fold().y_score for path in ("runs/tfidf", "runs/lora")]
    >>> np.allclose(run.out_of_fold().y_score, np.mean(proba, axis=0))
    True
    """
    out = Path(out)
    members = align(paths)
    first = members[0].run
    recipe = _recipe(members, out, how)
    if overwrite and any(_within(member.run.path, out) for member in members):
        raise RunError(f"{out} holds one of the runs that are blended. Choose another folder with --out.")
    RunFolder.refuse_existing(out, overwrite)  # before minutes of fitting
    task = members[0].task
    y_score = np.array([member.oof.y_score for member in members])
    test = _test_scores(members)
    about, written = compare_ways(members, task, y_score, how)
    infos = [member.run.info for member in members]
    info = RunInfo(
        **surroundings(),
        data=first.info.data,
        choices={},
        backbone_path=None,
        seconds={phase: round(sum(one.seconds[phase] for one in infos), 1) for phase in ("train", "predict")},
        peak_memory_bytes=max(one.peak_memory_bytes or 0 for one in infos) or None,
    )
    with whole_folder(out, replace=overwrite) as scratch:
        run = RunFolder(RunFolder.create_like(scratch, recipe, info, first).path, out.name, outside_runs=True)
        _write(run, members, how, written, y_score, test)
        about.write(run.files.blend)
        tune(run, say=say)
    return RunFolder(out, outside_runs=True)


def _write(
    run: RunFolder,
    members: Sequence[AlignedRun],
    how: BlendHow,
    written: CrossFitted,
    y_score: np.ndarray,
    test: np.ndarray | None,
) -> None:
    """The folds of a blend, and what its fits say of all rows."""
    oof, task = members[0].oof, members[0].task
    place = {value: i for i, value in enumerate(oof.ids)}
    held_out = np.array([place.get(value, -1) for value in run.folds["id"]])
    for k, number in enumerate(members[0].run.finished_folds):
        # the fit for a fold is of the other folds; of a single one there are none, and new texts get that of all parts
        fitted = written.fits[number] if oof.over == "folds" else fit_blend(how, task, oof.y_true, y_score)
        order = held_out[(run.folds["fold"] == number).to_numpy()]  # of this fold, in the folder's order
        folder = run.fold(number)
        make_folder(folder.path)
        write_array(folder.oof_logits, written.logits[order])
        if test is not None:
            proba = apply_blend(how, task, fitted, test[:, k], y_score)
            write_array(folder.test_logits, blended_logits(task, proba))
        folder.write_info(_fold_info([member.run.fold(number).info for member in members], fitted, oof))
    if written.fitted_logits is not None:
        write_array(run.files.fitted_logits, written.fitted_logits[:, held_out[held_out >= 0]])
        run.update_info(files=run.info.files | sums(run.path, [run.files.fitted_logits]))


def _within(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def blended_logits(task: Task, proba: np.ndarray) -> np.ndarray:
    """Blended probabilities as a fold's logits, without any weight: ndarray of float32 of the same shape."""
    return task.link.logits(proba).astype(np.float32)


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


def cross_fitted_blend(how: BlendHow, task: Task, oof: OutOfFold, y_score: np.ndarray) -> CrossFitted:
    """The runs as one.

    Parameters
    ----------
    y_score : ndarray of shape (n_runs, n_samples, n_labels)
    """
    logits, fits, fitted_logits = np.empty(oof.y_true.shape, dtype=np.float32), {}, []
    for number in np.unique(oof.part).tolist():
        inside = oof.part == number
        fits[number] = fit_blend(how, task, oof.y_true[~inside], y_score[:, ~inside])
        every = blended_logits(task, apply_blend(how, task, fits[number], y_score, y_score))
        logits[inside] = every[inside]
        if not fits[number]:  # nothing was learnt: the same for every fold
            return CrossFitted(every, {k: {} for k in np.unique(oof.part).tolist()}, None)
        fitted_logits.append(every)
    return CrossFitted(logits, fits, np.array(fitted_logits))


def compare_ways(
    members: Sequence[AlignedRun], task: Task, y_score: np.ndarray, how: BlendHow
) -> tuple[BlendInfo, CrossFitted]:
    """Scores of all ways, and of the chosen one without each run, for `blend.json`; and the chosen one."""
    oof, at_least_one, no_weight = members[0].oof, members[0].at_least_one, np.ones(y_score.shape[-1])
    metric, plain = task.metric, task.metric.name == "macro_f1"
    alone = [Answers(member.y_pred, member.oof.y_score) for member in members]
    best = int(np.argmax([metric.gain(oof.y_true, one.y_pred, one.y_score) for one in alone]))

    def decided(blended: CrossFitted) -> Answers:
        # through the precision that is stored, so that the decisions are those of the run folder
        fitted = blended.fitted_logits
        through = replace(
            oof,
            logits=blended.logits,
            y_score=task.link.probabilities(blended.logits, no_weight),
            fitted_score=None if fitted is None else task.link.probabilities(fitted, no_weight),
        )
        return Answers(through.cross_fit(task, at_least_one).y_pred, through.y_score)

    def minus(a: Answers, b: Answers) -> Interval:
        return bootstrap_metric_difference(metric, oof.y_true, a, b, oof.groups)

    written = cross_fitted_blend(how, task, oof, y_score)
    chosen = decided(written)
    ways = []
    for way in task.blend_ways:
        answers = chosen if way == how else decided(cross_fitted_blend(way, task, oof, y_score))
        gain = minus(answers, alone[best])
        score = bootstrap_macro_f1(oof.y_true, answers.y_pred, oof.groups)
        more = {} if plain else {"metric_interval": bootstrap_metric(metric, oof.y_true, answers, oof.groups)}
        ways.append(BlendWay(how=way, macro_f1_interval=score, gain_over_best=gain, **more))
    runs = []
    for i, member in enumerate(members):
        others = [j for j in range(len(members)) if j != i]
        if len(others) > 1:
            without = decided(cross_fitted_blend(how, task, oof, y_score[others]))
        else:
            without = alone[others[0]]
        f1, value = macro_f1(oof.y_true, member.y_pred), metric.score(oof.y_true, member.y_pred, member.oof.y_score)
        own = {} if plain or np.isnan(value) else {"metric": value}
        runs.append(BlendedRun(name=member.name, macro_f1=f1, adds=minus(chosen, without), **own))
    of = {} if plain else {"metric": metric.name, "metric_title": metric.title}
    return BlendInfo(how=how, best_single=members[best].name, runs=runs, ways=ways, note=NOTE, **of), written


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
        "metric": members[0].decision.metric,
        "metric_beta": members[0].decision.metric_beta,
        "thresholds": members[0].task.settings.model_dump(mode="json"),
        "prediction": {"at_least_one": members[0].at_least_one},
    }
    try:
        return load_recipe(values)
    except RecipeError as error:
        raise RecipeError(f"These runs cannot be blended like this: {error}") from None


def _test_scores(members: Sequence[AlignedRun]) -> np.ndarray | None:
    """Test probabilities of the runs' folds, ndarray of shape (n_runs, n_folds, n_test, n_labels); None without."""
    ids = [member.run.test_ids for member in members]
    if all(test_ids is None for test_ids in ids):
        return None
    first, problems = ids[0], []
    for member, test_ids in zip(members, ids, strict=True):
        if test_ids is None or first is None:
            if test_ids is None:
                problems.append(f"{member.run.path}: no test rows were predicted.")
            continue
        extra = [value for value in test_ids if value not in set(first)]
        missing = [value for value in first if value not in set(test_ids)]
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
    for member, test_ids in zip(members, ids, strict=True):
        assert test_ids is not None
        place = {value: i for i, value in enumerate(test_ids)}
        scores = member.test_scores()
        assert scores is not None
        result.append(scores[:, [place[value] for value in first]])
    return np.array(result)


def _fold_info(infos: Sequence[FoldInfo], fitted: dict[str, Any], oof: OutOfFold) -> FoldInfo:
    """What was fitted, on which models, and what the runs' folds cost together."""
    return FoldInfo(
        pos_weight=[1.0] * len(oof.label_names),
        blend=fitted,
        blended=[info.files.get("oof_logits.npy") for info in infos],
        train_rows=infos[0].train_rows,
        seconds={phase: round(sum(info.seconds[phase] for info in infos), 3) for phase in ("train", "predict")},
        trainable_parameters=sum(info.trainable_parameters or 0 for info in infos),
    )
