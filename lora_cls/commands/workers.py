"""How many processes work at once, and where: what `--workers` and `--executor` stand for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lora_cls.errors import RecipeError, shown
from lora_cls.execution.executor import Executor
from lora_cls.execution.local import LocalExecutor, visible_gpus
from lora_cls.machine import physical_cores
from lora_cls.recipe import Recipe

Workers = int | Literal["auto"]


def check_workers(workers: Workers | None, executor: str) -> None:
    """Raise RecipeError for what names no number of processes, or no place for them."""
    if workers is not None and workers != "auto" and not (isinstance(workers, int) and 1 <= workers <= 1024):
        raise RecipeError(f"--workers takes a number of processes from 1 on, or auto. Got {shown(workers)} instead.")
    if executor not in ("local", "ray") and not executor.startswith("ray://"):
        raise RecipeError(f"--executor takes local, ray, or ray://HOST:PORT. Got {shown(executor)} instead.")


def make_executor(
    recipe: Recipe, workers: Workers | None, executor: str, n_tasks: int, folder: Path, needs_shared: Sequence[str] = ()
) -> Executor | None:
    """Who does `n_tasks` tasks of a recipe; None for this process alone.

    Parameters
    ----------
    workers : processes at once; `auto` takes one for each GPU, or on a CPU one for each core as far as the memory
        goes: processes of one thread each are faster than one process of several threads
        (`benchmarks/results/workers.md`). Where None, this process alone; of a Ray cluster as many as it has room for
    executor : `local`, `ray` (the cluster of `RAY_ADDRESS`, or a new one on this machine), or `ray://HOST:PORT`
    folder : that they write in
    needs_shared : what takes a disk that all machines share, beside what the recipe says itself

    Raises
    ------
    RecipeError
        For what `check_workers` refuses; if Ray is not installed, does not answer, has too little room, or its nodes do
        not share a disk that the recipe needs.
    """
    check_workers(workers, executor)
    if executor != "local":
        if n_tasks < 1:
            return None
        from lora_cls.execution.cluster import RayExecutor  # Ray is an extra

        elsewhere = {
            "distill.teachers": recipe.distill is not None,
            "adapt": recipe.adapt is not None,
            "backbone.start_from": recipe.backbone is not None and recipe.backbone.start_from is not None,
        }
        return RayExecutor(
            executor, None if workers == "auto" else workers, n_tasks,
            {str(name): amount for name, amount in (recipe.engine.resources or {}).items()},
            uses_gpu=recipe.backbone is not None, folder=folder,
            needs_shared=[*needs_shared, *(name for name, needed in elsewhere.items() if needed)],
        )  # fmt: skip
    if workers is None or workers == 1 or n_tasks < 2:
        return None
    gpus = visible_gpus() if recipe.backbone is not None else []
    if workers == "auto":
        workers = len(gpus) if gpus else _processes_of_one_core(recipe)
        if workers < 2:
            return None
    return LocalExecutor(min(workers, n_tasks), gpus)


def threads_of(executor: Executor | None, recipe: Recipe) -> int | None:
    """Threads of each process, where they share a machine's cores and the recipe does not say; else None."""
    return None if executor is None or recipe.engine.num_threads is not None else executor.n_threads


def _processes_of_one_core(recipe: Recipe) -> int:
    """One for each core, as far as free memory goes by the estimate for the recipe's longest texts."""
    if recipe.backbone is None:
        return 1  # TF-IDF takes seconds
    import psutil

    from lora_cls.modeling.loading import load_config
    from lora_cls.modeling.precision import choose_dtype, default_device
    from lora_cls.modeling.source import find_source
    from lora_cls.training.memory import estimate_memory

    config = load_config(recipe.backbone, find_source(recipe.backbone.name_or_path, recipe.backbone.revision))
    dtype = choose_dtype(recipe, default_device(), config.model_type)
    needed = estimate_memory(recipe, config, dtype=dtype).total
    return max(1, min(physical_cores(), psutil.virtual_memory().available // needed))
