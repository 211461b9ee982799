"""When to stop.

A training that stops says which callback stopped it, and on what evidence.
"""

from __future__ import annotations

import math
from typing import Literal

import attrs

from ..core.callback import Callback, on, strict_factory
from ..core.checks import check_choice, check_count
from ..core.phase import Flag, Phase
from ..core.state import State
from ..core.transition import Transition
from .monitoring import Direction, check_monitor, is_better, monitored, no_improvement


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
    mode: Direction = "min",
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
    check_monitor(monitor, mode, min_delta)
    check_count("patience", patience)
    check_choice("on_nonfinite", on_nonfinite, ("stop", "wait"))

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
        return Transition(
            flags=Flag.STOP_TRAINING,
            memory=Best(best.value, bad),
            reason=no_improvement(monitor, best.value, bad, min_delta=min_delta),
        )

    return early_stopping
