"""Python code that comes with a model never runs unless the recipe names it."""

import json
import shutil
import sys

import pytest
import torch

from lora_cls.errors import BackboneError
from lora_cls.modeling.loading import load_base, load_config, load_tokenizer
from lora_cls.modeling.source import find_source
from lora_cls.recipe import Backbone

CODE = """
from pathlib import Path
from transformers import PretrainedConfig, PreTrainedTokenizerFast, Qwen2Model as Base
(Path(MARKER)).touch()
class Qwen2Model(Base): pass
class Config(PretrainedConfig):
    model_type = "unheard_of"
class Tokenizer(PreTrainedTokenizerFast): pass
"""


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A Qwen 2 whose config.json and tokenizer_config.json point to code that leaves a mark when it is imported."""
    folder = shutil.copytree(tiny_model("NovaSearch/stella_en_1.5B_v5"), tmp_path / "model")
    (folder / "modeling_qwen.py").write_text(CODE.replace("MARKER", repr(str(tmp_path / "mark"))))
    change(folder / "config.json", auto_map={"AutoModel": "modeling_qwen.Qwen2Model"})
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["modeling_qwen.Tokenizer", None]})
    return folder


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_code_is_not_run(folder, tmp_path):
    """A known model with code beside it opens as transformers' own class, and the code is not imported."""
    backbone = Backbone(name_or_path=str(folder))
    base = load_base(backbone, None, torch.float32, torch.device("cpu"))
    assert type(base).__module__ == "transformers.models.qwen2.modeling_qwen2"
    assert load_config(backbone, find_source(str(folder))).model_type == "qwen2"
    assert load_tokenizer(backbone)("happy")["input_ids"]
    assert not (tmp_path / "mark").exists()


def test_model_that_needs_its_code(folder, tmp_path):
    """A model that transformers does not know is refused with what to set; nothing runs."""
    change(folder / "config.json", model_type="unheard_of")
    change(
        folder / "config.json", auto_map={"AutoConfig": "modeling_qwen.Config", "AutoModel": "modeling_qwen.Qwen2Model"}
    )
    backbone = Backbone(name_or_path=str(folder))
    for load in (
        lambda: load_base(backbone, None, torch.float32, torch.device("cpu")),
        lambda: load_config(backbone, find_source(str(folder))),
    ):
        with pytest.raises(BackboneError, match=r"set backbone.trust_remote_code: true and pin backbone.revision"):
            load()
    assert not (tmp_path / "mark").exists()


def test_named_code_runs(folder, tmp_path, monkeypatch):
    """With `trust_remote_code` and a revision named, the mark is there: the tests above would see code that runs."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [*sys.path])
    backbone = Backbone(name_or_path=str(folder), trust_remote_code=True, revision="0" * 40)
    load_base(backbone, None, torch.float32, torch.device("cpu"))
    assert (tmp_path / "mark").exists()
