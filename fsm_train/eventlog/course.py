"""Records the course of a training: what decides where the machine goes and is no decision of a callback.

Rule of this file: it changes nothing. What it adds to a batch is a few calls, between the kernels of a training.
"""

from __future__ import annotations

from collections.abc import Callable
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
        course: pairs [event, count] since the last `take_course`.
    """

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self._fetch, self._fetch_valid, self._step = workload.fetch, workload.fetch_valid, workload.step
        self.course: list[list[Any]] = []

    @property
    def interrupt(self) -> str | None:
        return self.wrapped.interrupt

    @interrupt.setter
    def interrupt(self, name: str | None) -> None:
        self._record(self.wrapped.interrupt)  # the machine has acted on it
        self.wrapped.interrupt = name

    def fetch(self, *state: State) -> float | None:
        size = self._fetch(*state)
        course = self.course  # what `_record` does, without a further call for each batch
        if course and course[-1][0] == size:
            course[-1][1] += 1
        else:
            course.append([size, 1])
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

    def take_course(self) -> list[list[Any]]:
        """The course since the last call of this method."""
        course, self.course = self.course, []
        return course

    def _record(self, event: float | str | None) -> None:
        course = self.course
        if course and course[-1][0] == event:
            course[-1][1] += 1
        else:
            course.append([event, 1])
