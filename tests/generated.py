"""Parts of a README that a program writes: they stand between `<!-- name -->` and `<!-- /name -->`."""

from __future__ import annotations

import re
from pathlib import Path


def marked(name: str, text: str) -> str:
    """The text between its marks."""
    return f"<!-- {name} -->\n{text}\n<!-- /{name} -->"


def write_block(path: Path, name: str, text: str) -> None:
    """Put the text between its marks in a file, in place of what stands there."""
    found = re.compile(rf"<!-- {name} -->.*<!-- /{name} -->", re.DOTALL)
    path.write_text(found.sub(lambda _: marked(name, text), path.read_text()))
