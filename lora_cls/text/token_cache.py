"""Token ids of texts, kept on disk by content, so that a table is tokenised once and not at every start."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lora_cls.errors import WriteError
from lora_cls.files import make_folder, whole_file
from lora_cls.machine import cache_note

LIMIT = 2 * 2**30  # bytes of all files together; the least recently used are removed first
MIN_CHARACTERS = 200_000  # fewer are tokenised in less time than the file is worth


class TokenCache:
    """Ids of whole texts, before they are cut and framed: `data.max_length` and prompts may change and the ids stay.

    Several processes may use one folder: a file is written under another name and renamed. A cache costs no run
    anything: what is damaged is made again, and what cannot be written is not kept.

    Parameters
    ----------
    folder : made on first writing, readable by its owner only, since ids can be read back as the texts
    said : told what cannot be kept
    """

    def __init__(self, folder: Path, limit: int = LIMIT, said: Callable[[str], None] = lambda _: None) -> None:
        self.folder, self.limit, self._said = folder, limit, said
        self.reused = 0
        """Texts whose ids were found so far."""

    def key(self, tokenizer: Any, texts: Sequence[str], *settings: str) -> str | None:
        """SHA-256 over all that decides the ids; None where nothing is to be kept: few texts, or a tokenizer that is
        Python code, whose serialization does not say all that it does."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        own_code = not type(tokenizer).__module__.startswith("transformers.")
        if own_code or backend is None or sum(map(len, texts)) < MIN_CHARACTERS:
            return None
        digest = hashlib.sha256()
        versions = [metadata.version(package) for package in ("transformers", "tokenizers")]
        split = str(getattr(tokenizer, "split_special_tokens", None))
        for part in (*versions, type(tokenizer).__name__, split, backend.to_str(), *settings, *texts):
            data = part.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()

    def read(self, key: str) -> list[np.ndarray] | None:
        """Ids of every text, ndarrays of int32; None where they are not kept, or the file is damaged."""
        file = self.folder / f"{key}.safetensors"
        try:
            with safe_open(file, framework="np") as opened:
                ids, ends = opened.get_tensor("ids"), opened.get_tensor("ends")
                if opened.metadata()["sha256"] != _sha256(ids, ends) or ids.ndim != 1 or ends.ndim != 1:
                    return None
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None
        with suppress(OSError):  # a cache that cannot be written is read all the same
            os.utime(file)  # used now
        self.reused += len(ends)
        return [ids[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True)]

    def write(self, key: str, ids: Sequence[np.ndarray]) -> None:
        """Keep the ids of every text, or say why not."""
        flat = np.concatenate(ids).astype(np.int32)
        ends = np.cumsum([len(found) for found in ids], dtype=np.int64)
        file = self.folder / f"{key}.safetensors"
        try:
            make_folder(self.folder, rights=0o700)
            if file.is_dir():
                shutil.rmtree(file, ignore_errors=True)
            with whole_file(file, durable=False) as scratch:
                save_file({"ids": flat, "ends": ends}, scratch, {"sha256": _sha256(flat, ends)})
        except WriteError as error:
            self._said(cache_note(error))
            return
        self._evict()

    def _evict(self) -> None:
        found = []
        for file in self.folder.glob("*.safetensors"):
            with suppress(OSError):  # another process removed it
                found.append((file.stat().st_mtime, file.stat().st_size, file))
        total = sum(size for _, size, _ in found)
        for _, size, file in sorted(found):
            if total > self.limit:
                with suppress(OSError):
                    file.unlink(missing_ok=True)
                total -= size


def _sha256(ids: np.ndarray, ends: np.ndarray) -> str:
    return hashlib.sha256(ids.tobytes() + ends.tobytes()).hexdigest()
