"""What a workload has beside model and optimizer, and all that a training changes, taken down at once."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import attrs
import torch
from torch import nn

from .averages import Average, StateDict, copied
from .generators import Generators
from .loaders import workers_there


@attrs.define
class Kept:
    """What goes on from one call of run to the next, and ends with the training.

    Attributes:
        scaler: the state of the gradient scaler when the last call of run ended.
        averages: of the weights, by name.
        weights: copies to go back to, with those of the averages.
        schedulers: torch's own.
        saved_averages, saved_schedulers: from a checkpoint, for when they are asked for again.
    """

    scaler: StateDict | None = None
    averages: dict[str, Average] = attrs.field(factory=dict)
    weights: dict[str, tuple[StateDict, dict[str, StateDict]]] = attrs.field(factory=dict)
    schedulers: dict[str, Any] = attrs.field(factory=dict)
    saved_averages: dict[str, StateDict] = attrs.field(factory=dict)
    saved_schedulers: dict[str, StateDict] = attrs.field(factory=dict)


@runtime_checkable
class Stateful(Protocol):
    """What can be saved and brought back."""

    def state_dict(self) -> StateDict: ...
    def load_state_dict(self, state: Any, /) -> Any: ...


@attrs.frozen
class Outside:
    """Each module's mode, and the generators: what a validation changes, and puts back.

    `workers` is whether those of its loader were there, which matters only where it begins anew.
    """

    modes: tuple[tuple[nn.Module, bool], ...]
    generators: Generators
    workers: bool | None

    @staticmethod
    def of(model: nn.Module, own: Iterable[torch.Generator], valid: object = None) -> Outside:
        modes = tuple((module, module.training) for module in model.modules())
        return Outside(modes, Generators.now(own), workers_there(valid))

    def put_back(self) -> None:
        for module, mode in self.modes:
            module.training = mode
        self.generators.put_back()


@attrs.frozen
class Snapshot:
    """Weights, buffers, modes, gradients, optimizer, generators and what is kept at one moment."""

    model: StateDict
    gradients: tuple[torch.Tensor | None, ...]
    optimizer: StateDict
    outside: Outside
    kept: Kept

    @staticmethod
    def of(model: nn.Module, optimizer: torch.optim.Optimizer, own: Iterable[torch.Generator], kept: Kept) -> Snapshot:
        return Snapshot(
            model=copied(model.state_dict()),
            gradients=tuple(None if p.grad is None else p.grad.clone() for p in model.parameters()),
            optimizer=copy.deepcopy(optimizer.state_dict()),
            outside=Outside.of(model, own),
            kept=kept,  # a new training has one of its own
        )

    def put_back(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        model.load_state_dict(self.model)
        for parameter, gradient in zip(model.parameters(), self.gradients, strict=True):
            parameter.grad = None if gradient is None else gradient.clone()
        # The optimizer keeps the tensors that it is given, so it gets copies.
        optimizer.load_state_dict(copy.deepcopy(self.optimizer))
        self.outside.put_back()
