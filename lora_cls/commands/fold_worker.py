"""The process that trains folds for another one: `python -m lora_cls.commands.fold_worker`; see `FoldWork`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_cls.commands.fold_training import open_trainer, train_fold
from lora_cls.data.tables import Tables
from lora_cls.execution.child import Parent, work_for_parent
from lora_cls.recipe import load_recipe
from lora_cls.runs import RunFolder
from lora_cls.training.progress import Progress, Reporter


def train_folds(job: Mapping[str, Any], parent: Parent) -> None:
    """Train one fold after the other, as the parent asks for them."""
    trusted = job["trust_remote_code"]
    recipe = load_recipe(job["recipe"], trust_remote_code=trusted)
    run = RunFolder(job["run"], trust_remote_code=trusted)
    tables = Tables(recipe, **job["tables"])
    reporter = Reporter(recipe.train.num_train_epochs, parent.tell)
    with Progress(0, True, [reporter]) as progress:
        learner, trainer = open_trainer(run, recipe, tables, job["folds"], progress)
        for message in parent.messages():
            macro_f1 = train_fold(run, trainer, message["task"], wait=progress.say)
            parent.tell(spent={"seconds": dict(learner.seconds), "reused": dict(learner.reused)})
            parent.tell(done=macro_f1)


def main() -> None:
    """See `work_for_parent`."""
    work_for_parent(train_folds)


if __name__ == "__main__":
    main()
