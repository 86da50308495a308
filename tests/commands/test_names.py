"""Names of labels, folders and tables are anyone's: in Markdown, in code and on a terminal they are text alone."""

import ast
from types import SimpleNamespace

import numpy as np
import pytest
from markdown_it import MarkdownIt

from lora_cls.commands.compare import compare
from lora_cls.errors import RunError
from lora_cls.recipe import load_recipe
from lora_cls.report.card import snippet
from lora_cls.report.comparison import markdown, write_comparison
from lora_cls.report.sentences import settings_rows
from lora_cls.report.templating import fill
from lora_cls.runs import RunInfo

NAMES = (
    "joy\n\n```python\nimport os; os.system('id')\n```\n\n<script>alert(1)</script>",
    "| x | [here](https://a.example) ![](https://b.example/p.png) `code` **b** __b__ _i_ <b>"
    "\x1b[2J\u202e www.c.example $x$",
)
TEXT = {"heading_open", "heading_close", "paragraph_open", "paragraph_close", "inline", "fence"}
INLINE = {"text", "strong_open", "strong_close", "code_inline", "softbreak"}


def tokens(text):
    """All tokens of a Markdown text with HTML and tables on."""
    parser = MarkdownIt("commonmark", {"html": True}).enable("table")
    found = parser.parse(text.partition("---\n\n")[2] if text.startswith("---\n") else text)
    return found, [child for token in found for child in token.children or []]


@pytest.fixture
def runs(make_run, problem):
    y_true, fold, logits = problem(60)
    return [make_run(name, logits(1), y_true, fold, names=NAMES) for name in ("<script>|`a` [b](c)", "plain")]


def test_card(runs):
    """A run's card holds one code block, ours, and nothing that its labels' or its folder's names would make."""
    text = (runs[0].path / "README.md").read_text()
    blocks, inline = tokens(text)
    assert [token.content for token in blocks if token.type == "fence"] == [
        'from lora_cls import Classifier\n\nclassifier = Classifier.load(".")\n'
        'texts = ["a text"]\nprint(classifier.predict_proba(texts))\nprint(classifier.predict_labels(texts))\n'
    ]
    assert {token.type for token in blocks if not token.type.startswith(("t", "inline"))} <= TEXT
    assert {token.type for token in inline} <= INLINE
    assert {token.content for token in inline if token.type == "code_inline"} == {
        "run.json",
        "recipe.yaml",
        "fold-*/",
        "text_hashes.npy",
    }
    assert [token.type for token in inline].count("strong_open") == 1  # ours, of vocabularies
    shown = [token.content for token in blocks if token.type == "inline"]
    rows = 1 + len(NAMES) + 1 + len(settings_rows(runs[0].recipe))  # two tables and their headers
    assert len([row for row in blocks if row.type == "tr_open"]) == rows
    assert any(text.startswith("joy") and "script" in text for text in shown)
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_comparison(runs, tmp_path):
    """compare.md holds its tables and its picture, and nothing else."""
    found = compare([run.path for run in runs])
    text = markdown(found)
    blocks, inline = tokens(text)
    assert {token.type for token in blocks if not token.type.startswith("t")} <= TEXT - {"fence"}
    assert [token.attrs["src"] for token in inline if token.type == "image"] == ["compare.svg"]
    assert {token.type for token in inline} <= {"text", "image", "strong_open", "strong_close", "softbreak"}
    assert "\x1b" not in text
    write_comparison(found, tmp_path / "compare")
    assert "\x1b" not in (tmp_path / "compare" / "compare.svg").read_text()


def test_export():
    """The card of an export is made of the same names, and of a base's and a table's."""
    compression = SimpleNamespace(share=0.9, lowest_module=NAMES[1], lowest_share=0.8)
    about = SimpleNamespace(kind="adapter", rank=4, exact_rank=8, folds=[0, 1], compression=compression)
    interval = SimpleNamespace(estimate=0.5, low=0.4, high=0.6)
    way = SimpleNamespace(
        model="refit", rank=4, macro_f1=interval, difference=interval, seconds=1.0, rows_per_second=2.0
    )
    text = fill(
        "export.md.j2", about=about, scores=[way, way], scored=SimpleNamespace(rows=3, table=NAMES[0]), run=NAMES[0],
        base=NAMES[0], full=False, quantized=False, label_names=NAMES, no_score="It has no score", why=" so.",
        probabilities="`softmax`", columns=None, mapped=None, snippet="x = '```'\n",
    )  # fmt: skip
    blocks, inline = tokens(text)
    assert next(token.content for token in blocks if token.type == "fence") == "x = '```'\n"
    assert len([token for token in blocks if token.type == "fence"]) == 2
    assert {token.type for token in blocks if not token.type.startswith("t")} <= TEXT
    assert {token.type for token in inline} <= INLINE


def test_terminal(runs, capsys):
    """No table and no line on the terminal holds a control character but the end of the line."""
    from lora_cls.terminal import print_comparison, print_run

    print_run(runs[0])
    print_comparison(compare([run.path for run in runs]), [])
    said = capsys.readouterr().out
    assert "\\x1b[2J" in said
    assert "\x1b" not in said
    assert "\u202e" not in said


@pytest.mark.parametrize("found", ['float32, x=__import__("os")', "float32\nimport os"])
def test_no_code_comes_from_run_json(found):
    """What stands in the code without quotes is a name, or the folder is refused."""
    recipe = load_recipe({"backbone": {"name_or_path": "base"}, "lora": {"r": 4}})
    for choices in ({"dtype": found}, {"dtype": "float32", "depth": {found: 3}}):
        info = RunInfo.model_construct(choices={"attn_implementation": "sdpa"} | choices, backbone_path=None)
        with pytest.raises(RunError, match=r"run\.json is damaged"):
            snippet(recipe, info, ["joy"], "fold-00")


def test_code_shows_what_it_says():
    """Marks that turn the direction of text stand as their code in the snippet, which opens what is named."""
    path = 'a"b\u202e😀'
    recipe = load_recipe({"backbone": {"name_or_path": "base"}, "lora": {"r": 4}})
    choices = {"dtype": "float32", "attn_implementation": path}
    code = snippet(recipe, RunInfo.model_construct(choices=choices, backbone_path=path), ["joy"], "fold-00")
    assert "\u202e" not in code
    strings = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    assert strings.count(path) == 3
    assert np.isin(["fold-00/adapter"], strings).all()
