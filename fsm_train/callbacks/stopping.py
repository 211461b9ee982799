"""When to stop.

The reason in the final state names the callback that stopped the training, and its evidence.
"""

from __future__ import annotations

import math
from typing import Literal

import attrs

from ..core.callback import Callback, on, strict_factory
from ..core.checks import check_choice, check_count, check_number
from ..core.phase import Flag, Phase
from ..core.state import State
from ..core.transition import Transition
from .directions import Direction
from .monitoring import check_monitor, checked, checked_at, infers_mode, is_better, no_improvement


@attrs.frozen
class Best:
    """The best value so far, and the number of checks in a row since then."""

    value: float | None = None
    bad: int = 0


@infers_mode
@strict_factory
def early_stopping(
    monitor: str = "valid_loss",
    *,
    patience: int = 3,
    min_delta: float = 0.0,
    mode: Direction | None = None,
    on_nonfinite: Literal["stop", "wait"] = "stop",
    baseline: float | None = None,
    start_epoch: int = 0,
    name: str = "early_stopping",
) -> Callback[Best]:
    """Stop the training when the monitored metric has stopped improving.

    An improvement is strictly more than `min_delta` better than the best so far, and the best moves
    only on an improvement, so that small improvements count once their sum is large enough.

    Each measurement is one check: a `valid_…` at VALID_END, in the middle of an epoch as well (see
    `validate_every`), another metric at EPOCH_END. An epoch without a measurement is no check, and
    neither is one after something else has stopped the training.

    The rule for the patience is that of Lightning and Keras, that for the baseline and the first epoch is
    that of Keras. A NaN or an infinity is never the best; in Keras nothing is better than a first NaN.

    >>> from fsm_train.testing import simulate
    >>> simulate([early_stopping(patience=2)], valid_loss=[3.0, 2.0, 2.5, 2.4, 1.0]).reason
    'early_stopping: valid_loss has not improved on 2.0 for 2 validations'

    Args:
        monitor: the metric to watch.
        patience: the number of checks in a row without an improvement at which the training stops.
        min_delta: how much better a value must be to count, in the metric's own unit.
        mode: "min" if smaller is better, "max" if larger is. None finds it out by the name (…loss, …error,
            …accuracy, …f1, …) and refuses a name that does not say it.
        on_nonfinite: "stop" at once when the metric is not finite, or "wait" as for any bad value.
        baseline: a value that must be improved on too: until it is, each check counts against the patience,
            and a new best does not restart the count. A check with a new best does not stop.
        start_epoch: the first epoch, from 0, with a check. What is measured before it is ignored.

    Raises:
        ValueError: the direction is not known; or, before the first batch, there will be no such metric.
    """
    check_monitor(monitor, mode, min_delta)
    check_count("patience", patience)
    check_choice("on_nonfinite", on_nonfinite, ("stop", "wait"))

    check_count("start_epoch", start_epoch)
    if baseline is not None:
        check_number("baseline", baseline, math.isfinite, "a baseline is a finite number, or None")

    def unbeaten(value: float | None) -> float | None:
        """The baseline, if the best value is not better."""
        beaten = baseline is None or (value is not None and is_better(value, baseline, mode, min_delta))
        return None if beaten else baseline

    @on(*checked_at(monitor), memory=Best(), raises=Flag.STOP_TRAINING, monitors={monitor})
    def early_stopping(state: State, best: Best) -> Transition | None:
        value = checked(state, monitor)
        if value is None or max(state.epoch - (state.phase is Phase.EPOCH_END), 0) < start_epoch:
            return None
        if not math.isfinite(value) and on_nonfinite == "stop":
            return Transition(flags=Flag.STOP_TRAINING, reason=f"{monitor} is {value}")
        if is_better(value, best.value, mode, min_delta):
            return Transition(memory=Best(value, 0 if unbeaten(value) is None else best.bad + 1))

        bad = best.bad + 1
        if bad < patience:
            return Transition(memory=Best(best.value, bad))
        return Transition(
            flags=Flag.STOP_TRAINING,
            memory=Best(best.value, bad),
            reason=no_improvement(state, monitor, best.value, bad, min_delta=min_delta, baseline=unbeaten(best.value)),
        )

    return early_stopping
