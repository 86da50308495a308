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
BLOCK = 32  # weights that share a scale
IN_8_BITS = 4  # MatMulNBits: what weights are multiplied by is rounded to 8 bits, too
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
    """Weights in 8 bits, a scale for every 32 of them: those of matrix products, by onnxruntime's MatMulNBits, which
    rounds what they are multiplied by to 8 bits, too, and embeddings. Layer norms, biases and the head stay in fp32.

    Blocks keep outliers, of which decoders have many, to themselves. onnxruntime's `quantize_dynamic` has one scale for
    all activations of a batch: it is faster, loses several times as much, and answers with other texts beside it
    otherwise (benchmarks/results/onnx_parity.md).
    """
    import onnx

    with _quiet():
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        quantizer = MatMulNBitsQuantizer(
            onnx.load(file), bits=8, block_size=BLOCK, is_symmetric=True, accuracy_level=IN_8_BITS
        )
        quantizer.process()
    model = quantizer.model.model
    _quantize_embeddings(model)
    large = model.ByteSize() > ONE_FILE
    onnx.save(model, to, save_as_external_data=large, location=f"{to.name}.data" if large else None)


def _quantize_embeddings(model: Any) -> None:
    """Put int8 values, and a scale for each block of a row, in the place of every table that ids are looked up in."""
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    for tensor in [tensor for tensor in graph.initializer if len(tensor.dims) == 2]:
        name, (n_rows, size) = tensor.name, tensor.dims
        looked_up = all(node.op_type == "Gather" and node.input[0] == name for node in users.get(name, []))
        if not looked_up or tensor.data_type != TensorProto.FLOAT or n_rows * size < SMALL_TABLE:
            continue
        block = BLOCK if size % BLOCK == 0 else size
        values = numpy_helper.to_array(tensor).reshape(n_rows, size // block, block)
        scales = np.maximum(np.abs(values).max(2, keepdims=True) / 127, np.finfo(np.float32).tiny).astype(np.float32)
        graph.initializer.remove(tensor)
        for part, array in (
            ("rows", np.rint(values / scales).astype(np.int8)), ("scales", scales), ("size", np.array([size])),
        ):  # fmt: skip
            graph.initializer.append(numpy_helper.from_array(array, f"{name}_{part}"))
        for node in users[name]:
            ids, found = node.input[1], node.output[0]
            steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
                ("Gather", [f"{name}_rows", ids], "int8", {}),
                ("Cast", [f"{found}_int8"], "float", {"to": TensorProto.FLOAT}),
                ("Gather", [f"{name}_scales", ids], "scale", {}),
                ("Mul", [f"{found}_float", f"{found}_scale"], "blocks", {}),
                ("Shape", [ids], "shape", {}),
                ("Concat", [f"{found}_shape", f"{name}_size"], "whole", {"axis": 0}),
            ]
            nodes = [helper.make_node(op, given, [f"{found}_{made}"], **how) for op, given, made, how in steps]
            nodes.append(helper.make_node("Reshape", [f"{found}_blocks", f"{found}_whole"], [found]))
            place = list(graph.node).index(node)
            graph.node.remove(node)
            for new in reversed(nodes):
                graph.node.insert(place, new)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporter and quantizer say of their steps and of packages that they do not need; and without the
    handler that onnxruntime gives the logger of the whole process."""
    root = logging.getLogger()
    disabled, level, handlers = root.manager.disable, root.level, list(root.handlers)
    with quiet_transformers(), warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(disabled)
            root.setLevel(level)
            root.handlers[:] = handlers
