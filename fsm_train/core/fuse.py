"""Unwatched edges, composed into one path.

From a watched place the machine runs through unwatched ones along edges that flags alone decide. Such a
run of edges is a `Path`: its operations in sequence, its effects in sequence, and the flags and the place
at its end. Composing is concatenation, hence associative, and walking a path is walking its edges one by
one, with no state made in between.

A path ends where a predicate decides that is not settled on the way, and where an interrupt may come in.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence, Set

import attrs

from .guards import batches_and_steps_over, epochs_reached, has_valid, steps_reached
from .phase import Flag, Junction, Operation, Phase, Place
from .state import Draft
from .table import LEAVES, ROWS, SETTLED, WITHOUT_TURNS, Edge, Effect, Outcome, Predicate, Term, effects, falling


@attrs.frozen
class Path:
    """A run of edges that is walked without a stop.

    Attributes:
        edges: the edges, each beginning where the one before it ends.
        predicates: what must hold of the state at its beginning; the flags are checked already.
        moves: its operations and effects, in order; an effect without an operation is of arriving.
        flags: those that are raised at its end.
        target: where it ends.
    """

    edges: tuple[Edge, ...]
    predicates: tuple[Predicate, ...]
    moves: tuple[tuple[Operation | None, Effect | None], ...]
    flags: Flag
    target: Place

    # Worked out once for all runs in which the path is walked.

    @functools.cached_property
    def operations(self) -> tuple[Operation, ...]:
        return tuple(operation for operation, _ in self.moves if operation)

    @functools.cached_property
    def effect(self) -> Effect:
        """Its effects as one, each with the outcome of all its operations in one call."""
        return all_effects(tuple(effect for _, effect in self.moves if effect))

    @functools.cached_property
    def last_phase(self) -> Phase | None:
        """The last phase that it passes or reaches; None if it is of junctions alone."""
        return next((edge.target for edge in reversed(self.edges) if isinstance(edge.target, Phase)), None)

    def phase_before(self, operation: Operation | None) -> Phase | None:
        """The last phase that the path passes before it does this operation; None if it passes none."""
        passed = None
        for edge in self.edges:
            if isinstance(edge.source, Phase):
                passed = edge.source
            if operation in edge.operations:
                return passed
        return passed

    def then(self, next_path: Path) -> Path:
        """Both paths, one after the other; the second must not depend on the state."""
        assert next_path.edges[0].source is self.target
        assert not next_path.predicates
        return Path(
            self.edges + next_path.edges,
            self.predicates,
            self.moves + next_path.moves,
            next_path.flags,
            next_path.target,
        )


NOTHING_SETTLED: Mapping[Term, bool] = {}

# Each cycle of the table passes a place where an interrupt may come in, so paths are finite.


def fused_paths(
    place: Place, flags: Flag, watched: Set[Place], settled: Mapping[Term, bool] = NOTHING_SETTLED
) -> tuple[Path, ...]:
    """The paths from a place with these flags, in the order in which their predicates are tried.

    They end at watched places, and where more than flags decides. The last one has no predicate.

    Args:
        place: where they begin.
        flags: those that are raised there.
        watched: the places where a callback or a sink looks.
        settled: the predicates whose value is known on arriving here.
    """
    settled = {**settled, **SETTLED.get(place, {})}
    paths = []
    for edge in ROWS[place]:
        if not all(term & flags if isinstance(term, Flag) else settled.get(term, True) for term in edge.guard):
            continue
        predicates = tuple(term for term in edge.guard if not isinstance(term, Flag) and term not in settled)
        path = Path((edge,), predicates, tuple(effects(edge)), flags & ~falling(edge) | edge.raises, edge.target)
        paths.append(_extended(path, watched, settled))
        if not predicates:
            break
    return tuple(paths)


@functools.lru_cache(maxsize=4096)
def known_paths(
    place: Place, flags: Flag, watched: frozenset[Place], settled: frozenset[tuple[Term, bool]]
) -> tuple[Path, ...]:
    """`fused_paths`, worked out once in a process: they follow from these four alone."""
    return fused_paths(place, flags, watched, dict(settled))


def settled_in_run(at: Draft) -> frozenset[tuple[Term, bool]]:
    """What the plan and the workload of a call of `run` settle, wherever it stands."""
    settled: dict[Term, bool] = {has_valid: at.has_valid}
    if not at.players:
        settled.update(WITHOUT_TURNS)
    if at.plan.max_steps is None:
        settled.update({steps_reached: False, batches_and_steps_over: False})
    if at.plan.epochs is None:
        settled[epochs_reached] = False
    return frozenset(settled.items())


def _extended(path: Path, watched: Set[Place], settled: Mapping[Term, bool]) -> Path:
    """The path, prolonged through unwatched places where flags alone decide."""
    while path.target not in watched and path.target is not Junction.RESUMED and path.target not in LEAVES:
        following = fused_paths(path.target, path.flags, EVERYWHERE, settled)
        if len(following) != 1:
            break
        settled = {**settled, **SETTLED.get(path.target, {})}
        path = path.then(following[0])
    return path


EVERYWHERE: Set[Place] = frozenset(ROWS)


def all_effects(effects: Sequence[Effect]) -> Effect:
    """These effects on the state as one, each with the same outcome."""

    def effect(draft: Draft, outcome: Outcome) -> None:
        for each in effects:
            each(draft, outcome)

    return effect
