"""Small runs of every kind, and the SHA-256 of every file that they write: the proof that a refactoring changes none.

```
python tests/run_fingerprints.py OUT.json [--keep FOLDER]           # writes {"relative/path": sha256}; keeps the files
python tests/run_fingerprints.py --compare BEFORE.json AFTER.json   # files added, gone, changed; exit code 1 on any
```

Run it on one machine and in one environment, before a change and after it. It imports the checkout that it stands in,
and is called as a file, not by `-m`, since a dependency installs a package named `tests`. Two kept folders can be
compared by `diff -r`. Only public names and the command line are used, so internal modules may move.

What differs between two runs of the same code is taken out in two ways. While it runs, `lora_cls` (and nobody else)
sees a clock on which every interval takes a second, and a process whose peak memory is a GiB: so rows per second,
minutes and figures keep their bytes. Afterwards times of day, versions, the machine and the folder are replaced in
every text file.
"""

import argparse
import hashlib
import io
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {
    "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "COLUMNS": "100",
    "TERM": "dumb", "TOKENIZERS_PARALLELISM": "false",
}  # fmt: skip
COLOURS = ("FORCE_COLOR", "CLICOLOR_FORCE", "PY_COLORS", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
WRITTEN = ("runs", "exports", "predictions", "compare", "pages", "printed", "cache")  # of the working folder
EMOTIONS = ["joy", "anger", "fear"]
DATA = {"train": "tables/train.csv", "test": "tables/test.csv"}
FILES = ["--train", "tables/train.csv", "--test", "tables/test.csv"]


# What differs from run to run


class Instant(float):
    """A time on a clock on which every interval takes a second, however many are measured within it."""

    def __sub__(self, other):
        return 1.0 if isinstance(other, Instant) else float(self) - other


def freeze():
    """Give `lora_cls` the clock above and a constant peak memory; libraries keep theirs, so that no timeout hangs.

    Before `lora_cls` is imported: it may bind the functions by name.
    """
    import resource

    for module, name, value in (
        (time, "monotonic", Instant(1000)),
        (time, "perf_counter", Instant(1000)),
        (resource, "getrusage", SimpleNamespace(ru_maxrss=2**20 if sys.platform != "darwin" else 2**30)),
    ):
        setattr(module, name, _for_lora_cls(getattr(module, name), value))


def _for_lora_cls(original, value):
    def function(*arguments):
        caller = sys._getframe(1).f_globals.get("__name__", "")
        return value if caller.partition(".")[0] == "lora_cls" else original(*arguments)

    return function


def placeholders(folder):
    """Pattern and replacement (bytes) of what tells when, where and by which versions a file was written."""
    found = [(re.escape(str(folder)), "<folder>")]
    found += [(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(\+00:00|Z)", "<started>")]
    found += [(re.escape(platform.platform()), "<platform>")]
    found += [(re.escape(f'"processor": "{platform.processor() or platform.machine()}"'), '"processor": "<processor>"')]
    versions = json.loads((folder / "runs" / "llama" / "run.json").read_text(encoding="utf-8"))["versions"]
    for name, version in versions.items():
        found += [(rf'\b{re.escape(name)}("?:? "?){re.escape(version)}', rf"{name}\1<version>")]
    return [(re.compile(pattern.encode()), replacement.encode()) for pattern, replacement in found]


def normalise(folder):
    """Replace `placeholders` in every text file that was written."""
    patterns = placeholders(folder)
    for file in written(folder):
        content = file.read_bytes()
        try:
            content.decode("utf-8")
        except UnicodeDecodeError:
            continue  # weights and arrays
        for pattern, replacement in patterns:
            content = pattern.sub(replacement, content)
        file.write_bytes(content)


def written(folder):
    return sorted(file for name in WRITTEN for file in (folder / name).rglob("*") if file.is_file())


# Tables and recipes


def make_tables():
    """All tables, as files in `tables`."""
    import numpy as np
    from conftest import make_emotion_table

    Path("tables").mkdir()

    def save(table, name):
        table.to_csv(f"tables/{name}.csv", index=False)

    train = make_emotion_table(45)
    train.loc[40, "text"] = train.loc[7, "text"]
    test = make_emotion_table(12, seed=5)[["id", "text"]].assign(id=[f"t{i:02d}" for i in range(12)])
    test.loc[4, "text"] = ""
    sample = make_emotion_table(12)[["fear", "joy", "anger"]].assign(id=list(test["id"]))
    texts, rng = train[["id", "text"]], np.random.default_rng(0)
    save(train, "train")
    save(test, "test")
    save(sample[["id", "fear", "joy", "anger"]].iloc[::-1], "sample")
    save(make_emotion_table(20, seed=3).assign(id=[f"new{i}" for i in range(20)]), "labelled")
    save(make_emotion_table(12, seed=4).assign(id=[f"more{i}" for i in range(12)]), "extra")
    save(texts.assign(mood=train[EMOTIONS].assign(none=1).idxmax(axis=1)), "moods")
    save(texts.assign(angry=train["anger"]), "angry")
    tags = [", ".join(name for name in EMOTIONS if row[name]) for _, row in train.iterrows()]
    save(texts.assign(tags=tags), "tags")
    save(train.assign(part=["dev" if i % 3 == 1 else "train" for i in range(45)]), "split")
    shares = {name: np.abs(train[name] - rng.choice([0, 0.25, 0.4], 45)).round(2) for name in EMOTIONS}
    save(train.assign(**shares, weight=rng.choice([0, 0.5, 1, 2], 45)), "soft")
    save(train.assign(text=[" ".join(train["text"].iloc[i : i + 1 + i % 8]) for i in range(45)]), "long")


def transformer(kind, **overrides):
    """A recipe on a tiny model, which is made on first use; `.` is written `__`."""
    from conftest import tiny_recipe_values

    import lora_cls

    path = Path("models") / kind
    if not path.exists():
        save_model(kind, path)
    values = tiny_recipe_values(kind, str(path))
    return lora_cls.load_recipe(values, {key.replace("__", "."): value for key, value in overrides.items()})


def save_model(kind, path):
    """A tiny model of the tests with its tokenizer."""
    import torch
    from conftest import _corpus, _make_model, _make_tokenizer
    from tokenizers.models import WordPiece

    torch.set_num_threads(1)
    tokenizer = _make_tokenizer(kind)
    if (
        kind == "bert"
    ):  # its trainer breaks ties by a hash that no seed fixes: keep words and letters, which are certain
        words = set(" ".join(_corpus()).lower().split())
        trained = tokenizer.get_vocab()
        special = sorted((piece for piece in trained if piece.startswith("[")), key=trained.get)
        kept = sorted(piece for piece in trained if piece in words or len(piece.removeprefix("##")) == 1)
        vocabulary = {piece: i for i, piece in enumerate([*special, *kept])}
        tokenizer.backend_tokenizer.model = WordPiece(vocabulary, unk_token="[UNK]")
    model = _make_model(kind, len(tokenizer))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)


def tfidf(**overrides):
    """A recipe of the classical baseline; `.` is written `__`."""
    import lora_cls

    values = {"tfidf": {"min_df": 1}, "cv": {"n_splits": 2}, "thresholds": {"min_positives": 2}}
    return lora_cls.load_recipe(values, {key.replace("__", "."): value for key, value in overrides.items()})


def save_recipe(recipe, name):
    import yaml

    Path("recipes").mkdir(exist_ok=True)
    file = Path("recipes") / f"{name}.yaml"
    file.write_text(yaml.safe_dump(recipe.to_dict(), sort_keys=False), encoding="utf-8")
    return file


# Ways to run


def train(name, recipe, table="train", **options):
    import lora_cls

    given = {"test": "tables/test.csv"} | options
    return lora_cls.cross_validate(recipe, f"tables/{table}.csv", out=f"runs/{name}", **given)


def command(name, *arguments):
    """Call `lora-cls`, and keep what it prints in `printed`: stdout, stderr and the exit code."""
    from lora_cls import cli

    sys.argv = ["lora-cls", *map(str, arguments)]
    out, error, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(error):
        try:
            cli.main()
        except SystemExit as done:
            code = done.code or 0
    if code != (2 if name.startswith("error") else 0):
        raise RuntimeError(f"{' '.join(sys.argv)} ended with {code}:\n{out.getvalue()}{error.getvalue()}")
    Path("printed").mkdir(exist_ok=True)
    Path("printed", f"{name}.txt").write_text(out.getvalue(), encoding="utf-8")
    if error.getvalue():
        Path("printed", f"{name}.stderr.txt").write_text(error.getvalue(), encoding="utf-8")


def copy(name, new):
    """A copy of a finished run, for what writes into it."""
    shutil.copytree(f"runs/{name}", f"runs/{new}")
    return f"runs/{new}"


# The kinds, in this order; later ones read the runs of earlier ones


def help_texts():
    names = ("run", "check", "predict", "refit", "export", "tune", "compare", "blend", "calibrate", "report", "recipes")
    command("help", "--help")
    for name in names:
        command(f"help-{name}", name, "--help")
    command("help-recipes-show", "recipes", "show", "--help")


def shipped_recipes():
    command("recipes", "recipes")
    command("recipes-show", "recipes", "show", "quickstart")


def tfidf_multi_label():
    file = save_recipe(tfidf(), "tfidf")
    command("check-tfidf", "check", file, *FILES, "--sample-submission", "tables/sample.csv")
    command("run-tfidf", "run", file, *FILES, "--sample-submission", "tables/sample.csv", "--out", "runs/tfidf")


def tfidf_one_fold_then_the_rest():
    """A partial run, whose rows are decided in parts; and its continuation."""
    file = save_recipe(tfidf(cv__n_splits=3), "tfidf-3")
    out = ["--out", "runs/tfidf-partial"]
    command("run-partial", "run", file, *FILES, *out, "--folds", "0")
    copy("tfidf-partial", "tfidf-resumed")
    command("run-resumed", "run", file, *FILES, "--out", "runs/tfidf-resumed", "--resume")


def lora_bf16():
    file = save_recipe(transformer("llama", backbone__dtype="bfloat16"), "llama")
    command("check-llama", "check", file, *FILES, "--no-measure")
    command("run-llama", "run", file, *FILES, "--out", "runs/llama")


def lora_another_seed():
    train("llama-seed", transformer("llama", backbone__dtype="bfloat16", train__seed=43))


def lora_one_fold():
    train("llama-partial", transformer("llama", cv__n_splits=3), folds=[0])


def lora_top_layers():
    """Twice: the second finds the lower layers' hidden states in the cache."""
    recipe = transformer("llama", lora__top_layers=0.5)
    train("top-layers", recipe)
    train("top-layers-again", recipe)


def full_fine_tuning():
    train("bert-full", transformer("bert", lora=None, train__learning_rate=1e-3))


def four_bits():
    train("gemma3-4bit", transformer("gemma3", quantization={"load_in_4bit": True}, backbone__dtype="bfloat16"))


def label_tokens():
    words = {"fear": "being afraid"}
    recipe = transformer("gemma3", head={"kind": "label_tokens", "label_words": words}, data__max_length=96)
    train("label-tokens", recipe)


def generate():
    recipe = transformer("chat", train__num_train_epochs=1)
    train("generate", recipe)
    command("check-generate", "check", save_recipe(recipe, "generate"), *FILES, "--no-measure")


def single_label():
    train("moods-tfidf", tfidf(), "moods")
    train("moods-llama", transformer("llama"), "moods")
    train("moods-focal", transformer("qwen2", loss__name="focal", loss__label_smoothing=0.1), "moods")
    command("check-moods", "check", "recipes/tfidf.yaml", "--train", "tables/moods.csv", "--test", "tables/test.csv")


def single_label_generate():
    train("moods-generate", transformer("chat", train__num_train_epochs=1), "moods")


def binary():
    train("angry-tfidf", tfidf(), "angry")
    train("angry-roberta", transformer("roberta"), "angry")


def delimited_labels():
    train("tags", tfidf(data__label_columns=["tags"], data__label_delimiter=", "), "tags")


def other_losses():
    train("asymmetric", transformer("bert", loss__name="asymmetric", loss__pos_weight="effective_number"))
    balanced = {"loss__name": "distribution_balanced", "loss__pos_weight": "none", "loss__label_weights": {"joy": 2}}
    train("distribution-balanced", transformer("bert", **balanced))


def averages():
    train("averages", transformer("bert", train__ema_decay=0.9, train__average_epochs=2))
    train("averages-inner", transformer("llama", train__ema_decay=0.9, train__select="inner"))


def long_text_chunk():
    options = {"data__long_text": "chunk", "data__max_length": 32, "data__chunk_stride": 8, "data__max_chunks": 3}
    train("chunk", transformer("bert", **options, data__chunk_combine="mean_proba"), "long")
    train("chunk-max", transformer("llama", **options, data__chunk_combine="max"), "long")


def long_text_head_tail():
    train("head-tail", transformer("qwen2", data__long_text="head_tail", data__max_length=24), "long")


def split_column():
    train("split-tfidf", tfidf(data__split_column="part"), "split")
    train("split-bert", transformer("bert", data__split_column="part"), "split")


def extra_rows():
    train("extra", transformer("bert"), extra_train="tables/extra.csv")
    train("extra-tfidf", tfidf(), extra_train="tables/extra.csv")


def weights_and_soft_labels():
    options = {"data__soft_labels": True, "data__weight_column": "weight", "data__label_columns": EMOTIONS}
    train("soft", transformer("llama", **options), "soft")
    train("soft-tfidf", tfidf(**options), "soft")


def select_inner():
    train("inner", transformer("bert", train__select="inner", train__inner_fraction=0.3))
    margin = {"train__select_by": "loss_within_margin", "train__select_margin": 0.2}
    train("inner-loss", transformer("bert", train__select="inner", train__inner_fraction=0.3, **margin))


def select_cross_fitted():
    train("cross-fitted", transformer("bert", train__select="cross_fitted"))


def select_scored_fold():
    train("scored-fold", transformer("bert", train__select="scored_fold"))


def refits():
    import lora_cls

    lora_cls.refit(lora_cls.RunFolder(copy("llama", "llama-refit")))
    lora_cls.refit(lora_cls.RunFolder(copy("cross-fitted", "cross-fitted-refit")))
    command("refit", "refit", copy("tfidf", "tfidf-refit"))


def blends():
    members = ["runs/llama", "runs/tfidf", "runs/bert-full"]
    for how in ("mean_logit", "mean_proba", "rank_mean", "weights", "stacking"):
        name = f"blend-{how.replace('_', '-')}"
        command(name, "blend", *members, "--how", how, "--out", f"runs/{name}")


def blend_of_classes():
    pair = ["runs/moods-llama", "runs/moods-tfidf"]
    command("blend-moods", "blend", *pair, "--how", "stacking", "--out", "runs/blend-moods")


def blend_in_parts():
    """A single fold's rows are blended part by part."""
    pair = ["runs/split-bert", "runs/split-tfidf"]
    command("blend-split", "blend", *pair, "--how", "stacking", "--out", "runs/blend-split")
    command("blend-split-weights", "blend", *pair, "--how", "weights", "--out", "runs/blend-split-weights")


def exports():
    import lora_cls

    labelled = ["--score", "tables/labelled.csv"]
    lora_cls.export("runs/llama", "exports/exact")
    lora_cls.export("runs/top-layers", "exports/share", share=0.9)
    lora_cls.export("runs/label-tokens", "exports/label-tokens")
    lora_cls.export("runs/gemma3-4bit", "exports/merged-4bit", to="merged")
    command("export-rank", "export", "runs/llama-refit", "--out", "exports/rank", "--rank", "4", *labelled)
    command("export-merged", "export", "runs/llama", "--out", "exports/merged", "--to", "merged", *labelled)
    command("export-mean", "export", "runs/bert-full", "--out", "exports/mean", "--to", "merged", *labelled)


def calibrations():
    for name, how in (("tfidf", "isotonic"), ("llama", "temperature"), ("moods-llama", "temperature")):
        command(f"calibrate-{name}", "calibrate", copy(name, f"{name}-calibrated"), "--how", how)
    command("calibrate-split", "calibrate", copy("split-bert", "split-calibrated"), "--how", "isotonic")


def predictions():
    import lora_cls

    runs = (
        "llama",
        "bert-full",
        "gemma3-4bit",
        "label-tokens",
        "generate",
        "chunk",
        "moods-llama",
        "tags",
        "cross-fitted",
    )
    runs += ("blend-stacking", "blend-weights", "blend-rank-mean", "blend-moods", "blend-split")
    folders = {name: f"runs/{name}" for name in runs}
    folders |= {f"export-{name}": f"exports/{name}" for name in ("exact", "rank", "merged", "mean", "label-tokens")}
    for name, folder in folders.items():
        lora_cls.predict_file(folder, "tables/test.csv", f"predictions/{name}")
    for name in ("llama-refit", "tfidf-refit"):
        lora_cls.predict_file(f"runs/{name}", "tables/test.csv", f"predictions/{name}", models="refit")
    sample = ["--sample-submission", "tables/sample.csv"]
    command("predict-tfidf", "predict", "runs/tfidf-refit", "--input", "tables/test.csv", *sample)


def loaded_classifiers():
    import lora_cls

    texts, answers = ["happy great wonderful day", "afraid of the dog", "it was"], {}
    for folder in ("runs/tfidf", "runs/llama", "runs/moods-llama", "runs/blend-mean-logit", "exports/exact"):
        classifier = lora_cls.Classifier.load(folder)
        answers[folder] = [classifier.predict_labels(texts), classifier.predict_proba(texts[0]).tolist()]
    Path("predictions/labels.json").write_text(json.dumps(answers, indent=2) + "\n", encoding="utf-8")


def tuned_again():
    settings = ["--strategy", "global", "--at-least-one", "--combine", "vote"]
    command("tune-tfidf", "tune", copy("tfidf", "tfidf-tuned"), *settings)
    fixed = ["--strategy", "fixed", "--default", "0.4", "--combine", "mean_proba", "--min-positives", "3"]
    command("tune-llama", "tune", copy("llama", "llama-tuned"), *fixed)
    command("tune-moods", "tune", copy("moods-llama", "moods-tuned"), "--strategy", "argmax")
    command("tune-blend", "tune", copy("blend-stacking", "blend-tuned"), "--strategy", "global")


def comparisons():
    names = ("llama", "llama-seed", "tfidf", "bert-full", "scored-fold", "generate", "blend-mean-logit")
    command("compare", "compare", *(f"runs/{name}" for name in names), "--out", "compare/labels")
    command("compare-moods", "compare", "runs/moods-llama", "runs/moods-tfidf", "--out", "compare/moods")
    command("compare-split", "compare", "runs/split-bert", "runs/split-tfidf", "--out", "compare/split")


def pages_with_texts():
    Path("pages").mkdir()
    for name, table in (
        ("llama", "train"),
        ("moods-llama", "moods"),
        ("generate", "train"),
        ("blend-stacking", "train"),
    ):
        out = ["--train", f"tables/{table}.csv", "--out", f"pages/{name}.html"]
        command(f"report-{name}", "report", f"runs/{name}", *out)
    command("report-again", "report", copy("bert-full", "bert-reported"))


def errors():
    command("error-run-exists", "run", "recipes/tfidf.yaml", *FILES, "--out", "runs/tfidf")
    command("error-recipe", "run", "recipes/tfidf.yaml", "--set", "train.sede=1", "--set", "cv.n_splits=1")
    command("error-other-rows", "compare", "runs/llama", "runs/split-bert", "--out", "compare/none")
    command("error-no-run", "predict", "tables", "--input", "tables/test.csv")
    command("error-export", "export", "runs/tfidf", "--out", "exports/none")


KINDS = (
    help_texts, shipped_recipes, tfidf_multi_label, tfidf_one_fold_then_the_rest, lora_bf16, lora_another_seed,
    lora_one_fold, lora_top_layers, full_fine_tuning, four_bits, label_tokens, generate, single_label,
    single_label_generate, binary, delimited_labels, other_losses, averages, long_text_chunk, long_text_head_tail,
    split_column, extra_rows, weights_and_soft_labels, select_inner, select_cross_fitted, select_scored_fold,
    refits, blends, blend_of_classes, blend_in_parts, exports, calibrations, predictions, loaded_classifiers,
    tuned_again, comparisons, pages_with_texts, errors,
)  # fmt: skip


# The program


def fingerprints(keep):
    """Write all kinds in a fresh folder; returns {path: sha256} of the normalised files."""
    import conftest  # sets the environment of its own, before ours

    sys.path.insert(0, str(ROOT))
    freeze()
    import lora_cls

    if ROOT not in Path(lora_cls.__file__).resolve().parents:
        sys.exit(f"lora_cls is imported from {lora_cls.__file__}, and not from {ROOT}.")
    scratch = tempfile.TemporaryDirectory(prefix="lora_cls-fingerprints-")
    folder = Path(scratch.name).resolve()
    os.environ["LORA_CLS_CACHE"] = str(folder / "cache")
    home = Path.cwd()
    os.chdir(folder)
    try:
        make_tables()
        for kind in KINDS:
            started = time.monotonic()
            kind()
            print(f"{kind.__name__:<30} {time.monotonic() - started:6.1f} s", file=sys.stderr, flush=True)
        normalise(folder)
        files = written(folder)
        found = {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
        size = sum(file.stat().st_size for file in files)
        if keep is not None:
            for name in WRITTEN:
                shutil.copytree(folder / name, keep / name)
    finally:
        os.chdir(home)
        scratch.cleanup()
        conftest.pytest_sessionfinish()
    return found, size


def differences(before, after):
    """One line per file that is not the same in both."""
    lines = [f"added    {name}" for name in sorted(set(after) - set(before))]
    lines += [f"gone     {name}" for name in sorted(set(before) - set(after))]
    return lines + [f"changed  {name}" for name in sorted(before) if name in after and before[name] != after[name]]


def main():
    parser = argparse.ArgumentParser(prog="python tests/run_fingerprints.py", description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path, help="where the fingerprints go, as JSON")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="a new folder for the normalised files")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("BEFORE", "AFTER"))
    given = parser.parse_args()
    if given.compare:
        before, after = (json.loads(file.read_text(encoding="utf-8")) for file in given.compare)
        found = differences(before, after)
        print("\n".join([*found, f"{len(before)} files before, {len(after)} after, {len(found)} differ"]))
        return bool(found)
    if given.out is None:
        parser.error("give the file for the fingerprints, or --compare BEFORE AFTER")
    if given.keep is not None and given.keep.exists():
        parser.error(f"{given.keep} exists already")
    if any(os.environ.get(name) != value for name, value in SETTINGS.items()):
        environment = {name: value for name, value in os.environ.items() if name not in COLOURS} | SETTINGS
        os.execve(sys.executable, [sys.executable, __file__, *sys.argv[1:]], environment)
    started = time.monotonic()
    out, keep = given.out.resolve(), given.keep and given.keep.resolve()
    found, size = fingerprints(keep)
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    seconds = time.monotonic() - started
    print(f"{len(KINDS)} kinds, {len(found)} files, {size / 2**20:.1f} MiB, {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
