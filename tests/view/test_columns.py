"""Columns and tracks, case by case."""

from __future__ import annotations

from math import copysign, pi
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsm_train.view.columns import EXACT, MAX_TEXT, packed_ints, packed_values, shown
from fsm_train.view.tracks import ABSENT, Group, Track, is_same

from .unpacking import ints, points, values


@given(st.lists(st.integers(-EXACT, EXACT)))
def test_whole_numbers_come_back(numbers: list[int]) -> None:
    """Whatever their distances are."""
    assert ints(packed_ints(numbers)) == numbers


@pytest.mark.parametrize(
    "some",
    [
        [],
        [1, 2, 3],
        [1, 1.0, True, 1],
        [0.5, 0.5, 0.5, pi],
        ["a", "b", "a", "a", "a"],
        [None, {"$float": "nan"}, [1, 2], None],
        [EXACT + 1, 1],
    ],
)
def test_values_come_back_as_they_were(some: list[Any]) -> None:
    """Also where equal ones are of different types: 1 is not 1.0, and not True."""
    again = values(packed_values(some))

    expected = [shown(value) for value in some]
    assert again == expected
    assert [*map(type, again)] == [*map(type, expected)]


def test_a_long_text_loses_its_middle() -> None:
    """And says how much that is."""
    text = shown("a" * MAX_TEXT + "b" * 10)

    assert text == f"{'a' * (MAX_TEXT // 2)} … 10 characters … {'a' * (MAX_TEXT // 2 - 10)}{'b' * 10}"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (1, 1, True),
        (1, 1.0, False),
        (1, True, False),
        (0.0, -0.0, False),
        (0.0, copysign(0.0, 1.0), True),
        ([1, {"a": 1.5}], [1, {"a": 1.5}], True),
        ([1], [1.0], False),
        ("a", "b", False),
        ("", "", True),
    ],
)
def test_values_are_the_same_where_they_are_written_alike(one: Any, other: Any, same: bool) -> None:
    """A track notes each change that the log would show."""
    assert is_same(one, other) is same


def test_a_track_notes_changes_alone() -> None:
    """And a group what is no longer there."""
    track, group = Track(), Group()
    for row, value in enumerate([1, 1, 2, 2]):
        track.see(row, value)
        group.see(row, {"a": value} if row < 3 else {"b": 0})

    assert points(track.packed()) == {0: 1, 2: 2}
    by_name = {packed["name"]: points(packed) for packed in group.packed()}
    assert by_name == {"a": {0: 1, 2: 2, 3: ABSENT}, "b": {3: 0}}
