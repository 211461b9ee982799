"""What a training has beside model and optimizer, and keeps from one call of run to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import attrs
from torch import nn

from .averages import Average
from .kept import KeptWeights
from .modules import StateDict


@attrs.define
class CarriedOver:
    """What outlasts a call of run, and ends with the training.

    Attributes:
        scaler: the state of the gradient scaler when the last call of run ended.
        averages: of the weights, by name.
        weights: by name, copies of the weights to restore, with copies of the averages.
        measured_with: the name of the average that the last validation was measured with, or "model".
        schedulers: torch's own, by name.
        saved_averages, saved_schedulers: states from a checkpoint, until a command asks for their owners.
    """

    scaler: StateDict | None = None
    averages: dict[str, Average] = attrs.field(factory=dict)
    weights: dict[str, KeptWeights] = attrs.field(factory=dict)
    measured_with: str = "model"
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

    def note_measured(self) -> None:
        """Note the weights that a validation was measured with, which is over now."""
        in_use = (name for name, average in self.averages.items() if average.in_use)
        self.measured_with = next(in_use, "model")


@runtime_checkable
class Stateful(Protocol):
    """An object whose state can be saved and restored."""

    def state_dict(self) -> StateDict: ...
    def load_state_dict(self, state: Any, /) -> Any: ...
