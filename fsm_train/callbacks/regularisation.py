"""Regularisation: penalties on weights, noise on gradients."""

from __future__ import annotations

from ..core.callback import Callback, always, on
from ..core.checks import check_not_negative, check_positive
from ..core.commands import AddGradNoise, AddPenalty
from ..core.phase import Phase
from ..core.state import State
from ..core.transition import Transition
from .players import player_factory


@player_factory
def weight_penalty(
    *, l1: float = 0.0, l2: float = 0.0, player: str | None = None, name: str = "weight_penalty"
) -> Callback[None]:
    """Add l1 * sum |w| + l2 * sum |w| ** 2, over the trainable parameters, to the loss that is minimised.

    At LOSS_END. The loss that is measured does not contain it. Unlike the optimizer's weight_decay, the
    penalty is part of the gradient, and so of momentum, Adam's scaling, clipping and accumulation.

    >>> from fsm_train import Phase
    >>> from fsm_train.testing import at
    >>> weight_penalty(l1=0.01)(at(Phase.LOSS_END)).commands
    (AddPenalty(l1=0.01, l2=0.0),)

    Args:
        l1: the factor of the sum of absolute values, which makes weights exactly zero in the limit.
        l2: the factor of the sum of squares.
        player: in a training with turns, the player that it is for; None for all.
    """
    penalty = AddPenalty(l1, l2)
    if not (l1 or l2):
        raise ValueError("weight_penalty without a weight: give l1=, l2=, or both")
    # Before a loss is weighed for accumulation, so that the penalty is the same for any window.
    return always(name, Phase.LOSS_END, penalty, order=-10)


@player_factory
def grad_noise(
    std: float, *, decay: float = 0.0, player: str | None = None, name: str = "grad_noise"
) -> Callback[None]:
    """Add normally distributed noise to the gradients before each step, after clipping.

    At STEP_BEGIN, with the standard deviation std / (1 + step) ** (decay / 2). Neelakantan et al.,
    "Adding Gradient Noise Improves Learning for Very Deep Networks" (2015), who use decay=0.55.

    >>> from fsm_train import Phase
    >>> from fsm_train.testing import at
    >>> (command,) = grad_noise(0.1, decay=1.0)(at(Phase.STEP_BEGIN, step=3)).commands
    >>> command.std
    0.05

    Args:
        std: the standard deviation at step 0.
        decay: how fast the variance falls; 0 keeps it.
        player: in a training with turns, the player that it is for; None for all.
        name: of the callback. It is part of the seed of the noise: two callbacks draw different noise.
    """
    check_positive("std", std)
    check_not_negative("decay", decay)

    @on(Phase.STEP_BEGIN, order=10, commands={AddGradNoise})
    def grad_noise(state: State) -> Transition:
        now = std / (1 + state.step) ** (decay / 2)
        return Transition(commands=(AddGradNoise(now, seed=state.random(name).getrandbits(32)),))

    return grad_noise
