"""Whole training steps, compiled or captured.

They are sound because nothing watches the phases between forward and zero. Where something does, what comes before it
is done at once, and then the step: `begin` and `take_step`. A batch that cannot be trained this way, for its shape say,
gets the eager step, and each reason is warned of once.
"""

from __future__ import annotations

import contextlib
import copy
import types
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from ..core.errors import WorkloadError
from ..core.phase import Operation
from ..data.batches import map_tensors, structure, tensors
from .cuda_graphs import CudaGraph, Graph, check_capturable
from .joint_optimizer import AnyOptimizer
from .loss_parts import NO_PARTS, Parts, separate
from .training import Training
from .whole_step import BACKWARD, FORWARD, LOSS, hold_loss, note_gradients, train_batch, zero

T = TypeVar("T")
WARM_UP = 3  # steps before a capture: they make the optimizer's state and choose algorithms
MIN_CAPTURES = 4  # after this many captures, or changes of compiled numbers, check whether they were worth it
MIN_REPLAYS_PER_CAPTURE = 20  # fewer replays do not make up for the time of a capture


def forward_and_loss(work: Training, inputs: Any, target: Any) -> tuple[Any, Any]:
    """Forward and loss in the precision of the training: what is compiled or captured."""
    with contextlib.nullcontext() if work.precision is None else work.precision.compute():
        output = work.call(inputs, target)
        return output, work.loss_fn(output, target)


def step(optimizer: AnyOptimizer) -> None:
    """The optimizer's step: what is compiled."""
    optimizer.step()


class _FastStep(ABC):
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

    @abstractmethod
    def begin(self, operations: tuple[Operation, ...]) -> tuple[Operation, ...]:
        """Do the first of these operations on the batch under way at once; those that are left to do, maybe all.

        Args:
            operations: from FORWARD on, up to where a callback looks.
        """

    def take_step(self) -> None:
        """The optimizer's step."""
        self.work.optimizer.step()

    def mark_stale(self) -> None:
        """Check before the next step what Python decides in it: a command or a hyper-parameter may have changed it."""
        self.stale = True

    def can_run(self) -> bool:
        """Whether the batch under way can be trained like this. If not, warn once of the reason."""
        if (obstacle := self.obstacle()) is not None:
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
        output, loss, loss_parts, gradients: the tensors that a replay writes to.
        graded: the parameters of these gradients.
        piece: what captures a step without that of the optimizer, where a callback looks before it; None until then.
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
        self.gradients: list[torch.Tensor] = []
        self.graded: list[torch.nn.Parameter] = []
        self.piece: CapturedGradients | None = None

    def renewed(self) -> CapturedStep:
        return type(self)(self.work, copy.copy(self.graph))

    def begin(self, operations: tuple[Operation, ...]) -> tuple[Operation, ...]:
        if BACKWARD not in operations:
            self.warn_once(
                "loss",
                "a callback or sink looks between loss and backward: each step is trained the eager way",
            )
            return operations
        if self.piece is None:
            self.piece = CapturedGradients(self.work, copy.copy(self.graph))
            self.piece.warned = self.warned
        if not self.piece.can_run():
            return operations
        note_gradients(self.work, self.piece.run())
        return operations[3:]

    def mark_stale(self) -> None:
        super().mark_stale()
        if self.piece is not None:
            self.piece.mark_stale()

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
        self._replayed()
        # A metric may return a part of the output, which the next replay overwrites.
        work.output = map_tensors(self.output, torch.clone) if work.train_meters.metrics else self.output
        work.loss_parts = map_tensors(self.loss_parts, torch.clone)
        return self.loss.clone()

    def _warm_up(self) -> torch.Tensor:
        work = self.work
        work.output, loss = self._train(work.inputs, work.target)
        self._warmed_up()
        work.output = map_tensors(work.output, torch.Tensor.detach)  # or an eager step would meet nodes of this stream
        return loss.detach()

    def _train(self, inputs: Any, target: Any) -> tuple[Any, torch.Tensor]:
        """What is captured: of a batch, the output and the loss."""
        return train_batch(self.work, inputs, target, forward_and_loss, self.work.optimizer.step)

    def _warmed_up(self) -> None:
        """What follows a step before the capture."""
        zero(self.work)

    def _replayed(self) -> None:
        """What follows a replay."""

    def _capture(self) -> None:
        work = self.work
        self.batch = map_tensors((work.inputs, work.target), torch.clone)
        self.output = self.loss = None
        work.drop_autograd_graph()

        def train() -> tuple[Any, torch.Tensor, Parts, list[torch.Tensor]]:
            output, loss = self._train(*self.batch)
            return map_tensors(output, torch.Tensor.detach), loss.detach(), work.loss_parts, work.gradients()

        try:
            self.output, self.loss, self.loss_parts, self.gradients = self.graph.capture(train)
        except Exception as error:
            # What failed first. The end of the capture fails after it.
            first = error.__context__ if isinstance(error.__context__, Exception) else error
            first_line = str(first).partition("\n")[0]
            raise WorkloadError(
                f"this training step cannot be captured as a CUDA graph ({type(first).__name__}: {first_line}): "
                "nothing in the model, the loss and the optimizer may wait for the device, as .item() does; "
                "compile_step('default') does not mind"
            ) from error
        self.graded = [parameter for parameter in work.parameters if parameter.grad is not None]
        zero(work)  # the gradients belong to the graph, and an eager step must not add to them
        self.captured_constants, self.stale = _constants(work), False
        self.captures += 1

    def _check_constants(self) -> None:
        self.stale = False
        if self.captured_constants is not None and _constants(self.work) != self.captured_constants:
            self.captured_constants = None
            # The first step after a change, of momentum for example, may differ from all later ones.
            self.warm_ups = min(self.warm_ups, WARM_UP - 1)


class CapturedGradients(CapturedStep):
    """Forward, loss and backward as one graph. The gradients of a replay are in its tensors until the next one."""

    def _train(self, inputs: Any, target: Any) -> tuple[Any, torch.Tensor]:
        return train_batch(self.work, inputs, target, forward_and_loss, lambda: None)

    def _warmed_up(self) -> None:
        """The gradients are those of the step that follows."""

    def _replayed(self) -> None:
        for parameter, gradient in zip(self.graded, self.gradients, strict=True):
            parameter.grad = gradient


class CompiledStep(_FastStep):
    """Forward with loss, and the optimizer's step, through torch.compile; backward and zero are called as ever.

    Attributes:
        forward_and_loss, step: the compiled functions.
        settings: the mode and the backend of torch.compile.
        in_graphs: torch.compile uses CUDA graphs, so that the next step overwrites this one's answers.
        numbers: the optimizer's numbers that are compiled in.
        changes: how often those numbers changed.
        trainable: which parameters require a gradient.
        first_is_eager: the next step is eager, since it may make the optimizer's state.
    """

    def __init__(self, work: Training, mode: str, backend: str) -> None:
        super().__init__(work)
        self.settings = mode, backend
        self.forward_and_loss = torch.compile(_own(forward_and_loss), mode=mode, backend=backend)
        self.step = torch.compile(_own(step), mode=mode, backend=backend)
        self.in_graphs = work.device.type == "cuda" and (mode != "default" or backend == "cudagraphs")
        self.numbers = _numbers(work.optimizer)
        self.changes = 0
        self.trainable = self._trainable()
        self.first_is_eager = self._makes_state()

    def renewed(self) -> CompiledStep:
        return CompiledStep(self.work, *self.settings)

    def run(self) -> torch.Tensor:
        """Train on the batch under way; its detached loss."""
        work = self.work
        if self.in_graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        output, loss = train_batch(work, work.inputs, work.target, self.forward_and_loss, self.take_step)
        zero(work)
        loss = loss.detach()
        if self.in_graphs:
            output, loss = map_tensors(output, torch.clone), loss.clone()
            work.loss_parts = map_tensors(work.loss_parts, torch.clone)
        work.output = output
        return loss

    def begin(self, operations: tuple[Operation, ...]) -> tuple[Operation, ...]:
        work = self.work
        if self.in_graphs:
            # Gradients would be in the memory of the graphs, and a window or a callback keeps them longer.
            self.warn_once(
                "pieces",
                "a callback or sink looks inside the steps, and CUDA graphs of torch.compile would write over what is "
                "kept there: forward and loss are done the eager way; compile_step() without a mode compiles them",
            )
            return operations
        if not self.can_run():
            return operations
        work.doing = FORWARD
        work.output, loss = self.forward_and_loss(work, work.inputs, work.target)
        work.doing = LOSS
        loss, work.loss_parts = separate(loss)
        hold_loss(work, loss)
        return operations[2:]

    def take_step(self) -> None:
        if self.stale:
            self._check_numbers()
        (step if self.first_is_eager else self.step)(self.work.optimizer)
        self.first_is_eager = False

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
