"""A full memory, really filled; and the memory that training takes, against the estimate."""

import numpy as np
import pytest
import torch

from lora_cls.errors import TrainingError
from lora_cls.machine import peak_memory, reset_peak_memory
from lora_cls.recipe import load_recipe
from lora_cls.runs import FoldFolder
from lora_cls.text.tokens import Tokens
from lora_cls.training.batches import EvalBatches, release_memory
from lora_cls.training.loop import predict_logits
from lora_cls.training.memory import estimate_memory
from lora_cls.training.transformer import TransformerLearner

MIB = 2**20
LABELS = ["joy", "anger", "fear"]


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory, tiny_model):
    """Folder of a random BERT of 6 layers and 512 dimensions, with the tiny one's tokenizer: activations of hundreds of
    MiB, beside which cuBLAS's workspaces do not count."""
    from transformers import AutoModel, AutoTokenizer, BertConfig

    tokenizer = AutoTokenizer.from_pretrained(tiny_model("bert"))
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=512, intermediate_size=2048, num_hidden_layers=6, num_attention_heads=8,
        max_position_embeddings=256,
    )  # fmt: skip
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("wide")
    AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def wide_recipe(wide_model):
    """Factory `wide_recipe(changes)` of a recipe on `wide_model`: LoRA, batches of 32 texts of 128 tokens."""

    def make(changes=None):
        values = {
            "backbone": {"name_or_path": wide_model, "dtype": "float32", "attn_implementation": "sdpa"},
            "lora": {"r": 8, "lora_alpha": 16},
            "head": {"pooling": "mean"},
            "data": {"max_length": 128, "label_columns": LABELS},
            "train": {"num_train_epochs": 1, "per_device_train_batch_size": 32, "per_device_eval_batch_size": 256},
        }
        return load_recipe(values, changes or {})

    return make


@pytest.fixture
def ballast():
    """Function `ballast(n_bytes)`: fills the GPU's memory up to so many free bytes; all is given back afterwards."""
    held = []

    def fill(left):
        release_memory()
        free = torch.cuda.mem_get_info()[0]
        if free > left:
            held.append(torch.empty(free - left, dtype=torch.uint8, device="cuda"))

    yield fill
    held.clear()
    release_memory()


def tokens(n, length=128):
    rng = np.random.default_rng(0)
    ids = [rng.integers(5, 300, size=length) for _ in range(n)]
    return Tokens(ids, np.arange(n), np.zeros(n, dtype=bool), length)


def test_prediction_halves_its_batch(wide_recipe, ballast, real_gpu):
    """Where the GPU is really full it goes on with smaller batches, says so once, and answers the same."""
    recipe = wide_recipe()
    session = TransformerLearner(recipe, LABELS).session
    model, texts, said = session.fresh_model(0).eval(), tokens(512), []
    expected = predict_logits(model, texts.take(np.arange(64)), batches=EvalBatches(8), pad_id=0)  # prepares kernels
    release_memory()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    predict_logits(model, texts, batches=EvalBatches(256), pad_id=0)
    needed = torch.cuda.max_memory_allocated() - before
    assert needed > 64 * MIB, "too little to tell"
    ballast(int(0.6 * needed))
    batches = EvalBatches(256, said.append)
    found = predict_logits(model, texts, batches=batches, pad_id=0)
    assert batches.size < 256
    assert len(said) == 1 and "The memory is full with 256 rows at a time" in said[0]
    np.testing.assert_allclose(found[:64], expected, atol=1e-3)


def test_training_says_what_to_set(wide_recipe, ballast, real_gpu, emotion_table, tmp_path):
    """A training step that does not fit ends in a sentence with batch and accumulation; then the GPU is usable."""
    from lora_cls.data import load_train

    recipe = wide_recipe({"train.per_device_train_batch_size": 512})
    table = emotion_table(600)
    table["text"] = [" ".join([text] * 20) for text in table["text"]]
    data = load_train(recipe.data, table)
    trainer = TransformerLearner(recipe, LABELS).prepare(data)
    trainer.session.model()
    ballast(256 * MIB)
    rows = np.arange(len(data))
    with pytest.raises(TrainingError, match=r"The memory is full while training.*per_device_train_batch_size=256"):
        trainer.fit_fold(0, rows, rows[:4], FoldFolder(tmp_path / "fold"))
    release_memory()
    assert float(torch.ones(3, device="cuda").sum()) == 3


def test_lower_layers_that_do_not_fit(wide_recipe, ballast, real_gpu):
    """The lower layers, computed once, name the batch that is too large for them."""
    recipe = wide_recipe({"lora.top_layers": 0.5, "train.per_device_eval_batch_size": 4096})
    session = TransformerLearner(recipe, LABELS).session
    texts = tokens(4096)
    cache = session.prefix_cache(texts)
    assert cache is not None
    ballast(64 * MIB)
    with pytest.raises(TrainingError, match=r"while the lower layers are computed.*per_device_eval_batch_size"):
        cache.fill(texts)


@pytest.mark.parametrize(
    ("changes", "dtype"),
    [
        ({}, "float32"),
        ({}, "bfloat16"),
        ({"lora": None, "train.learning_rate": 1e-4}, "float32"),
        ({"lora": None, "train.learning_rate": 1e-4}, "bfloat16"),
        ({"train.gradient_checkpointing": True}, "float32"),
        ({"backbone.attn_implementation": "eager"}, "float32"),
        ({"quantization": {"load_in_4bit": True}}, "bfloat16"),
    ],
    ids=["LoRA-fp32", "LoRA-bf16", "full-fp32", "full-bf16", "checkpointing", "eager", "nf4"],
)
def test_estimate(changes, dtype, wide_recipe, needs, real_gpu, emotion_table, tmp_path, record_property):
    """What training took at its peak lies within half and twice the estimate.

    PyTorch counts what it allocated, and not the CUDA context, which the estimate has among `libraries`. The bounds
    were set before any GPU was at hand: read the recorded figures, and narrow them.
    """
    from transformers import AutoConfig

    from lora_cls.data import load_train

    recipe = wide_recipe(changes | {"backbone.dtype": dtype})
    needs(recipe)
    table = emotion_table(96)
    table["text"] = [" ".join([text] * 40) for text in table["text"]]
    data = load_train(recipe.data, table)
    release_memory()
    reset_peak_memory()
    held = torch.cuda.memory_allocated()
    trainer = TransformerLearner(recipe, LABELS).prepare(data)
    rows = np.arange(len(data))
    trainer.fit_fold(0, rows, rows[:4], FoldFolder(tmp_path / "fold"))
    measured = peak_memory() - held
    config = AutoConfig.from_pretrained(recipe.backbone.name_or_path)
    estimate = estimate_memory(recipe, config, dtype=trainer.session.dtype, device="cuda", n_labels=3, length=128)
    expected = estimate.total - estimate.libraries
    record_property("estimated MiB", expected / MIB)
    record_property("measured MiB", measured / MIB)
    record_property("estimated / measured", expected / measured)
    assert 0.5 <= expected / measured <= 2.0


def test_another_models_memory_is_not_a_runs(real_gpu):
    """What lay on the GPU before, as in a notebook, is not told as the peak of a run that uses none of it."""
    held = torch.empty(512 * MIB, dtype=torch.uint8, device="cuda")
    reset_peak_memory()
    assert peak_memory() is not None
    assert peak_memory() != held.nbytes
    more = torch.empty(64 * MIB, dtype=torch.uint8, device="cuda")
    assert peak_memory() >= held.nbytes + more.nbytes
