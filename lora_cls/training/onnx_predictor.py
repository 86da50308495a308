"""New texts through a model that was exported to ONNX: onnxruntime and tokenizers, without torch and transformers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lora_cls.errors import RunError, TrainingError, brief
from lora_cls.evaluation import task_of
from lora_cls.machine import physical_cores
from lora_cls.recipe import Recipe
from lora_cls.runs import FoldFolder, RunFiles
from lora_cls.runs.records import ClassifierInfo
from lora_cls.text.tokens import Frame, Tokens, encode, refuse_unknown_ids, unknown_note

GRAPH, TOKENIZER = "model.onnx", "tokenizer.json"  # in the folder `model` of an export


class OnnxPredictor:
    """The model of an ONNX export; see `Predictor`.

    Parameters
    ----------
    recipe : of the export; its engine.num_threads are onnxruntime's
    label_names : in the order of the logits
    """

    def __init__(self, recipe: Recipe, label_names: Sequence[str]) -> None:
        import_runtime()
        self.recipe, self.n_labels = recipe, len(label_names)
        self.link = task_of(recipe.task).link
        self.notes: list[str] = []
        self.predict_seconds = 0.0
        self._opened: tuple[Path, OnnxModel] | None = None

    def predict(self, folder: FoldFolder, texts: Sequence[str]) -> np.ndarray:
        """See `Predictor.predict`; the weights that training shifted logits by are in the graph already.

        Raises
        ------
        RunError
            If a file is missing or damaged.
        BackboneError
            If a text is read as a token that the model has no embedding for.
        TrainingError
            If a logit is not a finite number.
        """
        model = self.model(folder)
        started = time.monotonic()
        tokens = model.encode(texts, self.recipe)
        logits = model.answer(tokens, self.n_labels, self.recipe.train.per_device_eval_batch_size)
        self.notes = [note] if (note := unknown_note(tokens, "given")) else []
        self.predict_seconds = time.monotonic() - started
        ones = np.ones(self.n_labels)
        return self.link.combine_pieces(logits, tokens.text, ones, self.recipe.data.chunk_combine)

    def model(self, folder: FoldFolder) -> OnnxModel:
        """Tokenizer and graph, opened on first use."""
        if self._opened is None or self._opened[0] != folder.path:
            about = ClassifierInfo.read(RunFiles(folder.path).classifier)
            self._opened = folder.path, OnnxModel(folder.weights(folder.model), about, self.recipe.engine.num_threads)
        return self._opened[1]


class OnnxModel:
    """The tokenizer and the graph in one folder.

    Parameters
    ----------
    num_threads : of onnxruntime; all cores where None
    """

    def __init__(self, folder: Path, about: ClassifierInfo, num_threads: int | None) -> None:
        runtime, tokenizers = import_runtime()
        self.folder, self.about = folder, about.tokens
        self.frame = Frame(self.about.before, self.about.after, self.about.lead)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = num_threads or physical_cores()
        options.enable_mem_pattern = False  # made for batches of one shape
        options.log_severity_level = 3  # errors
        for name in (TOKENIZER, GRAPH):
            if not (folder / name).is_file():
                raise RunError(f"{folder / name} is missing. Export the run again.")
        try:
            self.tokenizer = _Tokenizer(tokenizers.Tokenizer.from_file(str(folder / TOKENIZER)), about)
            self.graph: Any = runtime.InferenceSession(str(folder / GRAPH), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # both raise whatever damaged bytes lead to
            raise RunError(f"{folder} cannot be opened ({brief(error)}). Export the run again.") from error

    def encode(self, texts: Sequence[str], recipe: Recipe) -> Tokens:
        """Texts as the model reads them."""
        tokens = encode(self.tokenizer, texts, recipe.data, self.frame)
        refuse_unknown_ids(tokens, self.tokenizer, self.folder.parent.name, self.about.embeddings)
        return tokens

    def answer(self, tokens: Tokens, n_labels: int, batch_size: int) -> np.ndarray:
        """Logits of every piece, ndarray of shape (n_pieces, n_labels), float32; the longest first."""
        logits = np.empty((len(tokens.ids), n_labels), dtype=np.float32)
        order = np.argsort(-tokens.lengths, kind="stable")
        for start in range(0, len(order), batch_size):
            pieces = order[start : start + batch_size]
            ids, mask = tokens.batch(pieces, self.about.pad)
            logits[pieces] = self.graph.run(["logits"], {"input_ids": ids, "attention_mask": mask})[0]
        if not np.isfinite(logits).all():
            raise TrainingError(f"The model in {self.folder} answers with values that are not finite numbers.")
        return logits


class _Tokenizer:
    """A tokenizer of `tokenizers` under the few names of transformers' that `lora_cls.text.tokens` asks for."""

    def __init__(self, tokenizer: Any, about: ClassifierInfo) -> None:
        self._tokenizer = tokenizer
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.pad_token_id, self.unk_token_id = about.tokens.pad, about.tokens.unknown

    def __call__(self, texts: list[str], add_special_tokens: bool, verbose: bool) -> dict[str, list[list[int]]]:
        found = self._tokenizer.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
        return {"input_ids": [encoding.ids for encoding in found]}

    def convert_ids_to_tokens(self, number: int) -> str | None:
        token: str | None = self._tokenizer.id_to_token(number)
        return token


def import_runtime() -> tuple[Any, Any]:
    """onnxruntime and tokenizers. Raises RunError where one is not installed."""
    try:
        import onnxruntime
        import tokenizers
    except ImportError as error:
        raise RunError(
            f'A model in ONNX is opened by onnxruntime and tokenizers ({brief(error)}): pip install "lora_cls[onnx]"'
        ) from None
    return onnxruntime, tokenizers
