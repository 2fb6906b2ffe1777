"""In: a page with `$...$` and `$$...$$`. Out: the same with MathML, which browsers draw without any script."""

from __future__ import annotations

import re
from typing import Any

from latex2mathml.converter import convert

# Code, fenced or inline, is left alone.
_PARTS = re.compile(r"(```.*?```|`[^`\n]*`)|\$\$(.+?)\$\$|\$([^$\n]+?)\$", re.S)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for every page."""

    def drawn(found: re.Match[str]) -> str:
        if found.group(1) is not None:
            return found.group(1)
        block = found.group(2)
        if block is not None:
            return f"\n<p>{convert(' '.join(block.split()), display='block')}</p>\n"
        return convert(found.group(3).strip())

    return _PARTS.sub(drawn, markdown)
