"""The templates of what the package writes for people: the page, cards, comparisons, and snippets of code.

What is put into HTML and SVG (`*.html.j2`, `*.svg.j2`) is escaped. Into code it goes through `repr`, or `quoted` where
the code has double quotes; into the cells of a Markdown table through `cell`.
"""

from __future__ import annotations

import json
from functools import cache
from html import escape
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup


def fill(template: str, /, **values: Any) -> str:
    """The text of a template in `lora_cls/report/templates`; a value that it uses and is not given is an error."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(lambda name: resource(f"templates/{name}")),
        autoescape=lambda name: name is not None and name.endswith((".html.j2", ".svg.j2")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"markup": Markup, "repr": repr, "quoted": _quoted, "cell": _cell}
    return environment


def resource(path: str) -> str:
    """The text of a file beside this one, which may lie in an archive."""
    return resources.files("lora_cls.report").joinpath(*path.split("/")).read_text(encoding="utf-8")


def _quoted(text: str) -> str:
    """Python for a text, in double quotes: JSON's strings are Python's, too."""
    return json.dumps(text, ensure_ascii=False)


def _cell(text: str) -> str:
    """Text that stays text in a Markdown table."""
    return escape(text, quote=False).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
