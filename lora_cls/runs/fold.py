"""The folder of one fold, or of the model trained on all rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lora_cls.errors import RunError
from lora_cls.runs.io import integers, read_csv
from lora_cls.runs.records import FoldInfo


class FoldFolder:
    """Where the files of a fold lie, and its `fold.json`.

    Attributes
    ----------
    adapter : a PEFT adapter, head included
    model : in its place: a fully fine-tuned model, or the classical baseline's vocabulary and weights
    state : training as far as it is; removed when the fold is finished
    metrics : a line of JSON per epoch
    oof_logits, test_logits : arrays of shape (n_rows, n_labels), float32
    epoch_logits : out-of-fold logits of every epoch, where `select: cross_fitted` chose among them
    answers : what a model that writes its labels wrote: columns id, table (train or test), answer, parsed (0 or 1)
    info_file : `fold.json`
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.adapter, self.model = path / "adapter", path / "model"
        self.state, self.metrics = path / "state.safetensors", path / "metrics.jsonl"
        self.oof_logits, self.test_logits = path / "oof_logits.npy", path / "test_logits.npy"
        self.epoch_logits, self.answers = path / "epoch_logits.npy", path / "answers.csv"
        self.info_file = path / "fold.json"
        self._info: FoldInfo | None = None

    def __repr__(self) -> str:
        return f"FoldFolder({str(self.path)!r})"

    @property
    def finished(self) -> bool:
        return self.info_file.is_file()

    @property
    def info(self) -> FoldInfo:
        """`fold.json`, read once. Raises RunError if it is missing or damaged."""
        if self._info is None:
            self._info = FoldInfo.read(self.info_file)
        return self._info

    def write_info(self, info: FoldInfo) -> None:
        """Write `fold.json`, which makes this a finished fold; with the counts of written answers, if there are any."""
        counts = self._answer_counts()
        self._info = info.model_copy(update=counts) if counts else info
        self._info.write(self.info_file)

    def _answer_counts(self) -> dict[str, int]:
        """How many answers were written, and how many of them could not be read."""
        if not self.answers.is_file():
            return {}
        parsed = integers(self.answers, read_csv(self.answers), ["parsed"])["parsed"]
        return {"answers": len(parsed), "unparsable_answers": int((parsed == 0).sum())}

    def pos_weight(self, n_labels: int) -> np.ndarray:
        """Positive or class weights, ndarray of shape (n_labels,). Raises RunError if `fold.json` lacks them."""
        weight = np.asarray(self.info.pos_weight, dtype=np.float64)
        if weight.shape != (n_labels,):
            raise RunError(f"{self.info_file} is damaged. Remove it and run again with --resume.")
        return weight

    def epoch(self, epoch: int) -> FoldFolder:
        """Where `select: cross_fitted` keeps an epoch until every fold is done."""
        return FoldFolder(self.path / f"epoch-{epoch:02d}")
