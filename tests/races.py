"""Two processes that start, or resume, the same run at the same moment: one trains, the other waits or says who does.

```
python tests/races.py [--times 50] [--slow]
```

By hand, as a file; `--slow` delays every rename by up to 20 ms. Both processes are forked from this one, which has
imported everything. Afterwards each must have ended well or with a sentence that names the other process or its run,
at least one well; a last resume gives the bytes of a run that nobody raced; and no lock or scratch is left. Prints how
the losers ended; exit code 1 on anything else.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
sys.path[:0] = [str(HERE.parent), str(HERE)]


def start(work, seed, slow):
    """A process that does `work`; returns its number and where it says how it ended."""
    said = tempfile.mktemp(prefix="said-")
    child = os.fork()
    if child:
        return child, Path(said)
    ended = "well"
    try:
        if slow:
            rng, replace = random.Random(seed), os.replace

            def late(*given, **options):
                time.sleep(rng.uniform(0, 0.02))
                return replace(*given, **options)

            os.replace = late
        work()
    except Exception as error:
        ended = f"{type(error).__name__}: {error}"
    Path(said).write_text(ended)
    os._exit(0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--slow", action="store_true")
    given = parser.parse_args()
    from conftest import make_emotion_table
    from nth_failure import contents

    from lora_cls import cross_validate, load_recipe

    values = {"tfidf": {"min_df": 1}, "cv": {"n_splits": 3}, "thresholds": {"min_positives": 2}}
    recipe, train = load_recipe(values), make_emotion_table(45)
    test = train[["id", "text"]].head(10)
    losers, bad = Counter(), 0
    with tempfile.TemporaryDirectory(prefix="races-") as root:
        tempfile.tempdir = root
        cross_validate(recipe, train, test, Path(root) / "alone" / "run")
        expected = contents(Path(root) / "alone")
        for number in range(given.times):
            for kind in ("two starts", "two resumes"):
                folder = Path(root) / f"{kind}-{number}"
                if kind == "two resumes":
                    cross_validate(recipe, train, test, folder / "run", folds=[0])

                def work(resume=kind == "two resumes", out=folder / "run"):
                    cross_validate(recipe, train, test, out, resume=resume)

                children = [start(work, (number, i).__hash__(), given.slow) for i in range(2)]
                ended = []
                for child, said in children:
                    os.waitpid(child, 0)
                    ended.append(said.read_text() if said.is_file() else "died")
                lost = [text for text in ended if text != "well"]
                kinds = ["is trained by", "exists already", "is written by"]
                known = [next((k for k in kinds if k in text), None) for text in lost]
                losers.update((kind, k or "both well") for k in known or [None])
                cross_validate(recipe, train, test, folder / "run", resume=True)
                same = contents(folder) == expected
                litter = [str(path) for path in folder.rglob("*") if path.suffix in (".tmp", ".lock")]
                litter += [str(path) for path in folder.rglob(".lock")]
                if len(lost) == 2 or None in known or not same or litter:
                    bad += 1
                    print(kind, number, ended, "same" if same else "other bytes", litter, flush=True)
    for (kind, how), count in sorted(losers.items()):
        print(f"{kind}: {how}: {count}")
    print(f"{bad} bad of {2 * given.times}")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
