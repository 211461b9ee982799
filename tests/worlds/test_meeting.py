"""Values that ranks tell each other: in rows, and long ones as a whole where the exchange can."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from fsm_train.worlds.meeting import Meeting
from fsm_train.worlds.rows import Topic

LONG = "x" * 10_000


class Alike:
    """Two ranks that give the same."""

    def __init__(self) -> None:
        self.places: list[str] = []

    def __call__(self, row: Sequence[float], /) -> Sequence[Sequence[float]]:
        return [row, row]

    def gather(self, value: Any, place: str) -> list[Any]:
        self.places.append(place)
        return [value, value]


def meeting_of(exchange: Any) -> Meeting:
    return Meeting(exchange, lambda: None, lambda signal: None)


@pytest.mark.parametrize(("value", "exchanges"), [(None, 1), ("short", 2), (LONG, 2)])
def test_a_value_takes_two_exchanges_whatever_its_size(value: str | None, exchanges: int) -> None:
    """Its length and the value; ranks say where they wait for a long one."""
    meeting = meeting_of(exchange := Alike())

    assert meeting.values(Topic.WRITE, value) == [value, value]

    assert meeting.exchanges == exchanges
    assert exchange.places == (["a checkpoint that is being written"] if value is LONG else [])


def test_a_plain_function_carries_a_long_value_in_rows() -> None:
    meeting = meeting_of(lambda row: [row, row])

    assert meeting.values(Topic.WRITE, LONG) == [LONG, LONG]
    assert meeting.exchanges > 100


def test_no_exchange_comes_after_one_that_failed() -> None:
    """As with rows: the ranks would no longer meet."""

    class Fails(Alike):
        def gather(self, value: Any, place: str) -> list[Any]:
            raise RuntimeError("connection reset")

    meeting = meeting_of(Fails())

    with pytest.raises(RuntimeError, match="reset"):
        meeting.values(Topic.WRITE, LONG)

    assert meeting.lost
