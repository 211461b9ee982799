"""Whole sequences of operations in one go, where the machine knows that nobody looks in between.

Rule of this file: a sequence does exactly what its operations do one by one, in the same order, and
one that fails leaves in `doing` which of them it was in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from ..core.phase import Operation
from ..data.batches import check_loss

if TYPE_CHECKING:
    from .workload import Supervised

WHOLE_STEP = (
    Operation.FORWARD,
    Operation.LOSS,
    Operation.BACKWARD,
    Operation.UNSCALE,
    Operation.STEP,
    Operation.ZERO,
)


def fused(work: Supervised, operations: tuple[Operation, ...]) -> Callable[[], bool] | None:
    """One implementation for this sequence of operations, if there is one.

    A subclass that does one of them in its own way has them done one by one.
    """
    from .workload import Supervised  # which imports this file

    own = any(getattr(type(work), op.value) is not getattr(Supervised, op.value) for op in WHOLE_STEP)
    return (lambda: whole_step(work)) if operations == WHOLE_STEP and not own else None


def whole_step(work: Supervised) -> bool:
    """The five-line loop's body; whether the step was taken."""
    if work.mix is not None or work.window.shares:
        return _one_by_one(work)
    if work.compiled is not None and work.compiled.can():
        work.note_step(work.compiled.run())
        return True
    if work.precision is not None:
        return _one_by_one(work)
    inputs, doing = work.inputs, Operation.FORWARD
    try:
        if type(inputs) is torch.Tensor and work.own_forward is None:
            output = work.called(inputs)
        else:
            output = work.call(inputs)
        doing = Operation.LOSS
        loss = work.loss_fn(output, work.target)
        if not work.loss_checked:
            check_loss(loss)
            work.loss_checked = True
        doing = Operation.BACKWARD
        loss.backward()  # type: ignore[no-untyped-call]
        doing = Operation.STEP
        work.optimizer.step()
        doing = Operation.ZERO
        work.optimizer.zero_grad()
    except BaseException:
        work.doing = doing
        raise
    work.output = output
    work.note_step(loss.detach())
    return True


def _one_by_one(work: Supervised) -> bool:
    operations = (work.forward, work.loss, work.backward, work.unscale, work.step, work.zero)
    outcomes = []
    for work.doing, operation in zip(WHOLE_STEP, operations, strict=True):
        outcomes.append(operation())
    work.doing = None
    return outcomes[WHOLE_STEP.index(Operation.STEP)] is True
