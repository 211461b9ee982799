"""When to stop.

A training that stops says which callback stopped it, and on what evidence.
"""

from __future__ import annotations

import math
from typing import Literal

import attrs

from ..core.callback import Callback, on, strict_factory
from ..core.phase import Flag, Phase
from ..core.state import State
from ..core.transition import Transition

Mode = Literal["min", "max"]


@attrs.frozen
class Best:
    """The best value so far, and how many checks in a row brought no better one."""

    value: float | None = None
    bad: int = 0


@strict_factory
def early_stopping(
    monitor: str = "valid_loss",
    *,
    patience: int = 3,
    min_delta: float = 0.0,
    mode: Mode = "min",
    on_nonfinite: Literal["stop", "wait"] = "stop",
    name: str = "early_stopping",
) -> Callback[Best]:
    """Stop the training when the monitored metric has stopped improving.

    An improvement is strictly more than `min_delta` better than the best so far, and the best moves
    only on an improvement, so that many small steps count as soon as they add up. Checked at
    EPOCH_END; an epoch without the metric (no validation in it) is no check.

    As in Lightning and Keras, whose rule for the patience this follows. A NaN or an infinity is
    never the best, unlike in Keras, where a first NaN can never be beaten.

    >>> from fsm_train.testing import simulate
    >>> simulate([early_stopping(patience=2)], valid_loss=[3.0, 2.0, 2.5, 2.4, 1.0]).reason
    'early_stopping: valid_loss has not improved on 2.0 for 2 epochs'

    Args:
        monitor: the metric to watch.
        patience: so many checks in a row without an improvement are put up with; the last of them stops.
        min_delta: how much better a value must be to count, in the metric's own unit.
        mode: "min" if smaller is better, else "max".
        on_nonfinite: "stop" at once when the metric is not finite, or "wait" as for any bad value.

    Raises:
        LookupError: at the first check, if there is no such metric.
    """
    check_monitor(monitor, mode)
    check_count("patience", patience)
    check_delta(min_delta)
    if on_nonfinite not in ("stop", "wait"):
        raise ValueError(f"on_nonfinite={on_nonfinite!r}: 'stop' or 'wait'")
    by = f"by more than {min_delta:g} " if min_delta else ""

    @on(Phase.EPOCH_END, memory=Best(), raises=Flag.STOP_TRAINING)
    def early_stopping(state: State, best: Best) -> Transition | None:
        value = monitored(state, monitor)
        if value is None:
            return None
        if not math.isfinite(value) and on_nonfinite == "stop":
            return Transition(flags=Flag.STOP_TRAINING, reason=f"{monitor} is {value}")
        if is_better(value, best.value, mode, min_delta):
            return Transition(memory=Best(value))

        bad = best.bad + 1
        if bad < patience:
            return Transition(memory=Best(best.value, bad))
        so_far = "was never finite" if best.value is None else f"has not improved {by}on {short(best.value)}"
        return Transition(
            flags=Flag.STOP_TRAINING,
            memory=Best(best.value, bad),
            reason=f"{monitor} {so_far} for {epochs(bad)}",
        )

    return early_stopping


def monitored(state: State, monitor: str) -> float | None:
    """The metric of that name; None in an epoch without a validation, or whatever else has measured it before.

    Raises:
        LookupError: there is none; the sentence lists those that there are.
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


def is_better(value: float, best: float | None, mode: Mode, min_delta: float = 0.0) -> bool:
    """Whether a value is better than the best so far, by more than `min_delta`. NaN and infinities never are."""
    if not math.isfinite(value):
        return False
    if best is None:
        return True
    return best - value > min_delta if mode == "min" else value - best > min_delta


def epochs(number: int) -> str:
    return f"{number} epoch{'s' * (number != 1)}"


def short(value: float) -> str:
    """The value as a person would write it: at most six digits, and always visibly a float."""
    return repr(float(f"{value:.6g}"))


def check_monitor(monitor: str, mode: str = "min") -> None:
    if not isinstance(monitor, str) or not monitor:
        raise ValueError(f"monitor={monitor!r}: name a metric, for example 'valid_loss'")
    if mode not in ("min", "max"):
        raise ValueError(f"mode={mode!r}: 'min' if smaller is better, else 'max'")


def check_delta(min_delta: float) -> None:
    if not 0 <= min_delta < math.inf:
        raise ValueError(f"min_delta={min_delta!r}: an improvement is a number from 0, also with mode='max'")


def check_count(name: str, value: object, least: int = 0) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r}: it is a whole number from {least}")
