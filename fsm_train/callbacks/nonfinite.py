"""What to do when a loss or a gradient is not finite.

The loss is checked before backward, the norm of the gradients before the step, so that a NaN never
reaches a weight. Each check costs a synchronisation with the device.
"""

from __future__ import annotations

import math

from ..core.callback import Callback, on
from ..core.checks import check_bool, check_count
from ..core.phase import Flag, Phase
from ..core.state import State
from ..core.transition import Transition
from .players import player_factory

_CHECKED = {Phase.LOSS_END: ("loss", Flag.SKIP_BACKWARD), Phase.STEP_BEGIN: ("grad_norm", Flag.SKIP_STEP)}


@player_factory
def stop_on_nonfinite(
    *, gradients: bool = True, every: int = 1, player: str | None = None, name: str = "stop_on_nonfinite"
) -> Callback[None]:
    """Stop the training at the first loss or gradient that is not finite, without taking that step.

    At LOSS_END and STEP_BEGIN. Under float16 the gradient scaler handles infinite gradients: there,
    check the loss alone, with gradients=False.

    >>> from fsm_train.testing import simulate
    >>> simulate([stop_on_nonfinite()], batches=4, loss=[1.0, float("nan"), 1.0, 1.0]).reason
    'stop_on_nonfinite: the loss is nan in batch 1 of epoch 0'

    Args:
        gradients: whether the norm of the gradients is checked too.
        every: check only at multiples of this number of batches.
        player: in a training with turns, the player that it is for; None for all.
    """
    check_count("every", every, least=1)
    check_bool("gradients", gradients)
    phases = tuple(_CHECKED) if gradients else (Phase.LOSS_END,)
    needs = {"loss", "grad_norm"} if gradients else {"loss"}

    @on(*phases, needs=needs, every=every, raises=_RAISES | Flag.STOP_TRAINING)
    def stop_on_nonfinite(state: State) -> Transition | None:
        fact, skip = _CHECKED[state.phase]
        value = state.facts[fact]
        if math.isfinite(value):
            return None
        return Transition(
            flags=Flag.STOP_TRAINING | skip,
            reason=f"the {fact} is {value} in batch {state.batch} of epoch {state.epoch}",
        )

    return stop_on_nonfinite


@player_factory
def skip_nonfinite(
    *, limit: int = 10, gradients: bool = True, player: str | None = None, name: str = "skip_nonfinite"
) -> Callback[tuple[int, int]]:
    """Leave out batches whose loss or gradient is not finite, and give up after `limit` of them in a row.

    At LOSS_END a batch is skipped as if the data did not have it, so that an open accumulation window
    stays open; at STEP_BEGIN the step is skipped and the window dropped. Under float16 the gradient
    scaler lowers its scale as ever, and the steps that it skips count for the limit.

    >>> from fsm_train.testing import simulate
    >>> simulate([skip_nonfinite()], batches=4, loss=[1.0, float("nan"), 1.0, 1.0]).step
    3

    Args:
        limit: the number in a row at which the training stops; that batch is left out too.
        gradients: whether the norm of the gradients is checked too.
        player: in a training with turns, the player that it is for; None for all.
    """
    check_count("limit", limit, least=1)
    check_bool("gradients", gradients)
    phases = tuple(_CHECKED) if gradients else (Phase.LOSS_END,)
    needs = {"loss", "grad_norm"} if gradients else {"loss"}

    # Counted apart, since with accumulation norms are checked less often than losses.
    @on(*phases, memory=(0, 0), needs=needs, raises=_RAISES | Flag.STOP_TRAINING)
    def skip_nonfinite(state: State, in_a_row: tuple[int, int]) -> Transition | None:
        fact, skip = _CHECKED[state.phase]
        value = state.facts[fact]
        losses, norms = in_a_row
        bad = 0 if math.isfinite(value) else 1 + (losses if fact == "loss" else norms)
        after = (bad, norms) if fact == "loss" else (losses, bad)
        if not bad:
            return Transition(memory=after) if after != in_a_row else None
        if bad < limit:
            return Transition(flags=skip, memory=after)
        reason = (
            f"{limit} in a row were not finite: the {fact} is {value} in batch {state.batch} of epoch {state.epoch}"
        )
        return Transition(flags=skip | Flag.STOP_TRAINING, memory=after, reason=reason)

    return skip_nonfinite


_RAISES = Flag.SKIP_BACKWARD | Flag.SKIP_STEP
