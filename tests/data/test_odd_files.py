"""Files as people have them: without a header, in another encoding, from a spreadsheet, as one array, damaged."""

import gzip
import json
import shlex
import subprocess
import sys

import pandas as pd
import pytest

from lora_cls.data import load_test, load_train, read_folds, read_table
from lora_cls.errors import DataError
from lora_cls.recipe import Data

ROWS = [
    ("t1", "Ich bin heute sehr froh", 1),
    ("t2", "Das macht mich richtig wütend", 0),
    ("t3", "Es ist, wie es ist", 0),
]


def written(tmp_path, name, content):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def message(file):
    with pytest.raises(DataError) as error:
        read_table(file)
    assert len(str(error.value)) < 2000
    return str(error.value)


def csv_of(rows, mark=","):
    return "".join(mark.join(f'"{cell}"' for cell in row) + "\n" for row in rows)


# Headers


@pytest.mark.parametrize(("suffix", "mark"), [(".csv", ","), (".tsv", "\t")])
@pytest.mark.parametrize(
    "rows",
    [
        ROWS,
        [(i, text, label) for i, (_, text, label) in enumerate(ROWS)],
        [row[:2] for row in ROWS],
        [(row[0], row[2]) for row in ROWS],
        [(row[1], name) for row, name in zip([*ROWS, *ROWS], ["joy", "anger"] * 3, strict=True)],
    ],
)
def test_no_header(tmp_path, rows, suffix, mark):
    """Training tables, test tables, samples and folds without a header are refused, not read with a row less."""
    said = message(written(tmp_path, f"t{suffix}", csv_of(rows, mark)))
    assert "seems to have no header" in said and f"{rows[0][0]}" in said


def test_no_header_in_a_frame():
    """The same where pandas took the first row for the header."""
    with pytest.raises(DataError, match="seems to have no header"):
        read_table(pd.DataFrame(ROWS[1:], columns=[str(cell) for cell in ROWS[0]]))


def test_names_that_may_be_cells_are_noted(tmp_path):
    """Where it is not sure the table is read, and the note stands with the other notes and below errors."""
    numbered = pd.DataFrame({"t": ["a text", "b text", "c text"] * 2, "0": [0, 1, 0] * 2, "1": [1, 0, 0] * 2})
    note = "the first line was taken for the header: the names '0', '1' look like cells"
    assert any(note in found for found in load_train(Data(label_columns=["0", "1"]), numbered).notes)
    assert any(note in found for found in load_test(Data(text_columns=["t"]), numbered).notes)
    with pytest.raises(DataError, match=note):
        load_train(Data(label_columns=["x"]), numbered)
    assert "If the file has no header" in message(written(tmp_path, "t.csv", "t1,a text,0,0\nt2,b text,0,1\n"))


def test_usual_headers_are_not_doubted(tmp_path):
    """A class named like its column, numbered labels, long questions as names: read, without a note."""
    spam = pd.DataFrame({"id": ["a", "b"] * 3, "text": ["one", "two"] * 3, "spam": ["spam", "ham"] * 3})
    assert read_table(spam).attrs["header"] == ""
    question = pd.DataFrame(
        {"no": [1, 2], "What did you like about the stay?": ["the very good food", "not much at all"]}
    )
    assert len(read_table(question)) == 2
    assert len(read_table(pd.DataFrame([[0, 1], [1, 0]]))) == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", "id,text\n1,a\nid,text\n2,b\n"),
        ("t.csv", 'id,text\n1,"a"\n\ufeffid , text\n2,b\n'),
        ("t.tsv", "id\ttext\n1\ta\nid\ttext\n2\tb\n"),
    ],
)
def test_repeated_header(tmp_path, name, content):
    """Files put one behind another: the header in their middle is no row."""
    assert "line 3 repeats the header" in message(written(tmp_path, name, content))


def test_one_column_may_hold_its_own_name(tmp_path):
    """A text `text` is a text."""
    assert len(read_table(written(tmp_path, "t.csv", "text\ntext\nother\n"))) == 2


def test_folds_and_samples_without_a_header(tmp_path):
    """The tables beside the training table, too."""
    file = written(tmp_path, "folds.csv", "t1,0\nt2,1\nt3,0\n")
    with pytest.raises(DataError, match="no header"):
        read_folds(file, ["t1", "t2", "t3"])


# Encodings


def test_one_broken_byte_in_utf8(tmp_path):
    """Where the rest is UTF-8 nothing advises a conversion, which would spoil it; line and byte are named."""
    said = message(written(tmp_path, "t.csv", "id,text\n1,größer\n2,caf".encode() + b"\xe9\n3,\xfc\n"))
    assert "2 broken bytes (0xe9 on line 3, 0xfc on line 4) in a file that is UTF-8 elsewhere" in said
    assert "iconv" not in said


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("id,text\n1,Привет мир\n", "cp1251"),
        ("id,text\n1,café größer\n", "cp850"),
        ("id,text\n1,café größer\n", "mac_roman"),
        ("id,text\n1,Καλημέρα κόσμε\n", "cp1253"),
        ("id,text\n1,日本語のテキスト\n", "shift_jis"),
        ("id,text\n1,汉字文本\n", "gb18030"),
    ],
)
def test_other_encodings_get_no_wrong_advice(tmp_path, text, encoding):
    """A file that reads as nonsense in Windows-1252 is not converted from it."""
    said = message(written(tmp_path, "t.csv", text.encode(encoding)))
    assert "line 2" in said and "iconv" not in said and "as UTF-8" in said


@pytest.mark.skipif(sys.platform == "win32", reason="advice for a shell")
@pytest.mark.parametrize("name", ["t.csv", "it's a table.csv", "t.csv.gz"])
@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("id,text\n1,“Größer – café” für 5 € an der Straße\n", "cp1252"),
        ("id,text\n1,Größer\n", "utf-16"),
        ("id,text\n1,Größer\n", "utf-16-le"),
        ("id,text\n1,Größer\n", "utf-16-be"),
        ("id,text\n1,Größer\n", "utf-32"),
        ("id,text\n1,Grö\0ßer\n", "utf-8"),
    ],
)
def test_advice_works_when_pasted(tmp_path, name, text, encoding):
    """The command makes a file that is read, with the right characters."""
    content = text.encode(encoding)
    said = message(written(tmp_path, name, gzip.compress(content) if name.endswith(".gz") else content))
    command = said[
        min(said.find(f"{tool} {shlex.quote(str(tmp_path / name))}") % 10**6 for tool in ("cat", "gunzip -c")) :
    ]
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    made = tmp_path / f"utf8_{name.removesuffix('.gz')}"
    assert read_table(made)["text"].tolist() == [text.split(",", 2)[2].strip().replace("\0", "")]


def test_nul_characters(tmp_path):
    """A file damaged by zeros: the lines, and no advice to convert it."""
    said = message(written(tmp_path, "t.csv", b"id,text\n1,some longer text\n2,an\0other\n3,c" + b"\0" * 8))
    assert "9 NUL characters" in said and "line 3, 4" in said and "iconv" not in said


def test_byte_order_marks(tmp_path):
    """One that stands twice is no part of the first name."""
    for name, content in (
        ("t.csv", '\ufeff\ufeff"id",text\n1,a\n'),
        ("t.jsonl", '\ufeff\ufeff{"id": "1", "text": "a"}'),
    ):
        assert read_table(written(tmp_path, name, content)).to_dict("records") == [{"id": "1", "text": "a"}]


def test_other_kinds_of_files_under_a_wrong_name(tmp_path):
    """A workbook, archive or Parquet file that is called .csv is known by its first bytes."""
    assert ".xlsx" in message(written(tmp_path, "t.csv", b"PK\x03\x04" + bytes(50)))
    assert ".parquet" in message(written(tmp_path, "t.csv", b"PAR1" + bytes(50)))
    assert "gzip" in message(written(tmp_path, "t.csv", gzip.compress(b"id,text\n")))


# Formats


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_separator_line(tmp_path, mark, quote):
    """`sep=;`, as spreadsheets want it, says the separator and is no row; lines are counted with it."""
    content = f"\ufeff{quote}sep={mark}{quote}\r\nid{mark}text\r\n1{mark}a\r\n"
    frame = read_table(written(tmp_path, "t.csv", content))
    assert frame.to_dict("records") == [{"id": "1", "text": "a"}]
    assert frame.index.tolist() == [3]
    assert "line 3 has 3 fields" in message(
        written(tmp_path, "u.csv", content.replace(f"1{mark}a", f"1{mark}a{mark}b"))
    )


@pytest.mark.parametrize("name", ["t.json", "t.jsonl", "t.json.gz"])
@pytest.mark.parametrize("indent", [None, 2])
def test_json_array(tmp_path, name, indent):
    """One array of objects, whatever the file is called, and JSON lines in a .json file."""
    rows = [{"id": "007", "text": "a [b]"}, {"id": "8", "text": "c\nd"}]
    lines = "\n".join(map(json.dumps, rows))
    for content in (json.dumps(rows, indent=indent), lines):
        packed = gzip.compress(content.encode()) if name.endswith(".gz") else content
        assert read_table(written(tmp_path, name, packed)).to_dict("records") == rows


def test_json_of_another_shape(tmp_path):
    """Columns of columns, data within an object, items that are no objects: each is named."""
    assert 'orient="records"' in message(written(tmp_path, "t.json", pd.DataFrame({"a": [1]}).to_json()))
    assert "one JSON object (data)" in message(written(tmp_path, "t.json", '{"data": [{"a": 1}]}'))
    assert "item 2 holds a JSON int" in message(written(tmp_path, "t.json", '[{"a": 1}, 2]'))
    assert "not a JSON object" in message(written(tmp_path, "t.json", '[{"a": 1},'))
    assert "not a JSON object" in message(written(tmp_path, "t.json", "[" * 100_000))


@pytest.mark.parametrize("digits", [309, 5000])
def test_endless_integers(tmp_path, digits):
    """An integer beyond every float keeps its digits as an id, and is no weight, fold or label."""
    number = "1" * digits
    lines = [f'{{"id": {number}{i}, "text": "some text {i}", "joy": {i % 2}, "w": {number}}}' for i in range(4)]
    file = written(tmp_path, "t.jsonl", "\n".join(lines))
    assert load_train(Data(label_columns=["joy"]), file).ids[3] == number + "3"
    for config in (Data(weight_column="w", label_columns=["joy"]), Data(label_columns=["w"], soft_labels=True)):
        with pytest.raises(DataError) as error:
            load_train(config, file)
        assert len(str(error.value)) < 2000
    with pytest.raises(DataError, match="fold must be an integer"):
        read_folds(pd.DataFrame({"id": ["a", "b"], "fold": [10**400, 0]}), ["a", "b"])


@pytest.mark.parametrize("place", ["id", "text", "tag", "name"])
def test_halves_of_characters(tmp_path, place):
    """JSON can write a lone surrogate, and no file can hold one: refused wherever it stands."""
    rows = [{"id": str(i), "text": f"text {i}", "tag": "ab"[i % 2]} for i in range(4)]
    rows[2] |= {"\ud800": 1} if place == "name" else {place: "\ud800"}
    file = written(tmp_path, "t.jsonl", "\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"line 3.*ud800|line 3.*half of a character|half of a character.*line 3"):
        load_train(Data(label_columns=["tag"]), file)


def test_parquet_with_damaged_notes_of_pandas(tmp_path):
    """What pandas wrote of its index is not needed to read the columns."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for notes in (b"{", b"[]", b'{"index_columns": 7}', b'{"index_columns": ["gone"], "columns": [{}]}', b"\xff\xfe"):
        table = pa.table({"id": ["007"], "n": [7]}).replace_schema_metadata({b"pandas": notes})
        pq.write_table(table, tmp_path / "t.parquet")
        assert read_table(tmp_path / "t.parquet")["id"].tolist() == ["007"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".xlsx", ""])
def test_folder_in_place_of_a_table(tmp_path, suffix):
    """Of any name."""
    (tmp_path / f"t{suffix}").mkdir()
    assert "is a folder; give the path of a table" in message(tmp_path / f"t{suffix}")


def test_impossible_paths(tmp_path):
    """Too long, of nobody's home, below a file, with a NUL: sentences."""
    for path in (
        tmp_path / ("x" * 300 + ".csv"),
        "~nobody-here/t.csv",
        written(tmp_path, "f.csv", "a") / "t.csv",
        "a\0.csv",
    ):
        assert message(path)


def test_too_little_memory(tmp_path, monkeypatch):
    """A table that does not fit is said so."""
    file = written(tmp_path, "t.csv", "id,text\n1,a\n")
    monkeypatch.setattr("lora_cls.data.table.decode", lambda *_: (_ for _ in ()).throw(MemoryError))
    assert "too large for this machine's memory" in message(file)


# Excel


def workbook(file, **sheets):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(file)
    return file


def test_excel(tmp_path):
    """Texts stay as written, integers are ids without .0, rows keep their number, empty rims do not count."""
    rows = [[None] * 3, ["id", "text", "joy", None], [7, "007", True], [8, None, 0], [None, None, None], [9.0, "NA", 1]]
    frame = read_table(workbook(tmp_path / "t.xlsx", empty=[], table=rows))
    assert frame.to_dict("list") == {"id": [7, 8, 9], "text": ["007", "", "NA"], "joy": [True, 0, 1]}
    assert frame.index.tolist() == [3, 4, 6]
    assert load_train(Data(on_missing="drop"), tmp_path / "t.xlsx").ids == ["7", "9"]


def test_excel_that_cannot_be_read(tmp_path):
    """Several sheets, none, a damaged file."""
    rows = [["id", "text"], [1, "a"]]
    assert "several sheets with cells (a, b)" in message(workbook(tmp_path / "t.xlsx", a=rows, b=rows))
    assert "is empty" in message(workbook(tmp_path / "u.xlsx", a=[]))
    assert "no rows" in message(workbook(tmp_path / "v.xlsx", a=[["id", "text"]]))
    assert "no readable Excel file" in message(written(tmp_path, "w.xlsx", b"PK\x03\x04 broken"))


def test_excel_without_openpyxl(tmp_path, monkeypatch):
    """Advice to install it, or to save as CSV."""
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    assert "pip install openpyxl" in message(written(tmp_path, "t.xlsx", b"PK"))
