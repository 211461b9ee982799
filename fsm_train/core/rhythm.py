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
    >>> rhythm.batches_left(60)
    39

    Args:
        always: the places that are watched each time.
        now_and_then: the others, phases of batches and epochs, with the numbers of which a multiple is due.
    """

    def __init__(self, always: Iterable[Place], now_and_then: Mapping[Phase, Iterable[int]]) -> None:
        self._always = frozenset(always)
        self._now_and_then = {phase: frozenset(every) for phase, every in now_and_then.items()}
        batches = {n for phase, every in self._now_and_then.items() if phase in BATCH_PHASES for n in every}
        epochs = {n for phase, every in self._now_and_then.items() if phase not in BATCH_PHASES for n in every}
        self._batches, self._epochs = tuple(sorted(batches)), tuple(sorted(epochs))
        self._known: dict[tuple[tuple[int, ...], tuple[int, ...]], frozenset[Place]] = {}

    def places(self, at: Draft) -> frozenset[Place]:
        """Those that are watched until the next batch or epoch is counted."""
        iteration, epoch = at.iteration, at.epoch
        due = (
            tuple([n for n in self._batches if iteration % n == 0]),
            tuple([n for n in self._epochs if epoch % n == 0]),
        )
        known = self._known.get(due)
        return self._found(*due) if known is None else known

    def _found(self, batches: tuple[int, ...], epochs: tuple[int, ...]) -> frozenset[Place]:
        places = self._always | {
            phase
            for phase, every in self._now_and_then.items()
            if not every.isdisjoint(batches if phase in BATCH_PHASES else epochs)
        }
        self._known[batches, epochs] = places
        return places

    def batches_left(self, iteration: int) -> int | None:
        """Batches that can be finished after so many without one of them being due; None if none ever is."""
        return min((n - iteration % n - 1 for n in self._batches), default=None)

    def undisturbed_until(self, at: Draft) -> float:
        """The number of finished batches before which none is finished that is due; that of now if this one is."""
        due_now = any(at.iteration % n == 0 for n in self._batches)
        left = 0 if due_now else self.batches_left(at.iteration)
        return math.inf if left is None else at.iteration + left
