"""Clipping: bound the gradients, so that no single step is too large.

Once per step, on the gradient of the whole accumulated window, after unscaling. What clips them is in
`supervised/handlers.py`; here is when.
"""

from __future__ import annotations

from ..core.callback import Callback, always
from ..core.checks import check_positive_or_inf
from ..core.commands import ClipGradNorm, ClipGradValue
from ..core.phase import Phase
from .players import player_factory


@player_factory
def clip_grad_norm(
    max_norm: float,
    *,
    norm_type: float = 2.0,
    pattern: str | None = None,
    player: str | None = None,
    name: str = "clip_grad_norm",
) -> Callback[None]:
    """Scale the gradients before a step so that their common norm is at most `max_norm`.

    At STEP_BEGIN. The norm before clipping is the fact `grad_norm`; with an infinite gradient it is
    infinite, and clipping cannot repair that step. Of several optimizers, a gradient scaler holds back the one whose
    gradient is not finite, and the others have a gradient of zero, unless each is clipped by a pattern of its own. The
    method is that of Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks" (2013).

    >>> from fsm_train import Phase
    >>> from fsm_train.testing import at
    >>> clip_grad_norm(1.0)(at(Phase.STEP_BEGIN)).commands
    (ClipGradNorm(max_norm=1.0, norm_type=2.0),)

    Args:
        max_norm: the largest norm that stays as it is.
        norm_type: the p of the p-norm; math.inf for the largest absolute value.
        pattern: clips only the parameters of the model whose names match, such as "h.*"; their norm is a common one
            of them alone. By default all that the optimizers step. Two of them need different names.
        player: in a training with turns, the player that it is for; None for all.
    """
    check_positive_or_inf("norm_type", norm_type)
    if pattern is not None and (not isinstance(pattern, str) or not pattern):
        raise ValueError(f"pattern={pattern!r}: give a pattern of names of parameters, such as 'h.*'")
    return always(name, Phase.STEP_BEGIN, ClipGradNorm(max_norm, norm_type, pattern))


@player_factory
def clip_grad_value(value: float, *, player: str | None = None, name: str = "clip_grad_value") -> Callback[None]:
    """Bring each element of the gradients to between -value and value before a step.

    At STEP_BEGIN, before clipping by norm. Unlike that, it changes the direction of the gradient.

    >>> from fsm_train import Phase
    >>> from fsm_train.testing import at
    >>> clip_grad_value(0.5)(at(Phase.STEP_BEGIN)).commands
    (ClipGradValue(value=0.5),)

    Args:
        value: the largest absolute value that stays as it is.
        player: in a training with turns, the player that it is for; None for all.
    """
    return always(name, Phase.STEP_BEGIN, ClipGradValue(value), order=-10)
