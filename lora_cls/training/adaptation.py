"""The base trained on the texts of a run, never on their labels, once for all folds.

Gururangan et al. 2020, "Don't stop pretraining: adapt language models to domains and tasks" (task-adaptive
pretraining). Encoders fill in masked tokens (Devlin et al. 2019, "BERT"), decoders foretell the next one. The labels
play no part, so that no fold learns anything of the labels that it is scored on.

The result is a folder of the cache, named by a hash of all that its bytes follow from: the base's weights, the texts'
token ids, the settings, precision, threads, device and versions. Whoever asks for the same finds it; a second process
waits for the first one.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import nn

from lora_cls.errors import RunError, TrainingError, WriteError, memory_full
from lora_cls.files import whole_folder
from lora_cls.machine import cache_note
from lora_cls.modeling.adapted import ABOUT, ADAPTED, adapted_place, adapted_source, is_adapted, read_adapted
from lora_cls.modeling.adapter import adapt
from lora_cls.modeling.language_model import Aim, LanguageModel, language_aim, load_language_model
from lora_cls.modeling.loading import base_fingerprint, load_base, load_config, vocabulary_size
from lora_cls.modeling.precision import is_out_of_memory
from lora_cls.modeling.probe import probe_base
from lora_cls.modeling.quiet import quiet_transformers
from lora_cls.recipe import Adapt, load_recipe
from lora_cls.runs.lock import locked
from lora_cls.runs.records import Adaptation
from lora_cls.runs.sums import sums
from lora_cls.text.tokens import Tokens, encode, pad_token_id, refuse_unknown_ids, shuffled_batches, special_frame
from lora_cls.training.batches import first_line
from lora_cls.training.checkpoint import FoldState, load_state, restore, save_state, snapshot, trainable
from lora_cls.training.loop import CHECK_EVERY, epoch_seed, make_accelerator, schedule, update
from lora_cls.training.session import Session

FORMAT = 1  # of the way that adapted bases are made: another number where their bytes would be others
HELD_OUT, MOST_HELD_OUT = 0.05, 1000  # texts that are not trained on, and on which the loss is noted
# Of an output layer that starts at random: its learning rate; steps that it is trained alone, and most passes of them
HEAD_RATE, HEAD_STEPS, HEAD_PASSES = 1e-3, 300, 20
MAX_GRAD_NORM = 1.0
TIMED = (0.0, 0.0, 0.25, 0.5, 0.75, 1.0)  # of the batches by length, the longest first: it tells whether all fit
TITLE = "adapting the base"
PATIENCE = 24 * 3600.0  # seconds to wait for another process that makes the same base


def adapt_base(session: Session, texts: Sequence[str]) -> None:
    """Let a session stand on the base that these texts make of its own; made now, unless the cache has it.

    Parameters
    ----------
    texts : of all tables; their order and repetitions do not count

    Raises
    ------
    RunError
        If the run stood on another adapted base, which is gone.
    TrainingError
        If the loss is not a finite number, or the memory is full.
    WriteError
        If the cache folder cannot be written.
    """
    settings, noted = session.recipe.adapt, session.choices.get(ADAPTED)
    if settings is None or (noted is not None and is_adapted(session.source, noted)):
        return
    started = time.monotonic()
    adaptation = _Adaptation.of(session, settings, texts)
    if noted is not None and noted["key"] != adaptation.key:
        raise RunError(
            f"The base of this run was adapted to its texts, and is no longer at {noted['folder']}; it cannot be made "
            "again here, as texts, versions of packages or the device are others now. Put a copy of the folder there, "
            "or start a new run with another --out."
        )
    folder, about = adaptation.found_or_made()
    said = about.model_copy(update={"folder": str(folder.absolute())}).model_dump(exclude={"files", "sha256"})
    session.stand_on(adapted_source(session.backbone, folder), {ADAPTED: said})
    session.seconds["adapt"] = time.monotonic() - started


def adaptation_seconds(session: Session, texts: Sequence[str]) -> float | None:
    """Seconds that `adapt_base` would take, from a few of its steps, timed; None where the cache has the base already.

    Raises
    ------
    TrainingError
        If its longest batch does not fit into the memory.
    """
    assert session.recipe.adapt is not None
    started = time.monotonic()
    adaptation = _Adaptation.of(session, session.recipe.adapt, texts)
    if read_adapted(adaptation.folder, adaptation.key) is not None:
        return None
    trainer = _Trainer(session, adaptation.settings, adaptation.aim, adaptation.tokens)
    return time.monotonic() - started + trainer.seconds_to_train()


@dataclass(frozen=True)
class _Adaptation:
    """One base, texts and settings."""

    session: Session
    settings: Adapt
    aim: Aim
    tokens: Tokens
    key: str
    base_sha256: str

    @classmethod
    def of(cls, session: Session, settings: Adapt, texts: Sequence[str]) -> _Adaptation:
        """Reads the texts and the base's weights, and names what follows from them."""
        config = load_config(session.backbone, session.source)
        aim = language_aim(config, session.tokenizer, session.source.name)
        own = sorted({text for text in texts if text.strip()})
        data = session.recipe.data.model_copy(update={"long_text": "chunk", "chunk_stride": 0, "max_chunks": None})
        tokens = encode(session.tokenizer, own, data, special_frame(session.tokenizer), cache=session.token_cache)
        refuse_unknown_ids(tokens, session.tokenizer, session.source.name, vocabulary_size(config))
        torch.manual_seed(settings.seed)
        base = load_base(session.backbone, None, torch.float32, session.device, session.source)
        probe_base(base, session.source, session.recipe.data.max_length, pad_token_id(session.tokenizer))
        base_sha256 = base_fingerprint(base)
        digest = hashlib.sha256()
        for piece in tokens.ids:
            digest.update(len(piece).to_bytes(8, "little") + piece.tobytes())
        facts = {
            "format": FORMAT,
            "base": base_sha256,
            "texts": digest.hexdigest(),
            "settings": settings.model_dump(mode="json", exclude={"extra_texts"}),
            "computed": [session.choices[name] for name in ("device", "num_threads", "dtype")],
            "attention": session.backbone.attn_implementation,
            "versions": [metadata.version(package) for package in ("torch", "transformers", "peft")],
        }
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return cls(session, settings, aim, tokens, key, base_sha256)

    @property
    def folder(self) -> Path:
        """Its place in the cache."""
        name = Path(self.session.backbone.name_or_path).name.replace(":", "-")[:50]
        return adapted_place(f"{name}-{self.key[:16]}")

    def found_or_made(self) -> tuple[Path, Adaptation]:
        """The folder, and what `adaptation.json` says."""
        folder, say = self.folder, self.session.progress.say
        if (about := read_adapted(folder, self.key)) is None:
            work = folder.with_name(f"{folder.name}.work")
            try:
                with locked(work, "the base is adapted", wait=say, patience=PATIENCE):
                    if (about := read_adapted(folder, self.key)) is None:  # else another process made it meanwhile
                        about = self._make(folder, work / "state.safetensors")
                    shutil.rmtree(work, ignore_errors=True)
            except WriteError as error:
                raise WriteError(f"{cache_note(error)} An adapted base must be kept there.") from error
        else:
            say("The adapted base is in the cache already.")
        say(about.sentence)
        return folder, about

    def _make(self, folder: Path, state_file: Path) -> Adaptation:
        trainer = _Trainer(self.session, self.settings, self.aim, self.tokens)
        losses = trainer.train(state_file)
        with whole_folder(folder, replace=True) as scratch:
            with quiet_transformers():
                trainer.trained().save_pretrained(scratch)
            self.session.tokenizer.save_pretrained(scratch)
            return Adaptation(
                key=self.key,
                base=self.session.backbone.name_or_path,
                base_sha256=self.base_sha256,
                aim=self.aim,
                texts=self.tokens.n_texts,
                tokens=int(self.tokens.lengths.sum()),
                epochs=self.settings.num_train_epochs,
                held_out=len(np.unique(self.tokens.text[trainer.held])),
                losses=losses,
                files=sums(scratch, sorted(scratch.iterdir())),
            ).write(scratch / ABOUT)


class Batch(NamedTuple):
    """What `LanguageModel.loss` takes."""

    ids: torch.Tensor
    mask: torch.Tensor
    chosen: torch.Tensor
    targets: torch.Tensor


class _Trainer:
    """Trains a language model on pieces of texts."""

    def __init__(self, session: Session, settings: Adapt, aim: Aim, tokens: Tokens) -> None:
        self.session, self.settings, self.aim, self.tokens = session, settings, aim, tokens
        tokenizer, config = session.tokenizer, load_config(session.backbone, session.source)
        size = vocabulary_size(config) or len(tokenizer)
        self.pad_id = pad_token_id(tokenizer, size)
        special = np.isin(np.arange(max(size, len(tokenizer))), [*tokenizer.all_special_ids, self.pad_id])
        self.special, self.ordinary = special, np.flatnonzero(~special[: min(size, len(tokenizer))])
        usable = np.flatnonzero([self._asked(piece).any() for piece in tokens.ids])
        drawn = np.random.default_rng(epoch_seed(settings.seed, -1, 0)).permutation(tokens.n_texts)
        n_held = max(1, min(MOST_HELD_OUT, round(HELD_OUT * tokens.n_texts)))
        held = np.isin(tokens.text[usable], drawn[:n_held])
        self.held, self.rows = usable[held], usable[~held]
        if not len(self.held) or not len(self.rows):
            raise TrainingError(
                f"adapt: {len(usable)} of {tokens.n_texts} different texts have tokens to learn from, which are too "
                "few. Remove adapt, or give more with adapt.extra_texts."
            )
        n_batches = math.ceil(len(self.rows) / settings.per_device_train_batch_size)
        self.output_layer_passes = min(HEAD_PASSES, math.ceil(HEAD_STEPS / n_batches))
        self.model = self._load(session.dtype if settings.lora_r else torch.float32)
        self.accelerator = make_accelerator(session.dtype, session.device)

    def _load(self, dtype: torch.dtype) -> LanguageModel:
        """The model in `dtype`, its base with every weight trained, or with fresh adapters."""
        session, settings = self.session, self.settings
        mixed = session.dtype if session.dtype != torch.float32 else None
        model = load_language_model(
            session.backbone, session.source, self.aim, dtype, mixed, session.device, settings.seed
        )
        torch.manual_seed(settings.seed)
        if settings.lora_r is None:
            model.base.requires_grad_(True)
        else:
            lora = {"r": settings.lora_r, "lora_alpha": 2 * settings.lora_r}
            self.adapters: Any = adapt(
                model.base, load_recipe(session.recipe, {"lora": lora, "train.gradient_checkpointing": False})
            )
        for parameter in model.own:
            if model.fresh or settings.lora_r is None:
                parameter.data = parameter.data.float()
                parameter.requires_grad_(True)
        return model

    def trained(self) -> Any:
        """The model to save, in fp32: adapters are added to the weights as they came."""
        if self.settings.lora_r is None:
            return self.model.plain()
        learned = snapshot(self.model)
        exact = self._load(torch.float32)
        restore(exact, learned)
        self.adapters.merge_and_unload()
        return exact.plain()

    # Texts

    def _asked(self, piece: np.ndarray) -> np.ndarray:
        """Which tokens of a piece may be asked for, ndarray of shape (n_tokens,), bool."""
        if self.aim == "next_token":
            return np.arange(len(piece)) > 0
        found: np.ndarray = ~self.special[piece]
        return found

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        """Texts with what is to be found in them."""
        ids, mask = self.tokens.batch(rows, self.pad_id)
        chosen, targets = np.zeros(ids.shape, dtype=bool), ids.copy()
        for i, row in enumerate(rows):
            asked = np.flatnonzero(self._asked(self.tokens.ids[row]))
            if self.aim == "next_token":
                chosen[i, asked - 1] = True  # what is said there is the token behind it
                targets[i, asked - 1] = ids[i, asked]
                continue
            n_masked = max(1, round(self.settings.mask_probability * len(asked)))
            asked = rng.choice(asked, n_masked, replace=False)
            chosen[i, asked] = True
            ids[i, asked] = self._masked(ids[i, asked], rng)
        arrays = (ids, mask, chosen, targets[chosen])
        return Batch(*(torch.from_numpy(array).to(self.session.device) for array in arrays))

    def _masked(self, tokens: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """What stands for tokens that are asked for."""
        masks = np.full(len(tokens), self.session.tokenizer.mask_token_id)
        if self.settings.mask_with == "mask":
            return masks
        draw, others = rng.random(len(tokens)), rng.choice(self.ordinary, len(tokens))
        return np.where(draw < 0.8, masks, np.where(draw < 0.9, others, tokens))

    def held_out_loss(self) -> float:
        """Mean over the tokens asked for in the texts kept aside, the same ones every time."""
        rng, total, count = np.random.default_rng(epoch_seed(self.settings.seed, -1, 0)), 0.0, 0
        order = self.held[np.argsort(-self.tokens.lengths[self.held], kind="stable")]
        size = self.settings.per_device_train_batch_size
        self.model.eval()
        with torch.no_grad():
            for start in range(0, len(order), size):
                batch = self.batch(order[start : start + size], rng)
                total += float(self.model.loss(*batch))
                count += len(batch.targets)
        return total / count

    # Training

    def train(self, state_file: Path) -> list[float]:
        """Train all epochs, going on after the last finished one; returns the losses on the texts kept aside."""
        settings, model, progress = self.settings, self.model, self.session.progress
        inner, state = self._optimizer(), FoldState()
        if state_file.is_file():
            try:
                state, _, _ = load_state(state_file, model, inner)
                progress.say(f"{TITLE}: continues after epoch {state.epoch}")
            except RunError as error:  # from the start: nothing is lost but time
                progress.say(str(error))
        if not state.epoch:
            if model.fresh:
                self._train_output_layer()
            state.metrics.append({"epoch": 0, "loss": self.held_out_loss()})
        if self.accelerator.scaler is not None and state.scaler:
            self.accelerator.scaler.load_state_dict(state.scaler)
        optimizer = self.accelerator.prepare(inner)
        for epoch in range(state.epoch + 1, settings.num_train_epochs + 1):
            mean = self._epoch(optimizer, epoch, settings.num_train_epochs)
            state.epoch = epoch
            state.metrics.append({"epoch": epoch, "loss": self.held_out_loss()})
            progress.say(
                f"{TITLE}: epoch {epoch}/{settings.num_train_epochs}, loss {mean:.4f}, of texts kept aside "
                f"{state.metrics[-1]['loss']:.4f}"
            )
            if epoch < settings.num_train_epochs:
                if self.accelerator.scaler is not None:
                    state.scaler = self.accelerator.scaler.state_dict()
                save_state(state_file, model, inner, state, {}, {})
        self.accelerator.free_memory()
        losses = [round(record["loss"], 6) for record in state.metrics]
        if not math.isfinite(losses[-1]):
            self._not_finite(settings.num_train_epochs)
        return losses

    def seconds_to_train(self) -> float:
        """About how long `train` would take; the weights stay as they are."""
        optimizer = self.accelerator.prepare(self._optimizer())
        lengths, size = self.tokens.lengths[self.rows], self.settings.per_device_train_batch_size
        batches = shuffled_batches(lengths, size, np.random.default_rng(self.settings.seed))
        batches.sort(key=lambda part: -int(lengths[part].max()))
        timed = [batches[round(share * (len(batches) - 1))] for share in TIMED]
        rng, times = np.random.default_rng(self.settings.seed), []
        for part in timed:
            started = time.monotonic()
            self._step(optimizer, self.batch(self.rows[part], rng), 0.0)
            times.append(time.monotonic() - started)
        # the first one prepares kernels; what only trains the output layer goes one way, not three
        n_steps = len(batches) * (self.settings.num_train_epochs + self.model.fresh * self.output_layer_passes / 3)
        return n_steps * float(np.mean(times[1:]))

    def _optimizer(self, only: Sequence[nn.Parameter] | None = None) -> torch.optim.AdamW:
        """AdamW; an output layer that started at random keeps a learning rate of its own."""
        own = {id(parameter) for parameter in self.model.own} if self.model.fresh else set()
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for parameter in only if only is not None else trainable(self.model).values():
            rate = HEAD_RATE if id(parameter) in own else self.settings.learning_rate
            decay = self.settings.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
        return torch.optim.AdamW(
            [
                {"params": found, "lr": rate, "initial_lr": rate, "weight_decay": decay}
                for (rate, decay), found in groups.items()
            ],
            fused=self.session.device.type in ("cuda", "cpu"),
        )

    def _train_output_layer(self) -> None:
        """With the base as it is: what a random layer asks of it would undo what it knows."""
        frozen = [parameter for parameter in self.model.base.parameters() if parameter.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(False)
        optimizer, n_passes = self.accelerator.prepare(self._optimizer(self.model.own)), self.output_layer_passes
        for number in range(1, n_passes + 1):
            mean = self._epoch(optimizer, number, n_passes, f"{TITLE}: its output layer")
        self.accelerator.free_memory()  # else its gradients would be divided by the scaler's factor for both optimizers
        for parameter in frozen:
            parameter.requires_grad_(True)
        self.session.progress.say(
            f"{TITLE}: it came without an output layer over the vocabulary; a fresh one was trained first, to a loss "
            f"of {mean:.4f}"
        )

    def _epoch(self, optimizer: Any, epoch: int, n_epochs: int, title: str = TITLE) -> float:
        """Once over the texts; returns the mean loss."""
        settings, model, progress = self.settings, self.model, self.session.progress
        seed = epoch_seed(settings.seed, 0 if title == TITLE else 1, epoch)
        torch.manual_seed(seed)
        rng = np.random.default_rng(seed)
        batches = [
            self.rows[part]
            for part in shuffled_batches(self.tokens.lengths[self.rows], settings.per_device_train_batch_size, rng)
        ]
        n_steps = len(batches) * n_epochs
        n_warmup = math.ceil(settings.warmup_ratio * n_steps)
        progress.epoch(title, epoch, n_epochs, len(batches))
        model.train()
        losses: list[torch.Tensor] = []
        for index, rows in enumerate(batches):
            batch = self.batch(rows, rng)
            factor = schedule("linear", (epoch - 1) * len(batches) + index, n_steps, n_warmup)
            losses.append(self._step(optimizer, batch, factor))
            look = (index + 1) % CHECK_EVERY == 0 or index + 1 == len(batches)
            if look and not torch.isfinite(torch.stack(losses[-CHECK_EVERY:])).all():
                self._not_finite(epoch)
            progress.step(float(losses[-1]) if look else None)
        return float(torch.stack(losses).mean())

    def _step(self, optimizer: Any, batch: Batch, factor: float) -> torch.Tensor:
        """One step at `factor` of the learning rates; returns the mean loss."""
        try:
            loss = self.model.loss(*batch) / len(batch.targets)
            self.accelerator.backward(loss)
            update(optimizer, factor, MAX_GRAD_NORM, self.accelerator)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            n_rows, n_tokens = batch.ids.shape
            raise TrainingError(
                memory_full(
                    f" while the base is adapted ({n_rows} texts of up to {n_tokens} tokens at a time: "
                    f"{first_line(error)})",
                    f"lower adapt.per_device_train_batch_size (now {self.settings.per_device_train_batch_size}), or "
                    "set adapt.lora_r=16.",
                )
            ) from error
        return loss.detach()

    def _not_finite(self, epoch: int) -> NoReturn:
        raise TrainingError(
            f"The loss is not a finite number while the base is adapted (epoch {epoch}). Lower adapt.learning_rate "
            f"(now {self.settings.learning_rate:g}), or set backbone.dtype: float32."
        )
