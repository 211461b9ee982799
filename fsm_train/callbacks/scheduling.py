"""Hyper-parameters as functions of progress."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from ..core.callback import Callback, on, strict_factory
from ..core.checks import check_choice
from ..core.phase import Phase
from ..core.state import Hyper, State
from ..core.transition import Transition
from ..schedules import Absolute

Bases = tuple[tuple[str, Hyper], ...]
"""The optimizer's own value of each scheduled hyper-parameter, by name."""

_CLOCKS: dict[str, tuple[Phase, Callable[[State], int]]] = {
    "step": (Phase.STEP_BEGIN, lambda state: state.step),
    "iteration": (Phase.BATCH_BEGIN, lambda state: state.iteration),
    "epoch": (Phase.EPOCH_BEGIN, lambda state: state.epoch),
}


@strict_factory
def schedule(
    *,
    by: Literal["step", "iteration", "epoch"] = "step",
    name: str = "schedule",
    **schedules: Callable[[int], float],
) -> Callback[Bases]:
    """Set hyper-parameters as functions of progress.

    A schedule gives a factor of the optimizer's own value, so that each parameter group keeps its
    proportion; `absolute(…)` around it makes it the value itself. The optimizer's own values are
    those at the first SETUP, and for a group that is added later those that it has then. A value that is
    set in between, by hand or by another callback such as `reduce_on_plateau`, is overwritten.

    >>> from fsm_train.schedules import cosine, warmup
    >>> from fsm_train.testing import simulate
    >>> final = simulate([schedule(lr=warmup(2, start=0.5).then(cosine(8)))], hyper={"lr": 0.1}, epochs=7)
    >>> round(final.hyper["lr"], 3)  # the rate that step 6 used: half-way down the cosine
    0.05

    Args:
        by: "step": the step with index i uses f(i), also with accumulation, and with steps that a
            callback or the gradient scaler skips; "iteration": set at BATCH_BEGIN, before each
            mini-batch; "epoch": set at EPOCH_BEGIN.
        **schedules: by hyper-parameter (lr, momentum, weight_decay, beta1, …) a function of progress.

    Raises:
        LookupError: at SETUP, if the optimizer has no such hyper-parameter.
    """
    check_choice("by", by, tuple(_CLOCKS))
    if not schedules:
        raise ValueError("schedule what? for example schedule(lr=cosine(1000))")
    for key, function in schedules.items():
        if not callable(function):
            raise TypeError(
                f"{key}={function!r} is no function of progress; for a fixed value write absolute({function!r})"
            )
    phase, progress = _CLOCKS[by]
    no_bases: Bases = ()

    @on(Phase.SETUP, phase, memory=no_bases, sets=schedules)
    def schedule(state: State, bases: Bases) -> Transition:
        if not bases:
            bases = tuple((key, _own_value(state, key)) for key in schedules)
        bases = _with_added_groups(state, bases)
        if state.phase is Phase.SETUP:
            return Transition(memory=bases)
        now = progress(state)
        hyper = {key: _scheduled(key, schedules[key], now, base) for key, base in bases if key in schedules}
        return Transition(hyper=hyper, memory=bases)

    return schedule


def _own_value(state: State, key: str) -> Hyper:
    if key not in state.hyper:
        there_are = ", ".join(state.hyper)
        raise LookupError(f"there is no hyper-parameter {key!r} to schedule: the optimizer has {there_are}")
    return state.hyper[key]


def _with_added_groups(state: State, bases: Bases) -> Bases:
    """The bases with the optimizer's own values of the parameter groups that were added since."""
    if all(_groups(base) == _groups(state.hyper.get(key, base)) for key, base in bases):
        return bases
    return tuple((key, _of_each_group(key, base, state.hyper.get(key, base))) for key, base in bases)


def _groups(value: Hyper) -> int:
    return len(value) if isinstance(value, tuple) else 1


def _of_each_group(key: str, base: Hyper, now: Hyper) -> Hyper:
    known = base if isinstance(base, tuple) else (base,)
    values = now if isinstance(now, tuple) else (now,)
    if len(values) < len(known):
        raise LookupError(
            f"the optimizer has {len(values)} parameter groups, and had {len(known)} when the schedule of {key} began: "
            "it is not known which of them was removed"
        )
    return known + values[len(known) :]


def _scheduled(key: str, function: Callable[[int], float], progress: int, base: Hyper) -> Hyper:
    value = function(progress)
    if not math.isfinite(value):
        raise ValueError(f"the schedule of {key}, {function!r}, is {value!r} at {progress}")
    if isinstance(function, Absolute):
        return value
    return tuple(own * value for own in base) if isinstance(base, tuple) else base * value
