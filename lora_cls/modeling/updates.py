"""The updates of several adapters of one base: their exact mean as one adapter, and that mean at a lower rank.

An adapter adds `scaling * B @ A` to a weight. The mean over K adapters is not `mean(B) @ mean(A)`: that has K * K
terms, of which all but K pair the B of one adapter with the A of another. It is `[s_1 B_1 / K, ..., s_K B_K / K] @
[A_1; ...; A_K]`, of K times the rank. Its best approximation of a lower rank, by squared Frobenius norm, is the cut
singular value decomposition (Eckart and Young 1936, "The approximation of one matrix by another of lower rank"), taken
of a matrix of size K * r between the orthogonal factors of B and A; the dense update is never made.

PEFT's `add_weighted_adapter` (0.21) has the same sum as `cat`, but refuses adapters that carry a head in
`modules_to_save`, keeps `use_rslora` (whose scaling is then the root of the new rank, not 1), mixes up the groups of
grouped convolutions, and for `svd` decomposes every dense update. Here files are read, and no model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lora_cls.errors import RunError, shorten
from lora_cls.recipe import Lora
from lora_cls.runs.records import Compression

PLAIN = ("exclude_modules", "use_rslora", "rank_pattern", "alpha_pattern")
"""Fields of PEFT's `LoraConfig`, beside the recipe's own, that leave an update the product of two matrices."""
PAIRS = ((".lora_A.weight", ".lora_B.weight"), (".lora_embedding_A", ".lora_embedding_B"))


@dataclass(frozen=True)
class Update:
    """What adapters add to one module: the block-diagonal matrix of `b @ a`, of one block but for grouped convolutions.

    Attributes
    ----------
    a : Tensor of shape (n_blocks, rank, in_features), float64; kernels of convolutions are part of in_features
    b : Tensor of shape (n_blocks, out_features, rank), float64
    """

    a: torch.Tensor
    b: torch.Tensor

    @property
    def rank(self) -> int:
        """Of all blocks together, as PEFT counts it."""
        return len(self.a) * self.a.shape[1]

    def decomposed(self) -> tuple[Update, torch.Tensor]:
        """The same matrix with its factors in the order of its singular values.

        Returns
        -------
        update : Update
            The singular values are shared evenly by `a` and `b`. Its first n ranks of each block are the block's best
            approximation of rank n.
        singular : Tensor of shape (n_blocks, rank), float64, greatest first
        """
        q_b, r_b = torch.linalg.qr(self.b)
        q_a, r_a = torch.linalg.qr(self.a.mT)
        u, singular, vh = torch.linalg.svd(r_b @ r_a.mT, full_matrices=False)
        root = singular.sqrt()
        return Update(root[..., None] * (vh @ q_a.mT), q_b @ u * root[:, None]), singular

    def squared_norm(self) -> float:
        """Its squared Frobenius norm; the dense update is not made."""
        return float(((self.b.mT @ self.b) * (self.a @ self.a.mT)).sum())

    def at_rank(self, rank: int) -> Update:
        """The first `rank` ranks, or as many and zeros beyond. A multiple of the number of blocks."""
        n = rank // len(self.a)
        more = max(0, n - self.a.shape[1])
        a = torch.nn.functional.pad(self.a[:, :n], (0, 0, 0, more))
        return Update(a, torch.nn.functional.pad(self.b[..., :n], (0, more)))


def beyond_updates(lora: Lora) -> str:
    """Fields, with their values, by which adapters are not (only) products of two matrices; "" where they are: DoRA
    scales every row by a norm, trained biases and tokens lie outside the two matrices."""
    from dataclasses import fields

    from peft import LoraConfig

    usual = {field.name: field.default for field in fields(LoraConfig)}
    others = [
        f"{name}: {value}"
        for name, value in (lora.model_extra or {}).items()
        if name not in PLAIN and value and value != usual.get(name)
    ]
    return ", ".join(others)


def check_plain(lora: Lora) -> None:
    """Refuse adapters whose mean is no adapter of the same kind.

    Raises
    ------
    RunError
        Names the fields, see `beyond_updates`.
    """
    if others := beyond_updates(lora):
        raise RunError(
            f"lora has {others}: such updates are not (only) products of two matrices, and the mean of the "
            "folds' is not exported. Use the folds together (lora-cls predict), or lora-cls refit."
        )


class Adapters:
    """The adapter folders of one base, all with the same modules, open for reading.

    Use as a context manager.

    Raises
    ------
    RunError
        If a file is missing or damaged, or the adapters differ in their modules.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = list(folders)
        self.configs = [_config(folder) for folder in self.folders]
        self._open = ExitStack()
        self._files: list[Any] = []

    def __enter__(self) -> Adapters:
        for folder in self.folders:
            file = folder / "adapter_model.safetensors"
            if not file.is_file():
                raise RunError(f"{file} is missing: the fold is incomplete or the file was removed.")
            try:
                self._files.append(self._open.enter_context(safe_open(file, framework="pt")))
            except (SafetensorError, OSError) as error:
                raise RunError(f"{file} is damaged ({error}). Train the fold again, or restore the file.") from error
        self.keys = sorted(self._files[0].keys())
        for folder, file in zip(self.folders, self._files, strict=True):
            other = set(file.keys()) ^ set(self.keys)
            if other:
                raise RunError(f"{folder} has other modules than {self.folders[0]}: {shorten(sorted(other), 4)}.")
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def pairs(self) -> Iterator[tuple[str, str, str]]:
        """(module, key of A, key of B) of every adapted module."""
        for key in self.keys:
            for end_a, end_b in PAIRS:
                if key.endswith(end_a):
                    module = key.removesuffix(end_a)
                    yield module.removeprefix("base_model.model."), key, module + end_b

    def mean(self, key_a: str, key_b: str, module: str) -> Update:
        """The exact mean of a module's updates."""
        parts_a, parts_b = [], []
        for config, file in zip(self.configs, self._files, strict=True):
            a, b = file.get_tensor(key_a).double(), file.get_tensor(key_b).double()
            if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
                raise RunError(f"{module}: an adapter holds values that are not finite numbers. Train the fold again.")
            r, n_blocks = len(a), self.n_blocks(key_a, key_b)
            parts_a.append(a.reshape(n_blocks, r // n_blocks, -1))
            scaled = b.flatten(1) * (scaling(config, module, r) / len(self._files))
            parts_b.append(scaled.reshape(n_blocks, -1, r // n_blocks))
        return Update(torch.cat(parts_a, 1), torch.cat(parts_b, 2))

    def n_blocks(self, key_a: str, key_b: str) -> int:
        """Groups of a grouped convolution, 1 for everything else: its B reads as many parts of what its A makes."""
        a, b = (self._files[0].get_slice(key).get_shape() for key in (key_a, key_b))
        return int(a[0] // b[1])

    def shapes(self, key_a: str, key_b: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes beyond the rank, as the files have them: of A all but its first, of B all but its first two."""
        a, b = (self._files[0].get_slice(key).get_shape() for key in (key_a, key_b))
        return tuple(a[1:]), tuple(b[2:])

    def others(self) -> dict[str, torch.Tensor]:
        """The mean of everything that is no update: the head."""
        paired = {key for _, *keys in self.pairs() for key in keys}
        return {
            key: torch.stack([file.get_tensor(key).double() for file in self._files]).mean(0).float()
            for key in self.keys
            if key not in paired
        }


def mean_adapter(
    folders: Sequence[Path], out: Path, rank: int | None = None, share: float | None = None
) -> tuple[int, Compression | None]:
    """Write the mean of adapters as one PEFT adapter with scaling 1 and one rank for all modules.

    Exact, at the sum of their ranks (modules of a lower one are filled up with zeros), where neither `rank` nor `share`
    is given. What else they carry, the head, is averaged.

    Parameters
    ----------
    folders : PEFT adapters of one base
    out : a new folder
    rank : to compress to
    share : of the squared Frobenius norm; takes the lowest rank that keeps it

    Returns
    -------
    exact_rank : int
    compression : Compression, None where the mean is exact

    Raises
    ------
    RunError
        For files that do not fit each other, and a rank that the modules cannot have.
    """
    with Adapters(folders) as adapters:
        means = {
            key_a: (module, key_b, adapters.mean(key_a, key_b, module)) for module, key_a, key_b in adapters.pairs()
        }
        tensors = adapters.others()
        groups = math.lcm(*(len(update.a) for *_, update in means.values()))
        exact = max(update.rank for *_, update in means.values())
        exact = -(-exact // groups) * groups
        compression = None
        if rank is not None or share is not None:
            singular = {}
            for key_a, (module, key_b, update) in means.items():
                ordered, singular[module] = update.decomposed()
                means[key_a] = module, key_b, ordered
            if rank is not None and (rank % groups or not 0 < rank <= exact):
                raise RunError(
                    f"--rank must be {'a multiple of ' + str(groups) + ' ' if groups > 1 else ''}from {groups} to "
                    f"{exact}, the rank of the exact mean. Got {rank} instead."
                )
            if rank is None:
                assert share is not None
                ranks = range(groups, exact + 1, groups)
                rank = next((n for n in ranks if _kept(singular, n).share >= share), exact)
            compression = _kept(singular, rank)
        chosen = exact if rank is None else rank
        for key_a, (_, key_b, update) in means.items():
            shape_a, shape_b = adapters.shapes(key_a, key_b)
            fitted = update.at_rank(chosen)
            tensors[key_a] = fitted.a.reshape(chosen, *shape_a).float().contiguous()
            n = fitted.b.shape[2]
            tensors[key_b] = fitted.b.reshape(-1, n, *shape_b).float().contiguous()
        config = adapters.configs[0] | {
            "r": chosen, "lora_alpha": chosen, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {},
            "megatron_config": None,  # beside it PEFT imports whatever module the file names
        }  # fmt: skip
    out.mkdir(parents=True)
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    save_file(tensors, out / "adapter_model.safetensors", {"format": "pt"})
    return exact, compression


def is_grouped(folder: Path) -> bool:
    """Whether an adapter has updates of grouped convolutions, which cannot be added to their weights."""
    with Adapters([folder]) as adapters:
        return any(adapters.n_blocks(key_a, key_b) > 1 for _, key_a, key_b in adapters.pairs())


def mean_weights(files: Sequence[Path]) -> dict[str, torch.Tensor]:
    """The mean of whole sets of weights, one file at a time (Wortsman et al. 2022, "Model soups").

    Parameters
    ----------
    files : safetensors files with the same keys and shapes

    Returns
    -------
    dict of name to Tensor, in the files' precision

    Raises
    ------
    RunError
        If a file is missing or damaged, or does not fit the first.
    """
    total: dict[str, torch.Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    for number, file in enumerate(files):
        try:
            with safe_open(file, framework="pt") as opened:
                found = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (no iteration of its own)
        except (SafetensorError, OSError) as error:
            raise RunError(f"{file} is missing or damaged ({error}). Train the fold again.") from error
        if number == 0:
            dtypes = {key: tensor.dtype for key, tensor in found.items()}
            total = {key: torch.zeros(tensor.shape, dtype=torch.float64) for key, tensor in found.items()}
        if {key: tensor.shape for key, tensor in found.items()} != {key: t.shape for key, t in total.items()}:
            raise RunError(f"{file} has other weights than {files[0]}.")
        if len(files) == 1:
            return found
        for key, tensor in found.items():
            total[key] += tensor.double()
    return {key: (tensor / len(files)).to(dtypes[key]) for key, tensor in total.items()}


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "adapter_config.json"
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise RunError(f"{file} is missing or damaged ({error}). Train the fold again.") from error


def scaling(config: dict[str, Any], module: str, r: int) -> float:
    """PEFT's factor on B @ A, with its way of matching patterns to modules."""
    from peft.utils.other import get_pattern_key

    patterns = config.get("alpha_pattern") or {}
    alpha = float(patterns.get(get_pattern_key(list(patterns), module), config["lora_alpha"]))
    return alpha / (math.sqrt(r) if config.get("use_rslora") else r)


def _kept(singular: dict[str, torch.Tensor], rank: int) -> Compression:
    kept = {module: float(s[:, : rank // len(s)].square().sum()) for module, s in singular.items()}
    whole = {module: float(s.square().sum()) for module, s in singular.items()}
    shares = {module: kept[module] / whole[module] if whole[module] else 1.0 for module in singular}
    total = sum(whole.values())
    lowest = min(shares, key=shares.__getitem__)
    share = sum(kept.values()) / total if total else 1.0
    return Compression(rank=rank, share=share, lowest_module=lowest, lowest_share=shares[lowest])
