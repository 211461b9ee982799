"""What settings are checked for, and what is said of those that are refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import attrs
import numpy as np
import pytest

from fsm_train.core import checks
from fsm_train.core.checks import is_number, is_whole

NAN, INF = math.nan, math.inf
NOT_POSITIVE = [0, -1.0, NAN, True, "1", None]


@pytest.mark.parametrize(("value", "least", "whole"), [(3, 3, True), (2, 3, False), (0, 0, True), (-9, -INF, True)])
def test_whole_number_is_at_least_the_least(value: int, least: float, whole: bool) -> None:
    """The least itself is accepted."""
    assert is_whole(value, least) is whole


@pytest.mark.parametrize("value", [True, 1.0, "1", None, NAN])
def test_whole_number_is_an_int(value: object) -> None:
    """A bool is an int for Python, and none here."""
    assert not is_whole(value)


@pytest.mark.parametrize(
    ("value", "number"), [(1, True), (0.5, True), (NAN, True), (INF, True), (True, False), ("1", False), (None, False)]
)
def test_number_is_an_int_or_a_float(value: object, number: bool) -> None:
    """Infinities and NaN are numbers; a bool is none."""
    assert is_number(value) is number


@pytest.mark.parametrize(
    ("check", "accepted", "refused", "sentence"),
    [
        (checks.check_count, [0, 7], [-1, 1.0, True, None], "it is a whole number from 0"),
        (checks.check_positive, [1, 1e-9, np.float32(0.5)], [*NOT_POSITIVE, INF], "it is a positive number"),
        (checks.check_positive_or_inf, [1, INF], NOT_POSITIVE, "it is a positive number, or math.inf"),
        (checks.check_not_negative, [0, 0.5], [-1, NAN, INF, False, "0"], "it is a number from 0"),
        (
            lambda name, value: checks.check_choice(name, value, ("a", "b", "c")),
            ["a"],
            ["d", 1, None, []],
            "'a', 'b' or 'c'",
        ),
    ],
    ids=["count", "positive", "positive or inf", "not negative", "choice"],
)
def test_setting_that_does_not_fit_is_refused(
    check: Callable[[str, Any], None], accepted: list[object], refused: list[object], sentence: str
) -> None:
    """The message names the setting, and says what was found and what is accepted."""
    for value in accepted:
        check("setting", value)
    for value in refused:
        with pytest.raises(ValueError, match="^setting=") as caught:
            check("setting", value)
        assert str(caught.value) == f"setting={value!r}: {sentence}"


@pytest.mark.parametrize(
    ("validator", "accepted", "refused", "wanted"),
    [
        (checks.positive, [0.1, 5], [0, -1, NAN, INF], "a positive number"),
        (checks.not_negative, [0, 0.1], [-1, NAN, INF], "a number from 0"),
        (checks.fraction, [0, 1, 0.5], [-0.1, 1.1, NAN], "a number from 0 to 1"),
    ],
    ids=["positive", "not negative", "fraction"],
)
def test_field_that_does_not_fit_is_refused(
    validator: checks.Validator, accepted: list[float], refused: list[float], wanted: str
) -> None:
    """A record with a validator is not made of it."""
    record = attrs.make_class("Record", {"share": attrs.field(validator=validator)}, frozen=True)

    for value in accepted:
        assert record(value).share == value
    for value in refused:
        with pytest.raises(ValueError, match="^share=") as caught:
            record(value)
        assert str(caught.value) == f"share={value!r}: it must be {wanted}"
