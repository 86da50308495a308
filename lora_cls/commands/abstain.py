"""Not sure: which answers of a run's models are left out so that the others keep a precision, measured out of fold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lora_cls.data.names import free_name
from lora_cls.errors import RecipeError, RunError
from lora_cls.evaluation.abstention import Abstention, abstention_scores
from lora_cls.runs import RunFolder
from lora_cls.runs.records import AbstentionInfo

ABSTAIN = "abstain"


def fit_abstention(run: RunFolder, precision: float) -> tuple[Abstention, AbstentionInfo]:
    """The bands of a run's labels, of all its predicted rows; and what such bands came to out of fold: each part's
    thresholds and bands are those of the other parts' rows.

    Raises
    ------
    RunError
        For an export, which answered for no row out of fold, and where folds vote.
    RecipeError
        For a precision that is none.
    """
    if not 0 < precision < 1:
        raise RecipeError(f"--abstain-below-precision must lie between 0 and 1, as 0.9. Got {precision:g} instead.")
    if run.exported:
        raise RunError(
            f"{run.path} is an export: its model answered for no row that it never saw, so that no precision can be "
            "measured. Predict with the run that it was made of."
        )
    results = run.results()
    oof, decision = results.oof, results.decision
    if decision.prediction.combine == "vote" and len(run.finished_folds) > 1:
        raise RunError(
            f"{run.path}: the folds vote (prediction.combine: vote), and shares of votes are no probabilities to "
            "abstain by. Combine them otherwise: lora-cls tune RUN --combine mean_proba."
        )
    task, at_least_one, names = run.task(decision), decision.prediction.at_least_one, oof.label_names
    y_pred, answered = np.empty(oof.y_true.shape, dtype=np.int8), np.empty(oof.y_true.shape, dtype=bool)
    for k, number in enumerate(np.unique(oof.part).tolist()):
        inside, of_label = oof.part == number, decision.fitted[number]
        limits = np.array([of_label[name] for name in names])
        scores = (oof.y_score if oof.fitted_score is None else oof.fitted_score[k])[~inside]
        decided = task.apply(scores, limits, at_least_one)
        band = Abstention.fit(oof.y_true[~inside], scores, decided, precision, task.exclusive)
        y_pred[inside] = task.apply(oof.y_score[inside], limits, at_least_one)
        answered[inside] = band.answered(oof.y_score[inside], y_pred[inside])
    shipped = np.array([decision.shipped[name] for name in names])
    decided = task.apply(oof.y_score, shipped, at_least_one)
    band = Abstention.fit(oof.y_true, oof.y_score, decided, precision, task.exclusive)
    edges = (band.yes, np.full(len(names), np.inf) if band.no is None else band.no)
    yes, no = ({n: float(v) if np.isfinite(v) else None for n, v in zip(names, of, strict=True)} for of in edges)
    return band, AbstentionInfo.model_validate(
        {
            "precision": precision,
            "decision_sha256": decision.sha256,
            "yes": yes,
            "no": None if band.no is None else no,
            "rows": len(oof),
            "over": oof.over,
            "out_of_fold": abstention_scores(oof.y_true, y_pred, answered, names, task.exclusive),
        }
    )


def answer_columns(
    ids: Sequence[str], label_names: Sequence[str], y_score: np.ndarray, y_pred: np.ndarray, band: Abstention
) -> dict[str, Sequence[str]]:
    """The columns of `answers.csv` for some rows: of each label `1`, `0` or `abstain`; of classes the class, and 1 in a
    column `abstain` where it is no answer."""
    known = band.answered(y_score, y_pred)
    if band.no is None:
        decided = [label_names[j] for j in np.argmax(y_pred, axis=1).tolist()]
        return {"id": ids, "class": decided, ABSTAIN: [str(int(not row)) for row in known[:, 0].tolist()]}
    said = np.where(known, np.where(y_pred == 1, "1", "0"), ABSTAIN)
    columns = {name: said[:, j].tolist() for j, name in enumerate(label_names)}
    return {free_name("id", label_names): ids, **columns}
