"""What training and answering share, whatever the rows: a base model on this machine, its head and its caches."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lora_cls.errors import BackboneError, RunError, TrainingError
from lora_cls.evaluation import task_of
from lora_cls.machine import cache_folder, physical_cores
from lora_cls.modeling.adapted import ADAPTED, adapted_is_gone, is_adapted, run_source
from lora_cls.modeling.adapter import base_readme, load_model_weights, reset_model, save_model
from lora_cls.modeling.classifier import SequenceClassifier
from lora_cls.modeling.loading import (
    base_fingerprint,
    depth_options,
    load_base,
    load_config,
    load_tokenizer,
    vocabulary_size,
)
from lora_cls.modeling.precision import (
    DTYPES,
    choose_dtype,
    compute_deterministically,
    default_device,
    no_flash_attention,
)
from lora_cls.modeling.prefix import Prefix
from lora_cls.modeling.prefix_cache import PrefixCache
from lora_cls.modeling.probe import probe_base
from lora_cls.modeling.resident import ResidentModels
from lora_cls.modeling.sharding import device_mesh, shard_base
from lora_cls.modeling.short_steps import shorten_steps
from lora_cls.modeling.source import Source
from lora_cls.modeling.start import begin_with
from lora_cls.recipe import Recipe
from lora_cls.runs import FoldFolder, RunFolder
from lora_cls.runs.start import Start, noted_start
from lora_cls.text.token_cache import TokenCache
from lora_cls.text.tokens import Tokens, refuse_unknown_ids
from lora_cls.training.batches import EvalBatches, release_memory
from lora_cls.training.heads import head_type
from lora_cls.training.loop import epoch_seed
from lora_cls.training.processes import ALONE, Processes
from lora_cls.training.progress import Progress
from lora_cls.training.rows import Answered

SHORT_STEPS = 2
"""Which form of them a new run takes: what is kept or measured with another may have other last digits."""
CHOSEN_WITH_THE_MODEL = ("attn_implementation", "base_sha256", "global_attention", "merged_dtype")


class Session:
    """A recipe's base model on this machine.

    Parameters
    ----------
    recipe : with a `backbone`
    label_names : order of the head's outputs
    choices : measured choices of an earlier start of the same run (`run.json`); measured now where missing
    backbone : another place of the same base model, as on a machine without a network
    processes : those that train and answer together
    resident : keeps models in memory, of this run and of others, and nothing of the texts on disk; for answering only

    Attributes
    ----------
    choices : what was measured so far; complete once the model is loaded
    seconds : see `Learner.seconds`
    """

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
        if resident is not None:
            off = {"token_cache": False, "prefix_cache": False}
            recipe = recipe.model_copy(update={"engine": recipe.engine.model_copy(update=off)})
        assert recipe.backbone is not None
        self.recipe, self.backbone, self.resident = recipe, recipe.backbone, resident
        self.label_names, self.n_labels = list(label_names), len(label_names)
        self.task = task_of(recipe.task, recipe.thresholds, recipe.metric, recipe.metric_beta)
        self.progress = progress or Progress(0, show=False)
        self.processes = processes
        self.device = default_device()
        self._said: set[str] = set()
        self._given = given = choices or {}
        self.source = run_source(recipe.backbone, given, backbone)
        self.seconds = {"load": 0.0, "tokenize": 0.0, "prefix": 0.0}
        self.batches = EvalBatches(
            recipe.train.per_device_eval_batch_size, self.progress.say, halves=not processes.sharded
        )
        tokens = TokenCache(cache_folder() / "tokens", said=self.say_once)
        self.token_cache = tokens if recipe.engine.token_cache else None
        threads = recipe.engine.num_threads or max(1, physical_cores() // processes.on_this_machine)
        torch.set_num_threads(threads)
        self._config = load_config(self.backbone, self.source)
        self.dtype = self._choose_dtype(given.get("dtype"))
        self._no_flash = self._flash_attention()
        self.choices: dict[str, Any] = {
            "device": self.device.type,
            "num_threads": threads,
            "dtype": str(self.dtype).removeprefix("torch."),
        }
        if processes.size > 1:
            self.choices |= {"processes": processes.size, "sharded": processes.sharded}
        new = "device" not in given and "dtype" not in given  # else a run that was started without keeps to it
        wanted = new and recipe.engine.short_steps and self.device.type == "cpu"
        if form := given.get("short_steps", SHORT_STEPS if wanted else None):
            self.choices["short_steps"] = form
        self.choices |= {key: given[key] for key in (*CHOSEN_WITH_THE_MODEL, ADAPTED) if key in given}
        if depth := depth_options(recipe.backbone, self.source):
            self.choices["depth"] = depth  # for the snippet of the run's README
        self.tokenizer = load_tokenizer(recipe.backbone, self.source)
        if "start_from" in given:
            self.choices["start_from"] = given["start_from"]
        self.head = head_type(recipe.head.kind)(recipe, label_names, self.tokenizer, given)
        self.choices |= self.head.choices
        self._model: SequenceClassifier | None = None
        self.start_share: float | None = None  # of what folds begin with, the share that fits into the adapters
        self._pristine = True  # nothing was trained or read into the model yet
        self._prefix_cache: PrefixCache | None = None
        self._no_prefix = processes.sharded  # its layers are not at hand one by one
        self._is_sharded = False

    def say_once(self, note: str) -> None:
        """A note on a cache that several parts would say."""
        if note not in self._said:
            self._said.add(note)
            self.progress.say(note)

    def _choose_dtype(self, frozen: str | None) -> torch.dtype:
        if frozen == "float16" and self.device.type != "cuda":
            return torch.float32  # a model trained in fp16 on a GPU answers on a CPU
        if frozen is not None:
            return DTYPES[frozen]
        return choose_dtype(self.recipe, self.device, self._config.model_type, self.say_once)

    def _flash_attention(self) -> str | None:
        """Why a finished run's models must do without their flash attention here; None where there is nothing to miss.

        Raises
        ------
        BackboneError
            If a new run asks for it in vain.
        """
        if self.backbone.attn_implementation != "flash_attention_2":
            return None
        reason = no_flash_attention(self.device, self.dtype)
        if reason is not None and "attn_implementation" not in self._given:
            raise BackboneError(
                f"backbone.attn_implementation: flash_attention_2 cannot be taken here: {reason}. Set it to auto."
            )
        return reason

    def stand_on(self, source: Source, choices: Mapping[str, Any]) -> None:
        """Take another base of the same kind, before any is loaded; `choices` say what it is."""
        assert self._model is None
        self.source = source
        self.choices |= choices

    def train_as_frozen(self) -> None:
        """Compute to the last digit as the start of the run did; answering alone needs no such thing.

        Raises
        ------
        TrainingError
            If the run was started on another kind of device, or with attention that this machine does not have.
        """
        if self._given.get("device", self.device.type) != self.device.type:
            raise TrainingError(
                f"The run was started on {self._given['device']} and this machine has {self.device.type}: its folds "
                "would not compare. Continue on such a device, or start a new run with another --out."
            )
        if self._no_flash is not None:
            raise TrainingError(
                f"The run was started with flash attention, which cannot be taken here: {self._no_flash}. Continue on "
                "such a machine, or start a new run with another --out."
            )
        frozen = ["prefix_cache", "num_threads"]
        before, now = (choices.get("processes", 1) for choices in (self._given, self.choices))
        if "num_threads" in self._given and before != now:
            frozen.remove("num_threads")  # the cores are divided otherwise, and the last digits are others as it is
            self.progress.say(
                f"The run was started by {before} process{'es' * (before > 1)}, and goes on with {now}: the steps are "
                "the same, but for their last digits and for what dropout draws."
            )
        self.choices |= {key: self._given[key] for key in frozen if key in self._given}
        torch.set_num_threads(self.choices["num_threads"])
        if self.device.type == "cuda":
            self.choices["deterministic"] = self._given.get("deterministic", self.recipe.engine.deterministic)
            if self.choices["deterministic"]:
                compute_deterministically()
            if self.processes.size == 1 and (n_gpus := torch.cuda.device_count()) > 1:
                self.say_once(
                    f"{n_gpus} GPUs are visible, and one process trains on the first of them alone: --workers auto "
                    "trains a fold on each."
                )

    @property
    def reused(self) -> dict[str, int]:
        """See `Learner.reused`."""
        counts = {
            "token_ids": self.token_cache.reused if self.token_cache else 0,
            "hidden_states": self._prefix_cache.used.reused if self._prefix_cache else 0,
        }
        return {name: number for name, number in counts.items() if number}

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Texts as the head has them read.

        Raises
        ------
        BackboneError
            If one is read as a token that the model has no embedding for.
        """
        tokens = self.head.encode(texts, self.token_cache)
        refuse_unknown_ids(tokens, self.tokenizer, self.source.name, self.n_embeddings)
        return tokens

    @property
    def n_embeddings(self) -> int | None:
        """See `vocabulary_size`."""
        return vocabulary_size(self._config)

    # The model

    def model(self, choose_attention: Callable[[SequenceClassifier], str] | None = None) -> SequenceClassifier:
        """The model, loaded on first use: a resume with nothing left to train never loads it.

        Parameters
        ----------
        choose_attention : names the kind of attention where none was chosen yet; that of the model where None
        """
        if self._model is None:
            started = time.monotonic()
            self._model = model = self._load()
            if model.global_first:
                self.choices["global_attention"] = "first token"  # for the snippet of the run's README
            if "attn_implementation" not in self.choices:
                chosen = choose_attention(model) if choose_attention else model.base.config._attn_implementation
                self.choices["attn_implementation"] = str(chosen)
            self.seconds["load"] += time.monotonic() - started
        return self._model

    def shared_model(self, choose_attention: Callable[[SequenceClassifier], str]) -> SequenceClassifier:
        """As `model`, for all processes at the same time: a base that is to be spread over them is.

        One process after the other loads it, so that the memory of the CPU need not hold it twice.
        """
        if self.processes.sharded and not self._is_sharded:
            mesh = device_mesh(self.device)
            with self.processes.in_turn():
                shard_base(self.model(choose_attention), mesh)
            self._is_sharded = True
        return self.model(choose_attention)

    def _load(self) -> SequenceClassifier:
        recipe, merged = self.recipe, self.choices.get("merged_dtype")
        # Full fine-tuning keeps fp32 weights and computes in self.dtype under autocast.
        dtype = self.dtype if recipe.lora else DTYPES[merged or "float32"]
        attention = self.choices.get("attn_implementation") or self.backbone.attn_implementation
        sharded = self.processes.sharded
        if self._no_flash is not None:
            attention = "sdpa"  # the same numbers but for their last digits
        if self.resident is not None and recipe.lora is not None and getattr(recipe.lora, "bias", "none") == "none":
            base = self._resident_base(dtype, attention)
        else:
            base = load_base(
                self.backbone, recipe.quantization, dtype, torch.device("cpu") if sharded else self.device, self.source,
                attention, with_output=self.head.with_output_layer, sharded=sharded,
            )  # fmt: skip
        # a frozen base is in self.dtype already, and adapters compute in that of what they read
        mixed = self.dtype if recipe.lora is None and self.dtype != torch.float32 else None
        on_gpus_only = sharded and attention not in ("auto", "sdpa", "eager")  # flash attention: none of it on the CPU
        if not self._check_base(base_fingerprint(base)) and not on_gpus_only:
            note = probe_base(base, self.source, recipe.data.max_length, self.head.pad_id, mixed)
            if note is not None:
                self.progress.say(note)
        # an export has nothing to train, and its weights stay in the precision they have
        model = self.head.build(base, recipe, self.n_labels, mixed, trained=merged is None)
        model = self.head.place(model, self.source)
        if self.choices.get("short_steps") and self.device.type == "cpu" and not sharded:
            shorten_steps(model)
        return model

    def _resident_base(self, dtype: torch.dtype, attention: str) -> nn.Module:
        """The base around weights that other runs answer with, too: none of them is trained."""
        assert self.resident is not None
        written = self.head.with_output_layer
        # what is measured anew for every run, or says nothing of the weights
        other = {"attn_implementation", "dtype", "name_or_path", "revision", "start_from", "trust_remote_code"}
        kind = (self.backbone.model_dump_json(exclude=other), str(self.recipe.quantization), dtype, written)
        fixed = attention if self.backbone.bidirectional or attention not in ("auto", "sdpa", "eager") else None
        base: Any = self.resident.base(
            (self.source.path_or_id, self.source.revision, *kind, self.device, fixed),
            lambda: load_base(
                self.backbone, self.recipe.quantization, dtype, self.device, self.source, attention, with_output=written
            ),
        )
        if fixed is None and attention not in ("auto", base.config._attn_implementation):
            base.set_attn_implementation(attention)
        return base

    def _check_base(self, found: str) -> bool:
        """Refuse a base that has the right shape and other weights; whether it is known to be one that was loaded."""
        noted = self.choices.get(ADAPTED)
        if noted is not None and not is_adapted(self.source, noted):
            if self.recipe.lora is None and noted["base_sha256"] == found:
                return True  # every weight is then read from the fold's own files
            raise adapted_is_gone(noted)
        # bytes of the base can only be compared in the precision that they were noted in
        same_precision = self._given.get("dtype", self.choices["dtype"]) == self.choices["dtype"]
        known = same_precision and "base_sha256" in self.choices
        if same_precision and self.choices.setdefault("base_sha256", found) != found:
            raise BackboneError(
                f"{self.source.path_or_id} is not the base that this run was trained on: its weights differ. "
                "Give the same model in the same revision and quantization; predict and Classifier.load take its place "
                "as --backbone."
            )
        return known

    def fresh_model(self, fold: int) -> SequenceClassifier:
        """The model as it is before training, the same whatever was trained before it."""
        if self.recipe.lora is None and not self._pristine:
            self._model = None  # full fine-tuning changed the base: load it again
            release_memory()  # a gradient scaler's optimizer holds itself, and so the weights, until it is collected
        model = self.model()
        self._pristine = False
        reset_model(model, self.recipe, epoch_seed(self.recipe.train.seed, fold, 0))
        if self.start is not None:
            self.start_share = begin_with(model, self.recipe, self.start.run.recipe, self._start_weights(fold))
        return model

    @cached_property
    def start(self) -> Start | None:
        """The models that folds begin with (`backbone.start_from`); only training asks."""
        return noted_start(self.recipe, self.choices)

    def _start_weights(self, fold: int) -> list[Path]:
        assert self.start is not None
        return [model.weights(self.start.place(model)) for model in self.start.of_fold(fold)]

    def check_start(self) -> None:
        """Begin as a fold would, so that weights which do not fit are refused before any training.

        Raises
        ------
        RunError
            If they belong to another base, or have other modules or shapes.
        """
        if self.start is None:
            return
        theirs = self.start.run
        noted = theirs.info.choices.get("base_sha256")  # none of merged weights, which replace all of the base's
        if noted is not None and noted != self._fingerprint_as(theirs):
            raise RunError(
                f"backbone.start_from: {theirs.path} was trained on another base than {self.source.name}: its weights "
                "differ. Give backbone.name_or_path and revision as that run has them."
            )
        self.fresh_model(-1)
        if self.start_share is not None and self.start_share < 1 and self.recipe.lora is not None:
            self.progress.say(
                f"lora.r {self.recipe.lora.r} keeps {self.start_share:.1%} of the squared norm of what training begins "
                "with; a higher rank keeps more."
            )

    def _fingerprint_as(self, theirs: RunFolder) -> str:
        """Of this recipe's base, in the precision that another run's was noted in."""
        dtype = theirs.info.choices["dtype"]
        self.model()
        if self.recipe.lora is None or dtype == self.choices["dtype"]:
            return str(self.choices["base_sha256"])
        base = load_base(self.backbone, self.recipe.quantization, DTYPES[dtype], self.device, self.source)
        return base_fingerprint(base)

    def load(self, folder: FoldFolder) -> SequenceClassifier:
        """The model with the weights saved in `folder`."""
        model = self.model()
        place = folder.weights(folder.adapter if self.recipe.lora else folder.model)
        if self.resident is None:
            load_model_weights(model, place)
        else:
            self.resident.put(model, place, lambda: load_model_weights(model, place))
        self._pristine = False
        return model

    def save(self, model: SequenceClassifier, folder: FoldFolder) -> None:
        """Write what was trained; of several processes the first one does."""
        if not self.processes.main:
            return
        if self.recipe.lora is None:
            save_model(model, folder.model)
        else:
            save_model(model, folder.adapter, base_readme(self.recipe, self.choices.get("depth", {})))

    # Answers

    def answer(
        self, model: SequenceClassifier, tokens: Tokens, weight: np.ndarray, batches: EvalBatches | None = None
    ) -> Answered:
        """What a model says of texts; of several processes each asks it about a share of their pieces.

        Parameters
        ----------
        weight : ndarray of shape (n_labels,), the model's positive or class weights
        batches : in place of the session's own
        """
        batches = batches or self.batches
        if self.processes.size > 1:
            pieces = self._shared_answer(model, tokens, batches)
        else:
            pieces = self.head.answer(model, tokens, batches)
        combine = self.recipe.data.chunk_combine
        return Answered(self.task.link.combine_pieces(pieces.logits, tokens.text, weight, combine), pieces.written)

    def _shared_answer(self, model: SequenceClassifier, tokens: Tokens, batches: EvalBatches) -> Answered:
        def answer(pieces: np.ndarray) -> tuple[np.ndarray, list[tuple[str, bool]]]:
            found = self.head.answer(model, tokens.pieces(pieces), batches)
            return found.logits, [(answer, parsed) for _, answer, parsed in found.written]

        logits, written = self.processes.shared_out(tokens.lengths, answer)
        return Answered(logits, [(int(text), *said) for text, said in zip(tokens.text, written, strict=False)])

    def choose_prefix(self, tables: Sequence[Tokens]) -> None:
        """Note whether the lower layers are computed once or at every pass: a run keeps to it, to its last digits."""
        if self.model().n_frozen_layers and self.head.reuses_prefix and "prefix_cache" not in self.choices:
            cache = self.prefix_cache(tables[0])
            self.choices["prefix_cache"] = cache is not None and cache.has_room(tables, self.progress.say)

    def prefix_cache(self, tokens: Tokens) -> PrefixCache | None:
        """The cache of what the layers below the lowest adapter say of texts; None where there are no such layers.

        `tokens` are texts to try it out on. Nothing is computed or read yet: see `PrefixCache.fill`.
        """
        model, engine = self.model(), self.recipe.engine
        asked = self.choices.get("prefix_cache", engine.prefix_cache)
        wanted = asked and model.n_frozen_layers > 0 and self.head.reuses_prefix
        if not wanted or self._no_prefix:
            return None
        if self._prefix_cache is not None:
            return self._prefix_cache
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
        if "short_steps" in self.choices:
            facts["short_steps"] = self.choices["short_steps"]
        size = self.recipe.train.per_device_eval_batch_size
        self._prefix_cache = PrefixCache(prefix, size, engine.prefix_cache_gb * 2**30, facts)
        model.reuse = self._prefix_cache.stand_in
        return self._prefix_cache
