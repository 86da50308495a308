"""The README.md of a run and of an export: a model card with Hugging Face's metadata, the score, and a snippet that
loads a model without lora_cls."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

from lora_cls.evaluation import task_of
from lora_cls.files import write_bytes
from lora_cls.recipe import Recipe
from lora_cls.report.sentences import (
    base_name,
    parity_sentence,
    score_sentence,
    settings_rows,
    share_of_test,
    short_name,
    start_sentence,
)
from lora_cls.report.templating import fill
from lora_cls.runs import RunFolder, RunInfo, Scores
from lora_cls.runs.records import Adaptation, ExportInfo, PlainDecision
from lora_cls.training.heads import head_type

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

HUB_METRICS = {
    "macro_f1": "f1", "micro_f1": "f1", "samples_jaccard": "jaccard", "f_beta": "f_beta", "accuracy": "accuracy",
    "mcc": "matthews_correlation", "roc_auc": "roc_auc", "average_precision": "average_precision",
    "log_loss": "log_loss", "macro_roc_auc": "roc_auc",
}  # fmt: skip
"""What the hub calls the scores that it knows."""
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as the highest rank of an adapter."""
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
BEFORE_SHARING = "## Before you share this folder"
"""The heading of a card's last part."""


def write_card(run: RunFolder, metrics: Scores) -> None:
    """Write `README.md` into the run folder."""
    write_bytes(run.files.card, card(run, metrics).encode())


def card(run: RunFolder, metrics: Scores) -> str:
    """The text of a run's README: metadata for the hub, and what a person reads."""
    from huggingface_hub import ModelCard

    header = card_data(run, metrics).to_yaml(line_break="\n")
    return str(ModelCard(f"---\n{header}\n---\n\n{_body(run, metrics)}"))


def card_data(run: RunFolder, metrics: Scores) -> ModelCardData:
    """The card's metadata: base model, library, tags, and the out-of-fold scores.

    A base that lies in a folder, a file or a Python package is not named: the hub takes names of its own models only.
    """
    from huggingface_hub import EvalResult, ModelCardData

    recipe, info = run.recipe, run.info
    path = str(info.data.paths["train"])
    data = PurePath(path.replace("\\", "/")).stem
    scores = metrics.cross_fitted
    how = "cross-fitted, optimistic" if metrics.optimistic else "cross-fitted"
    task = task_of(metrics.task, metric=metrics.metric, metric_beta=metrics.metric_beta)
    told = {"macro_f1": task.headline, **task.in_sentence, **task.beside, "macro_roc_auc": task.roc_auc}
    values = {key: getattr(scores, key) for key in told if key in HUB_METRICS}
    if metrics.metric != "macro_f1":  # what the run is judged by comes first
        told = {metrics.metric: task.metric_name} | told
        values = {metrics.metric: scores.metric} | values
    results = [
        EvalResult(
            task_type="text-classification",
            dataset_type=data,
            dataset_name=data,
            dataset_split="train, out of fold",
            metric_type=HUB_METRICS[key],
            metric_name=f"{told[key]} (out of fold, {how})",
            metric_value=round(value, 6),
            verified=False,
        )
        for key, value in values.items()
        if value is not None
    ]
    tags = ["lora_cls", task.name.replace("_", "-")]
    adapter = recipe.backbone is not None and recipe.lora is not None
    if adapter:
        tags += ["lora", "qlora"] if recipe.quantization else ["lora"]
    library = "peft" if adapter else "transformers" if recipe.backbone else "sklearn" if recipe.tfidf else None
    if recipe.blend is not None:
        tags.append("ensemble")
    base = recipe.backbone.name_or_path if recipe.backbone else None
    return ModelCardData(
        base_model=base if base and base == info.backbone_path and HUB_ID.fullmatch(base) else None,
        library_name=library,
        pipeline_tag="text-classification",
        tags=tags,
        metrics=list(dict.fromkeys(HUB_METRICS[key] for key in values)),
        model_name=run.name,
        eval_results=results,
    )


def _body(run: RunFolder, metrics: Scores) -> str:
    recipe, fold = run.recipe, run.fold(run.finished_folds[0]).path.name
    return fill(
        "card.md.j2",
        name=run.name,
        kind=run.task().title,
        base=base_name(recipe),
        nouns=run.task().nouns,
        label_names=run.label_names,
        score=score_sentence(metrics),
        per_label=metrics.cross_fitted.per_label,
        note=metrics.note,
        words=recipe.tfidf is not None,
        settings=settings_rows(recipe),
        start=start_sentence(run.info),
        test=share_of_test(run, metrics),
        fold=fold,
        writes=head_type(recipe.head.kind).with_output_layer,
        probabilities=task_of(recipe.task).meaning,
        snippet=None if recipe.backbone is None else snippet(recipe, run.info, run.label_names, fold),
        columns=_several_columns(run.info),
        adapted=None if (noted := run.info.choices.get("adapted")) is None else Adaptation(**noted).sentence,
    )


def _several_columns(info: RunInfo) -> list[str] | None:
    """The text columns of a run, where it has several: its texts are then rows of a table."""
    names = info.data.text_columns or []
    return names if len(names) > 1 else None


def export_card(run: RunFolder, exported: RunFolder, about: ExportInfo) -> str:
    """The text of an export's README; `about` is its `export.json`."""
    recipe = exported.recipe
    assert recipe.backbone is not None
    no_score, _, why = about.note.partition(":")
    data = recipe.data
    return fill(
        "export.md.j2" if about.onnx is None else "export_onnx.md.j2",
        about=about,
        mapped=about.score_map,
        scores=about.scores,
        scored=about.scored,
        run=run.name,
        base=short_name(recipe.backbone.name_or_path),
        full=run.recipe.lora is None,
        quantized=run.recipe.quantization is not None,
        label_names=run.label_names,
        no_score=no_score,
        why=why,
        probabilities=task_of(recipe.task).meaning,
        meaning="softmax gives probabilities" if run.task().exclusive else "sigmoid gives probabilities",
        prepared=[f"`data.{name}`" for name in ("text_template", "unescape") if getattr(data, name)],
        snippet=snippet(recipe, exported.info, run.label_names, ".") if about.onnx is None else onnx_snippet(exported),
        columns=_several_columns(exported.info),
    )


def plain_card(
    run: RunFolder,
    about: ExportInfo,
    decision: PlainDecision,
    *,
    has_bias: bool,
    no_frame: bool,
    pad_token: str,
    pad_token_id: int,
) -> str:
    """The text of the README of an export for transformers; `about` and `decision` are its files.

    Parameters
    ----------
    has_bias : whether its class has a bias, so that its scores are the run's probabilities
    no_frame : whether a text stands without special tokens
    """
    recipe, exclusive = run.recipe, run.task().exclusive
    assert recipe.backbone is not None
    no_score, _, why = about.note.partition(":")
    at_least_one = decision.at_least_one is not None
    return fill(
        "plain.md.j2",
        about=about,
        scores=about.scores,
        scored=about.scored,
        run=run.name,
        base=short_name(recipe.backbone.name_or_path),
        full=recipe.lora is None,
        quantized=recipe.quantization is not None,
        label_names=run.label_names,
        no_score=no_score,
        why=why,
        snippet=fill("snippet_plain.py.j2", exclusive=exclusive, at_least_one=at_least_one),
        exclusive=exclusive,
        at_least_one=at_least_one,
        max_length=recipe.data.max_length,
        columns=_several_columns(run.info),
        text_template=recipe.data.text_template,
        prompt=recipe.head.prompt or recipe.head.default_prompt,
        has_bias=has_bias,
        no_frame=no_frame,
        pad_token=pad_token,
        pad_token_id=pad_token_id,
        parity=[parity_sentence(parity) for parity in about.parity or []],
        vllm_rank=next((rank for rank in VLLM_RANKS if rank >= (about.rank or 0)), None),
    )


def onnx_snippet(exported: RunFolder) -> str:
    """Python that opens an ONNX export from within its folder, with numpy, onnxruntime and tokenizers only.

    It defines `probabilities(texts)` and `decide(texts)`.
    """
    return fill(
        "snippet_onnx.py.j2",
        data=exported.recipe.data,
        classes=exported.task().exclusive,
        at_least_one=exported.decision().prediction.at_least_one,
    )


def snippet(recipe: Recipe, info: RunInfo, label_names: Sequence[str], folder: str) -> str:
    """Python that opens the model in `folder`, a path from where it runs, with transformers and PEFT only.

    It defines `logits(texts)`; or `answer(text)` where the model writes its labels.
    """
    assert recipe.backbone is not None
    choices, head = info.choices, head_type(recipe.head.kind)
    before, after = head.around(recipe, label_names, choices)
    start = before.rstrip(" ")  # spaces before the text are read with it
    # a model of which all weights were trained was saved whole
    adapted = choices["adapted"]["folder"] if recipe.lora and "adapted" in choices else None
    return fill(
        head.snippet_template,
        recipe=recipe,
        head=head,
        choices=choices,
        label_names=label_names,
        folder=folder,
        path=adapted or info.backbone_path or recipe.backbone.name_or_path,
        before=start,
        lead=before[len(start) :],
        after=after,
        autocast=recipe.lora is None and choices["dtype"] != "float32",
    )
