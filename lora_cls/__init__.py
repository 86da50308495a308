"""LoRA fine-tuning of text classifiers with honest cross-validation.

The public names are imported on first use, so that `import lora_cls` is instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Classifier": "commands.predict",
    "Dataset": "data",
    "Recipe": "recipe",
    "RunFolder": "runs",
    "apply_thresholds": "evaluation",
    "blend": "commands.blend",
    "calibrate": "commands.calibrate",
    "compare": "commands.compare",
    "cross_fit_thresholds": "evaluation",
    "cross_validate": "commands.cross_validation",
    "export": "commands.export",
    "load_recipe": "recipe",
    "pos_weight": "training.losses",
    "predict_file": "commands.predict",
    "push": "commands.push",
    "read_table": "data",
    "refit": "commands.refit",
    "score_file": "commands.score",
    "status": "commands.status",
    "stratified_folds": "data",
    "sweep": "commands.sweep",
    "tune": "commands.tune",
    "tune_thresholds": "evaluation",
    "write_submission": "data",
}

__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from lora_cls.commands.blend import blend as blend
    from lora_cls.commands.calibrate import calibrate as calibrate
    from lora_cls.commands.compare import compare as compare
    from lora_cls.commands.cross_validation import cross_validate as cross_validate
    from lora_cls.commands.export import export as export
    from lora_cls.commands.predict import Classifier as Classifier
    from lora_cls.commands.predict import predict_file as predict_file
    from lora_cls.commands.push import push as push
    from lora_cls.commands.refit import refit as refit
    from lora_cls.commands.score import score_file as score_file
    from lora_cls.commands.status import status as status
    from lora_cls.commands.sweep import sweep as sweep
    from lora_cls.commands.tune import tune as tune
    from lora_cls.data import Dataset as Dataset
    from lora_cls.data import read_table as read_table
    from lora_cls.data import stratified_folds as stratified_folds
    from lora_cls.data import write_submission as write_submission
    from lora_cls.evaluation import apply_thresholds as apply_thresholds
    from lora_cls.evaluation import cross_fit_thresholds as cross_fit_thresholds
    from lora_cls.evaluation import tune_thresholds as tune_thresholds
    from lora_cls.recipe import Recipe as Recipe
    from lora_cls.recipe import load_recipe as load_recipe
    from lora_cls.runs import RunFolder as RunFolder
    from lora_cls.training.losses import pos_weight as pos_weight


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"lora_cls.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'lora_cls' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
