"""Passes over the data on several ranks."""

from __future__ import annotations

import math

import pytest

from fsm_train import WorkloadError
from fsm_train.worlds.passes import LeftOut, Pass, SignalInterval, rank_weight, union_size


def compared(*passes: Pass) -> list[bool]:
    """Whether each of these ranks knows what comes on all of them."""
    for one in passes:
        one.compare([other.values() for other in passes])
    return [bool(one.of_all) for one in passes]


def test_what_comes_is_known_where_each_rank_knows_its_own() -> None:
    """It need not be the same on all."""
    known = (3, 32, 16)

    assert compared(Pass(known), Pass(known)) == [True, True]
    assert compared(Pass(known), Pass((4, 32, 15))) == [True, True]
    assert compared(Pass(known), Pass()) == [False, False]
    assert compared(Pass(), Pass()) == [False, False]


def test_each_rank_knows_the_sizes_of_all() -> None:
    """Batch by batch, also after the last one of some."""
    one, other = Pass((3, 32, 16)), Pass((2, 32, 15))
    compared(one, other)

    sizes = []
    for size in (32, 32, 16, None):
        one.take(size)
        sizes.append(one.sizes())
    assert sizes == [[32, 32], [32, 15], [16, None], [None, None]]


def test_pass_keeps_to_what_is_known() -> None:
    """The last batch may be a smaller one."""
    known = Pass((3, 32, 16), of_all=[(3, 32, 16)])
    for size in (32, 32, 16, None):
        known.take(size)

    assert (known.fetched, known.own, known.size) == (4, 3, None)


@pytest.mark.parametrize(
    ("fetched", "size", "text"),
    [
        (0, 31, r"batch 0 of a pass over the data counts 31, but by known_sizes=\(3, 32, 16\) it counts 32"),
        (1, None, "batch 1 of a pass over the data is missing, but .* it counts 32"),
        (3, 32, "batch 3 of a pass over the data counts 32, but .* it is missing"),
    ],
)
def test_workload_that_breaks_its_word_is_refused(fetched: int, size: int | None, text: str) -> None:
    """The other ranks would wait for this one, or it for them."""
    with pytest.raises(WorkloadError, match=text):
        Pass((3, 32, 16), of_all=[(3, 32, 16)], fetched=fetched).take(size)


def test_sizes_add_up_and_weights_are_shares() -> None:
    """A whole number stays an int; where all count nothing there is nothing to weigh."""
    assert (union_size([3.0, 2.0]), type(union_size([3.0, 2.0])), union_size([0.5, 0.0])) == (5, int, 0.5)
    assert [rank_weight(size, [1.0, 3.0]) for size in (1.0, 3.0)] == [0.5, 1.5]
    assert rank_weight(0.0, [0.0, 0.0]) == 1.0
    assert rank_weight(0.1, [0.1, 0.1, 0.1]) == 1.0  # exactly


def test_what_is_left_out_is_counted_by_rank() -> None:
    """All that a rank had, where that is known, and else the one batch that it had fetched."""
    left_out = LeftOut()
    assert left_out.note() == ""

    left_out.add([True, False], [5.0, 3.0], 3)
    assert left_out.note().startswith(
        "training batches were left out, since another rank had none any more: at least 2 of rank 0, in 1 pass over"
    )
    left_out.add([True, True], [-1.0, 4.0], 3)
    assert "at least 3 of rank 0, 1 of rank 1, in 2 passes over the data. Give each rank as many" in left_out.note()


def test_pass_that_ends_on_all_ranks_leaves_nothing_out() -> None:
    """Their lengths need not be known."""
    left_out = LeftOut()
    left_out.add([False, False], [-1.0, -1.0], 3)

    assert (left_out.passes, left_out.note()) == (0, "")


def test_signals_are_looked_for_five_times_a_second() -> None:
    """By the slowest rank; from one look to the next at most four times as many batches."""
    now = 0.0
    looks = SignalInterval(clock=lambda: now)
    found = []
    first = looks.seconds_per_batch()
    for _ in range(5):
        looks.agree([first, math.nan])  # nothing is known before the second look
        found.append(looks.batches)
        now += looks.batches / 128
        first = looks.seconds_per_batch()
        assert first == 1 / 128

    assert found == [1, 4, 16, 26, 26]


def test_slow_batches_are_looked_at_one_by_one_and_quick_ones_by_the_thousand() -> None:
    """A batch of no time at all does not switch the looks off."""
    looks = SignalInterval(batches=900)
    looks.agree([0.0, 0.0])
    assert looks.batches == 1000

    looks.agree([0.0, 7.0])
    assert looks.batches == 1


def test_fixed_number_of_batches_stays() -> None:
    """As `interrupts_every` sets it."""
    looks = SignalInterval(batches=3, fixed=True)
    looks.agree([7.0])

    assert looks.batches == 3
