"""Tables of a run folder read back what was written, whatever ids and labels hold."""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lora_cls.errors import RunError
from lora_cls.files import write_csv
from lora_cls.runs.io import read_csv, write_values

# halves of characters, which UTF-8 cannot write, are refused where tables are read
ODD = st.text(
    st.one_of(st.sampled_from("\r\n\t\"', \0;\x1a\ufeff\u2028"), st.characters(codec="utf-8")), min_size=1, max_size=6
)
NAMES = ODD.filter(lambda name: name.strip() not in ("", "id"))


@settings(max_examples=80, deadline=None)
@given(ids=st.lists(NAMES, min_size=1, max_size=5), labels=st.lists(NAMES, min_size=1, max_size=3, unique=True))
@example(ids=["a\rb", "a\r\nb", "a\nb", "\r", 'a"b', " a ", "a,b", "NA"], labels=["x\ry", "\rz", " w "])
@example(ids=["a\0b", "\ufeffa", "1e5", "007"], labels=["\0", "\x1a"])
def test_values_read_back(ids, labels):
    """Ids and names of labels to the character, numbers to the last digit."""
    values = np.arange(len(ids) * len(labels)).reshape(len(ids), len(labels)) / 3
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "values.csv"
        write_values(file, ids, labels, values)
        table = read_csv(file)
        assert table["id"].tolist() == ids
        assert list(table.columns) == ["id", *labels]
        np.testing.assert_array_equal(table[labels].to_numpy(), values)
        write_csv(file, pd.DataFrame({"id": ids}))
        assert read_csv(file)["id"].tolist() == ids


def test_bytes_of_plain_tables(tmp_path):
    """Lines end plainly, and only cells that need quotes have them."""
    write_csv(tmp_path / "t.csv", pd.DataFrame({"id": ["a", "b\r"], "v": [0.1, 1.0]}))
    assert (tmp_path / "t.csv").read_bytes() == b'id,v\na,0.1\n"b\r",1.0\n'


def test_folder_in_place_of_a_table(tmp_path):
    with pytest.raises(RunError, match="cannot be read"):
        read_csv(tmp_path)
