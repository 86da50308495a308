"""`export --to transformers`: a folder that transformers opens by itself, compared with our own answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lora_cls.commands.predict import Classifier
from lora_cls.errors import RunError, shorten
from lora_cls.files import write_bytes, write_json
from lora_cls.report.card import plain_card
from lora_cls.runs import RunFolder
from lora_cls.runs.records import ExportInfo, Parity
from lora_cls.runs.sums import sums

EXPORT, THRESHOLDS, CARD = "export.json", "thresholds.json", "README.md"
MOST_DIFFERENT = 1e-4
"""Largest difference between a probability of ours and of the exported model, both in fp32, that is no mistake."""
MOST_TEXTS = 200
N_MADE_UP = 24


def is_plain(folder: Path) -> bool:
    """Whether `write_plain` wrote a folder, and nothing else lies in it.

    Raises
    ------
    RunError
        If something else does.
    """
    if folder.is_symlink() or not (folder / EXPORT).is_file() or (folder / "recipe.yaml").exists():
        return False
    about = ExportInfo.read(folder / EXPORT)
    if about.files is None:
        return False
    ours = {EXPORT, *about.files}
    found = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir()}
    if foreign := sorted(found - ours):
        raise RunError(
            f"{folder} also holds {shorten(foreign, 5)}: not only an export lies there, and nothing is overwritten. "
            "Move that away, or choose another folder with --out."
        )
    return True


def refuse_unfit(run: RunFolder, backbone: str | None) -> None:
    """Refuse a run that no class of transformers can hold, before anything is made.

    Raises
    ------
    RunError
        Says what to use instead.
    """
    from lora_cls.modeling.adapted import run_source
    from lora_cls.modeling.loading import load_config
    from lora_cls.modeling.plain_classifier import INSTEAD, refuse_other_head

    recipe = run.recipe
    assert recipe.backbone is not None
    if recipe.head.kind == "label_names":
        raise RunError(f"head.kind: label_names reads each label at its own name, and pipeline does not. {INSTEAD}")
    if recipe.head.prompt or recipe.head.default_prompt:
        raise RunError(f"{run.path} reads texts within a prompt, and pipeline reads them alone. {INSTEAD}")
    if recipe.data.long_text != "truncate":
        raise RunError(
            f"{run.path} reads long texts by data.long_text: {recipe.data.long_text}, and pipeline reads their start "
            f"alone. {INSTEAD}"
        )
    if recipe.backbone.trust_remote_code:
        raise RunError(f"{recipe.backbone.name_or_path} needs Python code that comes with it. {INSTEAD}")
    source = run_source(recipe.backbone, run.info.choices, run.base_place(backbone))
    refuse_other_head(load_config(recipe.backbone, source), recipe.head.pooling, source.name)


def write_plain(run: RunFolder, merged: RunFolder, folder: Path, about: ExportInfo, texts: Sequence[str]) -> None:
    """Write the folder from a merged export of the run; `export.json` says how near its answers are.

    A class without a bias gives logits that lack ours, and none knows the weights of the loss: thresholds are shifted
    by both instead.

    Parameters
    ----------
    merged : not for use afterwards: its files say that it computes in fp32
    folder : exists and is empty
    about : what `export.json` is to say beside that
    texts : to compare answers on, beside some that are made up

    Raises
    ------
    RunError
        If the folder answers otherwise than the merged export.
    """
    from lora_cls.modeling.plain_classifier import write_plain_model

    recipe, names, task = run.recipe, run.label_names, run.task()
    stored = str(merged.info.choices["merged_dtype"])
    tokenizer, bias = write_plain_model(
        merged.path / "model", folder, recipe.data.max_length, names, exclusive=task.exclusive
    )
    offset = bias - np.log(np.array(about.pos_weight))
    ours = _in_fp32(merged)
    thresholds = task.link.probabilities(task.link.logits(ours.thresholds), np.exp(offset))
    parity = _compare(ours, folder, tokenizer, texts, thresholds, offset, list(dict.fromkeys(["float32", stored])))
    write_json(
        folder / THRESHOLDS,
        {
            "task": task.name,
            "thresholds": dict(zip(names, thresholds.tolist(), strict=True)),
            "offsets": dict(zip(names, offset.tolist(), strict=True)),
        },
    )
    about = about.model_copy(update={"parity": parity})
    write_bytes(folder / CARD, plain_card(run, about).encode())
    about.model_copy(update={"files": sums(folder, [folder])}).write(folder / EXPORT)


def _in_fp32(merged: RunFolder) -> Classifier:
    """The models of an export, to be computed in fp32 whatever it was merged in."""
    choices: dict[str, Any] = merged.info.choices | {"dtype": "float32", "merged_dtype": "float32"}
    merged.info.model_copy(update={"choices": choices}).write(merged.files.info)
    return Classifier.load(RunFolder(merged.path))


def _compare(
    ours: Classifier,
    folder: Path,
    tokenizer: Any,
    texts: Sequence[str],
    thresholds: np.ndarray,
    offset: np.ndarray,
    dtypes: Sequence[str],
) -> list[Parity]:
    """What plain `pipeline` says of texts, beside our own answers; raises RunError where it says something else."""
    from lora_cls.modeling.plain_classifier import pipeline_scores
    from lora_cls.modeling.precision import DTYPES

    task, names = ours.run.task(), ours.label_names
    read = [*texts[:MOST_TEXTS], *_made_up(tokenizer)]
    y_score, y_pred = ours.answer(read)
    found: list[Parity] = []
    for dtype in dtypes:
        scores = pipeline_scores(folder, read, names, DTYPES[dtype])
        theirs = task.link.probabilities(task.link.logits(scores), np.exp(-offset))
        difference = float(np.abs(theirs - y_score).max())
        decisions = int((task.apply(scores, thresholds) != y_pred).sum())
        found.append(Parity(dtype=dtype, texts=len(read), difference=difference, decisions=decisions))
        if not found[0].difference <= MOST_DIFFERENT:
            raise RunError(
                f"{folder.name} would answer otherwise than the model that it is made of: probabilities differ by "
                f"{difference:.2g}, and {MOST_DIFFERENT:g} is the most. Export an adapter instead, without --to."
            )
    return found


def _made_up(tokenizer: Any) -> list[str]:
    """Texts of random tokens, the same for the same tokenizer, some longer than the model reads."""
    rng = np.random.default_rng(0)
    longest = min(tokenizer.model_max_length, 500) * 1.2
    lengths = np.linspace(1, longest, N_MADE_UP).astype(int)
    made = [tokenizer.decode(rng.integers(len(tokenizer), size=n), skip_special_tokens=True) for n in lengths]
    return [text for text in made if tokenizer(text, verbose=False)["input_ids"]]
