"""The run folder: its files and what they hold. Knows nothing of models."""

from lora_cls.runs.folder import EXACT_FLOATS, FoldFolder, RunFolder, read_array, read_csv, read_json
from lora_cls.runs.labelled import Labelled
from lora_cls.runs.tables import training_data

__all__ = [
    "EXACT_FLOATS",
    "FoldFolder",
    "Labelled",
    "RunFolder",
    "read_array",
    "read_csv",
    "read_json",
    "training_data",
]
