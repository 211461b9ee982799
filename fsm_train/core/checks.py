"""Checks of settings: tests of a value, functions that refuse one, and validators of attrs fields.

Rule of this file: an error says which setting it is, what was found, and what is accepted.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import attrs

Validator = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def is_whole(value: object, least: float = -math.inf) -> TypeGuard[int]:
    """Whether it is an int, and no bool, that is at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is an int or a float, and no bool. NaN and infinities are numbers."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_exact_number(value: object) -> TypeGuard[float]:
    """Whether it is a number, and no bool, that a float holds exactly: a scalar of NumPy is one too."""
    if type(value) is float or is_number(value):
        return True
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    as_float = float(value)
    return as_float == value or as_float != as_float


# ------------------------------------------------------- functions that raise, for arguments


def check_count(name: str, value: object, least: int = 0) -> None:
    if not is_whole(value, least):
        raise ValueError(f"{name}={value!r}: it is a whole number from {least}")


def check_number(name: str, value: object, fits: Callable[[Any], bool], wanted: str) -> None:
    """Refuse what is no number, and numbers that do not fit.

    A number is what can be compared with one, and is no bool: a scalar of NumPy is one too.

    Args:
        name: the setting.
        value: what was found.
        fits: whether a number is accepted; it is false of NaN.
        wanted: what is accepted, as a sentence.
    """
    try:
        accepted = not isinstance(value, bool) and fits(value)
    except TypeError:
        accepted = False
    if not accepted:
        raise ValueError(f"{name}={value!r}: {wanted}")


def check_positive(name: str, value: object) -> None:
    check_number(name, value, lambda x: 0 < x < math.inf, "it is a positive number")


def check_positive_or_inf(name: str, value: object) -> None:
    check_number(name, value, lambda x: x > 0, "it is a positive number, or math.inf")


def check_not_negative(name: str, value: object) -> None:
    check_number(name, value, lambda x: 0 <= x < math.inf, "it is a number from 0")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        *others, last = map(repr, choices)
        raise ValueError(f"{name}={value!r}: {', '.join(others)} or {last}")


# ---------------------------------------------------------- validators, for fields of records


def _validator(fits: Callable[[Any], bool], wanted: str) -> Validator:
    # It does not call `check_number`: a record such as WeighLoss is made for each batch.
    def validate(record: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not fits(value):
            raise ValueError(f"{attribute.name}={value!r}: it must be {wanted}")

    return validate


positive = _validator(lambda x: 0 < x < math.inf, "a positive number")
not_negative = _validator(lambda x: 0 <= x < math.inf, "a number from 0")
fraction = _validator(lambda x: 0 <= x <= 1, "a number from 0 to 1")
