"""Mixing samples: a network that is trained on mixtures of samples memorises single ones less.

Random numbers are drawn here, from `state.random`, and put into the command: a replay draws the same.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from ..core.callback import Callback, on
from ..core.checks import check_positive
from ..core.commands import CutMix, MixUp
from ..core.phase import Phase
from ..core.state import State
from ..core.transition import Command, Transition
from .players import player_factory


@player_factory
def mixup(alpha: float = 0.4, *, player: str | None = None, name: str = "mixup") -> Callback[None]:
    """Train on convex combinations of pairs of samples, and of the losses for their targets.

    At BATCH_BEGIN. The weight is drawn from Beta(alpha, alpha), once per batch, and is at least one
    half, so that a sample is mostly itself; metrics are measured against its own target. Zhang et al.,
    "mixup: Beyond Empirical Risk Minimization" (2018).

    >>> from fsm_train import Phase
    >>> from fsm_train.testing import at
    >>> (command,) = mixup()(at(Phase.BATCH_BEGIN)).commands
    >>> 0.5 <= command.weight <= 1
    True

    Args:
        alpha: the smaller, the less is mixed.
        player: in a training with turns, the player that it is for; None for all.
    """
    return _mixing("mixup", alpha, lambda weight, generator: MixUp(weight, seed=generator.getrandbits(32)))


@player_factory
def cutmix(alpha: float = 1.0, *, player: str | None = None, name: str = "cutmix") -> Callback[None]:
    """Replace a random box of each image by that of another, and weigh the losses for both targets by area.

    At BATCH_BEGIN. The part that stays is drawn from Beta(alpha, alpha), once per batch, and is at least
    one half. For inputs of shape (batch, …, height, width). Yun et al., "CutMix: Regularization Strategy
    to Train Strong Classifiers with Localizable Features" (2019).

    >>> from fsm_train import Phase
    >>> from fsm_train.testing import at
    >>> (command,) = cutmix()(at(Phase.BATCH_BEGIN)).commands
    >>> 0 <= command.x < 1
    True

    Args:
        alpha: the smaller, the smaller the boxes.
        player: in a training with turns, the player that it is for; None for all.
    """

    def command(weight: float, generator: Random) -> CutMix:
        return CutMix(weight, x=generator.random(), y=generator.random(), seed=generator.getrandbits(32))

    return _mixing("cutmix", alpha, command)


def _mixing(name: str, alpha: float, command: Callable[[float, Random], Command]) -> Callback[None]:
    check_positive("alpha", alpha)

    @on(Phase.BATCH_BEGIN, name=name, commands={MixUp, CutMix})
    def mixing(state: State) -> Transition:
        generator = state.random(name)
        weight = generator.betavariate(alpha, alpha)
        return Transition(commands=(command(max(weight, 1 - weight), generator),))

    return mixing
