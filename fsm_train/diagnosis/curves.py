"""What the rules look at: the curves of a training, in bounded memory.

Rule of this file: what is kept does not grow with the training. A long curve is kept at equal distances, so that what
is kept depends on its values and their number alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import attrs

from ..wording import pluralize
from .findings import Evidence

T = TypeVar("T")

MOST = 128
"""The most epochs that are kept, beside the last: a trend compares each pair."""

MOST_FACTS = 1024
"""The same for the values of a fact."""


def stride(count: int, most: int = MOST) -> int:
    """The distance at which so many points are kept: a power of two.

    >>> stride(128), stride(129), stride(1000)
    (1, 2, 8)
    """
    distance = 1
    while count > most * distance:
        distance *= 2
    return distance


def thinned(values: Sequence[T], most: int = MOST) -> list[tuple[int, T]]:
    """What is kept of a sequence, with the indices: those at equal distances, and the last.

    >>> [index for index, _ in thinned(range(300))][:3], thinned(range(300))[-1]
    ([0, 4, 8], (299, 299))
    """
    kept = range(0, len(values), stride(len(values), most))
    last = [] if not values or kept[-1] == len(values) - 1 else [len(values) - 1]
    return [(index, values[index]) for index in (*kept, *last)]


class ThinnedSeries(Generic[T]):
    """The same for a sequence that comes item by item.

    >>> kept = ThinnedSeries()
    >>> for item in range(300):
    ...     kept.add(item)
    >>> list(kept) == [item for _, item in thinned(range(300))]
    True

    Args:
        most: the most items that are kept, beside the last.

    Attributes:
        count: how many items came.
    """

    def __init__(self, most: int = MOST) -> None:
        self.count = 0
        self._most = most
        self._stride = 1
        self._kept: list[T] = []
        self._last: list[T] = []

    def add(self, item: T) -> None:
        if self.count == self._most * self._stride:
            del self._kept[1::2]
            self._stride *= 2
        self._last = [item]
        if self.count % self._stride == 0:
            self._kept.append(item)
            self._last = []
        self.count += 1

    def __iter__(self) -> Iterator[T]:
        return iter((*self._kept, *self._last))


@attrs.frozen
class FinishedEpoch:
    """A finished epoch.

    Attributes:
        epoch: the number of finished epochs, this one included.
        metrics: by name.
        line: of the log; None where there is none.
        iteration: training batches so far.
        elapsed: seconds so far; None where nobody asked.
    """

    epoch: int
    metrics: Mapping[str, float]
    line: int | None = None
    iteration: int = 0
    elapsed: float | None = None


@attrs.frozen
class Count:
    """How often something happened, of how many times, and where first.

    Attributes:
        times: how often.
        of: of how many.
        late: how often in the second half of these.
        first: where first; None if it never did.
        unit: what is counted.
    """

    times: int
    of: int
    late: int = 0
    first: Evidence | None = None
    unit: str = "step"

    @property
    def share(self) -> float:
        """The share of the times, 0.0 of none.

        >>> Count(1, 4).share, Count(0, 0).share, str(Count(1, 4))
        (0.25, 0.0, '1 of 4 steps')
        """
        return self.times / self.of if self.of else 0.0

    def __str__(self) -> str:
        return f"{self.times} of {pluralize(self.of, self.unit)}"


NONE = Count(0, 0)


@attrs.frozen
class Observations:
    """What is known of a training: what each rule is given.

    Attributes:
        epochs: the finished epochs, thinned.
        facts: by name, the values of facts that were recorded within epochs, thinned.
        untrained: the loss of the very first batch, before the first step; None where it was not recorded.
        spikes: by the name of a metric or fact, the highest spike.
        nonfinite: by name, the first value that is not finite.
        zero_rate: steps with a learning rate of zero.
        held_back: steps that were not applied.
        stepless: epochs with batches and without a step.
        has_turns: whether several players take turns.
        stop: the number of the line at which an `early_stopping` ended the training, and its declarations as in the
            header; None if none did.
    """

    epochs: tuple[FinishedEpoch, ...] = ()
    facts: Mapping[str, tuple[Evidence, ...]] = attrs.field(factory=dict)
    untrained: Evidence | None = None
    spikes: Mapping[str, Evidence] = attrs.field(factory=dict)
    nonfinite: Mapping[str, Evidence] = attrs.field(factory=dict)
    zero_rate: Count = NONE
    held_back: Count = NONE
    stepless: Count = NONE
    has_turns: bool = False
    stop: tuple[int, Mapping[str, Any]] | None = None

    def curve(self, name: str) -> tuple[Evidence, ...]:
        """The finite values of a metric at the ends of epochs.

        >>> Observations((FinishedEpoch(1, {"loss": 0.5}), FinishedEpoch(2, {"loss": math.nan}))).curve("loss")
        (Evidence(name='loss', value=0.5, epoch=1, line=None),)
        """
        return tuple(
            Evidence(name, epoch.metrics[name], epoch.epoch, epoch.line)
            for epoch in self.epochs
            if math.isfinite(epoch.metrics.get(name, math.nan))
        )

    @property
    def metrics(self) -> list[str]:
        """The names of the metrics, each once."""
        return list(dict.fromkeys(name for epoch in self.epochs for name in epoch.metrics))


def values_of(curve: Iterable[Evidence]) -> list[float]:
    """The values of a curve.

    >>> values_of([Evidence("loss", 0.5, 1)])
    [0.5]
    """
    return [point.value for point in curve]
