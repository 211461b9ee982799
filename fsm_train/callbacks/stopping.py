"""When to stop.

The reason in the final state names the callback that stopped the training, and its evidence.
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
    """The best value so far, and the number of checks in a row since then."""

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
    only on an improvement, so that small improvements count once their sum is large enough. Checked at
    EPOCH_END; an epoch without the metric (no validation in it) is no check.

    The rule for the patience is that of Lightning and Keras. A NaN or an infinity is never the best;
    in Keras nothing is better than a first NaN.

    >>> from fsm_train.testing import simulate
    >>> simulate([early_stopping(patience=2)], valid_loss=[3.0, 2.0, 2.5, 2.4, 1.0]).reason
    'early_stopping: valid_loss has not improved on 2.0 for 2 epochs'

    Args:
        monitor: the metric to watch.
        patience: the number of checks in a row without an improvement at which the training stops.
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
