"""Recipes as YAML: whatever loads reads back as it was, and no text hangs, crashes or floods the terminal."""

import random
import time
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_cls.errors import RecipeError
from lora_cls.recipe import load_recipe
from lora_cls.runs.folder import recipe_bytes
from lora_cls.yaml_text import LONGEST, YamlError, read_yaml, write_yaml

NAMES = [
    "1e3", "null", "~", "2019", "yes", "No", "on", "0x1f", "0o17", "017", "1_000", "1_0.5", "2020-01-01", "=",
    "<<", "1:30", ".inf", "-.INF", ".nan", ".5", "5.", "+1", "true", "TRUE", "", " ", "-", "- a", "? a",
    "a: b", "a #b", "#", "!x", "!!int", "&a", "*a", "[a", "{a}", "|", ">", "%", "@", "`", "'", '"', "\\",
    "\n", "a\nb", "\r", "\r\n", "\t", " a", "a ", "\x85", "\u2028", "\ufeff", "\xa0", "\x00", "\x1b[31m",
    "\U0001f600", "---", "...", "1e400", "9" * 400, "word " * 60, "x" * 300, "2020-13-45", "0b1", "1E5",
    "1.e+5", "0xg", "_1", "1_", "--1",
]  # fmt: skip
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.sampled_from(NAMES)
NUMBERS = st.floats(min_value=1e-6, max_value=1e6)


def again(recipe, folder):
    """A recipe as a run folder keeps it and reads it."""
    (folder / "recipe.yaml").write_bytes(recipe_bytes(recipe))
    return load_recipe(folder / "recipe.yaml")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("field", ["label_columns", "text_columns", "ignore_columns"])
def test_column_of_any_name(tmp_path, name, field):
    """A column may be called like a number, a date or a sign of YAML: the run's recipe.yaml reads back."""
    recipe = load_recipe({"tfidf": {}, "lora": None, "data": {field: [name, f"{name}!"]}})
    assert again(recipe, tmp_path) == recipe


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_every_recipe_that_loads_reads_back(tmp_path_factory, data):
    """Any names, words and numbers in any of the fields: equal after writing and reading."""
    draw = data.draw
    values = {
        "backbone": {"name_or_path": draw(TEXTS | st.just("org/model"))},
        "head": draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "kind": st.just("label_tokens"),
                    "prompt": TEXTS.map(lambda text: text.replace("{text}", "") + "{text}"),
                    "label_words": st.dictionaries(TEXTS, TEXTS, max_size=3),
                    "learning_rate": NUMBERS,
                },
            ),
        ),
        "lora": draw(
            st.fixed_dictionaries({}, optional={"target_modules": st.lists(TEXTS, max_size=3), "lora_alpha": NUMBERS})
        ),
        "data": draw(
            st.fixed_dictionaries(
                {},
                optional={
                    name: TEXTS | st.none()
                    for name in ("train", "test", "id_column", "text_template", "group_column", "label_delimiter")
                }
                | {name: st.lists(TEXTS, max_size=4) for name in ("label_columns", "text_columns", "ignore_columns")},
            )
        ),
        "train": {"learning_rate": draw(NUMBERS), "seed": draw(st.integers(0, 2**32 - 1))},
        "loss": {"pos_weight": draw(st.lists(NUMBERS, max_size=3) | st.just("none"))},
    }
    recipe = None
    with suppress(RecipeError):
        recipe = load_recipe(values)
    if recipe is not None:
        assert again(recipe, tmp_path_factory.mktemp("run")) == recipe


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


def unwrapped(value):
    if isinstance(value, list):
        return [unwrapped(item) for item in value]
    if isinstance(value, dict):
        return {key: unwrapped(item) for key, item in value.items()}
    return getattr(value, "value", value)


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_written_values_read_back(values):
    """The writer and the reader agree on every kind of value, down to its type."""
    assert repr(unwrapped(read_yaml(write_yaml(values)))) == repr(values)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &a [x]\nb: &b [*a, *a]\n", r"alias \*a stands for a map or a list.*line 2, column 8"),
        ("a: &a {x: 1}\n<<: *a\n", r"alias \*a"),
        ("a: !!int abc", "tag"),
        ("a: !!binary abc", "tag"),
        ("a: !!set {b}", "tag"),
        ("a: !mine b", "tag"),
        ("a: " + "[" * 300 + "]" * 300, "20 levels deep"),
        ("a:\n" + "".join(f"{' ' * i}- \n" for i in range(1, 300)), "20 levels deep"),
        ("a: 1\na: 2", r"'a' is given twice.*line 2"),
        ("? [a]\n: 1", "name of a field"),
        ("a: 1\n---\nb: 1", "single document"),
        ('a: "\\UFFFFFFFF"', "too large"),
        ("a: \x00", "not allowed"),
        ("a" * (LONGEST + 1), "at most 300,000"),
        ("[" * 200_000, "20 levels deep"),
    ],
)
def test_refused(tmp_path, text, words):
    """What is more than plain YAML is refused in a sentence, in the file and in --set."""
    with pytest.raises(YamlError, match=words) as error:
        read_yaml(text)
    assert len(str(error.value)) < 500
    file = tmp_path / "r.yaml"
    file.write_text(text, encoding="utf-8")
    for said in (lambda: load_recipe(file), lambda: load_recipe("minilm-l6", [f"data.label_columns={text}"])):
        with pytest.raises(RecipeError) as refused:
            said()
        assert len(str(refused.value)) < 2000


def test_aliases_never_grow(tmp_path):
    """500 bytes of aliases that stand for gigabytes end at once."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    file = tmp_path / "r.yaml"
    file.write_text("\n".join(lines))
    started = time.monotonic()
    with pytest.raises(RecipeError) as error:
        load_recipe(file)
    assert time.monotonic() - started < 5
    assert len(str(error.value)) < 2000


PIECES = [
    "backbone", "data", "lora", "train", "label_columns", "name_or_path", "epochs", "r", "loss", "pos_weight",
    "C", "tfidf", ":", ": ", "\n", "\n  ", "\n- ", "[", "]", "{", "}", ",", ", ", "&a ", "*a", "!!int ",
    "!!python/object:os.system ", "'", '"', "|", ">", "#", "?", "? ", "-", "=", ".", "%YAML 1.1\n", "---\n",
    "...", "\t", "\x00", "\x85", "\ufeff", "\xe9", "<<: ", "null", "yes", "1e3", "1e999", ".inf", "-.inf",
    ".nan", "9" * 5000, "-1", "0", "2**32", "4294967296", "1e-320", "2020-13-45", "x" * 3000, "(", "(" * 200,
    "[" * 300, "{text}", "\\", '"\\', "\\ud800", "1:30", "0x", "0o8", "1__0", "~",
]  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_any_text_as_recipe_or_override(tmp_path, seed):
    """Scrambled recipes and `--set` strings end in a RecipeError that a terminal can show, or load."""
    rng, file = random.Random(seed), tmp_path / "r.yaml"
    good = (
        "backbone: {name_or_path: org/model}\nlora: {r: 4}\ndata: {label_columns: [a, b]}\nloss: {pos_weight: [1, 2]}\n"
    )
    for _ in range(250):
        text = "".join(rng.choices(PIECES, k=rng.randint(1, 12)))
        at = rng.randint(0, len(good))
        override = f"{rng.choice(['lora.r', 'data.label_columns', 'train', 'loss.pos_weight', 'tfidf.C', text])}={text}"
        for recipe, overrides in ((file, []), ({"backbone": {"name_or_path": "org/model"}}, [override])):
            file.write_text(good[:at] + text + good[at + rng.randint(0, 9) :], encoding="utf-8")
            started = time.monotonic()
            said = ""
            try:
                loaded = load_recipe(recipe, overrides)
            except RecipeError as error:
                said = str(error)
            else:
                assert again(loaded, tmp_path) == loaded
            assert len(said) < 2000
            assert time.monotonic() - started < 10
