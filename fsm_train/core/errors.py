"""Everything that can be wrong, in sentences: what was found, where, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .phase import Phase


class FsmTrainError(Exception):
    """What every error of this package is."""


class CallbackError(FsmTrainError):
    """A callback raised, or answered with something that is no answer.

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
    """Two callbacks of one phase want the same hyper-parameter to be different things."""


class FactError(FsmTrainError, KeyError):
    """A fact was read that no callback asked for, or that cannot be known at this phase."""

    __str__ = Exception.__str__  # KeyError would show the sentence in quotes


class MetricError(FsmTrainError, KeyError):
    """A metric was read that was not measured."""

    __str__ = Exception.__str__


class WorkloadError(FsmTrainError, ValueError):
    """The model, the optimizer, the data or the loss are not what a training needs."""


class CheckpointError(FsmTrainError):
    """A checkpoint is damaged, missing, or not one."""


class NoCheckpointError(CheckpointError):
    """There is none yet: a training is to be started, and not gone on with."""
