"""What the commands of the library have in common: where they have an effect, and what they leave as it is.

Rule of this file: no command is defined here.
"""

from __future__ import annotations

from typing import ClassVar

from .phase import CONSULTED, Phase
from .transition import Command

GRADIENT_IS_THERE = (Phase.BACKWARD_END, Phase.STEP_BEGIN)
LOSS_IS_THERE = (Phase.LOSS_END,)
BATCH_IS_NEW = (Phase.BATCH_BEGIN, Phase.VALID_BATCH_BEGIN)
BATCHES_FOLLOW = tuple(p for p in CONSULTED if p not in (Phase.TRAIN_END, Phase.SUSPEND, Phase.TEARDOWN))


class LeavesOptimizer(Command):
    """A command that leaves the numbers and the parameters in the groups of the optimizer as they are."""

    __slots__ = ()
    changes_hyper: ClassVar[bool] = False
