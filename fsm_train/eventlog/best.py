"""The best value of a metric in a recorded training, and the epoch that it belongs to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import attrs

from ..callbacks.directions import direction_of
from ..core.callback import Callback
from ..core.phase import Flag, Phase
from ..core.state import State


@attrs.frozen
class BestEpoch:
    """The best value of a metric.

    Attributes:
        monitor: the name of the metric.
        value: its best value.
        epoch: the number of finished epochs when it was measured; the validation at the end of an epoch counts that.
    """

    monitor: str
    value: float
    epoch: int


def closes_epoch(state: State) -> bool:
    """Whether this is the validation at the end of an epoch, and nothing suspends the training before that end."""
    return state.phase is Phase.VALID_END and state.batches_over and Flag.SUSPEND not in state.flags


def finished_epochs(state: State) -> int:
    """The number of finished epochs; the validation at the end of an epoch finishes it."""
    return state.epoch + closes_epoch(state)


def best_in(state: State, callbacks: Sequence[Callback[Any]], within: Sequence[State] = ()) -> BestEpoch | None:
    """The best value of the metric that a callback monitors; None if there is none.

    Args:
        state: its history is searched.
        callbacks: the first with a `monitor` among its `params` says which metric, and with a `mode`, or by the name
            of the metric, which way is better.
        within: states after further validations.
    """
    params = next((c.params for c in callbacks if c.params.get("monitor")), {})
    monitor = str(params.get("monitor", ""))
    if not monitor:
        measured = [*state.history, *(other.metrics for other in within)]
        monitor = "valid_loss" if any("valid_loss" in metrics for metrics in measured) else "train_loss"
    measurements = [
        *enumerate(state.history, start=1),
        *((finished_epochs(other), other.metrics) for other in within if monitor.startswith("valid_")),
    ]
    values = [
        BestEpoch(monitor, metrics[monitor], epoch)
        for epoch, metrics in measurements
        if monitor in metrics and math.isfinite(metrics[monitor])
    ]
    pick = max if (params.get("mode") or direction_of(monitor)) == "max" else min
    return pick(values, key=lambda best: best.value, default=None)
