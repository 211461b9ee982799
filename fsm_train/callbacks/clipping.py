"""Clipping: keep a step from going too far.

Once a step, on the gradient of the whole accumulated window, after unscaling.
"""

from __future__ import annotations

from ..core.callback import Callback, factory, on
from ..core.commands import ClipGradNorm, ClipGradValue
from ..core.phase import Flag, Phase
from ..core.state import State
from ..core.transition import Transition


@factory
def clip_grad_norm(max_norm: float, *, norm_type: float = 2.0, name: str | None = None) -> Callback[None]:
    """Scale the gradients before a step so that their common norm is at most `max_norm`.

    At STEP_BEGIN. The norm before clipping is the fact `grad_norm`; with an infinite gradient it is
    infinite, and no clipping can mend that step. The method is that of Pascanu, Mikolov and Bengio,
    "On the difficulty of training recurrent neural networks" (2013).

    >>> from fsm_train import Phase
    >>> from fsm_train.testing import at
    >>> clip_grad_norm(1.0)(at(Phase.STEP_BEGIN)).commands
    (ClipGradNorm(max_norm=1.0, norm_type=2.0),)

    Args:
        max_norm: the largest norm that stays as it is.
        norm_type: the p of the p-norm; math.inf for the largest absolute value.
        name: the callback's name, if the function's will not do.
    """
    if not norm_type > 0:
        raise ValueError(f"norm_type={norm_type!r}: it is a positive number, or math.inf")
    clip = Transition(commands=(ClipGradNorm(max_norm, norm_type),))

    @on(Phase.STEP_BEGIN, raises=Flag.NONE, sets=(), commands={ClipGradNorm})
    def clip_grad_norm(state: State) -> Transition:
        return clip

    return clip_grad_norm


@factory
def clip_grad_value(value: float, *, name: str | None = None) -> Callback[None]:
    """Bring each element of the gradients to between -value and value before a step.

    At STEP_BEGIN, before clipping by norm. It changes the direction of the gradient, which that does not.

    >>> from fsm_train import Phase
    >>> from fsm_train.testing import at
    >>> clip_grad_value(0.5)(at(Phase.STEP_BEGIN)).commands
    (ClipGradValue(value=0.5),)

    Args:
        value: the largest element that stays as it is.
        name: the callback's name, if the function's will not do.
    """
    clip = Transition(commands=(ClipGradValue(value),))

    @on(Phase.STEP_BEGIN, order=-10, raises=Flag.NONE, sets=(), commands={ClipGradValue})
    def clip_grad_value(state: State) -> Transition:
        return clip

    return clip_grad_value
