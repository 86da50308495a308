"""Tables in, checked datasets and folds out; submissions back to disk. Knows nothing of models.

Reading order: `table` (files), `labels` (0/1 values), `rows` (weights and split), `columns` (what each column is),
`texts`, `dataset`, `folds`, `subsample`, `summary`, `submission`.
"""

from lora_cls.data.columns import Columns, resolve_columns
from lora_cls.data.dataset import Dataset, load_test, load_train, text_hashes, text_key
from lora_cls.data.folds import fold_notes, read_folds, stratified_folds
from lora_cls.data.submission import read_sample_submission, write_submission
from lora_cls.data.subsample import stratified_subsample
from lora_cls.data.summary import summarize
from lora_cls.data.table import TableLike, read_table, table_path

__all__ = [
    "Columns",
    "Dataset",
    "TableLike",
    "fold_notes",
    "load_test",
    "load_train",
    "read_folds",
    "read_sample_submission",
    "read_table",
    "resolve_columns",
    "stratified_folds",
    "stratified_subsample",
    "summarize",
    "table_path",
    "text_hashes",
    "text_key",
    "write_submission",
]
