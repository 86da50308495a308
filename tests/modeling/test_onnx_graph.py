"""A model as an ONNX graph: the same answers for every number of texts and tokens, in several classes."""

import numpy as np
import pytest
import torch
from transformers import AutoModel

from lora_cls.errors import BackboneError
from lora_cls.modeling.classifier import SequenceClassifier, attach_head

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from lora_cls.modeling.onnx_graph import save_graph  # noqa: E402

WEIGHT = np.array([1.0, 2.0, 30.0])


def classifier(path, pooling):
    """A random model with a head, that ends each text at its own place."""
    base = AutoModel.from_pretrained(path, attn_implementation="eager").eval()
    base.config.use_cache = False
    torch.manual_seed(0)
    attach_head(base, 3)
    return SequenceClassifier(base, pooling).eval()


def batches(pad_id, seed=0):
    """Texts of other numbers and lengths than the batch that the graph is recorded with."""
    rng = np.random.default_rng(seed)
    for lengths in ([1], [5, 1], [12, 12, 12], [7, 40, 3, 9, 1], [100, 61]):
        ids = np.full((len(lengths), max(lengths)), pad_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for i, length in enumerate(lengths):
            ids[i, :length], mask[i, :length] = rng.integers(5, 120, size=length), 1
        yield ids, mask


@pytest.mark.parametrize(
    ("kind", "pooling"),
    [("roberta", "cls"), ("package:all-mpnet-base-v2", "mean"), ("gemma3", "last_token"), ("qwen2", "last_token")],
)
def test_answers_as_the_model(tiny_model, tmp_path, kind, pooling):
    """Encoders and decoders, position ids that count from padding, causal and sliding windows: within 1e-5."""
    model, file = classifier(tiny_model(kind), pooling), tmp_path / "model.onnx"
    save_graph(model, WEIGHT, file)
    graph = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for ids, mask in batches(model.base.config.pad_token_id):
        with torch.no_grad():
            expected = model(torch.from_numpy(ids), torch.from_numpy(mask)).numpy() - np.log(WEIGHT)
        found = graph.run(["logits"], {"input_ids": ids, "attention_mask": mask})[0]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert b"site-packages" not in file.read_bytes()  # nor any other path of this machine


def test_what_cannot_be_recorded(tiny_model, tmp_path):
    """One sentence, and no file."""
    model = classifier(tiny_model("bert"), "mean")
    model.base.forward = None
    with pytest.raises(BackboneError, match="BertModel cannot be exported to ONNX by this version"):
        save_graph(model, WEIGHT, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
