"""The templates of what the package writes for people: the page, cards, comparisons, and snippets of code.

What is put into HTML and SVG (`*.html.j2`, `*.svg.j2`) is escaped. Into code it goes through `repr`, or `quoted` where
the code has double quotes, and `name` where it names something; into a line or the cells of a table in Markdown through
`line`; code into Markdown through `fenced`.
"""

from __future__ import annotations

import re
from functools import cache
from html import escape
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from lora_cls.errors import RunError, visible

MARKDOWN = re.compile(r"[\\`*\[\]|~#$@]|(?<![^\W_])_|_(?![^\W_])|(?<=:)/|(?<=www)\.", re.IGNORECASE)
"""What Markdown would read as something else than text: also mathematics, and addresses that are made links."""


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
    environment.filters |= {
        "markup": Markup,
        "repr": repr,
        "quoted": _quoted,
        "name": _name,
        "line": _line,
        "fenced": _fenced,
    }
    return environment


def resource(path: str) -> str:
    """The text of a file beside this one, which may lie in an archive."""
    return resources.files("lora_cls.report").joinpath(*path.split("/")).read_text(encoding="utf-8")


def _quoted(text: str) -> str:
    """Python for a text, in double quotes where it has none itself."""
    return repr(text) if '"' in text else '"' + repr(f"'{text}")[2:]


def _name(text: str) -> str:
    """A name as code has it: anything else in its place would be code of whoever wrote it."""
    if not text.isidentifier():
        raise RunError(f"run.json is damaged: {text!r} stands where a name such as 'float32' belongs.")
    return text


def _line(text: str) -> str:
    """Text that stays text, and one line, in a paragraph, heading or table of Markdown."""
    text = MARKDOWN.sub(lambda found: f"\\{found[0]}", visible(" ".join(text.splitlines())))
    return escape(text, quote=False)


def _fenced(code: str, language: str) -> str:
    """A code block that nothing within the code ends."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
    return f"{fence}{language}\n{code}{fence}"
