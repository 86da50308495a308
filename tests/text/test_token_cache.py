"""Token ids on disk: the same as without, found only for the same texts and tokenizer, and rebuilt when damaged."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from lora_cls.modeling.loading import load_tokenizer
from lora_cls.recipe import Backbone, Data
from lora_cls.text import token_cache
from lora_cls.text.token_cache import TokenCache
from lora_cls.text.tokens import Frame, encode

TEXTS = ["happy dog", "", "a letter from our friend in the garden", "<s> happy \ud800 odd"]
DATA = Data(max_length=6, long_text="chunk")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache for texts of any number."""
    monkeypatch.setattr(token_cache, "MIN_CHARACTERS", 0)
    return TokenCache(tmp_path / "tokens")


@pytest.fixture
def tokenizer(tiny_model):
    return load_tokenizer(Backbone(name_or_path=tiny_model("llama")))


def same(a, b):
    assert [ids.tolist() for ids in a.ids] == [ids.tolist() for ids in b.ids]
    assert {ids.dtype for ids in a.ids} == {ids.dtype for ids in b.ids} == {np.dtype(np.int64)}
    np.testing.assert_array_equal(a.text, b.text)
    np.testing.assert_array_equal(a.truncated, b.truncated)


def files(cache):
    return sorted(cache.folder.iterdir())


def never(*arguments, **options):
    raise AssertionError("tokenised again")


class Known:
    """The tokenizer, which must not be asked for texts again."""

    def __new__(cls, tokenizer, monkeypatch):
        monkeypatch.setattr(type(tokenizer), "__call__", never)
        return tokenizer


def test_same_ids_and_tokenised_once(cache, tokenizer, monkeypatch):
    """The second time nothing is tokenised, also where texts are cut and framed in another way."""
    texts = TEXTS[:3]
    frame, other = Frame([1], [2]), Frame([1, 5, 6], [])
    plain, short = encode(tokenizer, texts, DATA, frame), encode(tokenizer, texts, Data(max_length=5), other)
    same(encode(tokenizer, texts, DATA, frame, cache=cache), plain)
    assert cache.reused == 0
    known = Known(tokenizer, monkeypatch)
    same(encode(known, texts, DATA, frame, cache=cache), plain)
    same(encode(known, texts, Data(max_length=5), other, cache=cache), short)
    assert cache.reused == 6
    assert len(files(cache)) == 1


def test_what_makes_another_entry(cache, tokenizer, tiny_model):
    """Other texts, another order or division of them, another lead, special tokens as letters, another tokenizer."""
    other = load_tokenizer(Backbone(name_or_path=tiny_model("qwen2")))
    taught = load_tokenizer(Backbone(name_or_path=tiny_model("llama")))
    taught.add_tokens(["happy"])
    keys = [
        cache.key(tokenizer, ["ab", "c"], "", "False"),
        cache.key(tokenizer, ["a", "bc"], "", "False"),
        cache.key(tokenizer, ["c", "ab"], "", "False"),
        cache.key(tokenizer, ["ab", "c"], " ", "False"),
        cache.key(tokenizer, ["ab", "c"], "", "True"),
        cache.key(other, ["ab", "c"], "", "False"),
        cache.key(taught, ["ab", "c"], "", "False"),
    ]
    assert None not in keys
    assert len(set(keys)) == len(keys)
    assert cache.key(tokenizer, ["ab", "c"], "", "False") == keys[0]
    assert cache.key(tokenizer, TEXTS, "") is not None  # half a surrogate pair is a text, too


def test_what_is_not_kept(tmp_path, tokenizer):
    """Few texts, and tokenizers whose Python code decides."""
    cache = TokenCache(tmp_path / "tokens")
    assert cache.key(tokenizer, TEXTS, "") is None
    encode(tokenizer, TEXTS[:3], DATA, cache=cache)
    assert not cache.folder.exists()

    class Own(type(tokenizer)):
        pass

    tokenizer.__class__ = Own
    assert cache.key(tokenizer, ["a" * token_cache.MIN_CHARACTERS], "") is None


@pytest.mark.parametrize("damage", ["half", "byte", "empty", "nothing of ours", "folder"])
def test_damaged_files_are_rebuilt(cache, tokenizer, damage):
    """A file that was cut, or in which one bit is another, is not believed."""
    plain = encode(tokenizer, TEXTS[:3], DATA, cache=cache)
    (file,) = files(cache)
    whole = file.read_bytes()
    changed = bytearray(whole)
    changed[-3] ^= 1
    file.unlink()
    if damage == "folder":
        (file / "in it").mkdir(parents=True)
    else:
        file.write_bytes(
            {"half": whole[: len(whole) // 2], "byte": changed, "empty": b"", "nothing of ours": b"x" * 999}[damage]
        )
    same(encode(tokenizer, TEXTS[:3], DATA, cache=cache), plain)
    assert cache.reused == 0
    assert file.read_bytes() == whole


def test_least_recently_used_goes_first(cache, tokenizer):
    """What was read counts as used."""
    long = [["happy " * 200 + word] for word in ("dog", "house", "train", "week")]
    names = []
    for i, texts in enumerate(long[:3]):
        encode(tokenizer, texts, DATA, cache=cache)
        names.append(cache.folder / f"{cache.key(tokenizer, texts, '', 'False')}.safetensors")
        os.utime(names[-1], (i + 1, i + 1))
    encode(tokenizer, long[0], DATA, cache=cache)
    cache.limit = 3 * max(name.stat().st_size for name in names) + 64
    encode(tokenizer, long[3], DATA, cache=cache)
    assert [name.exists() for name in names] == [True, False, True]
    assert sum(file.stat().st_size for file in files(cache)) <= cache.limit


def test_a_folder_that_cannot_be_written(cache, tokenizer, monkeypatch):
    """The ids are the same, and a note says what to set."""
    said = []
    cache._said = said.append
    cache.folder.write_text("a file")
    same(encode(tokenizer, TEXTS[:3], DATA, cache=cache), encode(tokenizer, TEXTS[:3], DATA))
    assert len(said) == 1 and "LORA_CLS_CACHE names another folder" in said[0]


def test_a_folder_that_can_only_be_read(cache, tokenizer, monkeypatch):
    """What it holds is used."""
    frame = Frame([1], [2])
    plain = encode(tokenizer, TEXTS[:3], DATA, frame, cache=cache)

    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(os, "mkdir", refuse)
    same(encode(Known(tokenizer, monkeypatch), TEXTS[:3], DATA, frame, cache=cache), plain)


PROCESS = """
import sys, time
from pathlib import Path
from lora_cls.text import token_cache
from lora_cls.text.tokens import Frame, encode
from lora_cls.recipe import Data

class Letters:
    class backend_tokenizer:
        to_str = staticmethod(lambda: "letters")

    def __call__(self, texts, **options):
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}

Letters.__module__ = "transformers.letters"
token_cache.MIN_CHARACTERS = 0
folder, begin = sys.argv[1:]
cache = token_cache.TokenCache(Path(folder))
time.sleep(max(0, float(begin) - time.time()))
for i in range(100):
    texts = [f"happy dog {i} {j}" for j in range(300)]
    with_cache, without = (encode(Letters(), texts, Data(), Frame([], []), cache=c) for c in (cache, None))
    assert [ids.tolist() for ids in with_cache.ids] == [ids.tolist() for ids in without.ids]
print(cache.reused)
"""


def test_two_processes(tmp_path):
    """Two processes that write and read the same entries agree, and leave one file for each."""
    command = [sys.executable, "-c", PROCESS, str(tmp_path / "tokens"), str(time.time() + 3)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    names = [file.suffix for file in (tmp_path / "tokens").iterdir()]
    assert names == [".safetensors"] * 100


def test_in_a_run(tiny_recipe, emotion_table, monkeypatch):
    """A learner finds its tables again and says so; `engine.token_cache: false` leaves no file and gives the same."""
    from lora_cls.data import load_train
    from lora_cls.training.factory import make_learner

    monkeypatch.setattr(token_cache, "MIN_CHARACTERS", 0)
    data = load_train(Data(), emotion_table(24, seed=91))
    recipe = tiny_recipe("llama")
    off = make_learner(tiny_recipe("llama", engine__token_cache=False), data.label_names)
    learners = [make_learner(recipe, data.label_names) for _ in range(2)]
    expected, *found = [learner.prepare(data).rows.tokens for learner in [off, *learners]]
    assert [learner.reused for learner in [off, *learners]] == [{}, {}, {"token_ids": 24}]
    for tokens in found:
        same(tokens, expected)
