"""Laps that end of themselves; what they do in a training is in the property tests."""

from __future__ import annotations

from fsm_train.core.laps import Lap, take_laps


def test_laps_end_where_they_are_long_enough() -> None:
    """After so many batches, or so many steps, whichever comes first: nothing more is fetched."""
    for lap in (Lap(10, batches=3), Lap(10, steps=3), Lap(10, steps=3, batches=9)):
        take_laps(lap, fetch=lambda: 2, step=lambda: True, leaves=lambda: False)
        assert (lap.batches, lap.steps, lap.samples, lap.size) == (3, 3, 16, 2)
        assert (lap.stepping, lap.fetched_nothing) == (False, False)


def test_a_step_that_is_held_back_is_none() -> None:
    """It counts as a batch."""
    lap = Lap(0, steps=2, batches=5)
    take_laps(lap, fetch=lambda: 1, step=lambda: False, leaves=lambda: False)
    assert (lap.batches, lap.steps) == (5, 0)
