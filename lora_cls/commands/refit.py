"""One model of all rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lora_cls.commands.cross_validation import refuse_blend
from lora_cls.commands.fold_training import complete_fold
from lora_cls.data import TableLike
from lora_cls.errors import RunError
from lora_cls.files import remove
from lora_cls.runs import FoldFolder, RunFolder, training_data
from lora_cls.training.factory import make_learner
from lora_cls.training.progress import Progress


def refit(
    run: str | Path | RunFolder,
    train: TableLike | None = None,
    *,
    extra_train: TableLike | None = None,
    show: bool | None = None,
    trust_remote_code: bool = False,
) -> FoldFolder:
    """Train one model on all rows, for those who ship one. It has no out-of-fold score of its own.

    Parameters
    ----------
    train, extra_train : the run's training data; where None, the files that the run was started with
    trust_remote_code : let Python code that comes with the base model run; the folder's own recipe is not asked

    Raises
    ------
    RunError
        If the data is not the run's.
    """
    run = RunFolder.of(run, trust_remote_code=trust_remote_code)
    if run.exported:
        raise RunError(f"{run.path} is an export: refit the run that it was made from.")
    refuse_blend(run.recipe)
    if run.recipe.distill is not None:
        raise RunError(
            f"{run.path} learnt from teachers, each fold from their models of that fold, and there is no such model of "
            "all rows: predict with the folds together, or export their mean."
        )
    recipe, data = run.recipe, training_data(run, train, extra_train)
    with run.refit.training(), Progress(1, show) as progress:
        if run.refit.finished:
            remove(run.refit.state)  # of a process that was killed as it finished
            progress.say(f"{run.refit.path} is finished already.")
            return run.refit
        n_epochs = run.refit_epochs
        if n_epochs is not None:
            progress.say(f"Training for {n_epochs} epochs, the median of those that the folds chose.")
        trainer = make_learner(recipe, run.label_names, run.info.choices, run.base_place(), progress).prepare(data)
        trainer.adapt([])
        rows = np.arange(len(data))  # extra rows too
        complete_fold(run.refit, trainer.fit_fold(-1, rows, rows[:0], run.refit, n_epochs))
        progress.part_done("all rows", "done")
    return run.refit
