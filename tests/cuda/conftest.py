"""The tests of a GPU, which run by themselves: `pytest tests/cuda`. See README.md beside this file."""

import os
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
ON_CPU = os.environ.get("LORA_CLS_CUDA_TESTS_ON_CPU") == "1"
WITHOUT = (
    "torch.cuda.is_available() is False: there is no CUDA GPU, torch was built without CUDA, or `pytest` was given "
    "more than tests/cuda, as the other tests hide GPUs."
)


def pytest_collection_modifyitems(items):
    """Skip what lies here where there is no GPU, unless the CPU is to stand for one."""
    here = [item for item in items if HERE in item.path.parents]
    if here and not ON_CPU and not torch.cuda.is_available():
        for item in here:
            item.add_marker(pytest.mark.skip(reason=WITHOUT))


@pytest.fixture(scope="session")
def device():
    """The device under test."""
    return torch.device("cpu" if ON_CPU else "cuda")


@pytest.fixture
def real_gpu():
    """For what has no meaning on a CPU that stands for a GPU."""
    if ON_CPU:
        pytest.skip("a CPU stands for the GPU, and its memory is not to be filled, nor does it have such kernels")


@pytest.fixture(autouse=True)
def stands_for_a_gpu(request):
    """Where the CPU stands for a GPU it trains in float16, too."""
    if ON_CPU:
        request.getfixturevalue("fp16_on_cpu")


@pytest.fixture
def needs():
    """Function `needs(recipe)`: skips what this card, or this machine, cannot compute, and says what is missing."""

    def check(recipe):
        from lora_cls.modeling.precision import no_flash_attention

        dtype = recipe.backbone.dtype
        if dtype == "bfloat16" and not ON_CPU and not torch.cuda.is_bf16_supported(including_emulation=False):
            pytest.skip("this card has no bfloat16 (compute capability below 8.0)")
        if recipe.quantization is not None:
            pytest.importorskip("bitsandbytes", reason="the extra `quantized` is not installed")
        if recipe.backbone.attn_implementation == "flash_attention_2":
            device = torch.device("cpu" if ON_CPU else "cuda")
            if reason := no_flash_attention(device, torch.float16):
                pytest.skip(reason)

    return check


@pytest.fixture
def on_the_cpu(monkeypatch):
    """A context in which models are loaded onto the CPU."""
    from contextlib import contextmanager

    @contextmanager
    def context():
        with monkeypatch.context() as patch:
            patch.setattr("lora_cls.training.session.default_device", lambda: torch.device("cpu"))
            yield

    return context


@pytest.fixture
def deterministic():
    """What `engine.deterministic` switches on in this process is off again afterwards."""
    yield {"engine__deterministic": True}
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def train(emotion_table):
    """48 training rows, of which the first is long."""
    return emotion_table(48)


@pytest.fixture(scope="session")
def test(emotion_table):
    """13 test rows: more than a batch, and one of them empty."""
    table = emotion_table(13, seed=5)[["id", "text"]].assign(id=[f"t{i:02d}" for i in range(13)])
    table.loc[4, "text"] = ""
    return table
