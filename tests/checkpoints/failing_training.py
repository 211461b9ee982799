"""A training in which one thing raises once, saved by `checkpoint(on_failure=True)` and gone on with by a whole one."""

from __future__ import annotations

import functools
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fsm_train import (
    CallbackError,
    Command,
    Divergence,
    Operation,
    Phase,
    State,
    Supervised,
    Transition,
    carries_out,
    on,
    replay,
    restore,
    run,
    start,
)
from fsm_train.callbacks import accumulate, checkpoint, ema, schedule, validate_every
from fsm_train.core.callback import Callback
from fsm_train.core.phase import CONSULTED
from fsm_train.schedules import cosine
from tests.checkpoints.comparison import end_of
from tests.models import diabetes

EPOCHS, BATCHES = 3, 4
PARTS = ("data", "model", "loss", "gradient", "optimizer", "zero_grad", "metric")


class BrokenError(Exception):
    """What goes wrong."""


@attrs.frozen
class Fault:
    """What raises: a part or an operation of the workload, a callback at a phase, or a command that it gives there.

    Attributes:
        what: the part, operation or phase.
        after: how many times it works before.
        by_command: whether a command raises, after the callbacks of the phase have answered.
    """

    what: str | Operation | Phase
    after: int
    by_command: bool = False


def break_it() -> None:
    raise BrokenError


class Breaking:
    """Raises when it is called once more than `after` times, and never again.

    Args:
        after: how often nothing happens.
        happens: what happens then.
    """

    def __init__(self, after: int, happens: Callable[[], None] = break_it) -> None:
        self.left = after
        self.happens = happens

    def __call__(self) -> None:
        self.left -= 1
        if self.left == -1:
            self.happens()


@attrs.frozen
class Break(Command):
    """Raise."""


@carries_out(Break)
def _break(work: Supervised, command: Break) -> None:
    raise BrokenError


class _Data(TensorDataset):
    breaking: Callable[[], None] | None = None

    def __getitem__(self, index: int) -> Any:
        if self.breaking:
            self.breaking()
        return super().__getitem__(index)


class _Gradient(torch.autograd.Function):
    """The identity, whose backward pass may raise."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, breaking: Callable[[], None]) -> torch.Tensor:
        ctx.breaking = breaking
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        ctx.breaking()
        return gradients[0], None


def _before(function: Callable[..., Any], breaking: Callable[[], None]) -> Callable[..., Any]:
    @functools.wraps(function)
    def broken(*args: Any, **kwargs: Any) -> Any:
        breaking()
        return function(*args, **kwargs)

    return broken


def _nothing() -> None: ...


def workload(fault: Fault | None = None, happens: Callable[[], None] = break_it) -> Supervised:
    """A training with what makes a resume hard: dropout, batch norm, momentum, a shuffled loader, a metric."""
    breaking = Breaking(fault.after, happens) if fault else _nothing
    what = fault.what if fault else None
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    data = _Data(*(tensor[: 16 * BATCHES] for tensor in diabetes().tensors))
    valid = [tuple(tensor[16 * i : 16 * i + 16] for tensor in diabetes().tensors) for i in (5, 6)]

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if what == "loss":
            breaking()
        if what == "gradient" and output.requires_grad:
            output = _Gradient.apply(output, breaking)  # type: ignore[no-untyped-call]
        return nn.functional.mse_loss(output, target)

    def mean(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if what == "metric":
            breaking()
        return output.mean()

    work = Supervised(model, optimizer, loss, DataLoader(data, 16, shuffle=True), valid, metrics={"mean": mean})
    if what == "data":
        data.breaking = breaking
    if what == "model":
        model[2].register_forward_pre_hook(lambda *_: breaking())  # after the batch norm
    if what in ("optimizer", "zero_grad"):
        name = "step" if what == "optimizer" else "zero_grad"
        setattr(optimizer, name, _before(getattr(optimizer, name), breaking))
    if isinstance(what, Operation):
        setattr(work, what.value, _before(getattr(work, what.value), breaking))
    return work


def library(window: int) -> list[Callback[Any]]:
    """Callbacks that keep something of each batch: a rate, a window, an average, a validation in mid-epoch.

    Without a window, nobody looks inside a step, and it is taken in one call.
    """
    if not window:
        return []
    return [schedule(lr=cosine(EPOCHS * BATCHES)), accumulate(window), ema(0.9), validate_every(steps=2)]


def faulty(fault: Fault) -> list[Callback[Any]]:
    """The callback that raises, or gives the command that does."""
    if not isinstance(fault.what, Phase):
        return []
    breaking = Breaking(fault.after)

    @on(fault.what)
    def faulty(state: State) -> Transition | None:
        try:
            breaking()
        except BrokenError:
            if fault.by_command:
                return Transition(commands=(Break(),))
            raise
        return None

    return [faulty]


@functools.cache
def undisturbed(window: int) -> dict[str, str]:
    """How the training ends in which nothing raises."""
    work = workload()
    return end_of(work, run(start(work, epochs=EPOCHS, seed=0), library(window)))


@attrs.frozen
class Outcome:
    """What became of a training with a fault.

    Attributes:
        failed: whether it came to the fault.
        restored: the state from which it went on; None if nothing was saved.
        end: how it ended then.
        notes: what the error and the restored state say.
        divergence: the first difference between the log and its replay.
    """

    failed: bool
    restored: State | None = None
    end: dict[str, str] = attrs.Factory(dict)
    notes: tuple[str, ...] = ()
    divergence: Divergence | None = None

    @property
    def exact(self) -> bool:
        return self.restored is not None and not self.restored.notes


def with_fault(fault: Fault, window: int, others: Sequence[Callback[Any]] = ()) -> Outcome:
    """Train with this fault, restore what was saved in a whole workload, and train on."""
    work = workload(fault)
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("error")
        folder = Path(name, "saved")
        callbacks = [*library(window), checkpoint(folder, on_failure=True), *faulty(fault), *others]
        try:
            run(start(work, epochs=EPOCHS, seed=0), callbacks, log=Path(name, "run.jsonl"))
        except (BrokenError, CallbackError) as error:
            notes = (*error.__notes__,) if hasattr(error, "__notes__") else ()
        else:
            return Outcome(failed=False)
        again = [*library(window), checkpoint(folder, on_failure=True), *faulty(fault), *others]
        divergence = replay(Path(name, "run.jsonl"), again).divergence
        saved = [path for path in folder.iterdir() if path.name.endswith("-failed")] if folder.exists() else []
        if not saved:
            return Outcome(True, notes=notes, divergence=divergence)
        torch.rand(7)
        whole = workload()
        state = restore(saved[0], whole)
        final = run(state, library(window))
        memory = {name: value for name, value in final.memory.items() if name != "faulty"}
        return Outcome(True, state, end_of(whole, attrs.evolve(final, memory=memory)), notes, divergence)


def faults() -> list[Fault]:
    """Each part, operation and phase, at several moments of the training."""
    moments = (0, 1, 2, 5, 9)
    return [
        *(Fault(part, 16 * after + 3 if part == "data" else after) for part in PARTS for after in moments),
        *(Fault(operation, after) for operation in Operation for after in moments),
        *(Fault(phase, after, by_command=c) for phase in CONSULTED for after in moments for c in (False, True)),
    ]
