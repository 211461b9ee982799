"""The row that ranks exchange."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsm_train.worlds.rows import (
    ABSENT,
    PLACES,
    ROOM,
    WIDTH,
    Row,
    Topic,
    common_signal,
    number_values,
    numbers_of,
    rows_for_text,
    signal_code,
    signal_name,
    text_of,
    text_values,
)

ROWS = st.builds(
    Row,
    topic=st.sampled_from(Topic),
    digest=st.integers(0, 2**48 - 1),
    signal=st.sampled_from([None, "SIGINT", "SIGTERM", "a signal"]),
    values=st.lists(st.floats(allow_nan=False), min_size=ROOM, max_size=ROOM).map(tuple),
)


@given(ROWS)
def test_row_comes_back(row: Row) -> None:
    """As floats of double precision, of which there are always as many."""
    packed = row.packed()

    assert len(packed) == WIDTH
    assert all(type(number) is float for number in packed)
    assert Row.unpacked(packed) == row


@given(st.binary(max_size=400))
def test_text_comes_back(text: bytes) -> None:
    """Also one with zeros at its end."""
    rows = list(text_values(text))

    assert len(rows) == rows_for_text(len(text))
    assert all(len(values) <= ROOM for values in rows)
    assert text_of([value for values in rows for value in values], len(text)) == text


@given(st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.floats(allow_nan=False), st.floats(0, 9))))
def test_numbers_come_back_by_name(given: dict[str, tuple[float, float]]) -> None:
    """A name that a rank has no number for is absent, and not 0."""
    assert numbers_of(number_values(given, "abcdef"), "abcdef") == given
    assert number_values({}, "a") == (0.0, ABSENT)


@pytest.mark.parametrize(
    ("sent", "common"),
    [
        ([None, None], None),
        ([None, "SIGINT"], "SIGINT"),
        (["SIGTERM", "SIGINT"], "SIGTERM"),
        (["an alarm", None], "a signal"),
        (["an alarm", "SIGUSR1"], "SIGUSR1"),
    ],
)
def test_ranks_act_on_one_signal(sent: Any, common: str | None) -> None:
    """On each rank the same, whichever was sent which."""
    rows = [Row(Topic.FETCH, signal=name) for name in sent]

    assert common_signal([Row.unpacked(row.packed()) for row in rows]) == common


def test_no_signal_has_the_code_of_none() -> None:
    """What is not known here is some signal."""
    assert [signal_name(signal_code(name)) for name in (None, "SIGHUP", "noon")] == [None, "SIGHUP", "a signal"]


def test_each_topic_is_a_place_in_words() -> None:
    """A sentence that says where a rank waits has words for each."""
    assert PLACES.keys() == set(Topic)
