"""What stands in for the eager steps of a training."""

from __future__ import annotations

from typing import Protocol

import torch


class WholeStep(Protocol):
    """A compiled or captured training step: forward, loss, backward, step and zero in one call."""

    def can_run(self) -> bool:
        """Whether the batch under way can be trained with it."""
        ...

    def run(self) -> torch.Tensor:
        """Train on the batch under way, and set `output`. The detached loss, a scalar."""
        ...

    def mark_stale(self) -> None:
        """Note that a command was carried out or a hyper-parameter set, after which the step may be outdated."""
        ...
