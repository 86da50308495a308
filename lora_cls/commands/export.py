"""One model out of the folds' models, to ship: the mean of their updates as a PEFT adapter, merged into the base, or as
an ONNX graph.

None of these models answered for a row that it never saw: they have no out-of-fold score, only one on another labelled
file.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, overload

import numpy as np

from lora_cls.choices import ExportKind, Models
from lora_cls.commands.plain import is_plain, refuse_unfit, write_plain
from lora_cls.commands.predict import BASE, Classifier
from lora_cls.commands.score_map import fit_to_folds, read_texts
from lora_cls.data import Dataset, TableLike
from lora_cls.errors import RecipeError, RunError, no_fold_finished
from lora_cls.evaluation import bootstrap_difference, bootstrap_macro_f1
from lora_cls.files import whole_folder, write_array, write_bytes, writing
from lora_cls.modeling.merging import average_weights, merge_adapters
from lora_cls.recipe import Recipe, load_recipe
from lora_cls.report.card import export_card
from lora_cls.report.sentences import NO_SCORE, NO_SCORE_OF_ONE
from lora_cls.runs import FoldFolder, FoldInfo, Labelled, RunFiles, RunFolder
from lora_cls.runs.folder import recipe_bytes, refuse_foreign
from lora_cls.runs.records import Compression, ExportInfo, ExportScore, OnnxInfo
from lora_cls.runs.start import Start, notes_texts
from lora_cls.runs.sums import sums
from lora_cls.training.heads import head_type
from lora_cls.training.onnx_export import plain_recipe, quantize_onnx, refuse_without_packages, write_onnx

FOLDS = "the folds together"


@overload
def export(
    run: str | Path | RunFolder,
    out: str | Path,
    *,
    to: Literal["adapter", "merged", "onnx"] = "adapter",
    rank: int | None = None,
    share: float | None = None,
    int8: bool = False,
    score: TableLike | None = None,
    align: TableLike | Sequence[TableLike] = (),
    backbone: str | None = None,
    overwrite: bool = False,
    show: bool | None = None,
    trust_remote_code: bool = False,
) -> RunFolder: ...
@overload
def export(
    run: str | Path | RunFolder,
    out: str | Path,
    *,
    to: Literal["transformers"],
    rank: int | None = None,
    share: float | None = None,
    int8: bool = False,
    score: TableLike | None = None,
    align: TableLike | Sequence[TableLike] = (),
    backbone: str | None = None,
    overwrite: bool = False,
    show: bool | None = None,
    trust_remote_code: bool = False,
) -> Path: ...
def export(
    run: str | Path | RunFolder,
    out: str | Path,
    *,
    to: ExportKind = "adapter",
    rank: int | None = None,
    share: float | None = None,
    int8: bool = False,
    score: TableLike | None = None,
    align: TableLike | Sequence[TableLike] = (),
    backbone: str | None = None,
    overwrite: bool = False,
    show: bool | None = None,
    trust_remote_code: bool = False,
) -> RunFolder | Path:
    """Make one model of a run's finished folds.

    The mean of K low-rank updates is an update of K times the rank, exactly (`lora_cls.modeling.updates`); it can be
    compressed, or added to the base's weights. The heads are averaged too. That mean model is not the mean of the
    models: hidden states are no linear function of the weights, and the mean of linear heads over K different hidden
    states is not the mean of their logits. How much is lost, if anything, only a labelled file tells (`score`).

    Runs of full fine-tuning (`lora: null`) have no updates of low rank: `to="merged"` is then the mean of their weights
    (Wortsman et al. 2022, "Model soups"). Runs that write their labels (`head.kind: generate`) and runs of TF-IDF are
    refused.

    Logits of a model trained with positive weights w are shifted by log w, and each fold has its own w: the export's is
    exp(mean(log w)). Thresholds are the run's: tuned on probabilities of the folds' own models. They do not quite fit
    an export, whose scores are shifted: `align` maps these to those of the folds together, label by label, by what both
    say of texts that need no labels (`lora_cls.evaluation.score_map`).

    Parameters
    ----------
    out : a new folder; appears when it is complete. `Classifier.load` and `lora-cls predict` open it
    to : `adapter`, a PEFT adapter with the head in it; `merged`, plain weights in the precision of the base's files
        (a base that was trained on quantized is merged unquantized: the update has made up for rounding that is not
        there then); `onnx`, a graph with pooling and head that needs no torch (`lora_cls.training.onnx_export`); or
        `transformers`, the merged model in a folder that transformers opens by itself (`lora_cls.commands.plain`)
    rank : compress the adapter to this rank
    share : compress it to the lowest rank that keeps this share of its squared Frobenius norm
    int8 : with `onnx`: weights of matrix products in 8 bits. Give `score`, too: it then states what that costs
    score : a labelled table; scores the export beside the folds together, the exact mean, and the model of `refit`
    align : one or several tables of texts, 100 at least, as those that it will be asked about; what labels they may
        hold plays no part
    backbone : where the same base model lies on this machine, if elsewhere
    overwrite : replace an export that stands in `out`, once the new one is complete
    show : progress; where None, in notebooks and at a prompt
    trust_remote_code : let Python code that comes with the base model run; the folder's own recipe is not asked

    Returns
    -------
    RunFolder
        With `export.json`, `README.md`, and `adapter/` or `model/`; of `transformers` the folder's path.

    Raises
    ------
    RunError
        If the folder exists, or the run has nothing to export in this way; nothing is left behind.

    Examples
    --------
    >>> exported = export("runs/lora", "shipped", rank=4)
    >>> sorted(path.name for path in (exported.path / "adapter").iterdir())
    ['adapter_config.json', 'adapter_model.safetensors']
    >>> Classifier.load("shipped").predict_proba(["happy and delighted, a lovely day"]).shape
    (1, 3)
    """
    run = RunFolder.of(run, trust_remote_code=trust_remote_code)
    out = Path(out)
    tables = list(align) if isinstance(align, (list, tuple)) else [align]
    _check(run, out, to, rank, share, int8, tables, backbone, overwrite)
    labelled = None if score is None else Labelled.read(run, score)  # before anything is made
    if to == "transformers":
        return _plain(run, out, labelled, backbone, overwrite, show)
    texts = read_texts(run, tables) if tables else []
    with TemporaryDirectory(prefix="lora_cls-") as place:
        whole = export(run, Path(place) / "float32", to="onnx", backbone=backbone) if int8 else None
        with whole_folder(out, replace=overwrite) as scratch:
            if whole is None:
                about = _write(run, scratch, to, rank, share, backbone)
            else:
                about = in_8_bits(run, whole, scratch)
            if texts:
                fitted = fit_to_folds(run, RunFolder(scratch), texts, backbone=backbone, show=show)
                about = _note(run, RunFolder(scratch), about.model_copy(update={"score_map": fitted}))
        exported = RunFolder(out, trust_remote_code=run.trust_remote_code)
        if labelled is not None:
            scores = score_export(run, exported, about, labelled, whole, backbone=backbone, show=show)
            _note(run, exported, about.model_copy(update={"scored": labelled.about, "scores": scores}))
    return exported


def _note(run: RunFolder, exported: RunFolder, about: ExportInfo) -> ExportInfo:
    """Write what is known of an export, as values and as its README."""
    about.write(exported.files.export)
    write_bytes(exported.files.card, export_card(run, exported, about).encode())
    return about


def in_8_bits(run: RunFolder, whole: RunFolder, folder: Path) -> ExportInfo:
    """Write into an empty folder what an ONNX export of the run is with its weights in 8 bits; returns what its
    `export.json` says."""
    shutil.copytree(whole.path, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("model", "fold.json"))
    about = ExportInfo.read(whole.files.export)
    about = about.model_copy(update={"onnx": quantize_onnx(whole, about, folder)})
    FoldFolder(folder).write_info(FoldInfo(pos_weight=about.pos_weight))
    return _note(run, RunFolder(folder), about)


def _plain(
    run: RunFolder, out: Path, labelled: Labelled | None, backbone: str | None, overwrite: bool, show: bool | None
) -> Path:
    """A folder for transformers, made of a merged model that is not kept; scored as that."""
    with whole_folder(out, replace=overwrite) as folder:
        beside = folder.parent / "merged"  # gone with the scratch folder
        beside.mkdir()
        about = _write(run, beside, "merged", None, None, backbone)
        merged = RunFolder(beside, trust_remote_code=run.trust_remote_code)
        scores = None
        if labelled is not None:
            scores = score_export(run, merged, about, labelled, backbone=backbone, show=show)
        texts = [] if labelled is None else labelled.rows.texts
        about = about.model_copy(
            update={"kind": "transformers", "scored": labelled.about if labelled else None, "scores": scores}
        )
        write_plain(run, merged, folder, about, texts)
    return out


def _check(
    run: RunFolder,
    out: Path,
    to: ExportKind,
    rank: int | None,
    share: float | None,
    int8: bool,
    tables: Sequence[TableLike],
    backbone: str | None,
    overwrite: bool,
) -> None:
    """Refuse what cannot be exported, before anything is read."""
    recipe = run.recipe
    with writing(out):
        exists = out.exists() or out.is_symlink()
    if exists:
        if not overwrite:
            raise RunError(f"{out} exists already: replace it with --overwrite, or choose another folder with --out.")
        if not is_plain(out):
            refuse_foreign(out)
            if not RunFolder(out).exported:
                raise RunError(
                    f"{out} is a run, and no export: it is not overwritten. Choose another folder with --out."
                )
    if run.exported:
        raise RunError(f"{run.path} is an export itself: give the run that it was made from.")
    if recipe.tfidf is not None:
        raise RunError(
            f"{run.path} is a run of TF-IDF: it has no adapters. Ship lora-cls refit, one model of all rows."
        )
    if reason := head_type(recipe.head.kind).not_exported:
        raise RunError(f"{run.path} {reason}: its mean is not exported. Ship lora-cls refit, one model of all rows.")
    if recipe.lora is None and to == "adapter":
        raise RunError(
            f"{run.path} trained every weight (lora: null): it has no adapters. --to merged gives the mean of the "
            "folds' weights."
        )
    if (rank is not None) + (share is not None) > 1:
        raise RecipeError("Give either --rank or --share: both say how far the adapter is compressed.")
    if to != "adapter" and (rank is not None or share is not None):
        raise RecipeError("--rank and --share compress an adapter: merged weights have no rank. Leave them out.")
    if int8 and to != "onnx":
        raise RecipeError(f"--int8 is for --to onnx. Leave it out with --to {to}.")
    if tables and to not in ("adapter", "merged"):
        raise RecipeError(f"What opens an export --to {to} maps no scores: leave out --align, or --to.")
    if tables and run.task().exclusive:
        raise RunError(
            f"{run.path}: --align maps the scores of labels that are decided one by one, and a row's classes would no "
            "longer sum to 1. Leave it out."
        )
    if rank is not None and rank < 1:
        raise RecipeError(f"--rank must be at least 1. Got {rank} instead.")
    if share is not None and not 0 < share <= 1:
        raise RecipeError(f"--share must lie above 0 and be at most 1. Got {share:g} instead.")
    if not run.finished_folds:
        raise no_fold_finished(run.path)
    if recipe.lora is not None:
        from lora_cls.modeling.updates import check_plain, is_grouped

        check_plain(recipe.lora)
        if to != "adapter" and is_grouped(run.fold(run.finished_folds[0]).adapter):
            raise RunError(
                f"{run.path} adapts grouped convolutions (as SqueezeBERT's): such an update reads all channels and "
                "fits no weight of the base. Export an adapter instead, without --to."
            )
    if to == "transformers":
        refuse_unfit(run, backbone)
    if to == "onnx":
        refuse_without_packages()


def _write(
    run: RunFolder,
    folder: Path,
    to: ExportKind,
    rank: int | None,
    share: float | None,
    backbone: str | None,
) -> ExportInfo:
    """All files of an export; returns what `export.json` says."""
    from lora_cls.modeling.adapted import ADAPTED
    from lora_cls.modeling.updates import mean_adapter

    recipe, info, numbers, files = run.recipe, run.info, run.finished_folds, RunFiles(folder)
    folds = [run.fold(number) for number in numbers]
    adapters = [fold.weights(fold.adapter) for fold in folds]
    choices, backbone_path = dict(info.choices), info.backbone_path
    chosen: int | None = None
    exact: int | None = None
    compression: Compression | None = None
    onnx: OnnxInfo | None = None
    weight = np.exp(np.log(run.pos_weights()).mean(axis=0))
    if to == "adapter":
        exact, compression = mean_adapter(adapters, folder / "adapter", rank, share)
        if ADAPTED in choices:  # nobody else has the base that it stands on
            choices[ADAPTED] = choices[ADAPTED] | {"folder": _copy_base(run, folder / BASE, backbone)}
        chosen = compression.rank if compression else exact
        recipe = _with_rank(recipe, chosen)
    elif to == "onnx":
        onnx = write_onnx(run, folder, backbone, weight)
        recipe, backbone_path = plain_recipe(recipe), None
        choices, weight = {"onnx": True}, np.ones_like(weight)  # the graph has undone it
    else:
        choices["merged_dtype"] = (
            average_weights(run, folder / "model", backbone)
            if recipe.lora is None
            else merge_adapters(run, folder / "model", backbone, head_type(recipe.head.kind).attach)
        )
        choices.pop("base_sha256", None)  # of the base before
        choices.pop(ADAPTED, None)
        recipe, backbone_path = plain_recipe(recipe), "model"
    about = ExportInfo(
        kind=to,
        run=run.path.name,
        folds=numbers,
        rank=chosen,
        exact_rank=exact,
        compression=compression,
        out_of_fold_score=None,
        note=NO_SCORE if len(numbers) > 1 else NO_SCORE_OF_ONE,
        pos_weight=weight.tolist(),
        onnx=onnx,
    )
    write_bytes(files.recipe, recipe_bytes(recipe))
    if notes_texts(run):
        write_array(files.text_hashes, Start(run, {fold.path.name: fold for fold in folds}).seen_by_any)
    noted = sums(folder, [files.recipe, files.text_hashes])
    info.model_copy(update={"choices": choices, "backbone_path": backbone_path, "files": noted}).write(files.info)
    if to != "onnx":  # which has them in its own file
        run.labels_info.write(files.labels)
        run.decision().write(files.decision)
    FoldFolder(folder).write_info(FoldInfo(pos_weight=about.pos_weight))
    return _note(run, RunFolder(folder), about)


def _copy_base(run: RunFolder, folder: Path, backbone: str | None) -> str:
    """Copy the run's adapted base; returns its place within the export."""
    from lora_cls.modeling.adapted import run_source

    assert run.recipe.backbone is not None
    source = run_source(run.recipe.backbone, run.info.choices, run.base_place(backbone), needed=True)
    shutil.copytree(source.path_or_id, folder)
    return folder.name


def _with_rank(recipe: Recipe, rank: int) -> Recipe:
    """The recipe that builds an exported adapter: one rank, scaling 1."""
    assert recipe.lora is not None
    lora = recipe.lora.model_dump(exclude={"use_rslora", "rank_pattern", "alpha_pattern"})
    return load_recipe(recipe, {"lora": lora | {"r": rank, "lora_alpha": rank}})


def score_export(
    run: RunFolder,
    exported: RunFolder,
    about: ExportInfo,
    labelled: Labelled,
    whole: RunFolder | None = None,
    *,
    backbone: str | None = None,
    show: bool | None = None,
) -> list[ExportScore]:
    """Scores of the folds together, the exact mean of their adapters, the export, and `refit` where there is one.

    `whole` is the export in fp32 of which one in 8 bits was made.
    """

    def load(source: RunFolder, models: Models = "folds") -> Callable[[], Classifier]:
        return lambda: Classifier.load(source, backbone=backbone, models=models, show=show)

    rank = None if run.recipe.lora is None else run.recipe.lora.r
    ways: list[tuple[str, int | None, Callable[[], Classifier]]] = [(FOLDS, rank, load(run))]
    with TemporaryDirectory(prefix="lora_cls-") as scratch:
        if run.recipe.lora is not None and (about.kind == "merged" or about.compression):
            exact = export(run, Path(scratch) / "exact")
            ways.append(("exact mean", ExportInfo.read(exact.files.export).rank, load(exact)))
        if whole is not None:
            ways.append((ExportInfo.read(whole.files.export).name, None, load(whole)))
        ways.append((about.name, about.rank, load(exported)))
        if run.refit.finished:
            ways.append(("refit", rank, load(run, "refit")))
        answered = [(name, rank, *answer(make(), labelled.rows)) for name, rank, make in ways]
    return compare([(name, rank, y_pred, seconds) for name, rank, y_pred, seconds in answered], labelled)


def answer(classifier: Classifier, rows: Dataset) -> tuple[np.ndarray, float]:
    """Decisions, and the seconds that they took; the base is loaded before."""
    classifier.predict(rows.subset([0]))
    started = time.perf_counter()
    y_pred = classifier.predict(rows)
    return y_pred, time.perf_counter() - started


def compare(answered: Sequence[tuple[str, int | None, np.ndarray, float]], labelled: Labelled) -> list[ExportScore]:
    """Score (name, rank, decisions, seconds) of each way, the first of which the others are compared with."""
    y_true, groups = labelled.y_true, labelled.rows.groups
    first = answered[0][2]
    return [
        ExportScore(
            model=name,
            rank=rank,
            macro_f1=bootstrap_macro_f1(y_true, y_pred, groups),
            difference=bootstrap_difference(y_true, y_pred, first, groups),
            seconds=round(seconds, 2),
            rows_per_second=round(len(y_true) / seconds, 1),
        )
        for name, rank, y_pred, seconds in answered
    ]
