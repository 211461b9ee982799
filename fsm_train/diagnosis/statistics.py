"""Numbers about a curve: its noise, its trend, its level.

Rule of this file: pure functions of finite numbers. A curve that is shifted or scaled has the same trend, and a noise
that is scaled; medians are used throughout, so that one odd value changes little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

LIKELY = 1.96
"""A trend beyond this is one of chance in 1 of 20 curves without a trend, in 1 of 40 in this direction."""


def noise(values: Sequence[float]) -> float:
    """The standard deviation of what is random in a curve, from the differences of neighbours; 0.0 of two values.

    It is that of normally distributed noise on a straight line.

    >>> noise([5.0, 4.0, 3.0, 2.0]), round(noise([1.0, 1.5, 0.4, 1.1, 1.6, 0.5]), 2)
    (0.0, 0.21)
    """
    steps = [after - before for before, after in pairwise(values)]
    if len(steps) < 2:
        return 0.0
    middle = median(steps)
    return 1.4826 * median([abs(step - middle) for step in steps]) / math.sqrt(2)


def trend(values: Sequence[float]) -> float:
    """How surely a curve rises (above 0) or falls (below 0), in standard deviations: the test of Mann and Kendall.

    Only the order of the values counts, so that outliers do not matter and neither does the unit.

    >>> round(trend([1.0, 2.0, 3.0, 4.0, 5.0]), 2), trend([1.0, 1.0, 1.0]), trend([1.0, 2.0, 1.5, 1.0])
    (2.2, 0.0, 0.0)
    """
    count = len(values)
    if count < 3:
        return 0.0
    score = 0
    for i, value in enumerate(values):
        for later in values[i + 1 :]:
            score += (later > value) - (later < value)
    deviation = math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    return math.copysign(max(abs(score) - 1, 0), score) / deviation + 0.0 if score else 0.0


def rounding(values: Sequence[float]) -> float:
    """What a curve may move by rounding alone, where its numbers are those of single precision.

    >>> rounding([2.0, -4.0])
    4e-06
    """
    return 1e-6 * max(map(abs, values), default=0.0)


def first_values(values: Sequence[float]) -> Sequence[float]:
    """The first quarter of a curve, of at least three values."""
    return values[: max(3, len(values) // 4)]


def last_values(values: Sequence[float]) -> Sequence[float]:
    """The last quarter of a curve, of at least three values."""
    return values[-max(3, len(values) // 4) :]


def slope(values: Sequence[float]) -> float:
    """How much a curve rises from value to value: the median over all pairs, by Theil and Sen; 0.0 of one value.

    >>> slope([1.0, 2.0, 3.0, 10.0])
    2.0
    """
    pairs = ((later - value) / (j - i) for i, value in enumerate(values) for j, later in enumerate(values) if j > i)
    return median([*pairs] or [0.0])
