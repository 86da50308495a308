"""What the commands print."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lora_cls.errors import shorten, visible
from lora_cls.evaluation import Task, task_of
from lora_cls.evaluation.comparison import COST_NOTE, Comparison
from lora_cls.report.comparison import (
    COST,
    SCORES,
    comparison_cells,
    comparison_header,
    label_cells,
    seeds_sentence,
    where_scored,
)
from lora_cls.report.sentences import (
    NO_SCORE_OF_ALL_ROWS,
    blend_runs,
    blend_ways,
    cost_sentence,
    gain_sentence,
    lengths_sentence,
    memory_sentence,
    other_metrics,
    parity_sentence,
    reused_sentence,
    score_sentence,
    table_score_sentences,
    time_sentence,
)
from lora_cls.report.sweep_content import field_text, searched_fields, summarize, sweep_sentences
from lora_cls.runs import FoldFolder, RunFolder, Scores, ScoreSet, TableScores
from lora_cls.runs.folder import ABSTENTION, ANSWERS, TABLE_LABELS, TABLE_ROWS, TABLE_SCORES
from lora_cls.runs.records import AbstentionInfo, BlendInfo, CalibrationInfo, ExportInfo
from lora_cls.search.folder import SweepFolder

if TYPE_CHECKING:
    from lora_cls.commands.check import Check
    from lora_cls.commands.explain import Explanation
    from lora_cls.commands.push import Push
    from lora_cls.commands.status import RunStatus, SweepStatus

MOST_LABELS = 8  # columns of an explanation
FILES = {
    "metrics.json": "scores",
    "thresholds.json": "thresholds",
    "oof_proba.csv": "out-of-fold",
    "test_proba.csv": "test",
    "submission.csv": "submission",
    "README.md": "model card",
    "report.html": "page",
    "mistakes.csv": "mistakes",
    "doubts.csv": "doubts",
}


def print_run(run: RunFolder) -> None:
    """The score, a table per label, what it cost, and the paths of the files."""
    metrics, info = Scores.read(run.files.scores), run.info
    scores, task = metrics.cross_fitted, run.task()
    where = "Out of fold" if metrics.n_splits > 1 else "Held-out rows"
    decided = f"decided by the other {scores.over}' thresholds; shown is the shipped one"
    say()
    _show_labels(f"{where}, per {task.noun} ({decided})", task, scores)
    say(score_sentence(metrics))
    beside = {key: name for key, name in task.beside.items() if key != metrics.metric}
    more = ", ".join(f"{name} {getattr(scores, key):.4f}" for key, name in beside.items())
    say(f"{more}. {metrics.note}" if more else metrics.note)
    for of_table in run.table_scores().values():
        if of_table.table_sha256 == info.data.test_sha256 and of_table.decision_sha256 == metrics.decision_sha256:
            say(" ".join(table_score_sentences(of_table)))
    say(cost_sentence(info))
    if info.reused:
        say(reused_sentence(info.reused))
    unfinished = metrics.n_splits - len(metrics.folds_finished)
    if unfinished:
        left = "1 fold is" if unfinished == 1 else f"{unfinished} folds are"
        say(f"{left} left: the same command with --resume and without --folds trains what is missing.")
    say()
    for name, label in FILES.items():
        if (run.path / name).is_file():
            say(f"{label:<12} {run.path / name}")


def _show_labels(title: str, task: Task, scores: ScoreSet) -> None:
    """A table of scores per label."""
    rows = []
    for row in scores.per_label:
        values = [
            getattr(row, key) for key in ("threshold", "precision", "recall", "f1", "roc_auc", "average_precision")
        ]
        cells = ["-" if value is None else f"{value:.3f}" for value in values]
        rows.append([row.label, str(row.support), f"{row.prevalence:.1%}", *cells])
    show(title, (task.noun, task.count, "share", "threshold", "precision", "recall", "F1", "AUC", "AP"), rows)


def print_table_scores(scores: TableScores, folder: Path) -> None:
    """The score on a labelled table, a table per label, the other metrics, and the paths of the files."""
    task = task_of(scores.task, metric=scores.metric, metric_beta=scores.metric_beta)
    say()
    _show_labels(f"{scores.table}, per {task.noun}", task, scores.scores)
    for sentence in table_score_sentences(scores):
        say(sentence)
    say("Also: " + ", ".join(f"{name} {value:.4f}" for name, value in other_metrics(scores)) + ".")
    say()
    for name in (TABLE_SCORES, TABLE_LABELS, TABLE_ROWS):
        say(f"{name.partition('.')[0]:<12} {folder / name}")


def print_abstention(folder: Path) -> None:
    """What abstaining came to out of fold, per label and over all, and where the answers are."""
    about = AbstentionInfo.read(folder / ABSTENTION)
    found = about.out_of_fold

    def cell(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    sides = ("yes", "no") if about.no is not None else ("yes",)
    keys = ["coverage", *(f"precision_{side}{end}" for side in sides for end in ("", "_without"))]
    show(
        f"Abstaining below precision {about.precision:g}, out of fold on {about.rows} rows: bands of the other "
        f"{about.over}",
        ["label", *(key.replace("_", " ").replace("without", "of all") for key in keys)],
        [[row.label, *(cell(getattr(row, key)) for key in keys)] for row in found.per_label],
    )
    what = "rows" if about.no is None else "decisions"
    say(
        f"{found.coverage:.1%} of the {what} are answered, {cell(found.right)} of them right (of all "
        f"{found.right_without:.3f}); {found.rows_answered:.1%} of the rows have every label answered."
    )
    say(f"Answers        {folder / ANSWERS}")


def print_explanation(found: Explanation, task: Task, n_words: int) -> None:
    """The labels of a text with their probabilities, and what its weightiest words contribute to each."""
    order = np.lexsort((-found.y_score, -found.y_pred.astype(np.int64)))[:MOST_LABELS]
    names = [f"{found.label_names[j]}{'' if not found.y_pred[j] else ' *'}" for j in order]
    weight = np.abs(found.contributions[:, order]).max(axis=1, initial=0.0)
    rows = np.sort(np.argsort(-weight, kind="stable")[:n_words])
    cells = [["probability", *(f"{found.y_score[j]:.3f}" for j in order)]]
    cells += [[found.words[i], *(f"{value:+.2f}" for value in found.contributions[i, order])] for i in rows]
    unit = "log-probability" if task.exclusive else "log-odds"
    show(f"{unit.capitalize()} of each {task.noun} (* decided) less those without the word", ["", *names], cells)
    left_out = [f"{len(found.words) - len(rows)} of less weight" if len(rows) < len(found.words) else ""]
    left_out += [f"{len(found.label_names) - len(order)} {task.nouns}" if len(order) < len(found.label_names) else ""]
    if any(left_out):
        say(f"Not shown: {', '.join(part for part in left_out if part)}.")


def print_check(check: Check) -> None:
    """What `lora-cls check` found."""
    for note in check.notes:
        say(note)
    train, test = check.data["train"], check.data["test"]
    rows = [[row["name"], str(row["positives"]), f"{row['prevalence']:.1%}"] for row in train["labels"]]
    show("Labels", ["label", "positives", "share"], rows)
    none, several = train["rows_without_label"], train["rows_with_several_labels"]
    if task_of(check.recipe.task).several:
        say(
            f"{none['count']} rows ({none['share']:.1%}) carry no label, "
            f"{several['count']} ({several['share']:.1%}) several."
        )
    for name, lengths in check.tokens.items():
        say(lengths_sentence(f"Tokens per {name} text", lengths))
    if check.memory:
        say(memory_sentence(check.memory, check.recipe.train.per_device_train_batch_size))
    if check.estimate:
        say(time_sentence(check.estimate))
    duplicates = train["duplicates"]
    conflicts = [" and ".join(ids) for ids in duplicates["conflicting_examples"]]
    examples = f" (ids {shorten(conflicts, 5)})" if conflicts else ""
    say(
        f"{duplicates['texts']} training texts stand more than once ({duplicates['extra_rows']} extra rows); "
        f"the copies of {duplicates['conflicting_texts']} disagree on the labels{examples}."
    )
    if test is not None:
        seen = test["texts_also_in_train"]
        say(f"{seen['count']} test texts ({seen['share']:.1%}) also stand in train; {test['empty_texts']} are empty.")


def print_refit(run: Path, folder: FoldFolder) -> None:
    """Where the model of all rows of `run` is, and how to use it."""
    say(f"Model of all rows: {folder.path}\n{NO_SCORE_OF_ALL_ROWS} Use it with:")
    say(f"lora-cls predict {quote(str(run))} --models refit --input FILE")


def print_push(push: Push) -> None:
    """What went to the hub, or would go, and what did not."""
    rows = [[file.path, _size(file.size)] for file in push.files]
    kind = "public" if push.public else "private"
    what = f"Sent to {push.repo_id}" if push.url else f"Would be sent to {push.repo_id}, {kind}; nothing was sent"
    show(what, ["file", "size"], [*rows, [f"{len(rows)} files", _size(push.size)]])
    if push.kept:
        say(f"Stays here: {', '.join(push.kept)}.")
    for note in push.notes:
        say(note)
    if push.url:
        fetch = f"hf download {quote(push.repo_id)} --local-dir DIR"
        say(f"{push.url}\nUse it with: {fetch} && lora-cls predict DIR --input FILE")


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:,.1f} kB"


def print_export(folder: Path) -> None:
    """What was made, what is known of it, and how to use it."""
    about = ExportInfo.read(folder / "export.json")
    n = len(about.folds)
    if about.kind == "transformers":
        say(f"One model of {n} folds, which transformers opens by itself: {folder}")
    elif (onnx := about.onnx) is not None:
        say(f"One ONNX model of {n} folds ({onnx.precision}, {onnx.bytes / 1e6:.1f} MB): {folder / 'model'}")
        say(
            f"Its probabilities in fp32 differ from PyTorch's by {onnx.largest_difference:.1e} at most, on "
            f"{onnx.texts} texts."
            + (f" In 8 bits: by {onnx.int8_difference:.3f}." if onnx.int8_difference is not None else "")
        )
        if onnx.int8_difference is not None and not about.scores:
            say("What 8 bits cost in macro-F1 was not measured: give labelled rows with --score FILE.")
    elif about.kind == "merged":
        say(f"One merged model of {n} folds: {folder / 'model'}")
    else:
        say(f"One adapter of {n} folds, rank {about.rank}: {folder / 'adapter'}")
    if compression := about.compression:
        say(
            f"{compression.share:.2%} of the exact mean's squared norm is kept (rank {about.exact_rank} before), least "
            f"in {compression.lowest_module}: {compression.lowest_share:.2%}."
        )
    if mapped := about.score_map:
        say(f"Aligned: its scores are mapped to those of the folds together, by {mapped.texts} texts without labels.")
    say(about.note)
    if about.scores and about.scored:
        rows: list[list[str]] = []
        for row in about.scores:
            f1, less = row.macro_f1, row.difference
            difference = [f"{less.estimate:+.4f}", f"{less.low:+.4f} to {less.high:+.4f}"]
            rows.append(
                [
                    row.model,
                    "" if row.rank is None else str(row.rank),
                    f"{f1.estimate:.4f}",
                    f"{f1.low:.4f} to {f1.high:.4f}",
                    *(difference if rows else ["", ""]),
                    f"{row.seconds:.1f}",
                    f"{row.rows_per_second:.0f}",
                ]
            )
        show(
            f"Macro-F1 on {about.scored.rows} rows of {about.scored.table}",
            ["model", "rank", "macro-F1", "95 %", "minus the folds together", "95 %", "seconds", "rows/s"],
            rows,
        )
    for parity in about.parity or []:
        say(parity_sentence(parity))
    say(f"How to load it without lora_cls: {folder / 'README.md'}")
    if about.parity is None:
        say(f"Or: lora-cls predict {quote(str(folder))} --input FILE")


def print_comparison(comparison: Comparison, files: Sequence[Path]) -> None:
    """The table, F1 per label, and the paths of the files."""
    cells = comparison_cells(comparison)
    for title, columns in ((where_scored(comparison), SCORES), ("Cost", COST)):
        left = [place for place, i in enumerate(columns) if i < 3]
        rows = [[row[i] for i in columns] for row in cells]
        show(title, [comparison_header(comparison)[i] for i in columns], rows, left=left, name=1)
    show(
        "F1 of each label, by the number of the run",
        ["label", *(row[0] for row in cells)],
        [
            [label, *(Text(value, style="bold" if best else "") for value, best in values)]
            for label, values in label_cells(comparison)
        ],
    )
    for seeds in comparison.seeds:
        say(seeds_sentence(seeds))
    say(f"{comparison.note}\n{COST_NOTE}\n")
    for file in files:
        say(str(file))


def print_blend(about: BlendInfo) -> None:
    """Every way of blending with its gain, and what each run adds."""
    for header, rows in (blend_ways(about), blend_runs(about)):
        show(None, header, rows, left=(0, len(header) - 1))
    say(gain_sentence(about))
    say(about.note)


def print_sweep(sweep: SweepFolder) -> None:
    """The best ten trials, how far the search is and what it came to, and the paths of the files."""
    found, files = summarize(sweep), sweep.files
    fields = searched_fields(sweep, found.trials)
    best = found.ranked[:10]
    rows = []
    for trial in best:
        fresh, minutes = found.fresh.get(trial.number), (trial.seconds or 0.0) / 60
        rows.append(
            [
                str(trial.number),
                f"{trial.score:.4f}",
                *(["-" if fresh is None else f"{fresh:.4f}"] if found.fresh else []),
                *(field_text(trial.params[f.name], 4) if f.name in trial.params else "-" for f in fields),
                f"{minutes:.1f}",
            ]
        )
    say()
    if best:
        names = _short_names([field.name for field in fields])
        columns = ["trial", found.objective, *(["fresh folds"] if found.fresh else []), *names, "minutes"]
        title = (
            f"The best {len(best)} of {len(found.ranked):,} complete trials" if len(found.ranked) > len(best) else None
        )
        show(title, columns, rows, left=(), name=0)
    for sentence in sweep_sentences(sweep, found):
        say(sentence)
    say()
    for file, label in ((files.best, "best recipe"), (files.table, "trials"), (files.page, "page")):
        if file.is_file():
            say(f"{label:<12} {file}")
    if files.best.is_file():
        table = sweep.info.paths["train"] or "train.csv"
        say("Train it on all folds with (and --test FILE, for a submission):")
        say(f"lora-cls run {quote(str(files.best))} --train {quote(table)}")


def _short_names(names: Sequence[str]) -> list[str]:
    """Fields without their section, where the rest still tells them apart."""
    ends = [name.rpartition(".")[2] for name in names]
    return [end if ends.count(end) == 1 else name for name, end in zip(names, ends, strict=True)]


def print_calibration(calibration: CalibrationInfo) -> None:
    """Brier score and calibration error before and after, per label."""
    over = "parts" if calibration.parts is not None else "folds"
    before, after, measures = calibration.before, calibration.after, ("brier", "expected_calibration_error")
    keys = [f"{key}_{when}" for key in measures for when in ("before", "after")]
    rows = [[row.label, *(f"{getattr(row, key):.4f}" for key in keys)] for row in calibration.per_label]
    rows.append(["mean", *(f"{getattr(part, key):.4f}" for key in measures for part in (before, after))])
    show(
        f"Calibration by {calibration.how}, each of the {over} by the map of the others",
        ["label", "Brier", "after", "calibration error", "after"],
        rows,
    )
    say(
        f"Expected calibration error over {calibration.bins} bins of equal width. Macro-F1 {before.macro_f1:.4f}, with "
        f"thresholds tuned again on the calibrated probabilities {after.macro_f1:.4f}: calibration is for those who "
        "read probabilities, not for the submission, which stays as it is."
    )


def print_status(found: RunStatus | SweepStatus) -> None:
    """How far a run or a search is: a row per fold, or per trial that is running or failed, among sentences."""
    first, *others = found.sentences
    say(first)
    if found.cells:
        show(None, found.header, found.cells, left=found.left, name=0)
    for text in others:
        say(text)


def say(text: str = "") -> None:
    """Print text as it is, but `visible`: no markup from file or label names, no highlighting, no wrapping of paths."""
    _console().print(visible(text), markup=False, emoji=False, highlight=False, soft_wrap=True)


def show(
    title: str | None,
    columns: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    left: Sequence[int] = (0,),
    name: int | None = None,
) -> None:
    """Print a table.

    Parameters
    ----------
    left : places of the columns that are not numbers
    name : place of a column that is never wrapped; the others fold where there is no room
    """
    table = Table(title=None if title is None else _cell(title, "table.title"))
    for i, column in enumerate(columns):
        justify: Any = "left" if i in left else "right"
        overflow: Any = "ellipsis" if name is None else "fold"
        table.add_column(_cell(column), justify=justify, no_wrap=i == name, overflow=overflow)
    for row in rows:
        table.add_row(*(_cell(cell) if isinstance(cell, str) else cell for cell in row))
    _console().print(table)


def _cell(text: str, style: str = "") -> Text:
    return Text(visible(text).replace("\n", "\\n"), style)


@cache
def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=120)  # a file has no edge to wrap at
