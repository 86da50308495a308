"""A merged model in transformers' own class for classification, where that class can hold our pooling and head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from lora_cls.errors import RunError
from lora_cls.files import write_json
from lora_cls.modeling.adapter import HEAD_FILE
from lora_cls.modeling.classifier import HEAD
from lora_cls.modeling.loading import vocabulary_size
from lora_cls.modeling.quiet import quiet_transformers

INSTEAD = "Leave --to out: it is then an adapter, and its README has the code that opens it with transformers and PEFT."


def plain_class(config: Any) -> type[Any] | None:
    """Transformers' class for classification by models of this configuration; None where there is none."""
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING as CLASSES

    found: Any = CLASSES.get(type(config), None)
    return found


def own_layers(config: Any) -> dict[str, nn.Module]:
    """What the class for classification puts behind the base, by name."""
    made = plain_class(config)
    assert made is not None
    with torch.device("meta"):
        model = made(config)
    return {
        name: module
        for name, module in model.named_children()
        if name != model.base_model_prefix and any(True for _ in module.parameters())
    }


def refuse_other_head(config: Any, pooling: str, name: str) -> None:
    """Refuse a pooling or a class that cannot say what our head says.

    Parameters
    ----------
    name : the model's

    Raises
    ------
    RunError
        Says what to use instead.
    """
    made = plain_class(config)
    if made is None:
        raise RunError(f"transformers has no class that classifies with {name}. {INSTEAD}")
    layers = own_layers(config)
    if list(layers) != ["score"] or getattr(layers["score"], "bias", None) is not None:
        raise RunError(
            f"{made.__name__} puts layers of its own between {name} and the labels ({', '.join(layers)}), and would "
            f"answer otherwise. {INSTEAD}"
        )
    if pooling != "last_token":
        raise RunError(
            f"{made.__name__} reads the last token, and this run pools by {pooling}: train with "
            f"--set head.pooling=last_token. {INSTEAD}"
        )


def write_plain_model(
    merged: Path, folder: Path, max_length: int, label_names: list[str], *, exclusive: bool
) -> tuple[Any, np.ndarray]:
    """Write a merged base and its head as one model of transformers, with its tokenizer.

    The base's weights keep the precision that they are merged in and the head is in fp32; `config.json` says float32,
    so that what opens it computes in that unless it is told otherwise.

    Parameters
    ----------
    merged : the folder of a merged model
    max_length : tokens that are read of a text
    exclusive : whether a text has exactly one of the labels

    Returns
    -------
    tokenizer : as it was written
    bias : ndarray of shape (n_labels,), float64; what the class's logits lack, in fp32
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    head = load_file(merged / HEAD_FILE)
    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(merged)
        model: Any = AutoModelForSequenceClassification.from_pretrained(
            merged, num_labels=len(label_names), dtype="auto"
        )
        config = model.config
        _prepare(tokenizer, max_length, vocabulary_size(config))
        config.id2label = dict(enumerate(label_names))
        config.label2id = {name: i for i, name in enumerate(label_names)}
        config.problem_type = f"{'single' if exclusive else 'multi'}_label_classification"
        config.pad_token_id = config.get_text_config().pad_token_id = tokenizer.pad_token_id
        with torch.no_grad():
            model.score.float().weight.copy_(head[f"{HEAD}.weight"])
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", values | {"dtype": "float32"})
    return tokenizer, head[f"{HEAD}.bias"].double().numpy()


def _prepare(tokenizer: Any, max_length: int, n_embeddings: int | None) -> None:
    """Have a tokenizer cut at the end, pad on the right, and know a token to pad with.

    The class finds the last token of a row by its id, as the last that is not the padding token: what the tokenizer
    itself puts at the end of a text must not be it.
    """
    last = tokenizer("a")["input_ids"][-1]
    wanted = [getattr(tokenizer, f"{name}_token_id", None) for name in ("pad", "eos", "unk", "bos")]
    found = [i for i in wanted if i is not None and i != last and (n_embeddings is None or i < n_embeddings)]
    if not found:
        raise RunError(f"{type(tokenizer).__name__} has no token to pad with. {INSTEAD}")
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(found[0])
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    tokenizer.model_max_length = max_length
    tokenizer.model_input_names = ["input_ids", "attention_mask"]


def pipeline_scores(folder: Path, texts: list[str], label_names: list[str], dtype: torch.dtype) -> np.ndarray:
    """What plain `pipeline` answers, computing in `dtype` on the CPU.

    Returns
    -------
    ndarray of shape (n_texts, n_labels), float64
    """
    from transformers import pipeline

    with quiet_transformers():
        classify: Any = pipeline(
            "text-classification", model=str(folder), top_k=None, truncation=True, dtype=dtype, device="cpu"
        )
        answers = classify(texts, batch_size=8)
    place = {name: i for i, name in enumerate(label_names)}
    found = np.empty((len(texts), len(label_names)))
    for row, scores in zip(found, answers, strict=True):
        for score in scores:
            row[place[score["label"]]] = score["score"]
    return found
