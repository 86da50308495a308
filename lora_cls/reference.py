"""The reference of a recipe's fields, made of the models that check them: names, types, defaults and meanings.

`lora-cls recipes fields` prints it, and `python -m lora_cls.reference recipes/README.md` writes it into that file.
"""

from __future__ import annotations

import json
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lora_cls.errors import RecipeError, did_you_mean, shown
from lora_cls.recipe import Recipe, field_hint, section_type

BEGIN = "<!-- The fields, written by `python -m lora_cls.reference recipes/README.md`: do not edit by hand. -->"
END = "<!-- End of the fields. -->"
TOP = "recipe"
"""What the fields outside of all sections stand under."""
_NAMES = {str: "str", int: "int", float: "number", bool: "true or false", Any: "value"}
_BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


@dataclass(frozen=True)
class FieldReference:
    """One field, as `train.learning_rate`, `number > 0`, `0.0002` (or `required`), and what it means."""

    name: str
    type: str
    default: str
    meaning: str


@dataclass(frozen=True)
class SectionReference:
    """One section, what it is, and its fields in the order of the recipe."""

    name: str
    meaning: str
    fields: tuple[FieldReference, ...]


def sections() -> list[SectionReference]:
    """All of a recipe: the fields outside of sections first, then section by section."""
    inner = {name: section_type(info.annotation) for name, info in Recipe.model_fields.items()}
    values = [_field(name, Recipe.model_fields[name]) for name, model in inner.items() if model is None]
    return [
        SectionReference(TOP, _one_line(Recipe.__doc__), tuple(values)),
        *(_section(name, model, Recipe.model_fields[name]) for name, model in inner.items() if model is not None),
    ]


def _section(name: str, model: type[BaseModel], info: FieldInfo) -> SectionReference:
    parts = [model.__doc__, info.description, "Default: null." if info.default is None else None]
    fields = (_field(f"{name}.{key}", inner) for key, inner in model.model_fields.items())
    return SectionReference(name, _one_line(" ".join(part for part in parts if part)), tuple(fields))


def _field(name: str, info: FieldInfo) -> FieldReference:
    words = describe_type(info.annotation, info.metadata)
    default = "required" if info.is_required() else _value(info.default)
    return FieldReference(name, words, default, _one_line(info.description))


def describe_type(annotation: Any, constraints: list[Any]) -> str:
    """A type in words, as `number > 0, or null`.

    Parameters
    ----------
    annotation : of a field
    constraints : pydantic's, such as `Ge(ge=1)`; they hold for all but null
    """
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    words = ", or ".join(_plain(member) for member in members if member is not NoneType)
    lengths = [constraint.min_length for constraint in constraints if hasattr(constraint, "min_length")]
    words += _limits(constraints)
    words += "".join(", not empty" if least == 1 else f", at least {least}" for least in lengths)
    return words + (", or null" if NoneType in members else "")


def _limits(constraints: list[Any]) -> str:
    """`" > 0 and <= 1"`, or an empty string."""
    limits = [
        f"{sign} {_number(getattr(constraint, key))}"
        for constraint in constraints
        for key, sign in _BOUNDS.items()
        if hasattr(constraint, key)
    ]
    return f" {' and '.join(limits)}" if limits else ""


def _number(value: float) -> str:
    """In full where it is whole and not too long to read."""
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e10 else f"{value:g}"


def _plain(annotation: Any) -> str:
    """One member of a union in words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _plain(inner[0]) + "".join(_limits(field.metadata) for field in inner[1:])
    if origin is Literal:
        return ("one of " if len(inner) > 1 else "") + ", ".join(_value(value) for value in inner)
    if origin is list:
        return f"list of {_plain(inner[0])}"
    if origin is tuple:
        return f"list of {len(inner)} {_plain(inner[0])}"
    if origin is dict:
        return f"map of {_plain(inner[0])} to {_plain(inner[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"{{{', '.join(annotation.model_fields)}}}"
    return _NAMES[annotation]


def _value(value: Any) -> str:
    """A value as YAML has it."""
    return value if isinstance(value, str) else json.dumps(value)


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def as_text(part: SectionReference | FieldReference) -> str:
    """For the terminal."""
    if isinstance(part, FieldReference):
        default = part.default if part.default == "required" else f"default {part.default}"
        return f"{part.name}: {part.type}; {default}\n" + textwrap.indent(_wrapped(part.meaning), "    ")
    return "\n\n".join([_wrapped(f"{part.name}: {part.meaning}"), *map(as_text, part.fields)])


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 96, break_on_hyphens=False)


def as_markdown(section: SectionReference) -> str:
    """A heading, the meaning, and a table of the fields."""
    lines = [f"### {section.name}", "", section.meaning, ""]
    lines += ["| field | type | default | meaning |", "|---|---|---|---|"]
    for field in section.fields:
        default = "required" if field.default == "required" else f"`{field.default}`"
        cells = (f"`{field.name}`", field.type, default, field.meaning)
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines)


def look_up(name: str | None) -> str:
    """The reference of one section or field for the terminal; None is all of it.

    Raises
    ------
    RecipeError
        If there is neither; names the nearest.
    """
    parts: dict[str, SectionReference | FieldReference] = {section.name: section for section in sections()}
    if name is None:
        return "\n\n\n".join(map(as_text, parts.values()))
    parts |= {field.name: field for section in sections() for field in section.fields}
    if name not in parts:
        hint = field_hint(name) or did_you_mean(name[:100], parts)
        raise RecipeError(
            f"No section or field {shown(name)} in the reference.{hint} Sections: "
            f"{', '.join(section.name for section in sections())}."
        )
    return as_text(parts[name])


def renewed(text: str) -> str:
    """A file's text with what stands between the two marks made anew."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise RecipeError(f"The file must hold the lines '{BEGIN}' and '{END}', in this order.")
    return "\n\n".join([before + BEGIN, *map(as_markdown, sections()), END + after])


if __name__ == "__main__":
    file = Path(sys.argv[1])
    file.write_text(renewed(file.read_text(encoding="utf-8")), encoding="utf-8")
