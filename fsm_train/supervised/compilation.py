"""Whole training steps, compiled or captured.

They are sound because nothing watches the phases between forward and zero. A batch that cannot be trained
this way, because of its shape for example, gets the eager step, and each reason is warned of once. What
needs CUDA is in `CudaGraph` alone, so that every decision of this file can be tested without it.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import types
import warnings
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch

from ..core.errors import WorkloadError
from ..data.batches import map_tensors, structure, tensors
from .joint_optimizer import AnyOptimizer, each_of
from .loss_parts import NO_PARTS, Parts
from .training import Training
from .whole_step import train_batch, zero

T = TypeVar("T")

WARM_UP = 3  # steps before a capture: they make the optimizer's state and choose algorithms
MIN_CAPTURES = 4  # after this many captures, or changes of compiled numbers, check whether they were worth it
MIN_REPLAYS_PER_CAPTURE = 20  # fewer replays do not make up for the time of a capture


class Graph(Protocol):
    """Records what is computed on a device, and repeats it on the same tensors."""

    def on_capture_stream(self, train: Callable[[], T]) -> T:
        """Compute without recording, on the stream of the capture."""
        ...

    def capture(self, train: Callable[[], T]) -> T:
        """Record without computing. Each replay writes to the tensors of the answer."""
        ...

    def replay(self) -> None:
        """Compute what was recorded."""
        ...


@functools.cache
def stream_for(device: torch.device, thread: int) -> torch.cuda.Stream:
    """The stream on which this thread records. Torch keeps a workspace of many megabytes for each stream."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class CudaGraph:
    """A CUDA graph.

    Attributes:
        device: the CUDA device.
        stream: the stream of warm-ups and captures.
        graph: the latest capture, or None.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = stream_for(device, threading.get_ident())
        self.graph: torch.cuda.CUDAGraph | None = None

    def on_capture_stream(self, train: Callable[[], T]) -> T:
        # Autograd records the stream on which a gradient is made first: it has to be the stream of the capture.
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            answer = train()
        current.wait_stream(self.stream)
        return answer

    def capture(self, train: Callable[[], T]) -> T:
        graph = torch.cuda.CUDAGraph()
        try:
            with (
                # After a failure, torch itself would leave the stream of the capture in use.
                torch.cuda.stream(torch.cuda.current_stream(self.device)),
                # Other threads may use CUDA meanwhile: a loader's thread pins memory.
                torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"),
            ):
                answer = train()
        except BaseException:
            stream_for.cache_clear()  # the state in which torch left this stream is unknown
            raise
        self.graph = graph
        return answer

    def replay(self) -> None:
        assert self.graph is not None
        self.graph.replay()


def forward_and_loss(work: Training, inputs: Any, target: Any) -> tuple[Any, Any]:
    """Forward and loss in the precision of the training: what is compiled or captured."""
    with contextlib.nullcontext() if work.precision is None else work.precision.compute():
        output = work.call(inputs, target)
        return output, work.loss_fn(output, target)


def step(optimizer: AnyOptimizer) -> None:
    """The optimizer's step: what is compiled."""
    optimizer.step()


class _FastStep:
    """What compiled and captured steps have in common: the choice between them and the eager step.

    Attributes:
        work: what is trained.
        warned: the names of the reasons that were warned of.
        stale: what Python decides in the step may have changed since it was checked.
    """

    def __init__(self, work: Training) -> None:
        self.work = work
        self.warned: set[str] = set()
        self.stale = False

    def mark_stale(self) -> None:
        """Check before the next step what Python decides in it: a command or a hyper-parameter may have changed it."""
        self.stale = True

    def can_run(self) -> bool:
        """Whether the batch under way can be trained like this. If not, warn once of the reason."""
        obstacle = self.obstacle()
        if obstacle is not None:
            self.warn_once(*obstacle)
        return obstacle is None

    def obstacle(self) -> tuple[str, str] | None:
        """The reason for an eager step, by name and as a sentence; None if there is none."""
        precision = self.work.precision
        if precision is not None and precision.scaler is not None:
            return (
                "scaler",
                "a gradient scaler decides on the CPU whether to step, and each step is trained the eager way",
            )
        return None

    def warn_once(self, name: str, sentence: str) -> None:
        """Warn with this sentence, unless it was done under this name before."""
        if name not in self.warned:
            self.warned.add(name)
            warnings.warn(f"compile_step: {sentence}", RuntimeWarning, stacklevel=2)


class CapturedStep(_FastStep):
    """Forward, loss, backward and step as one graph, replayed on inputs that are copied into its own tensors.

    A graph contains as constants what Python decides: optimizer numbers that are no tensors, what is frozen,
    the modes of modules. If one of them changes, the step is captured again, after another warm-up.

    Attributes:
        graph: records and replays.
        warm_ups, captures, replays: how many there were.
        structure: nesting, shapes and types of the first batch; only such batches are replayed.
        captured_constants: what Python decided in the capture; None without a capture.
        batch: the tensors of the graph that a batch is copied into, nested as the batch.
        output, loss, loss_parts: the tensors that a replay writes to.
    """

    def __init__(self, work: Training, graph: Graph) -> None:
        super().__init__(work)
        self.graph = graph
        self.warm_ups = 0
        self.captures = 0
        self.replays = 0
        self.structure: Any = None
        self.captured_constants: Any = None
        self.batch: Any = None
        self.output: Any = None
        self.loss: torch.Tensor | None = None
        self.loss_parts: Parts = NO_PARTS

    def obstacle(self) -> tuple[str, str] | None:
        work = self.work
        if (general := super().obstacle()) is not None:
            return general
        if work.wrapper is not None:
            return "wrapper", "a parallel wrapper exchanges gradients as it sees fit, and is trained the eager way"
        if any(parameter.grad is not None for parameter in work.parameters):
            return "waiting", "gradients of earlier batches wait for this step, which is trained the eager way"
        try:
            of_batch = structure((work.inputs, work.target))
        except TypeError as error:
            return "opaque", f"{error}: it is trained the eager way"
        if self.structure is None:
            self.structure = of_batch
        if of_batch != self.structure:
            shapes = [tuple(tensor.shape) for tensor in tensors((work.inputs, work.target))]
            return "form", f"a batch of shapes {shapes} does not fit the first one, and is trained the eager way"
        if self.stale:
            self._check_constants()
        too_few_replays = self.replays < MIN_REPLAYS_PER_CAPTURE * self.captures
        if self.captured_constants is None and self.captures >= MIN_CAPTURES and too_few_replays:
            return "numbers", (
                f"numbers that are part of the graph, such as a learning rate, have changed {self.captures} times in "
                f"{self.replays} steps, and each step is trained the eager way from now on: a schedule by epoch, or a "
                "rate that is a tensor where the optimizer takes one, leaves the graph as it is"
            )
        return None

    def run(self) -> torch.Tensor:
        """Train on the batch under way; its detached loss.

        Raises:
            WorkloadError: something in the step cannot be captured.
        """
        work = self.work
        if self.warm_ups < WARM_UP:
            self.warm_ups += 1
            work.drop_autograd_graph()
            return self.graph.on_capture_stream(self._warm_up)
        if self.captured_constants is None:
            self._capture()
        assert self.loss is not None
        for static, new in zip(tensors(self.batch), tensors((work.inputs, work.target)), strict=True):
            static.copy_(new, non_blocking=True)
        self.graph.replay()
        self.replays += 1
        # A metric may return a part of the output, which the next replay overwrites.
        work.output = map_tensors(self.output, torch.clone) if work.train_meters.metrics else self.output
        work.loss_parts = map_tensors(self.loss_parts, torch.clone)
        return self.loss.clone()

    def _warm_up(self) -> torch.Tensor:
        work = self.work
        work.output, loss = train_batch(work, work.inputs, work.target, forward_and_loss, work.optimizer.step)
        zero(work)
        work.output = map_tensors(work.output, torch.Tensor.detach)  # or an eager step would meet nodes of this stream
        return loss.detach()

    def _capture(self) -> None:
        work = self.work
        self.batch = map_tensors((work.inputs, work.target), torch.clone)
        self.output = self.loss = None
        work.drop_autograd_graph()

        def train() -> tuple[Any, torch.Tensor, Parts]:
            inputs, target = self.batch
            output, loss = train_batch(work, inputs, target, forward_and_loss, work.optimizer.step)
            return map_tensors(output, torch.Tensor.detach), loss.detach(), work.loss_parts

        try:
            self.output, self.loss, self.loss_parts = self.graph.capture(train)
        except Exception as error:
            # What failed first. The end of the capture fails after it.
            first = error.__context__ if isinstance(error.__context__, Exception) else error
            first_line = str(first).partition("\n")[0]
            raise WorkloadError(
                f"this training step cannot be captured as a CUDA graph ({type(first).__name__}: {first_line}): "
                "nothing in the model, the loss and the optimizer may wait for the device, as .item() does; "
                "compile_step('default') does not mind"
            ) from error
        zero(work)  # the gradients belong to the graph, and an eager step must not add to them
        self.captured_constants, self.stale = _constants(work), False
        self.captures += 1

    def _check_constants(self) -> None:
        self.stale = False
        if self.captured_constants is not None and _constants(self.work) != self.captured_constants:
            self.captured_constants = None
            # The first step after a change, of momentum for example, may differ from all later ones.
            self.warm_ups = min(self.warm_ups, WARM_UP - 1)


class CompiledStep(_FastStep):
    """Forward with loss, and the optimizer's step, through torch.compile; backward and zero stay eager.

    Attributes:
        forward_and_loss, step: the compiled functions.
        in_graphs: torch.compile uses CUDA graphs, so that the next step overwrites this one's answers.
        numbers: the optimizer's numbers that are compiled in.
        changes: how often those numbers changed.
        trainable: which parameters require a gradient.
        first_is_eager: the next step is eager, since it may make the optimizer's state.
    """

    def __init__(self, work: Training, mode: str, backend: str) -> None:
        super().__init__(work)
        self.forward_and_loss = torch.compile(_own(forward_and_loss), mode=mode, backend=backend)
        self.step = torch.compile(_own(step), mode=mode, backend=backend)
        self.in_graphs = work.device.type == "cuda" and (mode != "default" or backend == "cudagraphs")
        self.numbers = _numbers(work.optimizer)
        self.changes = 0
        self.trainable = self._trainable()
        self.first_is_eager = self._makes_state()

    def run(self) -> torch.Tensor:
        """Train on the batch under way; its detached loss."""
        work = self.work
        if self.stale:
            self._check_numbers()
        if self.in_graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        step_now = functools.partial(step if self.first_is_eager else self.step, work.optimizer)
        output, loss = train_batch(work, work.inputs, work.target, self.forward_and_loss, step_now)
        self.first_is_eager = False
        zero(work)
        loss = loss.detach()
        if self.in_graphs:
            output, loss = map_tensors(output, torch.clone), loss.clone()
            work.loss_parts = map_tensors(work.loss_parts, torch.clone)
        work.output = output
        return loss

    def _check_numbers(self) -> None:
        """Optimizer numbers that are no tensors are compiled in, and torch.compile gives up after a few changes."""
        self.stale = False
        numbers, trainable = _numbers(self.work.optimizer), self._trainable()
        if (numbers, trainable) != (self.numbers, self.trainable):
            self.trainable, self.first_is_eager = trainable, self._makes_state()
        if numbers == self.numbers:
            return
        self.numbers, self.changes = numbers, self.changes + 1
        if self.changes == MIN_CAPTURES:
            self.step = step
            self.warn_once(
                "numbers",
                "numbers that are compiled into the optimizer's step, such as a learning rate, have changed "
                f"{MIN_CAPTURES} times: it is done the eager way from now on; forward and loss stay compiled",
            )

    def _makes_state(self) -> bool:
        """Whether the next step may make momentum, which a compiled step would make in the memory of its graph.

        The step after it writes over that memory. Optimizers that are `capturable` make their state before.
        """
        return self.in_graphs and not all("capturable" in group for group in self.work.optimizer.param_groups)

    def _trainable(self) -> list[bool]:
        return [parameter.requires_grad for parameter in self.work.parameters]


def _own(function: Callable[..., T]) -> Callable[..., T]:
    """The function with its own code object: torch.compile limits the versions of one, and each workload needs one."""
    assert isinstance(function, types.FunctionType)
    return types.FunctionType(function.__code__.replace(), function.__globals__, function.__name__)


def _numbers(optimizer: AnyOptimizer) -> list[dict[str, Any]]:
    """What each parameter group holds beside parameters and other tensors."""
    return [
        {name: value for name, value in group.items() if name != "params" and not isinstance(value, torch.Tensor)}
        for group in optimizer.param_groups
    ]


def _constants(work: Training) -> list[Any]:
    """What Python decides in a step, and what may change during a training."""
    frozen = [parameter.requires_grad for parameter in work.model.parameters()]
    modes = [module.training for module in work.model.modules()]
    return [_numbers(work.optimizer), dict(work.numbers), frozen, modes, list(map(id, work.parameters))]


def compiled_step(work: Training, mode: str, backend: str) -> CapturedStep | CompiledStep:
    """What trains whole steps in this mode.

    Raises:
        WorkloadError: a graph is asked for on a device without graphs, or for an optimizer that cannot be captured.
    """
    if mode != "graph":
        return CompiledStep(work, mode, backend)
    if work.device.type != "cuda":
        raise WorkloadError(f"compile_step(mode='graph') captures a CUDA graph, but the model is on {work.device}")
    check_capturable(work.optimizer)
    return CapturedStep(work, CudaGraph(work.device))


def check_capturable(optimizer: AnyOptimizer) -> None:
    """Refuse an optimizer that counts its steps on the CPU.

    Raises:
        WorkloadError: with the setting that changes it.
    """
    for each in each_of(optimizer).values():
        if any("capturable" in group and not group["capturable"] for group in each.param_groups):
            name = type(each).__name__
            raise WorkloadError(f"{name} cannot be captured as it is: make it with capturable=True")
