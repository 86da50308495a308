"""Where time and memory of a run went: over all its folds, its processes, and its starts."""

from __future__ import annotations

import time
from typing import Any

from lora_cls.runs import RunFolder
from lora_cls.training.learner import Learner


class Costs:
    """What this start of a run spends beside its folds, on top of what earlier starts spent.

    Parameters
    ----------
    started : by `time.monotonic`; all from there to now is loading, or tokenising
    """

    def __init__(self, run: RunFolder, learner: Learner, started: float) -> None:
        self._run, self.tune = run, 0.0
        self._before, self._reused = run.info.seconds, run.info.reused
        self._start = time.monotonic() - started - sum(learner.seconds.values())
        self._learner: Learner | None = learner
        self._spent: dict[str, tuple[dict[str, float], dict[str, int]]] = {}

    def hand_over(self) -> None:
        """Let the learner go: from now on other processes train, see `add`."""
        assert self._learner is not None
        self._spent["here"] = dict(self._learner.seconds), dict(self._learner.reused)
        self._learner = None

    def add(self, process: str, seconds: dict[str, float], reused: dict[str, int]) -> None:
        """What the learner of another process has spent so far."""
        self._spent[process] = seconds, reused

    def _by_learners(self) -> tuple[dict[str, float], dict[str, int]]:
        """What all learners of this start spent, and what they found in caches; of several their sum."""
        spent = [*self._spent.values()]
        if self._learner is not None:
            spent.append((self._learner.seconds, self._learner.reused))
        seconds: dict[str, float] = {}
        reused: dict[str, int] = {}
        for one, found in spent:
            seconds |= {phase: seconds.get(phase, 0.0) + value for phase, value in one.items()}
            reused |= {name: reused.get(name, 0) + value for name, value in found.items()}
        return seconds, reused

    def _beside_folds(self) -> dict[str, float]:
        own = self._by_learners()[0]
        own["load"] = own.get("load", 0.0) + self._start
        own["tune"] = self.tune
        return {phase: self._before.get(phase, 0.0) + value for phase, value in own.items()}

    def note(self, **more: Any) -> None:
        """Write into `run.json` what was spent so far, whichever start trained the finished folds; and `more`."""
        run = self._run
        folds = [run.fold(number).info for number in run.finished_folds]
        of_folds = {phase: sum(fold.seconds.get(phase, 0.0) for fold in folds) for f in folds for phase in f.seconds}
        seconds = {phase: round(value, 3) for phase, value in (self._beside_folds() | of_folds).items()}
        values: dict[str, Any] = {"seconds": seconds, "reused": self._reused | self._by_learners()[1]}
        if folds:
            values["peak_memory_bytes"] = max(fold.peak_memory_bytes or 0 for fold in folds) or None
            rows = sum(fold.train_rows or 0 for fold in folds)
            pieces = sum(fold.train_pieces or fold.train_rows or 0 for fold in folds)
            if pieces > rows:
                values["pieces_per_row"] = round(pieces / rows, 3)
            predicted = sum(fold.predict_pieces or 0 for fold in folds)
            values["predict_rows_per_second"] = round(predicted / max(of_folds["predict"], 1e-9), 2)
        processed = [fold.processed for fold in folds if fold.processed]
        if processed:
            tokens = sum(part.tokens for part in processed)
            values |= {
                "train_rows_per_second": round(sum(p.rows for p in processed) / max(of_folds["train"], 1e-9), 2),
                "train_tokens_per_second": round(tokens / max(of_folds["train"], 1e-9), 1),
                "padding_share": round(1 - tokens / max(sum(p.padded_tokens for p in processed), 1), 4),
            }
        run.update_info(**values | more)
