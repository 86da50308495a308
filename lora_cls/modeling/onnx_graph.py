"""A classifier as one ONNX graph: base, pooling and head, for any number of texts of any length."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lora_cls.errors import BackboneError, brief
from lora_cls.modeling.classifier import SequenceClassifier
from lora_cls.modeling.quiet import quiet_transformers

INPUTS, OUTPUT = ("input_ids", "attention_mask"), "logits"
ONE_FILE = 1.9e9  # bytes of weights; a protobuf file holds 2 GiB, and weights beyond lie in a file beside it
PRODUCTS = ("MatMul", "Gemm")
SMALL_TABLE = 100_000  # values; a table of fewer is not worth an error
TRACED = (3, 12)  # texts and tokens of the batch that the graph is recorded with; it holds for every other


class CorrectedLogits(nn.Module):
    """The logits of a classifier, less the logarithm of the weights that it was trained with: log-odds of labels, or
    log-probabilities of classes and a constant."""

    def __init__(self, model: SequenceClassifier, weight: np.ndarray) -> None:
        super().__init__()
        self.model = model
        self.log_weight: torch.Tensor
        self.register_buffer("log_weight", torch.from_numpy(np.log(weight)).float())

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Tensor of shape (n_rows, n_labels), float32."""
        logits: torch.Tensor = self.model(input_ids, attention_mask) - self.log_weight
        return logits


def save_graph(model: SequenceClassifier, weight: np.ndarray, file: Path) -> None:
    """Write a model as ONNX, by PyTorch's exporter (`torch.onnx.export(dynamo=True)`).

    The graph takes `input_ids` and `attention_mask`, int64 of shape (n_rows, n_tokens), padded on the right, and gives
    `logits`, float32 of shape (n_rows, n_labels).

    Parameters
    ----------
    model : fp32, on the CPU, adapters merged
    weight : ndarray of shape (n_labels,), the positive or class weights that its logits are shifted by

    Raises
    ------
    BackboneError
        If the model cannot be exported.
    """
    graph = CorrectedLogits(model, weight).eval()
    ids = torch.arange(TRACED[0] * TRACED[1]).reshape(TRACED) % 3
    mask = torch.ones_like(ids)
    mask[1, TRACED[1] // 2 :] = 0
    axes = {0: "rows", 1: "tokens"}
    try:
        with _quiet(), torch.no_grad():
            program: Any = torch.onnx.export(
                graph, (ids, mask), dynamo=True, input_names=list(INPUTS), output_names=[OUTPUT],
                dynamic_shapes=(axes, axes), verbose=False,
            )  # fmt: skip
    except Exception as error:  # whatever a forward pass holds that cannot be recorded
        raise BackboneError(
            f"{type(model.base).__name__} cannot be exported to ONNX by this version of PyTorch and transformers: "
            f"{brief(error)}. Export it otherwise, without --to onnx."
        ) from error
    for node in program.model.graph.all_nodes():  # the lines of code that it was recorded from, by their full paths
        node.metadata_props.clear()
        node.doc_string = None
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    program.save(str(file), external_data=size > ONE_FILE)


def quantize_graph(file: Path, to: Path) -> None:
    """Weights in 8 bits: those of matrix products by output channel, with what they are multiplied by rounded as it
    comes (onnxruntime's `quantize_dynamic`), and embeddings by row. The head stays in fp32."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    products = [node.name for node in onnx.load(file, load_external_data=False).graph.node if node.op_type in PRODUCTS]
    large = any(file.parent.glob(f"{file.name}.*"))
    with _quiet():
        quantize_dynamic(
            file, to, op_types_to_quantize=list(PRODUCTS), nodes_to_exclude=products[-1:], per_channel=True,
            weight_type=QuantType.QInt8, use_external_data_format=large,
        )  # fmt: skip
    model = onnx.load(to)
    for beside in to.parent.glob(f"{to.name}.*"):
        beside.unlink()
    _quantize_embeddings(model)
    large = model.ByteSize() > ONE_FILE
    onnx.save(model, to, save_as_external_data=large, location=f"{to.name}.data" if large else None)


def _quantize_embeddings(model: Any) -> None:
    """Put int8 rows, and a scale for each, in the place of every table that tokens are looked up in."""
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    tables = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) == 2}
    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    for name, tensor in tables.items():
        looked_up = all(node.op_type == "Gather" and node.input[0] == name for node in users.get(name, []))
        values = numpy_helper.to_array(tensor)
        if not looked_up or values.dtype != np.float32 or values.size < SMALL_TABLE:
            continue
        scale = np.maximum(np.abs(values).max(1, keepdims=True) / 127, np.finfo(np.float32).tiny).astype(np.float32)
        rows, scales = f"{name}_rows", f"{name}_scales"
        graph.initializer.remove(tensor)
        graph.initializer.extend(
            [
                numpy_helper.from_array(np.rint(values / scale).astype(np.int8), rows),
                numpy_helper.from_array(scale, scales),
            ]
        )
        for node in users[name]:
            place, ids, found = list(graph.node).index(node), node.input[1], node.output[0]
            graph.node.remove(node)
            parts = [
                helper.make_node("Gather", [rows, ids], [f"{found}_row"]),
                helper.make_node("Cast", [f"{found}_row"], [f"{found}_cast"], to=TensorProto.FLOAT),
                helper.make_node("Gather", [scales, ids], [f"{found}_scale"]),
                helper.make_node("Mul", [f"{found}_cast", f"{found}_scale"], [found]),
            ]
            for part in reversed(parts):
                graph.node.insert(place, part)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of its steps and of packages that it does not need."""
    noisy = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "root")]
    levels = [logger.level for logger in noisy]
    with quiet_transformers(), warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        for logger in noisy:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(noisy, levels, strict=True):
                logger.setLevel(level)
