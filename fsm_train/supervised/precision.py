"""Mixed precision: autocast for what is computed, a gradient scaler for float16."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from ..core.commands import UseMixedPrecision
from .joint_optimizer import AnyOptimizer, JointOptimizer, each_of, has_gradients
from .shares import alike

_logger = logging.getLogger("fsm_train")


class Precision:
    """Autocast for forward and loss, and the gradient scaler of float16.

    A scaler wants exactly one `unscale_` between two `update`s. If the machine unscales and then skips
    the step, the scaler is updated nevertheless: after a zero, so that an overflow lowers the scale; and
    before the next backward of the same window. Gradients that outlast that, or a step, are scaled again.

    Attributes:
        device: the kind of device, such as "cuda".
        dtype: in which autocast computes.
        scaler: None for other types than float16, which need none.
        unscaled: the gradients have their true size.
        awaits_update: the scaler has checked the gradients for infinities and was not updated since.
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
                # GradScaler makes its tensors when it first scales something, and cannot unscale without them.
                self.scaler.scale(torch.zeros((), device=device))
        self.unscaled = False
        self.awaits_update = False
        self._warned = False  # that no step is taken any more

    def state(self) -> dict[str, Any] | None:
        """The state of the scaler, if any. Call `rescale` before: it does not record that gradients are unscaled."""
        return self.scaler.state_dict() if self.scaler else None

    def compute(self) -> AbstractContextManager[object]:
        """The context in which forward and loss are computed."""
        return torch.autocast(self.device, dtype=self.dtype)

    def scale(self, loss: torch.Tensor, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
        """The scaled loss for backward; `gradients` are those of the window so far."""
        if self.scaler is None:
            return loss
        self.rescale(gradients)
        return self.scaler.scale(loss)

    def rescale(self, gradients: Sequence[torch.Tensor]) -> None:
        """Multiply unscaled gradients by the scale again, since their window continues."""
        if self.scaler is not None and self.unscaled:
            self._update()
            for each in alike(gradients):
                torch._foreach_mul_(each, self.scaler.get_scale())
            self.unscaled = False

    def unscale(self, optimizer: AnyOptimizer, gradients: Sequence[torch.Tensor]) -> None:
        """Divide the gradients by the scale, in place."""
        if self.scaler is not None:
            self.rescale(gradients)  # unscaled gradients get here without a backward if a checkpoint was saved there
            for each in each_of(optimizer).values():
                if has_gradients(each):
                    self.scaler.unscale_(each)
            self.unscaled = self.awaits_update = True

    def step(self, optimizer: AnyOptimizer) -> bool:
        """Step, unless the scaler skips the step because of an infinity. Whether the step was taken.

        Several optimizers are skipped each on its own, as in torch's recipe; the step was taken if one of them took it.
        """
        if self.scaler is None:
            optimizer.step()
            return True
        before = self.scaler.get_scale()
        taken = False
        if isinstance(optimizer, JointOptimizer):
            for each in optimizer.optimizers.values():
                taken |= self._step_one(self.scaler, each)
        else:
            self.scaler.step(optimizer)
        self._update()
        if not 0.0 < before < math.inf:
            self._warn_of_scale(before)
            return False
        return taken or self.scaler.get_scale() >= before  # for one, a lower scale is the only sign of a skipped step

    def _step_one(self, scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer) -> bool:
        """Step one of the optimizers, unless one of its gradients is not finite. Whether it changed something."""
        if not has_gradients(optimizer):  # whose parameters are frozen, say: the scaler has checked nothing
            optimizer.step()
            return False
        scaler.step(optimizer)
        found = scaler._found_inf_per_device(optimizer).values()
        return not any(infinite.item() for infinite in found)

    def _warn_of_scale(self, scale: float) -> None:
        if not self._warned:
            self._warned = True
            _logger.warning(
                "the scale of the gradient scaler is %s, from which it does not recover: each gradient is infinite or "
                "NaN, and no step is taken any more. Look for a loss that is NaN, or train in bfloat16",
                scale,
            )

    def zero(self) -> None:
        """Note that the gradients were zeroed."""
        self._update()
        self.unscaled = False

    def _update(self) -> None:
        if self.scaler is not None and self.awaits_update:
            self.scaler.update()
            self.awaits_update = False
