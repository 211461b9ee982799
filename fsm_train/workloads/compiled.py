"""Whole training steps, compiled or captured.

Sound because the machine knows that nobody looks between forward and zero. What cannot be done this
way, a batch of another shape, say, is done the eager way, and said once.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from typing import TYPE_CHECKING, Any

import torch

from ..core.errors import WorkloadError
from .batches import check_loss, mapped, tensors

if TYPE_CHECKING:
    from .supervised import Supervised

WARM_UP = 3  # eager steps before a capture: they make the optimizer's state and choose algorithms


def _forward_and_loss(work: Supervised, inputs: Any, target: Any) -> tuple[Any, torch.Tensor]:
    with contextlib.nullcontext() if work.precision is None else work.precision.compute():
        output = work.call(inputs)
        return output, work.loss_fn(output, target)


class CapturedStep:
    """Forward, loss, backward and step as one CUDA graph, replayed on inputs that are copied into place.

    Numbers that the optimizer holds as Python floats are baked into a graph, so setting one (a schedule
    by epoch) makes a new capture. Each replay writes its gradients anew.
    """

    def __init__(self, work: Supervised) -> None:
        self.work = work
        self.eager_steps = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.batch: Any = None
        self.shapes: list[torch.Size] = []
        self.loss: torch.Tensor | None = None
        self.said = False

    def forget(self) -> None:
        """Something that is baked into the graph has changed."""
        self.graph = None

    def can(self) -> bool:
        """Whether this batch can be trained by a replay; makes the capture if it is time."""
        work = self.work
        if work.precision is not None and work.precision.scaler is not None:
            self._say("a gradient scaler decides on the CPU whether to step")
            return False
        if self.eager_steps < WARM_UP:
            self.eager_steps += 1
            return False
        shapes = [tensor.shape for tensor in tensors((work.inputs, work.target))]
        if self.graph is None:
            self._capture(shapes)
        elif shapes != self.shapes:
            self._say(f"a batch of shapes {[tuple(s) for s in shapes]} does not fit the captured one")
            return False
        return self.graph is not None

    def run(self) -> torch.Tensor:
        """Train on the batch; its loss."""
        assert self.graph is not None
        assert self.loss is not None
        for static, new in zip(tensors(self.batch), tensors((self.work.inputs, self.work.target)), strict=True):
            static.copy_(new, non_blocking=True)
        self.graph.replay()
        self.work.optimizer.zero_grad()  # the tensors of the graph stay, but an eager step must not add to them
        return self.loss.clone()

    def _capture(self, shapes: list[torch.Size]) -> None:
        work = self.work
        self.shapes = shapes
        self.batch = mapped((work.inputs, work.target), torch.clone)
        work.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work.output, loss = _forward_and_loss(work, *self.batch)
            loss.backward()  # type: ignore[no-untyped-call]
            work.optimizer.step()
        self.graph, self.loss = graph, loss.detach()

    def _say(self, why: str) -> None:
        if not self.said:
            warnings.warn(f"compile_step: {why}; that is trained the eager way", RuntimeWarning, stacklevel=2)
            self.said = True


class CompiledStep:
    """Forward and loss through torch.compile; backward, step and zero as they are."""

    def __init__(self, work: Supervised, mode: str) -> None:
        self.work = work
        self.compiled = torch.compile(functools.partial(_forward_and_loss, work), mode=mode)

    def forget(self) -> None:
        """Nothing is baked in."""

    def can(self) -> bool:
        return self.work.precision is None or self.work.precision.scaler is None

    def run(self) -> torch.Tensor:
        """Train on the batch; its loss."""
        work = self.work
        work.output, loss = self.compiled(work.inputs, work.target)
        if not work.loss_checked:
            check_loss(loss)
            work.loss_checked = True
        loss.backward()  # type: ignore[no-untyped-call]
        work.optimizer.step()
        work.optimizer.zero_grad()
        return loss.detach()


def compiled_step(work: Supervised, mode: str) -> CapturedStep | CompiledStep:
    """What trains whole steps in this mode.

    Raises:
        WorkloadError: a graph is to be captured on a device that has none, or of an optimizer that cannot be.
    """
    if mode != "graph":
        return CompiledStep(work, mode)
    if work.device.type != "cuda":
        raise WorkloadError(f"compile_step(mode='graph') captures a CUDA graph, but the model is on {work.device}")
    for group in work.optimizer.param_groups:
        if "capturable" in group and not group["capturable"]:
            name = type(work.optimizer).__name__
            raise WorkloadError(f"{name} cannot be captured as it is: make it with capturable=True")
    return CapturedStep(work)
