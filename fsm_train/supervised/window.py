"""Gradients that wait for a step, and the window of accumulation: what each of its batches counts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


class Gradients:
    """The gradients that the optimizer will step, and their common norm."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        self.parameters = parameters
        self._norm: tuple[float, torch.Tensor] | None = None

    def __call__(self) -> list[torch.Tensor]:
        """Those of all parameters that have one."""
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]

    def norm(self, norm_type: float = 2.0) -> torch.Tensor:
        """The norm of all of them together, computed again only when they have changed."""
        if self._norm is None or self._norm[0] != norm_type:
            self._norm = norm_type, torch.nn.utils.get_total_norm(self(), norm_type)
        return self._norm[1]

    def changed(self) -> None:
        """To be called by whatever changes them in place."""
        self._norm = None


class Window:
    """Weighs the losses of a window, so that before the step its gradient is their weighted mean.

    A window that goes on after it was brought to its mean, because the step was skipped at the last
    moment, is brought back to its sum first.
    """

    def __init__(self) -> None:
        self.share = 0.0  # of the batch under way
        self.shares = 0.0  # of the batches whose gradients wait
        self.divided_by = 1.0  # what their gradients were divided by already

    def weigh(self, loss: torch.Tensor, share: float) -> torch.Tensor:
        self.share = share
        return loss * share

    def go_on(self, gradients: Sequence[torch.Tensor]) -> None:
        """A further backward is to come."""
        if self.divided_by != 1.0:
            torch._foreach_mul_(list(gradients), self.divided_by)
            self.divided_by = 1.0

    def add(self) -> None:
        """The batch under way has had its backward."""
        self.shares += self.share
        self.share = 0.0

    def bring_to_mean(self, gradients: Sequence[torch.Tensor]) -> None:
        if self.shares > 0.0 and self.divided_by == 1.0 and not math.isclose(self.shares, 1.0, rel_tol=1e-12):
            torch._foreach_div_(list(gradients), self.shares)
            self.divided_by = self.shares

    def clear(self) -> None:
        self.share, self.shares, self.divided_by = 0.0, 0.0, 1.0

    def state(self) -> list[float]:
        return [self.shares, self.divided_by]

    def load(self, state: Sequence[float]) -> None:
        self.shares, self.divided_by = state
