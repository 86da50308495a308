"""What a GPU would do, as far as a machine without one can tell; `tests/cuda` asks a real one."""

import gc
import shutil
import weakref

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

from lora_cls import machine
from lora_cls.commands.cross_validation import cross_validate
from lora_cls.data import load_train
from lora_cls.errors import BackboneError, TrainingError
from lora_cls.modeling.precision import faster_attention, is_out_of_memory, no_flash_attention
from lora_cls.modeling.probe import _WithinTables
from lora_cls.recipe import load_recipe
from lora_cls.runs import FoldFolder
from lora_cls.training import adaptation, session
from lora_cls.training.factory import make_learner
from lora_cls.training.memory import estimate_memory
from lora_cls.training.transformer import TransformerLearner

LABELS = ["joy", "anger", "fear"]
FLASH = {"backbone__attn_implementation": "flash_attention_2"}


def test_gradients_are_unscaled_once(fp16_on_cpu, tiny_recipe, tiny_model, emotion_table, tmp_path, monkeypatch):
    """In float16 no gradient is divided by the scaler's factor twice, also where an output layer was trained before."""
    folder = shutil.copytree(tiny_model("bert"), tmp_path / "bert")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.mask_token = "[MASK]"
    tokenizer.save_pretrained(folder)
    scaler, unscaled, steps = torch.amp.GradScaler, [], []
    plain_unscale, plain_update = scaler.unscale_, scaler.update

    def unscale(self, optimizer):
        unscaled.extend(id(p) for group in optimizer.param_groups for p in group["params"])
        plain_unscale(self, optimizer)

    def update(self, *rest):
        assert len(set(unscaled)) == len(unscaled)
        steps.append(len(unscaled))
        unscaled.clear()
        plain_update(self, *rest)

    monkeypatch.setattr(scaler, "unscale_", unscale)
    monkeypatch.setattr(scaler, "update", update)
    monkeypatch.setattr(adaptation, "HEAD_STEPS", 2)
    monkeypatch.setenv("LORA_CLS_CACHE", str(tmp_path / "cache"))
    recipe = tiny_recipe(
        "bert", backbone__name_or_path=str(folder), backbone__dtype="float16", train__num_train_epochs=1,
        adapt={"num_train_epochs": 1},
    )  # fmt: skip
    cross_validate(recipe, emotion_table(24), out=tmp_path / "run", folds=[0])
    assert len(set(steps)) == 3  # the output layer, the base with it, and the fold's adapters


def test_one_base_at_a_time(fp16_on_cpu, tiny_recipe, emotion_table, tmp_path, monkeypatch):
    """Full fine-tuning frees a fold's model before it loads the next one: two would not fit where one does."""
    recipe = tiny_recipe("bert", lora=None, backbone__dtype="float16", train__num_train_epochs=1)
    data = load_train(recipe.data, emotion_table(24))
    trainer = make_learner(recipe, LABELS).prepare(data)
    loaded, load = [], session.load_base

    def load_base(*arguments, **options):
        assert not any(weight() is not None for weight in loaded)
        base = load(*arguments, **options)
        loaded.append(weakref.ref(next(base.parameters())))
        return base

    monkeypatch.setattr(session, "load_base", load_base)
    rows = np.arange(24)
    gc.disable()  # whether Python would have collected it in time is chance
    try:
        for fold in range(3):
            trainer.fit_fold(fold, rows, rows[:4], FoldFolder(tmp_path / str(fold)))
    finally:
        gc.enable()
    assert len(loaded) == 3


def test_biases_in_half_precision(fp16_on_cpu, tiny_recipe, emotion_table, tmp_path):
    """What would be trained in float16 is refused when the model is built: a scaler fails at the first step."""
    recipe = tiny_recipe("bert", lora__bias="all", backbone__dtype="float16")
    with pytest.raises(BackboneError, match=r"in float16 here.*backbone\.dtype: float32.*lora\.bias"):
        cross_validate(recipe, emotion_table(24), out=tmp_path / "run")


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: out of memory",
    ],
)
def test_libraries_that_ask_for_memory_themselves(said):
    """A full memory is one whoever says so."""
    assert is_out_of_memory(RuntimeError(said))


@pytest.mark.parametrize(
    "look_up",
    [
        lambda table, place: torch.nn.functional.embedding(place, table),
        lambda table, place: table[place],
        lambda table, place: table.index_select(0, place),
        lambda table, place: table.gather(0, place.unsqueeze(1)),
    ],
)
def test_places_are_looked_at_before_a_table(look_up):
    """By numbers alone: no kernel is called that would end a GPU's process."""
    table = torch.arange(12.0).reshape(6, 2)
    with _WithinTables():
        assert look_up(table, torch.tensor([0, 5])) is not None
        with pytest.raises(IndexError, match="from 2 to 6 in a table of 6"):
            look_up(table, torch.tensor([2, 6]))
        assert table[torch.tensor([True, False] * 3)].shape == (3, 2)
        assert table[torch.tensor([-1])].tolist() == [[10.0, 11.0]]


def test_attention_that_fails_is_not_taken(tiny_recipe, monkeypatch):
    """Where one kind fails it is the other; where both do, the one that takes less memory."""
    model = make_learner(tiny_recipe("llama"), LABELS).session.fresh_model(0)
    ids = torch.arange(5, 45).reshape(2, 20)
    set_attention, broken = type(model.base).set_attn_implementation, {"sdpa"}

    def attend(self, name):
        if name in broken:
            raise RuntimeError("no kernel image is available")
        set_attention(self, name)

    monkeypatch.setattr(type(model.base), "set_attn_implementation", attend)
    assert faster_attention(model, ids, torch.ones_like(ids)) == "eager"
    broken.add("eager")
    assert faster_attention(model, ids, torch.ones_like(ids)) == "sdpa"


class Card:
    """A GPU's compute capability."""

    def __init__(self, *capability):
        self.capability = capability

    def __call__(self, device):
        return self.capability


@pytest.mark.parametrize(
    ("device", "card", "dtype", "expected"),
    [
        ("cpu", Card(), torch.bfloat16, "needs a CUDA GPU, and this machine has cpu"),
        ("cuda", Card(7, 5), torch.float16, "compute capability 8.0, and this one has 7.5"),
        ("cuda", Card(8, 0), torch.float32, "16 bits alone"),
        ("cuda", Card(8, 0), torch.bfloat16, "pip install flash-attn"),
    ],
)
def test_why_flash_attention_is_missing(device, card, dtype, expected, monkeypatch):
    """The card, the precision or the package is named."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", card)
    assert expected in no_flash_attention(torch.device(device), dtype)


def test_flash_attention_is_refused_at_once(tiny_recipe, emotion_table):
    """Before a model is loaded; a run's models answer without it, and its folds are not trained on."""
    recipe = tiny_recipe("llama", **FLASH)
    with pytest.raises(BackboneError, match=r"flash_attention_2 cannot be taken here: it needs a CUDA GPU.*to auto"):
        make_learner(recipe, LABELS)
    given = {"device": "cpu", "num_threads": 1, "dtype": "float32", "attn_implementation": "flash_attention_2"}
    learner = TransformerLearner(recipe, LABELS, given)
    assert learner.session.model().base.config._attn_implementation == "sdpa"
    assert learner.choices["attn_implementation"] == "flash_attention_2"
    with pytest.raises(TrainingError, match="started with flash attention"):
        learner.prepare(load_train(recipe.data, emotion_table(12)))


def test_memory_with_flash_attention(tiny_recipe):
    """It is estimated on a machine that does not have it, and as PyTorch's fused attention."""
    flash, fused = (tiny_recipe("llama", backbone__attn_implementation=kind) for kind in ("flash_attention_2", "sdpa"))
    config = AutoConfig.from_pretrained(flash.backbone.name_or_path)
    found, expected = (estimate_memory(r, config, dtype=torch.bfloat16, device="cuda") for r in (flash, fused))
    assert found == expected


@pytest.mark.parametrize("deterministic", [False, True])
def test_on_a_gpu(deterministic, tiny_recipe, monkeypatch):
    """Training says that further GPUs are not used, and takes deterministic kernels where it is asked to, for good."""
    said, switched = [], []
    recipe = tiny_recipe("llama", engine__deterministic=deterministic)
    for given in ({}, {"device": "cuda", "deterministic": not deterministic}):
        learner = TransformerLearner(recipe, LABELS, given)
        learner.session.device = torch.device("cuda")
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(session, "compute_deterministically", lambda: switched.append(True))
        monkeypatch.setattr(learner.session.progress, "say", said.append)
        learner.session.train_as_frozen()
        expected = given.get("deterministic", deterministic)
        assert learner.choices["deterministic"] is expected
        assert bool(switched) is expected
        switched.clear()
    assert len(said) == 2 and "2 GPUs are visible" in said[0] and "first of them alone" in said[0]


def test_peak_memory_of_a_gpu(monkeypatch):
    """Only of a GPU that was used since the reset: a model that lay there before, in a notebook, is not the run's."""
    taken = [700]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: taken[0])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: taken[0])
    monkeypatch.setattr(machine, "_held", [0])
    machine.reset_peak_memory()
    assert machine.peak_memory() != 700
    taken[0] = 900
    assert machine.peak_memory() == 900


def test_lower_layers_that_do_not_fit(tiny_recipe, emotion_table, monkeypatch):
    """A full memory while they are computed names the setting that their batches follow."""
    recipe = tiny_recipe("llama", lora__top_layers=0.5)
    trainer = make_learner(recipe, LABELS).prepare(load_train(recipe.data, emotion_table(12)))
    cache = trainer.session.prefix_cache(trainer.rows.tokens)

    def hidden(ids):
        if len(ids) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(ids)

    plain = cache.prefix.hidden
    monkeypatch.setattr(cache.prefix, "hidden", hidden)
    with pytest.raises(TrainingError, match=r"lower layers are computed.*per_device_eval_batch_size \(now 32\)"):
        cache.fill(trainer.rows.tokens)


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("lora", [{"r": 4}, None], ids=["LoRA", "full"])
def test_memory_in_half_precision(kind, lora, tiny_recipe):
    """What a card without bfloat16 would take is estimated, too."""
    recipe = load_recipe(tiny_recipe(kind), {"lora": lora})
    config = AutoConfig.from_pretrained(recipe.backbone.name_or_path)
    found, expected = (estimate_memory(recipe, config, dtype=d, device="cuda") for d in (torch.float16, torch.bfloat16))
    assert found.total == pytest.approx(expected.total, rel=0.02)
