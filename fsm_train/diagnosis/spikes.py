"""Values that jump far above their neighbours and come back.

Rule of this file: a spike is judged by the values right before and after it, in their own noise, and by how far the
loss had fallen until then. So the unit of the loss does not matter, and what is common late in a training, a hard
batch among easy ones, is none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median

from .findings import Evidence
from .statistics import noise, rounding

BEFORE, AFTER = 16, 2
"""How many values before and after a value are looked at."""

LEAST_BEFORE = 8
"""The least number of values before it."""

OF_FALL = {"epoch": 0.25, "batch": 2.0}
"""How high a spike is at least, as a share of what the loss had fallen by."""


def is_spike(before: Sequence[float], value: float, after: Sequence[float], start: float, of_fall: float) -> bool:
    """Whether a value is a spike.

    >>> is_spike([2.0, 1.9, 1.8, 1.7, 1.6, 1.5, 1.4, 1.3], 3.0, [1.2, 1.1], 2.0, 0.25)
    True

    Args:
        before: the values before it, the nearest last.
        value: the value.
        after: the values after it, the nearest first.
        start: the first value of the curve.
        of_fall: how high it is at least, as a share of what the curve had fallen by.
    """
    if len(before) < LEAST_BEFORE or len(after) < AFTER:
        return False
    if value <= max(before):  # most values, and this is asked of each
        return False
    usual = median(before)
    height = value - usual
    stands_out = value - max(before) > 8 * noise(before) + rounding([*before, value])
    comes_back = max(after) <= value - 0.75 * height
    return stands_out and comes_back and height >= of_fall * (start - usual)


class SpikeWatch:
    """Looks for the highest spike in a curve that comes value by value.

    Attributes:
        highest: the highest spike so far; None if there is none.
    """

    def __init__(self, of_fall: float) -> None:
        self.highest: Evidence | None = None
        self._of_fall = of_fall
        self._points: deque[Evidence] = deque(maxlen=AFTER + 1)
        self._values: deque[float] = deque(maxlen=BEFORE + 1 + AFTER)
        self._start: float | None = None

    def see(self, point: Evidence) -> None:
        """A finite value."""
        if self._start is None:
            self._start = point.value
        self._points.append(point)
        self._values.append(point.value)
        if has_spike(list(self._values), self._start, self._of_fall):
            found = self._points[0]
            self.highest = found if self.highest is None or found.value > self.highest.value else self.highest


def has_spike(window: Sequence[float], start: float, of_fall: float) -> bool:
    """Whether the value before the last `AFTER` of this window is a spike among the others."""
    *before, value = window[:-AFTER] or (start,)
    return is_spike(before[-BEFORE:], value, window[-AFTER:], start, of_fall)
