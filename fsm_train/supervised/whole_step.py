"""A whole training step in one call, where nothing watches the phases between its operations.

Rule of this file: a whole step does what its operations do one by one, in the same order. If it fails,
`doing` says in which operation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..core.phase import Operation
from .arguments import explain_loss
from .loss_parts import separate
from .training import Training

Compute = Callable[[Training, Any, Any], tuple[Any, Any]]
"""Forward and loss: of (training, inputs, target), the output, and the loss as `loss_fn` returns it."""

WHOLE_STEP = (
    Operation.FORWARD,
    Operation.LOSS,
    Operation.BACKWARD,
    Operation.UNSCALE,
    Operation.STEP,
    Operation.ZERO,
)
"""The operations of a step, in the order of the table. In the whole steps of this file UNSCALE has nothing to do."""

FORWARD, LOSS, BACKWARD, _, STEP, ZERO = WHOLE_STEP  # a module's names are looked up faster than members of an enum


def train_batch(
    work: Training, inputs: Any, target: Any, compute: Compute, step: Callable[[], object]
) -> tuple[Any, torch.Tensor]:
    """Forward, loss, backward and step, but not zero. The output and the loss, both with their graph.

    The parts of the loss are in `loss_parts` afterwards.

    Args:
        inputs, target: the batch.
        compute: forward and loss.
        step: the optimizer's step.
    """
    work.doing = FORWARD
    output, loss = compute(work, inputs, target)
    work.doing = LOSS
    if type(loss) is not torch.Tensor:
        loss, work.loss_parts = separate(loss)
    if not work.loss_checked:
        work.check_first_loss(loss)
    work.doing = BACKWARD
    try:
        loss.backward()
    except (AttributeError, RuntimeError) as error:
        if not isinstance(loss, torch.Tensor):
            work.doing = LOSS
        explain_loss(loss, error)
        raise
    work.doing = STEP
    step()
    work.doing = None
    return output, loss


def train_piece(work: Training, operations: tuple[Operation, ...]) -> bool:
    """Do the operations from FORWARD up to where a callback looks, the first of them at once if possible.

    Whether the batch took a step.
    """
    left = operations
    if BACKWARD not in operations:
        work._buffers.keep()  # a callback may leave the batch out after its loss
    if work.whole_step is not None and work.mix is None and not work.one_by_one:
        left = work.whole_step.begin(operations)
    for operation in left:
        work.doing = operation
        getattr(work, operation.value)()
    work.doing = None
    return work.stepped


def hold_loss(work: Training, loss: torch.Tensor) -> None:
    """Take the loss of the batch under way, with its graph, for backward."""
    if not work.loss_checked:
        work.check_first_loss(loss)
    work._for_backward = loss
    try:
        work._loss = loss.detach()
    except AttributeError as error:
        explain_loss(loss, error)
        raise


def note_gradients(work: Training, loss: torch.Tensor) -> None:
    """Note the results of forward, loss and backward in one: the detached loss, a scalar; `output` is set."""
    work._loss, work.doing = loss, BACKWARD
    work.meter(work.train_meters, loss)
    work.gradients.changed()


def zero(work: Training) -> None:
    """Zero the gradients, at the end of a whole step."""
    work.doing = ZERO
    work.optimizer.zero_grad()
    work.doing = None


def plain_step(work: Training) -> torch.Tensor:
    """The body of the five-line loop, in the model's own precision; the detached loss."""
    work.output, loss = train_batch(work, work.inputs, work.target, _forward_and_loss, work.optimizer.step)
    zero(work)
    return loss.detach()


def _forward_and_loss(work: Training, inputs: Any, target: Any) -> tuple[Any, Any]:
    if type(inputs) is torch.Tensor and work.custom_forward is None:
        output = work.wrapped_model(inputs)
    else:
        output = work.call(inputs, target)
    work.doing = LOSS
    return output, work.loss_fn(output, target)
