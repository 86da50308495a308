"""Bases that were trained on the texts of a run: folders of the cache, found again by what they follow from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_cls.errors import BackboneError, RunError
from lora_cls.machine import cache_folder
from lora_cls.modeling.source import Source, find_source
from lora_cls.recipe import Backbone
from lora_cls.runs.records import Adaptation
from lora_cls.runs.sums import check

ABOUT = "adaptation.json"
ADAPTED = "adapted"
"""The key in a run's choices that holds what `adaptation.json` says, and `folder`."""


def adapted_place(name: str) -> Path:
    """Where an adapted base of this name lies in the cache folder."""
    return cache_folder() / ADAPTED / name


def read_adapted(folder: Path, key: str) -> Adaptation | None:
    """What `adaptation.json` says of the base in a folder; None unless it is whole and of this key."""
    try:
        about = Adaptation.read(folder / ABOUT)
        check(folder, about.files, "")
    except RunError:
        return None
    return about if about.key == key else None


def find_adapted(noted: Mapping[str, Any], place: str | None = None) -> Path | None:
    """The folder of a run's adapted base, whole and unchanged; None where there is none.

    Parameters
    ----------
    noted : the run's choice `ADAPTED`
    place : looked into first
    """
    places = [Path(place).expanduser()] if place is not None else []
    noted_folder = Path(noted["folder"])
    places += [noted_folder] if noted_folder.is_absolute() else []
    places.append(adapted_place(noted_folder.name))
    return next((folder for folder in places if read_adapted(folder, noted["key"]) is not None), None)


def run_source(backbone: Backbone, choices: Mapping[str, Any], place: str | None, *, needed: bool = False) -> Source:
    """Where the base of a run lies: the adapted one where there is one and it is found, else the one before.

    Parameters
    ----------
    choices : of the run
    place : another place of the base, adapted or before; None for where the recipe and the run say
    needed : whether an adapted base that is not found is an error

    Raises
    ------
    BackboneError
        See `find_source`.
    """
    noted = choices.get(ADAPTED)
    if noted is not None:
        if (folder := find_adapted(noted, place)) is not None:
            return adapted_source(backbone, folder)
        if needed:
            raise adapted_is_gone(noted)
    return find_source(place or backbone.name_or_path, backbone.revision)


def adapted_source(backbone: Backbone, folder: Path) -> Source:
    """An adapted base as it is opened and called."""
    return Source(f"{backbone.name_or_path}, adapted", str(folder.resolve()))


def is_adapted(source: Source, noted: Mapping[str, Any]) -> bool:
    """Whether a source is the adapted base of a run, by its choice `ADAPTED`."""
    try:
        return source.is_local and Adaptation.read(Path(source.path_or_id) / ABOUT).key == noted["key"]
    except RunError:
        return False


def adapted_is_gone(noted: Mapping[str, Any]) -> BackboneError:
    """What is said where a run's adapted base is not found."""
    return BackboneError(
        f"The base of this run was adapted to its texts, and is no longer at {noted['folder']}. Make it again from the "
        "same texts with the command that made the run and --resume, or say with --backbone where a copy of the folder "
        "lies."
    )
