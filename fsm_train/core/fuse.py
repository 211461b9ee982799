"""Edges that nobody watches, composed into one.

From a watched place the machine runs through unwatched ones along edges that flags alone decide.
Such a run of edges is a `Way`: its operations in sequence, its effects on the counters in sequence,
and the flags and the place at its end. Composing is concatenation, hence associative, and walking a
way is walking its edges one by one, with no state made in between.

Where a predicate of the counters decides that is not settled on the way, or an interrupt may come
in, every way ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

import attrs

from .phase import Flag, Junction, Operation, Place
from .table import ROWS, SETTLED, Edge, Effect, Predicate, Term, effects, falling, reads


@attrs.frozen
class Way:
    """A run of edges that is walked in one go.

    Attributes:
        edges: the edges, each beginning where the one before it ends.
        predicates: what must hold of the counters at its beginning; the flags have been seen to.
        moves: its operations and effects, in order; an effect without an operation is of arriving.
        flags: those that are raised at its end.
        target: where it ends.
    """

    edges: tuple[Edge, ...]
    predicates: tuple[Predicate, ...]
    moves: tuple[tuple[Operation | None, Effect | None], ...]
    flags: Flag
    target: Place

    def then(self, onward: Way) -> Way:
        """Both ways, one after the other; the second must not depend on the counters."""
        assert onward.edges[0].source is self.target
        assert not onward.predicates
        return Way(self.edges + onward.edges, self.predicates, self.moves + onward.moves, onward.flags, onward.target)


NOTHING_SETTLED: Mapping[Term, bool] = {}

# Every cycle of the table passes a place where an interrupt may come in, so ways are finite.


def ways(
    place: Place, flags: Flag, watched: Set[Place], settled: Mapping[Term, bool] = NOTHING_SETTLED
) -> tuple[Way, ...]:
    """The ways from a place with these flags, in the order in which their predicates are tried.

    They end at watched places, and where more than flags decides. The last one has no predicate.

    Args:
        place: where they begin.
        flags: those that are raised there.
        watched: the places where somebody wants to look.
        settled: the predicates whose value is known when one comes here.
    """
    settled = {**settled, **SETTLED.get(place, {})}
    found = []
    for edge in ROWS[place]:
        if not all(term & flags if isinstance(term, Flag) else settled.get(term, True) for term in edge.guard):
            continue
        predicates = tuple(term for term in edge.guard if not isinstance(term, Flag) and term not in settled)
        way = Way((edge,), predicates, tuple(effects(edge)), flags & ~falling(edge), edge.target)
        found.append(_as_far_as_possible(way, watched, settled))
        if not predicates:
            break
    return tuple(found)


def _as_far_as_possible(way: Way, watched: Set[Place], settled: Mapping[Term, bool]) -> Way:
    while way.target not in watched and way.target is not Junction.RESUMED and Flag.SUSPEND not in reads(way.target):
        onward = ways(way.target, way.flags, EVERYWHERE, settled)
        if len(onward) != 1:
            break
        settled = {**settled, **SETTLED.get(way.target, {})}
        way = way.then(onward[0])
    return way


EVERYWHERE: Set[Place] = frozenset(ROWS)
