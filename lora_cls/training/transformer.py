"""Learner for transformers: one loaded base, fresh adapters and head for every fold."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lora_cls.data import Dataset
from lora_cls.errors import BackboneError, TrainingError
from lora_cls.evaluation import macro_f1, task_of
from lora_cls.files import write_array
from lora_cls.machine import cache_folder, physical_cores
from lora_cls.modeling.adapter import build_model, depth_readme, load_model_weights, reset_model, save_model
from lora_cls.modeling.classifier import HEAD, SequenceClassifier, attach_head
from lora_cls.modeling.label_tokens import label_directions, label_token_ids, output_rows
from lora_cls.modeling.loading import (
    base_fingerprint,
    check_positions,
    depth_options,
    load_base,
    load_config,
    load_tokenizer,
)
from lora_cls.modeling.precision import DTYPES, choose_dtype, default_device, measured_once
from lora_cls.modeling.prefix import Prefix
from lora_cls.modeling.prefix_cache import PrefixCache
from lora_cls.modeling.source import Source, find_source
from lora_cls.recipe import Recipe
from lora_cls.runs import FoldFolder
from lora_cls.text.prompts import label_words, recipe_frame
from lora_cls.text.token_cache import TokenCache
from lora_cls.text.tokens import Frame, Tokens, encode, long_text_note, pad_token_id
from lora_cls.training.batches import EvalBatches
from lora_cls.training.label_start import START_ROWS, LabelStart, read_pooled
from lora_cls.training.learner import FoldResult
from lora_cls.training.loop import epoch_seed, make_accelerator, predict_logits, train_fold
from lora_cls.training.losses import pos_weight, validation_loss
from lora_cls.training.objective import ClassificationObjective, Objective
from lora_cls.training.progress import Progress
from lora_cls.training.selection import Score, hold_back

WORTH_KEEPING = 64  # texts to be answered: for fewer, the lower layers' part is not worth a file
CHOSEN_WITH_THE_MODEL = ("attn_implementation", "base_sha256", "global_attention", "merged_dtype")


class TransformerLearner:
    """Fine-tunes a recipe's backbone, fold by fold.

    Parameters
    ----------
    recipe : with a `backbone`
    train, test : rows to train on and to answer for; None where only `predict` is wanted
    label_names : order of the head's outputs
    choices : measured choices of an earlier start of the same run (`run.json`); measured now where missing
    backbone : another place of the same base model, as on a machine without a network
    """

    def __init__(
        self,
        recipe: Recipe,
        label_names: Sequence[str],
        train: Dataset | None = None,
        test: Dataset | None = None,
        choices: dict[str, Any] | None = None,
        backbone: str | None = None,
        progress: Progress | None = None,
    ) -> None:
        assert recipe.backbone is not None
        self.recipe = recipe
        self.label_names, self.n_labels = list(label_names), len(label_names)
        self.task = task_of(recipe.task, recipe.thresholds)
        self.train, self.test = train, test
        self.progress = progress or Progress(0, show=False)
        self.device = default_device()
        given = choices or {}
        self.source: Source = find_source(backbone or recipe.backbone.name_or_path, recipe.backbone.revision)
        self.backbone_path: str | None = self.source.path_or_id
        self.notes: list[str] = []
        self.seconds = {"load": 0.0, "tokenize": 0.0, "prefix": 0.0}
        self.predict_seconds = 0.0
        self.batches = EvalBatches(recipe.train.per_device_eval_batch_size, self.progress.say)
        self.token_cache = TokenCache(cache_folder() / "tokens") if recipe.engine.token_cache else None
        threads = given.get("num_threads") if train else None  # as frozen; answering needs no equal last digits
        threads = threads or recipe.engine.num_threads or physical_cores()
        torch.set_num_threads(threads)
        if train and given.get("device", self.device.type) != self.device.type:
            raise TrainingError(
                f"The run was started on {given['device']} and this machine has {self.device.type}: its folds would "
                "not compare. Continue on such a device, or start a new run with another --out."
            )
        self.dtype = self._choose_dtype(given.get("dtype"))
        self.choices: dict[str, Any] = {
            "device": self.device.type,
            "num_threads": threads,
            "dtype": str(self.dtype).removeprefix("torch."),
        }
        self.choices |= {key: given[key] for key in CHOSEN_WITH_THE_MODEL if key in given}
        if depth := depth_options(recipe.backbone, self.source):
            self.choices["depth"] = depth  # for the snippet of the run's README
        # bytes of the base can only be compared in the precision that they were noted in
        self._same_precision = given.get("dtype", self.choices["dtype"]) == self.choices["dtype"]
        self.tokenizer = load_tokenizer(recipe.backbone, self.source)
        self.pad_id = pad_token_id(self.tokenizer)
        self.frame = self._frame()
        started = time.monotonic()
        self.train_tokens = self.encode(train.texts) if train else None
        self.test_tokens = self.encode(test.texts) if test else None
        self.seconds["tokenize"] += time.monotonic() - started
        for name, tokens in (("training", self.train_tokens), ("test", self.test_tokens)):
            if tokens is not None and (note := long_text_note(tokens, recipe.data, name)):
                self.progress.say(note)
        self._model: SequenceClassifier | None = None
        self._label_start: LabelStart | None = None
        self._trained = False
        self.prefix_cache: PrefixCache | None = None
        self._no_prefix = False

    def _frame(self) -> Frame:
        return recipe_frame(self.tokenizer, self.recipe.head, self.label_names)

    def encode(self, texts: Sequence[str]) -> Tokens:
        return encode(self.tokenizer, texts, self.recipe.data, self.frame, cache=self.token_cache)

    @property
    def reused(self) -> dict[str, int]:
        """See `Learner.reused`."""
        found = {
            "token_ids": self.token_cache.reused if self.token_cache else 0,
            "hidden_states": self.prefix_cache.used.reused if self.prefix_cache else 0,
        }
        return {name: number for name, number in found.items() if number}

    def prepare(self) -> None:
        """See `Learner.prepare`: loads the model, measures attention, and checks weights of the loss."""
        assert self.train is not None and self.train.labels is not None
        self._weight(np.arange(len(self.train)))
        self._built()
        assert self.train_tokens is not None
        self.choices["tokens"] = self.train_tokens.summary()
        if self.recipe.head.kind == "label_tokens":
            scores = self._labels_before_training().roc_auc(self.train.labels)
            self.choices["roc_auc_before_training"] = dict(zip(self.label_names, scores, strict=True))
            said = ", ".join(
                f"{name} {'-' if value is None else f'{value:.2f}'}"
                for name, value in self.choices["roc_auc_before_training"].items()
            )
            self.progress.say(
                f"ROC-AUC of the labels' own words before any training (scores, no probabilities): {said}"
            )

    def fit_fold(
        self,
        fold: int,
        train_rows: np.ndarray,
        oof_rows: np.ndarray,
        folder: FoldFolder,
        n_epochs: int | None = None,
    ) -> FoldResult:
        """See `Learner.fit_fold`."""
        assert self.train is not None and self.train.labels is not None and self.train_tokens is not None
        folder.path.mkdir(parents=True, exist_ok=True)
        labels, select = self.train.labels, self.recipe.train.select
        targets = self._targets()
        if fold < 0:
            select = "last"  # nothing is held out to choose by
        selection_rows = oof_rows
        if select == "inner":
            train_rows, selection_rows = hold_back(self.recipe, self.train, train_rows, fold)
        for tokens in (self.train_tokens, self.test_tokens):
            if tokens is not None and (cache := self.open_prefix_cache(tokens)) is not None:
                started = time.monotonic()
                cache.fill(tokens, self.progress.say)
                self.seconds["prefix"] += time.monotonic() - started
        model, objective, weight, accelerator = self.begin_fold(fold, train_rows)

        def score() -> Score:
            logits = self._logits(model, self.train_tokens.take(selection_rows), weight)  # type: ignore[union-attr]
            return Score(
                macro_f1(labels[selection_rows], self.task.untuned(logits)),
                validation_loss(logits, targets[selection_rows], weight, self.recipe.loss, self.recipe.task),
            )

        def keep_epoch(epoch: int) -> None:
            kept = folder.epoch(epoch)
            kept.path.mkdir(exist_ok=True)
            self._save(model, kept)
            oof_logits, test_logits = self._answer(model, oof_rows, weight, kept)
            write_array(kept.oof_logits, oof_logits)
            if test_logits is not None:
                write_array(kept.test_logits, test_logits)

        state = train_fold(
            model, self.recipe, objective, fold=fold, accelerator=accelerator, state_file=folder.state,
            metrics_file=folder.metrics, progress=self.progress,
            score=score if select in ("inner", "scored_fold") else None,
            after_epoch=keep_epoch if select == "cross_fitted" else None, n_epochs=n_epochs,
        )  # fmt: skip
        started = time.monotonic()
        self._save(model, folder)
        saved = time.monotonic()
        oof_logits, test_logits = self._answer(model, oof_rows, weight, folder)
        seconds = state.seconds | {"predict": time.monotonic() - saved}
        seconds["save"] += saved - started
        info = {
            "epoch": state.best_epoch or state.epoch,
            "train_rows": len(train_rows),
            "train_pieces": len(objective.lengths),  # more where long texts are read in chunks
            "processed": {"rows": state.rows, "tokens": state.tokens, "padded_tokens": state.padded_tokens},
            "predict_pieces": self._n_pieces(oof_rows),
            "seconds": {phase: round(value, 3) for phase, value in seconds.items()},
            "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        }
        return FoldResult(oof_logits, test_logits, weight, info)

    def begin_fold(self, fold: int, train_rows: np.ndarray) -> tuple[SequenceClassifier, Objective, np.ndarray, Any]:
        """A fold's fresh model, what it is trained on, its positive or class weights, and its `Accelerator`."""
        assert self.train is not None
        weight = self._weight(train_rows)
        accelerator = make_accelerator(self.dtype, self.device)  # each fold's own: its gradient scaler remembers
        # read before the fold's own adapters are drawn: it resets the model
        start = self._labels_before_training() if self.recipe.head.kind == "label_tokens" else None
        model = self._fresh_model(fold)
        if start is not None:
            start.begin(model, train_rows, self._targets(), weight, self.task.link, self.train.row_weight)
        return model, self._objective(train_rows, weight), weight, accelerator

    def predict(self, folder: FoldFolder, texts: Sequence[str]) -> np.ndarray:
        """See `Learner.predict`."""
        model = self._built()
        started = time.monotonic()
        load_model_weights(model, folder.adapter if self.recipe.lora else folder.model)
        self._trained = True  # the base is no longer the pretrained one
        tokens = self.encode(texts)
        if len(texts) >= WORTH_KEEPING and (cache := self.open_prefix_cache(tokens)) is not None:
            cache.fill(tokens, self.progress.say)  # shared by the folds' adapters
        chunked = len(tokens.ids) > len(texts)  # only then does the weight matter to the logits
        weight = folder.pos_weight(self.n_labels) if chunked else np.ones(self.n_labels)
        logits = self._logits(model, tokens, weight)
        self.predict_seconds = time.monotonic() - started
        return logits

    def _n_pieces(self, oof_rows: np.ndarray) -> int:
        """Pieces of text that a fold answers for."""
        assert self.train_tokens is not None
        n_test = len(self.test_tokens.ids) if self.test_tokens is not None else 0
        return int(self.train_tokens.n_pieces[oof_rows].sum()) + n_test

    def _weight(self, rows: np.ndarray) -> np.ndarray:
        """Positive or class weights by the given training rows, ndarray of shape (n_labels,)."""
        return pos_weight(self._targets()[rows], self.recipe.loss, self._row_weight(rows), self.recipe.task)

    def _targets(self) -> np.ndarray:
        """What the training rows teach: labels, or their shares; ndarray of shape (n_samples, n_labels)."""
        assert self.train is not None and self.train.labels is not None
        return self.train.labels if self.train.targets is None else self.train.targets

    def _row_weight(self, rows: np.ndarray) -> np.ndarray | None:
        assert self.train is not None
        return None if self.train.row_weight is None else self.train.row_weight[rows]

    def _objective(self, rows: np.ndarray, weight: np.ndarray) -> Objective:
        assert self.train_tokens is not None
        return ClassificationObjective(
            self.train_tokens.take(rows), self._targets()[rows], weight, self.recipe, self.pad_id,
            self._row_weight(rows),
        )  # fmt: skip

    def _answer(
        self, model: SequenceClassifier, oof_rows: np.ndarray, weight: np.ndarray, folder: FoldFolder
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Logits of the rows held out, and of the test rows where there are any. `folder` takes what else is told."""
        assert self.train_tokens is not None
        oof_logits = self._logits(model, self.train_tokens.take(oof_rows), weight)
        return oof_logits, self._logits(model, self.test_tokens, weight) if self.test_tokens is not None else None

    def _save(self, model: SequenceClassifier, folder: FoldFolder) -> None:
        readme = (
            depth_readme(self.recipe, self.choices["depth"]) if self.recipe.lora and "depth" in self.choices else None
        )
        save_model(model, folder.adapter if self.recipe.lora else folder.model, readme)

    def _logits(self, model: SequenceClassifier, tokens: Tokens, weight: np.ndarray) -> np.ndarray:
        """Logits of every text, ndarray of shape (n_texts, n_labels), float32."""
        logits = predict_logits(model, tokens, batches=self.batches, pad_id=self.pad_id)
        return self.task.link.combine_pieces(logits, tokens.text, weight, self.recipe.data.chunk_combine)

    def _choose_dtype(self, frozen: str | None) -> torch.dtype:
        assert self.recipe.backbone is not None
        if frozen == "float16" and self.device.type != "cuda":
            return torch.float32  # a model trained in fp16 on a GPU answers on a CPU
        if frozen is not None:
            return DTYPES[frozen]
        return choose_dtype(self.recipe, self.device, load_config(self.recipe.backbone, self.source).model_type)

    def _built(self) -> SequenceClassifier:
        """The model, loaded on first use: a resume with nothing left to train never loads it."""
        if self._model is None:
            started = time.monotonic()
            recipe = self.recipe
            assert recipe.backbone is not None
            # Full fine-tuning keeps fp32 weights and computes in self.dtype under autocast.
            dtype = self.dtype if recipe.lora else DTYPES[self.choices.get("merged_dtype", "float32")]
            attention = self.choices.get("attn_implementation") or recipe.backbone.attn_implementation
            base = self._load(dtype, attention)
            check_positions(base, recipe.data.max_length)
            self._check_base(base_fingerprint(base))
            # a frozen base is in self.dtype already, and adapters compute in that of what they read
            mixed = self.dtype if recipe.lora is None and self.dtype != torch.float32 else None
            self._model = self._build(base, mixed)
            if self._model.global_first:
                self.choices["global_attention"] = "first token"  # for the snippet of the run's README
            if "attn_implementation" not in self.choices:
                self.choices["attn_implementation"] = self._choose_attention(self._model)
            self.seconds["load"] += time.monotonic() - started
        return self._model

    def open_prefix_cache(self, tokens: Tokens) -> PrefixCache | None:
        """The cache of what the layers below the lowest adapter say of texts; None where there are no such layers.

        `tokens` are texts to try it out on. Nothing is computed or read yet: see `PrefixCache.fill`.
        """
        model, engine = self._built(), self.recipe.engine
        wanted = engine.prefix_cache and model.n_frozen_layers > 0 and hasattr(model.base, HEAD)
        if self.prefix_cache is not None or not wanted or self._no_prefix:
            return self.prefix_cache
        try:
            prefix = Prefix.find(model, tokens.ids[:2])
        except BackboneError as error:
            self._no_prefix = True
            self.progress.say(
                f"The {model.n_frozen_layers} layers below the lowest adapter are computed at every pass, as "
                f"{type(model.base).__name__} cannot do without them: {error}"
            )
            return None
        facts = {name: self.choices.get(name) for name in CHOSEN_WITH_THE_MODEL if name != "base_sha256"}
        facts["quantization"] = str(self.recipe.quantization)
        size = self.recipe.train.per_device_eval_batch_size
        self.prefix_cache = PrefixCache(prefix, size, engine.prefix_cache_gb * 2**30, facts)
        model.reuse = self.prefix_cache.stand_in
        return self.prefix_cache

    def _load(self, dtype: torch.dtype, attention: str) -> torch.nn.Module:
        assert self.recipe.backbone is not None
        return load_base(self.recipe.backbone, self.recipe.quantization, dtype, self.device, self.source, attention)

    def _build(self, base: torch.nn.Module, mixed: torch.dtype | None) -> SequenceClassifier:
        if "merged_dtype" in self.choices:  # an export: nothing to train, and weights stay in the precision they have
            attach_head(base, self.n_labels)
            return SequenceClassifier(base, self.recipe.head.pooling, dtype=mixed)
        return build_model(base, self.recipe, self.n_labels, mixed)

    def _check_base(self, found: str) -> None:
        """Refuse a base that has the right shape and other weights."""
        if self._same_precision and self.choices.setdefault("base_sha256", found) != found:
            raise BackboneError(
                f"{self.source.path_or_id} is not the base that this run was trained on: its weights differ. "
                "Give the same model in the same revision and quantization."
            )

    def _fresh_model(self, fold: int) -> SequenceClassifier:
        """A model as it is before training, the same whatever was trained before it."""
        if self.recipe.lora is None and self._trained:
            self._model = None  # full fine-tuning changed the base: load it again
        model = self._built()
        self._trained = True
        reset_model(model, self.recipe, epoch_seed(self.recipe.train.seed, fold, 0))
        return model

    def _labels_before_training(self) -> LabelStart:
        """What the untrained base says of a sample of the training rows; read once, as it is the same in every fold."""
        if self._label_start is None:
            assert self.train is not None and self.train_tokens is not None
            model = self._fresh_model(0)
            ids = label_token_ids(self.tokenizer, label_words(self.recipe.head, self.label_names))
            directions = label_directions(output_rows(model.base, self.source, ids))
            rng = np.random.default_rng(self.recipe.train.seed)
            rows = np.sort(rng.permutation(len(self.train))[:START_ROWS])
            self.progress.say(f"Reading {len(rows)} training rows for the labels' starting scores ...")
            pooled = read_pooled(model, self.train_tokens.take(rows), batches=self.batches, pad_id=self.pad_id)
            self._label_start = LabelStart(directions, pooled, rows)
        return self._label_start

    def _choose_attention(self, model: SequenceClassifier) -> str:
        """The faster of eager attention and PyTorch's fused one, timed on real rows; or what the recipe names."""
        assert self.recipe.backbone is not None
        current = str(model.base.config._attn_implementation)
        if self.recipe.backbone.attn_implementation != "auto" or current not in ("sdpa", "eager") or not self.train:
            return current
        if not model.base._supports_sdpa:  # Longformer, SqueezeBERT: they would go on with their own, and warn
            return current
        size = self.recipe.train.per_device_train_batch_size
        key = f"attention {self.source.path_or_id} {self.recipe.quantization} {self.choices} batch {size}"
        best = measured_once(key, lambda: self._faster_attention(model, size))
        model.base.set_attn_implementation(best)
        return best

    def _faster_attention(self, model: SequenceClassifier, size: int) -> str:
        assert self.train_tokens is not None
        lengths = self.train_tokens.lengths
        typical = np.argsort(np.abs(lengths - np.median(lengths)), kind="stable")[:size]
        ids, mask = (torch.from_numpy(a) for a in self.train_tokens.batch(typical, self.pad_id))
        times: dict[str, list[float]] = {"sdpa": [], "eager": []}
        model.train()
        for _ in range(5):
            for name in list(times):
                try:
                    model.base.set_attn_implementation(name)
                    started = time.perf_counter()
                    logits = model(ids, mask)
                    logits.square().sum().backward()
                    if self.device.type == "cuda":
                        torch.cuda.synchronize()
                    times[name].append(time.perf_counter() - started)
                except (ValueError, ImportError, torch.OutOfMemoryError):
                    del times[name]
        model.zero_grad(set_to_none=True)
        return min(times, key=lambda name: min(times[name])) if times else "eager"
