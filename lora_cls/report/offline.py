"""Pages that load nothing: one look, scripts that a policy allows by their digests, and values that are safe in them.

What users wrote (names, ids, texts) is escaped by Jinja wherever it stands in a page, isolated by `<bdi>` against
marks of writing direction, and free of control characters. The content security policy of a page allows its own
scripts, and nothing else: no request, no inline handler.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import cache
from typing import Any

from lora_cls.report.templating import fill, resource

LIBRARIES = ("d3", "plot")
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""Control characters, and halves of characters, which no page can hold."""


def fill_page(template: str, content: dict[str, Any], script: str | None = None) -> str:
    """A page of these values; with `script`, a file in `assets`, that script draws what stands in `figures`."""
    content = _printable(content)
    scripts = [] if script is None else _scripts(script)
    allowed = f"; script-src {' '.join(map(_digest, scripts))}" if scripts else ""
    return fill(
        template,
        **content,
        policy=f"default-src 'none'; style-src 'unsafe-inline'; img-src data:{allowed}",
        style=resource("assets/page.css"),
        scripts=scripts,
        payload=_json(content["figures"]) if scripts else "",
    )


@cache
def served_page() -> tuple[str, str]:
    """The page of a server, and its policy, which also goes into a header: it asks its own server, and nobody else."""
    script = resource("assets/serve.js")
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {_digest(script)}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'"
    )
    style = resource("assets/page.css") + resource("assets/serve.css")
    return fill("serve.html.j2", policy=policy, style=style, scripts=[script], payload="{}"), policy


@cache
def _scripts(own: str) -> list[str]:
    """The libraries, with their licences, which must go where they go; and what the pages share, with the own part."""
    libraries = [
        f"/*\n{resource(f'assets/vendor/{name}.LICENSE')}*/\n{resource(f'assets/vendor/{name}.min.js')}"
        for name in LIBRARIES
    ]
    return [*libraries, resource("assets/shared.js") + resource(f"assets/{own}")]


def _digest(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _json(values: Any) -> str:
    """JSON that can stand in a script element: ASCII, and no `<` that could end it."""
    text = json.dumps(values, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _printable(value: Any) -> Any:
    """The same with `UNPRINTABLE` characters replaced, in every string at any depth."""
    if isinstance(value, str):
        return UNPRINTABLE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_printable(key): _printable(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_printable(inner) for inner in value]
    return value
