"""Tables on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lora_cls.errors import shorten
from lora_cls.report.card import score_sentence
from lora_cls.runs import RunFolder, read_json

if TYPE_CHECKING:
    from lora_cls.checking import Check
    from lora_cls.training.estimate import Estimate

PHASES = {
    "load": "loading",
    "tokenize": "tokenizing",
    "prefix": "lower layers (once)",
    "train": "training",
    "score": "choosing among epochs",
    "predict": "prediction",
    "save": "writing",
    "tune": "thresholds and scores",
}
REUSED = {"token_ids": "token ids of {} texts", "hidden_states": "lower layers' hidden states of {} texts"}


def print_run(run: RunFolder) -> None:
    """The score, a table per label, what it cost, and the paths of the files."""
    console, metrics, info = _console(), read_json(run.path / "metrics.json"), run.info
    scores, classes = metrics["cross_fitted"], metrics["task"] == "single_label"
    noun = "class" if classes else "label"
    where = "Out of fold" if metrics["n_splits"] > 1 else "Held-out rows"
    decided = f"decided by the other {scores['over']}' thresholds; shown is the shipped one"
    table = Table(title=f"{where}, per {noun} ({decided})")
    table.add_column(noun)
    for column in ("rows" if classes else "positives", "share", "threshold", "precision", "recall", "F1", "AUC", "AP"):
        table.add_column(column, justify="right")
    for row in scores["per_label"]:
        values = [row[key] for key in ("threshold", "precision", "recall", "f1", "roc_auc", "average_precision")]
        cells = ["-" if value is None else f"{value:.3f}" for value in values]
        table.add_row(Text(row["label"]), str(row["support"]), f"{row['prevalence']:.1%}", *cells)
    console.print()
    console.print(table)
    say = _plain(console)
    say(score_sentence(metrics))
    more = {
        "single_label": "",  # said with the score
        "binary": f"Accuracy {scores['exact_match']:.4f}. ",
    }.get(metrics["task"], f"Micro-F1 {scores['micro_f1']:.4f}, exact match {scores['exact_match']:.4f}. ")
    say(more + metrics["note"])
    cost = ", ".join(
        f"{PHASES[phase]} {value / 60:.1f} min"
        for phase, value in sorted(info["seconds"].items(), key=lambda found: -found[1])
        if value >= 3 or phase in ("train", "predict")
    )
    cost = f"{cost[:1].upper()}{cost[1:]}, peak memory {info['peak_memory_bytes'] / 2**30:.2f} GiB"
    unit = "rows"
    if "train_rows_per_second" in info:
        per_row = info.get("pieces_per_row")
        if per_row is not None:
            cost += f", {per_row:.2f} pieces per row"
            unit = "pieces"
        cost += (
            f", trained {info['train_rows_per_second']:.0f} {unit}/s, {info['train_tokens_per_second']:.0f} tokens/s, "
            f"{info['padding_share']:.0%} padding"
        )
    if "predict_rows_per_second" in info:
        cost += f", predicted {info['predict_rows_per_second']:.0f} {unit}/s"
    say(f"{cost}.")
    if info.get("reused"):
        say("Reused: " + ", ".join(REUSED[name].format(number) for name, number in info["reused"].items()) + ".")
    unfinished = metrics["n_splits"] - len(metrics["folds_finished"])
    if unfinished:
        left = "1 fold is" if unfinished == 1 else f"{unfinished} folds are"
        say(f"{left} left: the same command with --resume and without --folds trains what is missing.")
    say("")
    files = {
        "metrics.json": "scores",
        "thresholds.json": "thresholds",
        "oof_proba.csv": "out-of-fold",
        "test_proba.csv": "test",
        "submission.csv": "submission",
        "README.md": "model card",
        "report.html": "page",
    }
    for name, label in files.items():
        if (run.path / name).is_file():
            say(f"{label:<12} {run.path / name}")


def print_check(found: Check) -> None:
    """What `lora-cls check` found."""
    console = _console()
    say = _plain(console)
    for note in found.notes:
        say(note)
    train, test = found.data["train"], found.data["test"]
    table = Table(title="Labels")
    for column in ("label", "positives", "share"):
        table.add_column(column, justify="left" if column == "label" else "right")
    for row in train["labels"]:
        table.add_row(Text(row["name"]), str(row["positives"]), f"{row['prevalence']:.1%}")
    console.print(table)
    none, several = train["rows_without_label"], train["rows_with_several_labels"]
    if found.recipe.task == "multi_label":
        say(
            f"{none['count']} rows ({none['share']:.1%}) carry no label, "
            f"{several['count']} ({several['share']:.1%}) several."
        )
    for name, lengths in found.tokens.items():
        say(
            f"Tokens per {name} text: mean {lengths['mean']:.1f}, median {lengths['median']:.0f}, 95 % up to "
            f"{lengths['p95']:.0f}, longest {lengths['max']}."
        )
    if found.memory:
        say(memory_sentence(found.memory, found.recipe.train.per_device_train_batch_size))
    if found.estimate:
        say(time_sentence(found.estimate))
    duplicates = train["duplicates"]
    conflicts = [" and ".join(ids) for ids in duplicates["conflicting_examples"]]
    say(
        f"{duplicates['texts']} training texts stand more than once ({duplicates['extra_rows']} extra rows); "
        f"the copies of {duplicates['conflicting_texts']} disagree on the labels{_examples(conflicts)}."
    )
    if test is not None:
        seen = test["texts_also_in_train"]
        say(f"{seen['count']} test texts ({seen['share']:.1%}) also stand in train; {test['empty_texts']} are empty.")


def print_export(exported: RunFolder) -> None:
    """What was made, what is known of it, and how to use it."""
    about = read_json(exported.path / "export.json")
    console = _console()
    say = _plain(console)
    n = len(about["folds"])
    if about["kind"] == "merged":
        what = f"One merged model of {n} folds: {exported.path / 'model'}"
    else:
        what = f"One adapter of {n} folds, rank {about['rank']}: {exported.path / 'adapter'}"
    say(what)
    if about["compression"]:
        found = about["compression"]
        say(
            f"{found['share']:.2%} of the exact mean's squared norm is kept (rank {about['exact_rank']} before), least "
            f"in {found['lowest_module']}: {found['lowest_share']:.2%}."
        )
    say(about["note"])
    if "scores" in about:
        table = Table(title=Text(f"Macro-F1 on {about['scored']['rows']} rows of {about['scored']['table']}"))
        for column in ("model", "rank", "macro-F1", "95 %", "minus the folds together", "95 %", "seconds", "rows/s"):
            table.add_column(column, justify="left" if column == "model" else "right")
        for i, row in enumerate(about["scores"]):
            f1, less = row["macro_f1"], row["difference"]
            difference = ("", "")
            if i:
                difference = f"{less['estimate']:+.4f}", f"{less['low']:+.4f} to {less['high']:+.4f}"
            table.add_row(
                row["model"], "" if row["rank"] is None else str(row["rank"]), f"{f1['estimate']:.4f}",
                f"{f1['low']:.4f} to {f1['high']:.4f}", *difference, f"{row['seconds']:.1f}",
                f"{row['rows_per_second']:.0f}",
            )  # fmt: skip
        console.print(table)
    say(
        f"How to load it without lora_cls: {exported.path / 'README.md'}\n"
        f"Or: lora-cls predict {exported.path} --input FILE"
    )


def memory_sentence(memory: dict[str, Any], rows: int) -> str:
    """The estimate of memory in one sentence, with its parts."""
    gib = {key: f"{value / 2**30:.2f}" for key, value in memory.items() if isinstance(value, int)}
    where = {"cpu": "on this CPU", "cuda": "on this GPU"}.get(memory["device"], f"on this machine ({memory['device']})")
    return (
        f"Training takes about {gib['total']} GiB {where}, estimated: base {gib['base']}, adapters and head "
        f"{gib['adapters']}, gradients and optimizer {gib['optimizer']}, activations of {rows} texts of "
        f"{memory['length']} tokens {gib['activations']}, libraries {gib['libraries']}."
    )


def time_sentence(found: Estimate) -> str:
    """The estimate of minutes by phase, and what was measured for it."""
    phases = ", ".join(f"{PHASES[name]} {value / 60:.1f}" for name, value in found.seconds.items() if value >= 1)
    folds, epochs = (f"{n} {word}{'s' * (n > 1)}" for n, word in ((found.folds, "fold"), (found.epochs, "epoch")))
    lengths = f"{found.lengths[0]} to {found.lengths[-1]}" if len(found.lengths) > 1 else str(found.lengths[0])
    return (
        f"The run takes about {found.total / 60:.1f} minutes here ({folds} of {epochs}): {phases}. Measured in "
        f"{found.measuring_seconds:.0f} s: {found.steps} training steps on batches of {lengths} tokens "
        f"({found.train_rows_per_second:.0f} rows/s over all batches), {found.predictions} batches predicted "
        f"({found.predict_rows_per_second:.0f} rows/s); they took {found.peak_memory_bytes / 2**30:.2f} GiB at their "
        "peak. Thresholds and scores come on top."
    )


def _examples(ids: list[str]) -> str:
    return f" (ids {shorten(ids, 5)})" if ids else ""


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=120)  # a file has no edge to wrap at


def _plain(console: Console) -> Any:
    """Prints text as it is: no markup from file or label names, no highlighting, no wrapping of paths."""
    return lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True)
