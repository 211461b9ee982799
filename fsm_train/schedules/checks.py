"""What the settings of schedules are checked for, when they are made."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import attrs

Shape = Literal["cosine", "linear"]
Mode = Literal["triangular", "triangular2", "exp_range"]
Check = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def takes(wanted: str, fits: Callable[[Any], bool], *kinds: type) -> Check:
    def check(schedule: object, attribute: attrs.Attribute[Any], value: object) -> None:
        is_kind = isinstance(value, kinds) and not isinstance(value, bool)
        if not is_kind or not fits(value):
            error = ValueError if is_kind else TypeError
            raise error(f"{type(schedule).__name__}: {attribute.name}={value!r}, but it takes {wanted}")

    return check


count = takes("a whole number from 1", lambda n: n >= 1, int)
finite = takes("a finite number from 0", lambda x: 0 <= x < math.inf, int, float)
positive = takes("a finite number above 0", lambda x: 0 < x < math.inf, int, float)
share = takes("a number from 0 to 1", lambda x: 0 <= x <= 1, int, float)
drop = takes("a number from 0 to 1, such as 0.1 to divide by ten", lambda x: 0 <= x <= 1, int, float)
rise = takes("the part of the length before the peak, from 0 to below 1", lambda x: 0 <= x < 1, int, float)
shape = takes("'cosine' or 'linear'", lambda shape: shape in get_args(Shape), str)
mode = takes("'triangular', 'triangular2' or 'exp_range'", lambda mode: mode in get_args(Mode), str)
