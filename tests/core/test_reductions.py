"""What several ranks measured as one number."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsm_train.core.reductions import Sensor, exact_sum, reduced, reduction_of, weighted_mean

GIVEN = st.lists(st.tuples(st.floats(-1e6, 1e6), st.integers(0, 64)), min_size=1, max_size=4)


@given(GIVEN)
def test_mean_is_the_exact_one_to_rounding(given: list[tuple[float, int]]) -> None:
    """Of the samples of all ranks, whose sums are taken without rounding."""
    weighing = [(value, weight) for value, weight in given if weight] or [(value, 1) for value, _ in given]
    exact = sum(Fraction(value) * weight for value, weight in weighing) / sum(weight for _, weight in weighing)

    assert weighted_mean(given) == pytest.approx(float(exact), rel=1e-9, abs=1e-9)


@given(GIVEN)
def test_order_of_ranks_changes_no_bit(given: list[tuple[float, int]]) -> None:
    """The sums are rounded once."""
    assert len({weighted_mean(order) for order in itertools.permutations(given)}) == 1


@given(st.floats(allow_nan=False), st.lists(st.integers(1, 64), min_size=1, max_size=4))
def test_equal_values_stay_what_they_are(value: float, weights: list[int]) -> None:
    """A mean of 0.1 and 0.1 is 0.1, to the last bit."""
    assert weighted_mean([(value, weight) for weight in weights]) == value


@pytest.mark.parametrize("how", ["mean", "sum", "max", "min"])
def test_nan_on_one_rank_is_not_lost(how: Any) -> None:
    """In whatever order: `max` of Python forgets one that comes second."""
    for order in itertools.permutations([(math.nan, 1.0), (1.0, 1.0), (2.0, 1.0)]):
        assert math.isnan(reduced(how, order))


def test_what_weighs_nothing_is_left_out_of_a_mean() -> None:
    """0 times NaN is NaN."""
    assert weighted_mean([(math.nan, 0), (2.0, 3)]) == 2.0


@pytest.mark.parametrize(
    ("given", "mean"),
    [
        ([(math.inf, 1), (1.0, 1)], math.inf),
        ([(1e308, 30), (1.2e308, 30)], 1.1e308),
        ([(-1e308, 30), (1e308, 30)], 0.0),
        ([(1.0, 0), (3.0, 0)], 2.0),
    ],
)
def test_means_at_the_ends_of_the_numbers(given: Any, mean: float) -> None:
    """Infinities stay; a product beyond a float does not make the mean one."""
    assert weighted_mean(given) == pytest.approx(mean)


def test_sum_beyond_a_float_is_infinite() -> None:
    """As `+` has it, and no error."""
    assert (exact_sum([1e308, 1e308]), exact_sum([math.inf, 1.0])) == (math.inf, math.inf)
    assert math.isnan(exact_sum([math.inf, -math.inf]))


def test_facts_have_their_reductions() -> None:
    """A sensor that declares nothing is a mean, and a save that failed on one rank failed."""
    declared: Any = {"tokens": "sum", "loss": "sum"}
    names = ["loss", "grad_norm", "stepped", "elapsed", "tokens", "depth", "unsaved:checkpoint"]

    found = [reduction_of(name, declared) for name in names]
    assert found == ["mean", "max", "min", "max", "sum", "mean", "max"]


def test_reductions() -> None:
    """Sums and extremes do not look at the weights."""
    given = [(1.0, 9.0), (2.0, 1.0), (4.0, 0.0)]

    assert [reduced(how, given) for how in ("mean", "sum", "max", "min")] == [1.1, 7.0, 4.0, 1.0]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"measure": 3}, TypeError, "measure=3: give a function that measures"),
        ({"measure": len, "reduction": "median"}, ValueError, "reduction='median': there are mean, sum, max, min"),
    ],
)
def test_sensor_says_what_it_takes(arguments: Any, error: type[Exception], text: str) -> None:
    """A mistake is found where it is written."""
    with pytest.raises(error, match=text):
        Sensor(**arguments)


def test_sensor_is_called_as_its_function() -> None:
    """So it stands wherever a function can."""
    assert Sensor(len, reduction="max")("abc") == 3
