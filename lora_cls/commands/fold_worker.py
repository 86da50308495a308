"""The process that trains folds for another one: `python -m lora_cls.commands.fold_worker`; see `FoldWork`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from lora_cls.commands.fold_training import find_teachers, train_fold
from lora_cls.data.tables import Tables
from lora_cls.errors import LoraClsError, words_of
from lora_cls.execution.child import Parent
from lora_cls.recipe import load_recipe
from lora_cls.runs import RunFolder
from lora_cls.training.factory import make_learner
from lora_cls.training.progress import Progress, Reporter


def train_folds(job: Mapping[str, Any], parent: Parent) -> None:
    """Train one fold after the other, as the parent asks for them."""
    trusted = job["trust_remote_code"]
    recipe = load_recipe(job["recipe"], trust_remote_code=trusted)
    run = RunFolder(job["run"], trust_remote_code=trusted)
    tables = Tables(recipe, **job["tables"])
    run.check_resume(recipe, tables.fingerprints(), tables.train)
    choices = run.info.choices
    untrained = [number for number in job["folds"] if not run.fold(number).finished]
    teachers = find_teachers(recipe, tables, run.folds["fold"].to_numpy(np.int64), untrained, choices)
    reporter = Reporter(recipe.train.num_train_epochs, parent.tell)
    with Progress(0, True, [reporter]) as progress:
        learner = make_learner(recipe, tables.train.label_names, choices, run.base_place(), progress)
        trainer = learner.prepare(tables.train, tables.test, teachers)
        trainer.adapt(tables.extra_texts)
        for message in parent.messages():
            macro_f1 = train_fold(run, trainer, message["task"], progress.say)
            parent.tell(spent={"seconds": dict(learner.seconds), "reused": dict(learner.reused)})
            parent.tell(done=macro_f1)


def main() -> None:
    """Exit code 2 after a mistake that the user can mend, which the parent is told of."""
    parent = Parent()
    try:
        with words_of("shell"):
            train_folds(next(parent.messages()), parent)
    except LoraClsError as error:
        parent.tell(failed=str(error))
        sys.exit(2)


if __name__ == "__main__":
    main()
