"""Reading tables: nothing is guessed away, and each kind of broken file has its own message."""

import gzip
import json

import pandas as pd
import pytest

from lora_cls.data import read_table
from lora_cls.data.table import FILE_LINE
from lora_cls.errors import DataError


@pytest.fixture
def write(tmp_path):
    def _write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    return _write


def test_values_stay_as_written(write):
    """Ids keep their zeros, "NA" and "null" are texts, an empty cell is an empty string."""
    frame = read_table(write("t.csv", "id,text,a\n007,NA,1\n010,null,\n1e5,None,1.0\n"))
    assert frame["id"].tolist() == ["007", "010", "1e5"]
    assert frame["text"].tolist() == ["NA", "null", "None"]
    assert frame["a"].tolist() == ["1", "", "1.0"]


def test_text_is_kept_to_the_character(write):
    """Emoji, a literal backslash-n, doubled quotes, commas and U+2028 come through."""
    frame = read_table(write("t.csv", 'id,text\n1,😀 a\\nb\n2,"say ""hi"", ok"\n3,x\u2028y\n'))
    assert frame["text"].tolist() == ["😀 a\\nb", 'say "hi", ok', "x\u2028y"]


def test_byte_order_mark_is_no_part_of_the_first_name(write):
    """A file saved by Excel has a column id without the mark, quoted header included."""
    assert list(read_table(write("t.csv", b'\xef\xbb\xbf"id",text\n1,a\n')).columns) == ["id", "text"]
    assert list(read_table(write("t.jsonl", b'\xef\xbb\xbf{"id": 1}\n')).columns) == ["id"]


def test_mixed_line_ends_and_blank_lines(write):
    """CRLF, LF and CR in one file each end a row, and the lines are still counted right."""
    frame = read_table(write("t.csv", b"id,text\r\n1,a\n\n2,b\r3,c"))
    assert frame["id"].tolist() == ["1", "2", "3"]
    assert frame.index.tolist() == [2, 4, 5]


def test_index_is_the_file_line_where_a_row_starts(write):
    """A quoted text over several lines does not shift the line numbers of messages."""
    frame = read_table(write("t.csv", 'id,text\n1,"a\nb\nc"\n2,d\n'))
    assert frame.index.name == FILE_LINE
    assert frame.index.tolist() == [2, 5]


def test_long_documents(write):
    """A field above the csv module's 128 KiB limit is read."""
    assert len(read_table(write("t.csv", "text\n" + "x" * 200_000 + "\n"))["text"].iloc[0]) == 200_000


def test_tsv_and_gz(write):
    """TSV and compressed text formats are read by their suffix."""
    assert read_table(write("t.tsv", "id\ttext\n1\ta, b\n"))["text"].tolist() == ["a, b"]
    assert read_table(write("t.csv.gz", gzip.compress(b"id,text\n007,a\n")))["id"].tolist() == ["007"]
    assert read_table(write("t.jsonl.gz", gzip.compress(b'{"id": "007"}\n')))["id"].tolist() == ["007"]


def test_json_lines_keep_integers(write):
    """An integer beside a row without one does not become a float."""
    frame = read_table(write("t.ndjson", '{"id": 7, "text": "a"}\n\n{"text": "x\u2028y", "a": true}\n'))
    assert frame["id"].iloc[0] == 7
    assert isinstance(frame["id"].iloc[0], int)
    assert frame["text"].tolist() == ["a", "x\u2028y"]
    assert frame.index.tolist() == [1, 3]


def test_parquet_round_trip(tmp_path):
    """Strings stay strings, integers beside missing cells stay integers, a named index is a column."""
    table = pd.DataFrame({"text": ["NA", "b"], "n": pd.array([7, None], dtype="Int64")}, index=["007", "008"])
    table.rename_axis("id").to_parquet(tmp_path / "t.parquet")
    frame = read_table(tmp_path / "t.parquet")
    assert frame["id"].tolist() == ["007", "008"]
    assert frame["text"].tolist() == ["NA", "b"]
    assert str(frame["n"].tolist()[0]) == "7"


def test_dataframe_is_copied_and_its_named_index_restored():
    """A DataFrame read with index_col="id" has an id column again, and the user's own stays as it was."""
    given = pd.DataFrame({"text": ["a"]}, index=pd.Index(["007"], name="id"))
    frame = read_table(given)
    assert frame["id"].tolist() == ["007"]
    frame["text"] = "changed"
    assert given["text"].tolist() == ["a"]
    assert list(given.columns) == ["text"]


def test_table_can_be_read_again(write):
    """A table passed on as DataFrame keeps its file name and line numbers."""
    first = read_table(write("t.csv", "id,text\n1,a\n2,b\n"))
    second = read_table(first.iloc[1:])
    assert second.attrs["source"].endswith("t.csv")
    assert second.index.tolist() == [3]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("t.csv", b"", ["t.csv is empty"]),
        ("t.csv", b" \n\n", ["t.csv is empty"]),
        ("t.csv", b"id,text\n", ["no rows", "id, text"]),
        ("t.csv", b"id,text\n1,caf\xe9\n", ["not UTF-8", "0xe9", "position 13", "line 2", "iconv -f WINDOWS-1252"]),
        ("t.csv", "id,text\n1,a\n".encode("utf-16"), ["not UTF-8", "iconv -f UTF-16"]),
        ("t.csv", "id,text\n1,a\n".encode("utf-16-le"), ["not UTF-8 text but UTF-16LE", "iconv -f UTF-16LE"]),
        (
            "t.csv",
            b"id,text\n1,a\n2,b,c\n3\n",
            ["line 3 has 3 fields", "line 4 has 1 fields", "header has 2", "quotes"],
        ),
        ("t.csv", b"id,text,text,id\n1,a,b,c\n", ["more than once", "id, text"]),
        ("t.csv", b"id;text\n1;a\n", ["separated by ';'", "commas"]),
        ("t.csv", b"id\ttext\n1\ta\n", ["rename it to .tsv"]),
        ("t.csv", b'id,text\n1,a\n2,"open\n3,b\n', ["starts on line 3", "quotes"]),
        ("t.csv", b'id,text\n1,"a" b\n', ["starts on line 2", "quoting=3"]),
        ("t.csv.gz", b"id,text\n1,a\n", ["no intact gzip file"]),
        ("t.csv.gz", gzip.compress(b"id,text\n1,abc\n", mtime=0)[:-6], ["no intact gzip file"]),
        ("t.jsonl", b'{"a": 1}\n{"a": \n[1]\n', ["2 problems", "line 2 is not a JSON", "line 3 holds a JSON list"]),
        ("t.jsonl", b'{"a": 1, "a": 2}\n', ["line 1", "'a' stands more than once"]),
        ("t.parquet", b"PAR1 not really", ["no readable Parquet file"]),
        ("t.xls", b"PK", [".xlsx", ".csv", "CSV UTF-8"]),
        ("t.json", b"[]", ["no rows"]),
    ],
)
def test_broken_files(write, name, content, expected):
    """Each kind of damage is named, with the file and the place."""
    path = write(name, content)
    with pytest.raises(DataError) as error:
        read_table(path)
    assert name in str(error.value)
    for words in expected:
        assert words in str(error.value)


def test_missing_file_suggests_its_neighbour(write, tmp_path):
    """A typing mistake in the name is answered with the file that is there."""
    write("train.csv", "id\n1\n")
    with pytest.raises(DataError, match=r"does not exist.*Did you mean 'train.csv'\?"):
        read_table(tmp_path / "trian.csv")
    with pytest.raises(DataError, match="neither does the folder"):
        read_table(tmp_path / "nowhere" / "train.csv")


def test_dataframe_mistakes_are_named():
    """A DataFrame without rows or with two columns of a name is refused under the name it was given."""
    with pytest.raises(DataError, match="my table has no rows"):
        read_table(pd.DataFrame({"a": []}), name="my table")
    with pytest.raises(DataError, match="more than once: a"):
        read_table(pd.DataFrame([[1, 2]], columns=["a", "a"]))


def test_many_bad_lines_are_counted(write):
    """A file in a wrong shape does not fill the screen."""
    with pytest.raises(DataError, match="and 20 more such lines") as error:
        read_table(write("t.jsonl", "\n".join([json.dumps([1])] * 30)))
    assert len(str(error.value).splitlines()) < 15
