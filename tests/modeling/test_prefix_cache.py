"""Files of hidden states: named by all they follow from, found when damaged, shared by processes, within a limit."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import namedtuple

import numpy as np
import pytest
import torch

from lora_cls.modeling import prefix_cache
from lora_cls.modeling.prefix import Prefix
from lora_cls.modeling.prefix_cache import PrefixCache
from lora_cls.text.tokens import Tokens

LENGTHS = [6, 21, 14, 9, 3, 17, 12, 8]
TOKEN_BYTES = 64 * 4
N_TOKENS = sum(LENGTHS)


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch):
    """Some four files for the texts of these tests."""
    monkeypatch.setattr(prefix_cache, "STRETCH_BYTES", 30 * TOKEN_BYTES)


@pytest.fixture
def rows(random_rows):
    return random_rows(LENGTHS)


@pytest.fixture
def make_cache(deep_recipe, build, perturb, tmp_path):
    """`make_cache(rows, ...)`: a classifier and its filled cache, as a process would open it anew."""

    def make(rows, *, folder="cache", limit=1e9, facts=None, kind="LlamaConfig", model=None, **overrides):
        if model is None:
            model = perturb(build(deep_recipe(kind, **overrides)))
        cache = PrefixCache(Prefix.find(model, rows[:2]), 3, limit, facts or {}, tmp_path / folder)
        said = []
        cache.fill(tokens_of(rows), said.append)
        cache.said = said
        model.reuse = cache.stand_in
        return model, cache

    return make


def tokens_of(rows):
    return Tokens(list(rows), np.arange(len(rows)), np.zeros(len(rows), dtype=bool))


def files(folder):
    return sorted(folder.glob("*.safetensors"))


def litter(folder):
    """What no finished process leaves: scratch files and locks."""
    return [path.name for path in folder.iterdir() if path.suffix != ".safetensors"]


def hidden(cache, rows):
    """The hidden states that the cache knows of rows."""
    places = [cache._rows[prefix_cache._digest(row)] for row in rows]
    return torch.cat([whole[begin:end] for whole, begin, end in places])


def test_read_back(make_cache, rows, ask, tmp_path):
    """The first process computes and writes all; the next reads all, to the same bytes; answers hardly change."""
    model, first = make_cache(rows)
    assert (first.used.layers, first.used.computed, first.used.reused) == (2, len(rows), 0)
    assert first.used.bytes == N_TOKENS * TOKEN_BYTES
    assert len(files(tmp_path / "cache")) > 3
    assert not litter(tmp_path / "cache")
    cached = ask(model, rows)
    model.reuse = None
    np.testing.assert_allclose(cached, ask(model, rows), rtol=1e-5, atol=1e-5)
    before = {file: file.read_bytes() for file in files(tmp_path / "cache")}
    other, second = make_cache(rows)
    assert (second.used.computed, second.used.reused) == (0, len(rows))
    assert second.used.bytes == first.used.bytes
    assert torch.equal(hidden(second, rows), hidden(first, rows))
    np.testing.assert_array_equal(ask(other, rows), cached)
    assert {file: file.read_bytes() for file in files(tmp_path / "cache")} == before
    second.fill(tokens_of(rows[::-1]))  # in another order, all known
    assert second.used.computed == 0


def test_more_texts_later(make_cache, rows, random_rows, ask):
    """Texts that come later are added; repeated ones are kept once; a batch with an unknown text is computed."""
    model, cache = make_cache(rows)
    more = random_rows([5, 11], seed=1)
    batch = [rows[0], more[0]]
    model.reuse = None
    plain = ask(model, batch)
    model.reuse = cache.stand_in
    np.testing.assert_array_equal(ask(model, batch), plain)
    cache.fill(tokens_of([rows[3], *more, more[0]]))
    assert cache.used.computed == len(rows) + 2
    np.testing.assert_allclose(ask(model, batch), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_bytes", [1, 30 * TOKEN_BYTES, 10**9])
def test_any_size_of_file(n_bytes, make_cache, rows, monkeypatch):
    """One text per file or all in one: the same values within rounding."""
    monkeypatch.setattr(prefix_cache, "STRETCH_BYTES", n_bytes)
    _, cache = make_cache(rows)
    expected = torch.cat([cache.prefix.hidden([row])[0] for row in rows])
    torch.testing.assert_close(hidden(cache, rows), expected, rtol=1e-5, atol=1e-5)


def test_left_padding_is_never_mistaken(make_cache, random_rows, ask):
    """A known text that looks like padding is not taken for the row that it pads."""
    rows = [np.array([0, 0]), *random_rows([2, 6])]
    model, cache = make_cache(rows)
    for side in ("left", "right"):
        model.reuse = None
        plain = ask(model, rows[1:], side)
        model.reuse = cache.stand_in
        np.testing.assert_allclose(ask(model, rows[1:], side), plain, rtol=1e-5, atol=1e-5)


OTHERS = {
    "dtype": {"backbone__dtype": "bfloat16"},
    "layer": {"lora__top_layers": 0.75},
    "depth": {"backbone__num_hidden_layers": 3, "lora__top_layers": 0.34},
    "quantization": {"quantization": {"load_in_4bit": True}},
    "class": {"kind": "Qwen3Config"},
    "attention": {"facts": {"attn_implementation": "eager"}},
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_file(what, make_cache, rows, tmp_path):
    """What changes the hidden states, or their last digits, gives files of another name."""
    make_cache(rows)
    n = len(files(tmp_path / "cache"))
    _, cache = make_cache(rows, **OTHERS[what])
    assert cache.used.reused == 0
    assert cache.used.computed == len(rows)
    assert len(files(tmp_path / "cache")) > n


def test_other_weights(make_cache, rows, deep_recipe, build):
    """One changed number below the lowest adapter gives other files; what is trained above it gives the same ones."""
    make_cache(rows)
    recipe = deep_recipe("LlamaConfig", head__pooling="last_token", lora__r=2)
    assert make_cache(rows, model=build(recipe, seed=7, n_labels=5))[1].used.computed == 0
    model = build(recipe)
    with torch.no_grad():
        model.base.layers[1].mlp.down_proj.weight[3, 5] += 1e-3
    assert make_cache(rows, model=model)[1].used.reused == 0
    model = build(recipe)
    with torch.no_grad():
        model.base.embed_tokens.weight[399] += 1e-3
    assert make_cache(rows, model=model)[1].used.reused == 0


def test_other_texts(make_cache, rows, tmp_path):
    """One other token gives another file, and only for the texts it shares one with."""
    make_cache(rows)
    changed = [*rows[:-1], rows[-1].copy()]
    changed[-1][-1] += 1
    _, cache = make_cache(changed)
    assert 0 < cache.used.computed < len(rows)
    assert cache.used.reused == len(rows) - cache.used.computed


def cut(content):
    return content[: len(content) // 2]


def flip(at):
    def change(content):
        content = bytearray(content)
        content[at] ^= 0x10
        return bytes(content)

    return change


DAMAGES = {
    "cut": cut,
    "one byte short": lambda content: content[:-1],
    "one byte of a value": flip(-5),
    "one byte of the header's length": flip(1),
    "one byte of the header": flip(30),
    "empty": lambda _: b"",
    "zeros": lambda content: bytes(len(content)),
    "longer": lambda content: content + b"\0" * 4,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged(damage, make_cache, rows, tmp_path):
    """A damaged file is found, said, and made anew to the same bytes; the other files are read."""
    _, cache = make_cache(rows)
    expected = hidden(cache, rows).clone()
    file = files(tmp_path / "cache")[1]
    before = file.read_bytes()
    # as a crash would leave it: another file in its place, not a write into what this process has mapped
    (tmp_path / "other").write_bytes(DAMAGES[damage](before))
    os.replace(tmp_path / "other", file)
    _, cache = make_cache(rows)
    assert 0 < cache.used.computed < len(rows)
    assert any(f"{file.name} in the prefix cache is damaged" in line for line in cache.said)
    assert torch.equal(hidden(cache, rows), expected)
    assert file.read_bytes() == before
    assert not litter(tmp_path / "cache")


def test_no_byte_of_a_header_can_lie(make_cache, rows, tmp_path):
    """Every byte of a header, changed in two ways: the file is refused, or says what it said. Another's file, too."""
    _, cache = make_cache(rows)
    stretch = next(stretch for stretch in cache._stretches(rows))
    file = cache._path(stretch)
    content = file.read_bytes()
    whole = cache._intact(stretch).clone()
    n_header = 8 + int.from_bytes(content[:8], "little")
    refused = 0
    for at in range(n_header):
        for bits in (0x01, 0x0F, 0x80):
            changed = bytearray(content)
            changed[at] ^= bits
            scratch = tmp_path / "changed"
            scratch.write_bytes(changed)
            os.replace(scratch, file)
            found = cache._intact(stretch)
            refused += found is None
            assert found is None or (found.dtype == whole.dtype and torch.equal(found, whole))
    assert refused > 100
    other = next(path for path in files(tmp_path / "cache") if path != file)
    file.write_bytes(other.read_bytes())
    assert cache._intact(stretch) is None


def ages(folder, paths, seconds):
    for path in paths:
        then = time.time() - seconds
        os.utime(path, (then, then))


def test_least_recently_used_goes_first(make_cache, random_rows, tmp_path):
    """Beyond the limit the oldest files go, and reading a file makes it young."""
    sets = [random_rows(LENGTHS, seed=seed) for seed in range(4)]
    of = []
    for rows in sets[:3]:
        known = set(files(tmp_path / "cache")) if of else set()
        make_cache(rows)
        of.append(set(files(tmp_path / "cache")) - known)
    for age, paths in zip((300, 200, 100), of, strict=True):
        ages(tmp_path / "cache", paths, age)
    make_cache(sets[0])  # read: now the second set is the oldest
    size = sum(path.stat().st_size for path in files(tmp_path / "cache"))
    _, cache = make_cache(sets[3], limit=size + 500)
    left = set(files(tmp_path / "cache"))
    assert not cache.used.notes
    assert of[0] <= left and of[2] <= left
    assert not of[1] & left
    assert sum(path.stat().st_size for path in left) < size + 2000


def test_files_in_use_stay(make_cache, random_rows, tmp_path, ask):
    """Test texts that do not fit beside the training texts do not push these out: a note, and they are computed."""
    train, test = (random_rows(LENGTHS, seed=seed) for seed in (0, 1))
    model, cache = make_cache(train, limit=1.5 * N_TOKENS * TOKEN_BYTES)
    before = files(tmp_path / "cache")
    ages(tmp_path / "cache", before, 1000)
    cache.fill(tokens_of(test))
    assert files(tmp_path / "cache") == before
    assert len(cache.used.notes) == 1
    assert "engine.prefix_cache_gb leaves" in cache.used.notes[0]
    answer = ask(model, test)
    model.reuse = None
    np.testing.assert_array_equal(answer, ask(model, test))


def test_limit_too_small(make_cache, rows, ask, tmp_path):
    """One note says what it would take; nothing is written; the numbers are those without a cache."""
    model, cache = make_cache(rows, limit=1000)
    assert not files(tmp_path / "cache")
    assert cache.said == cache.used.notes
    assert len(cache.said) == 1 and f"hidden states of {len(rows)} texts would take" in cache.said[0]
    assert cache.used.computed == cache.used.reused == cache.used.bytes == 0
    answer = ask(model, rows)
    model.reuse = None
    np.testing.assert_array_equal(answer, ask(model, rows))


def test_disk_too_small(make_cache, rows, tmp_path, monkeypatch):
    """The same where the disk has no room; what is there already is read."""
    make_cache(rows)
    usage = namedtuple("usage", "total used free")(10**12, 10**12, prefix_cache.SPARE_BYTES)
    monkeypatch.setattr(prefix_cache.shutil, "disk_usage", lambda _: usage)
    assert make_cache(rows)[1].used.reused == len(rows)
    _, cache = make_cache([row + 1 for row in rows])
    assert len(cache.used.notes) == 1 and "the disk has" in cache.used.notes[0]


def test_folder_that_cannot_be_written(make_cache, rows, tmp_path, ask):
    """A cache that cannot be kept does not end a run."""
    (tmp_path / "cache").write_text("a file")
    model, cache = make_cache(rows)
    assert len(cache.said) == 1 and "cannot be written" in cache.said[0]
    answer = ask(model, rows)
    model.reuse = None
    np.testing.assert_array_equal(answer, ask(model, rows))


def test_disk_that_fills_up(make_cache, rows, tmp_path, ask, monkeypatch):
    """A write that fails: a note, no scratch file, and the files before it are used."""
    original, written = prefix_cache.save_file, []

    def save(values, file, metadata):
        if written:
            file.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        written.append(file)
        original(values, file, metadata)

    monkeypatch.setattr(prefix_cache, "save_file", save)
    model, cache = make_cache(rows)
    assert len(files(tmp_path / "cache")) == 1
    assert not litter(tmp_path / "cache")
    assert "No space left" in cache.used.notes[0]
    cached = ask(model, rows)
    model.reuse = None
    np.testing.assert_allclose(cached, ask(model, rows), rtol=1e-5, atol=1e-5)


def test_removed_as_soon_as_written(make_cache, rows, monkeypatch):
    """Another process with a smaller limit removes a file before it is read back: the values are there."""
    original = prefix_cache.os.replace

    def replace(source, target):
        original(source, target)
        os.unlink(target)

    with monkeypatch.context() as patch:
        patch.setattr(prefix_cache.os, "replace", replace)
        _, cache = make_cache(rows)
    expected = torch.cat([cache.prefix.hidden([row])[0] for row in rows])
    torch.testing.assert_close(hidden(cache, rows), expected, rtol=1e-5, atol=1e-5)


def test_litter_of_killed_processes(make_cache, rows, tmp_path):
    """Old locks are removed; fresh ones may be in use and stay."""
    folder = tmp_path / "cache"
    folder.mkdir()
    old, fresh = folder / "a.lock", folder / "b.lock"
    for path in (old, fresh):
        path.write_bytes(b"")
    ages(folder, [old], prefix_cache.STALE_SECONDS + 60)
    make_cache(rows)
    assert litter(folder) == [fresh.name]


PROCESS = """
import json, os, signal, sys, time, zlib
from pathlib import Path

import numpy as np
import torch

torch.set_num_threads(1)
from lora_cls.text.tokens import Tokens
from lora_cls.modeling import prefix_cache
from lora_cls.modeling.adapter import build_model, reset_model
from lora_cls.modeling.loading import load_base
from lora_cls.modeling.prefix import Prefix
from lora_cls.recipe import load_recipe
from lora_cls.training.batches import EvalBatches
from lora_cls.training.loop import predict_logits

given = json.loads(sys.stdin.readline())
prefix_cache.STRETCH_BYTES = given["stretch_bytes"]
recipe = load_recipe(given["recipe"])
model = build_model(load_base(recipe.backbone, None, torch.float32, torch.device("cpu")), recipe, 3)
reset_model(model, recipe, 0)
rows = [np.array(row) for row in given["rows"]]
prefix = Prefix.find(model, rows[:2])
save, compute, saved = prefix_cache.save_file, prefix_cache.PrefixCache._compute, []

def save_file(values, file, metadata):
    save(values, file, metadata)
    saved.append(file)
    if len(saved) == given["kill"]:
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

def slowly(*arguments):
    time.sleep(0.1)
    return compute(*arguments)

prefix_cache.save_file, prefix_cache.PrefixCache._compute = save_file, slowly
cache = prefix_cache.PrefixCache(prefix, 3, 1e9, {}, Path(given["folder"]))
tokens = Tokens(rows, np.arange(len(rows)), np.zeros(len(rows), dtype=bool))
print("ready", flush=True)
sys.stdin.readline()
cache.fill(tokens)
model.reuse = cache.stand_in
logits = predict_logits(model, tokens, batches=EvalBatches(4), pad_id=0)
print(json.dumps([cache.used.computed, cache.used.reused, logits.tolist()]))
"""


@pytest.fixture
def start(deep_recipe, rows, tmp_path):
    """`start(folder, kill=None)`: a process that fills the cache when told to; killed in its n-th write."""

    def begin(folder, kill=None):
        process = subprocess.Popen(
            [sys.executable, "-c", PROCESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        given = {
            "recipe": deep_recipe("LlamaConfig").to_dict(), "rows": [row.tolist() for row in rows], "kill": kill,
            "folder": str(tmp_path / folder), "stretch_bytes": prefix_cache.STRETCH_BYTES,
        }  # fmt: skip
        process.stdin.write(json.dumps(given) + "\n")
        process.stdin.flush()
        return process

    return begin


def test_killed_and_two_at_once(start, make_cache, rows, tmp_path, deep_recipe, build):
    """A process is killed while it writes its third file. Two started together then share what is left, each file
    computed once, and agree to the last bit with each other and with one that was never disturbed."""
    folder = tmp_path / "cache"
    processes = [start("cache", kill=3), *(start("cache") for _ in range(2))]
    for process in processes:
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
    out, errors = processes[0].communicate("go\n")
    assert processes[0].returncode == -signal.SIGKILL, errors
    assert not out
    assert len(files(folder)) == 2
    assert sorted(name.rpartition(".")[2] for name in litter(folder)) == ["lock", "tmp"]
    for process in processes[1:]:
        process.stdin.write("go\n")
        process.stdin.flush()
    done = [process.communicate() for process in processes[1:]]
    assert [process.returncode for process in processes[1:]] == [0, 0], done
    stretches = [[6, 21], [14, 9, 3], [17, 12], [8]]  # tokens of the texts in each file, at most 30
    assert [n for file in stretches for n in file] == LENGTHS
    (computed, reused, logits), other = (json.loads(out) for out, _ in done)
    n_kept = sum(len(file) for file in stretches[:2])
    assert computed + other[0] == len(rows) - n_kept
    assert computed + reused == other[0] + other[1] == len(rows)
    assert logits == other[2]
    assert not litter(folder)
    model = build(deep_recipe("LlamaConfig"))
    _, whole = make_cache(rows, folder="undisturbed", model=model)
    assert whole.used.computed == len(rows)
    assert {file.name: file.read_bytes() for file in files(folder)} == {
        file.name: file.read_bytes() for file in files(tmp_path / "undisturbed")
    }
    from lora_cls.training.batches import EvalBatches
    from lora_cls.training.loop import predict_logits

    assert predict_logits(model, tokens_of(rows), batches=EvalBatches(4), pad_id=0).tolist() == logits
