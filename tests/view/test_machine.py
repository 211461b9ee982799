"""The machine of the page is the table."""

from __future__ import annotations

from typing import Any

from fsm_train.core.phase import Junction, Phase
from fsm_train.core.table import ROWS, TABLE, term_name
from fsm_train.view.machine import brackets, packed_machine


def flat(parts: list[Any]) -> list[int]:
    return [code for part in parts for code in (flat(part) if isinstance(part, list) else [part])]


def test_each_phase_stands_in_the_brackets_once() -> None:
    """In the order of the machine."""
    assert flat(brackets()) == [*range(len(Phase))]


def test_moves_are_the_rows_of_the_table() -> None:
    """From each phase its own rows first, and all rows are shown from somewhere."""
    machine = packed_machine()
    for phase, moves in zip(Phase, machine["moves"], strict=True):
        assert [move["to"] for move in moves if not move["from"]] == [
            edge.target.value if isinstance(edge.target, Phase) else f"({edge.target.name})" for edge in ROWS[phase]
        ]
    shown = {(move["if"], move["do"], move["to"]) for moves in machine["moves"] for move in moves}
    by_name = {
        (" and ".join(map(term_name, edge.guard)), edge.target.value)
        for edge in TABLE
        if edge.source is not Junction.VALID_ABANDONED  # only a training that resumes comes there
    }
    assert {(guard, to.strip("()").lower()) for guard, _, to in shown} == by_name
    assert ("SKIP_BATCH", "", "batch_end") in shown
    assert ("weighs nothing", "raise SKIP_BATCH", "batch_begin") in shown
