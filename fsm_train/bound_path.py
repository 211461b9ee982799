"""A path through the table, with the methods of a workload that carry it out.

Rule of this file: it binds, and looks up what is known of a path before it is walked. `cursor.py` walks it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .core.fuse import Path
from .core.laps import Lap, step_of_lap
from .core.phase import FINAL, Flag, Junction, Operation, Phase
from .core.rhythm import COUNTED_AT
from .core.table import LEAVES, RESUMES_AT, Predicate

if TYPE_CHECKING:
    from .cursor import Cursor


class BoundPath:
    """A path through the table, with the methods of the workload that carry it out.

    They are bound when the path is walked for the first time: of those from a place, most never are. `prepares` says
    whether there is something to do before its moves: to bind it, or to note that a boundary is left.
    """

    __slots__ = (
        *("bound", "counts", "ends", "fetches_next", "flags", "heeds_signals", "laps", "last_phase", "leaves_boundary"),
        *("moves", "next_paths", "path", "predicate", "prepares", "resumes", "step", "target", "watched"),
    )

    def __init__(self, path: Path) -> None:
        self.path = path
        self.predicate: Predicate | None
        (self.predicate,) = path.predicates or (None,)  # no row has more than one
        self.bound, self.prepares = False, True

    def bind(self, cursor: Cursor) -> None:
        path = self.path
        self.moves = [(op, cursor.method(op) if op else None, effect) for op, effect in path.moves]
        fused = cursor.work.fused(path.operations)
        if fused is not None:
            self.moves = [(path.moves[0][0], fused, path.effect)]
        self.flags = path.flags
        self.target = path.target
        self.last_phase = path.last_phase
        self.resumes = path.target is Junction.RESUMED
        self.ends = path.target in FINAL
        self.counts = path.target in COUNTED_AT
        self.heeds_signals = path.target in LEAVES
        self.leaves_boundary = path.edges[0].source in RESUMES_AT
        self.next_paths = cursor.paths_by_place[path.target]
        self.watched = cursor.watch.at.get(path.target)
        self.step = step_of_lap(path, cursor.flags, cursor.places, cursor.settled)
        self.laps: Callable[[Lap], None] | None = None
        if self.step is not None and not cursor.work.informed & {*path.operations, *self.step.operations}:
            self.laps = cursor.work.laps(self.step.operations)
        fetches = path.edges[0].source is Phase.BATCH_END and path.operations == (Operation.FETCH,)
        self.fetches_next = fetches and cursor.flags is Flag.NONE
        self.bound, self.prepares = True, self.leaves_boundary
