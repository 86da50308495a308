"""The training loop of one fold, on Accelerate: length-bucketed batches, accumulation, warm-up and decay, clipping."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn

from lora_cls.errors import TrainingError
from lora_cls.files import append_line, write_bytes
from lora_cls.modeling.classifier import HEAD, SequenceClassifier
from lora_cls.modeling.precision import is_out_of_memory
from lora_cls.recipe import Recipe
from lora_cls.runs.sums import check
from lora_cls.text.tokens import Tokens, shuffled_batches
from lora_cls.training.averages import WeightAverages
from lora_cls.training.batches import EvalBatches, training_memory_error
from lora_cls.training.checkpoint import FoldState, Weights, load_state, restore, save_state, snapshot, trainable
from lora_cls.training.objective import Objective
from lora_cls.training.processes import ALONE, Processes
from lora_cls.training.progress import Progress, fold_title
from lora_cls.training.selection import Score, best_epoch, may_win

CHECK_EVERY = 16  # steps between looks at the loss: each look makes a GPU wait


def make_accelerator(dtype: torch.dtype, device: torch.device) -> Any:
    """Accelerate's `Accelerator` in the given precision (with a gradient scaler for fp16)."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import GradientAccumulationPlugin

    AcceleratorState._reset_state(
        reset_partial_state=True
    )  # else a second run in one process keeps the first's precision
    precision = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "no")
    return Accelerator(
        mixed_precision=precision,
        cpu=device.type == "cpu",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # ours, whatever a launcher's file says
    )


def schedule(kind: str, step: int, n_steps: int, n_warmup: int) -> float:
    """Factor on the learning rate at a step: linear warm-up, then linear or cosine decay to 0, or constant."""
    if step < n_warmup:
        return (step + 1) / n_warmup
    if kind == "constant":
        return 1.0
    done = (step - n_warmup) / max(1, n_steps - n_warmup)
    return 0.5 * (1 + math.cos(math.pi * done)) if kind == "cosine" else 1.0 - done


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """AdamW's groups: the head's own learning rate, and no weight decay on biases and norms."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trainable(model).items():
        is_head = f".{HEAD}." in name
        lr = recipe.head.learning_rate if is_head and recipe.head.learning_rate else recipe.train.learning_rate
        decay = recipe.train.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((lr, decay), []).append(parameter)
    return [
        {"params": found, "lr": lr, "initial_lr": lr, "weight_decay": decay} for (lr, decay), found in groups.items()
    ]


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW over what is trained."""
    device = next(model.parameters()).device
    return torch.optim.AdamW(parameter_groups(model, recipe), fused=device.type in ("cuda", "cpu"))


def epoch_seed(seed: int, fold: int, epoch: int) -> int:
    """All randomness derives from (seed, fold, epoch), never from what ran before."""
    return int(np.random.SeedSequence([seed, fold + 1, epoch]).generate_state(1)[0])


def train_fold(
    model: nn.Module,
    recipe: Recipe,
    objective: Objective,
    *,
    fold: int,
    accelerator: Any,
    state_file: Path,
    metrics_file: Path,
    progress: Progress,
    score: Callable[[], Score] | None = None,
    after_epoch: Callable[[int], dict[str, str]] | None = None,
    n_epochs: int | None = None,
    processes: Processes = ALONE,
) -> FoldState:
    """Train `model` on an objective, continuing from `state_file` if there is one.

    Parameters
    ----------
    objective : the training rows of this fold, and their loss
    fold : number of the fold, -1 for a model of all rows
    score : computes the score of the model's weights where `train.select` keeps the best epoch (`train.select_by`);
        the best is put back
    after_epoch : called with each finished epoch, before its state is saved; returns `FoldState.files` of it
    n_epochs : stop after so many epochs of the recipe's schedule; all of them where None
    processes : those that train this model together, all with the same arguments; the first one alone writes

    Both functions, and whoever reads the model afterwards, see its averaged weights where the recipe asks for them.

    Raises
    ------
    TrainingError
        If the loss is not a finite number, or the memory is full; names fold, epoch and step.
    """
    train, name = recipe.train, fold_title(fold)
    inner = make_optimizer(model, recipe)
    state = FoldState()
    kept: dict[int, Weights] = {}
    last_epoch = n_epochs or train.num_train_epochs
    averages = WeightAverages(model, train, last_epoch)
    if state_file.is_file():
        state, kept, found = load_state(state_file, model, inner)
        averages.resume(found)
        if accelerator.scaler is not None and state.scaler:
            accelerator.scaler.load_state_dict(state.scaler)
        check(state_file.parent, state.files, f" Remove {state_file} to train the fold again.")
        progress.say(f"{name}: continues after epoch {state.epoch}")
    processes.take_over(state.epoch, list(trainable(model).values()))
    optimizer = accelerator.prepare(inner)
    if processes.main and (state.metrics or metrics_file.exists()):  # without lines of an epoch that is trained again
        write_bytes(metrics_file, "".join(json.dumps(record) + "\n" for record in state.metrics).encode())
    batch_size, accumulate = train.per_device_train_batch_size, train.gradient_accumulation_steps
    lengths = objective.lengths
    n_batches = math.ceil(len(lengths) / batch_size)
    steps_per_epoch = math.ceil(n_batches / accumulate)
    n_steps = steps_per_epoch * train.num_train_epochs
    n_warmup = math.ceil(train.warmup_ratio * n_steps)

    for epoch in range(state.epoch + 1, last_epoch + 1):
        started = time.monotonic()
        seed = epoch_seed(train.seed, fold, epoch)
        torch.manual_seed(processes.seed(seed))
        batches = shuffled_batches(lengths, batch_size, np.random.default_rng(seed))
        progress.epoch(name, epoch, train.num_train_epochs, steps_per_epoch)
        model.train()
        losses: list[torch.Tensor] = []
        counts = torch.zeros(2, dtype=torch.int64)  # tokens, and tokens with padding
        unseen = 0  # losses since listeners were told
        for index in range(steps_per_epoch):
            step = (epoch - 1) * steps_per_epoch + index
            group = batches[index * accumulate : (index + 1) * accumulate]
            factor = schedule(train.lr_scheduler_type, step, n_steps, n_warmup)
            try:
                total, masks = accumulated_loss(model, objective, group, accelerator, processes)
                update(optimizer, factor, train.max_grad_norm, accelerator)
                averages.after_step(step)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                longest = max(int(lengths[rows].max()) for rows in group)
                where = f"{name}, epoch {epoch}, step {index + 1}"
                raise training_memory_error(train, where, longest, error) from error
            state.rows += sum(len(rows) for rows in group)
            counts += torch.tensor([sum(int(mask.sum()) for mask in masks), sum(mask.size for mask in masks)])
            losses.append(total)
            look = (index + 1) % CHECK_EVERY == 0 or index + 1 == steps_per_epoch
            if look:
                _check_finite(losses, name, epoch, index + 1, recipe)
            progress.step(float(total) if look else None)
            unseen += 1
            if 10 * (step + 1) // n_steps > 10 * step // n_steps:
                recent = float(torch.stack(losses[-unseen:]).mean())
                progress.loss_seen(fold, step + 1, n_steps, recent, train.learning_rate * factor)
                unseen = 0
        seconds = time.monotonic() - started
        processes.add_up([counts])
        state.tokens, state.padded_tokens = state.tokens + int(counts[0]), state.padded_tokens + int(counts[1])
        state.epoch = epoch
        state.seconds["train"] += seconds
        mean_loss = float(torch.stack(losses).mean())
        record = {
            "epoch": epoch,
            "step": epoch * steps_per_epoch,
            "loss": round(mean_loss, 6),
            "learning_rate": max(group["lr"] for group in inner.param_groups),
            "seconds": round(seconds, 3),
        }
        if not all(torch.isfinite(parameter).all() for parameter in trainable(model).values()):
            _not_finite("The weights are", f"{name}, epoch {epoch}, step {steps_per_epoch}", recipe)
        averages.after_epoch(epoch)
        started = time.monotonic()
        with averages.in_place():
            if score is not None:
                state.scores.append(score())
                last = state.scores[-1]
                record |= {"selection_macro_f1": last.macro_f1, "selection_loss": last.loss}
                if last.metric is not None:
                    record["selection_metric"] = last.metric
                state.best_epoch = best_epoch(state.scores, train)
                wanted = may_win(state.scores, train)
                kept = {number: weights for number, weights in kept.items() if number in wanted}
                if epoch in wanted:
                    kept[epoch] = snapshot(model)
            if after_epoch is not None:
                state.files |= after_epoch(epoch)
        state.seconds["score"] += time.monotonic() - started
        state.metrics.append(record)
        if processes.main:
            append_line(metrics_file, json.dumps(record))
        if accelerator.scaler is not None:
            state.scaler = accelerator.scaler.state_dict()
        started = time.monotonic()
        if processes.main:
            save_state(state_file, model, inner, state, kept, averages.kept)
        state.seconds["save"] += time.monotonic() - started
        progress.epoch_done(fold, train.num_train_epochs, record, len(lengths) / seconds)
    accelerator.free_memory()  # it would keep this fold's optimizer, and with it the model, for good
    if state.best_epoch is not None:
        restore(model, kept[state.best_epoch])
    else:
        averages.finish()
    return state


def accumulated_loss(
    model: nn.Module,
    objective: Objective,
    group: list[np.ndarray],
    accelerator: Any,
    processes: Processes = ALONE,
) -> tuple[torch.Tensor, list[np.ndarray]]:
    """Gradients of the mean loss over the batches of one optimizer step; returns the loss and the batches' masks.

    Gradients and loss are those of all processes together, masks those of this process's rows.
    """
    n_rows = sum(len(rows) for rows in group)
    total, masks = torch.zeros((), device=next(model.parameters()).device), []
    for rows in group:
        mine = processes.share(rows)
        # a process without rows takes part all the same: where the base is sharded, the others wait for its shards
        loss, mask = objective.loss(model, mine if len(mine) else rows[:1])
        loss = loss * (len(mine) > 0) / n_rows
        accelerator.backward(loss)
        total += loss.detach()
        if len(mine):
            masks.append(mask)
    processes.add_up_gradients(list(trainable(model).values()), total)
    return total, masks


def update(optimizer: Any, factor: float, max_grad_norm: float, accelerator: Any) -> None:
    """One step of the optimizer at `factor` of its learning rates, gradients clipped and then cleared."""
    groups = optimizer.param_groups
    accelerator.clip_grad_norm_([p for group in groups for p in group["params"]], max_grad_norm)
    for parameters in groups:
        parameters["lr"] = parameters["initial_lr"] * factor
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _check_finite(losses: list[torch.Tensor], name: str, epoch: int, step: int, recipe: Recipe) -> None:
    recent = torch.stack(losses[-CHECK_EVERY:])
    bad = (~torch.isfinite(recent)).nonzero()
    if len(bad):
        first = step - len(recent) + int(bad[0]) + 1
        _not_finite("The loss is", f"{name}, epoch {epoch}, step {first}", recipe)


def _not_finite(what: str, where: str, recipe: Recipe) -> NoReturn:
    raise TrainingError(
        f"{what} not a finite number ({where}). Lower train.learning_rate (now {recipe.train.learning_rate:g}) or set "
        "backbone.dtype: float32, in a new run with another --out."
    )


def predict_logits(model: SequenceClassifier, tokens: Tokens, *, batches: EvalBatches, pad_id: int) -> np.ndarray:
    """Logits of every piece of text, ndarray of shape (n_pieces, n_labels), float32; longest batches first.

    Raises
    ------
    TrainingError
        If a logit is not a finite number, or a single piece does not fit into the memory.
    """
    head: Any = model.base.score
    logits = np.empty((len(tokens.ids), head.out_features), dtype=np.float32)

    def answer(pieces: np.ndarray) -> None:
        ids, mask = tokens.batch(pieces, pad_id, batches.multiple)
        found = model(torch.from_numpy(ids), torch.from_numpy(mask))
        logits[pieces] = found.cpu().numpy()

    if model.training:  # to tell all modules takes as long as a text
        model.eval()
    with torch.no_grad():
        batches.each(tokens.lengths, answer)
    refuse_not_finite(logits)
    return logits


def refuse_not_finite(logits: np.ndarray) -> None:
    """Raise TrainingError where a model answers with a value that is not a finite number."""
    if not np.isfinite(logits).all():
        raise TrainingError("The model answers with values that are not finite numbers. Set backbone.dtype: float32.")
