"""Laws of schedules: what holds of every one that can be made."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsm_train import schedules
from fsm_train.schedules import Absolute, Schedule

counts = st.integers(1, 1000)
shares = st.floats(0, 1)
progresses = st.integers(0, 10_000) | st.floats(0, 10_000)


def of_two_or_three_phases(length: int, rise: float, three_phase: bool, **settings: Any) -> Schedule:
    return schedules.one_cycle(length, warmup=rise / 2 if three_phase else rise, three_phase=three_phase, **settings)


finite_kinds = st.one_of(
    st.builds(schedules.constant, shares, length=counts),
    st.builds(schedules.warmup, counts, start=shares),
    st.builds(schedules.linear, shares, shares, counts),
    st.builds(schedules.polynomial, counts, power=st.floats(0.1, 5), floor=shares),
    st.builds(schedules.cosine, counts, floor=shares),
    st.builds(
        of_two_or_three_phases,
        counts,
        st.floats(0, 1, exclude_max=True),
        st.booleans(),
        start=shares,
        final=shares,
        shape=st.sampled_from(["cosine", "linear"]),
    ),
    st.builds(schedules.piecewise, st.dictionaries(st.integers(0, 1000), shares, min_size=2, max_size=5)),
)
endless_kinds = st.one_of(
    st.builds(schedules.constant, shares),
    st.builds(schedules.exponential, shares),
    st.builds(schedules.exponential, rate=shares),
    st.builds(schedules.step, counts, drop=shares),
    st.builds(schedules.multistep, st.sets(counts, min_size=1, max_size=5).map(sorted), drop=shares),
    st.builds(schedules.time_decay, st.floats(0, 10)),
    st.builds(schedules.cosine_restarts, counts, factor=st.integers(1, 3), floor=shares),
    st.builds(
        schedules.cyclic,
        counts,
        down=st.none() | counts,
        low=shares,
        mode=st.sampled_from(["triangular", "triangular2"]),
    ),
    st.builds(schedules.cyclic, counts, down=st.none() | counts, low=shares, mode=st.just("exp_range"), gamma=shares),
)


def compound(parts: st.SearchStrategy[Schedule]) -> st.SearchStrategy[Schedule]:
    return st.one_of(
        st.builds(lambda a, b, after: a.then(b, after=after), parts, parts, counts),
        st.builds(lambda a, b: a * b, parts, parts),
        st.builds(lambda a, number: number * a, parts, shares),
    )


every_schedule = st.recursive(finite_kinds | endless_kinds, compound, max_leaves=6)
finite_schedules = st.recursive(
    finite_kinds,
    lambda parts: st.one_of(
        st.builds(lambda a, b: a.then(b), parts, parts),
        st.builds(lambda a, b: a * b, parts, parts),
        st.builds(lambda a, number: number * a, parts, shares),
    ),
    max_leaves=6,
)


@given(every_schedule, progresses)
def test_settings_within_one_give_values_within_one(schedule: Schedule, progress: float) -> None:
    """A schedule stays between 0 and 1 when all that it was made of does."""
    assert 0 <= schedule(progress) <= 1 + 1e-12


@given(st.dictionaries(st.integers(0, 1000), st.floats(0, 1e6), min_size=2), progresses)
def test_lines_stay_between_their_points(points: dict[int, float], progress: float) -> None:
    """Between its points a piecewise schedule is never beyond the highest and the lowest of them."""
    least, most = min(points.values()), max(points.values())

    assert least * (1 - 1e-12) <= schedules.piecewise(points)(progress) <= most * (1 + 1e-12)
    assert all(schedules.piecewise(points)(at) == pytest.approx(value, rel=1e-12) for at, value in points.items())


@given(finite_schedules, st.integers(0, 10_000))
def test_the_last_value_is_held(schedule: Schedule, beyond: int) -> None:
    """From its end on a schedule does not move."""
    assert schedule.length is not None
    assert schedule(schedule.length + beyond) == schedule(schedule.length)


@given(counts, shares, shares, st.integers(0, 1000))
def test_the_floor_is_reached_exactly(length: int, floor: float, start: float, beyond: int) -> None:
    """Ends are where they were told to be, not almost there, and so are beginnings."""
    assert schedules.cosine(length, floor=floor)(length + beyond) == floor
    assert schedules.polynomial(length, floor=floor)(length + beyond) == floor
    assert schedules.linear(start, floor, length)(length + beyond) == floor
    assert schedules.one_cycle(length, final=floor)(length - 1 + beyond) == floor
    assert schedules.linear(start, floor, length)(0) == start
    assert schedules.cosine(length, floor=floor)(0) == schedules.polynomial(length, floor=floor)(0) == 1


@given(finite_schedules, finite_schedules, every_schedule)
def test_then_is_associative(a: Schedule, b: Schedule, c: Schedule) -> None:
    """A chain is the same however it was bracketed."""
    assert a.then(b).then(c) == a.then(b.then(c))


@given(every_schedule, every_schedule, every_schedule, counts, counts)
def test_then_with_after_is_associative(a: Schedule, b: Schedule, c: Schedule, first: int, second: int) -> None:
    """Counted from the start of the chain, so is one of schedules that are left at some progress."""
    assert a.then(b, after=first).then(c, after=first + second) == a.then(b.then(c, after=second), after=first)


@given(every_schedule, every_schedule, counts, st.integers(0, 10_000))
def test_then_goes_from_one_to_the_other(a: Schedule, b: Schedule, after: int, progress: int) -> None:
    """Before the change a chain is its first part, and from then on its second, which counts from there."""
    expected = a(progress) if progress < after else b(progress - after)

    assert a.then(b, after=after)(progress) == expected


@given(every_schedule, every_schedule, progresses)
def test_products_commute(a: Schedule, b: Schedule, progress: float) -> None:
    """The order of the factors does not change the value, which is their product."""
    value = (a * b)(progress)

    assert value == pytest.approx((b * a)(progress), rel=1e-12)
    assert value == pytest.approx(a(progress) * b(progress), rel=1e-12)


@given(every_schedule, every_schedule, every_schedule, progresses)
def test_products_are_associative(a: Schedule, b: Schedule, c: Schedule, progress: float) -> None:
    """A product has the same value however it was bracketed."""
    assert ((a * b) * c)(progress) == pytest.approx((a * (b * c))(progress), rel=1e-12)


@given(every_schedule)
def test_one_is_neutral(schedule: Schedule) -> None:
    """A product with 1 is the schedule itself."""
    assert schedule * 1 == 1.0 * schedule == schedule * schedules.constant() == schedule


@given(every_schedule)
def test_a_schedule_is_what_it_prints(schedule: Schedule) -> None:
    """Read back, what a schedule prints is an equal one, with an equal hash."""
    again = eval(repr(schedule), vars(schedules))

    assert again == schedule
    assert hash(again) == hash(schedule)


@given(every_schedule)
def test_an_absolute_is_what_it_prints(schedule: Schedule) -> None:
    """So does one that is the value itself, and it is not the schedule that it wraps."""
    marked = schedules.absolute(schedule)

    assert eval(repr(marked), vars(schedules)) == marked == Absolute(schedule)
    assert marked != schedule


@given(every_schedule, every_schedule)
def test_equal_schedules_have_equal_hashes(a: Schedule, b: Schedule) -> None:
    """Equality and hash agree, and so do the values."""
    if a == b:
        assert hash(a) == hash(b)
        assert a(7) == b(7)


@given(every_schedule, progresses)
def test_a_schedule_forgets(schedule: Schedule, progress: float) -> None:
    """Asked twice, in whatever order, it says the same: it is a function of progress alone."""
    before = schedule(progress)
    schedule(0)

    assert schedule(progress) == before
    assert math.isfinite(before)
