"""Noise, trend and slope, as laws."""

from __future__ import annotations

import random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsm_train.diagnosis.curves import ThinnedSeries, stride, thinned
from fsm_train.diagnosis.statistics import noise, rounding, slope, trend

whole = st.integers(-1000, 1000).map(float)
curves = st.lists(whole, min_size=1, max_size=30)


@given(curves, st.integers(-1000, 1000), st.sampled_from([0.25, 2.0, 1024.0]))
def test_trend_knows_neither_unit_nor_zero(curve: list[float], shift: int, scale: float) -> None:
    """A curve that is shifted and scaled has the same trend, and upside down the opposite one."""
    assert trend([scale * value + shift for value in curve]) == trend(curve)
    assert trend([-value for value in curve]) == -trend(curve)


@given(curves, st.integers(-1000, 1000), st.sampled_from([0.25, 2.0, 1024.0]))
def test_noise_and_slope_scale_with_the_curve(curve: list[float], shift: int, scale: float) -> None:
    """And do not know where its zero is."""
    moved = [scale * value + shift for value in curve]

    assert noise(moved) == pytest.approx(scale * noise(curve))
    assert slope(moved) == pytest.approx(scale * slope(curve))


@given(whole, st.integers(-9, 9), st.integers(3, 30))
def test_a_line_has_a_slope_and_no_noise(start: float, rise: int, count: int) -> None:
    """Whatever its slope, which is found exactly."""
    line = [start + rise * i for i in range(count)]

    assert (noise(line), slope(line)) == (0.0, rise)
    assert (trend(line) > 0, trend(line) < 0) == (rise > 0, rise < 0)


def test_noise_is_the_standard_deviation_of_normal_noise() -> None:
    """On average, and also on a steep line."""
    chance = random.Random(0)
    curves = [[5.0 * i + chance.gauss(0, 2.0) for i in range(100)] for _ in range(100)]

    assert fmean(map(noise, curves)) == pytest.approx(2.0, rel=0.03)


def test_a_trend_is_found_by_chance_as_often_as_is_said() -> None:
    """In 1 of 20 curves without a trend."""
    chance = random.Random(0)
    found = [abs(trend([chance.random() for _ in range(20)])) >= 1.96 for _ in range(2000)]

    assert fmean(found) == pytest.approx(0.05, abs=0.015)


def test_rounding_is_that_of_single_precision() -> None:
    """Of the largest value, in either direction; of no value it is 0."""
    assert (rounding([1.0, -3.0]), rounding([])) == (pytest.approx(3e-6), 0.0)


@given(st.integers(0, 700), st.sampled_from([1, 4, 128]))
def test_what_is_kept_of_a_curve_depends_on_its_length_alone(count: int, most: int) -> None:
    """Item by item or at once, at equal distances, with the first and the last, and bounded."""
    kept: ThinnedSeries[int] = ThinnedSeries(most)
    for item in range(count):
        kept.add(item)
    items = list(kept)

    assert items == [item for _, item in thinned(range(count), most)]
    assert kept.count == count
    assert len(items) <= most + 1
    assert items[:1] + items[-1:] == ([0, count - 1] if count else [])
    assert items[:-1] == list(range(0, max(count, 0), stride(count, most)))[: len(items) - 1]
