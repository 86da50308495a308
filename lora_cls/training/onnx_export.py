"""A run's models as one ONNX graph with its tokenizer: what opens without torch and without this package."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from lora_cls.errors import BackboneError, RunError
from lora_cls.files import make_folder
from lora_cls.recipe import Recipe, load_recipe
from lora_cls.runs import FoldFolder, RunFiles, RunFolder
from lora_cls.runs.records import ClassifierInfo, ExportInfo, OnnxInfo, TextReading
from lora_cls.text.tokens import unknown_token_id
from lora_cls.training.heads import head_type
from lora_cls.training.onnx_predictor import GRAPH, TOKENIZER, OnnxModel

if TYPE_CHECKING:
    from lora_cls.training.session import Session

MOST_DIFFERENCE = 1e-4  # of a probability, between PyTorch and onnxruntime, both in fp32
TEXTS = (
    "ok", "Late again, and the box was crushed.", "Vielen Dank, das ging schnell! \N{GRINNING FACE}",
    "I DON'T know... maybe?", "\u0422\u0430\u043a \u0441\u0435\u0431\u0435.", "\u672c\u5f53\u306b", "",
    "One more line,\nand another\tone. " * 3,
)  # fmt: skip
TRIED_TOKENS = 512  # of the longest of them, or as many as the model reads


def refuse_without_packages() -> None:
    """Raise RunError where a package is missing that the export needs."""
    lacking = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if lacking:
        raise RunError(f'--to onnx needs {" and ".join(lacking)}: pip install "lora_cls[onnx]"')


def plain_recipe(recipe: Recipe) -> Recipe:
    """The recipe of merged weights: nothing is adapted or quantized."""
    return load_recipe(recipe, {"lora": None, "quantization": None})


def write_onnx(run: RunFolder, folder: Path, backbone: str | None, weight: np.ndarray) -> OnnxInfo:
    """Write `classifier.json`, `model/model.onnx` and `model/tokenizer.json` into an export.

    Adapters are merged in fp32, into the base as they were trained on it: one in 4 or 8 bits is dequantized. Before the
    graph is taken for the model both answer for some texts.

    Parameters
    ----------
    weight : ndarray of shape (n_labels,), what logits are shifted by; the graph undoes it

    Raises
    ------
    RunError
        If the tokenizer has no `tokenizer.json`, or the graph answers otherwise than the model.
    BackboneError
        If the model cannot be exported.
    """
    from lora_cls.modeling.onnx_graph import save_graph

    place = folder / "model"
    make_folder(place)
    with TemporaryDirectory(dir=folder.parent) as name:
        scratch = Path(name)
        session = merged_session(run, scratch, backbone)
        about = ClassifierInfo(
            **run.labels_info.model_dump(exclude={"sha256"}),
            **run.decision().model_dump(exclude={"sha256", "folds", "parts"}),
            tokens=_save_tokenizer(session, place / TOKENIZER),
        )
        model = session.load(FoldFolder(scratch)).cpu()
        save_graph(model, weight, place / GRAPH)
        texts = tried_texts(run.recipe)
        tokens = session.encode(texts)
        logits = session.head.answer(model, tokens, session.batches).logits
        graph = OnnxModel(place, about, session.recipe.engine.num_threads)
        read = graph.encode(texts, session.recipe)
        if len(read.ids) != len(tokens.ids) or not all(map(np.array_equal, read.ids, tokens.ids)):
            raise RunError(
                "The tokenizer reads some texts otherwise than its tokenizer.json does, by rules of its own that no "
                "such file holds. Export the model otherwise, without --to onnx."
            )
        found = session.task.link.probabilities(graph.answer(read, len(weight), len(texts)))
        difference = float(np.abs(found - session.task.link.probabilities(logits, weight)).max())
    if not difference <= MOST_DIFFERENCE:
        raise RunError(
            f"The ONNX graph answers otherwise than the model: probabilities differ by up to {difference:.1g} on "
            f"{len(texts)} texts, more than {MOST_DIFFERENCE:g}. It is not kept. Export it otherwise, without "
            "--to onnx."
        )
    about.write(RunFiles(folder).classifier)
    return OnnxInfo(
        precision="float32", bytes=_size(place), texts=len(texts), largest_difference=difference, int8_difference=None
    )


def quantize_onnx(whole: RunFolder, about: ExportInfo, folder: Path) -> OnnxInfo:
    """Write into `folder/model` what an ONNX export has there, with its weights in 8 bits."""
    from lora_cls.modeling.onnx_graph import quantize_graph

    source, place = whole.path / "model", folder / "model"
    make_folder(place)
    shutil.copyfile(source / TOKENIZER, place / TOKENIZER)
    quantize_graph(source / GRAPH, place / GRAPH)
    recipe, link, said = whole.recipe, whole.task().link, ClassifierInfo.read(whole.files.classifier)
    texts, answers = tried_texts(recipe), []
    for model in (OnnxModel(at, said, recipe.engine.num_threads) for at in (source, place)):
        tokens = model.encode(texts, recipe)
        answers.append(link.probabilities(model.answer(tokens, len(said.labels), len(texts))))
    assert about.onnx is not None
    difference = float(np.abs(answers[1] - answers[0]).max())
    return about.onnx.model_copy(update={"precision": "int8", "bytes": _size(place), "int8_difference": difference})


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def tried_texts(recipe: Recipe) -> list[str]:
    """What both answer before a graph is taken for the model; the longest is cut, or nearly."""
    return [*TEXTS, "and so on, " * (min(recipe.data.max_length, TRIED_TOKENS) // 3)]


def merged_session(run: RunFolder, scratch: Path, backbone: str | None) -> Session:
    """The mean of a run's models, merged in fp32, as a session that computes in fp32; `load(FoldFolder(scratch))` gives
    the model."""
    from lora_cls.modeling.adapted import ADAPTED
    from lora_cls.modeling.merging import average_weights, merge_adapters
    from lora_cls.training.session import Session

    recipe = run.recipe
    if recipe.lora is None:
        average_weights(run, scratch / "model", backbone)
    else:
        merge_adapters(run, scratch / "model", backbone, head_type(recipe.head.kind).attach, as_trained=True)
    dropped = ("base_sha256", ADAPTED, "short_steps")  # what is recorded is the model's own code
    choices = {name: value for name, value in run.info.choices.items() if name not in dropped}
    choices |= {"merged_dtype": "float32", "dtype": "float32", "attn_implementation": "eager"}
    return Session(plain_recipe(recipe), run.label_names, choices, str(scratch / "model"))


def _save_tokenizer(session: Session, file: Path) -> TextReading:
    """Write `tokenizer.json`, without padding and truncation of its own; returns what stands around a text."""
    from tokenizers import Tokenizer

    backend = getattr(session.tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise BackboneError(
            f"{session.source.name}: its tokenizer ({type(session.tokenizer).__name__}) is written in Python, and has "
            "no tokenizer.json that others could read. Export it otherwise, without --to onnx."
        )
    plain = Tokenizer.from_str(backend.to_str())
    plain.no_padding()
    plain.no_truncation()
    plain.save(str(file))
    frame = session.head.frame
    return TextReading(
        before=list(frame.before),
        after=list(frame.after),
        lead=frame.lead,
        pad=session.head.pad_id,
        unknown=unknown_token_id(session.tokenizer),
        embeddings=session.n_embeddings,
    )
