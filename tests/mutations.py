"""Inputs mutated at random: recipes, `--set` strings, tables, fold tables, samples, and files of a run folder.

```
python tests/mutations.py [--count 10000] [--seed 0]
```

By hand, as a file; the tests hold a small part of it. Every input ends in a value or in an error of ours: prints how
many did which, and every other exception, message of 2,000 characters or more, and input that took ten seconds. A run
folder with a mutated file must also answer as before, or say that it cannot. Exit code 1 on any.
"""

import argparse
import contextlib
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
sys.path[:0] = [str(HERE.parent), str(HERE), str(HERE / "data"), str(HERE / "recipe")]
LIMIT = 10  # seconds


class TooSlowError(BaseException):
    """Nothing catches it."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng, counts, started = random.Random(given.seed), Counter(), time.monotonic()
    warnings.simplefilter("ignore")

    def stop(*_):
        raise TooSlowError

    signal.signal(signal.SIGALRM, stop)
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        kinds = make_kinds(Path(folder), rng)
        for number in range(given.count):
            name = list(kinds)[number % len(kinds)]
            outcome = ended(kinds[name])
            counts[name, outcome.partition(":")[0]] += 1
            if outcome not in ("value", "error of ours"):
                print(f"{number} {name}: {outcome[:300]}", flush=True)
    for (name, outcome), count in sorted(counts.items()):
        print(f"{name:<12} {outcome:<15} {count}")
    bad = sum(count for (_, outcome), count in counts.items() if outcome not in ("value", "error of ours"))
    print(f"seed {given.seed}: {given.count} inputs, {bad} bad, {time.monotonic() - started:.0f} s")
    sys.exit(bool(bad))


def ended(make):
    """How one input ended."""
    from lora_cls.errors import LoraClsError

    signal.alarm(LIMIT)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            make()
    except LoraClsError as error:
        return "error of ours" if len(str(error)) < 2000 else f"long message: {error}"
    except TooSlowError:
        return "too slow"
    except AssertionError as error:
        return f"another answer: {error}"
    except Exception as error:
        return f"traceback: {type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    return "value"


def make_kinds(folder, rng):
    """By name, functions that make one mutated input and use it."""
    import test_mutated_tables as tables
    import test_yaml_text as recipes
    from conftest import make_emotion_table

    from lora_cls import Classifier, calibrate, cross_validate, load_recipe, tune
    from lora_cls.data import load_train, read_sample_submission
    from lora_cls.data.folds import make_folds
    from lora_cls.report.page import write_page
    from lora_cls.runs import RunFolder

    good = (
        "backbone: {name_or_path: org/model}\nlora: {r: 4}\ndata: {label_columns: [a, b]}\nloss: {pos_weight: [1, 2]}\n"
    )
    base = {"backbone": {"name_or_path": "org/model"}}
    fields = ["lora.r", "data.label_columns", "train", "loss.pos_weight", "tfidf.C", "cv.random_state", "thresholds"]
    originals = tables.originals()
    settings = {"tfidf": {"min_df": 1}, "cv": {"n_splits": 2}, "thresholds": {"min_positives": 2}}
    frame = make_emotion_table(45)
    run = cross_validate(load_recipe(settings), frame, frame[["id", "text"]], folder / "run").path
    files = sorted(file.relative_to(run) for file in run.rglob("*") if file.is_file())
    texts = ["happy and delighted", "furious and angry"]
    answer = Classifier.load(run).predict(texts).tolist()
    made = load_train(load_recipe(settings).data, frame, frame[["id", "text"]])
    fold_table = frame[["id"]].assign(fold=[i % 2 for i in range(len(frame))]).to_csv(index=False).encode()
    sample = frame[["id", "joy", "anger", "fear"]].to_csv(index=False).encode()

    (folder / "folds.csv").write_bytes(fold_table)
    (folder / "sample.csv").write_bytes(sample)
    make_folds(load_recipe(settings), made, folder / "folds.csv")  # unchanged, they are good
    read_sample_submission(folder / "sample.csv", frame["id"].tolist(), made.label_names)

    def scrambled():
        return "".join(rng.choices(recipes.PIECES, k=rng.randint(1, 12)))

    def recipe():
        at, text, file = rng.randint(0, len(good)), scrambled(), folder / "recipe.yaml"
        file.write_text(good[:at] + text + good[at + rng.randint(0, 9) :], encoding="utf-8")
        load_recipe(file)

    def override():
        text = scrambled()
        load_recipe(base, [f"{rng.choice([*fields, text])}={text}"])

    def table():
        suffix = rng.choice(sorted(originals))
        file = folder / f"table{suffix}"
        file.write_bytes(tables.mutated(originals[suffix], rng))
        load_train(rng.choice(tables.CONFIGS), file, frame[["id", "text"]])

    def folds():
        file = folder / "folds.csv"
        file.write_bytes(tables.mutated(fold_table, rng))
        make_folds(load_recipe(settings), made, file)

    def submission():
        file = folder / "sample.csv"
        file.write_bytes(tables.mutated(sample, rng))
        read_sample_submission(file, frame["id"].tolist(), made.label_names)

    def predicted(path):
        found = Classifier.load(path).predict(texts).tolist()
        assert found == answer, found

    commands = [
        predicted, predicted, tune, calibrate, lambda path: write_page(RunFolder(path)),
        lambda path: RunFolder(path).results(),
    ]  # fmt: skip

    def run_folder():
        copy, file = folder / "copy", rng.choice(files)
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(run, copy)
        (copy / file).write_bytes(tables.mutated((copy / file).read_bytes(), rng))
        rng.choice(commands)(copy)

    return {
        "recipe": recipe, "--set": override, "table": table, "fold table": folds, "sample": submission,
        "run folder": run_folder,
    }  # fmt: skip


if __name__ == "__main__":
    main()
