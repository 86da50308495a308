"""YAML as recipes are written in: read with bounds, and written so that it reads back as it was.

What is read here is plain: maps, lists, words and numbers. Tags, and aliases to maps and lists, are refused: a few of
them make a short text endless.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NoReturn

import yaml
from yaml.events import AliasEvent, CollectionStartEvent
from yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode, SequenceNode

from lora_cls.errors import shown

LONGEST = 300_000
"""Characters of a text; 1,200 label names take 30,000, and to read them all seconds."""
DEEPEST = 20
"""Levels of maps and lists; a recipe has 4."""
MOST_DIGITS = 300
_TAG = "tag:yaml.org,2002:"
# YAML 1.2's, and of 1.1 only yes, no, on, off and underscores: no dates, no numbers to base 60, no 017 for 15
_PLAIN = {
    "null": (r"(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    "bool": (r"(?:yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$", list("yYnNtTfFoO")),
    "int": (r"(?:[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+|0o[0-7]+)$", list("-+0123456789")),
    "float": (
        r"(?:[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+0123456789."),
    ),
}


class YamlError(ValueError):
    """A text that is not YAML, or more than is read of it; the message is short and says where."""


@dataclass(frozen=True)
class Plain:
    """A scalar without quotes that YAML takes for something else than text.

    Attributes
    ----------
    value : as YAML has it: None, a bool, an int or a float
    text : as it is written
    """

    value: bool | int | float | None
    text: str


class _Loader(yaml.SafeLoader):
    """Composes nodes only; `_value` makes values of them."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012  (as PyYAML declares it)
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, AliasEvent):
            if isinstance(self.anchors.get(event.anchor), CollectionNode):
                _refuse(f"the alias *{event.anchor} stands for a map or a list: write it out", event.start_mark)
        elif getattr(event, "tag", None) is not None:
            _refuse(f"the tag {shown(event.tag)} has no meaning here: write the value without it", event.start_mark)
        self.depth += isinstance(event, CollectionStartEvent)
        if self.depth > DEEPEST:
            _refuse(f"maps and lists stand in each other more than {DEEPEST} levels deep", event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= isinstance(event, CollectionStartEvent)
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes every text that the loader, or another reader of YAML, would take for something else."""

    def represent_str(self, data: str) -> Any:
        """Line breaks that YAML folds into another one are written as escapes."""
        style = '"' if any(mark in data for mark in "\r\x85\u2028\u2029\ufeff") else None
        return self.represent_scalar(f"{_TAG}str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)


for _name, (_pattern, _first) in _PLAIN.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"{_TAG}{_name}", re.compile(_pattern), _first)


def _refuse(why: str, mark: Any) -> NoReturn:
    raise YamlError(f"{why} (line {mark.line + 1}, column {mark.column + 1})")


def read_yaml(text: str) -> Any:
    """One document: dict with keys of text, list, str and `Plain`.

    Raises
    ------
    YamlError
        If it is none, or longer, deeper or more than plain.

    Examples
    --------
    >>> read_yaml("{a: text, 1e3: [no]}")
    {'a': 'text', '1e3': [Plain(value=False, text='no')]}
    """
    if len(text) > LONGEST:
        raise YamlError(f"it has {len(text):,} characters; at most {LONGEST:,} are read")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        _refuse(
            " ".join(shown(part, quoted=False) for part in (error.context, error.problem) if part), error.problem_mark
        )
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # ValueError: an escape beyond Unicode
        if isinstance(error, YamlError):
            raise
        raise YamlError(shown(" ".join(str(error).split()), quoted=False)) from None
    return Plain(None, "") if node is None else _value(node)


def _value(node: Node) -> Any:
    if isinstance(node, SequenceNode):
        return [_value(item) for item in node.value]
    if isinstance(node, MappingNode):
        values: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                _refuse("a map or a list stands where the name of a field is expected", key.start_mark)
            if key.value in values:
                _refuse(f"{shown(key.value)} is given twice", key.start_mark)
            values[key.value] = _value(value)
        return values
    kind, written = node.tag.removeprefix(_TAG), node.value
    if kind == "str":
        return written
    if kind == "null":
        return Plain(None, written)
    if kind == "bool":
        return Plain(written.lower() in ("yes", "true", "on"), written)
    if len(written) > MOST_DIGITS:
        return written  # no number of a recipe; it may still be a name
    number = written.replace("_", "")
    if kind == "float":
        return Plain(float(number.lower().replace(".inf", "inf").replace(".nan", "nan")), written)
    return Plain(int(number, {"0x": 16, "0o": 8}.get(number[:2], 10)), written)


def write_yaml(values: Any) -> str:
    """Text that `read_yaml` reads as the same values, fields in their order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
