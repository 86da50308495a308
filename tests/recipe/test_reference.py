"""The reference of fields: complete, true to what the recipe accepts, and current in recipes/README.md."""

import re
from pathlib import Path
from typing import Literal

import pytest
import yaml
from pydantic.fields import FieldInfo

from lora_cls.errors import RecipeError
from lora_cls.recipe import Recipe, flatten, load_recipe, section_type
from lora_cls.reference import (
    FieldReference,
    SectionReference,
    as_markdown,
    as_text,
    describe_type,
    look_up,
    renewed,
    sections,
)

README = Path(__file__).parents[2] / "recipes" / "README.md"
FIELDS = {field.name: field for section in sections() for field in section.fields}


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.name)
def test_every_field_has_a_description(section):
    """Every field says what it means, and where it may be null, what that means."""
    assert [field.name for field in section.fields if not field.meaning] == []
    nullable = [field for field in section.fields if field.type.endswith("or null")]
    assert [field.name for field in nullable if "null" not in field.meaning.lower()] == []


def test_every_section_has_a_docstring():
    """Every section says what it is."""
    models = [Recipe, *(section_type(info.annotation) for info in Recipe.model_fields.values())]
    assert [model.__name__ for model in models if model is not None and not model.__doc__] == []


def test_no_field_is_missing():
    """What a recipe with every section holds is what the reference names."""
    sections = {
        "backbone": {"name_or_path": "org/model"},
        "quantization": {"load_in_4bit": True},
        "sweep": {},
        "adapt": {},
        "distill": {"teachers": ["run"]},
    }
    whole = Recipe(task="multi_label", **sections)
    names = set(flatten(whole.to_dict())) - {"tfidf", "blend"}
    assert names == {name for name in FIELDS if not name.startswith(("tfidf.", "blend."))}
    assert set(flatten(Recipe(tfidf={}, lora=None).to_dict()["tfidf"], "tfidf.")) <= set(FIELDS)


def test_defaults_are_those_of_the_recipe():
    """Every default of the reference, read as YAML and set as an override, changes nothing."""
    bases = {"tfidf": {"tfidf": {}, "lora": None}, "sweep": {"tfidf": {}, "lora": None, "sweep": {}}}
    bases["adapt"] = {"backbone": {"name_or_path": "org/model"}, "adapt": {}}
    for field in FIELDS.values():
        section = field.name.partition(".")[0]
        if section in ("blend", "distill", "quantization") or field.default == "required":
            continue  # the first two have fields that are required, and of the third the defaults alone are refused
        base = load_recipe(bases.get(section, {"backbone": {"name_or_path": "org/model"}}))
        assert load_recipe(base, {field.name: yaml.safe_load(field.default)}) == base, field


@pytest.mark.parametrize(
    ("annotation", "constraints", "words"),
    [
        (float, {"gt": 0}, "number > 0"),
        (float | None, {"ge": 0, "lt": 0.5}, "number >= 0 and < 0.5, or null"),
        (bool, {}, "true or false"),
        (Literal["linear", "label_tokens"], {}, "one of linear, label_tokens"),
        (Literal[True, "gaussian"], {}, "one of true, gaussian"),
        (Literal["balanced"] | None, {}, "balanced, or null"),
        (Literal["none", "sqrt"] | list[float], {}, "one of none, sqrt, or list of number"),
        (list[str] | None, {}, "list of str, or null"),
        (list[str], {"min_length": 2}, "list of str, at least 2"),
        (str | None, {"min_length": 1}, "str, not empty, or null"),
        (tuple[int, int], {}, "list of 2 int"),
        (dict[str, str] | None, {}, "map of str to str, or null"),
    ],
)
def test_types_in_words(annotation, constraints, words):
    """A type is said in words, with its limits."""
    info = FieldInfo.from_annotated_attribute(annotation, FieldInfo(annotation=annotation, **constraints))
    assert describe_type(info.annotation, info.metadata) == words


def test_markdown_table_is_safe():
    """A pipe in a cell is escaped: every row of every table has four cells."""
    odd = FieldReference("a.b", "one of |, ,", "|", "Splits `a|b`.")
    tables = [as_markdown(section) for section in [*sections(), SectionReference("a", "Odd.", (odd,))]]
    rows = [line for table in tables for line in table.splitlines() if line.startswith("|")]
    assert {len(re.split(r"(?<!\\)\|", row)) for row in rows} == {6}
    assert r"| `a.b` | one of \|, , | `\|` | Splits `a\|b`. |" in rows


def test_look_up():
    """A section holds its fields, a field is itself alone, everything is all sections."""
    assert look_up("train.learning_rate") == as_text(FIELDS["train.learning_rate"])
    assert look_up("train.learning_rate") in look_up("train")
    assert all(f"\n{name}: " in look_up(None) for name in FIELDS)


@pytest.mark.parametrize(("name", "nearest"), [("trian", "train"), ("train.lr_schedule", "train.lr_scheduler_type")])
def test_look_up_of_a_wrong_name(name, nearest):
    """The nearest name is offered, and the sections are named."""
    with pytest.raises(RecipeError, match=f"Did you mean '{nearest}'.*thresholds"):
        look_up(name)


def test_readme_is_current():
    """recipes/README.md holds the reference as the code makes it."""
    text = README.read_text(encoding="utf-8")
    assert renewed(text) == text, "recipes/README.md is old: python -m lora_cls.reference recipes/README.md"


def test_renewing_keeps_the_rest():
    """What is written by hand stays, the old reference goes, and a file without marks is refused."""
    begin, _, end = (line for line in re.findall(r"<!-- .* -->|^### train$", README.read_text(), re.MULTILINE))
    text = renewed(f"Above.\n\n{begin}\nold\n{end}\n\nBelow.\n")
    assert text.startswith(f"Above.\n\n{begin}\n\n### recipe\n") and text.endswith(f"\n\n{end}\n\nBelow.\n")
    assert "old" not in text.splitlines()
    assert renewed(text) == text
    with pytest.raises(RecipeError, match="End of the fields"):
        renewed(f"Above.\n{begin}\n")
