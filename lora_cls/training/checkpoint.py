"""The state of a fold in training: one safetensors file per fold, replaced in one step at every epoch boundary."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from lora_cls.errors import RunError
from lora_cls.files import whole_file
from lora_cls.training.selection import Score

Weights = dict[str, torch.Tensor]  # of all that is trained, by name


@dataclass
class FoldState:
    """What a fold has behind it.

    Attributes
    ----------
    epoch : finished epochs
    scores : of the finished epochs, where `train.select` chooses by them
    best_epoch : the one that it chooses so far
    seconds : spent in training (`train`), on choosing among epochs (`score`), and in writing (`save`)
    rows, tokens, padded_tokens : processed in training; padded_tokens counts tokens and padding
    scaler : state of the fp16 gradient scaler
    metrics : the lines of `metrics.jsonl`, a dict per epoch
    files : SHA-256 of whatever else the epochs left beside the state, by path from it
    """

    epoch: int = 0
    scores: list[Score] = field(default_factory=list)
    best_epoch: int | None = None
    seconds: dict[str, float] = field(default_factory=lambda: {"train": 0.0, "score": 0.0, "save": 0.0})
    rows: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    scaler: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def snapshot(model: nn.Module) -> Weights:
    """A copy of the trained parameters, on the CPU."""
    return {name: parameter.detach().to("cpu", copy=True) for name, parameter in trainable(model).items()}


def restore(model: nn.Module, tensors: Weights) -> None:
    """Put a snapshot back."""
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            parameter.copy_(tensors[name])


def save_state(
    file: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: FoldState,
    kept: dict[int, Weights],
    averages: dict[str, Weights],
) -> None:
    """Write parameters, optimizer moments and progress; no pickle, one rename.

    `kept` holds the snapshots of epochs that may still be chosen, `averages` those of `WeightAverages`. Randomness
    needs no state: it derives from (seed, fold, epoch).
    """
    tensors = {f"model/{name}": tensor for name, tensor in snapshot(model).items()}
    for name, parameter in trainable(model).items():
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer/{key}/{name}"] = torch.as_tensor(value).detach().to("cpu", copy=True)
    for epoch, weights in kept.items():
        tensors |= {f"epoch/{epoch}/{name}": tensor for name, tensor in weights.items()}
    for kind, weights in averages.items():
        tensors |= {f"average/{kind}/{name}": tensor.cpu() for name, tensor in weights.items()}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    about = json.dumps(asdict(progress))
    with whole_file(file) as scratch:
        save_file(tensors, scratch, {"progress": about, "sha256": _sha256(about, tensors)})


def _sha256(about: str, tensors: dict[str, torch.Tensor]) -> str:
    """Of progress and tensors: a flipped bit would go on into other weights without a word."""
    digest = hashlib.sha256(about.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_state(
    file: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[FoldState, dict[int, Weights], dict[str, Weights]]:
    """Continue from `save_state`'s file; returns its `progress`, `kept` and `averages`.

    Raises
    ------
    RunError
        If the file is damaged or belongs to another model.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            about = opened.metadata()
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (no iteration of its own)
        if about["sha256"] != _sha256(about["progress"], tensors):
            raise RuntimeError("its SHA-256 is another")
        progress = FoldState(**json.loads(about["progress"]))
        progress.scores = [Score(*score) for score in progress.scores]
        found = _under(tensors, "model/")
        kinds = sorted({key.split("/")[1] for key in tensors if key.startswith("average/")})
        averages = {kind: _under(tensors, f"average/{kind}/") for kind in kinds}
        expected = {name: parameter.shape for name, parameter in trainable(model).items()}
        for weights in (found, *averages.values()):
            if {name: tensor.shape for name, tensor in weights.items()} != expected:  # copying would broadcast some
                raise RuntimeError("its parameters are others")
        restore(model, found)
        for name, parameter in trainable(model).items():
            moments = {key.split("/")[1]: value for key, value in tensors.items() if _is_moment(key, name)}
            # Moments live beside their parameter, and so does `step` where AdamW is fused; else it is a CPU scalar.
            fused = optimizer.defaults["fused"]
            optimizer.state[parameter] = {
                k: v.to(parameter.device) if fused or k != "step" else v for k, v in moments.items()
            }
    except (SafetensorError, KeyError, TypeError, RuntimeError, OSError) as error:
        raise RunError(
            f"{file} is damaged or belongs to another model ({error}). Remove it to train the fold again."
        ) from error
    epochs = sorted({int(key.split("/")[1]) for key in tensors if key.startswith("epoch/")})
    return progress, {epoch: _under(tensors, f"epoch/{epoch}/") for epoch in epochs}, averages


def _is_moment(key: str, name: str) -> bool:
    return key.startswith("optimizer/") and key.split("/", 2)[2] == name


def _under(tensors: Weights, prefix: str) -> Weights:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
