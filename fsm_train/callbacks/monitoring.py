"""Shared by the callbacks that monitor a metric: when it is measured, its direction, its comparison, its reasons.

Rule of this file: a check is a measurement. A `valid_…` is measured when a validation ends, in the middle of an epoch
or at its end, anything else when an epoch ends; and so is a `valid_…` that a workload measures without a validation.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from ..core.arguments import check_by_position
from ..core.checks import check_number
from ..core.phase import Flag, Phase
from ..core.state import State
from ..wording import pluralize
from .directions import Direction, direction_of

P = ParamSpec("P")
R = TypeVar("R")


def measured_at(monitor: str) -> Phase:
    """The phase at which a metric of this name has been measured anew.

    >>> measured_at("valid_loss"), measured_at("train_loss")
    (<Phase.VALID_END: 'valid_end'>, <Phase.EPOCH_END: 'epoch_end'>)
    """
    return Phase.VALID_END if monitor.startswith("valid_") else Phase.EPOCH_END


def checked_at(monitor: str) -> tuple[Phase, ...]:
    """The phases at which a metric of this name may have been measured anew.

    A workload of one's own may measure a `valid_…` when an epoch ends, without a validation of the machine.
    """
    return tuple(dict.fromkeys((measured_at(monitor), Phase.EPOCH_END)))


def _seen_before(state: State, monitor: str) -> bool:
    """Whether this is the end of an epoch in which a validation measured it, so that it has been checked."""
    in_this_epoch = state.validated_at >= state.iteration - state.batch
    return state.phase is Phase.EPOCH_END and monitor.startswith("valid_") and in_this_epoch


def monitored(state: State, monitor: str) -> float | None:
    """The metric of that name; None if the validation or the epoch that ends here has not measured it.

    Raises:
        LookupError: no epoch has measured it, and this one measured all that it can; the message lists
            the metrics that there are.
    """
    if _seen_before(state, monitor):
        return None
    if monitor in state.metrics:
        return state.metrics[monitor]
    of_validation = monitor.startswith("valid_")
    not_validated = of_validation and state.has_valid and _may_be_left_out(state, monitor)
    nothing_measured = not of_validation and state.phase is Phase.EPOCH_END and not _has_training_metrics(state)
    if not_validated or nothing_measured or _measured_before(state, monitor):
        return None
    there_are = ", ".join(state.metrics) or "none"
    advice = "; valid_… metrics need validation data" if of_validation and not state.has_valid else ""
    raise LookupError(f"there is no metric {monitor!r} to monitor: there are {there_are}{advice}")


def _may_be_left_out(state: State, monitor: str) -> bool:
    """Whether this validation may have left out what measures it.

    It has, if it measured nothing. If it is one of several evaluations, all metrics are called valid_NAME_METRIC, and
    those of one that is not due are not there.
    """
    measured = (name for name in state.metrics if name.startswith("valid_"))
    return all("_" in name.removeprefix("valid_") and "_" in monitor.removeprefix("valid_") for name in measured)


def _measured_before(state: State, monitor: str) -> bool:
    """Whether an epoch has measured it. It is looked for from both ends, since it is likely near one of them."""
    ends = zip(state.history, reversed(state.history), strict=True)
    return any(monitor in first or monitor in last for first, last in ends)


def _has_training_metrics(state: State) -> bool:
    return any(not name.startswith("valid_") for name in state.metrics)


def checked(state: State, monitor: str) -> float | None:
    """As `monitored`; None as well if the training is already about to stop, when there is nothing left to decide."""
    return None if Flag.STOP_TRAINING in state.flags else monitored(state, monitor)


def infers_mode(make: Callable[P, R]) -> Callable[P, R]:
    """Let a factory with a `monitor` and a `mode` find out a mode of None, so that its `params` say which it is.

    Raises:
        ValueError: the direction of the monitor cannot be known.
    """
    signature = inspect.signature(make)

    @functools.wraps(make)
    def made(*args: P.args, **kwargs: P.kwargs) -> R:
        check_by_position(make.__qualname__, signature, args, kwargs)
        if kwargs.get("mode") is None:
            arguments = signature.bind(*args, **kwargs)
            arguments.apply_defaults()
            monitor = arguments.arguments["monitor"]
            if monitor is not None:
                kwargs["mode"] = known_mode(monitor)
        return make(*args, **kwargs)

    return made


def known_mode(monitor: str) -> Direction:
    """Whether smaller or larger values of the metric are better, by its name.

    >>> known_mode("valid_accuracy")
    'max'

    Raises:
        ValueError: the name does not say it.
    """
    check_monitor(monitor)
    mode = direction_of(monitor)
    if mode is None:
        raise ValueError(f"is smaller or larger better for {monitor!r}? pass mode='min' or mode='max'")
    return mode


def is_better(value: float, best: float | None, mode: Direction | None, min_delta: float = 0.0) -> bool:
    """Whether a value is better than the best so far, by more than `min_delta`. NaN and infinities never are."""
    if not math.isfinite(value):
        return False
    if best is None:
        return True
    return best - value > min_delta if mode == "min" else value - best > min_delta


def no_improvement(
    state: State,
    monitor: str,
    best: float | None,
    checks: int,
    *,
    min_delta: float = 0.0,
    baseline: float | None = None,
) -> str:
    """The reason of a callback that acts because a metric has not improved for this number of checks, the last here."""
    unit = "epoch" if state.phase is Phase.EPOCH_END else "validation"
    by = f"by more than {min_delta:g} " if min_delta else ""
    what = short(best or 0.0) if baseline is None else f"the baseline {short(baseline)}"
    so_far = "was never finite" if best is None else f"has not improved {by}on {what}"
    return f"{monitor} {so_far} for {pluralize(checks, unit)}"


def short(value: float) -> str:
    """The value as a person would write it: at most six digits, and always visibly a float."""
    return repr(float(f"{value:.6g}"))


def check_monitor(monitor: str, mode: str | None = "min", min_delta: float = 0.0) -> None:
    if not isinstance(monitor, str) or not monitor:
        raise ValueError(f"monitor={monitor!r}: name a metric, for example 'valid_loss'")
    if not isinstance(mode, str) or mode not in ("min", "max"):
        raise ValueError(f"mode={mode!r}: 'min' if smaller is better, else 'max'")
    wanted = "an improvement is a number from 0, also with mode='max'"
    check_number("min_delta", min_delta, lambda x: 0 <= x < math.inf, wanted)
