"""Processes on the nodes of a Ray cluster: an actor on a node runs there what would run here, and hands messages on.

Where the nodes see the run's folder under the same path (a cluster's shared disk), the processes write into it. Where
they do not, tables and the run's own files travel through Ray's object store to a scratch folder of the node, and the
files of each finished task come back; `LORA_CLS_SHARED_FOLDER=no` has it so in any case.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from lora_cls import __version__
from lora_cls.errors import RecipeError, RunError, brief, shorten
from lora_cls.execution.child import END
from lora_cls.execution.local import LOST, PATIENCE, LocalProcess
from lora_cls.files import make_folder, remove, scratch_folder, write_bytes, writing

CONNECT_SECONDS = 5.0
"""How long an address may take to answer."""
PROBE_SECONDS = 60.0
"""How long a node may take to start a process and import this package."""
WAIT = 0.5
"""Seconds that one question to a process waits for an answer."""
COMPLETES = "fold.json"
"""The file that makes the others of its folder count: written last."""
NOT_SENT = (".lock", "state.safetensors")
TABLES = ("train", "test", "sample_submission", "extra_train", "folds")
"""Fields of the recipe's `data` that name files."""


class Host:
    """The inside of a Ray actor: a process of its node, and what it says.

    Parameters
    ----------
    command : the program, whose Python is that of the node, and its arguments
    log : where it prints to, on a shared disk
    token : a file that is there where the disk is shared
    folder : that it works in, on a shared disk
    threads : `OMP_NUM_THREADS` as it is where the run was started; Ray sets its own
    """

    def __init__(self, command: Sequence[str], log: str, token: str, folder: str, threads: str | None) -> None:
        os.environ.pop("OMP_NUM_THREADS", None)
        environment = {} if threads is None else {"OMP_NUM_THREADS": threads}
        self._stack = ExitStack()
        self._scratch: Path | None = None
        self._run: Path | None = None
        self._told = 0
        self._seen: dict[str, tuple[int, int]] = {}
        if not os.path.exists(token):
            self._scratch = self._stack.enter_context(scratch_folder(Path(tempfile.gettempdir())))
        self._log = Path(log) if self._scratch is None else self._scratch / "log.txt"
        self._process = LocalProcess(
            [sys.executable, *command[1:]], self._log, environment, folder=self._scratch or Path(folder)
        )
        threading.Thread(target=self._end_with_node, args=(os.getppid(),), daemon=True).start()

    def _end_with_node(self, raylet: int) -> None:
        """End when the raylet that started this actor is gone: Ray itself was seen to leave actors there (2.60)."""
        while os.getppid() == raylet:
            time.sleep(1)
        with suppress(Exception):
            self.stop()
        os._exit(1)

    def hello(self) -> tuple[str, bool]:
        """Where this is, and whether the disk is shared."""
        return f"{socket.gethostname()}, {self._process.where}", self._scratch is None

    def send(self, message: dict[str, Any], files: Mapping[str, Any]) -> None:
        """Hand a message on. `files` are written to the scratch folder, and what names them there named anew."""
        if self._scratch is not None and "run" in message:
            message = self._unpacked(self._scratch, message, files)
        self._process.send(**message)

    def _unpacked(self, scratch: Path, message: dict[str, Any], files: Mapping[str, Any]) -> dict[str, Any]:
        import ray

        self._run = scratch / "run" / Path(message["run"]).name
        places = {message["run"]: str(self._run)}
        for number, (name, content) in enumerate(files.items()):
            inside = PurePosixPath(name)
            if inside.parts[0] == "run":
                place = self._run / inside.relative_to("run")
            else:
                place = scratch / "tables" / str(number) / Path(name).name
                places[name] = str(place)
            make_folder(place.parent)
            place.write_bytes(ray.get(content))
        self._new_files()
        return _renamed(message, places)

    def heard(self, seconds: float) -> tuple[list[dict[str, Any]], int | None, bytes, dict[str, bytes]]:
        """What the process said, its exit code, what it printed since the last call, and the files of finished tasks,
        by their paths within the run."""
        messages = self._process.heard(seconds)
        code = self._process.code
        if self._scratch is None:
            return messages, code, b"", {}
        with self._log.open("rb") as log:
            log.seek(self._told)
            printed = log.read()
        self._told += len(printed)
        done = any("done" in message for message in messages)
        return messages, code, printed, self._new_files() if done else {}

    def _new_files(self) -> dict[str, bytes]:
        """Files of the run that were written since the last look, whole ones only."""
        found: dict[str, bytes] = {}
        if self._run is None:
            return found
        for file in sorted(self._run.rglob("*")):
            inside = file.relative_to(self._run)
            if not file.is_file() or file.name in NOT_SENT or any(part.endswith(".tmp") for part in inside.parts):
                continue
            state = (file.stat().st_mtime_ns, file.stat().st_ino)
            if self._seen.get(str(inside)) != state:
                self._seen[str(inside)] = state
                found[inside.as_posix()] = file.read_bytes()
        return found

    def stop(self) -> None:
        """End the process, and remove what it had here."""
        self._process.stop()
        self._stack.close()


def _renamed(values: Any, places: Mapping[str, str]) -> Any:
    """The same values with other places in them."""
    if isinstance(values, dict):
        return {key: _renamed(value, places) for key, value in values.items()}
    if isinstance(values, list):
        return [_renamed(value, places) for value in values]
    return places.get(values, values) if isinstance(values, str) else values


class RayProcess:
    """A process on a node of a cluster; see `lora_cls.execution.executor.Process`.

    Parameters
    ----------
    ray : the library
    host : the actor, a `Host`
    packed : the files that go with a message to a node without a shared disk
    """

    def __init__(self, ray: Any, host: Any, log: Path, packed: Any) -> None:
        self._ray, self._host, self._packed, self.log = ray, host, packed, log
        self.where = "waits for room on the cluster"
        self._hello: Any = host.hello.remote()
        self._unsent: list[dict[str, Any]] = []
        self._shared = True
        self._run: Path | None = None
        self._question: Any = None
        self._code: int | None = None
        self._lock = threading.RLock()

    @property
    def placed(self) -> bool:
        """Whether a node has it, or it cannot begin; it waits for room until then."""
        with self._lock:
            return self._placed(0)

    def _placed(self, seconds: float) -> bool:
        if self._hello is not None and self._code is None:
            answer = self._answer(self._hello, seconds)
            if answer is None:
                return self._code is not None
            (self.where, self._shared), self._hello = answer, None
            for message in self._unsent:
                self._hand_over(message)
            self._unsent.clear()
        return True

    def _answer(self, question: Any, seconds: float) -> Any:
        """What the actor says; None where it takes longer, or is gone."""
        try:
            ready, _ = self._ray.wait([question], timeout=seconds)
            return self._ray.get(question) if ready else None
        except self._ray.exceptions.RayError as error:
            self._code = LOST
            with suppress(OSError), self.log.open("a", encoding="utf-8") as log:
                log.write(f"{brief(error, 2000)}\n")
            return None
        except (ConnectionError, RuntimeError, ValueError) as error:  # of Ray's client
            raise RunError(
                f"The Ray cluster does not answer any more ({brief(error)}). What is finished is kept: the same "
                "command with --resume goes on."
            ) from None

    @property
    def code(self) -> int | None:
        """See `Process.code`; `LOST` for one that is gone with its node."""
        return self._code

    def send(self, **message: Any) -> None:
        """A message to the process; kept until a node has it."""
        with self._lock:
            if self._hello is not None:
                self._unsent.append(message)
            else:
                self._hand_over(message)

    def _hand_over(self, message: dict[str, Any]) -> None:
        files: dict[str, Any] = {}
        if "run" in message:
            self._run = Path(message["run"])
            files = {} if self._shared else self._packed(message)
        self._host.send.remote(message, files)

    def heard(self, seconds: float) -> list[dict[str, Any]]:
        """What it said since the last call; waits for so long at most. Files of finished tasks are here by then."""
        with self._lock:
            if not self._placed(seconds) or self._code is not None:
                return []
            if self._question is None:
                self._question = self._host.heard.remote(WAIT)
            answer = self._answer(self._question, seconds)
            if answer is None:
                return []
            self._question = None
            messages, code, printed, files = answer
            if printed:
                make_folder(self.log.parent)
                with self.log.open("ab") as log:
                    log.write(printed)
            self._keep(files)
            self._code = code
            return messages

    def _keep(self, files: Mapping[str, bytes]) -> None:
        """Write what came back: the file that completes a folder last, once nothing else is left of earlier tries."""
        assert self._run is not None or not files
        for name in sorted(files, key=lambda name: (name.endswith(COMPLETES), name)):
            place = self._run / name  # type: ignore[operator]
            make_folder(place.parent)
            if place.name == COMPLETES:
                inside = {self._run / other for other in files}  # type: ignore[operator]
                for file in place.parent.rglob("*"):
                    if file.is_file() and file not in inside and file.name != ".lock":
                        remove(file)
            write_bytes(place, files[name])

    def end(self) -> None:
        """It ends when it has done what it was told."""
        with self._lock:
            self.send(**END)

    def stop(self) -> None:
        """End it now, and wait until it is gone."""
        with self._lock, suppress(Exception):  # of a cluster that is gone itself
            if self._hello is None and self._code != LOST:
                self._ray.wait([self._host.stop.remote()], timeout=PATIENCE + 5)
            self._ray.kill(self._host, no_restart=True)


class RayExecutor:
    """Processes on the nodes of a Ray cluster; see `lora_cls.execution.executor.Executor`.

    Parameters
    ----------
    address : `ray` (the cluster of `RAY_ADDRESS`, one that runs on this machine, or else a new one on it), or
        `ray://HOST:PORT`
    n_workers : at once; as many as there is room for where None, and never more
    n_tasks : that there are to do
    resources : of each process, see `engine.resources`
    uses_gpu : whether a process takes a GPU where the cluster has any
    folder : that the processes write in
    needs_shared : what of the recipe lies in other folders, so that only a shared disk will do

    Raises
    ------
    RecipeError
        If Ray is not installed or does not answer, if no node has the room or this version of the package, or if there
        is no shared disk for `needs_shared`.
    """

    def __init__(
        self,
        address: str,
        n_workers: int | None,
        n_tasks: int,
        resources: Mapping[str, float],
        *,
        uses_gpu: bool,
        folder: Path,
        needs_shared: Sequence[str] = (),
    ) -> None:
        self._ray, self._own = connect(address)
        self._stack = ExitStack()
        try:
            nodes = [node for node in self._ray.nodes() if node["Alive"]]
            gpus = any(node["Resources"].get("GPU") for node in nodes)
            self._asked = {
                "CPU": resources.get("num_cpus", 1),
                "GPU": resources.get("num_gpus", 1 if uses_gpu and gpus else 0),
                "memory": int(resources.get("memory_gb", 0) * 2**30),
            }
            room = {node["NodeID"]: _room(node["Resources"], self._asked) for node in nodes}
            if not sum(room.values()):
                raise RecipeError(_too_little(nodes, self._asked))
            self.n_workers = min(n_workers or n_tasks, n_tasks, sum(room.values()))
            self.n_threads: int | None = max(1, int(self._asked["CPU"]))
            self._token = self._place_token(folder)
            self._check([node for node in nodes if room[node["NodeID"]]], needs_shared)
        except BaseException:
            self.close()
            raise
        self._put: dict[Path, Any] = {}

    def _place_token(self, folder: Path) -> str:
        """A file whose name is nowhere else; none where a shared disk is not to be looked for."""
        token = f"{uuid.uuid4().hex}.token"
        if os.environ.get("LORA_CLS_SHARED_FOLDER") == "no":
            return token
        parent = next(parent for parent in folder.absolute().parents if parent.is_dir())
        with writing(parent):
            scratch = self._stack.enter_context(scratch_folder(parent))
            (scratch / token).touch()
        return str(scratch / token)

    def _check(self, nodes: Sequence[Mapping[str, Any]], needs_shared: Sequence[str]) -> None:
        """Ask every node that has room for its version of the package, and for the shared disk."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        def probe(token: str) -> tuple[str, bool]:  # goes to the node as it stands: the package may be missing there
            import os

            try:
                from lora_cls import __version__
            except ImportError as error:
                return f"cannot be imported ({error})", False
            return __version__, os.path.exists(token)

        remote = self._ray.remote(probe)
        places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
        asked = [
            remote.options(num_cpus=0, max_retries=0, scheduling_strategy=place).remote(self._token) for place in places
        ]
        problems, apart = [], []
        ends = time.monotonic() + PROBE_SECONDS
        for node, question in zip(nodes, asked, strict=True):
            name = node["NodeManagerHostname"]
            try:
                version, shared = self._ray.get(question, timeout=max(0.1, ends - time.monotonic()))
            except self._ray.exceptions.RayError as error:
                problems.append(f"{name} does not answer ({brief(error)})")
                continue
            if version != __version__:
                problems.append(f"{name}: lora_cls {version}; {__version__} is needed")
            if not shared:
                apart.append(name)
        if problems:
            raise RecipeError(
                f"Nodes of the Ray cluster cannot work on this run: {'; '.join(problems)}. Install the same version of "
                "lora_cls there, or leave them out of the cluster."
            )
        if apart and needs_shared:
            raise RecipeError(
                f"{' and '.join(needs_shared)} need other folders than the run's, and the nodes {shorten(apart)} do "
                "not see this machine's: put all of them on a disk that the nodes share, or run with --executor local."
            )

    def start(self, worker: int, command: Sequence[str], log: Path) -> RayProcess:
        """See `Executor.start`."""
        make_folder(log.parent)
        actor = self._ray.remote(Host).options(
            num_cpus=self._asked["CPU"],
            num_gpus=self._asked["GPU"],
            memory=self._asked["memory"] or None,
            max_restarts=0,
            max_task_retries=0,
        )
        threads = os.environ.get("OMP_NUM_THREADS")
        host = actor.remote(list(command), str(log.absolute()), self._token, os.getcwd(), threads)
        return RayProcess(self._ray, host, log, self._packed)

    def _packed(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """What a process needs of this machine's disk, by the names that it has in its job; `run/...` for the run's
        own files, and for those of its folds where the job is of the `whole_run`."""
        run = Path(job["run"])
        inside = run.rglob("*") if job.get("whole_run") else run.iterdir()
        files = {
            f"run/{file.relative_to(run).as_posix()}": file
            for file in sorted(inside)
            if file.is_file() and file.name not in NOT_SENT and "predictions" not in file.relative_to(run).parts
        }
        data = job.get("recipe", {}).get("data", {})
        for name in [*job.get("tables", {}).values(), *(data.get(field) for field in TABLES)]:
            if name is not None and Path(name).is_file():
                files[name] = Path(name)
        return {name: self._kept(file) for name, file in files.items()}

    def _kept(self, file: Path) -> Any:
        if file not in self._put:
            self._put[file] = self._ray.put(file.read_bytes())
        return self._put[file]

    def close(self) -> None:
        """See `Executor.close`."""
        self._stack.close()
        if self._own:
            with suppress(Exception):
                self._ray.shutdown()


def _room(resources: Mapping[str, float], asked: Mapping[str, float]) -> int:
    """How many processes a node has room for."""
    shares = [int(resources.get(name, 0) / amount + 1e-9) for name, amount in asked.items() if amount]
    return min(shares) if shares else 1


def _too_little(nodes: Sequence[Mapping[str, Any]], asked: Mapping[str, float]) -> str:
    def told(resources: Mapping[str, float]) -> str:
        named = f"{resources.get('CPU', 0):g} cores, {resources.get('GPU', 0):g} GPUs"
        return f"{named}, {resources.get('memory', 0) / 2**30:.1f} GiB"

    has = "; ".join(sorted({told(node["Resources"]) for node in nodes})[:5])
    return (
        f"No node of the Ray cluster has room for one process, which takes {told(asked)}; the nodes have "
        f"{has or 'none'}. Ask for less with engine.resources (num_cpus, num_gpus, memory_gb), or add a node."
    )


def connect(address: str) -> tuple[Any, bool]:
    """Ray, connected; and whether that was done here.

    Raises
    ------
    RecipeError
        If it is not installed, or nothing answers at the address.
    """
    try:
        import ray
    except ImportError:
        raise RecipeError(
            '--executor ray needs Ray, which is not installed: pip install "lora_cls[ray]". Or use --executor local.'
        ) from None
    if ray.is_initialized():
        return ray, False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    named = address if address != "ray" else os.environ.get("RAY_ADDRESS", "")
    try:
        if named and named not in ("auto", "local"):
            _knock(named)
            ray.init(named, **quiet)
        else:
            try:
                ray.init(named or "auto", **quiet)
            except ConnectionError:
                if named:
                    raise
                ray.init("local", include_dashboard=False, **quiet)
    except RecipeError:
        raise
    except Exception as error:
        raise RecipeError(f"Ray does not answer at {named or 'this machine'}: {brief(error)}") from None
    return ray, True


def _knock(address: str) -> None:
    """Raise RecipeError unless something listens at an address; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise RecipeError(f"A Ray cluster is named as ray://HOST:PORT, as ray://head:10001. Got {address!r} instead.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise RecipeError(
            f"No Ray cluster answers at {address} ({brief(error)}). Start one there with ray start --head (its "
            "clients' port is 10001), or correct the address."
        ) from None
