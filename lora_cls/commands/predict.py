"""New texts through the models of a run: probabilities, decisions, submissions."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from copy import copy
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd

from lora_cls.choices import Models, TableFormat
from lora_cls.commands.abstain import answer_columns, fit_abstention
from lora_cls.commands.answers import PIECES, Answers
from lora_cls.commands.explain import MOST_PARTS, Explanation, explain_text
from lora_cls.commands.workers import Workers, check_workers, make_executor, threads_of
from lora_cls.data import Dataset, TableLike, read_sample_submission, write_submission
from lora_cls.data.names import free_name
from lora_cls.data.new_rows import NewRows
from lora_cls.data.pieces import TablePieces, read_pieces
from lora_cls.data.submission import (
    kept_cells,
    match_sample,
    plain_form,
    submission_cells,
    with_probabilities,
)
from lora_cls.data.table import table_stem
from lora_cls.data.table_file import Cells, table_file
from lora_cls.data.texts import Texts, given_texts
from lora_cls.errors import DataError, RunError, no_fold_finished, shorten
from lora_cls.evaluation.abstention import Abstention
from lora_cls.files import make_folder, remove, writing
from lora_cls.recipe import Prediction, load_recipe
from lora_cls.runs import FoldFolder, RunFolder
from lora_cls.runs.folder import ABSTENTION, ANSWERS
from lora_cls.runs.records import ExportInfo
from lora_cls.training.factory import make_predictor
from lora_cls.training.progress import Progress

if TYPE_CHECKING:
    from lora_cls.modeling.resident import ResidentModels

ROWS_PER_PIECE = 10_000
BASE = "base"  # folder of an export that carries the base which a run adapted to its texts


class Classifier:
    """The models of a run folder, ready for texts.

    Use `Classifier.load`. Answers are those of all finished folds together, or of the model trained on all rows.
    Threads may share one: the folds' weights take turns in one model, so threads answer one after the other.

    Examples
    --------
    >>> classifier = Classifier.load("runs/tfidf")
    >>> classifier.predict_labels(["happy and delighted, a lovely day", "furious and angry, I hate it"])
    [['joy'], ['anger']]
    >>> classifier.predict_proba("happy and delighted, a lovely day").shape  # one text, three labels
    (3,)
    """

    def __init__(
        self,
        run: RunFolder,
        folders: list[FoldFolder],
        thresholds: np.ndarray,
        prediction: Prediction,
        backbone: str | None,
        show: bool | None,
        num_threads: int | None = None,
        resident: ResidentModels | None = None,
    ) -> None:
        self.run = run
        self.recipe = run.recipe
        if num_threads is not None:
            self.recipe = load_recipe(
                run.recipe, {"engine.num_threads": num_threads}, trust_remote_code=run.trust_remote_code
            )
        self.label_names = run.label_names
        self.thresholds = thresholds
        # one model has no votes to count
        self.prediction = prediction if len(folders) > 1 else prediction.model_copy(update={"combine": "mean_proba"})
        self._show = show
        self._turn = Lock()
        self._folders = folders
        self._weights = np.array([folder.pos_weight(len(self.label_names)) for folder in folders])
        self._score_map = ExportInfo.read(run.files.export).score_map if run.exported else None
        self._predictor = make_predictor(
            self.recipe, self.label_names, run.info.choices, run.base_place(backbone),
            trust_remote_code=run.trust_remote_code, outside_runs=run.outside_runs, resident=resident,
        )  # fmt: skip

    @classmethod
    def load(
        cls,
        run: str | Path | RunFolder,
        *,
        backbone: str | None = None,
        models: Models = "folds",
        show: bool | None = False,
        trust_remote_code: bool = False,
        outside_runs: bool = False,
        num_threads: int | None = None,
        resident: ResidentModels | None = None,
    ) -> Classifier:
        """Open a run folder, or what `export` made of one.

        Parameters
        ----------
        backbone : where the same base model lies on this machine, if elsewhere (a folder, hub id or package)
        models : `folds`, all finished folds combined; or `refit`, the one model of all rows
        show : progress of each prediction; where None, in notebooks and at a prompt
        trust_remote_code : let Python code that comes with the base model run; the folder's own recipe is not asked
        outside_runs : let a blend open runs that lie outside the folder that it lies in
        num_threads : of the CPU, in place of the recipe's; where neither says, one for each core
        resident : keeps models in memory between answers, also of other runs that are given the same one, and nothing
            of the texts on disk; without it, adapters are read at each answer

        Raises
        ------
        RunError
            If the folder is no run, has no finished model of that kind, or a file is missing or damaged. Adapters are
            read at a prediction, so that K of them never fill the memory: damage in one is an error there.
        BackboneError
            If the base model cannot be found; at the first prediction, if it cannot be opened or is another one.
        """
        run = RunFolder.of(run, trust_remote_code=trust_remote_code, outside_runs=outside_runs)
        if models == "refit":
            if not run.refit.finished:
                command = f"lora-cls refit {shlex.quote(str(run.path))}"
                raise RunError(f"{run.path} has no model of all rows. Train it with: {command}")
            folders = [run.refit]
        elif run.exported:
            folders = [FoldFolder(run.path)]
            if run.recipe.lora is None:
                backbone = str(run.path / "model")  # base and tokenizer are in there
            elif backbone is None and (run.path / BASE).is_dir():
                backbone = str(run.path / BASE)
        else:
            folders = [run.fold(number) for number in run.finished_folds]
            if not folders:
                raise no_fold_finished(run.path)
        decision = run.decision()
        shipped = np.array([decision.shipped[name] for name in run.label_names])
        return cls(run, folders, shipped, decision.prediction, backbone, show, num_threads, resident)

    def fingerprint(self) -> str:
        """SHA-256 of what answers: the models' weights, thresholds, and how scores are combined or mapped."""
        said = [folder.info.model_dump(mode="json") for folder in self._folders]
        said += [self.thresholds.tolist(), self.prediction.model_dump(mode="json"), self.recipe.to_dict()]
        if self._score_map is not None:
            said.append(self._score_map.model_dump(mode="json"))
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    @property
    def n_models(self) -> int:
        """Models that answer together."""
        return len(self._folders)

    def __repr__(self) -> str:
        models = f"{len(self._folders)} model{'s' * (len(self._folders) > 1)}"
        return f"Classifier({str(self.run.path)!r}, {models}, labels: {shorten(self.label_names)})"

    def predict_proba(self, texts: Texts | Dataset) -> np.ndarray:
        """Probabilities (with `prediction.combine: vote` shares of votes), float64.

        Parameters
        ----------
        texts : one text or several (list, array or Series of str), as they stand in the run's text column; or a
            DataFrame with its text columns. `data.text_template` and `data.unescape` apply, as they do to a file
            (a `Dataset` holds texts that are read already)

        Returns
        -------
        ndarray of shape (n_texts, n_labels); (n_labels,) for a single text
        """
        y_score = self.answer(texts)[0]
        return y_score[0] if isinstance(texts, str) else y_score

    def predict(self, texts: Texts | Dataset) -> np.ndarray:
        """Decisions at the run's thresholds, 0 or 1, int8; shapes as in `predict_proba`."""
        y_pred = self.answer(texts)[1]
        return y_pred[0] if isinstance(texts, str) else y_pred

    def predict_labels(self, texts: Texts | Dataset) -> Any:
        """Decisions by name.

        Returns
        -------
        list, one entry per text; the entry itself for a single text
            With `task: single_label` the class, str; else the labels, list of str.
        """
        named = self.run.task().named(self.answer(texts)[1], self.label_names)
        return named[0] if isinstance(texts, str) else named

    def explain(self, text: Texts, *, most_words: int = MOST_PARTS) -> Explanation:
        """How much each word of a text speaks for each label: what the answer loses where the word is taken out.

        Works for every kind of run, in batches, and costs as many answers as there are words. What it says is what
        these models do, one word at a time, and no more: of two words of which either suffices both count for little;
        a text with a gap is unlike those that were trained on; contributions do not add up to the answer; and in a text
        that is longer than the models read, taking a word out brings another one in at the end. Where folds vote
        (`prediction.combine: vote`) it is of their mean log-odds instead.

        Parameters
        ----------
        text : one text, as it stands in the run's text column; or a DataFrame of one row with its text columns
        most_words : in longer texts neighbouring words are taken together

        Raises
        ------
        DataError
            For anything but one text.

        Examples
        --------
        >>> found = Classifier.load("runs/tfidf").explain("a lovely day, and I am delighted")
        >>> found.contributions.shape  # seven words, three labels
        (7, 3)
        >>> found.strongest("joy", 2)[0][1] > 0
        True
        """
        columns = self.run.info.data.text_columns or ["text"]
        texts = given_texts(self.recipe.data, text, columns)
        if len(texts) != 1:
            raise DataError(f"One text is explained at a time. Got {len(texts)} instead.")
        quiet = copy(self)  # the same models, in the same turn
        quiet._show = False
        if self.prediction.combine == "vote":
            quiet.prediction = self.prediction.model_copy(update={"combine": "mean_logit"})

        def ask(given: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
            ids = [str(i) for i in range(len(given))]
            return quiet.answer(Dataset(ids, list(given), None, self.label_names, np.arange(len(given))))

        return explain_text(texts[0], ask, self.run.task(), self.label_names, most_words)

    def answer(self, texts: Texts | Dataset, told: Callable[[], None] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities and decisions at once, each of shape (n_texts, n_labels), also for a single text.

        Parameters
        ----------
        told : called after the answers of each model; nothing else is then shown of how far it is

        Raises
        ------
        DataError
            For what is no text: names its position and type.
        """
        return self.together(self.logits(texts, range(self.n_models), told))

    def logits(
        self, texts: Texts | Dataset, models: Sequence[int], told: Callable[[], None] | None = None
    ) -> np.ndarray:
        """What some of the models say, before anything is made of it: ndarray of shape (n_models, n_texts, n_labels),
        float32.

        Parameters
        ----------
        models : positions, from 0 to `n_models` - 1
        told : as in `answer`, which also names what is raised
        """
        columns = self.run.info.data.text_columns or ["text"]
        texts = texts.texts if isinstance(texts, Dataset) else given_texts(self.recipe.data, texts, columns)
        folders = [self._folders[model] for model in models]
        logits = np.empty((len(folders), len(texts), len(self.label_names)), dtype=np.float32)
        seconds = 0.0
        with self._turn, Progress(len(folders), self._show if told is None else False) as progress:
            for i, folder in enumerate(folders):
                logits[i] = self._predictor.predict(folder, texts)
                seconds += self._predictor.predict_seconds
                progress.part_done(folder.path.name, "; ".join([f"{len(texts)} rows", *self._predictor.notes]))
                if told is not None:
                    told()
            n_models = f"{len(folders)} model{'s' * (len(folders) > 1)}"
            rate = len(texts) * len(folders) / max(seconds, 1e-9)
            progress.say(f"{len(texts)} rows by {n_models} in {seconds:.1f} s: {rate:.0f} rows/s by each")
        return logits

    def together(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities and decisions of all models' logits, as `answer` returns them."""
        task = self.run.task()
        per_fold = task.link.probabilities(logits, self._weights[:, None, :])
        if self._score_map is not None:
            per_fold = self._score_map.apply(per_fold, task.link)
        return task.together(per_fold, self.thresholds, self.prediction)


def refuse_predictions(folder: Path, overwrite: bool) -> None:
    """Raise RunError where a submission stands that is not to be replaced, or that no prediction of ours wrote."""
    found = [form for form in get_args(TableFormat) if (folder / f"submission.{form}").exists()]
    if not found:
        return
    if not overwrite:
        raise RunError(
            f"{folder} holds predictions already: replace them with --overwrite, or choose another folder with --out."
        )
    ours = all((folder / f"test_proba.{form}").is_file() for form in found)
    if (folder / "recipe.yaml").exists() or not ours:
        raise RunError(
            f"{folder} holds a submission that no prediction wrote, and it is not overwritten. Choose another folder "
            "with --out."
        )


def predict_file(
    run: str | Path | RunFolder,
    table: str | Path | pd.DataFrame,
    out: str | Path | None = None,
    *,
    sample_submission: str | Path | pd.DataFrame | None = None,
    backbone: str | None = None,
    models: Models = "folds",
    format: TableFormat = "csv",
    abstain_below_precision: float | None = None,
    workers: Workers | None = None,
    executor: str = "local",
    overwrite: bool = False,
    show: bool | None = None,
    trust_remote_code: bool = False,
    outside_runs: bool = False,
) -> Path:
    """Answer for a table of new texts: `test_proba.csv` and `submission.csv` in `out`.

    Each 10,000 rows are read, answered and kept by themselves: tables of any length take the same memory, but for 8
    bytes of each row, and stopped, the same call goes on with the rest. (In memory as a whole are DataFrames, Excel
    files and JSON arrays; and the ids and decisions of all rows where a sample submission has them in another order.)

    Parameters
    ----------
    out : a new folder; `RUN/predictions/<name of the table>` where None
    format : `parquet` writes `test_proba.parquet` and `submission.parquet` instead
    abstain_below_precision : as 0.9; write `answers.csv`, too, in which labels whose yes or no would be right less
        often say `abstain`, and `abstain.json`, what that comes to out of fold (`lora_cls.commands.abstain`)
    workers : processes that answer at once, each a piece, or a part of the models; where None, this process alone. The
        files are the same where the threads of each are
    executor : where those processes are started, see `lora_cls.commands.workers.make_executor`
    overwrite : replace the predictions that `out` holds, once there are new ones
    trust_remote_code, outside_runs : see `Classifier.load`

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    LoraClsError
        If the folder holds predictions already, or for anything wrong with the table, the run or the base model.

    Examples
    --------
    >>> folder = predict_file("runs/tfidf", test_df, "predictions")
    >>> sorted(file.name for file in folder.iterdir())
    ['submission.csv', 'test_proba.csv']
    """
    run = RunFolder.of(run, trust_remote_code=trust_remote_code, outside_runs=outside_runs)
    name = "table" if isinstance(table, pd.DataFrame) else table_stem(table)
    folder = (
        Path(out) if out is not None else run.files.predictions / (name if models == "folds" else f"{name}-{models}")
    )
    with writing(folder):
        refuse_predictions(folder, overwrite)
    check_workers(workers, executor)
    pieces = read_pieces(table, ROWS_PER_PIECE, name="the test DataFrame")
    rows = NewRows(run.recipe.data, pieces, run.info.data.columns())
    submission = _Submission(run, rows, sample_submission)
    abstention = None if abstain_below_precision is None else fit_abstention(run, abstain_below_precision)
    make_folder(folder)  # now: a folder that cannot be written should not cost the prediction
    with Progress(0, show) as progress:
        for note in submission.notes:
            progress.say(note)
    classifier = Classifier.load(run, backbone=backbone, models=models, show=show)
    answers = Answers(classifier, rows, folder)
    n_tasks = sum(len(models) for _, models in answers.missing())
    elsewhere = [name for name, given in (("blend", run.recipe.blend), ("--backbone", backbone)) if given]
    processes = make_executor(run.recipe, workers, executor, n_tasks, run.path, elsewhere)
    if processes is None:
        answers.ask(show)
    else:
        load = {
            "backbone": backbone, "models": models, "trust_remote_code": trust_remote_code,
            "outside_runs": outside_runs, "num_threads": threads_of(processes, run.recipe),
        }  # fmt: skip
        with closing(processes):
            answers.share_out(processes, {"run": str(run.path.absolute()), "load": load, "whole_run": True}, show)
    for name in (ANSWERS, ABSTENTION):  # of an earlier prediction
        remove(folder / name)
    _write(answers, run.label_names, rows, submission, folder, format, None if abstention is None else abstention[0])
    if abstention is not None:
        abstention[1].write(folder / ABSTENTION)
    with writing(folder):
        for left in folder.glob(f"{PIECES}*"):
            shutil.rmtree(left)
    for other in get_args(TableFormat):  # what was to be replaced
        if other != format:
            remove(folder / f"submission.{other}")
            remove(folder / f"test_proba.{other}")
    return folder


class _Submission:
    """The form of a submission, of the recipe's labels or of a sample."""

    def __init__(self, run: RunFolder, rows: NewRows, sample: TableLike | None) -> None:
        self.label_names, self.delimiter = run.label_names, run.recipe.data.label_delimiter
        self.notes: list[str] = []
        self.in_order = True
        """Whether its rows are those of the table, in their order."""
        self._sample: TablePieces | None = None
        probabilities = run.task(run.decision()).metric.of_scores
        id_name = rows.columns.id or "id"
        if sample is None:
            self.form = plain_form(run.label_names, id_name, run.label_column, probabilities)
            return
        facts: dict[str, Any] = {
            "task": run.recipe.task, "delimiter": self.delimiter, "label_column": run.label_column,
        }  # fmt: skip
        self._sample = read_pieces(sample, ROWS_PER_PIECE, name="the sample submission")
        found = match_sample(self._sample, rows, run.label_names, id_name, **facts)
        if found is None:
            self.in_order = False
            found = read_sample_submission(sample, rows.ids(), run.label_names, id_name, **facts)
        self.notes = found.notes
        self.form = with_probabilities(found, probabilities)

    def cells(self, number: int, ids: list[str], y_pred: np.ndarray, y_score: np.ndarray) -> list[Cells]:
        """The columns of one piece."""
        kept = kept_cells(self._sample.frame(number), self.form) if self._sample and self.form.kept else {}
        return submission_cells(self.form, ids, y_pred, self.label_names, self.delimiter, y_score, kept)

    def write(self, file: Path, ids: list[str], answers: list[np.ndarray], format: TableFormat) -> None:
        """All rows at once, in the order of the sample; of `answers` there are decisions, or what else is written."""
        values = np.concatenate(answers)
        y_pred = np.zeros(values.shape, dtype=np.int8) if self.form.probabilities else values
        write_submission(
            file, ids, y_pred, self.label_names, sample=self.form, delimiter=self.delimiter,
            y_score=values if self.form.probabilities else None, format=format,
        )  # fmt: skip


def _write(
    answers: Answers,
    names: list[str],
    rows: NewRows,
    submission: _Submission,
    folder: Path,
    format: TableFormat,
    band: Abstention | None,
) -> None:
    """Write the tables, piece by piece; the submission, which says that all is done, appears last."""
    file = folder / f"submission.{format}"
    ids: list[str] = []
    values: list[np.ndarray] = []
    with ExitStack() as opened:  # closed from the last to the first
        form = submission.form
        add = opened.enter_context(table_file(file, form.columns, format)) if submission.in_order else None
        add_values = opened.enter_context(
            table_file(folder / f"test_proba.{format}", [free_name("id", names), *names], format)
        )
        add_answers = None
        for number in range(rows.n_pieces):
            piece = rows.piece(number)
            y_score, decided = answers.piece(number)
            y_pred = decided.astype(np.int8)
            add_values([piece.ids, *y_score.T])
            if band is not None:
                columns = answer_columns(piece.ids, names, y_score, y_pred, band)
                if add_answers is None:
                    add_answers = opened.enter_context(table_file(folder / ANSWERS, list(columns)))
                add_answers(list(columns.values()))
            if add is not None:
                add(submission.cells(number, piece.ids, y_pred, y_score))
            else:
                ids += piece.ids
                values.append(y_score if form.probabilities else y_pred)
    if not submission.in_order:
        submission.write(file, ids, values, format)
