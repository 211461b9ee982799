"""The rounds of a call of `run`: when they are written down, and what the names in them stand for there.

Rule of this file: it says when, and what a name stands for. What a round does is written in `core/rounds.py`.
"""

from __future__ import annotations

import linecache
import sys
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .core.guards import taking_turns
from .core.merge import NOTHING_MERGED, accepted, raised_by
from .core.phase import TURN_PHASES, Flag, Junction, Operation, Phase, Place
from .core.state import Draft, State
from .core.table import Outcome, Term
from .core.transition import NOTHING
from .core.values import batch_size_alone
from .core.workload import Workload
from .watch import Watch, Watched

if TYPE_CHECKING:
    from .core.rounds import Look, Round, Tail

NEEDED = 100
"""The batches of a call of `run`, with the same places looked at, after which their round is written down.

That takes a millisecond or two."""

MOST_TAILS = 8
"""The places and flags there that a round foresees, beside no flags."""

GoAround = Callable[[Any, Draft, float], Place]
"""A round: of the cursor, its draft and the iteration to stop at; the place where the machine stands afterwards."""

_count = getattr(sys, "getrefcount", None)  # PyPy has none, and walks

_SAME_IN_ALL = {
    **{place.name: place for kind in (Phase, Junction) for place in kind},
    **{f.__name__: f for f in (accepted, batch_size_alone)},
    "getrefcount": _count,
    "getweakrefcount": weakref.getweakrefcount,
    "NOTHING": NOTHING,
    "NOTHING_MERGED": NOTHING_MERGED,
}


class Rounds:
    """The rounds for one set of watched places.

    Args:
        watch: who looks.
        places: where.
        settled: what the plan and the workload settle.
        work: the workload.
        method: the workload's method for an operation, bound to what it wants.
    """

    def __init__(
        self,
        watch: Watch,
        places: frozenset[Place],
        settled: frozenset[tuple[Term, bool]],
        work: Workload,
        method: Callable[[Operation], Callable[[], Outcome]],
    ) -> None:
        self._watch, self._places, self._settled, self._work, self._method = watch, places, settled, work, method
        self._tails: set[Tail] = set()
        self._go_around: GoAround | None = None
        self._batches = 0
        self._possible = (taking_turns, False) in settled and _count is not None

    def next(self) -> GoAround | None:
        """The way around from the end of a batch; None as long as it does not pay, and where there is none."""
        self._batches += 1
        if self._go_around is None and self._batches > NEEDED and self._possible:
            self._go_around = self._written()
        return self._go_around

    def left(self, place: Place, flags: Flag) -> None:
        """Foresee these flags at this place, where a round was left."""
        ends = place is Phase.BATCH_END or not isinstance(place, Phase)
        if not ends and len(self._tails) < MOST_TAILS and (place, flags) not in self._tails:
            self._tails.add((place, flags))  # type: ignore[arg-type]
            self._go_around = self._written()

    def forget(self) -> None:
        """Forget the round, and what it is bound to: this run is over, and its workload need not wait for others."""
        self._go_around = None
        del self._work, self._method

    def _written(self) -> GoAround:
        from .core.rounds import round_of, ways  # which a short run does without

        tails = frozenset(self._tails)
        known = ways(self._places, self._settled, tails)
        sequences = {paths[-1].operations for way in known.values() for paths in way}
        fused = {operations: self._work.fused(operations) for operations in sequences}
        looks = frozenset(
            (phase, _look(here)) for phase, here in self._watch.at.items() if phase in self._places & TURN_PHASES
        )
        of_these = frozenset(operations for operations, function in fused.items() if function is not None)
        return self._bound(round_of(self._places, self._settled, looks, of_these, tails), fused)

    def _bound(self, found: Round, fused: dict[tuple[Operation, ...], Any]) -> GoAround:
        names: dict[str, Any] = {**_SAME_IN_ALL, **found.flags}
        for name, operations in found.operations.items():
            names[name] = fused.get(operations) or self._method(operations[0])
        for place, flags in found.looks:
            here = self._watch.at[place]
            names[f"watched_{place.name}"], names[f"compared_{place.name}"] = here, here.compared
            names[f"kept_{place.name}_{flags.value}"] = here.kept.setdefault(flags, {})
            for i, (callback, of_state) in enumerate(here.asked):
                names[f"ask_{place.name}_{i}"] = of_state or callback.decide
                names[f"name_{place.name}_{i}"], names[f"memory_{place.name}_{i}"] = callback.name, callback.memory
                names[f"callback_{place.name}_{i}"] = callback
        names["failed"] = self._failed(found)
        exec(found.code, names)
        return names.pop("go_around")  # type: ignore[no-any-return]  # which references the names, but not they it

    def _failed(self, found: Round) -> Callable[[Any, int, State, BaseException], None]:
        def failed(cursor: Any, doing: int, state: State, error: BaseException) -> None:
            """Let the cursor know what was under way, and a traceback its lines; raise a callback's error as such."""
            linecache.cache[found.name] = len(found.text), None, found.text.splitlines(keepends=True), found.name
            now = found.doing[doing]
            cursor.deciding = now.place is not None
            if now.path is not None:
                cursor.doing = cursor.work.doing or now.operation
                cursor.passed = now.path.phase_before(cursor.doing) or cursor.draft.phase
            if now.place is not None and now.asked is not None and isinstance(error, Exception):
                callback, _ = self._watch.at[now.place].asked[now.asked]
                raise raised_by(callback, state, error) from error

        return failed


def _look(here: Watched) -> Look:
    from .core.rounds import Look

    remember = tuple(of_state is None for _, of_state in here.asked)
    return Look(remember, here.compared is not None, here.only_asks)
