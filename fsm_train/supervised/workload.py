"""The real thing: a model, an optimizer, a loss and loaders.

Each method does one operation and decides nothing. With no callbacks the operations are those of
the five-line loop, in its order, so that the weights are the same to the last bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from ..core.errors import WorkloadError
from ..core.phase import Operation
from ..core.state import Hyper, State
from ..core.table import Outcome
from ..core.transition import Command
from ..core.workload import Workload
from ..data.batches import Forward, Split, call, check_loader, check_loss, moved, pair, samples, split_up
from ..data.generators import Generators, generators_of, seed_all
from ..data.loaders import begun, let_workers_be
from ..data.position import Beginning, Left, find_again, left_there, set_epoch
from ..data.prefetch import copier_for, fed
from .advice import tell_once
from .carried_over import Kept, Outside, Snapshot, Stateful
from .compilation import CapturedStep, CompiledStep
from .freezing import Frozen
from .handlers import effect_of, is_registered
from .meters import Measure, Meters, Metric, check_metrics
from .mixing import Mix
from .param_groups import check_parameters, read_groups, stepped_parameters, write_groups
from .precision import Precision
from .representation import as_html, as_text
from .sensors import Sensor, check_sensors, in_one_transfer
from .whole_step import fused
from .window import Gradients, Window

_END = object()


class Supervised(Workload):
    """Trains `model` to bring `loss_fn(model(inputs), target)` down, over batches of (inputs, target).

    >>> from fsm_train import run, start
    >>> model = nn.Linear(3, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> batches = [(torch.zeros(4, 3), torch.ones(4, 1))] * 2
    >>> work = Supervised(model, optimizer, nn.MSELoss(), batches, valid=batches)
    >>> sorted(run(start(work, epochs=2)).metrics)
    ['train_loss', 'valid_loss']

    Args:
        model: its parameters are what the optimizer changes.
        optimizer: any of torch.optim that steps without a closure.
        loss_fn: of (output, target), a scalar tensor: the mean over the batch.
        train: anything that can be iterated anew each epoch and gives batches: a DataLoader, a list.
        valid: the same for validation; None for a training without.
        metrics: by name, a function of (output, target) that is averaged over the samples, or an
            object with update, compute and reset (torchmetrics). Measured on both splits.
        sensors: by name, a function of this workload that measures a fact of one's own. It may look
            at `model`, `optimizer`, `inputs`, `target`, `output`.
        device: where to train; the model is moved there. By default, where the model is.
        forward: of (model, inputs), the output. By default inputs in a tuple or list are passed by
            position, those in a mapping by keyword.
        split: of a batch, its (inputs, target). By default a batch is that pair.
        extra: by name, what else with state_dict and load_state_dict belongs in a checkpoint.
        ahead: whether a batch is fetched, and copied to the device, while the one before it is trained.
            By default on CUDA, from a list or a DataLoader with workers; False takes each as it comes.

    Raises:
        WorkloadError: the parts do not fit together.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_fn: Callable[[Any, Any], torch.Tensor],
        train: Iterable[Any],
        valid: Iterable[Any] | None = None,
        *,
        metrics: Mapping[str, Measure | Metric] | None = None,
        sensors: Mapping[str, Sensor] | None = None,
        device: torch.device | str | None = None,
        forward: Forward | None = None,
        split: Split | None = None,
        extra: Mapping[str, Stateful] | None = None,
        ahead: bool | None = None,
    ) -> None:
        check_parameters(model, optimizer, loss_fn)
        if device is not None:
            model.to(device)
        self.model = model
        self.called: nn.Module = model  # the model, or a parallel wrapper around it
        self.wrapper: Callable[[nn.Module], nn.Module] | None = None  # what makes that
        self.optimizer = optimizer
        self.loss_fn = loss_fn
        self.train = check_loader(train, "train")
        self.valid = None if valid is None else check_loader(valid, "valid")
        self.device = next(model.parameters()).device
        self.parameters = stepped_parameters(model, optimizer)
        self.gradients = Gradients(self.parameters)
        self.interrupt: str | None = None
        self._sensors = check_sensors(sensors or {})
        self.own_forward = forward
        self._split = split
        self._moves = self.device.type != "cpu"
        self._copier = copier_for(self.device, ahead, self.train, split)

        # The batch under way.
        self.inputs: Any = None
        self.target: Any = None
        self.output: Any = None
        self.batch_size = 0
        self.mix: Mix | None = None
        self._loss: torch.Tensor | None = None
        self._for_backward: torch.Tensor | None = None

        # The window whose gradients wait for a step.
        self.window = Window()
        self._stepped = False

        # The pass over the data under way.
        checked = check_metrics(metrics or {})
        self.train_meters = Meters("train", checked, self.device)
        self._valid_meters = Meters("valid", checked, self.device)
        self._batches: Iterator[Any] = iter(())
        self._valid_batches: Iterator[Any] = iter(())
        self._fetched = 0
        self.beginning: Beginning | None = None
        self._outside: Outside | None = None  # how things stood before a validation

        # This call of run, and what goes on from one to the next.
        self.state: State | None = None  # in which commands are carried out
        self.precision: Precision | None = None
        self.compiled: CapturedStep | CompiledStep | None = None
        self.frozen = Frozen(model)
        self.kept = Kept()
        self._undo = ExitStack()
        self.loss_checked = False
        self.extra = dict(extra or {})
        self.left: Left | None = None
        self._elapsed_before = 0.0
        self._since = time.perf_counter()
        self.told = False  # the summary

    __repr__ = as_text
    _repr_html_ = as_html

    # ---------------------------------------------------------------- what the interpreter asks

    @property
    def has_valid(self) -> bool:
        return self.valid is not None

    @property
    def sensors(self) -> Set[str]:
        return self._sensors.keys()

    def hyper(self) -> Mapping[str, Hyper]:
        return read_groups(self.optimizer)

    def set_hyper(self, changes: Mapping[str, Hyper]) -> None:
        write_groups(self.optimizer, changes)
        if self.compiled is not None:
            self.compiled.changed()

    def read(self, names: Set[str], state: State) -> Mapping[str, float]:
        found: dict[str, torch.Tensor | float] = {name: self._sensors[name](self) for name in names & self.sensors}
        if "loss" in names and self._loss is not None:
            found["loss"] = self._loss
        if "grad_norm" in names:
            found["grad_norm"] = self.gradients.norm()
        if "stepped" in names:
            found["stepped"] = float(self._stepped)
        if "elapsed" in names:
            found["elapsed"] = self._elapsed_before + time.perf_counter() - self._since
        return in_one_transfer(found)

    def carry_out(self, command: Command, state: State) -> None:
        self.state = state
        effect_of(type(command))(self, command)
        if self.compiled is not None:
            self.compiled.changed()

    def carries(self, kind: type[Command]) -> bool:
        return is_registered(kind)

    def fused(self, operations: tuple[Operation, ...]) -> Callable[[], Outcome] | None:
        return fused(self, operations)

    def note_step(self, loss: torch.Tensor) -> None:
        """Note what a whole step in one go leaves behind."""
        self._loss, self._stepped = loss, True
        self.gradients.changed()
        self.train_meters.add(loss, self.output, self.target, self.batch_size)

    # ------------------------------------------------------------------------- a call of run

    def prepare(self, state: State) -> None:
        self._elapsed_before, self._since = state.elapsed, time.perf_counter()
        self.loss_checked = False
        tell_once(self)
        self.set_hyper(state.hyper)
        if state.iteration == 0 and state.resume_at is None:
            self.kept, self.left = Kept(), None
            self.optimizer.zero_grad()  # of a training that failed, say
            self.window.clear()
            if state.plan.seed is not None:
                seed_all(state.plan.seed)

    def reposition(self, state: State) -> None:
        """Go on in the pass over the data that was left, with the generators as they were then."""
        if state.resume_at is None and (self.left is None or self.left.iteration != state.iteration):
            self.left = None
            return  # a finished training that goes on in this process
        left = left_there(self.left, state)
        if left.from_file:
            set_epoch(self.train, state.epoch)
            self._batches = fed(self._copier, self.train, find_again(self, state))
            self._fetched = state.batch
        left.generators.put_back()
        self.left = None

    def undo_at_finish(self, undo: Callable[[], None]) -> None:
        """Have this called when this call of run ends, in whatever way; the last that was put in place first."""
        self._undo.callback(undo)

    def finish(self, state: State) -> None:
        self._undo.close()
        if state.resume_at is not None and not state.error:
            self.left = Left(state.iteration, Generators.now(self.own_generators()))
        else:
            self._batches = iter(())  # let workers go
        self.inputs = self.target = self.output = self._loss = self._for_backward = None

    def snapshot(self) -> Snapshot:
        return Snapshot.of(self)

    def put_back(self, snapshot: Snapshot) -> None:
        snapshot.put_back(self)

    def own_generators(self) -> list[torch.Generator]:
        """The generators that the loaders were given, each once."""
        return list(dict.fromkeys((*generators_of(self.train), *generators_of(self.valid))))

    # ------------------------------------------------------------------------------ training

    def open(self, state: State) -> None:
        set_epoch(self.train, state.epoch)
        self.train_meters.reset()
        self._fetched = 0
        self.model.train()
        self.beginning = Beginning.now(self)
        self._batches = fed(self._copier, self.train, begun(self.train))

    def fetch(self) -> int | None:
        self._loss, self.window.share = None, 0.0
        batch = next(self._batches, _END)
        if batch is _END:
            if self._fetched == 0:
                raise WorkloadError(
                    "train gave no batch in this epoch: it is empty, or its __iter__ does not begin anew each time"
                )
            return None
        self._fetched += 1
        return self._take(batch)

    def _take(self, batch: Any) -> int:
        inputs, target = pair(batch) if self._split is None else split_up(batch, self._split)
        if self._moves:
            inputs, target = moved(inputs, self.device), moved(target, self.device)
        self.inputs, self.target, self.mix = inputs, target, None
        self.batch_size = samples(inputs)
        return self.batch_size

    def forward(self) -> None:
        if self.precision is None:
            self.output = self.call(self.inputs)
        else:
            with self.precision.compute():
                self.output = self.call(self.inputs)

    def call(self, inputs: Any) -> Any:
        """The output of the model, as it is called in this training."""
        return call(self.called, inputs) if self.own_forward is None else self.own_forward(self.called, inputs)

    def call_through(self, wrapper: Callable[[nn.Module], nn.Module] | None) -> None:
        """Call the model through this from now on; it itself stays what it is."""
        self.wrapper, self.called = wrapper, self.model if wrapper is None else wrapper(self.model)

    def loss(self) -> None:
        loss = self._compute_loss()
        if not self.loss_checked:
            check_loss(loss)
            self.loss_checked = True
        self._for_backward = loss
        self._loss = detached = loss.detach()
        self.train_meters.add(detached, self.output, self.target, self.batch_size)

    def _compute_loss(self) -> torch.Tensor:
        if self.precision is not None:
            with self.precision.compute():
                return self._mixed_loss()
        return self._mixed_loss()

    def _mixed_loss(self) -> torch.Tensor:
        if self.mix is not None:
            return self.mix.loss(self.loss_fn, self.output, self.target)
        return self.loss_fn(self.output, self.target)

    def add_to_loss(self, penalty: torch.Tensor) -> None:
        """Add something to the loss that goes into backward; what is measured stays without it."""
        assert self._for_backward is not None
        self._for_backward = self._for_backward + penalty

    def weigh_loss(self, share: float) -> None:
        """Let this batch count as this share of the window's gradient."""
        assert self._for_backward is not None
        self._for_backward = self.window.weigh(self._for_backward, share)

    def backward(self) -> None:
        loss = self._for_backward
        assert loss is not None
        if self.window.divided_by != 1.0:
            self.window.go_on(self.gradients())
        if self.precision is not None:
            loss = self.precision.scaled(loss, self.gradients())
        loss.backward()  # type: ignore[no-untyped-call]
        self.window.add()
        self.gradients.changed()

    def unscale(self) -> None:
        """Bring the gradients to their true size: without the scaler's scale, the mean over a window."""
        if self.precision is not None:
            self.precision.unscale(self.optimizer, self.gradients())
        if self.window.shares:
            self.window.bring_to_mean(self.gradients())
        self.gradients.changed()

    def step(self) -> bool:
        if self.precision is None:
            self.optimizer.step()
            self._stepped = True
        else:
            self._stepped = self.precision.step(self.optimizer)
        return self._stepped

    def zero(self) -> None:
        self.optimizer.zero_grad()
        if self.precision is not None:
            self.precision.zero()
        self.window.clear()

    def measure(self, state: State) -> Mapping[str, float]:
        found = self.train_meters.results()
        self.train_meters.reset()
        return found

    def passes_over_train(self) -> Iterator[Any]:
        """The inputs of each training batch, in a pass of its own."""
        for batch in self.train:
            self._take(batch)
            yield self.inputs

    # ---------------------------------------------------------------------------- validation

    def open_valid(self, state: State) -> None:
        assert self.valid is not None
        self._outside = Outside.of(self.model, self.own_generators(), self.valid)
        self._valid_meters.reset()
        self.model.eval()
        self._valid_batches = fed(self._copier, self.valid, begun(self.valid))

    def fetch_valid(self) -> int | None:
        batch = next(self._valid_batches, _END)
        return None if batch is _END else self._take(batch)

    def evaluate(self) -> None:
        with torch.no_grad():
            self.forward()
            self._loss = self._compute_loss().detach()
            self._valid_meters.add(self._loss, self.output, self.target, self.batch_size)

    def measure_valid(self, state: State) -> Mapping[str, float]:
        found = self._valid_meters.results()
        self._end_validation()
        if not found:
            raise WorkloadError("valid gave no batch: it is empty, or its __iter__ does not begin anew each time")
        return found

    def abandon(self, state: State) -> None:
        """Be as if this validation had not begun."""
        self._end_validation()
        if self._outside is not None:
            let_workers_be(self.valid, self._outside.workers)

    def _end_validation(self) -> None:
        """Put modes and generators back, so that whether one validates does not change what one trains."""
        self._valid_meters.reset()
        self._valid_batches = iter(())
        self._loss = None
        if self._outside is not None:
            self._outside.put_back()
