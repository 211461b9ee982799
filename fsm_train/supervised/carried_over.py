"""What a workload has beside model and optimizer, and all that a training changes, taken down at once."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import attrs
import torch
from torch import nn

from ..data.generators import Generators
from ..data.loaders import workers_there
from .averages import Average, StateDict
from .modules import load_module, modules_of, state_of_module

if TYPE_CHECKING:
    from .workload import Supervised


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
    """All that a training changes at one moment: modules, gradients, optimizer, extras, generators, what is kept."""

    modules: dict[str, StateDict]
    gradients: tuple[torch.Tensor | None, ...]
    optimizer: StateDict
    extra: dict[str, Any]
    generators: Generators
    kept: Kept

    @staticmethod
    def of(work: Supervised) -> Snapshot:
        return Snapshot(
            modules={name: copy.deepcopy(state_of_module(module)) for name, module in modules_of(work).items()},
            gradients=tuple(None if p.grad is None else p.grad.clone() for p in _parameters(work)),
            optimizer=copy.deepcopy(work.optimizer.state_dict()),
            extra={name: copy.deepcopy(part.state_dict()) for name, part in work.extra.items()},
            generators=Generators.now(work.own_generators()),
            kept=work.kept,  # a new training has one of its own
        )

    def put_back(self, work: Supervised) -> None:
        for name, module in modules_of(work).items():
            load_module(module, self.modules[name])
        for parameter, gradient in zip(_parameters(work), self.gradients, strict=True):
            parameter.grad = None if gradient is None else gradient.clone()
        # The optimizer keeps the tensors that it is given, and so may an extra: they get copies.
        work.optimizer.load_state_dict(copy.deepcopy(self.optimizer))
        for name, part in work.extra.items():
            part.load_state_dict(copy.deepcopy(self.extra[name]))
        self.generators.put_back()
        work.kept = self.kept


def _parameters(work: Supervised) -> list[nn.Parameter]:
    return [parameter for module in modules_of(work).values() for parameter in module.parameters()]
