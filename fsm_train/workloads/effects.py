"""How each command is carried out on the real model and optimizer.

One function per command, registered under the command's type. A command of one's own is a frozen
record that inherits from `Command`, and a function registered here with `@carries_out`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ..core.commands import ClipGradNorm, WeighLoss
from ..core.errors import WorkloadError
from ..core.transition import Command

if TYPE_CHECKING:
    from .supervised import Supervised

C = TypeVar("C", bound=Command)

_EFFECTS: dict[type[Command], Callable[[Supervised, Any], None]] = {}


def carries_out(kind: type[C]) -> Callable[[Callable[[Supervised, C], None]], Callable[[Supervised, C], None]]:
    """Register the decorated function of (workload, command) as what carries out commands of this type."""

    def register(effect: Callable[[Supervised, C], None]) -> Callable[[Supervised, C], None]:
        _EFFECTS[kind] = effect
        return effect

    return register


def effect_of(kind: type[Command]) -> Callable[[Supervised, Any], None]:
    """The function that carries out commands of this type.

    Raises:
        WorkloadError: none was registered.
    """
    try:
        return _EFFECTS[kind]
    except KeyError:
        raise WorkloadError(
            f"nothing is registered that carries out the command {kind.__name__}: decorate a function of "
            f"(workload, command) with @carries_out({kind.__name__}), from fsm_train.workloads.effects"
        ) from None


@carries_out(ClipGradNorm)
def clip_grad_norm(work: Supervised, command: ClipGradNorm) -> None:
    norm = work.grad_norm(command.norm_type)
    torch.nn.utils.clip_grads_with_norm_(work.parameters, command.max_norm, norm)


@carries_out(WeighLoss)
def weigh_loss(work: Supervised, command: WeighLoss) -> None:
    work.weigh_loss(command.share)
