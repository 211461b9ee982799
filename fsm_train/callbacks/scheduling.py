"""Hyper-parameters as functions of progress."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Literal

import attrs

from ..core.callback import Callback, on
from ..core.checks import check_choice
from ..core.phase import BATCH_PHASES, Phase
from ..core.state import Hyper, State, check_hyper
from ..core.transition import Transition, setting
from ..schedules import Absolute, Schedule, absolute, constant, exponential, one_cycle, time_decay
from .players import player_factory

Bases = tuple[tuple[str, Hyper], ...]
"""The optimizer's own value of each scheduled hyper-parameter, by name."""

_ONLY_STEPS = re.compile(r"lr|momentum|weight_decay|dampening|beta[1-9]").fullmatch
"""The numbers that only a step of the optimizer reads: they are set right before it, others before the forward pass."""

Share = tuple[int, int]
"""A share of the plan as a fraction: what is done, and the whole."""

_CLOCKS: dict[str, tuple[Phase, Callable[[State], int]]] = {
    "step": (Phase.STEP_BEGIN, lambda state: state.step),
    "iteration": (Phase.BATCH_BEGIN, lambda state: state.iteration),
    "epoch": (Phase.EPOCH_BEGIN, lambda state: state.epoch),
}


@player_factory
def schedule(
    *,
    by: Literal["step", "iteration", "epoch", "training"] = "step",
    optimizer: str | None = None,
    player: str | None = None,
    name: str | None = None,
    **schedules: Callable[..., float],
) -> Callback[Bases]:
    """Set hyper-parameters as functions of progress.

    A schedule gives a factor of the optimizer's own value, so that each parameter group keeps its
    proportion; `absolute(…)` around it makes it the value itself, which it also is for a number of your own that
    begins with 0, of which there are no factors. The optimizer's own values are
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
            mini-batch; "epoch": set at EPOCH_BEGIN; "training": before each step, stretched over the whole
            plan, whatever its length: `cosine(1)` and `cosine(1000)` are the same, and in
            `warmup(1).then(cosine(9))` a tenth is the warm-up. A function that has no length is given the
            finished share of the plan, from 0 to 1. The share is exact, with accumulation, with max_steps, and
            after a resume; of a plan with `seconds` it is that of the time, where this is the only limit or the
            nearest. A plan that `extend` made longer is stretched over as a whole, so the share, and
            with it the rate, goes back to where that plan has it.
        optimizer: the name of one of several optimizers, whose numbers alone are set: `schedule(lr=…,
            optimizer="muon")` sets `muon.lr`. By default the numbers that all have, of each parameter group.
        player: in a training with turns, the player that it is for; None for all.
        name: by default "schedule", or "schedule_muon" for that optimizer.
        **schedules: by hyper-parameter (lr, momentum, weight_decay, beta1, …) a function of progress, or by the name
            of a number of your own (`Supervised(numbers={"kl": 0.0})`). By step and by training, what a loss may read
            (all but lr, momentum, weight_decay, dampening and the betas) is set at BATCH_BEGIN already, before forward,
            to what belongs to the step that the batch is for.

    A run logs a warning, and `describe(callbacks, state)` has a note, where a schedule ends long before or after the
    plan.

    Raises:
        LookupError: at SETUP, if the optimizer has no such hyper-parameter, or with by="training" if the
            length of the plan is not known (its epochs have an unknown number of batches).
    """
    check_choice("by", by, (*_CLOCKS, "training"))
    if not schedules:
        raise ValueError("schedule what? for example schedule(lr=cosine(1000))")
    for key, function in schedules.items():
        if not callable(function):
            raise TypeError(
                f"{key}={function!r} is no function of progress; for a fixed value write absolute({function!r})"
            )
    if optimizer is not None:
        if not isinstance(optimizer, str) or not optimizer:
            raise TypeError(f"optimizer={optimizer!r}: give the name of one of several optimizers, such as 'muon'")
        schedules = {f"{optimizer}.{key}": function for key, function in schedules.items()}
    if by == "training":
        for key, function in schedules.items():
            _check_stretches(key, function)
    phase, progress = _CLOCKS.get(by, (Phase.STEP_BEGIN, None))
    early = {key for key in schedules if phase is Phase.STEP_BEGIN and optimizer is None and not _ONLY_STEPS(key)}
    others = schedules.keys() - early
    phases = (Phase.SETUP, *[Phase.BATCH_BEGIN] * bool(early), *[phase] * (len(early) < len(schedules)))
    no_bases: Bases = ()
    called = name or ("schedule" if optimizer is None else f"schedule_{optimizer}")

    @on(*phases, name=called, memory=no_bases, sets=schedules)
    def schedule(state: State, bases: Bases) -> Transition:
        if not bases:
            bases = tuple((key, _own_value(state, key)) for key in schedules)
        bases = _with_added_groups(state, bases)
        if state.phase is Phase.SETUP:
            if progress is None:
                finished_share(state)  # which is asked for before the first step
            return Transition(memory=bases)
        due = early if early and state.phase is Phase.BATCH_BEGIN else others
        if progress is None:
            share = finished_share(state)
            hyper = {key: _stretched(key, schedules[key], share, base) for key, base in bases if key in due}
        else:
            now = progress(state)
            hyper = {key: _scheduled(key, schedules[key], now, base) for key, base in bases if key in due}
        return setting(hyper, bases)

    return schedule


def _own_value(state: State, key: str) -> Hyper:
    if key not in state.hyper:
        there_are = ", ".join(state.hyper)
        raise LookupError(f"there is no hyper-parameter {key!r} to schedule: the optimizer has {there_are}")
    return state.hyper[key]


def _with_added_groups(state: State, bases: Bases) -> Bases:
    """The bases with the optimizer's own values of the parameter groups that were added since."""
    for key, base in bases:
        now = state.hyper.get(key, base)
        if (isinstance(base, tuple) or isinstance(now, tuple)) and _groups(base) != _groups(now):
            break
    else:
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


def _scheduled(key: str, function: Callable[..., float], progress: float, base: Hyper) -> Hyper:
    value = function(progress)
    if not math.isfinite(value):
        raise ValueError(f"the schedule of {key}, {function!r}, is {value!r} at {progress}")
    if isinstance(function, Absolute) or (base == 0.0 and not _ONLY_STEPS(key.rpartition(".")[2])):
        return check_hyper(key, value)
    return check_hyper(key, tuple(own * value for own in base) if isinstance(base, tuple) else base * value)


# --------------------------------------------------------------------------------- by="training"


def finished_share(state: State) -> Share:
    """The share of the plan that is finished where the step under way began: batches of epochs, steps, or milliseconds.

    Of a plan with several limits, whichever is further. Batches whose gradients wait for a step are not finished.

    >>> from fsm_train.testing import at
    >>> from fsm_train import Plan
    >>> finished_share(at(Phase.STEP_BEGIN, plan=Plan(epochs=5), batches_per_epoch=4, epoch=2, batch=1, pending=1))
    (9, 20)

    Raises:
        LookupError: neither the number of steps, nor that of batches, nor a time limit is known.
    """
    plan, batches = state.plan, state.batches_per_epoch
    shares: list[Share] = []
    if plan.max_steps:
        steps = sum(state.players.steps) if state.players else state.step  # the plan counts those of all players
        shares.append((min(steps, plan.max_steps), plan.max_steps))
    if plan.epochs and batches:
        begun = 0 if state.draining or state.phase is not Phase.STEP_BEGIN else 1  # the batch of this step
        in_epoch = min(max(state.batch + begun - state.pending, 0), batches) if state.phase in BATCH_PHASES else 0
        shares.append((min(state.epoch * batches + in_epoch, plan.epochs * batches), plan.epochs * batches))
    if plan.seconds:
        whole = max(round(1000 * plan.seconds), 1)
        shares.append((min(round(1000 * state.facts.get("elapsed", state.elapsed)), whole), whole))
    if not shares:
        raise LookupError(
            "schedule(…, by='training') stretches over the whole plan, but its length is not known: train has no "
            "len(). Give start(…, max_steps=…) too, or count with by='step' or by='epoch'"
        )
    return max(shares, key=lambda share: share[0] / share[1])


def _check_stretches(key: str, function: Callable[..., float]) -> None:
    """Refuse a schedule that counts and has no end: what its numbers are parts of is not known."""
    schedule = _inner(function)
    if isinstance(schedule, Schedule) and schedule.length is None and not isinstance(schedule, _SCALE_FREE):
        raise ValueError(
            f"{key}={function!r} has no end, so it cannot be stretched over the training: give a schedule with a "
            "length, such as cosine(1), or a function of the finished share from 0 to 1, such as "
            "lambda share: 1.0 if share < 0.5 else 0.1"
        )


_SCALE_FREE = (constant, exponential, time_decay)


def _inner(function: Callable[..., float]) -> Callable[..., float]:
    return function.schedule if isinstance(function, Absolute) else function


def _stretched(key: str, function: Callable[..., float], share: Share, base: Hyper) -> Hyper:
    done, whole = share
    schedule = _inner(function)
    length = schedule.length if isinstance(schedule, Schedule) else None
    if isinstance(
        schedule, one_cycle
    ):  # its peak and its end are one step before a round share: it takes the plan's own
        stretched = attrs.evolve(schedule, length=whole)
        function, at = absolute(stretched) if isinstance(function, Absolute) else stretched, float(done)
    else:
        at = done * (length or 1) / whole  # rounded once, so that a step of the schedule is hit exactly
    return _scheduled(key, function, at, base)
