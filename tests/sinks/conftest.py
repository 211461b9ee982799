"""A clock for sinks that look at the time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Clock = Callable[[float, float], float]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that stands still, but for the seconds that are given with a value."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def after(seconds: float, value: float) -> float:
        now[0] += seconds
        return value

    return after
