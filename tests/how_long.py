"""How many of their cases the `long` tests try: FSM_TRAIN_LONG is the share, 1 for all; without it, a few."""

from __future__ import annotations

import os

SHARE = float(os.environ.get("FSM_TRAIN_LONG", "0"))
THOROUGH = SHARE > 0


def of_all(count: int, few: int) -> int:
    """How many of so many random cases are tried; `few` without FSM_TRAIN_LONG."""
    return round(count * SHARE) if THOROUGH else few


def step_through(few: int) -> int:
    """The distance of the cases that are tried, of many in a row; `few` without FSM_TRAIN_LONG."""
    return round(1 / SHARE) if THOROUGH else few
