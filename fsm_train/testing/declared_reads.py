"""The law about `reads`: what a callback declares that it reads is all that its answer depends on.

Rule of this file: as in `laws.py`, a law judges the consultations of one training.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from ..core.declarations import FREE
from ..core.state import State, replaced
from ..core.values import Facts
from . import laws  # noqa: F401  which are named before this one
from .cases import Case, Finding, describe_change, law
from .consultation import Consultation, Failure, ask, same_response

_FIELDS = tuple(field.name for field in attrs.fields(State))
_SAME = (FREE & {*_FIELDS}) | {"memory", "players"}
"""What is the same wherever a decision is kept, or belongs to the callback."""


@law(
    "Name in reads= of @on all that it reads, or leave reads= out where it reads more than can be named: then it is "
    "asked each time.",
    after=("answers_the_same_twice", "goes_on_as_before"),
)
def reads_what_it_declares(case: Case) -> Finding | None:
    """Where it declares what it reads, states that agree in that get the same answer."""
    reads = case.callback.reads
    if reads is None:
        return None
    for c, other in _neighbours(case.alone):
        state = _agreeing(c, other, reads | case.callback.needs)
        if state.players or isinstance(c.response, Failure):
            continue  # with turns nothing is kept
        answer = ask(case.callback.decide, state, c.memory)
        if not same_response(c.response, answer):
            named = ", ".join(sorted(reads)) or "nothing"
            return Finding(describe_change(c.response, answer, f"declaring that it reads {named}, of another state"), c)
    return None


def _neighbours(consultations: list[Consultation]) -> Iterator[tuple[Consultation, Consultation]]:
    """Each consultation with the first, the last and the next one at its phase."""
    by_phase: dict[object, list[Consultation]] = {}
    for c in consultations:
        by_phase.setdefault(c.state.phase, []).append(c)
    for there in by_phase.values():
        for c, next_one in zip(there, [*there[1:], there[0]], strict=True):
            for other in (there[0], next_one, there[-1]):
                yield c, other


def _agreeing(c: Consultation, other: Consultation, reads: frozenset[str]) -> State:
    """The other state with all that the callback declares, and what is the same for each, as in the first."""
    facts = {**other.state.facts, **{name: value for name, value in c.state.facts.items() if name in reads}}
    own = {name: getattr(c.state, name) for name in _FIELDS if name in _SAME or name in reads}
    return replaced(other.state, {**own, "facts": Facts(facts)})
