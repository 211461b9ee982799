"""A backward of the user's own, in place of `loss.backward()`.

Rule of this file: the function sees losses and gradients of this batch alone, without a weight or a scale, as in a loop
by hand without accumulation and half precision. What it adds to `.grad` is weighed and scaled afterwards, since it need
not be linear in the losses: clipping the gradient of each sample is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from ..core.commands import UseCompiledStep, UseMicroBatches
from ..core.errors import WorkloadError
from ..core.transition import Command
from ..data.batches import in_words

Backward = Callable[[Any, Sequence[nn.Parameter]], None]
"""Of (loss, parameters): it adds to the `.grad` of the parameters. A loss by parts is the mapping of its parts."""


class _Scaled(torch.autograd.Function):
    """The loss itself, whose gradient is scaled, as that of a loss that a gradient scaler has scaled."""

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor, scale: torch.Tensor, used: list[bool]) -> torch.Tensor:
        ctx.scale, ctx.used = scale, used
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        ctx.used[:] = [True]
        return gradient * ctx.scale, None, None


def run_backward(
    backward: Backward, losses: Any, parameters: Sequence[nn.Parameter], weight: float, scale: torch.Tensor | None
) -> None:
    """Call the function, and add what it made to the gradients that were there, times `weight` and `scale`.

    In half precision small gradients within the model would be lost without the scale: they have it there, and it is
    taken off where they come to a parameter. A gradient that comes from none of the given losses never had it.

    Args:
        backward: the user's.
        losses: a scalar tensor, or a mapping of tensors; with their graph.
        parameters: those of the optimizer that require a gradient.
        weight: of the batch, in its window.
        scale: of the gradient scaler, a scalar tensor; None without one.

    Raises:
        WorkloadError: the function returned something.
    """
    before = [parameter.grad for parameter in parameters]
    call: Callable[[Any, Any], object] = backward  # which may return something all the same
    try:
        with ExitStack() as hooks:
            for parameter in parameters:
                parameter.grad = None
            if scale is not None:
                losses = _scaled(losses, parameters, scale, hooks)
            returned = call(losses, parameters)
        if returned is not None:
            raise WorkloadError(
                f"backward returned {in_words(returned)}: it returns nothing, and adds to parameter.grad what the step "
                "is to have"
            )
        added = [parameter.grad for parameter in parameters]
    finally:
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient
    with torch.no_grad():
        for parameter, gradient in zip(parameters, added, strict=True):
            if gradient is not None:
                gradient = gradient.detach()
                gradient = gradient if weight == 1.0 else gradient * weight
                gradient = gradient if scale is None else gradient * scale
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def _scaled(losses: Any, parameters: Sequence[nn.Parameter], scale: torch.Tensor, hooks: ExitStack) -> Any:
    """The losses with scaled gradients, which lose the scale where they come to a parameter, while `hooks` last."""
    used: list[bool] = []

    def at_parameter(gradient: torch.Tensor) -> torch.Tensor:
        return gradient / scale if used else gradient

    for parameter in parameters:
        hooks.callback(parameter.register_hook(at_parameter).remove)  # type: ignore[no-untyped-call]
    if isinstance(losses, Mapping):
        return {name: _scaled_one(value, scale, used) for name, value in losses.items()}
    return _scaled_one(losses, scale, used)


def _scaled_one(value: Any, scale: torch.Tensor, used: list[bool]) -> Any:
    if isinstance(value, torch.Tensor) and value.requires_grad:
        return _Scaled.apply(value, scale, used)  # type: ignore[no-untyped-call]
    return value


def check_made(parameters: Sequence[nn.Parameter]) -> None:
    """Refuse a function that has made no gradient.

    Raises:
        WorkloadError: no parameter has one.
    """
    if all(parameter.grad is None for parameter in parameters):
        raise WorkloadError(
            "backward gave none of the optimizer's parameters a gradient, so that no step changes anything: it adds to "
            "parameter.grad, as loss.backward() does"
        )


def why_not(kind: type[Command]) -> str:
    """Why a command of this type cannot go with a backward of the user's own; "" if it can."""
    if issubclass(kind, UseMicroBatches):
        return "the backward of this training is its own (backward=…), which sees no pieces of a batch: leave them out"
    if issubclass(kind, UseCompiledStep):
        return "the backward of this training is its own (backward=…), which no compiled step has: leave it out"
    return ""
