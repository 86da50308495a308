"""Bases that cannot be used are refused when they are loaded, in one sentence that stays true when it is followed."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModel, AutoTokenizer

from lora_cls.commands.check import check
from lora_cls.data import load_train
from lora_cls.errors import BackboneError
from lora_cls.modeling.loading import load_tokenizer
from lora_cls.modeling.probe import probe_base
from lora_cls.modeling.source import Source
from lora_cls.recipe import Backbone, load_recipe
from lora_cls.training.factory import make_learner

SMALL = {
    "vocab_size": 400, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64,
}  # fmt: skip
GPT = {"vocab_size": 400, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
T5 = {"vocab_size": 400, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
LIMITS = {  # class, values, positions
    "Bert": (SMALL, 64), "Roberta": (SMALL, 62), "OpenAIGPT": (GPT, 64), "GPT2": (GPT, 64),
    "OPT": (SMALL | {"ffn_dim": 128, "word_embed_proj_dim": 64}, 64), "CTRL": (GPT | {"dff": 128}, 64),
    "Canine": ({key: value for key, value in SMALL.items() if key != "vocab_size"}, 64), "Yoso": (SMALL, 64),
    "Electra": (SMALL | {"embedding_size": 32}, 64), "MPNet": (SMALL, 62),
    "Longformer": (SMALL | {"attention_window": [16, 16]}, 62),
}  # fmt: skip
TEXT = "happy and delighted, a lovely day"


def tiny(name, values):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**values)
    config.use_cache = False
    return AutoModel.from_config(config).eval()


def probed(base, n_positions):
    return probe_base(base, Source("tiny", "tiny"), n_positions, 0)


@pytest.mark.parametrize("name", LIMITS)
def test_positions(name):
    """Whatever a model's table of positions is called and wherever it begins, the longest text that fits is named."""
    values, limit = LIMITS[name]
    base = tiny(name, values)
    for beyond in (limit + 1, limit + 2, limit + 5, 3 * limit):
        with pytest.raises(BackboneError, match=rf"data\.max_length is {beyond}, .* {limit} positions"):
            probed(base, beyond)
    if name != "Canine":  # which reads padding, too
        probed(base, limit)


@pytest.mark.parametrize("name", ["Llama", "Bloom", "Qwen2"])
def test_models_without_positions(name):
    """Rotary and relative models read texts longer than what they were trained on."""
    assert probed(tiny(name, SMALL | ({"num_key_value_heads": 2} if name != "Bloom" else {})), 200) is None


@pytest.mark.parametrize("name", ["T5", "UMT5", "MT5"])
def test_encoder_decoders_that_want_more_than_a_text(name):
    """Refused whatever `lora.target_modules` says, and the advice leads to no further error."""
    with pytest.raises(BackboneError, match=f"{name}Model cannot be used.* Take an encoder"):
        probed(tiny(name, T5), 32)


def test_padding_that_is_read():
    """FNet has no mask: refused. YOSO's sketches move a little: said."""
    with pytest.raises(BackboneError, match="FNetModel reads padding as text"):
        probed(tiny("FNet", SMALL), 32)
    assert "YosoModel says of a text changes by" in probed(tiny("Yoso", SMALL), 32)


@pytest.mark.parametrize(
    "name", ["Bert", "Electra", "Albert", "Camembert", "XLNet", "Roberta", "T5", "UMT5", "GPT2", "Llama", "Qwen2"]
)
def test_a_folder_without_a_tokenizer(name, tmp_path):
    """transformers makes up a vocabulary of a few tokens, or fails in its own words: refused in ours."""
    getattr(transformers, f"{name}Config")().save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=r"holds no tokenizer|tokenizer.* lacks") as caught:
        load_tokenizer(Backbone(name_or_path=str(tmp_path)))
    assert len(str(caught.value)) < 1000


def test_a_vocabulary_without_its_merges(tmp_path):
    """Byte-pair encoding by letters alone would look like a tokenizer."""
    transformers.RobertaConfig(vocab_size=6).save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4, "b": 5}))
    with pytest.raises(BackboneError, match="merges"):
        load_tokenizer(Backbone(name_or_path=str(tmp_path)))


@pytest.fixture
def copied(tiny_model, tmp_path):
    """A copy of the tiny BERT to break."""
    folder = tmp_path / "copied"
    shutil.copytree(tiny_model("bert"), folder)
    return folder


@pytest.mark.parametrize("other", [{"vocab_size": 100000}, {"vocab_size": 120}])
def test_a_tokenizer_of_another_model(other, copied):
    """Vocabulary and embedding are compared, whichever is larger."""
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | other))
    with pytest.raises(BackboneError, match=r"its tokenizer knows \d+ tokens.*embeddings for"):
        load_tokenizer(Backbone(name_or_path=str(copied)))


def test_a_pad_token_without_an_embedding(copied, tiny_recipe, emotion_table):
    """Another token fills the batches: which one never matters."""
    tokenizer = AutoTokenizer.from_pretrained(copied)
    size = tokenizer.vocab_size
    tokenizer.add_special_tokens({"pad_token": "[FILL]"})
    assert tokenizer.pad_token_id >= size
    tokenizer.save_pretrained(copied)
    recipe = tiny_recipe("bert", backbone__name_or_path=str(copied))
    data = load_train(recipe.data, emotion_table(12))
    learner = make_learner(recipe, data.label_names)
    trainer = learner.prepare(data)
    trainer.measure()
    assert learner.session.head.pad_id < size
    tokens = trainer.rows.tokens
    answered = learner.session.answer(learner.session.model(), tokens, learner.session.head.weight(trainer.rows))
    assert answered.logits.shape == (12, 3)


def test_an_added_token_without_an_embedding(copied, tiny_recipe, emotion_table):
    """Refused before any training where a text is read with it; harmless where none is."""
    tokenizer = AutoTokenizer.from_pretrained(copied)
    tokenizer.add_tokens(["zzyzx"])
    tokenizer.save_pretrained(copied)
    recipe = tiny_recipe("bert", backbone__name_or_path=str(copied))
    table = emotion_table(12)
    data = load_train(recipe.data, table)
    make_learner(recipe, data.label_names).prepare(data)
    table.loc[3, "text"] = "happy zzyzx"
    data = load_train(recipe.data, table)
    with pytest.raises(BackboneError, match=r"Text 4 of 12 is read with the token 'zzyzx' \(\d+\)"):
        make_learner(recipe, data.label_names).prepare(data)


DAMAGE = {
    "tokenizer.json cut": ("tokenizer.json", lambda data: data[: len(data) // 2]),
    "tokenizer.json a list": ("tokenizer.json", lambda _: b"[]"),
    "tokenizer.json of zeros": ("tokenizer.json", lambda data: bytes(len(data))),
    "tokenizer_config.json a list": ("tokenizer_config.json", lambda _: b"[1]"),
    "config.json a list": ("config.json", lambda _: b"[1]"),
    "weights cut": ("model.safetensors", lambda data: data[: len(data) // 2]),
    "weights empty": ("model.safetensors", lambda _: b""),
    "weights of zeros": ("model.safetensors", lambda data: bytes(len(data))),
}
TYPES = {
    "hidden_size": "64", "num_hidden_layers": None, "num_attention_heads": [4], "vocab_size": "many",
    "max_position_embeddings": -1, "model_type": 7, "hidden_act": 3, "architectures": 5,
}  # fmt: skip


@pytest.mark.parametrize("case", [*DAMAGE, *TYPES])
def test_a_damaged_folder(case, copied, tiny_recipe, emotion_table):
    """One sentence of ours, or a model that is as good as whole; never another library's error."""
    recipe = tiny_recipe("bert", backbone__name_or_path=str(copied))
    data = load_train(recipe.data, emotion_table(12))
    if case in DAMAGE:
        name, change = DAMAGE[case]
        (copied / name).write_bytes(change((copied / name).read_bytes()))
    else:
        config = json.loads((copied / "config.json").read_text())
        (copied / "config.json").write_text(json.dumps(config | {case: TYPES[case]}))
    if case == "architectures":  # nothing reads it
        make_learner(recipe, data.label_names).prepare(data).measure()
        return
    with pytest.raises(BackboneError) as caught:
        make_learner(recipe, data.label_names).prepare(data).measure()
    assert len(str(caught.value)) < 2000
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("targets", ["all-linear", r"encoder\.block\.\d+\.layer\.0\.SelfAttention\.q"])
@pytest.mark.parametrize("measure", [True, False])
def test_check_says_the_same(measure, targets, tiny_model, tmp_path, emotion_table):
    """`check` refuses T5, and texts beyond the positions, before any weights are read as after it."""
    bert = tiny_model("bert")
    AutoTokenizer.from_pretrained(bert).save_pretrained(tmp_path)
    n_tokens = json.loads((Path(bert) / "config.json").read_text())["vocab_size"]
    tiny("T5", T5 | {"vocab_size": n_tokens}).save_pretrained(tmp_path)
    values = {
        "backbone": {"name_or_path": str(tmp_path), "dtype": "float32"},
        "head": {"pooling": "mean"},
        "lora": {"r": 4, "target_modules": targets},
        "data": {"max_length": 48},
        "cv": {"n_splits": 2},
        "engine": {"num_threads": 1},
    }
    with pytest.raises(BackboneError, match=r"T5Model cannot be used.* Take an encoder"):
        check(load_recipe(values), emotion_table(24), measure=measure)
    table = emotion_table(24)
    table.loc[3, "text"] = "happy " * 300
    values["backbone"]["name_or_path"], values["lora"] = bert, {"r": 4}
    with pytest.raises(BackboneError, match=r"data\.max_length.*lower it"):
        check(load_recipe(values | {"data": {"max_length": 200}}), table, measure=measure)
