"""Processes killed at random moments, over all commands: what they leave, repeated, is what an undisturbed one leaves.

```
python tests/kills.py [--kills 200] [--seed 0] [--commands "run,tune,run bert"]
```

By hand, as a file. Every kill is SIGKILL to a process of its own, forked from this one, which has imported everything;
then the command is repeated (a run with `--resume`), and its files compared with those of a run that nobody stopped.
Prints how many repetitions failed, files that differ, were lost, or are left over; exit code 1 on any. The commands and
the comparison are those of `tests/nth_failure.py`.
"""

import argparse
import functools
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
sys.path[:0] = [str(HERE.parent), str(HERE)]

KINDS = ("is neither the old nor the new one", "cannot be read", "is gone", "is different", "is litter", "is left")


def kill(trial, rng):
    """One kill; returns when it came, in seconds, and whether it came in time."""
    trial.fresh()
    moment = rng.uniform(0, trial.seconds)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        try:
            trial.operations(trial.name, trial.work)
        finally:
            os._exit(0)
    time.sleep(moment)
    os.kill(child, signal.SIGKILL)
    return moment, os.WIFSIGNALED(os.waitpid(child, 0)[1])


def main():
    from nth_failure import Operations, Trial

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", default=",".join(Operations.names))
    given = parser.parse_args()
    names, rng, counts = given.commands.split(","), random.Random(given.seed), Counter()
    with tempfile.TemporaryDirectory(prefix="kills-") as root:
        os.environ["LORA_CLS_CACHE"] = f"{root}/cache"
        os.chdir(root)
        from conftest import make_emotion_table
        from run_fingerprints import transformer

        operations = Operations(Path(root), make_emotion_table, functools.cache(transformer))
        for turn, name in enumerate(names):
            trial = Trial(operations, name)
            for _ in range(turn, given.kills, len(names)):
                moment, in_time = kill(trial, rng)
                counts["kills" if in_time else "ended before"] += 1
                problems = trial.repeated(f"{name}, killed after {moment:.3f} s")
                for problem in problems:
                    print(problem[:500], flush=True)
                    counts[next((kind for kind in KINDS if kind in problem), "could not be repeated")] += 1
            print(f"{name}: done", flush=True)
        os.chdir(HERE)
    print(", ".join(f"{kind}: {count}" for kind, count in counts.items()))
    sys.exit(bool(set(counts) - {"kills", "ended before"}))


if __name__ == "__main__":
    main()
