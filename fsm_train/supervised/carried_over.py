"""What a training has beside model and optimizer, and keeps from one call of run to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import attrs
from torch import nn

from .averages import Average
from .kept_weights import KeptWeights
from .modules import StateDict


@attrs.define
class CarriedOver:
    """What outlasts a call of run, and ends with the training.

    Attributes:
        scaler: the state of the gradient scaler when the last call of run ended.
        averages: of the weights, by name.
        weights: by name, copies of the weights to restore, with copies of the averages.
        measured_with: the name of the average that the last validation was measured with, or "model".
        measured_by: by the prefix of their metrics, the same of evaluations that say with which weights they are.
        validations: the number of the last one that was carried out to its end, from 1, and the iteration then.
        schedulers: torch's own, by name.
        saved_averages, saved_schedulers: states from a checkpoint, until a command asks for their owners.
    """

    scaler: StateDict | None = None
    averages: dict[str, Average] = attrs.field(factory=dict)
    weights: dict[str, KeptWeights] = attrs.field(factory=dict)
    measured_with: str = "model"
    measured_by: dict[str, str] = attrs.field(factory=dict)
    validations: tuple[int, int] = (0, -1)
    schedulers: dict[str, Any] = attrs.field(factory=dict)
    saved_averages: dict[str, StateDict] = attrs.field(factory=dict)
    saved_schedulers: dict[str, StateDict] = attrs.field(factory=dict)

    def check_kept(self, modules: Mapping[str, nn.Module]) -> None:
        """Let the weights to restore follow a change of the model.

        Raises:
            WorkloadError: they cannot.
        """
        for name, kept in self.weights.items():
            kept.check(name, modules)

    def weights_in_use(self) -> str:
        """The name of the average that the model has now, or "model"."""
        return next((name for name, average in self.averages.items() if average.in_use), "model")

    def note_measured(self, by: Mapping[str, str]) -> None:
        """Note the weights that a validation, and each evaluation in it, was measured with, which is over now."""
        self.measured_with, self.measured_by = self.weights_in_use(), dict(by)


@runtime_checkable
class Stateful(Protocol):
    """An object whose state can be saved and restored."""

    def state_dict(self) -> StateDict: ...
    def load_state_dict(self, state: Any, /) -> Any: ...
