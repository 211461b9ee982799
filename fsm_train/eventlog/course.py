"""Records the course of a training: what decides where the machine goes and is no decision of a callback.

Rule of this file: it changes nothing. What it adds to a batch is a few calls, between the kernels of a training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

from ..core.phase import Operation
from ..core.state import State
from ..core.table import Outcome
from ..core.workload import Workload
from ..worlds.proxy import WorkloadProxy
from .lines import HELD_BACK


class CourseRecorder(WorkloadProxy):
    """Wraps a workload and records its course: batches, steps held back, signals. All else is the workload's.

    Attributes:
        last, times: the last event since a line was written, and how often it came in a row; 0 times if there is none.
        before: the events before it, as pairs [event, count].
    """

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self._fetch, self._fetch_valid, self._step = workload.fetch, workload.fetch_valid, workload.step
        self.last: float | str | None = None
        self.times = 0
        self.before: list[list[Any]] = []

    def _set_interrupt(self, name: str | None) -> None:
        self._record(self.wrapped.interrupt)  # the machine has acted on it
        self.wrapped.interrupt = name

    interrupt = property(attrgetter("wrapped.interrupt"), _set_interrupt)  # read in no frame of Python

    def fetch(self, *state: State) -> float | None:
        size = self._fetch(*state)
        if self.times:
            self._record(size)
        else:  # what `_record` does, without a further call for each batch
            self.last, self.times = size, 1
        return size

    def fetch_valid(self, *state: State) -> float | None:
        size = self._fetch_valid(*state)
        self._record(size)
        return size

    def step(self, *state: State) -> bool:
        stepped = self._step(*state)
        if not stepped:
            self._record(HELD_BACK)
        return stepped

    def fused(self, operations: tuple[Operation, ...]) -> Callable[[], Outcome] | None:
        run_fused = self.wrapped.fused(operations)
        if run_fused is None or Operation.FETCH in operations:
            return None  # one by one, so that a fetch is recorded
        if Operation.STEP not in operations:
            return run_fused

        def step() -> Outcome:
            stepped = run_fused()
            if not stepped:
                self._record(HELD_BACK)
            return stepped

        return step

    def take_course(self) -> Course:
        """The course since the last call of this method."""
        last, times, self.times = self.last, self.times, 0
        if not self.before:
            return NO_COURSE, last, times
        before, self.before = self.before, []
        return before, last, times

    def _record(self, event: float | str | None) -> None:
        if not self.times:
            self.last, self.times = event, 1
        elif self.last == event:
            self.times += 1
        else:
            self.before.append([self.last, self.times])
            self.last, self.times = event, 1


Course = tuple[Sequence[list[Any]], float | str | None, int]
"""The events before the last one, as pairs [event, count]; the last one; and how often it came, 0 if there is none."""

NO_COURSE: Sequence[list[Any]] = ()


def course_of(taken: Course) -> Sequence[list[Any]]:
    """The pairs [event, count] of a line."""
    before, last, times = taken
    return [*before, [last, times]] if times else NO_COURSE
