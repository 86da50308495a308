"""The processes of a launcher (`accelerate launch`, `torchrun`), which train one model together.

Every process goes through the same batches as one alone would, and computes the loss of its share of their rows. The
gradients of all are added up in one message a step, so that each process makes the step that one alone would make, up
to the order of additions. `DistributedDataParallel` would do the same for equal shares: it takes the mean over
processes, whatever rows each had, and cannot leave one without any.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from lora_cls.errors import RecipeError, TrainingError
from lora_cls.machine import launched
from lora_cls.recipe import Recipe

if TYPE_CHECKING:  # what TF-IDF takes this file for needs no torch
    import torch

PATIENCE = timedelta(days=7)
"""How long a process waits for the others: the first one may adapt a base for days. Launchers end all with one."""


class Processes:
    """All processes of one launch, as one of them sees them.

    Attributes
    ----------
    rank : number of this process, from 0
    size : how many there are
    sharded : whether the frozen base is spread over their devices, and not copied to each
    """

    def __init__(self, rank: int = 0, size: int = 1, sharded: bool = False) -> None:
        self.rank, self.size, self.sharded = rank, size, sharded

    @property
    def main(self) -> bool:
        """Whether this is the process that writes, and shows how far all are."""
        return self.rank == 0

    def check(self, recipe: Recipe, alone: bool) -> None:
        """Raise RecipeError, of a recipe that several processes cannot train together, or where they are to start
        further ones (not `alone`)."""
        if self.size == 1:
            return
        problems = []
        if recipe.tfidf is not None:
            problems.append("TF-IDF trains in one process: start it without a launcher.")
        if not alone:
            problems.append(
                "--workers and --executor share folds out to processes of their own: give them no launcher."
            )
        if self.sharded:
            problems += [f"FSDP spreads a frozen base, and {problem}" for problem in _not_sharded(recipe)]
        if problems:
            raise RecipeError("\n".join(problems))

    @property
    def on_this_machine(self) -> int:
        """How many of them share its cores."""
        return min(self.size, int(os.environ.get("LOCAL_WORLD_SIZE", self.size)))

    # Messages

    def tell(self, message: Any) -> None:
        """Send a message to all others, which wait in `heard`."""
        if self.size > 1:
            self._talk([message])

    def heard(self) -> Any:
        """What the first process tells."""
        box = [None]
        self._talk(box)
        return box[0]

    def _talk(self, box: list[Any]) -> None:
        import torch

        with _in_touch():
            torch.distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            import torch

            with _in_touch():
                torch.distributed.all_reduce(torch.zeros(1))  # on the CPU, where no device is kept busy

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The first process goes through this block alone; the others then find what it has written."""
        if not self.main:
            self.wait()
        yield
        if self.main:
            self.wait()

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """One process after the other goes through this block."""
        for _ in range(self.rank):
            self.wait()
        yield
        for _ in range(self.rank, self.size):
            self.wait()

    # Training

    def seed(self, seed: int) -> int:
        """Each process draws numbers of its own, as for dropout; the first one those of one alone."""
        return seed if self.main else int(np.random.SeedSequence([seed, self.rank]).generate_state(1)[0])

    def share(self, rows: np.ndarray) -> np.ndarray:
        """The rows of a batch that are for this process; there may be none."""
        return rows[self.rank :: self.size]

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Put into each tensor its sum over all processes, in one message."""
        if self.size == 1:
            return
        import torch

        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with _in_touch():
            torch.distributed.all_reduce(flat)
        for tensor, found in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(found.view_as(tensor))

    def add_up_gradients(self, weights: Sequence[torch.nn.Parameter], loss: torch.Tensor) -> None:
        """Put into each weight's gradient, and into the loss, their sums over all processes.

        A weight that no process has a gradient of stays without one, as an expert that no token was sent to.
        """
        if self.size == 1:
            return
        import torch

        gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
        counts = torch.tensor([float(weight.grad is not None) for weight in weights], device=loss.device)
        self.add_up([loss, counts, *gradients])
        if any(weight.grad is None for weight in weights):
            for weight, gradient, count in zip(weights, gradients, counts.tolist(), strict=True):
                weight.grad = gradient if count else None

    def take_over(self, epoch: int, weights: Sequence[torch.Tensor]) -> None:
        """Give every process the weights of the first one: starts may differ in their last digits by machine.

        Raises
        ------
        TrainingError
            If the processes have read other states: of other finished epochs.
        """
        if self.size == 1:
            return
        import torch

        epochs: list[Any] = [None] * self.size
        flat = torch.cat([weight.detach().reshape(-1) for weight in weights])
        with _in_touch(), torch.no_grad():
            torch.distributed.all_gather_object(epochs, epoch)
            if len(set(epochs)) > 1:
                raise TrainingError(
                    f"The processes go on after other epochs ({', '.join(map(str, epochs))}): they read other files. "
                    "The run folder must lie on a disk that all machines of the launch share."
                )
            torch.distributed.broadcast(flat, src=0)
            for weight, found in zip(weights, flat.split([weight.numel() for weight in weights]), strict=True):
                weight.copy_(found.view_as(weight))

    # Answers

    def shared_out(
        self, lengths: np.ndarray, answer: Callable[[np.ndarray], tuple[np.ndarray, list[Any]]]
    ) -> tuple[np.ndarray, list[Any]]:
        """The answers for all rows, of which each process computes as many as the others.

        Parameters
        ----------
        lengths : ndarray of shape (n_rows,)
        answer : given positions of rows, returns an array with a line for each, and a list with as many items or none

        Returns
        -------
        array, list : of all rows in their order, the same on every process
        """
        import torch

        n_rows = len(lengths)
        if not n_rows:
            return answer(np.arange(0))
        n_each = -(-n_rows // self.size)
        order = np.argsort(-lengths, kind="stable")
        # around the end: where the base is sharded, all processes must go through it equally often
        positions = [order[(rank + self.size * np.arange(n_each)) % n_rows] for rank in range(self.size)]
        values, items = answer(positions[self.rank])
        mine = torch.from_numpy(np.ascontiguousarray(values))
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        lists: list[Any] = [None] * self.size
        with _in_touch():
            torch.distributed.all_gather(parts, mine)
            torch.distributed.all_gather_object(lists, items)
        found = np.empty((n_rows, *values.shape[1:]), dtype=values.dtype)
        whole: list[Any] = [None] * n_rows if items else []
        for rows, part, listed in zip(positions, parts, lists, strict=True):
            found[rows] = part.numpy()
            for row, item in zip(rows.tolist(), listed, strict=False):
                whole[row] = item
        return found, whole


def _not_sharded(recipe: Recipe) -> list[str]:
    """What of a recipe no base that is spread over devices can be trained with."""
    found = []
    if recipe.backbone is not None and recipe.lora is None:
        found.append("here every weight is trained (lora: null): set lora, or launch without FSDP.")
    if recipe.quantization is not None and recipe.quantization.load_in_8bit:
        found.append("bitsandbytes cannot spread one in 8 bits: set quantization.load_in_4bit, or launch without FSDP.")
    if recipe.head.kind in ("generate", "label_tokens"):
        found.append(
            f"head.kind: {recipe.head.kind} asks the whole base before or beside training: take head.kind: linear."
        )
    if recipe.adapt is not None:
        found.append("adapt trains it first, in one process: adapt it in a run without FSDP, or remove adapt.")
    return found


ALONE = Processes()


@cache
def processes_of_launch() -> Processes:
    """Those that were launched with this one, in touch with each other; one alone without a launcher.

    Accelerate's launcher says by the environment that a base is to be sharded. Its own machinery, and transformers',
    which would load weights in one process only, are kept from acting on it.

    Raises
    ------
    TrainingError
        If the launcher asks for what is not supported, or there are fewer devices than processes.
    """
    rank, size = launched()
    for name in ("DEEPSPEED", "MEGATRON_LM"):
        if _is_set(f"ACCELERATE_USE_{name}"):
            raise TrainingError(f"{name} is not supported: launch with FSDP, version 2, or with none of them.")
    sharded = _is_set("ACCELERATE_USE_FSDP")
    if sharded and os.environ.get("FSDP_VERSION", "2") != "2":
        raise TrainingError("Launch with version 2 of FSDP: fsdp_version: 2 in Accelerate's configuration.")
    if size == 1:
        os.environ["ACCELERATE_USE_FSDP"] = "false"
        return ALONE
    import torch

    from lora_cls.modeling.precision import default_device

    device, local_rank = default_device(), int(os.environ.get("LOCAL_RANK", rank))
    if device.type == "mps":
        raise TrainingError("A Mac has one GPU: start one process, without a launcher.")
    if device.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise TrainingError(
                f"There are {torch.cuda.device_count()} GPUs on this machine, and more processes were launched: launch "
                "as many as there are GPUs (--num_processes, --nproc-per-node)."
            )
        torch.cuda.set_device(local_rank)
    os.environ["ACCELERATE_USE_FSDP"] = "false"
    # gloo for what lies on the CPU, messages included: a GPU would be busy with waiting
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, timeout=PATIENCE)
    return Processes(rank, size, sharded)


def end_launched() -> NoReturn:
    """End this process, which has done its work, with exit code 0.

    Not by Python's own way out: threads of torch that still want to run Python are ended there in the middle, which
    now and then aborts the process ("terminate called without an active exception", seen on a busy machine), and the
    launcher then calls the whole launch a failure.
    """
    import torch

    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("true", "1")


@contextmanager
def _in_touch() -> Iterator[None]:
    """Within it, an error says that another process is gone: the launcher is about to end this one, too."""
    try:
        yield
    except RuntimeError as error:
        raise TrainingError(
            f"Another process of this launch is gone ({str(error).splitlines()[0]}). What it said, if anything, stands "
            "above; finished epochs are kept, and the same command with --resume continues."
        ) from error
