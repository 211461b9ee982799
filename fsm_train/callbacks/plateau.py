"""Lower the learning rate when a metric no longer improves."""

from __future__ import annotations

import attrs

from ..core.callback import Callback, on
from ..core.checks import check_count, check_number
from ..core.state import Hyper, State
from ..core.transition import Transition
from .directions import Direction
from .monitoring import check_monitor, checked, checked_at, infers_mode, is_better, no_improvement
from .players import player_factory


@attrs.frozen
class Plateau:
    """What is remembered of the metric.

    Attributes:
        best: the best value so far.
        bad: checks in a row since then, without those of a cooldown.
        cooldown: checks to come that do not count.
    """

    best: float | None = None
    bad: int = 0
    cooldown: int = 0


@infers_mode
@player_factory
def reduce_on_plateau(
    monitor: str = "valid_loss",
    *,
    factor: float = 0.1,
    patience: int = 10,
    min_delta: float = 0.0,
    mode: Direction | None = None,
    cooldown: int = 0,
    min_lr: float = 0.0,
    player: str | None = None,
    name: str = "reduce_on_plateau",
) -> Callback[Plateau]:
    """Multiply the learning rate by `factor` when more than `patience` checks in a row brought no new best.

    Each measurement is one check: a `valid_…` at VALID_END, in the middle of an epoch as well, another
    metric at EPOCH_END. An epoch without a measurement is no check, and neither is one after something
    has stopped the training. The rule is that of torch's
    ReduceLROnPlateau with threshold_mode="abs", which reduces one check later than Keras and fastai.
    (With its relative threshold, a constant negative metric never reduces the rate.) A value that is not
    finite is never the best.

    >>> from fsm_train.testing import simulate
    >>> final = simulate([reduce_on_plateau(patience=2)], valid_loss=[1.0] * 4, hyper={"lr": 1.0})
    >>> final.hyper["lr"]
    0.1

    Args:
        monitor: the metric to watch.
        factor: what the rate of each parameter group is multiplied by.
        patience: the number of checks in a row without an improvement that change nothing; one more reduces the rate.
        min_delta: how much better a value must be to count, in the metric's own unit.
        mode: "min" if smaller is better, "max" if larger is. None finds it out by the name (…loss, …error,
            …accuracy, …f1, …) and refuses a name that does not say it.
        cooldown: the number of checks after a reduction that do not count.
        min_lr: the lower limit of the rate of each group.
        player: in a training with turns, the player that it is for; None for all.

    Raises:
        ValueError: the direction is not known; or, before the first batch, there will be no such metric.
    """
    check_monitor(monitor, mode, min_delta)
    check_count("patience", patience)
    check_count("cooldown", cooldown)
    check_number("factor", factor, lambda x: 0 < x < 1, "a rate is reduced by a factor between 0 and 1")
    check_number("min_lr", min_lr, lambda x: x >= 0, "a rate is a number from 0")

    @on(*checked_at(monitor), memory=Plateau(), sets={"lr"}, monitors={monitor})
    def reduce_on_plateau(state: State, seen: Plateau) -> Transition | None:
        value = checked(state, monitor)
        if value is None:
            return None
        better = is_better(value, seen.best, mode, min_delta)
        best = value if better else seen.best
        bad = 0 if better or seen.cooldown else seen.bad + 1
        if bad <= patience:
            return Transition(memory=Plateau(best, bad, max(seen.cooldown - 1, 0)))
        return Transition(
            memory=Plateau(best, 0, cooldown),
            hyper={"lr": scaled(state.hyper["lr"], factor, min_lr)},
            reason=no_improvement(state, monitor, best, bad),
        )

    return reduce_on_plateau


def scaled(value: Hyper, factor: float, least: float = 0.0) -> Hyper:
    """The value of each group multiplied by the factor, but not brought below `least`."""
    if isinstance(value, tuple):
        return tuple(min(own, max(own * factor, least)) for own in value)
    return min(value, max(value * factor, least))
