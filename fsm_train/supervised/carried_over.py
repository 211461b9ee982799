"""What a training has beside model and optimizer, and keeps from one call of run to the next."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import attrs

from .averages import Average, StateDict


@attrs.define
class CarriedOver:
    """What outlasts a call of run, and ends with the training.

    Attributes:
        scaler: the state of the gradient scaler when the last call of run ended.
        averages: of the weights, by name.
        weights: by name, copies of the weights to restore, with copies of the averages.
        schedulers: torch's own, by name.
        saved_averages, saved_schedulers: states from a checkpoint, until a command asks for their owners.
    """

    scaler: StateDict | None = None
    averages: dict[str, Average] = attrs.field(factory=dict)
    weights: dict[str, tuple[StateDict, dict[str, StateDict]]] = attrs.field(factory=dict)
    schedulers: dict[str, Any] = attrs.field(factory=dict)
    saved_averages: dict[str, StateDict] = attrs.field(factory=dict)
    saved_schedulers: dict[str, StateDict] = attrs.field(factory=dict)


@runtime_checkable
class Stateful(Protocol):
    """An object whose state can be saved and restored."""

    def state_dict(self) -> StateDict: ...
    def load_state_dict(self, state: Any, /) -> Any: ...
