"""The page: its template, style and modules in one file, with the data of the runs.

Rules of this file: the page asks for nothing from anywhere, and says so in its content policy. What comes from a log is
deflated JSON in base64, so that no text of it can be markup.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
import zlib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import orjson

from ..encoding import Json
from ..wording import escaped

MODULES = (
    *("columns", "format", "dom", "run", "view", "scales", "drawing", "pointer", "whatif", "curves", "lanes"),
    *("inspector", "machine", "keys", "main"),
)
"""The modules in `page/`, each after those that it imports."""

_FOLDER = files(__package__) / "page"
_HEADING = b"<h1>fsm-train view</h1>"  # of page.html
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./(\w+)\.js";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|const|let|class)\b)", re.MULTILINE)
_COMMENT = re.compile(r"^ *//.*\n", re.MULTILINE)
_BLANK = re.compile(r"\n{2,}")


@functools.cache
def script() -> str:
    """The modules as one script: without their imports and exports, since they share a scope, and without comments."""
    parts = []
    for name in MODULES:
        source = (_FOLDER / f"{name}.js").read_text(encoding="utf-8")
        parts.append(_COMMENT.sub("", _EXPORT.sub("", _IMPORT.sub("", source))))
    return _BLANK.sub("\n", "\n".join(parts))


@functools.cache
def style() -> str:
    """The style of the page."""
    return (_FOLDER / "page.css").read_text(encoding="utf-8")


def is_page(path: Path) -> bool:
    """Whether this file was written here."""
    return _HEADING in path.read_bytes()


def page(data: Mapping[str, Json], title: str) -> str:
    """The page as HTML.

    Args:
        data: what the script shows: `runs`, `machine` and `differences`.
        title: of the page; it may come from anywhere.
    """
    packed = base64.b64encode(zlib.compress(orjson.dumps(data), 9)).decode()
    parts = {
        "title": _as_markup(title),
        "style": style(),
        "script": script(),
        "style_hash": _hash(style()),
        "script_hash": _hash(script()),
        "data": packed,
    }
    template = (_FOLDER / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


_MARKUP = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;"}


def _as_markup(text: str) -> str:
    return "".join(_MARKUP.get(character, character) for character in escaped(text))
