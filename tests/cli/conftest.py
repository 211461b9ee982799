"""Two logs that the tests of the commands read."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsm_train.callbacks import early_stopping

from ..eventlog.log_files import library, logged


@pytest.fixture
def log(tmp_path: Path) -> str:
    logged(tmp_path / "run.jsonl", epochs=20)
    return str(tmp_path / "run.jsonl")


@pytest.fixture
def other(tmp_path: Path) -> str:
    logged(tmp_path / "other.jsonl", [*library()[:3], early_stopping(patience=1)], epochs=20)
    return str(tmp_path / "other.jsonl")
