"""Laps: whole steps in a row, where nobody looks at a batch and nothing but the data and the plan ends them.

Rule of this file: what is counted in laps is what the effects of their moves count, one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from .fuse import Path, known_paths
from .guards import exhausted, steps_reached, weighs_nothing
from .phase import Flag, Junction, Operation, Phase, Place
from .state import Draft
from .table import Term


class Lap:
    """What came of laps, also where one failed.

    Attributes:
        most_steps, most_batches: after which to stop.
        samples: seen in the training so far.
        batches, steps: finished batches, and the steps that were taken for them.
        size: what the batch that was fetched last counts.
        stepping: whether the step for that batch is under way.
        ended_by: what the last fetch gave, None or 0, if that ended the laps; otherwise they ended after a batch.
        fetched_nothing: whether that was so.
    """

    __slots__ = (
        "batches",
        "ended_by",
        "fetched_nothing",
        "most_batches",
        "most_steps",
        "samples",
        "size",
        "stepping",
        "steps",
    )

    def __init__(self, samples: float, *, steps: int | None = None, batches: int | None = None) -> None:
        self.most_steps = math.inf if steps is None else steps
        self.most_batches = math.inf if batches is None else batches
        self.samples = samples
        self.batches = self.steps = 0
        self.size: float | None = None
        self.stepping = self.fetched_nothing = False
        self.ended_by: float | None = None


def take_laps(
    lap: Lap, fetch: Callable[[], float | None], step: Callable[[], object], leaves: Callable[[], bool]
) -> None:
    """Fetch and step until nothing more is fetched, the lap is long enough, or `leaves` says so after a batch."""
    samples, batches, steps = lap.samples, 0, 0
    most_batches, most_steps = lap.most_batches, lap.most_steps
    size: float | None = None
    stepping = False
    try:
        while steps < most_steps and batches < most_batches and not leaves():
            fetched = fetch()
            if not fetched:
                lap.ended_by, lap.fetched_nothing = fetched, True
                return
            size, stepping = fetched, True
            if step():
                steps += 1
            stepping = False
            batches += 1
            samples += size
    finally:
        lap.samples, lap.batches, lap.steps, lap.size, lap.stepping = samples, batches, steps, size, stepping


def count_laps(at: Draft, lap: Lap) -> None:
    """What the laps did to the state: what FETCH, BACKWARD, STEP, ZERO and the end of a batch do, so many times."""
    if lap.size is not None:
        at.fetched, at.exhausted = lap.size, False
    if lap.batches:
        at.batch += lap.batches
        at.iteration += lap.batches
        at.samples = lap.samples
        at.pending = 0
        at.phase = Phase.BATCH_END
    if lap.steps:
        at.step += lap.steps
        at.step_hyper = at.hyper


def step_of_lap(
    path: Path, flags: Flag, watched: frozenset[Place], settled: frozenset[tuple[Term, bool]]
) -> Path | None:
    """The path of a whole step after this one, if this one fetches a batch and the two make a lap; else None.

    They do where no flag is raised, and beside them only the end of the data, a batch that counts nothing and the
    number of steps decide where to go.
    """
    if flags or path.edges[0].source is not Phase.BATCH_END or path.operations != (Operation.FETCH,):
        return None
    again = known_paths(Phase.BATCH_END, flags, watched, settled)
    onward = known_paths(Junction.FETCHED, flags, watched, settled)
    asked = {predicate for each in (*again, *onward) for predicate in each.predicates}
    step = onward[-1]
    closes = step.target is Phase.BATCH_END and step.flags is Flag.NONE and Phase.BATCH_END not in watched
    return step if again[-1] == path and closes and asked <= _ENDS else None


_ENDS = frozenset({exhausted, weighs_nothing, steps_reached})
