"""The newcomer's callback and its tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "test_my_callback.py"


def test_newcomers_tests_pass() -> None:
    """The example is run as its first line says."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)

    assert "6 passed" in done.stdout, done.stdout
