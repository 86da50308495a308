"""What a run's models said of the rows that they never saw, and how these rows are decided."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lora_cls.choices import Over
from lora_cls.evaluation import CrossFit, Task
from lora_cls.runs.records import Decision


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """The predicted rows of a run, each once, by the model of the fold that held it out; in the run's own order.

    Attributes
    ----------
    ids, label_names : lists of str of length n_samples and n_labels
    rows : ndarray of shape (n_samples,), int64
        Where each row stands in the training table.
    fold, groups : ndarray of shape (n_samples,), int64
    over, part : "folds" or "parts", and ndarray of shape (n_samples,), int64
        What thresholds, and whatever else is fitted to labels, are cross-fitted over: the folds, or parts of a single
        one.
    y_true : ndarray of shape (n_samples, n_labels), int8
    logits : ndarray of shape (n_samples, n_labels), float32
    y_score : ndarray of shape (n_samples, n_labels), float64
        Probabilities, corrected for the fold's positive or class weights.
    fitted_score : ndarray of shape (n_parts, n_samples, n_labels), float64, or None
        Where the scores themselves were fitted to labels (blends): all rows by the fit of each part, which saw the
        other parts' labels alone.

    Raises
    ------
    RunError
        From `RunFolder.out_of_fold`, which reads them: if no fold is finished, or a file is missing or damaged.
    """

    ids: list[str]
    label_names: list[str]
    rows: np.ndarray
    fold: np.ndarray
    groups: np.ndarray
    over: Over
    part: np.ndarray
    y_true: np.ndarray
    logits: np.ndarray
    y_score: np.ndarray
    fitted_score: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def cross_fit(self, task: Task, at_least_one: bool = False) -> CrossFit:
        """Decide the rows of each part by thresholds tuned on the other parts' rows.

        Thresholds of a part are tuned on `fitted_score` where there are any, so that its labels enter nowhere.
        """
        if self.fitted_score is None:
            return task.cross_fit(self.y_true, self.y_score, self.part, at_least_one)
        thresholds, y_pred = {}, np.empty(self.y_true.shape, dtype=np.int8)
        for number, scores in zip(np.unique(self.part).tolist(), self.fitted_score, strict=True):
            inside = self.part == number
            thresholds[number] = task.tune(self.y_true[~inside], scores[~inside])
            y_pred[inside] = task.apply(self.y_score[inside], thresholds[number], at_least_one)
        return CrossFit(thresholds, y_pred)

    def decide(self, task: Task, decision: Decision) -> np.ndarray:
        """The decisions that the run's own score is of: each part's by the thresholds that were kept for it.

        Returns
        -------
        ndarray of shape (n_samples, n_labels), int8
        """
        y_pred = np.empty(self.y_true.shape, dtype=np.int8)
        for number, of_label in decision.fitted.items():
            inside = self.part == number
            limits = np.array([of_label[name] for name in self.label_names])
            y_pred[inside] = task.apply(self.y_score[inside], limits, decision.prediction.at_least_one)
        return y_pred

    def take(self, order: np.ndarray, labels: np.ndarray) -> OutOfFold:
        """The given rows and labels, by position, in that order; without `fitted_score`."""
        grid = np.ix_(order, labels)
        return replace(
            self,
            ids=[self.ids[i] for i in order],
            label_names=[self.label_names[j] for j in labels],
            rows=self.rows[order],
            fold=self.fold[order],
            groups=self.groups[order],
            part=self.part[order],
            y_true=self.y_true[grid],
            logits=self.logits[grid],
            y_score=self.y_score[grid],
            fitted_score=None,
        )
