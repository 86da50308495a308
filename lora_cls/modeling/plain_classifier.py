"""A merged model in transformers' own class for classification, where that class can hold our pooling and head."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lora_cls.files import write_json
from lora_cls.modeling.adapter import HEAD_FILE
from lora_cls.modeling.classifier import HEAD
from lora_cls.modeling.loading import vocabulary_size
from lora_cls.modeling.quiet import quiet_transformers
from lora_cls.modeling.updates import mean_adapter
from lora_cls.text.tokens import Frame

MIRRORED = {
    "deberta": ("pooler.dense", "classifier"),
    "deberta-v2": ("pooler.dense", "classifier"),
    "distilbert": ("pre_classifier", "classifier"),
    "electra": ("classifier.dense", "classifier.out_proj"),
    "eurobert": ("dense", "classifier"),
}
"""Kinds of models whose class has a linear layer, ReLU or GELU, and another linear layer: the names of the two."""
POOLED_BY_NAME = {"eurobert": {"cls": "bos", "mean": "mean"}}
"""Kinds whose configuration says how they pool (`classifier_pooling`), by our names; other encoders take the first."""
TRIED = ("so happy", "a", " two\nlines, with a space before")
"""Texts that a written tokenizer is tried on."""


@dataclass(frozen=True)
class PlainForm:
    """How a class of transformers holds our head.

    Attributes
    ----------
    name : the class's
    pooling : what it can read, in our words
    layers : names of two linear layers with an activation between; None for one, `score`, without a bias
    """

    name: str
    pooling: tuple[str, ...]
    layers: tuple[str, str] | None

    @property
    def has_bias(self) -> bool:
        return self.layers is not None


def plain_form(config: Any, name: str, n_labels: int) -> PlainForm | str:
    """How transformers' class for models of this configuration holds a head; or, in words, why it cannot.

    The head of most encoders is a linear layer and tanh (BERT's pooler, RoBERTa, MPNet, Longformer) or a normalization
    (ModernBERT), which no weights make the identity. Between two linear layers, ReLU and GELU do no harm: of a logit a,
    act(a) - act(-a) = a, so that two rows per label carry it through.

    Parameters
    ----------
    config : a `PretrainedConfig`
    name : the model's
    """
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING as CLASSES

    made: Any = CLASSES.get(type(config), None)
    if made is None:
        return f"transformers has no class that classifies with {name} ({type(config).__name__})."
    with torch.device("meta"):
        model = made(config)
    own = {
        name: module
        for name, module in model.named_children()
        if name != model.base_model_prefix and any(True for _ in module.parameters())
    }
    if list(own) == [HEAD] and isinstance(own[HEAD], nn.Linear) and own[HEAD].bias is None:
        return PlainForm(made.__name__, ("last_token",), None)
    layers = MIRRORED.get(config.model_type)
    if layers is None:
        return (
            f"{made.__name__} puts layers of its own between {name} and the labels (a pooler, or a hidden layer), and "
            "would answer otherwise."
        )
    room: int = model.get_submodule(layers[0]).out_features
    if 2 * n_labels > room:
        return f"{made.__name__} has room for {room // 2} labels, and the run has {n_labels}."
    return PlainForm(made.__name__, tuple(POOLED_BY_NAME.get(config.model_type, ("cls",))), layers)


def write_plain_model(
    merged: Path,
    folder: Path,
    form: PlainForm,
    label_names: Sequence[str],
    log_weight: np.ndarray,
    *,
    pooling: str,
    exclusive: bool,
    pad_token_id: int,
) -> np.ndarray:
    """Write a merged base and its head as one model of transformers.

    The base's weights keep the precision that they are merged in and the head is in fp32; `config.json` says float32,
    so that what opens it computes in that unless it is told otherwise.

    Parameters
    ----------
    merged : the folder of a merged model
    log_weight : ndarray of shape (n_labels,), what training shifted the logits by
    exclusive : whether a text has exactly one of the labels

    Returns
    -------
    ndarray of shape (n_labels,), float64
        What its logits lack of those of the run's probabilities.
    """
    from transformers import AutoModelForSequenceClassification

    head = load_file(merged / HEAD_FILE)
    weight, bias = head[f"{HEAD}.weight"], head[f"{HEAD}.bias"].double() - torch.from_numpy(log_weight)
    with quiet_transformers():
        model: Any = AutoModelForSequenceClassification.from_pretrained(
            merged, num_labels=len(label_names), dtype="auto"
        )
        config = model.config
        config.id2label = dict(enumerate(label_names))
        config.label2id = {name: i for i, name in enumerate(label_names)}
        config.problem_type = f"{'single' if exclusive else 'multi'}_label_classification"
        config.pad_token_id = config.get_text_config().pad_token_id = pad_token_id
        if form.layers is None:
            _put(model.get_submodule(HEAD), weight)
        else:
            dense, out = (model.get_submodule(name) for name in form.layers)
            _mirror(dense, out, weight, bias.float())
            if hasattr(config, "pooler_hidden_act"):  # DeBERTa's
                config.pooler_hidden_act = "relu"
            if config.model_type in POOLED_BY_NAME:
                config.classifier_pooling = POOLED_BY_NAME[config.model_type][pooling]
        model.save_pretrained(folder)
    _edit(folder / "config.json", dtype="float32", auto_map=None)
    return np.zeros(len(label_names)) if form.has_bias else bias.numpy()


def _edit(file: Path, **values: Any) -> None:
    """Set fields of a JSON file; None removes one. A null that stands there stays: a default may be something else."""
    found = json.loads(file.read_text(encoding="utf-8")) | values
    gone = {name for name, value in values.items() if value is None}
    write_json(file, {name: value for name, value in found.items() if name not in gone})


@torch.no_grad()
def _put(layer: Any, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    """Give a linear layer, in fp32, these first rows; the others become 0."""
    layer.float()
    layer.weight.zero_()[: len(weight)] = weight
    if bias is not None:
        layer.bias.zero_()[: len(bias)] = bias


def _mirror(dense: Any, out: Any, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Carry a linear layer through two with an activation between them, see `plain_form`."""
    _put(dense, torch.cat([weight, -weight]), torch.cat([bias, -bias]))
    eye = torch.zeros(len(weight), out.in_features)
    eye[:, : len(weight)].fill_diagonal_(1.0)
    eye[:, len(weight) : 2 * len(weight)].fill_diagonal_(-1.0)
    _put(out, eye, torch.zeros(len(weight)))


def write_plain_tokenizer(tokenizer: Any, folder: Path, frame: Frame, max_length: int, config: Any) -> str | None:
    """Write a tokenizer that frames a text as the run does, cuts it at its end, pads on the right, and knows what with.

    The class finds the last token of a row by its id, as the last that is not the padding token: what stands at the end
    of every text must not be it.

    Parameters
    ----------
    frame : what stands around each text
    max_length : tokens that are read of a text, the frame included
    config : of the model (a `PretrainedConfig`), which decides on the class that opens the tokenizer

    Returns
    -------
    str or None
        Why it cannot be; None where it is written.
    """
    from transformers import AutoTokenizer

    expected = [_framed(tokenizer, frame, text) for text in TRIED]
    last, n_embeddings = (frame.after or expected[0])[-1], vocabulary_size(config)
    wanted = [getattr(tokenizer, f"{name}_token_id", None) for name in ("pad", "eos", "unk", "bos")]
    found = [i for i in wanted if i is not None and i != last and (n_embeddings is None or i < n_embeddings)]
    if not found:
        return f"{type(tokenizer).__name__} has no token to pad with but one that ends a text."
    prompted = tokenizer(TRIED[0])["input_ids"] != expected[0]
    if prompted:
        _put_frame(tokenizer, frame)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(found[0])
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    tokenizer.model_max_length = max_length
    tokenizer.save_pretrained(folder)
    # the class of a kind of model makes some parts of its tokenizer anew, and a prompt in them would be lost
    kind = {"tokenizer_class": "PreTrainedTokenizerFast"} if prompted else {}
    _edit(folder / "tokenizer_config.json", is_local=None, local_files_only=None, name_or_path=None, **kind)
    with quiet_transformers():
        config.save_pretrained(folder)
        opened = AutoTokenizer.from_pretrained(folder)
    if [opened(text, verbose=False)["input_ids"] for text in TRIED] != expected:
        return f"{type(opened).__name__}, as transformers opens it, does not put the run's prompt around a text."
    return None


def _framed(tokenizer: Any, frame: Frame, text: str) -> list[int]:
    return [*frame.before, *tokenizer(frame.lead + text, add_special_tokens=False)["input_ids"], *frame.after]


def _put_frame(tokenizer: Any, frame: Frame) -> None:
    """Make a prompt part of a tokenizer, so that whoever reads a text with it reads the prompt, too."""
    from tokenizers import normalizers, processors

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # one in Python alone: what is opened will be found to lack the prompt
        return
    parts = {name: ids for name, ids in (("before", frame.before), ("after", frame.after)) if ids}
    backend.post_processor = processors.TemplateProcessing(
        single=" ".join(name for name in ("before", "$A", "after") if name == "$A" or name in parts),
        special_tokens=[
            {"id": name, "ids": ids, "tokens": tokenizer.convert_ids_to_tokens(ids)} for name, ids in parts.items()
        ],
    )
    if frame.lead:
        own = [backend.normalizer] if backend.normalizer is not None else []
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(frame.lead), *own])


def write_plain_adapter(adapters: Sequence[Path], folder: Path, config: Any) -> int:
    """Write the exact mean of adapters as PEFT has it of transformers' class: `score` is in `modules_to_save`, without
    a bias, and the base's modules stand behind the name that the class has for it. Returns its rank.

    Parameters
    ----------
    adapters : folders of PEFT adapters of a bare base
    folder : a new one
    config : of the base
    """
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING as CLASSES

    made: Any = CLASSES[type(config)]
    rank, _ = mean_adapter(adapters, folder)
    root, prefix = "base_model.model.", f"{made.base_model_prefix}."
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors.pop(f"{root}{HEAD}.bias")
    named = {
        key if key.startswith(f"{root}{HEAD}.") else key.replace(root, f"{root}{prefix}", 1): tensor
        for key, tensor in tensors.items()
    }
    save_file(named, folder / "adapter_model.safetensors", {"format": "pt"})
    file = folder / "adapter_config.json"
    modules = json.loads(file.read_text(encoding="utf-8"))["target_modules"]
    _edit(
        file, target_modules=rf"{made.base_model_prefix}\.(?:{modules})", task_type="SEQ_CLS", auto_mapping=None,
        base_model_name_or_path=None,
    )  # fmt: skip
    return rank


def pipeline_scores(folder: Path, texts: Sequence[str], label_names: Sequence[str], dtype: torch.dtype) -> np.ndarray:
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
        answers = classify(list(texts), batch_size=8)
    place = {name: i for i, name in enumerate(label_names)}
    found = np.empty((len(texts), len(label_names)))
    for row, scores in zip(found, answers, strict=True):
        for score in scores:
            row[place[score["label"]]] = score["score"]
    return found
