"""Steps with a learning rate of zero.

Rule of this file: a rate is that of a step if it was the rate before it. Hyper-parameters change only where a callback
is consulted, and there is a line.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from ..core.state import Hyper
from .curves import Count
from .findings import Evidence

NEXT_TO_NOTHING = 1e-6
"""A rate below this share of the highest rate so far is as good as zero."""


class RateWatch:
    """Counts the steps with a rate of zero, from counters and rates in their order."""

    def __init__(self) -> None:
        self.counted = Count(0, 0)
        self._step = 0
        self._rate: float | None = None
        self._highest = 0.0

    def begin(self, step: int, rate: float | None) -> None:
        """So many steps are taken, and the next one has this rate."""
        self._step, self._rate = step, rate

    def see(self, step: int, rate: float | None, where: Evidence) -> None:
        """So many steps are taken by now, those since last time with the rate of then; the next one has this rate."""
        taken = max(step - self._step, 0)
        if taken and self._rate is not None:
            self._highest = max(self._highest, self._rate)
            zero = self._rate <= NEXT_TO_NOTHING * self._highest
            first = self.counted.first or (attrs.evolve(where, value=self._rate) if zero else None)
            self.counted = Count(self.counted.times + taken * zero, self.counted.of + taken, first=first)
        self.begin(step, rate)


def rate_of(hyper: Mapping[str, Hyper]) -> float | None:
    """The highest learning rate of all parameter groups, optimizers and players; None if there is none.

    >>> rate_of({"lr": (0.0, 0.1), "momentum": 0.9}), rate_of({"G.lr": 0.0, "D.lr": 0.0}), rate_of({})
    (0.1, 0.0, None)
    """
    rates = [value for name, value in hyper.items() if name == "lr" or name.endswith(".lr")]
    return max((max(value) if isinstance(value, tuple) else value for value in rates if value != ()), default=None)
