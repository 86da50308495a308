"""Learner for transformers: one loaded base, fresh adapters and head for every fold."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from lora_cls.data import Dataset
from lora_cls.evaluation import macro_f1
from lora_cls.files import make_folder, write_array, write_csv
from lora_cls.modeling.classifier import SequenceClassifier
from lora_cls.modeling.merged_updates import MergedUpdates
from lora_cls.modeling.precision import faster_attention, measured_once
from lora_cls.modeling.resident import ResidentModels
from lora_cls.recipe import Recipe
from lora_cls.runs import FoldFolder
from lora_cls.runs.sums import sums
from lora_cls.text.tokens import Tokens, refuse_unknown_script, text_notes, unknown_note
from lora_cls.training.adaptation import adapt_base, adaptation_seconds
from lora_cls.training.batches import EvalBatches
from lora_cls.training.heads.base import FoldStart
from lora_cls.training.learner import FoldResult
from lora_cls.training.loop import make_accelerator, train_fold
from lora_cls.training.losses import LabelFacts, validation_loss
from lora_cls.training.objective import Objective
from lora_cls.training.processes import ALONE, Processes
from lora_cls.training.progress import Progress
from lora_cls.training.rows import TrainingRows
from lora_cls.training.selection import Score, hold_back
from lora_cls.training.session import Session
from lora_cls.training.teachers import Teachers

WORTH_KEEPING = 64  # texts to be answered: for fewer, the lower layers' part is not worth a file, nor merging adapters
MOST_TOKENS = 1024  # of a batch on a CPU: with more, what one layer says does not stay in the caches for the next one


class TransformerLearner:
    """Fine-tunes a recipe's backbone, fold by fold, and answers with what was saved; see `Session` for parameters."""

    def __init__(
        self,
        recipe: Recipe,
        label_names: Sequence[str],
        choices: Mapping[str, Any] | None = None,
        backbone: str | None = None,
        progress: Progress | None = None,
        processes: Processes = ALONE,
        resident: ResidentModels | None = None,
    ) -> None:
        self.session = Session(recipe, label_names, choices, backbone, progress, processes, resident)
        self.choices, self.seconds = self.session.choices, self.session.seconds
        self.backbone_path: str | None = self.session.source.path_or_id
        self.notes: list[str] = []
        self.predict_seconds = 0.0
        self._read: tuple[list[str], Tokens] | None = None
        self._merging: MergedUpdates | None = None

    @property
    def reused(self) -> dict[str, int]:
        """See `Learner.reused`."""
        return self.session.reused

    def prepare(
        self, train: Dataset, test: Dataset | None = None, teachers: Teachers | None = None
    ) -> TransformerTrainer:
        """See `Learner.prepare`: tokenises.

        Raises
        ------
        TrainingError
            If the run was started on another kind of device.
        """
        self.session.train_as_frozen()
        return TransformerTrainer(self.session, train, test, teachers)

    def predict(self, folder: FoldFolder, texts: Sequence[str]) -> np.ndarray:
        """See `Predictor.predict`."""
        session = self.session
        session.model()  # before the time is taken
        started = time.monotonic()
        model, tokens = session.load(folder).eval(), self._tokens(texts)
        if len(texts) >= WORTH_KEEPING and (cache := session.prefix_cache(tokens)) is not None:
            cache.fill(tokens, session.progress.say)  # shared by the folds' adapters
        chunked = len(tokens.ids) > len(texts)  # only then does the weight matter to the logits
        weight = folder.pos_weight(session.n_labels) if chunked else np.ones(session.n_labels)
        many = len(texts) >= WORTH_KEEPING  # few are answered to the last bit as the run did
        with self._merged(model) if many else nullcontext():
            found = session.answer(model, tokens, weight, self._batches if many else None)
        unread = sum(not parsed for *_, parsed in found.written)
        self.notes = [f"{unread} of {len(found.written)} answers could not be read as labels"] if unread else []
        if note := unknown_note(tokens, "given"):
            self.notes.append(note)
        self.predict_seconds = time.monotonic() - started
        return found.logits

    def _tokens(self, texts: Sequence[str]) -> Tokens:
        """Read once for all folds that are asked about the same texts."""
        if self._read is None or self._read[0] != list(texts):
            self._read = list(texts), self.session.encode(texts)
        return self._read[1]

    def _merged(self, model: SequenceClassifier) -> AbstractContextManager[None]:
        """A context in which many texts are answered with the adapters merged, where there is room for that."""
        if self._merging is None:
            self._merging = MergedUpdates(model.backbone)
        return self._merging.merged() if self._merging.fits else nullcontext()

    @cached_property
    def _batches(self) -> EvalBatches:
        """As the session's, but that they may be cut otherwise than when the run was made."""
        most = MOST_TOKENS if self.session.device.type == "cpu" else None
        return EvalBatches(
            self.session.recipe.train.per_device_eval_batch_size,
            self.session.progress.say,
            most_tokens=most,
            multiple=1,
        )


class TransformerTrainer:
    """Trains the folds of one table.

    Attributes
    ----------
    rows : the training rows, tokenised
    test_tokens : the test rows, or None without any
    taught_tokens : the texts without labels that are learnt from teachers, or None without any
    """

    def __init__(
        self, session: Session, train: Dataset, test: Dataset | None, teachers: Teachers | None = None
    ) -> None:
        self.session, self.train, self.test, self.teachers = session, train, test, teachers
        self.recipe, self.head = session.recipe, session.head
        started = time.monotonic()
        self.rows = TrainingRows.of(train, session.encode(train.texts))
        refuse_unknown_script(self.rows.tokens, session.source.name)
        self.test_tokens = session.encode(test.texts) if test else None
        self.taught_tokens = session.encode(teachers.texts) if teachers is not None and teachers.texts else None
        session.seconds["tokenize"] += time.monotonic() - started
        for name, tokens in (("training", self.rows.tokens), ("test", self.test_tokens)):
            for note in text_notes(tokens, self.recipe.data, name) if tokens is not None else []:
                session.progress.say(note)

    def adapt(self, extra_texts: Sequence[str]) -> None:
        """See `FoldTrainer.adapt`, and for what is raised `adapt_base`."""
        if self.recipe.adapt is not None:
            self.head.weight(self.rows)  # what the loss refuses is told before minutes of work
            adapt_base(self.session, self._texts(extra_texts))

    def adaptation_seconds(self, extra_texts: Sequence[str]) -> float | None:
        """See `lora_cls.training.adaptation.adaptation_seconds`."""
        return adaptation_seconds(self.session, self._texts(extra_texts))

    def _texts(self, extra_texts: Sequence[str]) -> list[str]:
        return [*self.train.texts, *(self.test.texts if self.test is not None else []), *extra_texts]

    def measure(self) -> None:
        """See `FoldTrainer.measure`: loads the model, measures attention, and checks the weights of the loss."""
        self.head.weight(self.rows)
        self.session.model(self._choose_attention)
        self.session.choose_prefix(self._tables())
        self.session.choices["tokens"] = self.rows.tokens.summary()
        self.session.check_start()
        if self.start is not None:
            self.session.choices |= self.start.choices
            self.session.progress.say(self.start.note)

    def _tables(self) -> list[Tokens]:
        tables = (self.rows.tokens, self.test_tokens, self.taught_tokens)
        return [tokens for tokens in tables if tokens is not None]

    @cached_property
    def start(self) -> FoldStart | None:
        """Where the heads start, read once, as it is the same in every fold."""
        session = self.session
        return self.head.read_base(
            partial(session.fresh_model, 0), self.rows, session.source, session.batches, session.progress.say
        )

    def fit_fold(
        self,
        fold: int,
        train_rows: np.ndarray,
        oof_rows: np.ndarray,
        folder: FoldFolder,
        n_epochs: int | None = None,
    ) -> FoldResult:
        """See `FoldTrainer.fit_fold`."""
        processes = self.session.processes
        if processes.main:
            make_folder(folder.path)
        select = "last" if fold < 0 else self.recipe.train.select  # of all rows nothing is held out to choose by
        seconds = {}
        answers = None
        if self.teachers is not None:
            asking = time.monotonic()
            with processes.main_first():
                answers = self.teachers.answers(fold, train_rows, folder, self.session.progress)
            torch.set_num_threads(self.session.choices["num_threads"])  # whoever answered set its own
            seconds["teachers"] = time.monotonic() - asking
        train_rows, selection_rows = self.divide(fold, train_rows, oof_rows)
        rows = self.lesson(train_rows, answers)
        self.session.shared_model(self._choose_attention)
        self._fill_prefix_cache()
        model, objective, weight, accelerator = self.begin_fold(fold, train_rows, rows)
        score = partial(self._score, model, selection_rows, weight, self.head.facts(self.rows.take(train_rows)))

        def keep_epoch(epoch: int) -> dict[str, str]:
            kept = folder.epoch(epoch)
            if processes.main:
                make_folder(kept.path)
            self.session.save(model, kept)
            oof_logits, test_logits = self._answer(model, oof_rows, weight, kept)
            if not processes.main:
                return {}
            write_array(kept.oof_logits, oof_logits)
            if test_logits is not None:
                write_array(kept.test_logits, test_logits)
            return sums(folder.path, [kept.path])

        state = train_fold(
            model, self.recipe, objective, fold=fold, accelerator=accelerator, state_file=folder.state,
            metrics_file=folder.metrics, progress=self.session.progress,
            score=score if select in ("inner", "scored_fold") else None,
            after_epoch=keep_epoch if select == "cross_fitted" else None, n_epochs=n_epochs, processes=processes,
        )  # fmt: skip
        started = time.monotonic()
        self.session.save(model, folder)
        saved = time.monotonic()
        oof_logits, test_logits = self._answer(model, oof_rows, weight, folder)
        seconds |= state.seconds | {"predict": time.monotonic() - saved}
        seconds["save"] += saved - started
        n_test = len(self.test_tokens.ids) if self.test_tokens is not None else 0
        info = {
            "epoch": state.best_epoch or state.epoch,
            "train_rows": rows.tokens.n_texts,
            "train_pieces": len(objective.lengths),  # more where long texts are read in chunks
            "processed": {"rows": state.rows, "tokens": state.tokens, "padded_tokens": state.padded_tokens},
            "predict_pieces": int(self.rows.tokens.n_pieces[oof_rows].sum()) + n_test,
            "seconds": {phase: round(value, 3) for phase, value in seconds.items()},
            "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        }
        if processes.size > 1:
            info["processes"] = processes.size
        return FoldResult(oof_logits, test_logits, weight, info)

    def divide(self, fold: int, train_rows: np.ndarray, oof_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows that a fold is trained on, and those that its epochs are compared on."""
        if fold < 0 or self.recipe.train.select == "last":
            return train_rows, oof_rows[:0]
        if self.recipe.train.select == "inner":
            return hold_back(self.recipe, self.train, train_rows, fold)
        return train_rows, oof_rows

    def lesson(self, train_rows: np.ndarray, answers: np.ndarray | None) -> TrainingRows:
        """What a fold is trained on: some of the training rows, and what teachers answered (`Teachers.answers`)."""
        rows = self.rows.take(train_rows)
        if self.teachers is None or answers is None:
            return rows
        tokens = self.taught_tokens or rows.tokens.take([])
        return self.teachers.lesson(rows, tokens, answers[train_rows], answers[len(self.train) :])

    def longest_lesson(self, train_rows: np.ndarray) -> TrainingRows:
        """As `lesson`, before any teacher was asked: all that they could add is there."""
        n_taught = self.taught_tokens.n_texts if self.taught_tokens is not None else 0
        sure = np.full((len(self.train) + n_taught, self.session.n_labels), -30.0, dtype=np.float32)
        sure[:, 0] = 30.0
        return self.lesson(train_rows, sure)

    def begin_fold(
        self, fold: int, train_rows: np.ndarray, rows: TrainingRows | None = None
    ) -> tuple[SequenceClassifier, Objective, np.ndarray, Any]:
        """A fold's fresh model, what it is trained on, its positive or class weights, and its `Accelerator`.

        `rows` are `train_rows` and what is learnt beside them, see `lesson`; None for these alone.
        """
        session, rows = self.session, self.rows.take(train_rows) if rows is None else rows
        weight = self.head.weight(rows.labelled)
        accelerator = make_accelerator(session.dtype, session.device)  # each fold's own: its scaler remembers
        start = self.start  # before the fold's own adapters are drawn: to read the base resets the model
        model = session.fresh_model(fold)
        if start is not None:
            start.begin(model, train_rows, weight)
        return model, self.head.objective(rows, weight), weight, accelerator

    def _fill_prefix_cache(self) -> None:
        for tokens in self._tables():
            if (cache := self.session.prefix_cache(tokens)) is not None:
                started = time.monotonic()
                cache.fill(tokens, self.session.progress.say, needed="prefix_cache" in self.session.choices)
                self.session.seconds["prefix"] += time.monotonic() - started

    def _score(self, model: SequenceClassifier, rows: np.ndarray, weight: np.ndarray, facts: LabelFacts) -> Score:
        """How the model is at an epoch's end, on the rows that epochs are compared on."""
        logits = self.session.answer(model, self.rows.tokens.take(rows), weight).logits
        truth, task, metric = self.rows.labels[rows], self.session.task, None
        decided = task.untuned(logits)
        if self.recipe.train.select_by == "metric":
            metric = task.metric.gain(truth, decided, task.link.probabilities(logits, weight))
        loss = validation_loss(logits, self.rows.targets[rows], weight, self.recipe.loss, self.recipe.task, facts)
        return Score(macro_f1(truth, decided), loss, metric)

    def _answer(
        self, model: SequenceClassifier, oof_rows: np.ndarray, weight: np.ndarray, folder: FoldFolder
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Logits of the rows held out, and of the test rows where there are any; `answers.csv` if any were written."""
        tables = [("train", self.rows.tokens.take(oof_rows), [self.train.ids[row] for row in oof_rows])]
        if self.test is not None and self.test_tokens is not None:
            tables.append(("test", self.test_tokens, self.test.ids))
        logits, written = [], []
        for table, tokens, ids in tables:
            found = self.session.answer(model, tokens, weight)
            logits.append(found.logits)
            written += [(ids[text], table, answer, int(parsed)) for text, answer, parsed in found.written]
        if written and self.session.processes.main:  # for those who want to see what went wrong
            write_csv(folder.answers, pd.DataFrame(written, columns=["id", "table", "answer", "parsed"]))
        return logits[0], logits[1] if len(logits) > 1 else None

    def _choose_attention(self, model: SequenceClassifier) -> str:
        """The faster of eager attention and PyTorch's fused one, timed on real rows; or what the recipe names."""
        session, current = self.session, str(model.base.config._attn_implementation)
        if session.backbone.attn_implementation != "auto" or current not in ("sdpa", "eager"):
            return current
        if session.processes.sharded:  # it lies on the CPU until it is spread, and no step of one process would tell
            return current
        if not model.base._supports_sdpa:  # Longformer, SqueezeBERT: they would go on with their own, and warn
            return current
        size, lengths = self.recipe.train.per_device_train_batch_size, self.rows.tokens.lengths
        typical = np.argsort(np.abs(lengths - np.median(lengths)), kind="stable")[:size]
        ids, mask = (torch.from_numpy(part) for part in self.rows.tokens.batch(typical, self.head.pad_id))
        key = f"attention {session.source.path_or_id} {self.recipe.quantization} {session.choices} batch {size}"
        best = measured_once(key, partial(faster_attention, model, ids, mask), ("sdpa", "eager"), session.say_once)
        model.base.set_attn_implementation(best)
        return best
