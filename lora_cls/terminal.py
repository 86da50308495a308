"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lora_cls.errors import shorten
from lora_cls.evaluation.comparison import COST_NOTE, NOTE, Comparison
from lora_cls.report.comparison import COST, HEADER, SCORES, comparison_cells, seeds_sentence, where_scored
from lora_cls.report.sentences import PHASES, REUSED, blend_runs, blend_ways, gain_sentence, score_sentence
from lora_cls.runs import RunFolder, Scores
from lora_cls.runs.records import BlendInfo, CalibrationInfo, ExportInfo

if TYPE_CHECKING:
    from lora_cls.commands.check import Check
    from lora_cls.training.estimate import Estimate


def print_run(run: RunFolder) -> None:
    """The score, a table per label, what it cost, and the paths of the files."""
    console, metrics, info = _console(), Scores.read(run.files.scores), run.info
    scores, classes = metrics.cross_fitted, metrics.task == "single_label"
    noun = "class" if classes else "label"
    where = "Out of fold" if metrics.n_splits > 1 else "Held-out rows"
    decided = f"decided by the other {scores.over}' thresholds; shown is the shipped one"
    table = Table(title=f"{where}, per {noun} ({decided})")
    table.add_column(noun)
    for column in ("rows" if classes else "positives", "share", "threshold", "precision", "recall", "F1", "AUC", "AP"):
        table.add_column(column, justify="right")
    for row in scores.per_label:
        values = [
            getattr(row, key) for key in ("threshold", "precision", "recall", "f1", "roc_auc", "average_precision")
        ]
        cells = ["-" if value is None else f"{value:.3f}" for value in values]
        table.add_row(Text(row.label), str(row.support), f"{row.prevalence:.1%}", *cells)
    console.print()
    console.print(table)
    say = _plain(console)
    say(score_sentence(metrics))
    more = f"Micro-F1 {scores.micro_f1:.4f}, exact match {scores.exact_match:.4f}. "
    if metrics.task == "single_label":
        more = ""  # said with the score
    elif metrics.task == "binary":
        more = f"Accuracy {scores.exact_match:.4f}. "
    say(more + metrics.note)
    cost = ", ".join(
        f"{PHASES[phase]} {value / 60:.1f} min"
        for phase, value in sorted(info.seconds.items(), key=lambda found: -found[1])
        if value >= 3 or phase in ("train", "predict")
    )
    cost = f"{cost[:1].upper()}{cost[1:]}, peak memory {(info.peak_memory_bytes or 0) / 2**30:.2f} GiB"
    unit = "rows"
    if info.train_rows_per_second is not None:
        per_row = info.pieces_per_row
        if per_row is not None:
            cost += f", {per_row:.2f} pieces per row"
            unit = "pieces"
        cost += (
            f", trained {info.train_rows_per_second:.0f} {unit}/s, {info.train_tokens_per_second:.0f} tokens/s, "
            f"{info.padding_share:.0%} padding"
        )
    if info.predict_rows_per_second is not None:
        cost += f", predicted {info.predict_rows_per_second:.0f} {unit}/s"
    say(f"{cost}.")
    if info.reused:
        say("Reused: " + ", ".join(REUSED[name].format(number) for name, number in info.reused.items()) + ".")
    unfinished = metrics.n_splits - len(metrics.folds_finished)
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
    about = ExportInfo.read(exported.files.export)
    console = _console()
    say = _plain(console)
    n = len(about.folds)
    if about.kind == "merged":
        what = f"One merged model of {n} folds: {exported.path / 'model'}"
    else:
        what = f"One adapter of {n} folds, rank {about.rank}: {exported.path / 'adapter'}"
    say(what)
    if found := about.compression:
        say(
            f"{found.share:.2%} of the exact mean's squared norm is kept (rank {about.exact_rank} before), least "
            f"in {found.lowest_module}: {found.lowest_share:.2%}."
        )
    say(about.note)
    if about.scores and about.scored:
        table = Table(title=Text(f"Macro-F1 on {about.scored.rows} rows of {about.scored.table}"))
        for column in ("model", "rank", "macro-F1", "95 %", "minus the folds together", "95 %", "seconds", "rows/s"):
            table.add_column(column, justify="left" if column == "model" else "right")
        for i, row in enumerate(about.scores):
            f1, less = row.macro_f1, row.difference
            difference = ("", "")
            if i:
                difference = f"{less.estimate:+.4f}", f"{less.low:+.4f} to {less.high:+.4f}"
            table.add_row(
                row.model, "" if row.rank is None else str(row.rank), f"{f1.estimate:.4f}",
                f"{f1.low:.4f} to {f1.high:.4f}", *difference, f"{row.seconds:.1f}",
                f"{row.rows_per_second:.0f}",
            )  # fmt: skip
        console.print(table)
    say(
        f"How to load it without lora_cls: {exported.path / 'README.md'}\n"
        f"Or: lora-cls predict {exported.path} --input FILE"
    )


def print_comparison(found: Comparison, files: Sequence[Path]) -> None:
    """The table, F1 per label, and the paths of the files."""
    console = _console()
    say = _plain(console)
    cells = comparison_cells(found)
    for title, columns in ((where_scored(found), SCORES), ("Cost", COST)):
        table = Table(title=title)
        for i in columns:
            table.add_column(HEADER[i], justify="left" if i < 3 else "right", no_wrap=i == 1, overflow="fold")
        for row in cells:
            table.add_row(*(Text(row[i]) for i in columns))
        console.print(table)
    labels = Table(title="F1 of each label, by the number of the run")
    for i, name in enumerate(("label", *(str(k + 1) for k in range(len(found.runs))))):
        labels.add_column(name, justify="left" if i == 0 else "right")
    for j, label in enumerate(found.label_names):
        winners = found.winners(j)
        values = [Text(f"{run.f1[j]:.3f}", style="bold" if run.name in winners else "") for run in found.runs]
        labels.add_row(Text(label), *values)
    console.print(labels)
    for seeds in found.seeds:
        say(seeds_sentence(seeds))
    say(f"{NOTE}\n{COST_NOTE}\n")
    for file in files:
        say(str(file))


def print_blend(about: BlendInfo) -> None:
    """Every way of blending with its gain, and what each run adds."""
    console = _console()
    say = _plain(console)
    for header, rows in (blend_ways(about), blend_runs(about)):
        table = Table()
        for i, name in enumerate(header):
            table.add_column(name, justify="right" if 0 < i < len(header) - 1 else "left")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        console.print(table)
    say(gain_sentence(about))
    say(about.note)


def print_calibration(found: CalibrationInfo) -> None:
    """Brier score and calibration error before and after, per label."""
    console = _console()
    say = _plain(console)
    over = "parts" if found.parts is not None else "folds"
    table = Table(title=f"Calibration by {found.how}, each of the {over} by the map of the others")
    table.add_column("label")
    for name in ("Brier", "after", "calibration error", "after"):
        table.add_column(name, justify="right")
    keys = [f"{key}_{when}" for key in ("brier", "expected_calibration_error") for when in ("before", "after")]
    for row in found.per_label:
        table.add_row(Text(row.label), *(f"{getattr(row, key):.4f}" for key in keys))
    before, after = found.before, found.after
    means = [getattr(part, key) for key in ("brier", "expected_calibration_error") for part in (before, after)]
    table.add_row("mean", *(f"{value:.4f}" for value in means), end_section=True)
    console.print(table)
    say(
        f"Expected calibration error over {found.bins} bins of equal width. Macro-F1 {before.macro_f1:.4f}, with "
        f"thresholds tuned again on the calibrated probabilities {after.macro_f1:.4f}: calibration is for those who "
        "read probabilities, not for the submission, which stays as it is."
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
