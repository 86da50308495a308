"""A folder that somebody sent runs none of their code, whatever its recipe says; a flag permits it."""

import json
import shutil
from contextlib import suppress

import pytest
import yaml

from lora_cls.commands.blend import blend
from lora_cls.commands.check import check
from lora_cls.commands.cross_validation import cross_validate
from lora_cls.commands.export import export
from lora_cls.commands.predict import Classifier, predict_file
from lora_cls.commands.refit import refit
from lora_cls.errors import LoraClsError, RunError
from lora_cls.recipe import load_recipe
from lora_cls.runs import RunFolder

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaModel

Path({ran!r}).touch()

class SentConfig(LlamaConfig):
    model_type = "sent"

class SentModel(LlamaModel):
    config_class = SentConfig
"""


@pytest.fixture
def sent(finished, tiny_model, tmp_path, monkeypatch, unsummed):
    """A run folder whose base brings code, and whose recipe says that it may run; and the file that this code makes."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    ran, base, run = tmp_path / "ran", tmp_path / "base", tmp_path / "sent" / "run"
    shutil.copytree(tiny_model("llama"), base)
    (base / "sent.py").write_text(CODE.format(ran=str(ran)))
    config = json.loads((base / "config.json").read_text())
    config |= {"model_type": "sent", "auto_map": {"AutoConfig": "sent.SentConfig", "AutoModel": "sent.SentModel"}}
    (base / "config.json").write_text(json.dumps(config))
    shutil.copytree(finished("llama").path, run)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["backbone"] |= {"name_or_path": str(base), "trust_remote_code": True, "revision": "pinned"}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    unsummed(run)
    return run, ran


WAYS = {
    "load": lambda run, train, out, **may: Classifier.load(run, **may).predict("happy"),
    "predict": lambda run, train, out, **may: predict_file(run, train[["id", "text"]], out, **may),
    "export": lambda run, train, out, **may: export(run, out, to="merged", **may),
    "refit": lambda run, train, out, **may: refit(run, train, **may),
    "run": lambda run, train, out, **may: cross_validate(run / "recipe.yaml", train, out=out, **may),
    "check": lambda run, train, out, **may: check(run / "recipe.yaml", train, measure=False, **may),
    "recipe": lambda run, train, out, **may: cross_validate(RunFolder(run).recipe, train, out=out, **may),
}


@pytest.mark.parametrize("way", WAYS)
def test_code_of_a_folder_never_runs(sent, train, tmp_path, way):
    """However a sent folder is opened: an error that names the flag, and nothing of theirs has run."""
    run, ran = sent
    with pytest.raises(LoraClsError, match="--trust-remote-code"):
        WAYS[way](run, train, tmp_path / "out")
    assert not ran.exists()


@pytest.mark.parametrize("way", ["load", "check"])
def test_code_runs_where_it_is_permitted(sent, train, tmp_path, way):
    """The same with the flag gets as far as the code."""
    run, ran = sent
    with suppress(LoraClsError, ValueError):  # their weights may be of another kind
        WAYS[way](run, train, tmp_path / "out", trust_remote_code=True)
    assert ran.exists()


def test_a_users_own_recipe_keeps_the_field(tmp_path):
    """A file that lies in no run folder says itself what may run; --set says it of any."""
    values = {"backbone": {"name_or_path": "org/model", "trust_remote_code": True, "revision": "0" * 40}}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(values))
    assert load_recipe(file).backbone.trust_remote_code
    (tmp_path / "run.json").write_text("{}")
    assert not load_recipe(file).backbone.trust_remote_code
    assert load_recipe(file, ["backbone.trust_remote_code=true"]).backbone.trust_remote_code
    assert load_recipe(file, trust_remote_code=True).backbone.trust_remote_code


def test_permission_is_no_part_of_a_runs_identity():
    """A run that was trained with the flag continues with or without it in the recipe."""
    one = load_recipe({"backbone": {"name_or_path": "org/model", "trust_remote_code": True, "revision": "0" * 40}})
    assert one.identity() == load_recipe(one, {"backbone.trust_remote_code": False}).identity()


def test_runs_of_a_blend_outside_its_folder(finished, tfidf_recipe, train, test, tmp_path, unsummed):
    """A sent blend opens no run elsewhere on the disk unless that is permitted; a link is followed first."""
    runs = [cross_validate(tfidf_recipe(cv__n_splits=2, tfidf={"min_df": n}), train, test, tmp_path / f"elsewhere/{n}")
            for n in (1, 2)]  # fmt: skip
    made = blend([run.path for run in runs], tmp_path / "home" / "blend")
    assert Classifier.load(made).predict_proba("happy").shape == (len(made.label_names),)  # made here: the user's own
    for path in (made.path, RunFolder(made.path)):
        with pytest.raises(RunError, match=r"lies outside .*--outside-runs"):
            Classifier.load(path).predict("happy")
    assert Classifier.load(made.path, outside_runs=True).predict("happy").shape == (len(made.label_names),)
    moved = tmp_path / "elsewhere" / "blend"
    shutil.copytree(made.path, moved)
    recipe = yaml.safe_load((moved / "recipe.yaml").read_text())
    recipe["blend"]["runs"] = ["../1", "../link"]
    (moved / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    unsummed(moved)
    (tmp_path / "elsewhere" / "link").symlink_to(tmp_path / "elsewhere" / "2")
    assert Classifier.load(moved).predict("happy").shape == (len(made.label_names),)
    (tmp_path / "elsewhere" / "link").unlink()
    shutil.copytree(tmp_path / "elsewhere" / "2", tmp_path / "away")
    (tmp_path / "elsewhere" / "link").symlink_to(tmp_path / "away")
    with pytest.raises(RunError, match="lies outside"):
        Classifier.load(moved).predict("happy")
