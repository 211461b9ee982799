"""Mixed precision: autocast for what is computed, a gradient scaler for float16."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from ..core.commands import UseMixedPrecision


class Precision:
    """How forward and loss are computed, and how gradients get their true size again.

    A scaler wants exactly one `unscale_` between two `update`s. Where the machine unscales and then
    skips the step, the scaler is updated all the same: after a zero, so that an overflow lowers the
    scale; and before the next backward of a window that goes on. Gradients that are kept then, or
    over a step, get the scale back.
    """

    def __init__(self, device: torch.device, command: UseMixedPrecision, saved: dict[str, Any] | None = None) -> None:
        self.device = device.type
        self.dtype = getattr(torch, command.dtype)
        self.scaler: torch.amp.GradScaler | None = None
        if command.dtype == "float16":
            self.scaler = torch.amp.GradScaler(
                self.device, init_scale=command.initial_scale, growth_interval=command.growth_interval
            )
            if saved is not None:
                self.scaler.load_state_dict(saved)
                self.scaler.set_growth_interval(command.growth_interval)  # settings come from the code
                # It makes its tensors when it first scales something, and would not unscale without them.
                self.scaler.scale(torch.zeros((), device=device))
        self.unscaled = False  # the gradients have their true size
        self.looked = False  # the scaler has looked for infinities, and waits for its update

    def state(self) -> dict[str, Any] | None:
        """The state of the scaler, if there is one. It has no word for gradients that were unscaled: `go_on` first."""
        return self.scaler.state_dict() if self.scaler else None

    def compute(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device, dtype=self.dtype)

    def scaled(self, loss: torch.Tensor, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
        """The loss for backward; `gradients` are those of the window so far."""
        if self.scaler is None:
            return loss
        self.go_on(gradients)
        return self.scaler.scale(loss)

    def go_on(self, gradients: Sequence[torch.Tensor]) -> None:
        """Give the gradients of a window that goes on their scale back."""
        if self.scaler is not None and self.unscaled:
            self._update()
            torch._foreach_mul_(list(gradients), self.scaler.get_scale())
            self.unscaled = False

    def unscale(self, optimizer: torch.optim.Optimizer, gradients: Sequence[torch.Tensor]) -> None:
        if self.scaler is not None:
            self.go_on(gradients)  # also without a backward in between, as when the training is saved there
            self.scaler.unscale_(optimizer)
            self.unscaled = self.looked = True

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Take the step, unless the scaler holds it back. Whether it was taken."""
        if self.scaler is None:
            optimizer.step()
            return True
        before = self.scaler.get_scale()
        self.scaler.step(optimizer)
        self._update()
        return self.scaler.get_scale() >= before  # the scaler does not say it, but it lowers its scale

    def zero(self) -> None:
        self._update()
        self.unscaled = False

    def _update(self) -> None:
        if self.scaler is not None and self.looked:
            self.scaler.update()
            self.looked = False
