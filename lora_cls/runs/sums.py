"""SHA-256 of what a run wrote, so that a file that was changed since is an error and never another answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lora_cls.errors import RunError
from lora_cls.runs.io import changed

CHUNK = 2**20  # bytes that are read at a time


def sha256(file: Path) -> str:
    """In hexadecimal, whatever the size of the file."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while chunk := opened.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sums(root: Path, places: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of the files among `places`, and of all files in the folders among them, by path from `root`."""
    files = [file for place in places for file in (sorted(place.rglob("*")) if place.is_dir() else [place])]
    return {file.relative_to(root).as_posix(): sha256(file) for file in files if file.is_file()}


def check(root: Path, noted: Mapping[str, str], remedy: str) -> None:
    """Compare files with the sums that were noted of them, by path from `root`.

    Raises
    ------
    RunError
        If a file is missing or was changed.
    """
    for path, wanted in noted.items():
        if not (root / path).is_file():
            raise RunError(f"{root / path} is missing.{remedy}")
        if sha256(root / path) != wanted:
            raise changed(root / path, remedy)


def of_values(values: Mapping[str, Any]) -> str:
    """SHA-256 of the JSON of an object, its own field `sha256` left out."""
    own = {key: value for key, value in values.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(own, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()
