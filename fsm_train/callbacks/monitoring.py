"""Shared by the callbacks that monitor a metric: its value, its comparison, and the words of a reason."""

from __future__ import annotations

import math
from typing import Literal

from ..core.checks import check_number
from ..core.state import State

Direction = Literal["min", "max"]
"""The `mode` of a monitor: whether smaller values are better, or larger ones."""


def monitored(state: State, monitor: str) -> float | None:
    """The metric of that name; None if it was not measured in this epoch.

    Raises:
        LookupError: no epoch has measured it, and this one measured all that it can; the message lists
            the metrics that there are.
    """
    if monitor in state.metrics:
        return state.metrics[monitor]
    of_validation = monitor.startswith("valid_")
    not_validated = of_validation and state.has_valid and not any(name.startswith("valid_") for name in state.metrics)
    if not_validated or any(monitor in metrics for metrics in state.history):
        return None
    there_are = ", ".join(state.metrics) or "none"
    advice = "; valid_… metrics need validation data" if of_validation and not state.has_valid else ""
    raise LookupError(f"there is no metric {monitor!r} to monitor: there are {there_are}{advice}")


def is_better(value: float, best: float | None, mode: Direction, min_delta: float = 0.0) -> bool:
    """Whether a value is better than the best so far, by more than `min_delta`. NaN and infinities never are."""
    if not math.isfinite(value):
        return False
    if best is None:
        return True
    return best - value > min_delta if mode == "min" else value - best > min_delta


def no_improvement(monitor: str, best: float | None, epochs: int, *, min_delta: float = 0.0) -> str:
    """The reason of a callback that acts because a metric has not improved for this number of epochs."""
    by = f"by more than {min_delta:g} " if min_delta else ""
    so_far = "was never finite" if best is None else f"has not improved {by}on {short(best)}"
    return f"{monitor} {so_far} for {epochs} epoch{'s' * (epochs != 1)}"


def short(value: float) -> str:
    """The value as a person would write it: at most six digits, and always visibly a float."""
    return repr(float(f"{value:.6g}"))


def check_monitor(monitor: str, mode: str = "min", min_delta: float = 0.0) -> None:
    if not isinstance(monitor, str) or not monitor:
        raise ValueError(f"monitor={monitor!r}: name a metric, for example 'valid_loss'")
    if mode not in ("min", "max"):
        raise ValueError(f"mode={mode!r}: 'min' if smaller is better, else 'max'")
    wanted = "an improvement is a number from 0, also with mode='max'"
    check_number("min_delta", min_delta, lambda x: 0 <= x < math.inf, wanted)
