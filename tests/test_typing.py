"""What a type checker makes of code that uses the package: see tests/typing/api.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.long(alone=True)  # the gate begins with mypy, which is told of that file too
def test_types_help_those_who_use_them() -> None:
    """Correct code passes, and each misuse is an error on its line: a `type: ignore` that ignores none is one too."""
    command = [sys.executable, "-m", "mypy", "--strict", "tests/typing/api.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)

    assert done.stdout == "Success: no issues found in 1 source file\n"
    assert (ROOT / "tests/typing/api.py").read_text().count("# type: ignore[") >= 5
