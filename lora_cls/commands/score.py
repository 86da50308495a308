"""A run's models on labelled rows that they never saw, at the thresholds that ship, beside its out-of-fold score."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd

from lora_cls.choices import MetricName, Models
from lora_cls.commands.predict import Classifier
from lora_cls.commands.tune import score_set
from lora_cls.data import TableLike
from lora_cls.data.names import free_name
from lora_cls.data.table import table_stem
from lora_cls.errors import DataError, RunError, brief
from lora_cls.evaluation import Answers, Metric, Task, bootstrap_metric_unpaired_difference
from lora_cls.files import whole_folder, write_csv, writing
from lora_cls.report.content import spreadsheet
from lora_cls.report.page import write_reports
from lora_cls.runs import Labelled, Results, RunFolder, TableScores
from lora_cls.runs.folder import TABLE_LABELS, TABLE_ROWS, TABLE_SCORES
from lora_cls.runs.records import SeenRow
from lora_cls.runs.start import texts_met
from lora_cls.training.progress import Progress


def score_file(
    run: str | Path | RunFolder,
    table: TableLike,
    out: str | Path | None = None,
    *,
    backbone: str | None = None,
    models: Models = "folds",
    overwrite: bool = False,
    show: bool | None = None,
    trust_remote_code: bool = False,
    outside_runs: bool = False,
) -> TableScores:
    """Score a run, an export or a blend on a labelled table, at the thresholds that it ships.

    Nothing is chosen by these rows. Columns are those of the training table; others stand where they are. Rows whose
    text the run was trained on are named, and the score is stated without them, too. Of the run's own test table no
    model is loaded: the folds have answered for it.

    Writes `scores.json`, `labels.csv` (a row per label) and `rows.csv` (true and decided labels of every row, its
    probabilities, and the training row of its text), all or none. Within the run the page shows the score from then on.

    Parameters
    ----------
    out : a new folder; `RUN/scores/<name of the table>` where None
    backbone, models, trust_remote_code, outside_runs : see `Classifier.load`
    overwrite : replace the scores that `out` holds, once there are new ones

    Returns
    -------
    TableScores
        What `scores.json` holds.

    Raises
    ------
    LoraClsError
        If the folder holds scores already, a label column is missing or a label is none that the run knows, or for
        anything wrong with the run or the base model.

    Examples
    --------
    >>> scores = score_file("runs/tfidf", train_df.iloc[:10], "scored")
    >>> len(scores.seen), scores.unseen  # the run was trained on all of these
    (10, None)
    >>> sorted(file.name for file in Path("scored").iterdir())
    ['labels.csv', 'rows.csv', 'scores.json']
    """
    run = RunFolder.of(run, trust_remote_code=trust_remote_code, outside_runs=outside_runs)
    folder = scores_folder(run, table, models, out)
    _refuse(folder, overwrite)
    labelled = Labelled.read(run, table)
    results = None if run.exported else run.results()
    with whole_folder(folder, replace=overwrite) as scratch, Progress(0, show) as progress:
        for note in labelled.rows.notes:
            progress.say(note)
        answers = None if models == "refit" else test_answers(run, labelled)
        n_models = len(run.finished_folds) if models == "folds" and not run.exported else 1
        if answers is None:
            classifier = Classifier.load(run, backbone=backbone, models=models, show=show)
            y_score, y_pred = classifier.answer(labelled.rows)
            answers = Answers(y_pred, y_score)
        scores = score_rows(run, results, labelled, answers, models, n_models)
        scores = _write(scratch, run, labelled, answers, scores)
    if results is not None and folder.parent == run.files.table_scores:
        with run.writing():
            write_reports(run, progress.say, results)
    return scores


def scores_folder(run: RunFolder, table: TableLike, models: Models, out: str | Path | None = None) -> Path:
    """Where the scores on a table go, if not to `out`."""
    name = "table" if isinstance(table, pd.DataFrame) else table_stem(table)
    return (
        Path(out) if out is not None else run.files.table_scores / (name if models == "folds" else f"{name}-{models}")
    )


def score_test(run: RunFolder, results: Results, labelled: Labelled, say: Callable[[str], None]) -> None:
    """Score a run on its own test rows, whose labels entered nowhere; earlier scores of these rows give way.

    Whatever goes wrong here is said, and costs the run nothing: its scores and submission are written already.
    """
    try:
        _score_test(run, results, labelled, say)
    except Exception as error:
        say(
            f"The test rows could not be scored ({type(error).__name__}: {brief(error)}). Scores and submission are "
            f"complete; try again with: lora-cls score {shlex.quote(str(run.path))} --input FILE"
        )


def _score_test(run: RunFolder, results: Results, labelled: Labelled, say: Callable[[str], None]) -> None:
    path = run.info.data.paths.get("test") or "DataFrame"
    folder = run.files.table_scores / ("test" if path == "DataFrame" else table_stem(path))
    _refuse(folder, overwrite=True)
    file = folder / TABLE_SCORES
    if file.exists() and TableScores.read(file).table_sha256 != labelled.rows.fingerprint():
        raise RunError(f"{folder} holds scores of another table: give another --out")
    answers = test_answers(run, labelled)
    assert answers is not None
    scores = score_rows(run, results, labelled, answers, "folds", len(run.finished_folds))
    with whole_folder(folder, replace=True) as scratch:
        _write(scratch, run, labelled, answers, scores)


def test_answers(run: RunFolder, labelled: Labelled) -> Answers | None:
    """What the run's folds said of these rows, as its submission has it; None where they are not its test rows."""
    if run.exported or not run.is_test_table(labelled.rows):
        return None
    decision, per_fold = run.decision(), run.test_scores()
    assert per_fold is not None
    limits = np.array([decision.shipped[name] for name in run.label_names])
    y_score, y_pred = run.task(decision).together(per_fold, limits, decision.prediction)
    return Answers(y_pred, y_score)


def score_rows(
    run: RunFolder, results: Results | None, labelled: Labelled, answers: Answers, models: Models, n_models: int
) -> TableScores:
    """Scores of answers to labelled rows.

    Parameters
    ----------
    results : of the run; None for an export, which has no out-of-fold score
    answers : to the rows in their order
    """
    decision = run.decision() if results is None else results.decision
    task, names, y_true = run.task(decision), run.label_names, labelled.y_true
    shipped = np.array([decision.shipped[name] for name in names])
    notes: list[str] = []
    try:
        seen = [
            SeenRow(id=labelled.rows.ids[i], place=labelled.places and labelled.places[i], training_row=row)
            for i, row in sorted(texts_met(run, labelled.rows.texts).items())
        ]
        met = {row.id for row in seen}
    except (DataError, RunError) as error:
        seen, met = None, set()
        notes.append(f"Whether some of these rows were trained on cannot be told: {brief(error)}")
    new = np.array([name not in met for name in labelled.rows.ids])

    def of(rows: np.ndarray) -> tuple[np.ndarray, Answers, np.ndarray]:
        """What `score_set` and differences take, of some rows."""
        taken = Answers(np.asarray(answers.y_pred)[rows], np.asarray(answers.y_score)[rows])
        return y_true[rows], taken, labelled.rows.groups[rows]

    everything = np.ones(len(y_true), dtype=bool)
    unseen = met and len(np.unique(labelled.rows.groups[new])) > 1
    more: dict[str, Any] = {}
    if unseen:
        more["unseen"] = score_set(task, *of(new), names, shipped, optimistic=False)
    if results is not None:
        oof = results.oof
        own = Answers(oof.decide(task, decision), oof.y_score)
        more["out_of_fold"] = results.scores.cross_fitted.judged
        if unseen or not met:
            more["minus_out_of_fold"] = bootstrap_metric_unpaired_difference(
                task.metric, *of(new if unseen else everything), oof.y_true, own, oof.groups
            )
    return TableScores(
        table=labelled.name,
        table_sha256=labelled.rows.fingerprint(),
        task=run.recipe.task,
        **decision.model_dump(include={"metric", "metric_beta"}, exclude_unset=True),
        models=models,
        n_models=n_models,
        exported=run.exported,
        decision_sha256=decision.sha256,
        rows=len(y_true),
        scores=score_set(task, *of(everything), names, shipped, optimistic=False),
        metrics=_metrics(task, y_true, answers),
        seen=seen,
        notes=notes + _read_without_labels(run, labelled),
        **more,
    )


def _metrics(task: Task, y_true: np.ndarray, answers: Answers) -> dict[str, float | None]:
    found = {}
    for name in get_args(MetricName):
        if name != "f_beta" or task.metric.name == name:
            metric = Metric(name, task.metric.beta if name == "f_beta" else None, task.exclusive)
            value = metric.score(y_true, answers.y_pred, answers.y_score)
            found[name] = None if np.isnan(value) else value
    return found


def _read_without_labels(run: RunFolder, labelled: Labelled) -> list[str]:
    """What is said of rows whose texts, but not their labels, were read in training."""
    data, sha256 = run.info.data, labelled.rows.fingerprint()
    taught = run.recipe.distill is not None and sha256 in (data.test_sha256, data.unlabelled_sha256)
    adapted = run.recipe.adapt is not None and sha256 == data.test_sha256
    if not taught and not adapted:
        return []
    how = "with its teachers' answers" if taught else "as its base was adapted"
    return [f"The run had read these texts, without their labels, {how}: on texts that it never read it may do worse."]


def _refuse(folder: Path, overwrite: bool) -> None:
    """Raise RunError where scores stand that are not to be replaced, or anything that no score wrote."""
    with writing(folder):
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return
        ours = folder.is_dir() and {file.name for file in folder.iterdir()} <= {TABLE_SCORES, TABLE_LABELS, TABLE_ROWS}
    if not ours:
        raise RunError(f"{folder} holds something else than scores, and is not overwritten: choose another --out.")
    if not overwrite:
        raise RunError(
            f"{folder} holds scores already: replace them with --overwrite, or choose another folder with --out."
        )


def _write(folder: Path, run: RunFolder, labelled: Labelled, answers: Answers, scores: TableScores) -> TableScores:
    """The files of a score in an empty folder."""
    names = run.label_names
    own = {name: free_name(name, names) for name in ("id", "true", "decided", "training_row")}
    trained = {row.id: row.training_row or "yes" for row in scores.seen or []}
    y_pred, y_score = np.asarray(answers.y_pred), np.asarray(answers.y_score)
    rows = []
    for i, row_id in enumerate(labelled.rows.ids):
        true, decided = (" | ".join(names[j] for j in np.flatnonzero(y[i])) for y in (labelled.y_true, y_pred))
        values = zip(own.values(), (row_id, true, decided, trained.get(row_id, "")), strict=True)
        rows.append({**dict(values), **dict(zip(names, y_score[i].tolist(), strict=True))})
    write_csv(folder / TABLE_ROWS, spreadsheet(rows, [*own.values(), *names]))
    labels = [row.model_dump() for row in scores.scores.per_label]
    write_csv(folder / TABLE_LABELS, spreadsheet(labels, list(labels[0])))
    return scores.write(folder / TABLE_SCORES)
