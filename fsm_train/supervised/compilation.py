"""Whole training steps, compiled or captured.

Sound because the machine knows that nobody looks between forward and zero. What cannot be done this
way, a batch of another shape, say, is done the eager way, and each reason is said once. What only
CUDA has stands in `CudaGraph`, so that everything that is decided here can be tried without.
"""

from __future__ import annotations

import contextlib
import types
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch

from ..core.errors import WorkloadError
from ..core.phase import Operation
from ..data.batches import check_loss, form, mapped, tensors

if TYPE_CHECKING:
    from .workload import Supervised

T = TypeVar("T")

WARM_UP = 3  # steps before a capture: they make the optimizer's state and choose algorithms
FEW = 4  # captures or compilations, each for other numbers of the optimizer, after which it is looked whether they pay
PAYS = 20  # replays that a capture is worth


class Graph(Protocol):
    """Something that records what is done on a device, and does it again on the same tensors."""

    def beside(self, train: Callable[[], T]) -> T:
        """Do this without recording it, where it will be recorded later."""
        ...

    def capture(self, train: Callable[[], T]) -> T:
        """Record this without doing it; the tensors in its answer are written by each replay."""
        ...

    def replay(self) -> None: ...


class CudaGraph:
    """A graph of kernels, and the stream that it is recorded on."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.graph: torch.cuda.CUDAGraph | None = None

    def beside(self, train: Callable[[], T]) -> T:
        """Autograd remembers the stream on which a gradient was first made: it has to be the one of the capture."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            answer = train()
        current.wait_stream(self.stream)
        return answer

    def capture(self, train: Callable[[], T]) -> T:
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on meanwhile: that of a loader pins memory.
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            answer = train()
        self.graph = graph
        return answer

    def replay(self) -> None:
        assert self.graph is not None
        self.graph.replay()


def forward_and_loss(work: Supervised, inputs: Any, target: Any) -> tuple[Any, torch.Tensor]:
    with contextlib.nullcontext() if work.precision is None else work.precision.compute():
        output = work.call(inputs)
        return output, work.loss_fn(output, target)


def step(optimizer: torch.optim.Optimizer) -> None:
    optimizer.step()


class _Whole:
    """What both ways have in common: when they give way to the eager one, and that each reason is said once."""

    def __init__(self, work: Supervised) -> None:
        self.work = work
        self.said: set[str] = set()
        self.doubtful = False  # what was looked at when it was made may have changed

    def changed(self) -> None:
        """A command was carried out, or a number of the optimizer set."""
        self.doubtful = True

    def can(self) -> bool:
        """Whether the batch under way can be trained like this."""
        why = self.prevented()
        if why is not None:
            self.say(*why)
        return why is None

    def prevented(self) -> tuple[str, str] | None:
        """The reason for the eager way, by name and as a sentence."""
        precision = self.work.precision
        if precision is not None and precision.scaler is not None:
            return (
                "scaler",
                "a gradient scaler decides on the CPU whether to step, and each step is trained the eager way",
            )
        return None

    def say(self, name: str, why: str) -> None:
        if name not in self.said:
            self.said.add(name)
            warnings.warn(f"compile_step: {why}", RuntimeWarning, stacklevel=2)


class CapturedStep(_Whole):
    """Forward, loss, backward and step as one graph, replayed on inputs that are copied into place.

    What Python decides is baked into a graph: numbers that the optimizer does not hold as tensors, what is
    frozen, the modes of modules. When one of them has changed, the step is captured anew, after another warm-up.
    """

    def __init__(self, work: Supervised, graph: Graph) -> None:
        super().__init__(work)
        self.graph = graph
        self.warm_ups = 0
        self.captures = 0
        self.replays = 0
        self.form: Any = None  # of the batches that can be replayed: that of the first one
        self.baked: Any = None  # None while there is no capture
        self.batch: Any = None
        self.output: Any = None
        self.loss: torch.Tensor | None = None

    def prevented(self) -> tuple[str, str] | None:
        work = self.work
        if (why := super().prevented()) is not None:
            return why
        if work.wrapper is not None:
            return "wrapper", "a parallel wrapper exchanges gradients as it sees fit, and is trained the eager way"
        if any(parameter.grad is not None for parameter in work.parameters):
            return "waiting", "gradients of earlier batches wait for this step, which is trained the eager way"
        try:
            found = form((work.inputs, work.target))
        except TypeError as error:
            return "opaque", f"{error}: it is trained the eager way"
        if self.form is None:
            self.form = found
        if found != self.form:
            shapes = [tuple(tensor.shape) for tensor in tensors((work.inputs, work.target))]
            return "form", f"a batch of shapes {shapes} does not fit the first one, and is trained the eager way"
        if self.doubtful:
            self._look_again()
        if self.baked is None and self.captures >= FEW and self.replays < PAYS * self.captures:
            return "numbers", (
                f"numbers that are part of the graph, such as a learning rate, have changed {self.captures} times in "
                f"{self.replays} steps, and each step is trained the eager way from now on: a schedule by epoch, or a "
                "rate that is a tensor where the optimizer takes one, leaves the graph as it is"
            )
        return None

    def run(self) -> torch.Tensor:
        """Train on the batch; its loss.

        Raises:
            WorkloadError: something in the step cannot be captured.
        """
        work = self.work
        if self.warm_ups < WARM_UP:
            self.warm_ups += 1
            return self.graph.beside(self._warm_up)
        if self.baked is None:
            self._capture()
        assert self.loss is not None
        for static, new in zip(tensors(self.batch), tensors((work.inputs, work.target)), strict=True):
            static.copy_(new, non_blocking=True)
        self.graph.replay()
        self.replays += 1
        # A metric may answer with a part of the output, which the next replay writes over.
        work.output = mapped(self.output, torch.clone) if work.train_meters.metrics else self.output
        return self.loss.clone()

    def _warm_up(self) -> torch.Tensor:
        work = self.work
        work.output, loss = forward_and_loss(work, work.inputs, work.target)
        if not work.loss_checked:
            check_loss(loss)
            work.loss_checked = True
        loss.backward()  # type: ignore[no-untyped-call]
        work.optimizer.step()
        work.optimizer.zero_grad()
        return loss.detach()

    def _capture(self) -> None:
        work = self.work
        self.batch = mapped((work.inputs, work.target), torch.clone)
        work.output = self.output = self.loss = None  # what autograd keeps for an output belongs to another stream

        def train() -> tuple[Any, torch.Tensor]:
            output, loss = forward_and_loss(work, *self.batch)
            loss.backward()  # type: ignore[no-untyped-call]
            work.optimizer.step()
            return mapped(output, torch.Tensor.detach), loss.detach()

        try:
            self.output, self.loss = self.graph.capture(train)
        except Exception as error:
            why = str(error).partition("\n")[0]
            raise WorkloadError(
                f"this training step cannot be captured as a CUDA graph ({type(error).__name__}: {why}): nothing in "
                "the model, the loss and the optimizer may wait for the device, as .item() does; "
                "compile_step('default') does not mind"
            ) from error
        work.optimizer.zero_grad()  # the gradients belong to the graph, and an eager step must not add to them
        self.baked, self.doubtful = _baked(work), False
        self.captures += 1

    def _look_again(self) -> None:
        self.doubtful = False
        if self.baked is not None and _baked(self.work) != self.baked:
            self.baked = None
            # What thaws, say, or gets momentum, has a first step that differs from all others.
            self.warm_ups = min(self.warm_ups, WARM_UP - 1)


class CompiledStep(_Whole):
    """Forward and loss, and the optimizer's step, through torch.compile; backward and zero as they are."""

    def __init__(self, work: Supervised, mode: str, backend: str) -> None:
        super().__init__(work)
        self.forward_and_loss = torch.compile(_own(forward_and_loss), mode=mode, backend=backend)
        self.step = torch.compile(_own(step), mode=mode, backend=backend)
        self.in_graphs = work.device.type == "cuda" and (mode != "default" or backend == "cudagraphs")
        self.numbers = _numbers(work.optimizer)
        self.changes = 0

    def run(self) -> torch.Tensor:
        """Train on the batch; its loss."""
        work = self.work
        if self.doubtful:
            self._look_again()
        if self.in_graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        work.doing = Operation.FORWARD
        output, loss = self.forward_and_loss(work, work.inputs, work.target)
        work.doing = Operation.LOSS
        if not work.loss_checked:
            check_loss(loss)
            work.loss_checked = True
        work.doing = Operation.BACKWARD
        loss.backward()  # type: ignore[no-untyped-call]
        work.doing = Operation.STEP
        self.step(work.optimizer)
        work.doing = Operation.ZERO
        work.optimizer.zero_grad()
        work.doing = None
        loss = loss.detach()
        if self.in_graphs:  # the next step writes over what this one has answered
            output, loss = mapped(output, torch.clone), loss.clone()
        work.output = output
        return loss

    def _look_again(self) -> None:
        """Each number of the optimizer that is no tensor is compiled in, and torch.compile gives up after a few."""
        self.doubtful = False
        numbers = _numbers(self.work.optimizer)
        if numbers == self.numbers:
            return
        self.numbers, self.changes = numbers, self.changes + 1
        if self.changes == FEW:
            self.step = step
            self.say(
                "numbers",
                f"numbers that are compiled into the optimizer's step, such as a learning rate, have changed {FEW} "
                "times: it is done the eager way from now on; forward and loss stay compiled",
            )


def _own(function: Callable[..., T]) -> Callable[..., T]:
    """The function with code of its own: torch.compile keeps a few versions of a code, and each workload is another."""
    assert isinstance(function, types.FunctionType)
    return types.FunctionType(function.__code__.replace(), function.__globals__, function.__name__)


def _numbers(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """What each group of the optimizer holds beside tensors."""
    return [
        {name: value for name, value in group.items() if name != "params" and not isinstance(value, torch.Tensor)}
        for group in optimizer.param_groups
    ]


def _baked(work: Supervised) -> list[Any]:
    """What of a step is decided by Python, and may change in a training."""
    frozen = [parameter.requires_grad for parameter in work.model.parameters()]
    modes = [module.training for module in work.model.modules()]
    return [_numbers(work.optimizer), frozen, modes]


def compiled_step(work: Supervised, mode: str, backend: str) -> CapturedStep | CompiledStep:
    """What trains whole steps in this mode.

    Raises:
        WorkloadError: a graph is to be captured on a device that has none, or of an optimizer that cannot be.
    """
    if mode != "graph":
        return CompiledStep(work, mode, backend)
    if work.device.type != "cuda":
        raise WorkloadError(f"compile_step(mode='graph') captures a CUDA graph, but the model is on {work.device}")
    check_capturable(work.optimizer)
    return CapturedStep(work, CudaGraph(work.device))


def check_capturable(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer that counts its steps on the CPU.

    Raises:
        WorkloadError: with the setting that changes it.
    """
    for group in optimizer.param_groups:
        if "capturable" in group and not group["capturable"]:
            name = type(optimizer).__name__
            raise WorkloadError(f"{name} cannot be captured as it is: make it with capturable=True")
