"""Places that are watched only now and then, by callbacks with `every`: elsewhere the moves over them are one.

Rule of this file: pure. What is due at a place follows from the counters on arriving there, as in `is_due`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from .phase import BATCH_PHASES, Phase, Place
from .state import Draft

COUNTED_AT = frozenset({Phase.BATCH_END, Phase.EPOCH_END})
"""The places where it changes who is due: a batch or an epoch is counted on arriving there."""


class Rhythm:
    """The places that are watched at each moment of a training without turns.

    >>> rhythm = Rhythm([Phase.EPOCH_END], {Phase.BATCH_END: [50]})
    >>> rhythm.batches_to_due(60)
    40

    Args:
        always: the places that are watched each time.
        now_and_then: the others, phases of batches and epochs, with the numbers of which a multiple is due.
    """

    def __init__(self, always: Iterable[Place], now_and_then: Mapping[Phase, Iterable[int]]) -> None:
        self._always = frozenset(always)
        self._now_and_then: dict[Place, tuple[int, ...]] = {
            phase: tuple({*each}) for phase, each in now_and_then.items()
        }
        between = {phase: every for phase, every in self._now_and_then.items() if phase not in COUNTED_AT}
        self._in_batches = {phase: every for phase, every in between.items() if phase in BATCH_PHASES}
        self._in_epochs = {phase: every for phase, every in between.items() if phase not in BATCH_PHASES}
        in_batches = {n for every in self._in_batches.values() for n in every}
        self._inside = tuple(sorted(in_batches))
        self._batches = tuple(sorted(in_batches.union(self._now_and_then.get(Phase.BATCH_END, ()))))
        self._epochs = tuple(sorted({n for every in self._in_epochs.values() for n in every}))
        self._known: dict[tuple[tuple[int, ...], tuple[int, ...]], frozenset[Place]] = {}

    def places(self, at: Draft) -> frozenset[Place]:
        """Those that are watched before the next batch or epoch is counted."""
        iteration, epoch = at.iteration, at.epoch
        due = (
            tuple([n for n in self._inside if iteration % n == 0]),
            tuple([n for n in self._epochs if epoch % n == 0]),
        )
        known = self._known.get(due)
        return self._found(*due) if known is None else known

    def _found(self, batches: tuple[int, ...], epochs: tuple[int, ...]) -> frozenset[Place]:
        in_batches = (phase for phase, every in self._in_batches.items() if not set(every).isdisjoint(batches))
        in_epochs = (phase for phase, every in self._in_epochs.items() if not set(every).isdisjoint(epochs))
        self._known[batches, epochs] = places = self._always.union(in_batches, in_epochs)
        return places

    def is_due(self, place: Place, at: Draft) -> bool | None:
        """Whether somebody is due at a place where a batch or an epoch was counted; None if it is watched otherwise."""
        every = self._now_and_then.get(place)
        count = at.iteration if place is Phase.BATCH_END else at.epoch
        return None if every is None else any(count % n == 0 for n in every)

    def batches_to_due(self, iteration: int) -> int | None:
        """Batches until one is finished at whose end, or right after, somebody is due; None if nobody ever is."""
        return min((n - iteration % n for n in self._batches), default=None)

    def same_until(self, at: Draft) -> float:
        """The number of finished batches until which the places are those of now."""
        if any(at.iteration % n == 0 for n in self._inside):
            return at.iteration + 1
        batches = self.batches_to_due(at.iteration)
        return math.inf if batches is None else at.iteration + batches
