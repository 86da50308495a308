"""Hidden states below the lowest adapter, kept on disk: computed once per text, used by all folds, epochs and runs.

Texts are taken in stretches of some 128 MB of hidden states. A stretch is one file, named by a hash of all that its
content follows from: the lower layers' weights, precision, quantization and place, the texts' token ids, and what
could change a last digit (batch size, threads, versions). So it never goes stale, is the same whoever wrote it, and a
stretch that was not finished is simply missing. Files are safetensors, read by memory map: ragged, without padding, in
the model's own dtype.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import statistics
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lora_cls.errors import TrainingError, WriteError, memory_full
from lora_cls.files import make_folder, sweep, whole_file
from lora_cls.machine import cache_folder
from lora_cls.modeling.precision import is_out_of_memory
from lora_cls.modeling.prefix import Prefix
from lora_cls.text.tokens import Tokens

STRETCH_BYTES = 128 * 2**20
SPARE_BYTES = 2 * 2**30  # of a disk, left alone
STALE_SECONDS = 24 * 3600  # locks older than this belong to processes that were killed


@dataclass
class Stretch:
    """Consecutive texts whose hidden states share a file."""

    ids: list[np.ndarray]
    key: str

    @property
    def n_tokens(self) -> int:
        return sum(map(len, self.ids))


@dataclass
class Reuse:
    """What the cache did, in texts, bytes and seconds."""

    layers: int = 0
    computed: int = 0
    reused: int = 0
    bytes: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


class _NoRoomError(Exception):
    """The limit or the disk is too small for the texts."""


class PrefixCache:
    """Hidden states of texts at the top of a prefix.

    Parameters
    ----------
    prefix : see `Prefix.find`
    batch_size : texts that are computed together
    limit_bytes : how large the folder may get; what was used least recently is removed first
    facts : what else hidden states could follow from (attention implementation, precision), part of the files' names
    folder : where files lie; below the cache folder of this user where None
    """

    def __init__(
        self,
        prefix: Prefix,
        batch_size: int,
        limit_bytes: float,
        facts: dict[str, Any],
        folder: Path | None = None,
    ) -> None:
        self.prefix, self.batch_size, self.limit_bytes = prefix, batch_size, limit_bytes
        self.folder = folder or cache_folder() / "prefix"
        self.used = Reuse(prefix.n_layers)
        self._facts = facts
        self._base_key: str | None = None
        self._row_bytes = 0
        self._held: list[tuple[int, float]] = []  # tokens, seconds
        self._rows: dict[bytes, tuple[torch.Tensor, int, int]] = {}  # file, and where in it
        self._files: set[Path] = set()  # that those lie in

    def stand_in(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> AbstractContextManager[None]:
        """A context in which the model takes the hidden states of this batch from the cache, if it has them all."""
        ids, mask = input_ids.cpu().numpy(), attention_mask.cpu().bool()
        found = [self._rows.get(_digest(row[real])) for row, real in zip(ids, mask.numpy(), strict=True)]
        known = [place[0][place[1] : place[2]] for place in found if place is not None]
        return self.prefix.stand_in(known, mask) if len(known) == len(found) else nullcontext()

    def hold(self, pieces: Sequence[np.ndarray]) -> None:
        """Make the hidden states of a few texts known without a file, and note how long that takes."""
        missing = [piece for piece in pieces if _digest(piece) not in self._rows]
        if not missing:
            return
        started = time.monotonic()
        for piece, row in zip(missing, self.prefix.hidden(missing), strict=True):
            self._rows[_digest(piece)] = (row.clone(), 0, len(row))
        self._held.append((sum(map(len, missing)), time.monotonic() - started))

    def seconds_to_fill(self, pieces: Sequence[np.ndarray]) -> float:
        """How long `fill` would take for these texts at the rate of `hold`, as if no file held any of them."""
        # the first batches prepare kernels
        rates = [seconds / n_tokens for n_tokens, seconds in self._held]
        return statistics.median(rates) * sum(map(len, pieces)) if rates else 0.0

    def has_room(self, tables: Sequence[Tokens], said: Callable[[str], None] = lambda _: None) -> bool:
        """Whether the hidden states of all these texts can be kept; a note says why not. Nothing is written."""
        pieces = {_digest(piece): piece for tokens in tables for piece in tokens.ids}
        self._learn_base(list(pieces.values()))
        try:
            self._check_room(list(self._stretches(list(pieces.values()))))
        except (_NoRoomError, OSError, WriteError) as error:
            self._note(f"{error}: the lower layers are computed anew at every pass.", said)
            return False
        return True

    def fill(self, tokens: Tokens, said: Callable[[str], None] = lambda _: None, needed: bool = False) -> None:
        """Make the hidden states of every piece of text known: from files, or computed now and written.

        Two processes may fill at once: each takes what the other has not begun, and both read all of it. Where the
        limit or the disk is too small for these texts, or the folder cannot be written, they stay unknown and are
        computed at every pass; a note says so.

        Parameters
        ----------
        needed : a run that began with them goes on with them, as its last digits follow from how they were computed:
            what cannot be written is held in memory

        Raises
        ------
        TrainingError
            If the memory is too small for that.
        """
        started = time.monotonic()
        pieces = {_digest(piece): piece for piece in tokens.ids}
        missing = [piece for digest, piece in pieces.items() if digest not in self._rows]
        if not missing:
            return
        self._learn_base(missing)
        whole = stretches = list(self._stretches(missing))
        try:
            self._make_room(stretches)
            for wait in (False, True):  # first what nobody else is at
                stretches = [stretch for stretch in stretches if not self._read_or_compute(stretch, wait, said)]
        except (_NoRoomError, OSError, WriteError, SafetensorError) as error:
            why = f"{error}" if isinstance(error, _NoRoomError) else f"{self.folder} cannot be written ({error})"
            if needed:
                self._hold_in_memory([stretch for stretch in whole if not self._known(stretch)], why, said)
            else:
                for stretch in stretches:  # what can be read is read
                    if self._path(stretch) not in self._files:
                        self._read(stretch)
                self._note(f"{why}: where they are not kept, the lower layers are computed anew at every pass.", said)
        self.used.seconds = round(self.used.seconds + time.monotonic() - started, 3)

    def _learn_base(self, pieces: Sequence[np.ndarray]) -> None:
        if self._base_key is None:
            row = self.prefix.hidden(pieces[:1])[0]
            self._row_bytes = row.shape[1] * row.element_size()
            self._base_key = self._key_of_base(row.dtype)

    def _known(self, stretch: Stretch) -> bool:
        return all(_digest(piece) in self._rows for piece in stretch.ids)

    def _hold_in_memory(self, stretches: Sequence[Stretch], why: str, said: Callable[[str], None]) -> None:
        """Make stretches known without files, computed in the same batches as if there were."""
        size, free = sum(stretch.n_tokens for stretch in stretches) * self._row_bytes, psutil.virtual_memory().available
        if size > free / 2:
            raise TrainingError(
                f"{why}. The run was started with its lower layers computed once and would get other last digits "
                f"without; to hold {_size(size)} in memory, {_size(free)} are too few. Make room on the disk (or raise "
                "engine.prefix_cache_gb) and continue with --resume, or start a new run with engine.prefix_cache=false."
            )
        self._note(f"{why}: as the run began with them, they are held in memory.", said)
        for stretch in stretches:
            if not self._read(stretch):
                self._take(stretch, self._compute(stretch))
                self.used.computed += len(stretch.ids)

    def _note(self, note: str, said: Callable[[str], None]) -> None:
        self.used.notes.append(note)
        said(note)

    def _make_room(self, stretches: Sequence[Stretch]) -> None:
        """Remove what was used least recently, if the limit asks for it; never what this cache uses itself."""
        to_write = self._check_room(stretches)
        self._evict(to_write, self._files | {self._path(stretch) for stretch in stretches})

    def _check_room(self, stretches: Sequence[Stretch]) -> int:
        """Bytes that are not in the folder yet.

        Raises
        ------
        _NoRoomError
            If the limit or the disk is too small, or the folder is not to be written.
        """
        needed = sum(stretch.n_tokens for stretch in stretches) * self._row_bytes
        paths = {self._path(stretch): stretch for stretch in stretches}
        make_folder(self.folder, rights=0o700)  # hidden states give away much of a text
        to_write = sum(stretch.n_tokens for path, stretch in paths.items() if not path.is_file()) * self._row_bytes
        free = max(0, shutil.disk_usage(self.folder).free - SPARE_BYTES)
        left = max(0, self.limit_bytes - self.used.bytes)
        if needed > left or to_write > free:
            which = "engine.prefix_cache_gb leaves" if needed > left else "the disk has"
            n_texts = sum(len(stretch.ids) for stretch in stretches)
            raise _NoRoomError(
                f"The hidden states of {n_texts} texts would take {_size(needed)}, and {which} "
                f"{_size(left if needed > left else free)}"
            )
        if to_write and not os.access(self.folder, os.W_OK):
            raise _NoRoomError(f"The prefix cache in {self.folder} cannot be written")
        return to_write

    def _read_or_compute(self, stretch: Stretch, wait: bool, said: Callable[[str], None]) -> bool:
        """Whether the stretch is known now; False where another process is at it."""
        if self._read(stretch):
            return True
        path = self._path(stretch)
        lock = FileLock(path.with_suffix(".lock"))
        try:
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            return False
        try:
            if self._read(stretch):  # while this process waited
                return True
            if path.exists():
                said(f"{path.name} in the prefix cache is damaged: computed again.")
            said(
                f"Layers 0 to {self.prefix.n_layers - 1}, once for {len(stretch.ids)} texts "
                f"({_size(stretch.n_tokens * self._row_bytes)}) ..."
            )
            whole = self._compute(stretch)
            self._write(stretch, whole)
            mapped = self._intact(stretch)
            # another process may have removed it at once, to keep a smaller limit
            self._take(stretch, whole if mapped is None else mapped)
            self.used.computed += len(stretch.ids)
            return True
        finally:
            lock.release()
            with suppress(OSError):  # a process that waits for it finds the file
                path.with_suffix(".lock").unlink()

    def _compute(self, stretch: Stretch) -> torch.Tensor:
        """Hidden states of a stretch, Tensor of shape (n_tokens, hidden_size)."""
        lengths = np.array([len(piece) for piece in stretch.ids])
        starts = np.append(0, np.cumsum(lengths))
        whole: torch.Tensor | None = None
        model = self.prefix.model
        was_training = model.training
        model.eval()
        order = np.argsort(-lengths, kind="stable")
        for batch in np.split(order, range(self.batch_size, len(order), self.batch_size)):
            try:
                hidden = self.prefix.hidden([stretch.ids[i] for i in batch])
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                where = f" while the lower layers are computed ({len(batch)} texts of up to {lengths[batch[0]]} tokens)"
                advice = f"lower train.per_device_eval_batch_size (now {self.batch_size}) or data.max_length."
                raise TrainingError(memory_full(where, advice)) from error
            for i, row in zip(batch, hidden, strict=True):
                if whole is None:
                    whole = torch.empty(int(starts[-1]), row.shape[1], dtype=row.dtype)
                whole[starts[i] : starts[i + 1]] = row
        model.train(was_training)
        assert whole is not None
        return whole

    def _write(self, stretch: Stretch, whole: torch.Tensor) -> None:
        path = self._path(stretch)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        with whole_file(path, durable=False) as scratch:
            save_file({"hidden": whole}, scratch, metadata={"crc32": _crc32(whole, stretch.key)})

    def _read(self, stretch: Stretch) -> bool:
        """Take a stretch from its file; False where there is none, or a damaged one."""
        whole = self._intact(stretch)
        if whole is None:
            return False
        with suppress(OSError):
            os.utime(self._path(stretch))  # used now
        self._take(stretch, whole)
        self.used.reused += len(stretch.ids)
        return True

    def _intact(self, stretch: Stretch) -> torch.Tensor | None:
        """What the file of a stretch holds, by memory map; None where there is none, or a damaged one."""
        path = self._path(stretch)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                whole, crc32 = file.get_tensor("hidden"), (file.metadata() or {}).get("crc32")
        except (SafetensorError, OSError, RuntimeError, ValueError):
            return None
        return whole if crc32 == _crc32(whole, stretch.key) else None

    def _take(self, stretch: Stretch, whole: torch.Tensor) -> None:
        self._files.add(self._path(stretch))
        self.used.bytes += whole.nbytes
        end = 0
        for piece in stretch.ids:
            begin, end = end, end + len(piece)
            self._rows[_digest(piece)] = (whole, begin, end)

    def _stretches(self, pieces: Sequence[np.ndarray]) -> Iterator[Stretch]:
        most = max(1, STRETCH_BYTES // self._row_bytes)
        begin = n_tokens = 0
        for i, piece in enumerate(pieces):
            if n_tokens and n_tokens + len(piece) > most:
                yield self._stretch(pieces[begin:i])
                begin, n_tokens = i, 0
            n_tokens += len(piece)
        yield self._stretch(pieces[begin:])

    def _stretch(self, pieces: Sequence[np.ndarray]) -> Stretch:
        digest = hashlib.sha256(str(self._base_key).encode())
        for piece in pieces:
            digest.update(_digest(piece))
        return Stretch(list(pieces), digest.hexdigest()[:32])

    def _path(self, stretch: Stretch) -> Path:
        return self.folder / f"{stretch.key}.safetensors"

    def _key_of_base(self, dtype: torch.dtype) -> str:
        """Hash of all that hidden states follow from, but for the text."""
        import transformers

        digest = hashlib.sha256()
        for name, value in self.prefix.state():
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(_bytes(value))
        config: Any = self.prefix.model.base.config
        device = next(self.prefix.model.parameters()).device
        facts = self._facts | {
            "weights": digest.hexdigest(),
            "config": {key: value for key, value in config.to_dict().items() if not key.startswith("_")},
            "layer": self.prefix.n_layers,
            "dtype": str(dtype),
            "batch_size": self.batch_size,
            "num_threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "capability": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
            "versions": [torch.__version__, transformers.__version__],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()

    def _evict(self, to_write: int, keep: set[Path]) -> None:
        """Make room, from what was used least recently. A file that another process has mapped stays readable to it."""
        files = []
        for path in self.folder.glob("*.safetensors"):
            with suppress(OSError):
                files.append((path.stat().st_mtime, path.stat().st_size, path))
        total = sum(size for _, size, _ in files) + to_write
        for _, size, path in sorted(files):
            if total <= self.limit_bytes:
                break
            if path not in keep:
                path.unlink(missing_ok=True)
                total -= size
        sweep(self.folder)
        for path in self.folder.glob("*.lock"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink()


def _digest(piece: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(piece, dtype=np.int64).tobytes(), digest_size=16).digest()


def _bytes(value: torch.Tensor) -> Any:
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def _crc32(value: torch.Tensor, key: str) -> str:
    """Checksum of a stretch: its name, precision and shape, which its file also says, and its content."""
    said = zlib.crc32(f"{key} {value.dtype} {tuple(value.shape)}".encode())
    return str(zlib.crc32(_bytes(value), said))


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 2**30:.1f} GB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.0f} MB"
