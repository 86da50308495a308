"""Folds on the nodes of a real Ray cluster of two raylets on this machine.

Here what takes a minute or two; all (some ten minutes) with `LORA_CLS_RAY=all python -m pytest tests/execution`.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ray = pytest.importorskip("ray")
sys.path.insert(0, str(Path(__file__).parent))

from lora_cls import cross_validate  # noqa: E402
from lora_cls.commands.predict import predict_file  # noqa: E402
from lora_cls.errors import RecipeError  # noqa: E402

from fold_processes import workers_of  # noqa: E402  isort: skip

QUICK = {  # a node that is gone is noticed within seconds; no metrics, no dashboard
    "RAY_health_check_initial_delay_ms": "1000", "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000", "RAY_health_check_failure_threshold": "3",
    "RAY_CLIENT_RECONNECT_GRACE_PERIOD": "5", "RAY_USAGE_STATS_ENABLED": "0",
}  # fmt: skip
N_FOLDS = 6
ALL = os.environ.get("LORA_CLS_RAY") == "all"


def start_cluster():
    """A head and a second node, with room for a process each."""
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=small)
    small.pop("include_dashboard")
    second = cluster.add_node(**small)
    cluster.wait_for_nodes()
    return cluster, second


@pytest.fixture
def cluster(monkeypatch):
    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    started, second = start_cluster()
    monkeypatch.setenv("RAY_ADDRESS", started.address)
    yield second
    ray.shutdown()
    started.shutdown()


@pytest.fixture(scope="module")
def local_run(tiny_recipe, emotion_table, tmp_path_factory):
    """The run that nobody disturbed, by this process alone."""
    recipe = tiny_recipe("bert", cv__n_splits=N_FOLDS)
    table, test = emotion_table(72), emotion_table(12, seed=1).assign(id=[f"t{i}" for i in range(12)])
    folder = tmp_path_factory.mktemp("local")
    files = {"train": folder / "train.csv", "test": folder / "test.csv"}
    table.to_csv(files["train"], index=False)
    test.drop(columns=["joy", "anger", "fear"]).to_csv(files["test"], index=False)
    return recipe, files, cross_validate(recipe, **files, out=folder / "run")


def same(run, local):
    """The bytes that do not say when or where a run was made."""
    names = ["oof_proba.csv", "test_proba.csv", "thresholds.json", "metrics.json"]
    names += [
        f"fold-{n:02d}/{name}"
        for n in range(N_FOLDS)
        for name in ("oof_logits.npy", "adapter/adapter_model.safetensors")
    ]
    return [name for name in names if (run.path / name).read_bytes() != (local.path / name).read_bytes()]


def kill_node_after(run, node, n_folds):
    """Kill a raylet once so many folds are finished, from another thread; returns when it did."""
    killed = []

    def watch():
        while len(list(run.glob("fold-*/fold.json"))) < n_folds:
            time.sleep(0.02)
        raylet = node.all_processes["raylet"][0].process.pid
        os.kill(raylet, signal.SIGKILL)
        killed.append(raylet)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return killed


def gone(run):
    """Processes that train folds of a run still, after they had time to end."""
    ends = time.monotonic() + 30
    while (left := workers_of(run)) and time.monotonic() < ends:
        time.sleep(0.2)
    return left


@pytest.mark.parametrize(
    "shared", ["yes", pytest.param("no", marks=pytest.mark.skipif(not ALL, reason="tried with LORA_CLS_RAY=all"))]
)
def test_a_raylet_dies(cluster, local_run, tmp_path, monkeypatch, shared):
    """The run ends on the other node, its files are those of the local run, and no process of the lost node stays."""
    recipe, files, local = local_run
    monkeypatch.setenv("LORA_CLS_SHARED_FOLDER", shared)
    killed = kill_node_after(tmp_path / "run", cluster, 2)
    run = cross_validate(recipe, **files, out=tmp_path / "run", executor="ray")
    assert killed
    assert gone(run.path) == []
    assert same(run, local) == []
    assert not [file for file in run.path.rglob("*") if file.name.endswith(".tmp")]
    assert (run.path / "logs" / "worker-1.log").is_file()


@pytest.mark.skipif(not ALL, reason="tried with LORA_CLS_RAY=all")
def test_driver_and_worker_die_at_once(cluster, local_run, tmp_path):
    """The same command with --resume goes on, to the same files; nobody is left."""
    recipe, files, local = local_run
    (tmp_path / "recipe.yaml").write_text(recipe_text(recipe))
    out = tmp_path / "run"
    command = [sys.executable, "-c", "from lora_cls.cli import main; main()", "run", str(tmp_path / "recipe.yaml")]
    command += ["--train", str(files["train"]), "--test", str(files["test"]), "--out", str(out), "--executor", "ray"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with (tmp_path / "printed.txt").open("w") as printed:
        driver = subprocess.Popen(command, env=environment, stdout=printed, stderr=printed)
        while len(list(out.glob("fold-*/fold.json"))) < 2:
            assert driver.poll() is None, (tmp_path / "printed.txt").read_text()
            time.sleep(0.02)
        os.kill(workers_of(out)[0].pid, signal.SIGKILL)
        driver.kill()
        driver.wait()
        assert gone(out) == []
        subprocess.run([*command, "--resume"], env=environment, stdout=printed, stderr=printed, check=True, timeout=300)
    assert same(local_run[2].of(out), local) == []
    assert not [file for file in out.rglob("*") if file.name.endswith(".tmp")]
    assert workers_of(out) == []


def recipe_text(recipe):
    import yaml

    return yaml.safe_dump(recipe.to_dict())


@pytest.mark.parametrize(
    "shared", ["yes", pytest.param("no", marks=pytest.mark.skipif(not ALL, reason="tried with LORA_CLS_RAY=all"))]
)
def test_nodes_answer(cluster, local_run, tmp_path, monkeypatch, shared):
    """A table of new texts is shared out by models; where no disk is shared the models travel to the nodes."""
    _, files, local = local_run
    monkeypatch.setenv("LORA_CLS_SHARED_FOLDER", shared)
    alone = predict_file(local, files["test"], tmp_path / "alone")
    nodes = predict_file(local, files["test"], tmp_path / "nodes", executor="ray")
    assert [file.name for file in sorted(nodes.iterdir())] == ["submission.csv", "test_proba.csv"]
    for file in alone.iterdir():
        assert file.read_bytes() == (nodes / file.name).read_bytes()


def test_too_little_room(cluster, tiny_recipe, emotion_table, tmp_path):
    """Said at once, with what there is."""
    recipe = tiny_recipe("bert", engine__resources={"num_cpus": 64})
    with pytest.raises(RecipeError, match="No node of the Ray cluster has room for one process, which takes 64 cores"):
        cross_validate(recipe, emotion_table(30), out=tmp_path / "run", executor="ray")
