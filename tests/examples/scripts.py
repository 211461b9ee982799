"""The scripts in `examples/`, run in this process, so that a plain loop can use what they define."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> SimpleNamespace:
    """What the script defines: all of its names, after it has run as far as an import runs it."""
    return SimpleNamespace(**runpy.run_path(str(EXAMPLES / name)))
