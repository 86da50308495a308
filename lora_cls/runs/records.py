"""What the JSON files of a run folder say: one frozen record per file, with one reader and one writer.

Fields stand in the order in which the files hold them. What a run has not (test rows, answers, a rate) is left out of
its file, and None here.
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from lora_cls.choices import ExportKind, MetricName, Models, Over
from lora_cls.data import Columns
from lora_cls.errors import RunError
from lora_cls.evaluation import Interval, Link, Metric, apply_score_map
from lora_cls.files import write_json
from lora_cls.recipe import Prediction, TaskName, Thresholds
from lora_cls.runs.io import read_bytes
from lora_cls.runs.sums import of_values

R = TypeVar("R", bound="Record")


class Part(BaseModel):
    """An object within a record."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False, defer_build=True)


class Record(Part):
    """All that one JSON file holds."""

    remedy: ClassVar[str] = ""
    """What mends a damaged file."""
    sha256: str | None = None
    """Of all other fields; written last. A file without it, as of an earlier version, is read unchecked."""

    @classmethod
    def read(cls: type[R], file: Path, remedy: str | None = None) -> R:
        """Raises RunError if the file is missing or was changed, or a field is missing or of another type; names it.

        Parameters
        ----------
        remedy : what mends a damaged one; that of its kind where None
        """
        content, remedy = read_bytes(file), cls.remedy if remedy is None else remedy
        try:
            record = cls.model_validate_json(content, strict=True)
        except ValidationError as error:
            problems = error.errors()
            lacking = [_path(problem["loc"]) for problem in problems if problem["type"] == "missing"]
            others = [f"{_path(problem['loc'])} {problem['msg']}".strip() for problem in problems][:3]
            what = f"lacks {', '.join(map(repr, lacking[:3]))}: it is damaged" if lacking else "is damaged"
            why = "" if lacking else f" ({'; '.join(others)})"
            raise RunError(f"{file} {what}{why}, or was written by another version of lora_cls.{remedy}") from None
        if record.sha256 is not None and record.sha256 != of_values(json.loads(content)):
            raise RunError(
                f"{file} was changed since it was written (its field sha256 is that of other values).{remedy} "
                "If you changed it on purpose, remove its field sha256."
            )
        return record

    def write(self: R, file: Path) -> R:
        """Write what is set, and the SHA-256 of it; the file appears whole. Returns the record with that sum."""
        values = self.model_dump(mode="json", exclude_unset=True, exclude={"sha256"})
        written = self.model_copy(update={"sha256": of_values(values)})
        write_json(file, values | {"sha256": written.sha256})
        return written


def _path(place: tuple[int | str, ...]) -> str:
    return ".".join(map(str, place))


class LabelsInfo(Record):
    """`labels.json`."""

    task: TaskName | None
    labels: list[str]
    column: str | None = None
    """The one column that held the labels' names; None where each label had a 0/1 column."""


class Machine(Part):
    """Where a run was started."""

    platform: str
    processor: str
    gpu: str | None = None


class DataInfo(Part):
    """Which tables a run read, and how."""

    paths: dict[str, str | None]
    """By `train`, `test`, `sample_submission`, `extra_train`; "DataFrame" for one that was no file."""
    id_column: str | None
    test_id_column: str | None
    text_columns: list[str] | None
    label_columns: list[str]
    train_rows: int
    extra_rows: int = 0
    test_rows: int | None
    lengths: dict[str, Any] | None = None
    train_sha256: str
    extra_train_sha256: str | None = None
    extra_texts_sha256: str | None = None
    test_sha256: str | None = None
    unlabelled_sha256: str | None = None
    """Of `distill.unlabelled`."""
    sample_submission_sha256: str | None = None

    def columns(self) -> Columns:
        """The roles of columns, for a further table."""
        return Columns(id=self.id_column, text=self.text_columns or [], labels=self.label_columns, how="as in training")


class RunInfo(Record):
    """`run.json`: what a run was made with, and what it took."""

    started: str
    versions: dict[str, str]
    machine: Machine
    data: DataInfo
    choices: dict[str, Any]
    """What was measured or found at the start, and is not to change: device, precision, attention, base."""
    backbone_path: str | None = None
    files: dict[str, str] = {}
    """SHA-256 of the folder's recipe, tables and arrays, by path."""
    seconds: dict[str, float] = {}
    """By phase, over all folds and starts."""
    reused: dict[str, int] = {}
    """Texts found in caches, by cache."""
    peak_memory_bytes: int | None = None
    pieces_per_row: float | None = None
    """Where long texts are read in pieces; what is a row in rows per second is then a piece."""
    predict_rows_per_second: float | None = None
    train_rows_per_second: float | None = None
    train_tokens_per_second: float | None = None
    padding_share: float | None = None
    last_session_seconds: float | None = None


class Adaptation(Record):
    """`adaptation.json` of a base that was trained on texts; the same values stand in the choices of its runs."""

    key: str
    """A hash of all that its bytes follow from."""
    base: str
    """The base before, as the recipe calls it."""
    base_sha256: str
    """See `lora_cls.modeling.loading.base_fingerprint`; of the base before, in 32 bits."""
    aim: Literal["masked", "next_token"]
    texts: int
    tokens: int
    epochs: int
    held_out: int
    """Texts that were kept aside, and on which the losses are noted."""
    losses: list[float]
    """Before the first epoch, and after each."""
    files: dict[str, str] = {}
    """SHA-256 of the base's files, by name."""
    folder: str | None = None
    """In a run's choices: where the base lies, by its full path, or in an export."""

    @property
    def sentence(self) -> str:
        """What the texts made of the base."""
        what = {"masked": "masked tokens", "next_token": "next tokens"}[self.aim]
        before, after = self.losses[0], self.losses[-1]
        rose = " It rose: lower adapt.learning_rate or adapt.num_train_epochs." if after > before else ""
        return (
            f"The base was adapted to {self.texts:,} texts without their labels, in {self.epochs} epochs: the loss of "
            f"{what} on {self.held_out:,} texts kept aside was {before:.3f} before and {after:.3f} after.{rose}"
        )


class Processed(Part):
    """What went through a model in training; `padded_tokens` counts tokens and padding."""

    rows: int
    tokens: int
    padded_tokens: int


class FoldInfo(Record):
    """`fold.json`: written last, it makes a fold a finished one."""

    files: dict[str, str] = {}
    """SHA-256 of the fold's arrays and weights, by path."""
    pos_weight: list[float]
    """Positive or class weights of the fold's training rows, one per label."""
    blend: dict[str, Any] | None = None
    """Of a blend: what was fitted on the other folds' rows."""
    blended: list[str | None] | None = None
    """Of a blend: SHA-256 of each run's out-of-fold logits of this fold."""
    epoch: int | None = None
    """The epoch that was kept."""
    train_rows: int | None = None
    train_pieces: int | None = None
    processed: Processed | None = None
    predict_pieces: int | None = None
    seconds: dict[str, float] = {}
    trainable_parameters: int | None = None
    processes: int | None = None
    """That trained it together, if several did (`accelerate launch`)."""
    predict_rows_per_second: float | None = None
    peak_memory_bytes: int | None = None
    answers: int | None = None
    unparsable_answers: int | None = None
    other_folds_macro_f1: list[float] | None = None
    """With `select: cross_fitted`, of every epoch: on the other folds' rows."""
    other_folds_metric: list[float] | None = None
    """The same where the metric is another, turned so that more is better."""


class Decision(Record):
    """`thresholds.json`: how a run decides. Thresholds by label."""

    remedy: ClassVar[str] = " Write it again with: lora-cls tune RUN."

    settings: Thresholds
    metric: MetricName = "macro_f1"
    """What the thresholds are tuned for, and the scores beside them state first."""
    metric_beta: float | None = None
    prediction: Prediction
    shipped: dict[str, float]
    """Tuned on all rows; for rows that no fold saw."""
    folds: dict[int, dict[str, float]] | None = None
    """Of each fold, tuned on the others."""
    parts: dict[int, dict[str, float]] | None = None
    """The same for the parts of a single fold's rows."""

    @property
    def fitted(self) -> dict[int, dict[str, float]]:
        """`folds` or `parts`, whichever the run has."""
        return self.folds if self.folds is not None else self.parts or {}


class TextReading(Part):
    """How the graph of an ONNX export reads a text: the ids of `lead` and the text, cut as `recipe.yaml` says, between
    those of `before` and `after`."""

    before: list[int]
    after: list[int]
    lead: str
    pad: int
    """Fills batches, on the right; and stands for a text without any token."""
    unknown: int | None
    """The token of what the vocabulary lacks."""
    embeddings: int | None
    """Tokens that the model knows."""


class ClassifierInfo(Decision, LabelsInfo):
    """`classifier.json` of an ONNX export, in place of `labels.json` and `thresholds.json`: all that a program without
    lora_cls needs beside graph and tokenizer."""

    remedy: ClassVar[str] = " Export the run again."

    tokens: TextReading


class LabelScores(Part):
    """One label in a table of scores."""

    label: str
    support: int
    prevalence: float
    threshold: float | None
    precision: float
    recall: float
    f1: float
    roc_auc: float | None
    average_precision: float | None


class ScoreSet(Part):
    """Scores of one way to decide the same rows."""

    optimistic: bool
    """The epoch was chosen on the rows that are scored."""
    over: Over | None = None
    """What thresholds were cross-fitted over."""
    n_parts: int | None = None
    macro_f1: float
    micro_f1: float
    exact_match: float
    macro_roc_auc: float | None
    macro_average_precision: float | None
    per_label: list[LabelScores]
    accuracy: float | None = None
    """Of classes."""
    macro_f1_interval: Interval
    metric: float | None = None
    """The value of the metric that the run is judged by; None where it is undefined."""
    metric_interval: Interval | None = None

    @property
    def judged(self) -> Interval | None:
        """The metric with its interval; macro-F1 in files of before."""
        return self.metric_interval if "metric" in self.model_fields_set else self.macro_f1_interval


class TestRows(Part):
    """What was decided for the test rows."""

    rows: int
    combine: str
    positives: dict[str, int]


class Scores(Record):
    """`metrics.json`."""

    remedy: ClassVar[str] = " Write it again with: lora-cls tune RUN."

    task: TaskName | None
    metric: MetricName = "macro_f1"
    """What the run is judged by; its values stand in the sets of scores below."""
    metric_beta: float | None = None
    strategy: str
    optimistic: bool
    decision_sha256: str | None = None
    """The field `sha256` of the `thresholds.json` that is scored."""
    files: dict[str, str] = {}
    """SHA-256 of the tables that were written with it, by name."""
    epochs_pending: bool
    """With `select: cross_fitted`, epochs are chosen when all folds are done."""
    folds_finished: list[int]
    n_splits: int
    rows_scored: int
    rows: int
    cross_fitted: ScoreSet
    untuned: ScoreSet
    tuning_gain: Interval | None = None
    """Cross-fitted minus untuned, paired, of the metric (of macro-F1 where that takes no decisions); None where nothing
    is tuned."""
    untuned_strategy: str | None = None
    """Where tuning shows no gain: the strategy that decides as untuned, to 0.5 % of decisions; None if none does."""
    note: str
    answers: int | None = None
    unparsable_answers: int | None = None
    test: TestRows | None = None

    @property
    def of(self) -> Metric:
        """The metric that the run is judged by."""
        return Metric(self.metric, self.metric_beta, self.task == "single_label")

    def per_label(self) -> pd.DataFrame:
        """A row per label: the cross-fitted scores, and the shipped threshold."""
        return pd.DataFrame([row.model_dump() for row in self.cross_fitted.per_label])

    def __repr__(self) -> str:
        scores, rows = self.cross_fitted, f"{self.rows_scored} of {self.rows} rows"
        optimistic = ", OPTIMISTIC" if self.optimistic else ""
        first = f"macro_f1={scores.macro_f1:.4f}, untuned={self.untuned.macro_f1:.4f}"
        if self.metric != "macro_f1" and scores.metric is not None:
            first = f"{self.metric}={scores.metric:.4f}, {first}"
        return f"Scores({first}, {rows}{optimistic})"

    def _repr_html_(self) -> str:
        """For notebooks: the headline, and the table per label."""
        return f"<p>{escape(repr(self))}</p>" + self.per_label().to_html(index=False, float_format="{:.3f}".format)


class BlendedRun(Part):
    """One run of a blend: its own score, and what the blend has over the same blend without it."""

    name: str
    macro_f1: float
    metric: float | None = None
    """The value of the metric that runs are judged by, where it is another."""
    adds: Interval


class BlendWay(Part):
    """One way of blending."""

    how: str
    macro_f1_interval: Interval
    metric_interval: Interval | None = None
    """Of the metric that runs are judged by, where it is another."""
    gain_over_best: Interval


class BlendInfo(Record):
    """`blend.json`: what each way and each run gains, in the metric of the first run."""

    how: str
    metric: MetricName = "macro_f1"
    metric_title: str = "macro-F1"
    """What it is called in a sentence."""
    best_single: str
    runs: list[BlendedRun]
    ways: list[BlendWay]
    note: str


class Compression(Part):
    """How much of an exact mean of adapters is left at a lower rank."""

    rank: int
    """Of every module."""
    share: float
    """Of the squared Frobenius norm of all updates together."""
    lowest_module: str
    """The module that keeps the least."""
    lowest_share: float


class OnnxInfo(Part):
    """What an ONNX export was tried on, and what it takes."""

    precision: Literal["float32", "int8"]
    bytes: int
    """Of graph and tokenizer."""
    texts: int
    """That PyTorch and onnxruntime both answered for."""
    largest_difference: float
    """Of a probability, both in fp32."""
    int8_difference: float | None
    """The same with the weights in 8 bits; None where they are not."""


class ScoredTable(Part):
    """A labelled table that an export was scored on."""

    table: str
    rows: int


class ExportScore(Part):
    """One way to answer, scored on a labelled table."""

    model: str
    rank: int | None
    macro_f1: Interval
    difference: Interval
    """Macro-F1 minus that of the folds together, paired."""
    seconds: float
    rows_per_second: float


class ScoreMap(Part):
    """What makes an export's scores those of the folds together, of one label after the other; fitted to texts alone.

    With z = logit - log(pos_weight), a label's probability is the sigmoid of m(z). m is a straight line from knot to
    knot, (x, y), and beyond the outermost two it shifts z as they do.
    """

    tables: list[str]
    """The tables of the texts; what labels they may hold played no part."""
    texts: int
    """How many different ones it was fitted to."""
    x: list[list[float]]
    """Knots of every label, rising."""
    y: list[list[float]]
    """What they become: never falling."""

    def apply(self, proba: np.ndarray, link: Link) -> np.ndarray:
        """Probabilities of the export, shape (..., n_labels), as the folds together would say them."""
        return link.probabilities(apply_score_map(self.x, self.y, link.logits(proba)))


class PlainDecision(Record):
    """`thresholds.json` of an export for transformers: how its scores are decided. Values by label."""

    task: TaskName | None
    thresholds: dict[str, float]
    """Of the scores. Labels at or above theirs are given; of classes the one with the greatest score / threshold."""
    offsets: dict[str, float]
    """What its log-odds, of classes its log-probabilities, lack of those of the run's probabilities."""
    at_least_one: dict[str, float] | None = None
    """Thresholds of the run's probabilities, where a text without any label is given the one that is nearest to its own
    (`prediction.at_least_one`)."""


class Parity(Part):
    """How far the answers of an exported model, opened by another program, lie from ours."""

    dtype: str
    """What it computed in; ours was fp32."""
    texts: int
    difference: float
    """Of a probability, the largest."""
    decisions: int
    """Labels that were decided otherwise, of all labels of all texts."""


class ExportInfo(Record):
    """`export.json`: one model made of a run's folds."""

    kind: ExportKind
    run: str
    folds: list[int]
    rank: int | None
    exact_rank: int | None
    compression: Compression | None
    out_of_fold_score: None
    note: str
    pos_weight: list[float]
    onnx: OnnxInfo | None = None
    scored: ScoredTable | None = None
    scores: list[ExportScore] | None = None
    score_map: ScoreMap | None = None
    parity: list[Parity] | None = None
    """Of a folder for another program."""
    files: dict[str, str] | None = None
    """SHA-256 of the other files of such a folder, by path within it."""

    @property
    def name(self) -> str:
        """What an export is called in tables."""
        if self.onnx is not None:
            return f"ONNX {self.onnx.precision}"
        if self.kind != "adapter":
            return "merged"
        return "exact mean" if self.compression is None else "compressed mean"


class SeenRow(Part):
    """A row of a labelled table whose text a run was trained on."""

    id: str
    place: str | None
    """`line 7` of a text file, `row 5` (counted from 0) of others; None of a run's own test rows."""
    training_row: str | None
    """Id of the training row of that text; None where only the models that training began with saw it."""


class TableScores(Record):
    """`scores/NAME/scores.json`: a run's models, at its shipped thresholds, on a labelled table."""

    remedy: ClassVar[str] = " Write it again with: lora-cls score RUN --input FILE --overwrite."

    table: str
    """The file's name."""
    table_sha256: str
    """Of ids and texts."""
    task: TaskName | None
    metric: MetricName = "macro_f1"
    metric_beta: float | None = None
    models: Models
    n_models: int
    exported: bool = False
    """The one model is an export, which has no out-of-fold score to compare with."""
    decision_sha256: str | None = None
    """The field `sha256` of the `thresholds.json` that decided."""
    rows: int
    scores: ScoreSet
    """Of all rows."""
    metrics: dict[str, float | None]
    """Every metric of all rows, by name; None where it is undefined."""
    seen: list[SeenRow] | None
    """Rows whose text the run was trained on; None where that cannot be told."""
    unseen: ScoreSet | None = None
    """Of the other rows, where there are both."""
    out_of_fold: Interval | None = None
    """The run's own score, cross-fitted."""
    minus_out_of_fold: Interval | None = None
    """This score (of unseen rows, where there are seen ones) less that; turned so that above 0 is better."""
    notes: list[str] = []

    @property
    def of(self) -> Metric:
        """The metric that the run is judged by."""
        return Metric(self.metric, self.metric_beta, self.task == "single_label")

    def per_label(self) -> pd.DataFrame:
        """A row per label: scores at the shipped threshold."""
        return pd.DataFrame([row.model_dump() for row in self.scores.per_label])

    def __repr__(self) -> str:
        judged, seen = self.scores.judged, f", {len(self.seen)} seen in training" if self.seen else ""
        value = "undefined" if judged is None else f"{judged.estimate:.4f}"
        return f"TableScores({self.metric}={value}, {self.rows} rows of {self.table}{seen})"

    def _repr_html_(self) -> str:
        """For notebooks: the headline, and the table per label."""
        return f"<p>{escape(repr(self))}</p>" + self.per_label().to_html(index=False, float_format="{:.3f}".format)


class LabelAbstention(Part):
    """One label, with abstaining and `without`; None where there is no such answer."""

    label: str
    coverage: float | None
    precision_yes: float | None
    precision_yes_without: float | None
    precision_no: float | None
    precision_no_without: float | None


class AbstentionScores(Part):
    """How much is answered, and how much of that is right."""

    coverage: float
    right: float | None
    right_without: float
    rows_answered: float
    per_label: list[LabelAbstention]


class AbstentionInfo(Record):
    """`predictions/NAME/abstain.json`: which scores were left unanswered, and what that comes to out of fold."""

    precision: float
    """Of each label's yes, and of its no, that was asked for."""
    decision_sha256: str | None
    yes: dict[str, float | None]
    """By label, the least score of a positive answer; None where none is given."""
    no: dict[str, float | None] | None
    """By label, the greatest score of a negative answer; None of classes."""
    rows: int
    over: Over
    out_of_fold: AbstentionScores
    """Cross-fitted: each fold's rows by bands of the others."""


class CalibrationScores(Part):
    """Means over the labels."""

    brier: float
    expected_calibration_error: float
    macro_f1: float


class LabelCalibration(Part):
    """One label, before and after."""

    label: str
    brier_before: float
    expected_calibration_error_before: float
    brier_after: float
    expected_calibration_error_after: float


class CalibrationInfo(Record):
    """`calibration.json`."""

    how: str
    bins: int
    before: CalibrationScores
    after: CalibrationScores
    per_label: list[LabelCalibration]
    thresholds: dict[str, float]
    shipped: dict[str, Any]
    """The map of all rows."""
    folds: dict[int, dict[str, Any]] | None = None
    parts: dict[int, dict[str, Any]] | None = None
    test_combine: str | None = None
