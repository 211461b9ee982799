"""Each test here trains an example to its end, and the plain loop too: where FSM_TRAIN_LONG=1."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.how_long import THOROUGH


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.long)
            item.add_marker(pytest.mark.skipif(not THOROUGH, reason="trained to its end where FSM_TRAIN_LONG=1"))
