"""The README.md of a run folder: the score, and a snippet that loads a fold without lora_cls."""

from __future__ import annotations

from typing import Any

from lora_cls.recipe import Recipe
from lora_cls.runs import RunFolder, write_bytes

POOLING = {
    "last_token": """index = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)  # the last real token
    pooled = hidden[torch.arange(len(hidden)), index].float()""",
    "cls": """index = mask.argmax(1)  # the first real token
    pooled = hidden[torch.arange(len(hidden)), index].float()""",
    "mean": """weights = mask.unsqueeze(-1).float()
    pooled = (hidden.float() * weights).sum(1) / weights.sum(1)""",
}


def write_card(run: RunFolder, metrics: dict[str, Any]) -> None:
    """Write `README.md` into the run folder."""
    write_bytes(run.path / "README.md", card(run, metrics).encode())


def card(run: RunFolder, metrics: dict[str, Any]) -> str:
    """The text of a run's README."""
    recipe, info = run.recipe, run.info
    base = recipe.backbone.name_or_path if recipe.backbone else "TF-IDF and logistic regression"
    lines = [
        f"# {run.path.name}",
        "",
        f"Multi-label text classifier on {base}, made with lora_cls. Labels: {', '.join(run.label_names)}.",
        "",
        score_sentence(metrics),
        "",
        "| label | support | shipped threshold | precision | recall | F1 | ROC-AUC |",
        "|---|---|---|---|---|---|---|",
    ]
    scores = metrics["cross_fitted"]
    for row in scores["per_label"]:
        values = (row["threshold"], row["precision"], row["recall"], row["f1"], row["roc_auc"])
        cells = " | ".join("" if value is None else f"{value:.3f}" for value in values)
        lines.append(f"| {row['label']} | {row['support']} | {cells} |")
    lines += ["", metrics["note"], ""]
    if recipe.backbone is not None:
        lines += [
            "## Use one fold without lora_cls",
            "",
            f"Run this in the run folder. It gives the logits of {_first_fold(run)}; a probability is "
            f"`sigmoid(logit - log(pos_weight))` with `pos_weight` from `{_first_fold(run)}/fold.json`, and a label is "
            "positive at its threshold in `thresholds.json`.",
            "",
            "```python",
            snippet(recipe, info, len(run.label_names), _first_fold(run)),
            "```",
            "",
        ]
    lines += [
        "## Use all folds",
        "",
        "```python",
        "from lora_cls import Classifier",
        "",
        'classifier = Classifier.load(".")',
        'print(classifier.predict_proba(["a text"]))',
        "```",
        "",
    ]
    return "\n".join(lines)


def score_sentence(metrics: dict[str, Any]) -> str:
    """The score in one sentence, with its interval and everything that qualifies it."""
    scores = metrics["cross_fitted"]
    how = "thresholds tuned on the other folds"
    if scores["over"] == "parts":
        how = f"thresholds for each of {scores['n_parts']} parts of them tuned on the other parts"
    low, high = scores["macro_f1_interval"]["low"], scores["macro_f1_interval"]["high"]
    rows = metrics["rows_scored"]
    where = f"out of fold on {rows} rows" if metrics["n_splits"] > 1 else f"on {rows} held-out rows"
    sentence = (
        f"Macro-F1 {scores['macro_f1']:.4f} (95 % interval {low:.4f} to {high:.4f}) {where}, "
        f"{how}; untuned {metrics['untuned']['macro_f1']:.4f}."
    )
    finished, n_splits = len(metrics["folds_finished"]), metrics["n_splits"]
    if finished < n_splits:
        sentence += f" Partial: {finished} of {n_splits} folds."
    if metrics["epochs_pending"]:
        sentence += " Of the last epoch so far: epochs are chosen when all folds are done."
    if metrics["optimistic"]:
        sentence += " OPTIMISTIC: the epoch was chosen on the rows that are scored (train.select: scored_fold)."
    return sentence


def _first_fold(run: RunFolder) -> str:
    return run.fold(run.finished_folds[0]).path.name


def snippet(recipe: Recipe, info: dict[str, Any], n_labels: int, fold: str) -> str:
    """Python that loads one fold with transformers and PEFT only, and defines `logits(texts)`."""
    assert recipe.backbone is not None
    choices = info["choices"]
    dtype = choices["dtype"]
    path = info.get("backbone_path") or recipe.backbone.name_or_path
    options = [
        f"dtype=torch.{dtype if recipe.lora else 'float32'}",
        f'attn_implementation="{choices["attn_implementation"]}"',
    ]
    tokenizer_options = ""
    if recipe.backbone.revision:
        options.append(f'revision="{recipe.backbone.revision}"')
        tokenizer_options += f', revision="{recipe.backbone.revision}"'
    if recipe.backbone.trust_remote_code:
        options.append("trust_remote_code=True")
        tokenizer_options += ", trust_remote_code=True"
    imports = ["import torch"]
    quantization = recipe.quantization
    if quantization:
        imports.append("from transformers import AutoModel, AutoTokenizer, BitsAndBytesConfig")
        given = (
            "load_in_8bit=True"
            if quantization.load_in_8bit
            else f'load_in_4bit=True, bnb_4bit_quant_type="{quantization.bnb_4bit_quant_type}", '
            f"bnb_4bit_use_double_quant={quantization.bnb_4bit_use_double_quant}, bnb_4bit_compute_dtype=torch.{dtype}"
        )
        options.append(f"quantization_config=BitsAndBytesConfig({given})")
    else:
        imports.append("from transformers import AutoModel, AutoTokenizer")
    head = f"base.score = torch.nn.Linear(base.config.get_text_config().hidden_size, {n_labels}).to(base.device)"
    if recipe.lora:
        imports.append("from peft import PeftModel")
        load = [
            f"base = AutoModel.from_pretrained({path!r}, {', '.join(options)})",
            head,
            f'model = PeftModel.from_pretrained(base, "{fold}/adapter").eval().base_model.model',
        ]
        if quantization and quantization.load_in_4bit:
            load.insert(1, "for module in base.modules():  # bitsandbytes on a CPU: compute as in training")
            load.insert(2, "    module.support_avx512bf16_for_cpu = False")
    else:
        imports.append("from safetensors.torch import load_file")
        load = [
            f'base = AutoModel.from_pretrained("{fold}/model", {", ".join(options)})',
            head,
            f'weights = load_file("{fold}/model/head.safetensors")',
            'base.score.load_state_dict({key.removeprefix("score."): value for key, value in weights.items()})',
            "model = base.eval()",
        ]
    autocast = f"torch.autocast(base.device.type, dtype=torch.{dtype}, enabled={dtype != 'float32'})"
    return f"""{chr(10).join(imports)}

tokenizer = AutoTokenizer.from_pretrained({path!r}{tokenizer_options})
tokenizer.padding_side = "right"
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
{chr(10).join(load)}


@torch.no_grad()
def logits(texts):
    batch = tokenizer(texts, padding=True, truncation=True, max_length={recipe.data.max_length}, return_tensors="pt")
    batch = batch.to(base.device)
    mask = batch["attention_mask"]
    with {autocast}:
        hidden = model(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
    {POOLING[recipe.head.pooling]}
    return model.score(pooled)


print(logits(["a text", "another, longer text"]))"""
