"""Token ids of texts, kept on disk by content, so that a table is tokenised once and not at every start."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lora_cls.errors import RunError
from lora_cls.files import whole_file

LIMIT = 2 * 2**30  # bytes of all files together; the least recently used are removed first
MIN_CHARACTERS = 200_000  # fewer are tokenised in less time than the file is worth


class TokenCache:
    """Ids of whole texts, before they are cut and framed: `data.max_length` and prompts may change and the ids stay.

    Several processes may use one folder: a file is written under another name and renamed.

    Parameters
    ----------
    folder : made on first writing, readable by its owner only, since ids can be read back as the texts
    """

    def __init__(self, folder: Path, limit: int = LIMIT) -> None:
        self.folder, self.limit = folder, limit
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
                if opened.metadata()["sha256"] != _sha256(ids, ends):
                    return None
            os.utime(file)  # used now
        except (OSError, SafetensorError, KeyError, TypeError):
            return None
        self.reused += len(ends)
        return [ids[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True)]

    def write(self, key: str, ids: Sequence[np.ndarray]) -> None:
        """Keep the ids of every text. Raises RunError where the folder cannot be written."""
        flat = np.concatenate(ids).astype(np.int32)
        ends = np.cumsum([len(found) for found in ids], dtype=np.int64)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with whole_file(self.folder / f"{key}.safetensors") as scratch:
                save_file({"ids": flat, "ends": ends}, scratch, {"sha256": _sha256(flat, ends)})
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"Token ids cannot be kept in {self.folder} ({error}). Set LORA_CLS_CACHE to a folder that can be "
                "written, or engine.token_cache: false."
            ) from error
        self._evict()

    def _evict(self) -> None:
        found = []
        for file in [*self.folder.glob("*.safetensors"), *self.folder.glob("*.tmp")]:
            try:
                found.append((file.stat().st_mtime, file.stat().st_size, file))
            except FileNotFoundError:  # another process removed it
                continue
        total = sum(size for _, size, _ in found)
        for used, size, file in sorted(found):
            stopped = file.suffix == ".tmp" and used < time.time() - 3600  # left by a process that was killed
            if stopped or (total > self.limit and file.suffix != ".tmp"):
                file.unlink(missing_ok=True)
                total -= size


def _sha256(ids: np.ndarray, ends: np.ndarray) -> str:
    return hashlib.sha256(ids.tobytes() + ends.tobytes()).hexdigest()
