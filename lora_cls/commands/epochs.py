"""`train.select: cross_fitted`: each fold takes the epoch that is best on the other folds' rows."""

from __future__ import annotations

import shutil

import numpy as np

from lora_cls.files import whole_folder, write_array, write_bytes
from lora_cls.runs import FoldFolder, RunFolder
from lora_cls.runs.io import read_bytes


def choose_epochs(run: RunFolder) -> None:
    """`select: cross_fitted`: each fold takes the epoch that is best on the other folds' rows.

    The other folds' curves never saw this fold's rows scored, so the choice does not flatter its score. Every epoch's
    metric is taken at thresholds tuned on those same rows, for each epoch alike.
    """
    numbers, epochs = run.fold_numbers, range(1, run.recipe.train.num_train_epochs + 1)
    chosen = {number: _chosen(run.fold(number)) for number in numbers}
    if not all(chosen.values()):
        fold, y_true, weights = run.folds["fold"].to_numpy(), run.y_true, run.pos_weights(numbers)
        task = run.task()
        by_epoch = np.zeros((len(epochs), *y_true.shape))
        for number, weight in zip(numbers, weights, strict=True):
            folder, shape = run.fold(number), (int((fold == number).sum()), y_true.shape[1])
            if not chosen[number]:  # small, and kept: a fold that is trained again is chosen by the others' curves
                logits = np.array([folder.read_array(folder.epoch(epoch).oof_logits, shape) for epoch in epochs])
                write_array(folder.epoch_logits, logits)
            else:
                logits = folder.read_array(folder.epoch_logits, (len(epochs), *shape))
            by_epoch[:, fold == number] = task.link.probabilities(logits, weight)
        for number in numbers:
            if not chosen[number]:
                others = (fold != number) & (fold >= 0)
                truth = y_true[others]
                known = [s[others] for s in by_epoch]
                scores = [task.metric.gain(truth, task.apply(s, task.tune(truth, s)), s) for s in known]
                best = epochs[int(np.argmax(scores))]
                # an undefined one (ranks of labels with one kind of row) is worse than any, and no number of JSON
                told = [round(score, 6) if np.isfinite(score) else -1e9 for score in scores]
                name = "macro_f1" if task.metric.name == "macro_f1" else "metric"
                _take_epoch(run.fold(number), best, {f"other_folds_{name}": told})
    for number in numbers:  # only now: a stop in between chooses again from the same files
        for epoch in epochs:
            shutil.rmtree(run.fold(number).epoch(epoch).path, ignore_errors=True)


def _chosen(folder: FoldFolder) -> bool:
    return (folder.info.other_folds_macro_f1 or folder.info.other_folds_metric) is not None


def _take_epoch(folder: FoldFolder, epoch: int, scores: dict[str, list[float]]) -> None:
    kept = folder.epoch(epoch)
    folder.weights(kept.path)  # before new sums are noted of what was copied
    for source, target in (
        (kept.oof_logits, folder.oof_logits),
        (kept.test_logits, folder.test_logits),
        (kept.answers, folder.answers),
    ):
        if source.is_file():
            write_bytes(target, read_bytes(source, folder.noted(source), folder.remedy(source)))
    for source, target in ((kept.adapter, folder.adapter), (kept.model, folder.model)):
        if source.is_dir():
            with whole_folder(target, replace=True) as scratch:
                shutil.copytree(source, scratch, dirs_exist_ok=True)
    folder.write_info(folder.info.model_copy(update={"epoch": epoch} | scores))
