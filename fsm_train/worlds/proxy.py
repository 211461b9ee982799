"""A workload around another one, to watch or change some of what it does."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from operator import attrgetter
from typing import Any, cast

from ..core.callback import Callback
from ..core.laps import Lap
from ..core.phase import Operation, Phase
from ..core.table import Outcome
from ..core.transition import Command
from ..core.workload import Workload


class WorkloadProxy:
    """Passes everything to the workload that it wraps. Subclass it and define the methods that differ.

    It does not derive from `Workload`, whose default methods would hide those of the wrapped one. A
    method that is not defined here is looked up once per run, and costs nothing more when it is called.

    Attributes:
        wrapped: the workload. The interpreter's writes to `interrupt` go to it as well.
    """

    def __init__(self, workload: Workload) -> None:
        self.wrapped = workload

    def __getattr__(self, name: str) -> Any:
        if name == "wrapped":  # copy and pickle ask for attributes before __init__ has run
            raise AttributeError(name)
        return getattr(self.wrapped, name)

    def across_ranks(self, callbacks: Sequence[Callback[Any]] | None = None) -> Workload:
        """This proxy, around what all ranks are told."""
        self.wrapped = self.wrapped.across_ranks(callbacks)
        return self.as_workload()

    @property
    def metric_names(self) -> Set[str] | None:
        """Those of the wrapped workload; not known if this proxy measures something else."""
        own = any(hasattr(type(self), operation) for operation in ("measure", "measure_valid"))
        return None if own else self.wrapped.metric_names

    def bound(self, command: Command, phase: Phase) -> Callable[[], object] | None:
        """That of the wrapped workload; none if this proxy carries out commands in its own way."""
        return None if hasattr(type(self), "carry_out") else self.wrapped.bound(command, phase)

    def _does_one_of(self, operations: tuple[Operation, ...]) -> bool:
        """Whether this proxy defines one of these operations, or looks at what is asked for by name."""
        kind = type(self)
        return kind.__getattr__ is not WorkloadProxy.__getattr__ or any(hasattr(kind, op.value) for op in operations)

    def fused(self, operations: tuple[Operation, ...]) -> Callable[[], Outcome] | None:
        """That of the wrapped workload; none if this proxy does one of these operations in its own way."""
        return None if self._does_one_of(operations) else self.wrapped.fused(operations)

    def laps(self, operations: tuple[Operation, ...]) -> Callable[[Lap], None] | None:
        """Those of the wrapped workload; none if this proxy does an operation of them in its own way."""
        own = type(self).fused is not WorkloadProxy.fused or self._does_one_of((Operation.FETCH, *operations))
        hears = type(self).interrupt is not WorkloadProxy.interrupt
        return None if own or hears else self.wrapped.laps(operations)

    def _set_interrupt(self, name: str | None) -> None:
        self.wrapped.interrupt = name

    interrupt = property(attrgetter("wrapped.interrupt"), _set_interrupt)  # read in no frame of Python

    def as_workload(self) -> Workload:
        """This proxy, for a type checker: it has all methods of a workload, some by `__getattr__`."""
        return cast("Workload", self)
