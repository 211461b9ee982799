"""Where each line stands: by epoch, by step, and by time where the log has one.

Rule of this file: positions never go back, so that a page can search them.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from typing import Any

from ..core.phase import Junction, Phase
from ..encoding import Json
from .columns import Packed, packed_ints

PARTS = 100_000
"""The parts of an epoch, and of a second, in which positions are counted."""

CLOCKS = ("timestamp", "time")
"""Keys that a logger may have bound to its lines, with the time of the day."""

_WITHIN = frozenset({Phase.BATCH_END.value, Phase.VALID_END.value, Junction.VALID_ABANDONED.value})


class EpochAxis:
    """Epochs as a number that grows within each: 2.5 is the middle of the third."""

    def __init__(self) -> None:
        self._places: list[tuple[int, int]] = []  # of each line its epoch and batch; -1 between two epochs
        self._lengths: dict[int, int] = {}
        self._usual = 0
        self._between = True

    def begin(self, start: Mapping[str, Any]) -> None:
        """A call of `run` begins with this state."""
        self._usual = start.get("batches_per_epoch", self._usual)
        self._between = start.get("resume_at") not in _WITHIN
        self._add(start)

    def see(self, event: str, body: Mapping[str, Any]) -> None:
        """A line of a phase."""
        if event == Phase.EPOCH_BEGIN.value:
            self._between = False
        elif event == Phase.EPOCH_END.value and not body.get("error"):
            self._between = True
            self._lengths[body["epoch"] - 1] = body["batch"]
        self._add(body)

    def _add(self, body: Mapping[str, Any]) -> None:
        self._places.append((body["epoch"], -1 if self._between else body["batch"]))

    def positions(self) -> list[int]:
        """Of each line, in parts of an epoch."""
        longest: dict[int, int] = {}  # of epochs that did not end
        for epoch, batch in self._places:
            longest[epoch] = max(longest.get(epoch, 0), batch)
        found = []
        for epoch, batch in self._places:
            length = self._lengths.get(epoch) or max(self._usual, longest[epoch], 1)
            share = max(batch, 0) * PARTS // length
            found.append(min(max(epoch, 0), _MOST_EPOCHS) * PARTS + min(share, PARTS))
        return never_back(found)


class TimeAxis:
    """Seconds, from the fact `elapsed` or from a clock that was bound to the lines; a line without has those before."""

    def __init__(self) -> None:
        self._elapsed: list[float | None] = []
        self._clock: list[float | None] = []

    def see(self, facts: Mapping[str, Json], bound: Mapping[str, Json]) -> None:
        """A line."""
        elapsed = facts.get("elapsed")
        self._elapsed.append(elapsed if type(elapsed) in (int, float) else None)
        self._clock.append(next(filter(None, (_seconds(bound.get(name)) for name in CLOCKS)), None))

    def positions(self) -> list[int] | None:
        """Of each line, in parts of a second; None if the log has no time."""
        for seconds in (self._elapsed, self._clock):
            there = [second for second in seconds if second is not None and abs(second) < _LATEST]
            if there and max(there) > min(there):
                first = min(0.0, *there) if seconds is self._elapsed else min(there)
                usable = (None if second is None or abs(second) >= _LATEST else second - first for second in seconds)
                return never_back([0 if second is None else round(second * PARTS) for second in usable])
        return None


_MOST_EPOCHS = 10**9
"""Epochs: what is beyond stands where these end, so that positions are exact in JavaScript."""

_LATEST = 1e10
"""Seconds: three hundred years. What is later is no time."""


def _seconds(moment: Json) -> float | None:
    """A moment in seconds: a number is one, and text in the form of ISO 8601 has one; None for anything else."""
    if type(moment) in (int, float):
        return float(moment)
    if type(moment) is str:
        try:
            parsed = datetime.datetime.fromisoformat(moment)
        except ValueError:
            return None
        return (parsed if parsed.tzinfo else parsed.replace(tzinfo=datetime.UTC)).timestamp()
    return None


def never_back(positions: Iterable[int]) -> list[int]:
    """Each position, or the one before it where that is higher.

    >>> never_back([1, 3, 2, 4])
    [1, 3, 3, 4]
    """
    highest, found = 0, []
    for position in positions:
        highest = max(highest, position)
        found.append(highest)
    return found


def packed_axis(positions: Iterable[int], parts: int) -> Packed:
    """An axis as JSON: positions in parts of its unit."""
    return {"parts": parts, "at": packed_ints(positions)}
