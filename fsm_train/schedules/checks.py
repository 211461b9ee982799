"""Validators of the settings of schedules, which are checked when a schedule is made."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import attrs

from ..core.checks import Validator, is_number, is_whole

Shape = Literal["cosine", "linear"]
"""How `one_cycle` goes from one point to the next."""

CyclicMode = Literal["triangular", "triangular2", "exp_range"]
"""How the height of the cycles of `cyclic` changes."""


def takes(wanted: str, is_type: Callable[[Any], bool], fits: Callable[[Any], bool]) -> Validator:
    """A validator whose error, a TypeError or a ValueError, says what is wanted."""

    def check(schedule: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not is_type(value) or not fits(value):
            error = ValueError if is_type(value) else TypeError
            raise error(f"{type(schedule).__name__}: {attribute.name}={value!r}, but it takes {wanted}")

    return check


def _is_text(value: object) -> bool:
    return isinstance(value, str)


count = takes("a whole number from 1", is_whole, lambda n: n >= 1)
finite = takes("a finite number from 0", is_number, lambda x: 0 <= x < math.inf)
positive = takes("a finite number above 0", is_number, lambda x: 0 < x < math.inf)
share = takes("a number from 0 to 1", is_number, lambda x: 0 <= x <= 1)
drop = takes("a number from 0 to 1, such as 0.1 to divide by ten", is_number, lambda x: 0 <= x <= 1)
rise = takes("the part of the length before the peak, from 0 to below 1", is_number, lambda x: 0 <= x < 1)
shape = takes("'cosine' or 'linear'", _is_text, lambda shape: shape in get_args(Shape))
mode = takes("'triangular', 'triangular2' or 'exp_range'", _is_text, lambda mode: mode in get_args(CyclicMode))
