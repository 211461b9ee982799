"""A whole training step in one call, where nothing watches the phases between its operations.

Rule of this file: a whole step does what its operations do one by one, in the same order. If it fails,
`doing` says in which operation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..core.laps import Lap, take_laps
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

CALLED = ("call", "compute_loss", "meter")
"""What operations call, for a subclass to override."""

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


def whole_steps(work: Any, lap: Lap | None = None) -> bool:
    """Take the step of the batch under way; with a lap fetch batches, and take their steps, until it is over.

    Where nobody asks for more than the five-line loop it is that loop, with what is noted of it. All of it is in this
    one function: between the kernels of a training each call costs three times what it costs elsewhere.

    Args:
        work: a `Supervised` in which no operation, and nothing of `CALLED`, is overridden.
        lap: what comes of it is noted there, also if a step fails.

    Returns:
        Whether the step was taken.
    """
    if (
        (work.mix is not None and lap is None)  # a fetch clears it
        or work.precision is not None
        or work.whole_step is not None
        or work.window.shares
        or work.gives_closure
        or work.custom_backward is not None
        or work.micro_batches is not None
        or work.rank_weight != 1.0
        or (work.ranks is not None and work.ranks.reduces(work))
    ):
        if lap is None:
            return bool(work.step_in_general())
        take_laps(lap, work.fetch, work._whole_step, lambda: work.interrupt is not None)
        return True
    batches, most, samples, size, stepping = 0, 1.0, 0.0, None, False
    if lap is not None:
        most, samples = min(lap.most_steps, lap.most_batches), lap.samples
    try:
        while batches < most:
            if lap is not None:
                if work.interrupt is not None:
                    break
                fetched = work.fetch()
                if not fetched:
                    lap.ended_by, lap.fetched_nothing = fetched, True
                    break
                size, stepping = fetched, True
            work.doing, inputs = FORWARD, work.inputs
            if type(inputs) is torch.Tensor and work.custom_forward is None:
                model = work.wrapped_model  # called by its own name: as a method it is looked for in the class first
                output = model(inputs)
            else:
                output = work.call(inputs, work.target)
            work.doing, loss_fn = LOSS, work.loss_fn
            loss = loss_fn(output, work.target)
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
            work.optimizer.step()
            work.doing, work.output = ZERO, output
            work.optimizer.zero_grad()
            work.doing = BACKWARD  # whose part the metrics are
            work._loss, work.stepped, work.gradients.known_norm = loss.detach(), True, None
            if work.train_meters.metrics or work.loss_parts:
                work.meter(work.train_meters, work._loss)
            else:
                work.train_meters.loss.add(work._loss, work.batch_size)
            work.doing = inputs = output = loss = None  # what is not needed is not kept for the next batch
            batches += 1
            if size is not None:
                samples, stepping = samples + size, False
    finally:
        if lap is not None:
            lap.samples, lap.batches, lap.steps, lap.size, lap.stepping = samples, batches, batches, size, stepping
    return True


def whole_laps(work: Any, lap: Lap) -> None:
    """Whole steps in a row, as `whole_steps` takes them."""
    whole_steps(work, lap)
