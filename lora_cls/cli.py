"""The command line: parse, call one function, print. Heavy libraries are imported by the commands that need them."""

from __future__ import annotations

import io
import logging
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from lora_cls import __version__
from lora_cls.choices import (
    BlendHow,
    Calibration,
    Combination,
    ExportKind,
    MetricName,
    Models,
    TableFormat,
    ThresholdStrategy,
)
from lora_cls.errors import LoraClsError, RecipeError, memory_full, message_text, visible, words_of

SECONDS_TO_BE_ENDED = 3  # torchrun looks ten times a second

app = typer.Typer(
    name="lora-cls",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Command(TyperCommand):
    """A command whose help names its arguments once: RUN, without `{}`, `...` and Python's name of its type."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        formatter.buffer[:] = [
            re.sub(r"\{([A-Z]+)\}", r"\1", re.sub(r"\b([A-Z]+) <[\w\[\]]+>", r"\1", part)) for part in formatter.buffer
        ]


def _example(*lines: str) -> dict[str, Any]:
    """What a command is declared with: its class, and examples, a line each, that stand below its options."""
    return {"cls": Command, "epilog": "\b\nExample:\n" + "\n".join(f"  lora-cls {line}" for line in lines)}


def _version(wanted: bool) -> None:
    if wanted:
        print(f"lora-cls {__version__}")
        raise typer.Exit


def _refuse_launcher(command: str | None) -> None:
    """Several processes that a launcher started train together, and do nothing else."""
    from lora_cls.machine import launched

    if command in (None, "run") or launched() == (0, 1):
        return
    if launched()[0] > 0:
        sys.exit(2)  # the first one tells it
    instead = " To share out its rows, give it --workers." if command == "predict" else ""
    raise RecipeError(
        f"Only `run` is started by a launcher; {command} is one process that you start yourself.{instead}"
    )


@app.callback(epilog="\b\nExample:\n  lora-cls run minilm-l6 --train train.csv --test test.csv")
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """LoRA fine-tuning of text classifiers with honest cross-validation: one recipe, one score, one submission."""
    _refuse_launcher(context.invoked_subcommand)


RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
RunPaths = Annotated[list[Path], typer.Argument(metavar="RUN", help="Two run folders or more.")]
Train = Annotated[str | None, typer.Option(metavar="FILE", help="Training table: CSV, TSV, JSONL or Parquet.")]
Test = Annotated[str | None, typer.Option(metavar="FILE", help="Test table.")]
Sample = Annotated[
    str | None,
    typer.Option("--sample-submission", metavar="FILE", help="A file whose ids and columns the submission copies."),
]
FoldTable = Annotated[str | None, typer.Option("--fold-table", metavar="FILE", help="Table of id and fold to use.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a field.")]
BackbonePath = Annotated[
    str | None,
    typer.Option("--backbone", metavar="PATH", help="Where the same base model lies on this machine."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier call wrote there.")]

TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Let Python code that comes with the base model run. What the recipe in a run folder says of it is not "
        "obeyed.",
    ),
]

RunWorkers = Annotated[
    str | None,
    typer.Option(
        "--workers",
        metavar="N",
        help="Processes that work at once, or auto: one for each GPU, or for each core of the CPU that the memory has "
        "room for. This process alone by default.",
    ),
]
ExecutorName = Annotated[
    str,
    typer.Option(
        "--executor",
        metavar="NAME",
        help="Where they are started: local; ray, the cluster of RAY_ADDRESS or one made here; or ray://HOST:PORT.",
    ),
]
OutsideRuns = Annotated[
    bool,
    typer.Option("--outside-runs", help="Let a blend open runs that lie outside the folder that it lies in."),
]


@app.command(
    **_example(
        "run minilm-l6 --train train.csv --test test.csv --sample-submission sample_submission.csv",
        "run minilm-l6 --train train.csv --folds 0 --set train.num_train_epochs=5",
    )
)
def run(
    recipe: RecipeName,
    train: Train = None,
    test: Test = None,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="The run folder; runs/RECIPE by default.")] = None,
    sample_submission: Sample = None,
    set_: Set = None,
    folds: Annotated[
        str | None, typer.Option(metavar="NUMBERS", help="Folds to run now, as 0,1; the rest later with --resume.")
    ] = None,
    fold_table: FoldTable = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an existing run folder.")] = False,
    overwrite: Overwrite = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="The whole way on a few rows, in a minute or so.")] = False,
    workers: RunWorkers = None,
    executor: ExecutorName = "local",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Train the folds of a recipe, score them honestly, and write the submission."""
    from lora_cls.commands.cross_validation import cross_validate
    from lora_cls.machine import launched

    finished = cross_validate(
        recipe, train, test, out, sample_submission=sample_submission, folds=_numbers(folds), fold_table=fold_table,
        overrides=set_ or (), resume=resume, overwrite=overwrite, smoke=smoke, show=True,
        trust_remote_code=trust_remote_code, workers=_workers(workers), executor=executor,
    )  # fmt: skip
    rank, size = launched()
    if rank == 0:
        _print_run(finished)
    if size > 1:
        from lora_cls.training.processes import end_launched

        end_launched()


@app.command(
    **_example(
        "sweep minilm-l6 --train train.csv --trials 20 --workers 2",
        "sweep minilm-l6 --train train.csv --only train.learning_rate --trials 8 --folds 0",
    )
)
def sweep(
    recipe: RecipeName,
    train: Train = None,
    test: Test = None,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Its folder; sweeps/RECIPE by default.")] = None,
    sample_submission: Sample = None,
    set_: Set = None,
    fold_table: FoldTable = None,
    trials: Annotated[
        int, typer.Option(metavar="N", min=1, help="Trials in all, those of earlier starts counted.")
    ] = 20,
    minutes: Annotated[float | None, typer.Option(metavar="M", help="End after about so many minutes.")] = None,
    workers: Annotated[
        str, typer.Option(metavar="N", help="Trials that are trained at once, or auto as in lora-cls run.")
    ] = "1",
    executor: ExecutorName = "local",
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD", help="Search this field only; give it again for others."),
    ] = None,
    folds: Annotated[
        str | None, typer.Option(metavar="NUMBERS", help="Folds that trials train, as 0,1; the first 3 by default.")
    ] = None,
    holdout: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Keep this share of the rows from all trials, as 0.2.")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Search for the best settings of a recipe: many trials on the same folds, the best again on fresh ones.

    What is searched stands in the recipe's section sweep, or fits its kind. The same command goes on after a stop, and
    works beside another one on the same folder. Needs the extra "sweep".
    """
    from lora_cls.commands.sweep import sweep as search
    from lora_cls.terminal import print_sweep

    folder = search(
        recipe, train, test, out, sample_submission=sample_submission, fold_table=fold_table, overrides=set_ or (),
        trials=trials, minutes=minutes, workers=_workers(workers), only=only or (), folds=_numbers(folds),
        holdout=holdout, show=True, trust_remote_code=trust_remote_code, executor=executor,
    )  # fmt: skip
    print_sweep(folder)


@app.command(**_example("check minilm-l6 --train train.csv --test test.csv"))
def check(
    recipe: RecipeName,
    train: Train = None,
    test: Test = None,
    sample_submission: Sample = None,
    set_: Set = None,
    fold_table: FoldTable = None,
    folds: Annotated[
        str | None, typer.Option(metavar="NUMBERS", help="Folds that the run would train, as 0,1.")
    ] = None,
    measure: Annotated[bool, typer.Option(help="Load the model and time a few steps, to estimate minutes.")] = True,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Look at recipe, data, folds and token lengths, and estimate minutes and memory, before any training.

    Loading a model and timing it takes from half a minute to a few; --no-measure leaves that out.
    """
    from lora_cls.commands.check import check as look
    from lora_cls.terminal import print_check

    checked = look(
        recipe, train, test, sample_submission, set_ or (), fold_table, folds=_numbers(folds), measure=measure,
        show=True, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    print_check(checked)


@app.command(**_example("predict runs/minilm-l6 --input new.csv"))
def predict(
    run: RunPath,
    input: Annotated[Path, typer.Option("--input", metavar="FILE", help="Table of new texts.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A new folder; RUN/predictions/NAME by default.")
    ] = None,
    sample_submission: Sample = None,
    backbone: BackbonePath = None,
    models: Annotated[Models, typer.Option(help="All folds combined, or the model of all rows.")] = "folds",
    format: Annotated[TableFormat, typer.Option(help="What the answers are written as.")] = "csv",
    abstain_below_precision: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Write answers.csv, too, in which labels whose yes or no would be right less often, as 0.9, abstain.",
        ),
    ] = None,
    workers: RunWorkers = None,
    executor: ExecutorName = "local",
    trust_remote_code: TrustRemoteCode = False,
    outside_runs: OutsideRuns = False,
    overwrite: Overwrite = False,
) -> None:
    """Answer for new texts with the models of a run."""
    from lora_cls.commands.predict import predict_file

    folder = predict_file(
        run, input, out, sample_submission=sample_submission, backbone=backbone, models=models, format=format,
        abstain_below_precision=abstain_below_precision, workers=_workers(workers), executor=executor,
        overwrite=overwrite, show=True, trust_remote_code=trust_remote_code, outside_runs=outside_runs,
    )  # fmt: skip
    _print(f"Probabilities  {folder / f'test_proba.{format}'}\nSubmission     {folder / f'submission.{format}'}")
    if abstain_below_precision is not None:
        from lora_cls.terminal import print_abstention

        print_abstention(folder)


@app.command(**_example("score runs/minilm-l6 --input test_labelled.csv"))
def score(
    run: RunPath,
    input: Annotated[Path, typer.Option("--input", metavar="FILE", help="Labelled table that the run never saw.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A new folder; RUN/scores/NAME by default.")
    ] = None,
    backbone: BackbonePath = None,
    models: Annotated[Models, typer.Option(help="All folds combined, or the model of all rows.")] = "folds",
    trust_remote_code: TrustRemoteCode = False,
    outside_runs: OutsideRuns = False,
    overwrite: Overwrite = False,
) -> None:
    """Score a run, an export or a blend on labelled rows that it never saw, at the thresholds that it ships.

    Beside the score out of fold; rows whose text the run was trained on are named, and left out of a second score.
    """
    from lora_cls.commands.score import score_file, scores_folder
    from lora_cls.runs import RunFolder
    from lora_cls.terminal import print_table_scores

    folder = RunFolder(run, trust_remote_code=trust_remote_code, outside_runs=outside_runs)
    scores = score_file(folder, input, out, backbone=backbone, models=models, overwrite=overwrite, show=True)
    print_table_scores(scores, scores_folder(folder, input, models, out))


@app.command(**_example('explain runs/minilm-l6 "late again, and the box was crushed"'))
def explain(
    run: RunPath,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="One text, as it stands in the run's text column.")],
    words: Annotated[int, typer.Option(metavar="N", min=1, help="Print so many words, those of most weight.")] = 20,
    backbone: BackbonePath = None,
    models: Annotated[Models, typer.Option(help="All folds combined, or the model of all rows.")] = "folds",
    trust_remote_code: TrustRemoteCode = False,
    outside_runs: OutsideRuns = False,
) -> None:
    """Show how much each word of a text speaks for each label: what the answer loses without it.

    One word is taken out at a time: of two of which either suffices, both count for little.
    """
    from lora_cls.commands.predict import Classifier
    from lora_cls.terminal import print_explanation

    classifier = Classifier.load(
        run, backbone=backbone, models=models, trust_remote_code=trust_remote_code, outside_runs=outside_runs
    )
    print_explanation(classifier.explain(text), classifier.run.task(), words)


@app.command(**_example("serve runs/minilm-l6", "serve runs/minilm-l6 goemotions=exports/ge --port 8080"))
def serve(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN", help="Run folders or exports, each as FOLDER or NAME=FOLDER."),
    ],
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; 0.0.0.0 lets other machines ask.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="0 takes one that is free.")] = 8000,
    backbone: BackbonePath = None,
    models: Annotated[Models, typer.Option(help="All folds combined, or the model of all rows.")] = "folds",
    abstain_below_precision: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Labels whose yes or no would be right less often, as 0.9, abstain."),
    ] = None,
    max_texts: Annotated[int, typer.Option(metavar="N", min=1, help="Texts of a request.")] = 1000,
    max_characters: Annotated[int, typer.Option(metavar="N", min=1, help="Characters of a text.")] = 100_000,
    max_megabytes: Annotated[float, typer.Option(metavar="N", min=0.001, help="Size of a request.")] = 1.0,
    max_waiting: Annotated[int, typer.Option(metavar="N", min=1, help="Requests that wait at the same time.")] = 256,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", min=0.1, help="From a request to its answer.")] = 30.0,
    trust_remote_code: TrustRemoteCode = False,
    outside_runs: OutsideRuns = False,
) -> None:
    """Answer over HTTP: POST /v1/predict, and a page at / to try texts on. Needs the extra "serve".

    Requests that come within a few milliseconds are answered together; several runs share a base. A token in the
    environment variable LORA_CLS_TOKEN is asked of everybody. SIGTERM and Ctrl-C stop it when all who wait are
    answered.
    """
    from lora_cls.serving.limits import Limits
    from lora_cls.serving.server import serve as answer

    limits = Limits(
        texts=max_texts, characters=max_characters, body=int(max_megabytes * 1e6), waiting=max_waiting, seconds=timeout
    )
    answer(
        runs, host=host, port=port, limits=limits, backbone=backbone, models=models,
        abstain_below_precision=abstain_below_precision, trust_remote_code=trust_remote_code,
        outside_runs=outside_runs, say=_say,
    )  # fmt: skip


@app.command(**_example("refit runs/minilm-l6"))
def refit(
    run: RunPath,
    train: Train = None,
    extra_train: Annotated[
        str | None, typer.Option("--extra-train", metavar="FILE", help="Table of extra rows.")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Train one model on all rows of a run, for those who ship one."""
    from lora_cls.commands.refit import refit as refit_run
    from lora_cls.terminal import print_refit

    folder = refit_run(run, train, extra_train=extra_train, show=True, trust_remote_code=trust_remote_code)
    print_refit(run, folder)


@app.command(**_example("export runs/minilm-l6 --out shipped --to merged --score test_labelled.csv"))
def export(
    run: RunPath,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="A new folder.")],
    to: Annotated[
        ExportKind,
        typer.Option(
            help="A PEFT adapter; weights merged into the base in the precision of its files; a folder that "
            "transformers opens by itself, as vLLM does; or an ONNX graph, which needs no torch.",
        ),
    ] = "adapter",
    rank: Annotated[int | None, typer.Option(help="Compress the adapter to this rank.")] = None,
    share: Annotated[
        float | None,
        typer.Option(help="Compress it to the lowest rank that keeps this share of its squared norm, as 0.99."),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="onnx: weights in 8 bits; --score states what that costs in macro-F1.")
    ] = False,
    score: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A labelled table: score the export beside the folds together and refit."),
    ] = None,
    align: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A table of texts: make the export's scores those of the folds together, so that the run's thresholds "
            "fit; labels in it are not looked at. May be repeated.",
        ),
    ] = None,
    backbone: BackbonePath = None,
    overwrite: Overwrite = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Make one model of the folds' models, to ship: the exact mean of their updates, compressed or merged if wanted."""
    from lora_cls.commands.export import export as export_run
    from lora_cls.terminal import print_export

    export_run(
        run, out, to=to, rank=rank, share=share, int8=int8, score=score, align=align or (), backbone=backbone,
        overwrite=overwrite, show=True, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    print_export(out)


@app.command(
    **_example(
        "push runs/minilm-l6 ann/emotions --base-model sentence-transformers/all-MiniLM-L6-v2 --dry-run",
        "push runs/minilm-l6 ann/emotions --base-model sentence-transformers/all-MiniLM-L6-v2",
    )
)
def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or an export.")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME on the hub; made if it is not there.")],
    base_model: Annotated[
        str | None,
        typer.Option(
            "--base-model",
            metavar="NAME",
            help="What the base is called on the hub, where the run took it from a folder or a Python package.",
        ),
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The run's training table, if it was moved: none of its texts may go."),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="A public repository; private by default.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would go, and send nothing.")] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Send models, card, thresholds and page to the Hugging Face Hub; texts, ids and local paths stay here."""
    from lora_cls.commands.push import push as push_run
    from lora_cls.terminal import print_push

    print_push(
        push_run(
            run, repo_id, public=public, dry_run=dry_run, base_model=base_model, train=train,
            trust_remote_code=trust_remote_code,
        )
    )  # fmt: skip


@app.command(**_example("tune runs/minilm-l6 --strategy global"))
def tune(
    run: RunPath,
    strategy: Annotated[
        ThresholdStrategy | None,
        typer.Option(
            help="One threshold per label, one for all, each label's share of positives, or --default; by expected F1 "
            "under calibrated probabilities, or between that and one per label (auto); single_label: the most probable "
            "class, or after dividing by its share to a tuned power."
        ),
    ] = None,
    min_positives: Annotated[int | None, typer.Option(min=1, help="A label with fewer keeps --default.")] = None,
    default: Annotated[float | None, typer.Option(min=0, max=1, help="Threshold where none is tuned.")] = None,
    combine: Annotated[
        Combination | None,
        typer.Option(help="How the folds answer together for the test rows."),
    ] = None,
    at_least_one: Annotated[bool | None, typer.Option(help="Give every row at least its best label.")] = None,
    metric: Annotated[
        MetricName | None, typer.Option(help="What thresholds are tuned for, and the score that is stated first.")
    ] = None,
    metric_beta: Annotated[
        float | None, typer.Option(help="f_beta: how much more recall counts than precision.")
    ] = None,
) -> None:
    """Tune thresholds again from the saved logits, and rewrite scores and submission. Loads no model."""
    from lora_cls.commands.tune import recipe_settings
    from lora_cls.commands.tune import tune as tune_run
    from lora_cls.runs import RunFolder

    folder = RunFolder(run)
    thresholds, prediction = recipe_settings(
        folder.recipe, strategy=strategy, min_positives=min_positives, default=default, combine=combine,
        at_least_one=at_least_one,
    )  # fmt: skip
    tune_run(folder, thresholds, prediction, metric, metric_beta, say=_say)
    _print_run(folder)


@app.command(**_example("status runs/minilm-l6"))
def status(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or the folder of a search.")],
) -> None:
    """Say how far a run or a search is: finished, running, failed; minutes left; the score so far. Loads no model.

    Nothing in the folder is changed. The exit code is 0 whatever the state.
    """
    from lora_cls.commands.status import status as look
    from lora_cls.terminal import print_status

    print_status(look(folder))


@app.command(**_example("compare runs/tfidf-logreg runs/minilm-l6"))
def compare(
    runs: RunPaths,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for compare.md, .csv, .html and .svg.")] = Path(
        "compare"
    ),
) -> None:
    """Put runs on the same rows and folds side by side: scores, paired differences, cost. Loads no model."""
    from lora_cls.commands.compare import compare as compare_runs
    from lora_cls.report.comparison import write_comparison
    from lora_cls.terminal import print_comparison

    comparison = compare_runs(runs)
    print_comparison(comparison, write_comparison(comparison, out))


@app.command(**_example("blend runs/tfidf-logreg runs/minilm-l6 --out runs/blend"))
def blend(
    runs: RunPaths,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="The new run folder.")],
    how: Annotated[
        BlendHow,
        typer.Option(help="The way that is written; all are scored."),
    ] = "mean_logit",
    overwrite: Overwrite = False,
) -> None:
    """Combine runs on the same rows and folds into a new run folder, scored like any run. Loads no model."""
    from lora_cls.commands.blend import blend as blend_runs
    from lora_cls.runs.records import BlendInfo
    from lora_cls.terminal import print_blend

    blended = blend_runs(runs, out, how, overwrite=overwrite, say=_say)
    print_blend(BlendInfo.read(blended.files.blend))
    _print_run(blended)


@app.command(**_example("calibrate runs/minilm-l6 --how isotonic"))
def calibrate(
    run: RunPath,
    how: Annotated[Calibration, typer.Option(help="One number, or a rising step function, per label.")] = "temperature",
) -> None:
    """Write calibrated probabilities beside those of a run, which stay as they are. Loads no model."""
    from lora_cls.commands.calibrate import calibrate as calibrate_run
    from lora_cls.terminal import print_calibration

    print_calibration(calibrate_run(run, how))
    _print("\n".join(str(file) for file in sorted(run.glob("*calibrat*"))))


@app.command(**_example("report runs/minilm-l6 --train train.csv --out page.html"))
def report(
    run: RunPath,
    train: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="The run's training table: its texts are then in the page. Without it rows are given by id.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The page; RUN/report.html by default.")] = None,
) -> None:
    """Write the page of a run again: scores, curves, mistakes, with texts where asked for. Loads no model.

    Without --out the model card is written again, too.
    """
    from lora_cls.report.card import write_card
    from lora_cls.report.page import write_page
    from lora_cls.runs import RunFolder

    folder = RunFolder(run)
    data, results = None, folder.results()
    if train is not None:
        from lora_cls.runs import training_data

        data = training_data(folder, train)
    if out is None:
        write_card(folder, results.scores)
    _print(f"Page  {write_page(folder, data, out, results)}")


recipes_app = typer.Typer(invoke_without_command=True)
app.add_typer(recipes_app, name="recipes")


@recipes_app.callback(epilog="\b\nExample:\n  lora-cls recipes show minilm-l6")
def recipes(context: typer.Context) -> None:
    """List the shipped recipes, print one, or explain the fields."""
    if context.invoked_subcommand is None:
        from lora_cls.recipe import shipped_recipes

        for name, path in shipped_recipes().items():
            first = path.read_text(encoding="utf-8").splitlines()[0]
            note = first.partition("(")[2].rpartition(")")[0]
            _print(f"{name:<24} {note}")


@recipes_app.command(**_example("recipes show minilm-l6 > my-recipe.yaml"))
def show(name: RecipeName) -> None:
    """Print a recipe as written."""
    from lora_cls.recipe import find_recipe, recipe_text

    _print(recipe_text(find_recipe(name)).removesuffix("\n"))


@recipes_app.command(**_example("recipes fields train.learning_rate"))
def fields(
    section: Annotated[
        str | None, typer.Argument(metavar="SECTION", help="As train; or one field, as train.learning_rate.")
    ] = None,
) -> None:
    """Print every field of a recipe: type, default and meaning."""
    from lora_cls.reference import look_up

    _print(look_up(section))


def _numbers(text: str | None) -> list[int] | None:
    from lora_cls.errors import shown

    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise RecipeError(f"--folds takes numbers such as 0,1. Got {shown(text)} instead.") from None


def _print(text: str) -> None:
    print(visible(text))


def _workers(given: str | None) -> Any:
    """A number where it is one; what is none is refused by who takes it."""
    return int(given) if given is not None and given.isdecimal() else given


def _say(note: str) -> None:
    print(message_text(note), file=sys.stderr)


def _print_run(run: Any) -> None:
    from lora_cls.terminal import print_run

    print_run(run)


def main() -> None:
    """Entry point: errors that users can mend are printed without a traceback, exit code 2; Ctrl-C exits with 130."""
    from lora_cls.machine import launched

    rank = launched()[0]
    if rank > 0:  # it writes nothing, and may wait for the first one where Python hears no Ctrl-C
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for stream in (sys.stdout, sys.stderr):  # a label that the terminal has no letters for is no reason to end
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of optional kernels at import
    try:
        with words_of("shell"):
            app()
    except LoraClsError as error:
        if rank > 0:  # the launcher ends this process at once if the first one has met the same
            time.sleep(SECONDS_TO_BE_ENDED)
        _say(f"Error{f' in process {rank}' if rank > 0 else ''}: {error}")
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as stopped:  # typer turns Ctrl-C into exit code 130
        if isinstance(stopped, SystemExit) and stopped.code != 130:
            raise
        if "sweep" in sys.argv[1:2]:
            print("\nStopped. Trials are kept: the same command goes on with them.", file=sys.stderr)
        elif "run" in sys.argv[1:2]:
            print("\nStopped. Finished epochs are kept: the same command with --resume continues.", file=sys.stderr)
        elif "refit" in sys.argv[1:2]:
            print("\nStopped. Finished epochs are kept: the same command continues.", file=sys.stderr)
        sys.exit(130)
    except OSError as error:  # of a place that only reading touches; writing has sentences of its own
        place = f"{error.filename}: " if error.filename else ""
        _say(f"Error: {place}{error.strerror or error}.")
        sys.exit(2)
    except RecursionError:
        _say("Error: a file or a value is nested too deeply to be read.")
        sys.exit(2)
    except MemoryError:
        advice = (
            "lower train.per_device_train_batch_size and train.per_device_eval_batch_size, or give smaller tables. "
            "Closing other programs may do, too."
        )
        _say(f"Error: {memory_full('', advice)}")
        sys.exit(2)
    except Exception as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's; not imported here for its sake
            raise
        advice = (
            "lower train.per_device_train_batch_size and raise train.gradient_accumulation_steps, set "
            "train.gradient_checkpointing=true, or lower data.max_length."
        )
        _say(f"Error: {memory_full('', advice)}")
        sys.exit(2)


if __name__ == "__main__":
    main()
