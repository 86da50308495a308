"""What must not leave this machine: its paths, and texts of training rows, looked for in the files of a folder."""

from __future__ import annotations

import html
import json
import mmap
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from lora_cls.errors import shown
from lora_cls.yaml_text import read_yaml

TEXT_FILES = {".md", ".json", ".jsonl", ".yaml", ".html", ".txt", ".csv", ".jinja", ".py"}
TOKENIZER = {"tokenizer.json", "vocab.json", "vocab.txt", "merges.txt"}
"""The base's own, large, and of words."""
SHORTEST = 20
"""Characters of a text that is looked for: shorter ones are found where nobody quoted them."""
QUOTED = 60
"""Characters from a text's start that are a quotation of it."""
_SPACES = re.compile(r"\s+")
# Folders that paths of somebody's machine start with, beside those that this machine has
_ROOTS = [
    *("home", "Users", "root", "tmp", "var", "opt", "mnt", "media", "srv", "private", "Volumes", "workspace"),
    *("content", "kaggle", "scratch", "gpfs", "usr"),
]


def local_paths(folder: Path) -> list[str]:
    """Paths of a machine in a folder's files, a sentence for each file that holds some.

    Of safetensors only the header is read, as numbers are no text.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     _ = Path(folder, "a.json").write_text('{"base": "/home/ann/models/base", "see": "https://e.org/home/x"}')
    ...     local_paths(Path(folder))
    ["a.json holds a path of this machine: '/home/ann/models/base'."]
    """
    pattern = _paths_pattern()
    problems = []
    for name, file in _files(folder):
        found = dict.fromkeys(match.decode("utf-8", "replace") for match in _matches(file, pattern))
        if found:
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            problems.append(f"{name} holds a path of this machine: {shown(next(iter(found)))}{more}.")
    return problems


def quoted_texts(folder: Path, texts: Sequence[str], ids: Sequence[str]) -> list[str]:
    """Texts that files of a folder quote, a sentence for each such file.

    A text is quoted where its first `QUOTED` characters stand, all of a shorter one, whatever the spaces between words
    and however the file escapes them. Texts of fewer than `SHORTEST` characters are not looked for.

    Parameters
    ----------
    texts, ids : of the rows; ids name them
    """
    starts: dict[str, list[tuple[str, str]]] = {}
    for name, text in zip(ids, texts, strict=True):
        plain = _plain(text)
        if len(plain) >= SHORTEST:
            starts.setdefault(plain[:SHORTEST], []).append((plain[:QUOTED], name))
    problems = []
    for name, file in _files(folder):
        if file.suffix not in TEXT_FILES or file.name in TOKENIZER or not starts:
            continue
        found: dict[str, None] = {}
        for content in _readings(file):
            for i in range(len(content) - SHORTEST + 1):
                for start, row in starts.get(content[i : i + SHORTEST], ()):
                    if content.startswith(start, i):
                        found[row] = None
        if found:
            rows = "the text of a training row" if len(found) == 1 else f"texts of {len(found)} training rows"
            problems.append(f"{name} holds {rows}: {shown(next(iter(found)))}{', ...' if len(found) > 1 else ''}.")
    return problems


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            yield file.relative_to(folder).as_posix(), file


def _paths_pattern() -> re.Pattern[bytes]:
    here = [name for name in os.listdir(os.sep) if len(name) > 2] if os.sep == "/" else []
    roots = b"|".join(sorted({re.escape(os.fsencode(name)) for name in [*_ROOTS, *here]}))
    end = rb"[^\s\"'<>|;,)\]}\\\x00-\x1f\x7f-\xff]"
    return re.compile(
        rb"(?<![\w.:/~@%+\\-])(?:file:/{2,3})?(?:"
        rb"/(?:" + roots + rb")/" + end + rb"+"  # /home/ann/...
        rb"|~/" + end + rb"+"
        rb"|[A-Za-z]:\\{1,2}(?:Users|[A-Za-z][\w -]+\\)[^\s\"'<>|]*"  # C:\Users\ann
        rb")"
    )


def _matches(file: Path, pattern: re.Pattern[bytes]) -> list[bytes]:
    if file.suffix in TEXT_FILES:
        return [found for said in _readings(file) for found in pattern.findall(said.encode())]
    if file.stat().st_size == 0:
        return []
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if file.suffix == ".safetensors":
            return pattern.findall(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return pattern.findall(content)


def _readings(file: Path) -> list[str]:
    """What a text file says, as it stands and without its escapes."""
    content = file.read_text(encoding="utf-8", errors="replace")
    read = [content]
    if file.suffix in (".html", ".md"):
        read.append(html.unescape(content))
    if file.suffix == ".yaml":  # whose strings are folded, too
        read += _strings(read_yaml(content))
    else:
        read.append(_unescaped(content))
    return [_plain(said) for said in dict.fromkeys(read)]


def _strings(value: object) -> list[str]:
    """All strings in a value of YAML."""
    if isinstance(value, dict):
        return [said for pair in value.items() for part in pair for said in _strings(part)]
    if isinstance(value, list):
        return [said for part in value for said in _strings(part)]
    return [value] if isinstance(value, str) else []


def _unescaped(content: str) -> str:
    r"""With what JSON and Python escape in strings as it is meant: `\n`, `\"`, `\u00e9`."""

    def meant(found: re.Match[str]) -> str:
        try:
            return str(json.loads(f'"{found[0]}"'))
        except ValueError:
            return " "

    # a character beyond the first plane is a pair of \uXXXX
    return re.sub(r"(?:\\u[0-9a-fA-F]{4})+|\\[\"\\/bfnrt]", meant, content)


def _plain(text: str) -> str:
    return _SPACES.sub(" ", text).strip()
