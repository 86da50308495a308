"""One model out of the folds' models, to ship: the mean of their updates as a PEFT adapter, or merged into the base.

None of these models answered for a row that it never saw: they have no out-of-fold score, only one on another labelled
file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import yaml

from lora_cls.commands.predict import Classifier
from lora_cls.data import TableLike
from lora_cls.errors import RecipeError, RunError, no_fold_finished, unwritable
from lora_cls.evaluation import Interval, bootstrap_difference, bootstrap_macro_f1
from lora_cls.files import whole_folder, write_bytes, write_json
from lora_cls.modeling.merging import average_weights, merge_adapters
from lora_cls.recipe import Recipe, load_recipe
from lora_cls.report.card import export_card
from lora_cls.report.sentences import NO_SCORE, NO_SCORE_OF_ONE
from lora_cls.runs import Labelled, RunFolder, read_json

To = Literal["adapter", "merged"]
FOLDS = "the folds together"


def export(
    run: str | Path | RunFolder,
    out: str | Path,
    *,
    to: To = "adapter",
    rank: int | None = None,
    share: float | None = None,
    score: TableLike | None = None,
    backbone: str | None = None,
    show: bool = False,
) -> RunFolder:
    """Make one model of a run's finished folds.

    The mean of K low-rank updates is an update of K times the rank, exactly (`lora_cls.modeling.updates`); it can be
    compressed, or added to the base's weights. The heads are averaged too. That mean model is not the mean of the
    models: hidden states are no linear function of the weights, and the mean of linear heads over K different hidden
    states is not the mean of their logits. How much is lost, if anything, only a labelled file tells (`score`).

    Runs of full fine-tuning (`lora: null`) have no updates of low rank: `to="merged"` is then the mean of their weights
    (Wortsman et al. 2022, "Model soups"). Runs that write their labels (`head.kind: generate`) and runs of TF-IDF are
    refused.

    Logits of a model trained with positive weights w are shifted by log w, and each fold has its own w: the export's is
    exp(mean(log w)). Thresholds are the run's: tuned on probabilities of the folds' own models.

    Parameters
    ----------
    out : a new folder; appears when it is complete. `Classifier.load` and `lora-cls predict` open it
    to : `adapter`, a PEFT adapter with the head in it; or `merged`, plain weights in the precision of the base's files
        (a base that was trained on quantized is merged unquantized: the update has made up for rounding that is not
        there then)
    rank : compress the adapter to this rank
    share : compress it to the lowest rank that keeps this share of its squared Frobenius norm
    score : a labelled table; scores the export beside the folds together, the exact mean, and the model of `refit`
    backbone : where the same base model lies on this machine, if elsewhere
    show : progress on stderr

    Returns
    -------
    RunFolder
        With `export.json`, `README.md`, and `adapter/` or `model/`.

    Raises
    ------
    RunError
        If the folder exists, or the run has nothing to export in this way; nothing is left behind.
    """
    run = run if isinstance(run, RunFolder) else RunFolder(run)
    out = Path(out)
    _check(run, out, to, rank, share)
    labelled = None if score is None else Labelled.read(run, score)  # before anything is made
    try:
        with whole_folder(out) as scratch:
            about = _write(run, scratch, to, rank, share, backbone)
    except OSError as error:
        raise unwritable(out, error) from error
    exported = RunFolder(out)
    if labelled is not None:
        scores = score_export(run, exported, labelled, backbone=backbone, show=show)
        about |= labelled.about | {"scores": [asdict(found) for found in scores]}
        write_json(out / "export.json", about)
        write_bytes(out / "README.md", export_card(run, exported, about).encode())
    return exported


def _check(run: RunFolder, out: Path, to: To, rank: int | None, share: float | None) -> None:
    """Refuse what cannot be exported, before anything is read."""
    recipe = run.recipe
    if out.exists() or out.is_symlink():
        raise RunError(f"{out} exists already: choose another folder with --out. Nothing is overwritten.")
    if run.exported:
        raise RunError(f"{run.path} is an export itself: give the run that it was made from.")
    if recipe.tfidf is not None:
        raise RunError(
            f"{run.path} is a run of TF-IDF: it has no adapters. Ship lora-cls refit, one model of all rows."
        )
    if recipe.head.kind == "generate":
        raise RunError(
            f"{run.path} writes its labels (head.kind: generate): its mean is not exported. Ship lora-cls refit, one "
            "model of all rows."
        )
    if recipe.lora is None and to == "adapter":
        raise RunError(
            f"{run.path} trained every weight (lora: null): it has no adapters. --to merged gives the mean of the "
            "folds' weights."
        )
    if (rank is not None) + (share is not None) > 1:
        raise RecipeError("Give either --rank or --share: both say how far the adapter is compressed.")
    if to == "merged" and (rank is not None or share is not None):
        raise RecipeError("--rank and --share compress an adapter: merged weights have no rank. Leave them out.")
    if rank is not None and rank < 1:
        raise RecipeError(f"--rank must be at least 1. Got {rank} instead.")
    if share is not None and not 0 < share <= 1:
        raise RecipeError(f"--share must lie above 0 and be at most 1. Got {share:g} instead.")
    if not run.finished_folds:
        raise no_fold_finished(run.path)
    if recipe.lora is not None:
        from lora_cls.modeling.updates import check_plain, is_grouped

        check_plain(recipe.lora)
        if to == "merged" and is_grouped(run.fold(run.finished_folds[0]).adapter):
            raise RunError(
                f"{run.path} adapts grouped convolutions (as SqueezeBERT's): such an update reads all channels and "
                "fits no weight of the base. Export an adapter instead, without --to merged."
            )


def _write(
    run: RunFolder, folder: Path, to: To, rank: int | None, share: float | None, backbone: str | None
) -> dict[str, Any]:
    """All files of an export; returns what `export.json` says."""
    from lora_cls.modeling.updates import mean_adapter

    recipe, info, numbers = run.recipe, run.info, run.finished_folds
    folds = [run.fold(number) for number in numbers]
    about: dict[str, Any] = {
        "kind": to,
        "run": run.path.name,
        "folds": numbers,
        "rank": None,
        "exact_rank": None,
        "compression": None,
        "out_of_fold_score": None,
        "note": NO_SCORE if len(numbers) > 1 else NO_SCORE_OF_ONE,
    }
    choices = dict(info["choices"])
    if to == "adapter":
        exact, compression = mean_adapter([fold.adapter for fold in folds], folder / "adapter", rank, share)
        chosen = compression.rank if compression else exact
        about |= {"rank": chosen, "exact_rank": exact, "compression": compression and asdict(compression)}
        recipe = _with_rank(recipe, chosen)
    else:
        choices["merged_dtype"] = (
            average_weights(run, folder / "model", backbone)
            if recipe.lora is None
            else merge_adapters(run, folder / "model", backbone)
        )
        choices.pop("base_sha256", None)  # of the base before
        recipe = load_recipe(recipe, {"lora": None, "quantization": None})
    backbone_path = "model" if to == "merged" else info.get("backbone_path")
    weight = np.exp(np.log(run.pos_weights()).mean(axis=0))
    about["pos_weight"] = weight.tolist()
    write_json(folder / "run.json", info | {"choices": choices, "backbone_path": backbone_path})
    write_json(folder / "labels.json", read_json(run.path / "labels.json"))
    write_json(folder / "thresholds.json", read_json(run.path / "thresholds.json"))
    write_json(folder / "fold.json", {"pos_weight": weight.tolist()})
    write_bytes(folder / "recipe.yaml", yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True).encode())
    write_json(folder / "export.json", about)
    write_bytes(folder / "README.md", export_card(run, RunFolder(folder), about).encode())
    return about


def _with_rank(recipe: Recipe, rank: int) -> Recipe:
    """The recipe that builds an exported adapter: one rank, scaling 1."""
    assert recipe.lora is not None
    lora = recipe.lora.model_dump(exclude={"use_rslora", "rank_pattern", "alpha_pattern"})
    return load_recipe(recipe, {"lora": lora | {"r": rank, "lora_alpha": rank}})


@dataclass(frozen=True)
class Scored:
    """One way to answer, scored on a labelled table.

    Attributes
    ----------
    model : what answered
    rank : of its adapters; None without
    macro_f1 : with its interval over groups of identical texts, the models held fixed
    difference : macro-F1 minus that of the folds together, paired
    seconds : to answer for all rows, loading the base not counted
    """

    model: str
    rank: int | None
    macro_f1: Interval
    difference: Interval
    seconds: float
    rows_per_second: float


def score_export(
    run: RunFolder, exported: RunFolder, labelled: Labelled, *, backbone: str | None = None, show: bool = False
) -> list[Scored]:
    """Scores of the folds together, the exact mean of their adapters, the export, and `refit` where there is one."""
    about = read_json(exported.path / "export.json")

    def load(source: RunFolder, models: Literal["folds", "refit"] = "folds") -> Callable[[], Classifier]:
        return lambda: Classifier.load(source, backbone=backbone, models=models, show=show)

    rank = None if run.recipe.lora is None else run.recipe.lora.r
    ways: list[tuple[str, int | None, Callable[[], Classifier]]] = [(FOLDS, rank, load(run))]
    with TemporaryDirectory(prefix="lora_cls-") as scratch:
        if run.recipe.lora is not None and (about["kind"] == "merged" or about["compression"]):
            exact = export(run, Path(scratch) / "exact")
            ways.append(("exact mean", read_json(exact.path / "export.json")["rank"], load(exact)))
        ways.append((export_name(about), about["rank"], load(exported)))
        if run.refit.finished:
            ways.append(("refit", rank, load(run, "refit")))
        answered = [(name, rank, *answer(make(), labelled.rows.texts)) for name, rank, make in ways]
    return compare([(name, rank, y_pred, seconds) for name, rank, y_pred, seconds in answered], labelled)


def export_name(about: dict[str, Any]) -> str:
    """What an export is called in tables; `about` is its `export.json`."""
    if about["kind"] == "merged":
        return "merged"
    return "exact mean" if about["compression"] is None else "compressed mean"


def answer(classifier: Classifier, texts: Sequence[str]) -> tuple[np.ndarray, float]:
    """Decisions, and the seconds that they took; the base is loaded before."""
    classifier.predict(texts[0])
    started = time.perf_counter()
    y_pred = classifier.predict(texts)
    return y_pred, time.perf_counter() - started


def compare(answered: Sequence[tuple[str, int | None, np.ndarray, float]], labelled: Labelled) -> list[Scored]:
    """Score (name, rank, decisions, seconds) of each way, the first of which the others are compared with."""
    y_true, groups = labelled.y_true, labelled.rows.groups
    first = answered[0][2]
    return [
        Scored(
            model=name,
            rank=rank,
            macro_f1=bootstrap_macro_f1(y_true, y_pred, groups),
            difference=bootstrap_difference(y_true, y_pred, first, groups),
            seconds=round(seconds, 2),
            rows_per_second=round(len(y_true) / seconds, 1),
        )
        for name, rank, y_pred, seconds in answered
    ]
