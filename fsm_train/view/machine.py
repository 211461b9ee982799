"""The machine for a page: its phases in nested brackets, and the moves from each.

Rule of this file: all of it is read from the table and from the names of the phases.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..core.phase import Junction, Phase, Place, place_name
from ..core.table import ROWS, term_name
from ..encoding import Json
from .columns import Packed


def packed_machine() -> Packed:
    """The machine as JSON: the names of phases by code, the brackets, and by code the moves."""
    return {
        "phases": [phase.value for phase in Phase],
        "brackets": brackets(),
        "moves": [[*_moves(phase)] for phase in Phase],
    }


def brackets() -> list[Json]:
    """The codes of the phases; what is between a phase that begins something and the one that ends it is a list.

    >>> brackets()[:3]
    [0, 1, [2, [3, [4, [5, 6], 7, [8, 9], 10], [11, [12, 13], 14], 15], 16]]
    """
    open_lists: list[list[Json]] = [[]]
    for code, phase in enumerate(Phase):
        what, _, edge = phase.value.rpartition("_")
        if edge == "begin":
            inner: list[Json] = []
            open_lists[-1].append(inner)
            open_lists.append(inner)
        open_lists[-1].append(code)
        if edge == "end" and f"{what}_begin" in _NAMES:
            open_lists.pop()
    return open_lists[0]


_NAMES = frozenset(phase.value for phase in Phase)


def _moves(phase: Phase) -> Iterator[Packed]:
    """The rows of the table from this phase, and of the junctions that it reaches, in their order."""
    places: list[Place] = [phase]
    for place in places:
        for edge in ROWS[place]:
            if isinstance(edge.target, Junction) and edge.target not in places:
                places.append(edge.target)
            yield {
                "from": place_name(place) if isinstance(place, Junction) else "",
                "if": " and ".join(map(term_name, edge.guard)),
                "do": ", ".join([*(o.value for o in edge.operations), *(f"raise {flag.name}" for flag in edge.raises)]),
                "to": place_name(edge.target) if isinstance(edge.target, Junction) else edge.target.value,
            }
