"""The examples, run for real."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, *arguments: str) -> str:
    """What the example prints."""
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout


def test_digits_reach_97_percent() -> None:
    """The small network reads at least 97% of the digits it never saw, and says why and when it stopped."""
    shown = run("digits.py")

    accuracy = re.search(r"valid_accuracy (\S+) after (\d+) epochs", shown)
    assert accuracy is not None
    assert float(accuracy[1]) >= 0.97
    assert "stopped because: " in shown
