"""The README.md of a run folder: a model card with Hugging Face's metadata, the score, and a snippet that loads a fold
without lora_cls."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

from lora_cls.files import write_bytes
from lora_cls.recipe import Recipe, Task
from lora_cls.report.sentences import KINDS, base_name, score_sentence
from lora_cls.runs import RunFolder, RunInfo, Scores
from lora_cls.text.prompts import head_prompt

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
POOLING = {
    "last_token": """index = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)  # the last real token
    pooled = hidden[torch.arange(len(hidden)), index].float()""",
    "cls": """index = mask.argmax(1)  # the first real token
    pooled = hidden[torch.arange(len(hidden)), index].float()""",
    "mean": """weights = mask.unsqueeze(-1).float()
    pooled = (hidden.float() * weights).sum(1) / weights.sum(1)""",
}

READ_HEAD_TAIL = """    if len(ids) > room:
        ids = ids[: room - room // 2] + ids[len(ids) - room // 2 :]
    return before + ids + after or [tokenizer.pad_token_id]"""
READ_CHUNKS = """    if len(ids) <= room:
        return [before + ids + after or [tokenizer.pad_token_id]]
    n = -(-(len(ids) - stride) // (room - stride))
    cuts = [i * (len(ids) - stride) // n for i in range(n + 1)]
    chunks = [before + ids[i : j + stride] + after for i, j in zip(cuts, cuts[1:])]
"""
READ_SOME = """    if n > {n}:
        chunks = [chunks[i] for i in torch.linspace(0, n - 1, {n}, dtype=torch.float64).round().int().tolist()]
"""
COMBINE = {
    "mean_logit": "piece_logits(read(text)).mean(0)",
    "max": "piece_logits(read(text)).amax(0)",
    "mean_proba": "(piece_logits(read(text)) - log_w).sigmoid().mean(0).logit() + log_w",
}
COMBINE_CLASSES = {
    "mean_logit": COMBINE["mean_logit"],
    "max": "(piece_logits(read(text)) - log_w).softmax(-1).amax(0).log() + log_w",
    "mean_proba": "(piece_logits(read(text)) - log_w).softmax(-1).mean(0).log() + log_w",
}


def write_card(run: RunFolder, metrics: Scores) -> None:
    """Write `README.md` into the run folder."""
    write_bytes(run.path / "README.md", card(run, metrics).encode())


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
    binary = metrics.task == "binary"
    named = {"macro_f1": ("f1", "F1 of the positive class" if binary else "Macro-F1")}
    if metrics.task == "single_label":
        named["accuracy"] = ("accuracy", "Accuracy")
    elif not binary:
        named["micro_f1"] = ("f1", "Micro-F1")
    named["macro_roc_auc"] = ("roc_auc", "ROC-AUC" if binary else "Mean ROC-AUC of the labels")
    results = [
        EvalResult(
            task_type="text-classification",
            dataset_type=data,
            dataset_name=data,
            dataset_split="train, out of fold",
            metric_type=kind,
            metric_name=f"{name} (out of fold, {how})",
            metric_value=round(getattr(scores, key), 6),
            verified=False,
        )
        for key, (kind, name) in named.items()
        if getattr(scores, key) is not None
    ]
    tags = ["lora_cls", (metrics.task or "multi_label").replace("_", "-")]
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
        metrics=list(dict.fromkeys(kind for kind, _ in named.values())),
        model_name=run.path.resolve().name,
        eval_results=results,
    )


def _body(run: RunFolder, metrics: Scores) -> str:
    recipe, info = run.recipe, run.info
    lines = [
        f"# {run.path.name}",
        "",
        f"{KINDS[recipe.task or 'multi_label']} text classifier on {base_name(recipe)}, made with lora_cls. "
        f"{'Classes' if recipe.task == 'single_label' else 'Labels'}: {', '.join(run.label_names)}.",
        "",
        score_sentence(metrics),
        "",
        "| label | support | shipped threshold | precision | recall | F1 | ROC-AUC |",
        "|---|---|---|---|---|---|---|",
    ]
    scores = metrics.cross_fitted
    for row in scores.per_label:
        values = (row.threshold, row.precision, row.recall, row.f1, row.roc_auc)
        cells = " | ".join("" if value is None else f"{value:.3f}" for value in values)
        lines.append(f"| {row.label} | {row.support} | {cells} |")
    lines += ["", metrics.note, ""]
    if recipe.backbone is not None:
        lines += [
            "## Use one fold without lora_cls",
            "",
            _what_it_gives(recipe, _first_fold(run)),
            "",
            "```python",
            snippet(recipe, info, run.label_names, _first_fold(run)),
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
        'print(classifier.predict_labels(["a text"]))',
        "```",
        "",
    ]
    return "\n".join(lines)


def _probabilities(task: Task | None) -> str:
    if task == "single_label":
        return (
            "probabilities are `softmax(logits - log(pos_weight))` over the classes, and a text's class is the one "
            "with the greatest probability / threshold"
        )
    return "a probability is `sigmoid(logit - log(pos_weight))`, and a label is positive at its threshold"


def _what_it_gives(recipe: Recipe, fold: str) -> str:
    if recipe.head.kind == "generate":
        return (
            f"Run this in the run folder. It writes the labels of a text as the model of {fold} does. Probabilities, "
            "and decisions at the thresholds in `thresholds.json`, come from the tokens' probabilities along the "
            "answer: see below."
        )
    return (
        f"Run this in the run folder. It gives the logits of {fold}; {_probabilities(recipe.task)} "
        f"(`pos_weight` is in `{fold}/fold.json`, thresholds are in `thresholds.json`)."
    )


def _first_fold(run: RunFolder) -> str:
    return run.fold(run.finished_folds[0]).path.name


def snippet(recipe: Recipe, info: RunInfo, label_names: Sequence[str], fold: str) -> str:
    """Python that loads one fold with transformers and PEFT only, and defines `logits(texts)`; or `answer(text)` where
    the model writes its labels."""
    assert recipe.backbone is not None
    writes = recipe.head.kind == "generate"
    auto = "AutoModelForCausalLM" if writes else "AutoModel"
    choices = info.choices
    dtype = choices["dtype"]
    path = info.backbone_path or recipe.backbone.name_or_path
    options = [
        f"dtype=torch.{dtype if recipe.lora else choices.get('merged_dtype', 'float32')}",
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
        imports.append(f"from transformers import {auto}, AutoTokenizer, BitsAndBytesConfig")
        given = (
            "load_in_8bit=True"
            if quantization.load_in_8bit
            else f'load_in_4bit=True, bnb_4bit_quant_type="{quantization.bnb_4bit_quant_type}", '
            f"bnb_4bit_use_double_quant={quantization.bnb_4bit_use_double_quant}, bnb_4bit_compute_dtype=torch.{dtype}"
        )
        options.append(f"quantization_config=BitsAndBytesConfig({given})")
    else:
        imports.append(f"from transformers import {auto}, AutoTokenizer")
    head = (
        f"base.score = torch.nn.Linear(base.config.get_text_config().hidden_size, {len(label_names)}).to(base.device)"
    )
    if recipe.lora:  # a fully fine-tuned model was saved with as many layers as it has
        options += [f"{name}={value!r}" for name, value in choices.get("depth", {}).items()]
        imports.append("from peft import PeftModel")
        load = [
            f"base = {auto}.from_pretrained({path!r}, {', '.join(options)})",
            *([] if writes else [head]),
            f'model = PeftModel.from_pretrained(base, "{fold}/adapter").eval().base_model.model',
        ]
        if quantization and quantization.load_in_4bit:
            load.insert(1, "for module in base.modules():  # bitsandbytes on a CPU: compute as in training")
            load.insert(2, "    module.support_avx512bf16_for_cpu = False")
    else:
        load = [f'base = {auto}.from_pretrained("{fold}/model", {", ".join(options)})']
        if not writes:
            imports.append("from safetensors.torch import load_file")
            load += [
                head,
                f'weights = load_file("{fold}/model/head.safetensors")',
                'base.score.load_state_dict({key.removeprefix("score."): value for key, value in weights.items()})',
            ]
        load.append("model = base.eval()")
    autocast = (
        f"torch.autocast(base.device.type, dtype=torch.{dtype}, enabled={recipe.lora is None and dtype != 'float32'})"
    )
    if writes:
        chat, n_tokens = choices["chat"], choices["max_new_tokens"]
        before = chat["before"].rstrip(" ")  # spaces before the text are read with it
        return f"""{chr(10).join(imports)}

tokenizer = AutoTokenizer.from_pretrained({path!r}{tokenizer_options})
{chr(10).join(load)}
model.generation_config = type(model.generation_config)()  # a model's own may sample
before, lead = {before!r}, {chat["before"][len(before) :]!r}
after = {chat["after"]!r}
end = [tokenizer.convert_tokens_to_ids({chat["end"]!r}), tokenizer.eos_token_id]


def ids(text, **options):
    return tokenizer(text, add_special_tokens=False, verbose=False, **options)["input_ids"] if text else []


@torch.no_grad()
def answer(text):
    room = {recipe.data.max_length - n_tokens} - len(ids(before)) - len(ids(after))
    prompt = ids(before) + ids(lead + text, split_special_tokens=True)[:room] + ids(after)
    batch = torch.tensor([prompt], device=base.device)
    mask, options = torch.ones_like(batch), dict(max_new_tokens={n_tokens}, eos_token_id=end, pad_token_id=end[0])
    with {autocast}:
        written = model.generate(input_ids=batch, attention_mask=mask, do_sample=False, **options)
    return tokenizer.decode(written[0, len(prompt) :], skip_special_tokens=True)


print(answer("a text"))"""
    masks = "attention_mask=mask"
    if choices.get("global_attention"):  # on the first token; padding stands on the right
        masks += ", global_attention_mask=(torch.arange(mask.shape[1], device=mask.device) == 0).long() * mask"
    answers = "piece_logits([read(text) for text in texts])"
    if recipe.data.long_text == "chunk":
        combine = (COMBINE_CLASSES if recipe.task == "single_label" else COMBINE)[recipe.data.chunk_combine]
        answers = f"torch.stack([{combine} for text in texts])"
        if "log_w" in combine:
            imports.insert(0, "import json\n")
            load.append(f'log_w = torch.tensor(json.load(open("{fold}/fold.json"))["pos_weight"]).log()')
    return f"""{chr(10).join(imports)}

tokenizer = AutoTokenizer.from_pretrained({path!r}{tokenizer_options})
tokenizer.padding_side = "right"
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
{chr(10).join(load)}


{_reading(recipe, label_names)}


@torch.no_grad()
def piece_logits(ids):
    batch = tokenizer.pad({{"input_ids": ids}}, return_tensors="pt").to(base.device)
    mask = batch["attention_mask"]
    with {autocast}:
        hidden = model(input_ids=batch["input_ids"], {masks}).last_hidden_state
    {POOLING[recipe.head.pooling]}
    return model.score(pooled)


def logits(texts):
    return {answers}


print(logits(["a text", "another, longer text"]))"""


def _reading(recipe: Recipe, label_names: Sequence[str]) -> str:
    """Code of `read(text)`, the ids that `lora_cls.text.tokens.encode` makes of a text; for chunks a list of them."""
    data = recipe.data
    prompt = head_prompt(recipe.head, label_names)
    before, _, after = (prompt or "{text}").partition("{text}")
    stripped = before.rstrip(" ")
    text = f"{before[len(stripped) :]!r} + text" if stripped != before else "text"
    start_of_prompt = f" + plain({stripped!r})" if stripped else ""
    ends = [f"plain({after!r})"] if after else []
    if prompt is None or recipe.head.kind == "linear":
        ends.append("whole[start + len(a) :]")
    code = f"""def plain(text):
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


whole, a = tokenizer("a")["input_ids"], plain("a")
start = next(i for i in range(len(whole)) if whole[i : i + len(a)] == a)
before, after = whole[:start]{start_of_prompt}, {" + ".join(ends) or "[]"}
room = {data.max_length} - len(before) - len(after)
"""
    if data.long_text == "chunk":
        code += f"stride = {data.chunk_stride}\n"
    code += f"""

def read(text):
    ids = plain({text})
"""
    if data.long_text == "truncate":
        return code + "    return before + ids[:room] + after or [tokenizer.pad_token_id]"
    if data.long_text == "head_tail":
        return code + READ_HEAD_TAIL
    return code + READ_CHUNKS + (READ_SOME.format(n=data.max_chunks) if data.max_chunks else "") + "    return chunks"
