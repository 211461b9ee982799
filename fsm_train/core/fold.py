"""The machine as a pure fold: choose an edge, cross it, and have the next state.

Rule of this file: nothing is decided here that the table does not say. The interpreter fuses edges and
writes to a draft instead; tests compare it with this.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .phase import Flag, Junction, Phase, Place, place_name
from .state import Draft, State
from .table import ROWS, Edge, Outcome, Term, effects, falling
from .values import NO_FACTS


def holds(guard: Iterable[Term], flags: Flag, at: Draft) -> bool:
    return all(bool(term & flags) if isinstance(term, Flag) else term(at) for term in guard)


def choose(place: Place, flags: Flag, at: Draft) -> Edge:
    """The edge to cross from `place`: the first row whose guard holds.

    Raises:
        ValueError: `place` is final.
    """
    for edge in ROWS[place]:
        if holds(edge.guard, flags, at):
            return edge
    raise ValueError(f"there is no way on from {place_name(place)}")


def advance(state: State, edge: Edge, outcomes: Sequence[Outcome] = ()) -> State:
    """The state after crossing the edge, when its operations answered `outcomes`, in order.

    At a junction the phase of the state is the one before it: continue with `choose(edge.target, …)`.
    RESUMED stands for the place where the training was suspended. The facts are gone: they were
    measured somewhere else.
    """
    draft = state.draft()
    answers = iter(outcomes)
    for operation, effect in effects(edge):
        outcome = next(answers, None) if operation else None
        if effect:
            effect(draft, outcome)
    place = arrived_at(edge, state.resume_at)
    phase = place if isinstance(place, Phase) else state.phase
    return draft.state(phase, state.flags & ~falling(edge) | edge.raises, NO_FACTS)


def arrived_at(edge: Edge, resume_at: Place | None) -> Place:
    """The target of the edge; RESUMED stands for the place where the training was suspended."""
    if edge.target is not Junction.RESUMED:
        return edge.target
    assert resume_at is not None, "only a guard that saw where to resume leads here"
    return resume_at
