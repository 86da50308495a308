"""Runs shared out to processes, of which drivers, workers and raylets are killed at random moments, and gone on with.

```
python tests/kill_workers.py [--kills 30] [--seed 0] [--executors local,ray]
```

By hand, as a file. Every run is killed in the middle (SIGKILL to its driver, one of its workers, both at once, or with
Ray a raylet of the cluster, which is replaced), then repeated with `--resume`. Its files are compared with those of a
run by one process that nobody stopped; processes that are left seconds after their driver, and half-written files, are
counted. Exit code 1 on any. Without Ray it is left out.
"""

import argparse
import importlib.util
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
os.environ["PYTHONPATH"] = str(HERE.parent)
sys.path[:0] = [str(HERE.parent), str(HERE), str(HERE / "execution")]

from fold_processes import workers_of  # noqa: E402

COMMAND = [sys.executable, "-c", "from lora_cls.cli import main; main()", "run", "recipe.yaml", "--train", "train.csv"]
SAME = ("oof_proba.csv", "metrics.json", "thresholds.json")
LEFT_AFTER = 30.0
"""Seconds that processes have to end after their driver."""
DEADLINE = 300.0


def compared(run):
    names = [*SAME, *(f"fold-{n:02d}/oof_logits.npy" for n in range(4))]
    return [name for name in names if (run / name).read_bytes() != (Path("whole") / name).read_bytes()]


def left_over(run):
    """Processes that are there still, after they had time to end."""
    ends = time.monotonic() + LEFT_AFTER
    while (left := workers_of(run.absolute())) and time.monotonic() < ends:
        time.sleep(0.2)
    for process in left:
        process.kill()
    return left


def attempt(run, options, moment, victim, node):
    """One run with one kill; returns whether it came in time, and the driver's exit code."""
    with open("printed.txt", "ab") as printed:
        driver = subprocess.Popen([*COMMAND, "--out", str(run), "--resume", *options], stdout=printed, stderr=printed)
        try:
            driver.wait(moment)
            return False, driver.returncode
        except subprocess.TimeoutExpired:
            pass
        if victim in ("worker", "both"):
            for process in workers_of(run.absolute())[:1]:
                process.kill()
        if victim in ("driver", "both"):
            driver.kill()
        if victim == "raylet":
            os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)
        return True, driver.wait(DEADLINE)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--executors", default="local,ray" if importlib.util.find_spec("ray") else "local")
    given = parser.parse_args()
    rng, counts, executors = random.Random(given.seed), Counter(), given.executors.split(",")
    with tempfile.TemporaryDirectory(prefix="kills-") as root:
        os.environ["LORA_CLS_CACHE"] = f"{root}/cache"
        os.chdir(root)
        cluster, node = prepare("ray" in executors)
        began = time.monotonic()
        subprocess.run([*COMMAND, "--out", "whole"], check=True, capture_output=True)
        seconds = time.monotonic() - began
        for turn in range(given.kills):
            executor = executors[turn % len(executors)]
            victims = ["driver", "worker", "both"] + ["raylet"] * (executor == "ray")
            victim, moment = rng.choice(victims), rng.uniform(0.2, 2.0) * seconds
            options = ["--executor", "ray"] if executor == "ray" else ["--workers", "2"]
            run, told = Path(f"run-{turn}"), f"{executor}, {victim} killed after {moment:.1f} s"
            in_time, code = attempt(run, options, moment, victim, node)
            counts["kills" if in_time else "ended before"] += 1
            if left := left_over(run):
                counts["processes left"] += len(left)
                print(f"{told}: {len(left)} processes left", flush=True)
            if victim == "raylet" and in_time:
                node = replaced(cluster, node)
            if code:
                again = subprocess.run([*COMMAND, "--out", str(run), "--resume", *options], capture_output=True)
                if again.returncode:
                    counts["could not be repeated"] += 1
                    print(f"{told}: {again.stdout[-500:]} {again.stderr[-1500:]}", flush=True)
                    continue
            for problem in compared(run):
                counts["files that differ"] += 1
                print(f"{told}: {problem} differs", flush=True)
            for file in run.rglob("*.tmp"):
                counts["half-written files"] += 1
                print(f"{told}: {file} is left", flush=True)
            print(f"{told}: {'went on' if not code else 'resumed'}", flush=True)
        if cluster is not None:
            cluster.shutdown()
        os.chdir(HERE)
    print(", ".join(f"{kind}: {count}" for kind, count in counts.items()))
    sys.exit(bool(set(counts) - {"kills", "ended before"}))


def prepare(with_ray):
    """Recipe and table in the current folder, and a cluster."""
    import yaml
    from conftest import _make_model, _make_tokenizer, make_emotion_table, tiny_recipe_values

    tokenizer = _make_tokenizer("bert")
    _make_model("bert", len(tokenizer)).save_pretrained("model")
    tokenizer.save_pretrained("model")
    values = tiny_recipe_values("bert", str(Path("model").absolute()))
    values["cv"]["n_splits"] = 4
    Path("recipe.yaml").write_text(yaml.safe_dump(values))
    make_emotion_table(72).to_csv("train.csv", index=False)
    if not with_ray:
        return None, None
    from test_cluster import QUICK, start_cluster

    os.environ |= QUICK
    cluster, node = start_cluster()
    os.environ["RAY_ADDRESS"] = cluster.address
    return cluster, node


def replaced(cluster, node):
    """A new node in the place of one that was killed."""
    cluster.remove_node(node, allow_graceful=False)
    return cluster.add_node(num_cpus=1, num_gpus=0, object_store_memory=80 * 2**20)


if __name__ == "__main__":
    main()
