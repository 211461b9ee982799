"""What stands in for the eager steps of a training."""

from __future__ import annotations

from typing import Protocol

import torch

from ..core.phase import Operation


class WholeStep(Protocol):
    """A compiled or captured training step: forward, loss, backward, step and zero in one call."""

    def can_run(self) -> bool:
        """Whether the batch under way can be trained with it."""
        ...

    def run(self) -> torch.Tensor:
        """Train on the batch under way, and set `output`. The detached loss, a scalar."""
        ...

    def begin(self, operations: tuple[Operation, ...]) -> tuple[Operation, ...]:
        """Do the first of these operations on the batch under way, up to where a callback looks; the others."""
        ...

    def take_step(self) -> None:
        """The optimizer's step."""
        ...

    def renewed(self) -> WholeStep:
        """The same for a model whose structure has changed."""
        ...

    def mark_stale(self) -> None:
        """Note that a command was carried out or a hyper-parameter set, after which the step may be outdated."""
        ...
