"""The run folder: its files and what they hold. Knows nothing of models.

Reading order: `io` (tables and arrays), `sums` and `lock`, `records` (JSON files as values), `out_of_fold`, `fold`,
`folder`, `aligned` (several runs as one), `tables` and `labelled` (the user's tables, read again as a run read them).
"""

from lora_cls.runs.aligned import AlignedRun, align
from lora_cls.runs.fold import FoldFolder
from lora_cls.runs.folder import Results, RunFiles, RunFolder
from lora_cls.runs.io import read_array, read_csv
from lora_cls.runs.labelled import Labelled
from lora_cls.runs.out_of_fold import OutOfFold
from lora_cls.runs.records import Decision, FoldInfo, RunInfo, Scores, ScoreSet, TableScores, TestRows
from lora_cls.runs.tables import training_data

__all__ = [
    "AlignedRun",
    "Decision",
    "FoldFolder",
    "FoldInfo",
    "Labelled",
    "OutOfFold",
    "Results",
    "RunFiles",
    "RunFolder",
    "RunInfo",
    "ScoreSet",
    "Scores",
    "TableScores",
    "TestRows",
    "align",
    "read_array",
    "read_csv",
    "training_data",
]
