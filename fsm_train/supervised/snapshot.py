"""What a training changes, held in memory and restored exactly: all of it, or what a validation changes."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..core.errors import WorkloadError
from ..data.generators import Generators
from ..data.loaders import Running, persistent_workers_running, set_persistent_workers
from ..data.position import EpochStart, SuspendPoint, is_stateful, own_place
from ..data.sources import Sources
from .carried_over import CarriedOver
from .modules import Modes, StateDict, load_module, state_of_module
from .optimizer_state import load_exactly
from .param_groups import Members
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
    workers: Running

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
        members: the parameters in its groups.
        extra: by name, the state_dict of each extra part.
        generators: their states.
        carried_over: not copied: each training makes its own.
        sources: the states of the layers of the training data.
        workers: whether the persistent workers of the two loaders ran.
        suspended_at: where the training was suspended or ended; None before it began.
        epoch_start: what the pass over the data follows from.
        meters: what train_loss and the metrics had collected; None where no training is under way.
        window: the shares of the batches whose gradients wait for a step.
        numbers: the user's own.
        under_way: the pass over the training data, and how many of its batches were fetched.
    """

    modules: dict[str, StateDict]
    gradients: tuple[torch.Tensor | None, ...]
    optimizer: StateDict
    members: Members
    extra: dict[str, Any]
    generators: Generators
    carried_over: CarriedOver
    sources: Sources
    workers: tuple[Running, Running]
    suspended_at: SuspendPoint | None
    epoch_start: EpochStart | None
    meters: dict[str, Any] | None
    window: list[float]
    numbers: dict[str, float]
    under_way: tuple[Iterator[Any], int]

    @staticmethod
    def of(work: Training, under_way: tuple[Iterator[Any], int]) -> Snapshot:
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
            members=Members.of(work.optimizer),
            extra={name: copy.deepcopy(part.state_dict()) for name, part in work.extra.items()},
            generators=Generators.now(work.loader_generators()),
            carried_over=work.carried_over,
            sources=Sources.now(work.train),
            workers=(persistent_workers_running(work.train), persistent_workers_running(work.valid)),
            suspended_at=_found_again(work),
            epoch_start=work.epoch_start,
            meters=copy.deepcopy(work.train_meters.state()[0]) if work.suspended_at else None,
            window=work.window.state(),
            numbers=dict(work.numbers),
            under_way=under_way,
        )

    def put_back(self, work: Training) -> None:
        """Restore everything; more than once, if asked to."""
        modules = work.modules
        for name, module in modules.items():
            load_module(module, self.modules[name])
        for parameter, gradient in zip(_parameters(modules), self.gradients, strict=True):
            parameter.grad = None if gradient is None else gradient.clone()
        self.members.put_back(work.optimizer)
        work.read_parameters()
        # load_state_dict of an optimizer, and maybe of an extra, keeps the tensors that it is given: they get copies.
        load_exactly(work.optimizer, copy.deepcopy(self.optimizer))
        for name, part in work.extra.items():
            part.load_state_dict(copy.deepcopy(self.extra[name]))
        for loader, running in zip((work.train, work.valid), self.workers, strict=True):
            set_persistent_workers(loader, running)
        self.sources.put_back(work.train)
        self.generators.put_back()
        work.carried_over = self.carried_over
        work.suspended_at, work.epoch_start = self.suspended_at, self.epoch_start
        work.window.load(self.window)
        work.numbers.update(self.numbers)
        if self.meters is not None:
            work.train_meters.load_state(copy.deepcopy(self.meters))


def _found_again(work: Training) -> SuspendPoint | None:
    """Where the training was suspended, for after other passes over its data have ended the one under way there."""
    point = work.suspended_at
    if point is None or point.from_file:
        return point
    if persistent_workers_running(work.train) is None and not is_stateful(work.train):
        return point  # a pass of its own, which others do not disturb
    return attrs.evolve(point, from_file=True, sources=Sources.now(work.train), place=own_place(work.train)[0])


def _parameters(modules: Mapping[str, nn.Module]) -> list[nn.Parameter]:
    return [parameter for module in modules.values() for parameter in module.parameters()]
