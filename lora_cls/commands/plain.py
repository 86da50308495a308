"""`export --to transformers`: a folder that transformers opens by itself, compared with our own answers.

It holds what `AutoModelForSequenceClassification` and `AutoTokenizer` read, `thresholds.json`, `export.json`, a README,
and, of LoRA on a base that others have, `adapter/`, the same update as PEFT and vLLM take it of that class. Nothing in
it names a place on the machine that made it.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from lora_cls.commands.predict import Classifier
from lora_cls.data import Dataset
from lora_cls.errors import RunError, shorten
from lora_cls.files import write_bytes
from lora_cls.recipe import Recipe
from lora_cls.report.card import plain_card
from lora_cls.runs import RunFolder
from lora_cls.runs.records import ExportInfo, Parity, PlainDecision
from lora_cls.runs.sums import sums
from lora_cls.text.tokens import Frame
from lora_cls.training.heads import head_type

EXPORT, THRESHOLDS, CARD, ADAPTER = "export.json", "thresholds.json", "README.md", "adapter"
MOST_DIFFERENT = 1e-4
"""Largest difference between a probability of ours and of the exported model, both in fp32, that is no mistake."""
MOST_TEXTS, N_MADE_UP = 200, 24
"""Texts that answers are compared on: of those given, and made up."""


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
    found = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir()}
    if foreign := sorted(found - {EXPORT, *about.files}):
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
    reason = _unread(run.recipe) or _unheld(run, backbone)
    if reason is not None:
        raise RunError(f"{reason} {_instead(run.recipe)}")


def _unread(recipe: Recipe) -> str | None:
    """Why `pipeline` cannot read texts as a run does, whatever its base."""
    assert recipe.backbone is not None
    if recipe.head.kind == "label_names":
        return "head.kind: label_names reads each label at its own name, and no class of transformers does."
    if recipe.data.long_text != "truncate":
        return (
            f"data.long_text: {recipe.data.long_text} reads more of a long text than its start, and pipeline does not."
        )
    if recipe.backbone.trust_remote_code:
        return f"{recipe.backbone.name_or_path} needs Python code that comes with it, which a plain model has not."
    return None


def _unheld(run: RunFolder, backbone: str | None) -> str | None:
    """Why the class for a run's base cannot hold its head, or its tokenizer its prompt."""
    from lora_cls.modeling.adapted import run_source
    from lora_cls.modeling.loading import load_config, load_tokenizer
    from lora_cls.modeling.plain_classifier import plain_form, write_plain_tokenizer

    recipe, pooling = run.recipe, run.recipe.head.pooling
    assert recipe.backbone is not None
    source = run_source(recipe.backbone, run.info.choices, run.base_place(backbone))
    config = load_config(recipe.backbone, source)
    form = plain_form(config, source.name, len(run.label_names))
    if isinstance(form, str):
        return form
    if pooling not in form.pooling:
        reads = {"last_token": "the last token", "cls": "the first token", "mean": "the mean of all tokens"}
        return (
            f"{form.name} reads {' or '.join(reads[name] for name in form.pooling)}, and this run {reads[pooling]}: "
            f"trained with --set head.pooling={form.pooling[0]} it would fit."
        )
    tokenizer = load_tokenizer(recipe.backbone, source)
    with TemporaryDirectory(prefix="lora_cls-") as scratch:
        return write_plain_tokenizer(tokenizer, Path(scratch), _frame(run, tokenizer), recipe.data.max_length, config)


def _frame(run: RunFolder, tokenizer: Any) -> Frame:
    """What stands around the texts of a run."""
    return head_type(run.recipe.head.kind)(run.recipe, run.label_names, tokenizer, run.info.choices).frame


def _instead(recipe: Recipe) -> str:
    """What to export in place of a folder for transformers."""
    if recipe.lora is None:
        return "Export it with --to merged instead: its README.md has the code that opens it with transformers."
    return (
        "Export an adapter instead, without --to transformers: its README.md has the code that opens it with "
        "transformers and PEFT."
    )


def write_plain(run: RunFolder, merged: RunFolder, folder: Path, about: ExportInfo, texts: Sequence[str]) -> None:
    """Write the folder from a merged export of the run; `export.json` says how near its answers are.

    A class without a bias gives logits that lack ours, and none knows the weights of the loss: its thresholds are
    shifted by both. Of labels, sigmoid(logit(threshold) - offset); of classes the greatest score / threshold decides,
    and their thresholds are multiplied by exp(-offset).

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
    from transformers import AutoConfig

    from lora_cls.modeling.loading import load_tokenizer
    from lora_cls.modeling.plain_classifier import (
        PlainForm,
        plain_form,
        write_plain_adapter,
        write_plain_model,
        write_plain_tokenizer,
    )
    from lora_cls.modeling.source import Source

    recipe, names, task, model = run.recipe, run.label_names, run.task(), merged.path / "model"
    assert recipe.backbone is not None
    config = AutoConfig.from_pretrained(model)
    form = plain_form(config, run.name, len(names))
    assert isinstance(form, PlainForm)  # else `refuse_unfit` refused it
    tokenizer = load_tokenizer(recipe.backbone, Source(recipe.backbone.name_or_path, str(model)))
    frame = _frame(run, tokenizer)
    if reason := write_plain_tokenizer(tokenizer, folder, frame, recipe.data.max_length, config):
        raise RunError(f"{reason} {_instead(recipe)}")
    offset = write_plain_model(
        model, folder, form, names, np.log(np.array(about.pos_weight)), pooling=recipe.head.pooling,
        exclusive=task.exclusive, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    stored = str(merged.info.choices["merged_dtype"])
    decided = run.decision()
    own = [decided.shipped[name] for name in names]
    thresholds = task.link.probabilities(task.link.logits(own), np.exp(offset))
    decision = PlainDecision(
        task=task.name,
        thresholds=dict(zip(names, thresholds.tolist(), strict=True)),
        offsets=dict(zip(names, offset.tolist(), strict=True)),
    )
    if decided.prediction.at_least_one and not task.exclusive:
        decision = decision.model_copy(update={"at_least_one": dict(zip(names, own, strict=True))})
    asked = [text for text in texts if tokenizer(text, verbose=False)["input_ids"]][:MOST_TEXTS] + _made_up(tokenizer)
    parity = _compare(merged, folder, asked, decision, list(dict.fromkeys(["float32", stored])))
    if not parity[0].difference <= MOST_DIFFERENT:
        raise RunError(
            "transformers would answer otherwise than the run's mean model: probabilities differ by "
            f"{parity[0].difference:.2g}, and {MOST_DIFFERENT:g} is the most. {_instead(recipe)}"
        )
    decision.write(folder / THRESHOLDS)
    rank = None
    if _others_have_the_base(run):
        folds = [run.fold(number) for number in run.finished_folds]
        rank = write_plain_adapter([fold.weights(fold.adapter) for fold in folds], folder / ADAPTER, config)
    about = about.model_copy(update={"parity": parity, "rank": rank})
    card = plain_card(
        run,
        about,
        decision,
        has_bias=form.has_bias,
        no_frame=not len(frame),
        pad_token=tokenizer.pad_token,
        pad_token_id=tokenizer.pad_token_id,
    )
    write_bytes(folder / CARD, card.encode())
    about.model_copy(update={"files": sums(folder, [folder])}).write(folder / EXPORT)


def _others_have_the_base(run: RunFolder) -> bool:
    """Whether the adapters fit a base as it is published, whole and unchanged."""
    recipe = run.recipe
    assert recipe.backbone is not None
    changed = recipe.backbone.bidirectional or "depth" in run.info.choices or "adapted" in run.info.choices
    return recipe.lora is not None and not changed


def _compare(
    merged: RunFolder, folder: Path, texts: Sequence[str], decision: PlainDecision, dtypes: Sequence[str]
) -> list[Parity]:
    """What plain `pipeline` says of texts in each precision, beside what the merged export does in fp32."""
    from lora_cls.modeling.plain_classifier import pipeline_scores
    from lora_cls.modeling.precision import DTYPES

    choices: dict[str, Any] = merged.info.choices | {"dtype": "float32", "merged_dtype": "float32"}
    merged.info.model_copy(update={"choices": choices}).write(merged.files.info)
    names, task = merged.label_names, merged.task()
    rows = Dataset([str(i) for i in range(len(texts))], list(texts), None, names, np.arange(len(texts)))
    y_score, y_pred = Classifier.load(RunFolder(merged.path)).answer(rows)
    gc.collect()  # a model and its caches hold each other, and would lie beside the next
    offset = np.array([decision.offsets[name] for name in names])
    limits = [(decision.at_least_one or decision.thresholds)[name] for name in names]
    found: list[Parity] = []
    for dtype in dtypes:
        scores = pipeline_scores(folder, texts, names, DTYPES[dtype])
        theirs = task.link.probabilities(task.link.logits(scores), np.exp(-offset))
        one = decision.at_least_one is not None
        decided = task.apply(theirs if one else scores, limits, at_least_one=one)
        difference, others = float(np.abs(theirs - y_score).max()), int((decided != y_pred).sum())
        found.append(Parity(dtype=dtype, texts=len(texts), difference=difference, decisions=others))
    return found


def _made_up(tokenizer: Any) -> list[str]:
    """Texts of random tokens, the same for the same tokenizer, some longer than the model reads."""
    rng = np.random.default_rng(0)
    longest = min(tokenizer.model_max_length, 500) * 1.2
    lengths = np.linspace(1, longest, N_MADE_UP).astype(int)
    made = [tokenizer.decode(rng.integers(len(tokenizer), size=n), skip_special_tokens=True) for n in lengths]
    return [text for text in made if tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]
