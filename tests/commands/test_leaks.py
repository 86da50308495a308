"""Texts and paths are found however a file spells them, and nothing is found where there is none."""

import html
import json

import pytest
import yaml

from lora_cls.commands.leaks import QUOTED, SHORTEST, local_paths, quoted_texts

TEXT = 'Größe <b>"XL"</b> & más 😀\n it was\ttoo late again, and the box was crushed; I want my money back, at once'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.md", f"It says:\n\n> {TEXT}"),
        ("a.json", json.dumps({"x": [TEXT]})),
        ("b.json", json.dumps({"x": [TEXT]}, ensure_ascii=False)),
        ("a.html", f"<td>{html.escape(TEXT)}</td>"),
        ("b.html", f"<script>const x = {json.dumps(TEXT)};</script>"),
        ("a.yaml", yaml.safe_dump({"prompt": f"Example: {TEXT}"})),
        ("b.yaml", yaml.safe_dump({"prompt": f"Example: {TEXT}"}, allow_unicode=True)),
        ("a.txt", " ".join(TEXT.split())[:QUOTED] + " ..."),
    ],
)
def test_a_text_is_found(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    (said,) = quoted_texts(tmp_path, ["something else that nobody says", TEXT], ["r1", "r2"])
    assert said == f"{name} holds the text of a training row: 'r2'."


def test_what_is_no_quotation(tmp_path):
    """Another text with the same start, a short one, one that is no text file."""
    (tmp_path / "a.md").write_text(" ".join(TEXT.split())[: SHORTEST + 5] + " and then something else\nhappy")
    (tmp_path / "b.bin").write_text(TEXT)
    assert quoted_texts(tmp_path, [TEXT, "happy", ""], ["r1", "r2", "r3"]) == []


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ('"base": "/home/ann/models/x"', "/home/ann/models/x"),
        ('{"a": "see\\n/home/ann/x"}', "/home/ann/x"),
        ("from_pretrained('/tmp/abc/base')", "/tmp/abc/base"),
        ("path=/mnt/data/x.csv,", "/mnt/data/x.csv"),
        ("~/models/x", "~/models/x"),
        ("file:///opt/x/y", "file:///opt/x/y"),
        (r"C:\Users\ann\x.csv", r"C:\Users\ann\x.csv"),
        ("https://huggingface.co/home/x and org/home/x, and/or ./tmp/x, w: \\d+, a/b, /x, 1/2", None),
    ],
)
def test_paths(tmp_path, content, found):
    (tmp_path / "a.json").write_text(content)
    said = local_paths(tmp_path)
    assert said == ([] if found is None else [f"a.json holds a path of this machine: {found!r}."])


def test_paths_in_weights(tmp_path):
    """Of safetensors the header is read, of other files all bytes."""
    import numpy as np
    from safetensors.numpy import save_file

    save_file({"a": np.frombuffer(b"/home/ann/x1", dtype=np.uint8)}, tmp_path / "a.safetensors")
    assert local_paths(tmp_path) == []
    save_file({"a": np.zeros(2)}, tmp_path / "b.safetensors", metadata={"made": "/home/ann/x"})
    (tmp_path / "c.onnx").write_bytes(b"\0\xff/home/ann/site-packages/torch.py\0")
    assert len(local_paths(tmp_path)) == 2
