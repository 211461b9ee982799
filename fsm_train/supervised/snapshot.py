"""What a training changes, held in memory and restored exactly: all of it, or what a validation changes."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import attrs
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..core.errors import WorkloadError
from ..data.generators import Generators
from ..data.loaders import persistent_workers_running
from .carried_over import CarriedOver
from .modules import Modes, StateDict, load_module, state_of_module
from .training import Training


@attrs.frozen
class ValidationGuard:
    """What a validation changes and restores, so that validating does not change the training.

    Attributes:
        modes: train or eval mode of each module, also of a loss.
        generators: as they were before.
        workers: whether the persistent workers of the validation loader ran; used when a validation is abandoned.
    """

    modes: Modes
    generators: Generators
    workers: bool | None

    @staticmethod
    def of(modules: Mapping[str, nn.Module], own: Iterable[torch.Generator], valid: object = None) -> ValidationGuard:
        """The guard for a validation that starts now; `own` are the generators of the loaders."""
        return ValidationGuard(Modes.of(*modules.values()), Generators.now(own), persistent_workers_running(valid))

    def put_back(self) -> None:
        """Restore modes and generators."""
        self.modes.put_back()
        self.generators.put_back()


@attrs.frozen
class Snapshot:
    """Copies of everything that a training changes.

    Attributes:
        modules: by name, values, buffers and modes of the model, and of the modules of the loss.
        gradients: of each parameter; None without one.
        optimizer: its state_dict.
        extra: by name, the state_dict of each extra part.
        generators: their states.
        carried_over: not copied: each training makes its own.
    """

    modules: dict[str, StateDict]
    gradients: tuple[torch.Tensor | None, ...]
    optimizer: StateDict
    extra: dict[str, Any]
    generators: Generators
    carried_over: CarriedOver

    @staticmethod
    def of(work: Training) -> Snapshot:
        modules = work.modules
        if any(is_lazy(parameter) for parameter in _parameters(modules)):
            raise WorkloadError(
                "a lazy layer of the model is not initialized yet, and what follows is to be undone, which is not "
                "possible for its first batch: call the model with a batch before, model(inputs)"
            )
        return Snapshot(
            modules={name: copy.deepcopy(state_of_module(module)) for name, module in modules.items()},
            gradients=tuple(None if p.grad is None else p.grad.clone() for p in _parameters(modules)),
            optimizer=copy.deepcopy(work.optimizer.state_dict()),
            extra={name: copy.deepcopy(part.state_dict()) for name, part in work.extra.items()},
            generators=Generators.now(work.loader_generators()),
            carried_over=work.carried_over,
        )

    def put_back(self, work: Training) -> None:
        """Restore everything; more than once, if asked to."""
        modules = work.modules
        for name, module in modules.items():
            load_module(module, self.modules[name])
        for parameter, gradient in zip(_parameters(modules), self.gradients, strict=True):
            parameter.grad = None if gradient is None else gradient.clone()
        # load_state_dict of an optimizer, and maybe of an extra, keeps the tensors that it is given: they get copies.
        work.optimizer.load_state_dict(copy.deepcopy(self.optimizer))
        for name, part in work.extra.items():
            part.load_state_dict(copy.deepcopy(self.extra[name]))
        self.generators.put_back()
        work.carried_over = self.carried_over


def _parameters(modules: Mapping[str, nn.Module]) -> list[nn.Parameter]:
    return [parameter for module in modules.values() for parameter in module.parameters()]
