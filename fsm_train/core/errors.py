"""Everything that can be wrong, in sentences: what was found, where, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .phase import Phase


class Travels:
    """A base of errors that pickle and copy restore with message, attributes and notes, whatever `__init__` takes.

    It stands before the error that they derive from, so that its `__reduce__` is the one that counts.
    """

    args: tuple[Any, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        return _without_init, (type(self), self.args), vars(self)


def _without_init(kind: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    """The error with these `args`. Its `__init__`, which would make a message of its arguments, is not called."""
    return kind.__new__(kind, *args)


class FsmTrainError(Travels, Exception):
    """What every error of this package is. It survives pickle and copy, as in a pool of processes.

    >>> from fsm_train import restore
    >>> try:
    ...     restore("checkpoints", workload=None)
    ... except FsmTrainError as error:
    ...     print(type(error).__name__)
    NoCheckpointError
    """


class CallbackError(FsmTrainError):
    """A callback raised, or answered with something that is no answer.

    >>> from fsm_train import Phase, on
    >>> from fsm_train.testing import simulate
    >>> @on(Phase.EPOCH_END)
    ... def broken(state):
    ...     return 1 / 0
    >>> try:
    ...     simulate([broken])
    ... except CallbackError as error:
    ...     print(error.callback, error.phase.value, error.epoch)
    broken epoch_end 1

    Attributes:
        callback: its name.
        phase: where it was consulted.
        epoch, batch, iteration, step: the counters at that moment.
    """

    def __init__(
        self,
        message: str,
        *,
        callback: str,
        phase: Phase,
        epoch: int = 0,
        batch: int = 0,
        iteration: int = 0,
        step: int = 0,
    ) -> None:
        where = f"at {phase.value} (epoch {epoch}, batch {batch}, step {step})"
        super().__init__(f"callback {callback!r} {where}: {message}")
        self.callback = callback
        self.phase = phase
        self.epoch = epoch
        self.batch = batch
        self.iteration = iteration
        self.step = step


class ConflictError(FsmTrainError):
    """Two callbacks of one phase want the same hyper-parameter to be different things.

    >>> from fsm_train.callbacks import schedule
    >>> from fsm_train.schedules import absolute
    >>> from fsm_train.testing import simulate
    >>> two = [schedule(lr=absolute(0.1)), schedule(lr=absolute(0.2), name="other")]
    >>> try:
    ...     simulate(two)
    ... except ConflictError as error:
    ...     print(error)
    'schedule' and 'other' both set lr at step_begin: ...
    """


class FactError(FsmTrainError, KeyError):
    """A fact was read that no callback asked for, or that cannot be known at this phase.

    >>> from fsm_train import Phase
    >>> from fsm_train.testing import at
    >>> try:
    ...     at(Phase.LOSS_END).facts["loss"]
    ... except FactError as error:
    ...     print(error)
    the fact 'loss' ...
    """

    __str__ = Exception.__str__  # KeyError would show the sentence in quotes


class MetricError(FsmTrainError, KeyError):
    """A metric was read that was not measured.

    >>> from fsm_train.testing import simulate
    >>> try:
    ...     simulate([]).metrics["valid_loss"]
    ... except MetricError as error:
    ...     print(error)
    there is no metric 'valid_loss' here: ...
    """

    __str__ = Exception.__str__


class WorkloadError(FsmTrainError, ValueError):
    """The model, the optimizer, the data or the loss are not what a training needs.

    >>> from fsm_train import Supervised
    >>> import torch
    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> try:
    ...     Supervised(model, optimizer, torch.nn.MSELoss(), train=[])
    ... except WorkloadError as error:
    ...     print(error)
    train has no batches: is the dataset empty, or smaller than one batch with drop_last=True?
    """


class NoBatchError(WorkloadError):
    """The data have no batch: there are no samples, or fewer than one batch has, and the last one is dropped."""


class CheckpointError(FsmTrainError):
    """A checkpoint is damaged, missing, or not one.

    >>> from pathlib import Path
    >>> from fsm_train import restore
    >>> Path("damaged").touch()
    >>> try:
    ...     restore("damaged", workload=None)
    ... except CheckpointError as error:
    ...     print(error)
    damaged is no checkpoint: ...
    """


class NoCheckpointError(CheckpointError):
    """There is none yet: a training is to be started, and not gone on with.

    >>> from fsm_train import restore
    >>> try:
    ...     restore("checkpoints", workload=None)
    ... except NoCheckpointError:
    ...     print("start a new training")
    start a new training
    """
