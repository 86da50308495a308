"""`export --to transformers`: what plain `pipeline` answers, and what is refused."""

import json

import pytest

from lora_cls.commands.export import export
from lora_cls.errors import RunError

TEXTS = ["so happy and lovely, what a great day with all of my friends in the garden", "afraid"]


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_pipeline_answers_alike(finished, tmp_path, kind):
    """A folder that `pipeline` opens."""
    out = export(finished(kind), tmp_path / "out", to="transformers")
    about = json.loads((out / "export.json").read_text())
    assert about["parity"][0]["difference"] < 1e-5
    config = json.loads((out / "config.json").read_text())
    print(config, sorted(p.name for p in out.iterdir()))
    print((out / "tokenizer_config.json").read_text())


def test_roberta(finished, tmp_path):
    with pytest.raises(RunError, match="layers of its own") as e:
        export(finished("bert"), tmp_path / "out", to="transformers")
    print(e.value)
