"""The scripts in `examples/`, run in this process, so that a plain loop can use what they define."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> SimpleNamespace:
    """Run the script, and return all names that it has at its end."""
    return SimpleNamespace(**runpy.run_path(str(EXAMPLES / name), run_name="__main__"))
