"""The documents are true: links lead somewhere, paths exist, and the map of the package names every module.

`python tests/test_documents.py` writes the list of modules in lora_cls/README.md anew from their docstrings.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lora_cls"
MAP = PACKAGE / "README.md"
BEGIN, END = "<!-- Modules, written by `python tests/test_documents.py`: do not edit by hand. -->", "<!-- End. -->"
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), MAP, *ROOT.glob("recipes/*.md"), *ROOT.glob("benchmarks/*.md")], key=lambda file: str(file)
)


def anchors(file):
    """Anchors of a Markdown file's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_lead_somewhere(file):
    """Every relative link of a document names a file, and an anchor that is there."""
    text = re.sub(r"```.*?```", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (file.parent / path).resolve() if path else file
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_paths_exist(file):
    """What stands between backquotes and looks like a file of this repository is one."""
    text = file.read_text(encoding="utf-8")
    named = re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|yaml|md|j2))(?::\w+)?`", text)
    own = [path for path in named if not re.search(r"(^|/)[A-Z]+(/|\.)", path)]  # RUN/recipe.yaml: a placeholder
    assert not [path for path in own if not (ROOT / path).exists() and not (PACKAGE / path).exists()]


def modules():
    """Lines of Markdown: a list per room of its files, and what each says of itself."""
    lines = []
    for folder in sorted({file.parent for file in PACKAGE.rglob("*.py")}):
        files = [file for file in sorted(folder.glob("*.py")) if file.name != "__init__.py"]
        if not files:
            continue
        name = f"{folder.relative_to(ROOT)}/"
        about = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
        lines += [f"**{name}** {first_sentence(about)}", ""]
        for file in files:
            said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
            lines.append(f"- `{file.name}`: {first_sentence(said)}")
        lines.append("")
    return lines


def first_sentence(text):
    """Up to the first full stop that ends a sentence, on one line."""
    whole = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[.]) (?=[A-Z`])", whole)[0]


def test_map_is_current():
    """The map of the package holds every module with the first sentence of its docstring."""
    inside = MAP.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip().splitlines()
    assert inside == "\n".join(modules()).strip().splitlines(), "renew it with: python tests/test_documents.py"


def test_every_module_says_what_it_is():
    """No module without a docstring of its own."""
    silent = [
        str(f.relative_to(ROOT)) for f in PACKAGE.rglob("*.py") if not ast.get_docstring(ast.parse(f.read_text()))
    ]
    assert not silent


if __name__ == "__main__":
    before, _, rest = MAP.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    MAP.write_text(f"{before}{BEGIN}\n\n" + "\n".join(modules()).rstrip() + f"\n\n{END}{after}", encoding="utf-8")
