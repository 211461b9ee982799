"""Optimizers that evaluate the batch themselves, as often as they like: the closure that their step is given.

Rule of this file: the evaluation that was made before the step counts only while no parameter has changed and no
gradient was changed or zeroed since; else forward, loss and backward are done anew, as in a closure written by hand.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch

from ..core.commands import UseCompiledStep, UseMicroBatches, WeighLoss
from ..core.errors import WorkloadError
from ..core.transition import Command
from .joint_optimizer import AnyOptimizer, JointOptimizer, each_of


def demands_closure(optimizer: object) -> bool:
    """Whether the step needs a closure by its signature, as that of LBFGS does.

    >>> weight = torch.nn.Parameter(torch.zeros(3))
    >>> demands_closure(torch.optim.LBFGS([weight])), demands_closure(torch.optim.SGD([weight]))
    (True, False)
    """
    closure = _parameters(optimizer).get("closure")
    return closure is not None and closure.default is closure.empty


def _parameters(optimizer: Any) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(optimizer.step).parameters)
    except (TypeError, ValueError):
        return {}  # of an extension module, say


def gives_closure(optimizer: AnyOptimizer, asked_for: bool) -> bool:
    """Whether the step of this optimizer is given a closure: it demands one, or the user asked for it.

    Raises:
        WorkloadError: it has no use for one; it has two half steps, as SAM, and none was asked for; or it is one of
            several.
    """
    for name, each in each_of(optimizer).items():
        kind, demands = type(each).__name__, demands_closure(each)
        if isinstance(optimizer, JointOptimizer) and (demands or asked_for):
            raise WorkloadError(
                f"optimizer[{name!r}] is to be given a closure, which evaluates the batch again and moves the weights "
                "between: several optimizers step together only from the gradients of one backward"
            )
        if hasattr(each, "first_step") and hasattr(each, "second_step") and not (demands or asked_for):
            raise WorkloadError(
                f"{kind} has two half steps, between which the loss is computed again: write Supervised(…, "
                "closure=True), or Player(…, closure=True), which gives its step a closure for that"
            )
        if asked_for and not _parameters(each):
            raise WorkloadError(f"closure=True, but the step of {kind} takes no closure: leave it out")
    return asked_for or any(map(demands_closure, each_of(optimizer).values()))


def why_not(kind: type[Command]) -> str:
    """Why a command of this type cannot go with a closure; "" if it can."""
    if issubclass(kind, WeighLoss):
        return (
            "the optimizer evaluates its batch again, by a closure, and an accumulated gradient is of several batches: "
            "take larger batches"
        )
    if issubclass(kind, UseMicroBatches):
        return "the optimizer evaluates its batch again, by a closure, which is not done in pieces: leave them out"
    if issubclass(kind, UseCompiledStep):
        return "the optimizer evaluates its batch again, by a closure, which no compiled step can do: leave it out"
    return ""


def refuse_scaler() -> WorkloadError:
    """The error for a gradient scaler beside a closure."""
    return WorkloadError(
        "the optimizer evaluates its batch again, by a closure, which a gradient scaler cannot look into: use "
        "mixed_precision('bfloat16'), which needs no scaler"
    )


class Closure:
    """What the step is given: called, it is the loss of the batch under way, whose gradients are there then.

    Until its first call that finds something changed, it holds a copy of all parameters and gradients: a change by way
    of `.data` leaves no other trace.
    """

    def __init__(
        self, parameters: Iterable[torch.Tensor], loss: torch.Tensor, evaluate: Callable[[], torch.Tensor]
    ) -> None:
        self.loss = loss
        self.evaluate = evaluate
        self.before = [(p, p.detach().clone(), None if p.grad is None else p.grad.clone()) for p in parameters]
        self.counts = True  # the evaluation that was made before

    def __call__(self) -> torch.Tensor:
        """The loss, a detached scalar, of the batch with the weights as they are now."""
        self.counts = self.counts and all(
            _same(parameter, values) and _same(parameter.grad, gradient) for parameter, values, gradient in self.before
        )
        if self.counts:
            return self.loss
        self.before.clear()
        with torch.enable_grad():
            return self.evaluate()


def _same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Whether two tensors have the same elements, NaN included."""
    if one is None or other is None:
        return one is other
    if one.shape != other.shape or one.is_sparse != other.is_sparse:
        return False
    if one.is_sparse:
        one, other = one.to_dense(), other.to_dense()
    return torch.equal(one, other) or bool(((one == other) | ((one != one) & (other != other))).all())
