"""The time limit of a plan: time is a fact, so a callback decides, and a replay decides the same.

Rule of this file: a plan without `seconds` changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs

from ..core.callback import Callback, on, strict_factory
from ..core.checks import check_positive
from ..core.phase import Flag, Phase
from ..core.plan import Plan
from ..core.state import State
from ..core.transition import Transition
from .monitoring import short
from .windows import Recipe

NAME = "plan.seconds"


@strict_factory
def time_limit(*, seconds: float, name: str = NAME) -> Callback[None]:
    """Stop the training when `seconds` of training are over, added up over the calls of `run`.

    At TRAIN_BEGIN, BATCH_END and EPOCH_END.

    >>> from fsm_train.testing import at
    >>> time_limit(seconds=60)(at(Phase.BATCH_END, facts={"elapsed": 61.5})).reason
    '61.5 of 60.0 seconds are over'
    """
    check_positive("seconds", seconds)

    @on(Phase.TRAIN_BEGIN, Phase.BATCH_END, Phase.EPOCH_END, needs={"elapsed"}, raises=Flag.STOP_TRAINING)
    def time_limit(state: State) -> Transition | None:
        elapsed = state.facts["elapsed"]
        if elapsed < seconds:
            return None
        return Transition(flags=Flag.STOP_TRAINING, reason=f"{short(elapsed)} of {short(seconds)} seconds are over")

    return time_limit


def with_time_limit(callbacks: Iterable[Callback[Any]], plan: Plan) -> tuple[Callback[Any], ...]:
    """The callbacks of a training of this plan: one for its time limit too, and the time for what stretches over it.

    >>> [callback.name for callback in with_time_limit([], Plan(epochs=9, seconds=60))]
    ['plan.seconds']
    """
    given = tuple(callbacks)
    if plan.seconds is None:
        return given
    if all(callback.name != NAME for callback in given):  # a log names it with the others
        given = (*given, time_limit(seconds=plan.seconds))
    return tuple(map(_with_time, given))


def _with_time(callback: Callback[Any]) -> Callback[Any]:
    """The callback; one that stretches over the training is told the time."""
    if not _stretches(callback):
        return callback
    return attrs.evolve(callback, needs=callback.needs | {"elapsed"})


def _stretches(callback: Callback[Any] | Recipe) -> bool:
    inner = callback.params.get("callback")
    return callback.params.get("by") == "training" or (isinstance(inner, (Callback, Recipe)) and _stretches(inner))
