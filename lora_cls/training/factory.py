"""Who trains and who answers for a recipe. Imports are heavy, and so wait for the recipe that needs them."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_cls.errors import RunError
from lora_cls.recipe import Engine, Recipe
from lora_cls.runs import RunFolder
from lora_cls.training.learner import Learner, Predictor
from lora_cls.training.processes import ALONE, Processes
from lora_cls.training.progress import Progress

if TYPE_CHECKING:
    from lora_cls.modeling.resident import ResidentModels


def make_learner(
    recipe: Recipe,
    label_names: Sequence[str],
    choices: Mapping[str, Any] | None = None,
    backbone: str | None = None,
    progress: Progress | None = None,
    processes: Processes = ALONE,
    resident: ResidentModels | None = None,
) -> Learner:
    """The learner that a recipe with anything to train asks for; see `Session` for the parameters."""
    if recipe.tfidf is not None:
        from lora_cls.training.tfidf import TfidfLearner  # needs no torch

        return TfidfLearner(recipe, label_names)
    from lora_cls.training.transformer import TransformerLearner

    return TransformerLearner(recipe, label_names, choices, backbone, progress, processes, resident)


def make_predictor(
    recipe: Recipe,
    label_names: Sequence[str],
    choices: Mapping[str, Any] | None = None,
    backbone: str | None = None,
    progress: Progress | None = None,
    *,
    trust_remote_code: bool = False,
    outside_runs: bool = False,
    resident: ResidentModels | None = None,
) -> Predictor:
    """As `make_learner`, for a run's models; of a blend, those of all its runs.

    Parameters
    ----------
    trust_remote_code : for the runs of a blend, as `RunFolder` takes it
    outside_runs : whether a blend may open runs that lie outside the folder that it lies in
    resident : see `Session`
    """
    if "onnx" in (choices or {}):
        from lora_cls.training.onnx_predictor import OnnxPredictor  # needs no torch

        return OnnxPredictor(recipe, label_names)
    if recipe.blend is None:
        return make_learner(recipe, label_names, choices, backbone, progress, resident=resident)
    if backbone is not None:
        raise RunError("--backbone names one base model, and a blend may have several: predict with its runs.")
    from lora_cls.training.blend import BlendPredictor

    def of_run(run: RunFolder) -> Predictor:
        member = run.recipe
        if recipe.engine.num_threads is not None:
            engine = member.engine.model_copy(update={"num_threads": recipe.engine.num_threads})
            member = member.model_copy(update={"engine": engine})
        return make_predictor(
            member, run.label_names, run.info.choices, run.base_place(), progress,
            trust_remote_code=trust_remote_code, outside_runs=outside_runs, resident=resident,
        )  # fmt: skip

    return BlendPredictor(recipe, label_names, of_run, trust_remote_code=trust_remote_code, outside_runs=outside_runs)


def ask_fold(engine: Engine, run: RunFolder, number: int, texts: Sequence[str], progress: Progress) -> np.ndarray:
    """Logits of the model of a run's fold, ndarray of shape (n_texts, n_labels), float32. The model is loaded for that,
    and gone afterwards.

    Parameters
    ----------
    engine : of who asks, in place of the run's own
    """
    recipe = run.recipe.model_copy(update={"engine": engine})
    predictor = make_predictor(
        recipe, run.label_names, run.info.choices, run.base_place(), progress, trust_remote_code=run.trust_remote_code
    )
    logits = predictor.predict(run.fold(number), texts)
    del predictor
    gc.collect()  # a model and its caches hold each other, and would lie beside that of who asks
    return logits
